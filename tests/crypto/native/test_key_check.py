"""What C does with keys takes no branch and reads no address that depends on one, and gives the known answers.

`key_check.c` is compiled with the package's files as the package compiles them. Two functions may make a secret known,
those of verdict.c; everything else is computed with secrets undefined. valgrind runs the SM4 paths that it knows, see
`test_sm4_paths.py`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from build_native import sources

ROOT: Final = Path(__file__).parents[3]
NATIVE: Final = ROOT / "keyd" / "crypto" / "native"
CHECK: Final = Path(__file__).parent / "key_check.c"

# Each with the flags of its own, as the package compiles them on this machine.
FILES: Final = sources([*NATIVE.glob("*.c"), CHECK])

CC: Final = shlex.split(os.environ.get("CC", "gcc"))
STRICT: Final = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{NATIVE}"]
WRAP: Final = ["-pthread", "-Wl,--wrap=getrandom,--wrap=bytes_differ,--wrap=key_is_weak"]

IS_CLANG: Final = "clang" in Path(CC[0]).name

pytestmark = pytest.mark.skipif(shutil.which(CC[0]) is None, reason=f"there is no {CC[0]}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build(folder: Path, *flags: str) -> Path:
    objects = []
    for file, own in FILES.items():
        objects.append(folder / f"{file.stem}.o")
        done = run(*CC, *STRICT, *flags, *own, "-c", file, "-o", objects[-1])
        assert done.returncode == 0, done.stderr
    program = folder / "key_check"
    done = run(*CC, *flags, *objects, *WRAP, "-o", program)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile everything as the package is compiled."""
    flags = ["-O3", "-fPIC", "-fstack-protector-strong"]
    if not IS_CLANG:
        flags.append("-fstack-usage")
    return build(tmp_path_factory.mktemp("key_check"), *flags)


def memcheck(program: Path, mode: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    if not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("there is no valgrind/memcheck.h")
    return run(
        "valgrind", "--quiet", "--error-exitcode=99", "--exit-on-first-error=no", program, mode
    )


def test_the_answers_are_right(check: Path) -> None:
    done = run(check, "answers")
    assert done.returncode == 0, done.stderr


def test_the_answers_are_right_under_the_sanitizers(tmp_path: Path) -> None:
    program = build(
        tmp_path, "-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    )
    done = run(program, "answers")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("mode", "complaint", "where"),
    [
        ("tag", "Conditional jump", "gcm_open"),
        ("weak", "Conditional jump", "key_generate"),
        ("index", "Use of uninitialised value", "main"),
    ],
)
def test_memcheck_notices_what_depends_on_a_secret(
    check: Path, mode: str, complaint: str, where: str
) -> None:
    """Without this, silence in the next test would mean nothing."""
    done = memcheck(check, mode)
    assert done.returncode == 99
    assert complaint in done.stderr
    assert where in done.stderr


def test_nothing_branches_on_or_looks_up_by_a_secret(check: Path) -> None:
    done = memcheck(check, "answers")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() in (["aesni"], ["portable"])


@pytest.mark.skipif(IS_CLANG, reason="the sizes are gcc's")
def test_what_is_burnt_covers_the_stack_that_was_used(check: Path) -> None:
    """The frames below the function that burns; those of key_encrypt() wipe themselves."""
    source = (NATIVE / "gf128.c").read_text()
    [limit] = re.findall(r"uint8_t frame\[(\d+)\]", source)
    frames = {}
    for name in ("gf128", "gcm", "shamir"):
        for line in check.with_name(f"{name}.su").read_text().splitlines():
            place, size, _ = line.split("\t")
            frames[place.rpartition(":")[2].partition(".")[0]] = int(size)
    assert frames.pop("gf128_burn") > int(limit)
    assert sum(sorted(frames.values())[-3:]) <= int(limit)
