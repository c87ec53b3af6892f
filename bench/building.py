"""Compile C on first use into `bench/build/`, under a name that changes with whatever went into it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BUILD: Final = Path(__file__).with_name("build")

COMPILER: Final = "gcc"


def is_available() -> bool:
    """Whether there is a compiler."""
    return shutil.which(COMPILER) is not None


def shared_library(
    name: str,
    sources: Mapping[Path, Sequence[str]],
    flags: Sequence[str],
    *,
    headers: Sequence[Path] = (),
    link: Sequence[str] = (),
) -> Path:
    """Return a shared library of C files, each compiled with the common flags and its own.

    Raises:
        BenchError: there is no compiler, or it refused a file.
    """
    if not is_available():
        raise BenchError(f"the benches are partly C, and there is no {COMPILER}: apt install gcc")
    # An object's bytes depend on these and the compiler, which nobody changes every day.
    went_in = hashlib.sha256(repr((sorted(sources.items()), flags, link)).encode())
    for file in sorted([*sources, *headers]):
        went_in.update(file.read_bytes())
    target = _BUILD / f"{name}-{went_in.hexdigest()[:16]}.so"
    if not target.exists():
        _BUILD.mkdir(exist_ok=True)
        # Elsewhere first: somebody else may be compiling, or loading, at this moment.
        with tempfile.TemporaryDirectory(dir=_BUILD) as scratch:
            objects = []
            for file, own in sources.items():
                objects.append(f"{scratch}/{file.stem}.o")
                _compile([*flags, *own, "-fPIC", "-c", str(file), "-o", objects[-1]], file.name)
            fresh = Path(scratch) / "fresh.so"
            _compile(["-shared", *objects, *link, "-o", str(fresh)], name)
            fresh.replace(target)
    return target


def library_archive(name: str) -> str | None:
    """Return where the compiler finds a static library such as libcrypto.a; None if it does not."""
    done = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=False
    )
    # What it does not find, it says back.
    found = done.stdout.strip()
    return found if done.returncode == 0 and Path(found).is_absolute() else None


def _compile(arguments: Sequence[str], what: str) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{COMPILER} refused {what}:\n{done.stderr}")
