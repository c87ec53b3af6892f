"""The package builds from what it ships, ships what it needs, and says in one sentence when it cannot be built.

The sources are copied first, so that nothing of the working tree, and no earlier build, helps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from build_native import ISA_FLAGS

ROOT: Final = Path(__file__).parents[1]

SENTENCE: Final = (
    "keyd's cryptography is built from C: it needs a C compiler and Python's headers "
    "(on Debian: apt install gcc libc6-dev python3-dev)."
)

# The build backend as an installer calls it, in the environment that runs the tests: nothing is downloaded.
BACKEND: Final = "import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))"

needs_gcc: Final = pytest.mark.skipif(not shutil.which("gcc"), reason="there is no gcc")

# The build requirements of pyproject.toml.
pytest.importorskip("Cython", minversion="3", reason="building needs cython>=3 in this environment")
pytest.importorskip(
    "setuptools", minversion="77", reason="building needs setuptools>=77 in this environment"
)


def copy_sources(target: Path) -> Path:
    """Copy what the repository holds, without what was built in it."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "keyd", target / "keyd", ignore=ignore)
    for name in ("setup.py", "build_native.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, target)
    return target


def run(
    folder: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KEYD_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def shipped(*patterns: str) -> set[str]:
    """Return the files of the package that the patterns name, by their paths in the repository."""
    found = (path for pattern in patterns for path in (ROOT / "keyd").rglob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in found}


# --- without a compiler


def test_without_a_compiler_the_build_ends_with_one_sentence(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run(
        sources, "setup.py", "--quiet", "build_ext", CC="/nonexistent", PATH=str(tmp_path / "empty")
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == SENTENCE
    assert (done.stdout + done.stderr).count(SENTENCE) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(sources.rglob("*.so"))


# --- what is compiled where


# A compiler that writes down what it is asked for, and gives back an empty file.
RECORDER: Final = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
    print(json.dumps(sys.argv[1:]), file=record)
open(sys.argv[sys.argv.index("-o") + 1], "w").close()
"""

# setup.py on a machine that calls itself so.
ELSEWHERE: Final = (
    "import platform, runpy, sys; platform.machine = lambda: sys.argv.pop(1);"
    "import build_native; sys.argv[0] = 'setup.py'; runpy.run_path('setup.py', run_name='__main__')"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("x86_64", "x86_64"),
        ("AMD64", "x86_64"),
        ("aarch64", "aarch64"),
        ("arm64", "aarch64"),
        ("riscv64", None),
    ],
)
def test_a_machine_compiles_its_own_files_with_their_flags_and_no_other_machines(
    sources: Path, tmp_path: Path, name: str, machine: str | None
) -> None:
    recorder, record = tmp_path / "cc", tmp_path / "record"
    recorder.write_text(RECORDER.format(python=sys.executable))
    recorder.chmod(0o755)
    arguments = ["--quiet", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    environment = {"CC": str(recorder), "LDSHARED": str(recorder), "RECORD": str(record)}
    done = run(sources, "-c", ELSEWHERE, name, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    commands = [json.loads(line) for line in record.read_text().splitlines()]
    compiled = {
        Path(command[command.index("-c") + 1]).name: command
        for command in commands
        if "-c" in command
    }
    own = ISA_FLAGS[machine] if machine else {}
    of_others = {file for flags in ISA_FLAGS.values() for file in flags} - set(own)
    assert {"_core.c", "sm4_paths.c", "sm4_portable.c", *own} <= set(compiled)
    assert not of_others & set(compiled)
    # No file but those may have any such flag.
    flags = {flag for files in ISA_FLAGS.values() for some in files.values() for flag in some}
    for file, command in compiled.items():
        assert [flag for flag in command if flag in flags] == own.get(file, []), file


def test_every_file_with_instructions_of_its_own_is_there() -> None:
    named = {file for flags in ISA_FLAGS.values() for file in flags}
    assert named <= {file.name for file in (ROOT / "keyd" / "crypto" / "native").glob("sm4_*.c")}


# --- what is shipped


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution and return it unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    (folder / "sources").mkdir()
    done = run(copy_sources(folder / "sources"), "-c", BACKEND.format("build_sdist"), folder)
    assert done.returncode == 0, done.stderr
    [archive] = folder.glob("keyd-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source distribution, as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sdist, "-c", BACKEND.format("build_wheel"), folder)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("keyd-*.whl")
    return built


def test_a_source_distribution_has_every_source(sdist: Path) -> None:
    needed = shipped("*.c", "*.h", "*.pyx", "*.pyi", "*.py", "profiles/*", "py.typed")
    needed |= {"setup.py", "build_native.py", "pyproject.toml", "README.md"}
    assert {"keyd/crypto/native/sm4_lanes.h", "keyd/pump/pump.c"} <= needed
    has = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert not needed - has
    assert not [name for name in has if name.endswith(".so")]


@needs_gcc
def test_a_wheel_has_the_extensions_and_what_python_reads_and_belongs_to_its_machine(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        has = set(archive.namelist())
    # _core.cpython-311-x86_64-linux-gnu.so is _core.
    extensions = {name.partition(".")[0] for name in has if name.endswith(".so")}
    assert extensions == {"keyd/crypto/native/_core", "keyd/pump/_pump"}
    assert not shipped("*.py", "profiles/*", "py.typed") - has
    # By name: a folder that is no package, for want of an __init__.py, would be missed by everybody at once.
    for package in (
        "audit",
        "custody",
        "hub",
        "store",
        "store/migrations",
        "store/migrations/versions",
    ):
        assert f"keyd/{package}/__init__.py" in has, package
    # Types of a module that was compiled stand nowhere else.
    assert not shipped("*.pyi") - has
    outside = {name for name in has if not name.startswith(("keyd/", "keyd-"))}
    assert not outside
    assert "none-any" not in wheel.name


@needs_gcc
def test_an_installed_wheel_gives_the_known_answers(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path, "zip")
    program = "import keyd; from keyd.cli import main; print(keyd.__file__, flush=True); main()"
    done = run(tmp_path, "-c", program, "selftest", PYTHONPATH=str(tmp_path))
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert done.returncode == 0, done.stderr
