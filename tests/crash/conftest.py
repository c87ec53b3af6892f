"""What crash tests share: the shim, zygotes, and what each phase does when nobody is killed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.grounds import INSTALL, compile_shim
from tests.crash.rounds import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What kills at a named step."""
    made = compile_shim(tmp_path_factory.mktemp("shim"))
    if made is None:
        pytest.skip(INSTALL)
    return made


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder for thousands of rounds: in memory where there is such a file system, since only kills are tested."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="keyd-crash-", dir=parent) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def stage(shim: Path, place: Path) -> Iterator[Stage]:
    """The phases, played once without a kill."""
    with Stage.played(shim, place) as made:
        yield made
