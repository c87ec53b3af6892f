"""The psam suite's reader: `keyd vpcd` behind a real pcscd of our own, twice, with a PSAM in each of two slots.

The pool has the one in the first slot. The second is for pyscard alone: a chip is one owner's at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.cpus import on_cpu
from bench.errors import BenchError
from keyd.lending.pcsc import PcscUnavailable, ReaderChip, load
from keyd.pooling import FIRST_SYNTHETIC
from tests.pcscd import DRIVER, TOOLS, Pcscd, socket_of_this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.cpus import Cpus

POOLED: Final = "Virtual PCD 00 00"
ALONE: Final = "Virtual PCD 00 01"

_ROOT: Final = Path(__file__).parent.parent
_START_SECONDS: Final = 30.0


def missing() -> str:
    """Return a sentence that says what is missing for a reader; empty if nothing is."""
    if not DRIVER.exists() or not all(map(shutil.which, TOOLS)):
        return "Readers were not measured: the Debian packages pcscd, vsmartcard-vpcd and opensc are not installed."
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "Readers were not measured: whoever runs this may not mount, and so has no pcscd of his own."
    try:
        load()
    except PcscUnavailable as error:
        return f"Readers were not measured: {error}."
    return ""


@contextlib.contextmanager
def readers(scratch: Path, cpus: Cpus) -> Iterator[None]:
    """Run pcscd and `keyd vpcd`, on the server's CPU; both slots have a PSAM then, in SM4's environment."""
    with on_cpu(cpus.server), contextlib.ExitStack() as stack:
        pcscd = Pcscd(scratch, socket_of_this_process())
        pcscd.start()
        stack.callback(pcscd.kill)
        chips = [_chip(pcscd.port + slot, scratch / f"psam {slot}", stack) for slot in range(2)]
        deadline = time.monotonic() + _START_SECONDS
        while not (pcscd.has_card(0) and pcscd.has_card(1)):
            if time.monotonic() > deadline or any(chip.poll() is not None for chip in chips):
                raise BenchError("no PSAM came into the virtual reader")
            time.sleep(0.05)
        yield


def _chip(port: int, state: Path, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Put a PSAM into a slot; all have the same number, so that their answers are the same."""
    chip = subprocess.Popen(
        [
            *(sys.executable, "-P", "-c", "from keyd.cli import main; main()", "vpcd", "--dev"),
            *("--connect", f"127.0.0.1:{port}", "--state", str(state)),
            *("--terminal", f"{FIRST_SYNTHETIC:012}", "psam"),
        ],
        cwd=_ROOT,
        # -P keeps the folder that it is started in out of the path, and keyd is the one that is measured.
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stderr=subprocess.DEVNULL,
    )
    stack.callback(chip.wait)
    stack.callback(chip.kill)
    return chip


@contextlib.contextmanager
def pyscard_alone() -> Iterator[ReaderChip]:
    """Connect to the second PSAM as any reader software would, with nothing of the pool around it."""
    chip = ReaderChip(ALONE)
    try:
        chip.reset()
        yield chip
    finally:
        chip.close()
