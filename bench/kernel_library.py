"""keyd's kernels and other libraries as `kernels.c` runs them: by name, so many rounds, with the CPU time it took."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

from bench.building import library_archive, shared_library
from bench.errors import BenchError
from build_native import sources

_SOURCE: Final = Path(__file__).with_name("kernels.c")
_NATIVE: Final = Path(__file__).parent.parent / "keyd" / "crypto" / "native"

# As setup.py has them.
FLAGS: Final = (
    *("-std=c11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
)

# A round takes microseconds, a measurement some hundred of them at least.
_MOST_ROUNDS: Final = 2**32


class KernelLibrary:
    """The compiled kernels. Contestants of one task have names that begin with the same word."""

    def __init__(self) -> None:
        archive = library_archive("libcrypto.a")
        self.has_static_openssl = archive is not None
        self._library = ctypes.CDLL(
            str(
                shared_library(
                    "kernels",
                    {
                        **sources(_NATIVE.glob("*.c")),
                        _SOURCE: ["-DBENCH_STATIC_OPENSSL"] if archive else [],
                    },
                    (*FLAGS, f"-I{_NATIVE}"),
                    headers=sorted(_NATIVE.glob("*.h")),
                    link=("-ldl", "-pthread", *([archive] if archive else [])),
                )
            )
        )
        self._library.bench_version.restype = ctypes.c_char_p
        self._library.bench_path.restype = ctypes.c_char_p
        self._library.bench_units.restype = ctypes.c_uint64
        self._library.bench_run.restype = ctypes.c_int64
        faults = {1: "keyd's locked memory did not open", 2: "there is no libcrypto.so.3 with SM4"}
        fault = self._library.bench_open()
        if fault:
            raise BenchError(faults[fault])

    def version(self, library: str) -> str | None:
        """Return the version of EVP (OpenSSL), libgcrypt or Botan; None if it is not installed."""
        found: bytes | None = self._library.bench_version(library.encode())
        return found.decode() if found is not None else None

    def paths(self) -> list[str]:
        """Return the names of the SM4 paths that this machine supports, best first."""
        names = []
        i = 0
        while (name := self._library.bench_path(i)) is not None:
            if self._library.bench_select(name) == 0:
                names.append(name.decode())
            i += 1
        self.select(names[0])
        return names

    def select(self, path: str) -> None:
        """Use this path from now on."""
        if self._library.bench_select(path.encode()):
            raise BenchError(f"this machine does not support the path {path}")

    def units(self, contestant: str) -> int:
        """Return how many keys, blocks, requests or cards are in a round."""
        return int(self._library.bench_units(contestant.encode()))

    def run(self, contestant: str, rounds: int) -> tuple[float, int]:
        """Return the CPU seconds of so many rounds, and a fingerprint of the last answers.

        Raises:
            BenchError: the contestant failed, or there is none of this name.
        """
        seen = ctypes.c_uint64()
        nanoseconds = self._library.bench_run(
            contestant.encode(), ctypes.c_uint64(rounds), ctypes.byref(seen)
        )
        if nanoseconds < 0:
            raise BenchError(f"{contestant!r} did not compute")
        return nanoseconds / 1e9, seen.value

    def rounds_for(self, contestant: str, seconds: float) -> int:
        """Return how many rounds take about so long. Warms up on the way."""
        rounds = 1
        while rounds < _MOST_ROUNDS:
            took, _ = self.run(contestant, rounds)
            if took >= seconds / 4:
                return max(1, round(rounds * seconds / took))
            rounds *= 2
        raise BenchError(f"{contestant!r} takes no time at all")
