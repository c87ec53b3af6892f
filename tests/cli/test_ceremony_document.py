"""docs/ceremony.md is true: its commands run as they stand, and print what it says.

The `sh` blocks are one shell script against real daemons. A `console` block is what the `sh` block before it prints:
its lines appear in this order, with `…` for whatever differs each time, and with others between them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "ceremony.md"
POLICY: Final = Path(__file__).parents[2] / "conf" / "policy.toml"
BIN: Final = Path(sys.executable).parent

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Some 60 commands of half a second each; on a machine that does much else it may take minutes.
SECONDS: Final = 900


class Step(NamedTuple):
    """A block of commands, and the lines that it prints according to the document."""

    commands: str
    seen: list[str]


def steps_of(document: str) -> list[Step]:
    """Take the steps out of a document."""
    steps: list[Step] = []
    before = ""
    for kind, text in _BLOCK.findall(document):
        if kind == "sh":
            steps.append(Step(text, []))
        elif kind == "console":
            assert before == "sh", f"nothing prints this:\n{text}"
            steps[-1].seen.extend(text.splitlines())
        before = kind
    return steps


def missing_line(expected: list[str], printed: str) -> str | None:
    """Return the first expected line that is not printed, or not in its place."""
    lines = iter(printed.splitlines())
    for wanted in expected:
        words = (".*".join(map(re.escape, word.split("…"))) for word in wanted.split())
        # How many spaces separate columns depends on the longest value.
        pattern = re.compile(r"\s*" + r"\s+".join(words) + r"\s*")
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None


def run(script: str, folder: Path) -> str:
    """Run a shell script in a folder, end all that it has started, and return what it printed."""
    (folder / "script").write_text(script, encoding="utf-8")
    with (folder / "printed").open("wb") as printed:
        shell = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail", "script"],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": f"{BIN}:{os.environ['PATH']}", "LANG": "C.UTF-8", "HOME": str(folder)},
            start_new_session=True,
        )
        try:
            shell.wait(SECONDS)
        finally:
            # Its daemons are of its process group, and go on when it has ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
            shell.wait()
    return (folder / "printed").read_text(encoding="utf-8")


def test_the_ceremony_is_as_the_document_says(tmp_path: Path) -> None:
    shutil.copy(POLICY, tmp_path)
    steps = steps_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(steps) > 15
    script = "".join(f"echo '@@@ {n}'\n{step.commands}\n" for n, step in enumerate(steps))
    printed = run(script + "echo '@@@ end'\n", tmp_path)
    outputs = re.split(r"^@@@ .*\n", printed, flags=re.MULTILINE)[1:]
    logs = "".join(log.read_text() for log in sorted(tmp_path.glob("*/log")))
    assert printed.rstrip().endswith("@@@ end"), printed[-3000:] + logs[-3000:]
    assert "Traceback" not in printed
    assert "Traceback" not in logs
    for step, output in zip(steps, outputs, strict=False):
        missing = missing_line(step.seen, output)
        assert missing is None, f"{missing!r} is not in what was printed:\n{output}"


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        (["a … c"], "a  b c", None),
        (["x"], "y", "x"),
        (["first", "second"], "second\nfirst", "second"),
        (["… is done"], "0123 is undone", "… is done"),
        (["1.2"], "1x2", "1.2"),
    ],
)
def test_the_comparison_can_fail(expected: list[str], printed: str, missing: str | None) -> None:
    assert missing_line(expected, printed) == missing
