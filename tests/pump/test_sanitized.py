"""Under AddressSanitizer and UBSan, no bytes make the pump read, write or compute what it must not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
PUMP: Final = HERE.parents[1] / "keyd" / "pump"

# Each is up to 96 connections with up to 64 KiB; some 250 a second.
ITERATIONS: Final = 1000

SANITIZERS: Final = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pump_fuzz, built with sanitizers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the sanitized pump needs gcc")
    program = tmp_path_factory.mktemp("sanitized") / "pump_fuzz"
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-omit-frame-pointer"]
    sources = [str(HERE / "pump_fuzz.c"), *(str(PUMP / name) for name in ("pump.c", "seen.c"))]
    built = subprocess.run(
        [compiler, *warnings, *SANITIZERS, *sources, "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the sanitized pump needs gcc's libasan and libubsan")
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("seed", [1, 2])
def test_the_pump_survives_any_bytes(fuzzer: Path, seed: int) -> None:
    done = subprocess.run(
        [fuzzer, str(ITERATIONS), str(seed)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        # Nothing of an outer test run is meant for it, least of all a sanitizer to be preloaded.
        env={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("answered\n")
