"""When an officer's command ends, what was typed is nowhere in its memory any more."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.crypto.sm2 import backend_name
from tests.cli.test_custody import ktk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cli.conftest import City

# The command line as it is, but that the process stops itself where it would end: what is registered first runs last.
STOPPING: Final = """
import atexit, os, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.SIGSTOP))
from keyd.cli import main
sys.exit(main())
"""

# Synthetic: recognisable, and never a real component.
COMPONENT: Final = bytes.fromhex("C0FFEE11DECADE22BADDCAFE33F00D44")

SECONDS: Final = 60.0


def stopped(city: City, arguments: Sequence[str], answers: Sequence[tuple[str, str]]) -> int:
    """Run a command on a terminal until it stops itself at its end; return its process."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(city.folder)
        environment = city.environment("chen")
        os.execve(sys.executable, [sys.executable, "-c", STOPPING, *arguments], environment)
    screen, waiting = b"", list(answers)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if done:
            assert os.WIFSTOPPED(status), (status, screen.decode())
            assert not waiting, screen.decode()
            return pid
        if select.select([terminal], [], [], 0.1)[0]:
            screen += os.read(terminal, 65536)
        if waiting and re.search(waiting[0][0].encode() + rb"\Z", screen):
            screen = b""
            os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"it did not end: {screen.decode()}")


def memory_of(pid: int) -> bytes:
    """Return all that a process can write to."""
    parts = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            if mode.startswith("rw"):
                begin, end = (int(number, 16) for number in span.split("-"))
                memory.seek(begin)
                try:
                    parts.append(memory.read(end - begin))
                except OSError:
                    continue  # a guard page of the arena
    return b"".join(parts)


@pytest.mark.skipif(
    backend_name() != "libcrypto",
    reason="this machine cannot run SM2 without copies of a plaintext",
)
def test_a_typed_component_is_gone_when_the_command_ends(city: City) -> None:
    proposal = ktk(city, "KTK-M")
    digits = COMPONENT.hex()
    answers = [("digits: ", digits), ("more: ", digits), ("yes: ", "yes")]
    pid = stopped(city, ["component", "enter", proposal, "1"], answers)
    try:
        memory = memory_of(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert city.answer("proposal", "show", proposal, who="sun")["components"] == {"1": "chen"}
    # Something of the command is there to be found, so that this is its memory.
    assert proposal.encode() in memory
    for canary in (COMPONENT, digits.encode(), digits.upper().encode()):
        assert canary not in memory
