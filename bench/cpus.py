"""Which CPU does what: the server has one, the generator another, and neither wanders.

Unpinned, the scheduler decides anew in every run whether the two share a cache or a core, and the numbers say
more about that than about the server.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

# The least that a process which answered anything is taken to have used.
LEAST_CPU_SECONDS: Final = 1 / _TICKS_PER_SECOND

# proc(5): utime and stime are fields 14 and 15; the fields after the name begin with number 3.
_UTIME, _STIME = 14 - 3, 15 - 3


class Cpus(NamedTuple):
    """The CPU of the server under test and the generator's; None where there are not two to choose from."""

    server: int | None
    generator: int | None

    def __str__(self) -> str:
        if self.server is None:
            return "not pinned: there is only one CPU, which server and generator share"
        return f"server on CPU {self.server}, generator on CPU {self.generator}"


def choose_cpus() -> Cpus:
    """Choose two of the CPUs that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cpus(allowed[0], allowed[1]) if len(allowed) > 1 else Cpus(None, None)


@contextlib.contextmanager
def on_cpu(cpu: int | None) -> Iterator[None]:
    """Run the block, and every process started in it, on one CPU."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process has used, all threads together.

    The kernel counts it in hundredths of a second: the difference over a short run says little.
    """
    # The name is in parentheses and may hold anything, so the fields are counted from the last one.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_SECOND


def waiting_seconds(pid: int) -> float:
    """Return how long a process's first thread was ready and did not run, because others had its CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
