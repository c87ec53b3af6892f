"""Imports go down only, and the daemon needs nothing that is there for people at a terminal."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).parent.parent
SOURCE: Final = REPOSITORY / "keyd"

# What the command line is made of.
FOR_PEOPLE: Final = ("typer", "rich", "click")

# Runs in a fresh interpreter: what this one has imported says nothing.
WITHOUT: Final = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it is an ImportError
import keyd.daemon
print(*sorted(name for name, module in sys.modules.items() if module is not None))
"""


def imported_by_the_daemon(*blocked: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(blocked=blocked)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_floors_are_kept() -> None:
    checked = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--config", "pyproject.toml", "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_daemon_does_not_import_the_command_line() -> None:
    imported = imported_by_the_daemon()
    assert {"typer", "click"}.isdisjoint(imported)
    assert "keyd" in imported


def test_the_daemon_starts_where_the_command_lines_libraries_are_not() -> None:
    # structlog looks for rich, to print in colours, and goes without where there is none.
    assert set(FOR_PEOPLE).isdisjoint(imported_by_the_daemon(*FOR_PEOPLE))


def imports_of(file: Path) -> Iterator[str]:
    """Yield the top-level package of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(SOURCE.rglob("*.py")) if "cli" not in file.parts],
    ids=lambda file: str(file.relative_to(SOURCE)),
)
def test_only_the_command_line_imports_what_is_for_people(file: Path) -> None:
    assert set(FOR_PEOPLE).isdisjoint(imports_of(file))
