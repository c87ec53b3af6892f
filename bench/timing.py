"""The timing suite: whether the time of SM4 tells anything of keys and blocks, asked statistically (dudect).

Each path encrypts 64 blocks under 64 keys, all zero or all random by the toss of a coin, some hundred thousand
times; Welch's t-test compares the two. By dudect's custom, |t| above 10 is a leak for sure and below 5 is no sign of
one. It is evidence and no proof: what the tests prove, no branch and no address by a secret, says nothing of how long
the processor takes for an instruction. A control that leaks on purpose shows that the test can see.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.building import shared_library
from bench.cpus import choose_cpus, on_cpu
from bench.findings import Finding, Findings, Sample, Target, add_out, finish
from bench.kernel_library import FLAGS, KernelLibrary
from build_native import sources

if TYPE_CHECKING:
    import argparse

HELP: Final = "a statistical test of whether SM4's time depends on its secrets"

NAME: Final = "timing"

# Between 5 and 10 dudect does not know; a noisy machine alone gets there now and then.
T_TARGET: Final = 10.0

CONTROL: Final = "leaky"

_NATIVE: Final = Path(__file__).parent.parent / "keyd" / "crypto" / "native"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument("--runs", type=int, default=300_000, help="of each path (default 300000)")
    parser.add_argument("--repetitions", type=int, default=5, help="of all that (default 5)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    findings = Findings.begin(
        NAME, f"{options.repetitions} repetitions of {options.runs:,} runs of 64 keys and blocks"
    )
    measure(findings, options.runs, options.repetitions)
    finish(findings, options.out)


def measure(findings: Findings, runs: int, repetitions: int) -> None:
    """Take |t| of every path that this machine has, and of the control."""
    library = _library()
    contestants = [*KernelLibrary().paths(), CONTROL]
    with on_cpu(choose_cpus().generator):
        for repetition in range(repetitions):
            for path in contestants:
                t = library.timing_largest_t(path.encode(), runs)
                findings.samples.append(Sample(_what(path), path, "|t|", repetition, t))
    for path in contestants:
        target = Target(T_TARGET, is_at_least=path == CONTROL)
        values = findings.values(_what(path), path)
        findings.findings.append(Finding(_what(path), "|t|", values, target))
    findings.notes.append(
        "|t| is the largest of ten cuts. The control compares carelessly, and its target is to be found out."
    )


def _what(path: str) -> str:
    return "control that leaks" if path == CONTROL else f"schedule + block, 64 lanes: {path}"


def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("timing.c")
    library = ctypes.CDLL(
        str(
            shared_library(
                NAME,
                {**sources(_NATIVE.glob("sm4_*.c")), source: ["-fvisibility=default"]},
                (*FLAGS, f"-I{_NATIVE}"),
                headers=sorted(_NATIVE.glob("*.h")),
                link=("-lm", "-pthread"),
            )
        )
    )
    library.timing_largest_t.restype = ctypes.c_double
    library.timing_largest_t.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library
