"""Say which C files of keyd/crypto/native are compiled on which machine, and how.

setup.py builds with these flags, and the tests and benches build with the same ones. This module knows nothing of
setuptools, so that all can import it.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# What costs nothing and turns a memory fault into a crash at once.
HARDENING: Final = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]

# For every file. A build with sanitizers has these without the hardening.
COMPILE: Final = ["-std=c11", "-O3", "-fvisibility=hidden"]

# For each machine, the files that use instructions of their own, and the flags that allow them. The code in such a
# file runs only after sm4_paths.c has found that the processor has them. Other machines do not compile these files:
# their compilers would not know the flags. Files that are not named here are compiled everywhere, without flags.
ISA_FLAGS: Final[dict[str, dict[str, list[str]]]] = {
    "x86_64": {
        "sm4_gfni512.c": ["-mgfni", "-mavx512f", "-mavx512bw", "-mavx512vl"],
        "sm4_gfni256.c": ["-mgfni", "-mavx2"],
        "sm4_aesni.c": ["-maes", "-mssse3", "-msse4.1"],
    },
    "aarch64": {
        # gcc 12 has the intrinsics for SM4 only from ARMv8.2 on. There are processors with SM4 and without the rest of
        # ARMv8.2, and the file uses nothing else of it: a test sees to that.
        "sm4_armv8.c": ["-march=armv8.2-a+sm4"],
    },
}

# Not all systems call them by these names.
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_NAME: Final = platform.machine().lower()

# The machine that this runs on.
MACHINE: Final = _ALIASES.get(_NAME, _NAME)


def sources(files: Iterable[Path], machine: str = MACHINE) -> dict[Path, list[str]]:
    """Return those of the C files that the machine compiles, in order, each with the flags of its own."""
    own = ISA_FLAGS.get(machine, {})
    of_some_machine = {name for flags in ISA_FLAGS.values() for name in flags}
    return {
        file: own.get(file.name, [])
        for file in sorted(files)
        if file.name in own or file.name not in of_some_machine
    }
