"""What a process that holds keys asks of the kernel, and what it must tell people that it could not have.

Block cipher keys are in the arena: locked, and left out of core dumps. The rest of the process's memory is not, and
passphrases, PINs and terminal keys pass through it. `forbid_dumps` keeps that memory out of core dumps and away from
debuggers of the same user; `swap_warnings` says where it could still be written. Root is not kept out: with
CAP_SYS_PTRACE it reads any process, by gcore too.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/prctl.h>
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def forbid_dumps() -> None:
    """Let this process leave no core dump, and let no other of its user look into it.

    It stays so until the process becomes another program. What the kernel refuses, `swap_warnings` tells.
    """
    # Where it is 0 already, as under the unit, nothing is asked for: the unit's system call filter would refuse.
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Beside the limit, because the kernel does not heed the limit when it pipes a core dump into a program.
    _prctl(_PR_SET_DUMPABLE, 0)


def is_dumpable() -> bool:
    """Return whether the kernel would write this process's memory out, or let others of its user see it."""
    return _prctl(_PR_GET_DUMPABLE, 0) != 0


def swap_warnings(
    proc: Path = _PROC, cgroups: Path = _CGROUPS, *, dumpable: bool | None = None
) -> list[str]:
    """Return a sentence for every way in which memory beyond the arena may come to a disk. Asked at the start.

    `dumpable` is `is_dumpable()`, unless a test says otherwise.
    """
    return [*_swaps(proc, cgroups), *_dumps(proc, is_dumpable() if dumpable is None else dumpable)]


def _swaps(proc: Path, cgroups: Path) -> Iterator[str]:
    if _is_never_swapped(proc, cgroups):
        return
    swaps = _read(proc / "swaps")
    if swaps is None:
        # As under ProcSubset=pid, which systemd/keyd.service has.
        yield (
            "whether this machine swaps cannot be seen from here, and no MemorySwapMax=0 keeps this process out of "
            "swap: see /proc/swaps"
        )
        return
    places = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    if places:
        yield (
            f"this machine swaps to {', '.join(places)}: keys are in locked memory, but passphrases, PINs and "
            "terminal keys may be written there. Set MemorySwapMax=0, or encrypt the swap"
        )


def _is_never_swapped(proc: Path, cgroups: Path) -> bool:
    """Return whether this process's control group, or one above it, may use no swap at all."""
    for line in (_read(proc / "self" / "cgroup") or "").splitlines():
        # Version 2 is hierarchy 0 and names no controllers; the limits of version 1 count swap with memory.
        prefix, slash, path = line.partition("/")
        if prefix != "0::" or not slash or ".." in Path(path).parts:
            continue
        # The topmost too: in a container it is the container's own group, and elsewhere it has no such file.
        group = cgroups / path
        for limited in (group, *group.parents):
            if (_read(limited / "memory.swap.max") or "").strip() == "0":
                return True
            if limited == cgroups:
                break
    return False


def _dumps(proc: Path, dumpable: bool) -> Iterator[str]:
    if not dumpable:
        return
    pattern = (_read(proc / "sys" / "kernel" / "core_pattern") or "").strip()
    if pattern.startswith("|"):
        yield (
            f"a crash would hand this process's memory to {pattern[1:].split(' ')[0]}: the kernel asks no limit "
            "before it pipes a core dump"
        )
        return
    limit = _core_limit(_read(proc / "self" / "limits") or "")
    if limit != "0":
        yield f"a crash would write this process's memory into a core dump (limit {limit})"


def _core_limit(limits: str) -> str:
    """Return the soft limit of core dumps, as /proc/self/limits has it."""
    name = "Max core file size"
    for line in limits.splitlines():
        if line.startswith(name):
            return line.removeprefix(name).split()[0]
    return "unknown"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), zero, zero, zero))
