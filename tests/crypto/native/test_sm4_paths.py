"""Every SM4 path gives the standard's answers for any number of lanes, touches only its caller's memory, and takes no
branch and reads no address that depends on a key or a block.

The C files are compiled here as the package compiles them, and loaded by themselves, so that each path can be tested
that this machine supports, whichever the package would choose. valgrind 3.19 knows neither AVX-512 nor GFNI nor ARM's
SM4 instructions, so the two GFNI paths and the armv8 path are not run under it here: test_sm4_gfni_secrets.py shows
the same of the GFNI paths in two other ways, and the armv8 path looks nothing up at all.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from gmssl.sm4 import SM4_BOXES_TABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from build_native import ISA_FLAGS, MACHINE, sources
from tests.crypto.native.conftest import assert_burnt

ROOT: Final = Path(__file__).parents[3]
NATIVE: Final = ROOT / "keyd" / "crypto" / "native"
CHECK: Final = Path(__file__).parent / "sm4_check.c"

FILES: Final = sources(NATIVE.glob("sm4_*.c"))
# Best first.
OWN_PATHS: Final = {"x86_64": ["gfni512", "gfni256", "aesni"], "aarch64": ["armv8"]}
PATHS: Final = [*OWN_PATHS.get(MACHINE, []), "portable"]

CC: Final = shlex.split(os.environ.get("CC", "gcc"))
STRICT: Final = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{NATIVE}"]

IS_CLANG: Final = "clang" in Path(CC[0]).name

MOST_LANES: Final = 200
BLOCK: Final = 16

pytestmark = pytest.mark.skipif(shutil.which(CC[0]) is None, reason=f"there is no {CC[0]}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compile_all(folder: Path, *flags: str, isa: bool = True) -> list[Path]:
    """Compile each file with its own flags, and the check."""
    objects = []
    for file, flags_of_its_own in {**FILES, CHECK: []}.items():
        own = flags_of_its_own if isa else []
        objects.append(folder / f"{file.stem}.o")
        done = run(*CC, *STRICT, *flags, *own, "-c", file, "-o", objects[-1])
        assert done.returncode == 0, done.stderr
    return objects


def link(target: Path, objects: list[Path], *flags: str) -> Path:
    done = run(*CC, *flags, *objects, "-o", target)
    assert done.returncode == 0, done.stderr
    return target


class PathStruct(ctypes.Structure):
    """sm4_path of sm4.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("lanes", ctypes.c_int),
        ("is_supported", ctypes.CFUNCTYPE(ctypes.c_int)),
        (
            "encrypt_each",
            ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
            ),
        ),
        ("expand", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
        (
            "encrypt_scheduled",
            ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
            ),
        ),
        (
            "encrypt_ecb",
            ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
            ),
        ),
    ]


class Sm4:
    """One path, from bytes to bytes, at any offset from alignment."""

    def __init__(self, library: ctypes.CDLL, struct: Any) -> None:
        self.library = library
        self.struct = struct

    def encrypt_each(self, keys: bytes, blocks: bytes, offset: int = 0) -> bytes:
        n = len(blocks) // BLOCK
        key, block, out = (
            place(keys, offset),
            place(blocks, offset),
            place(bytes(n * BLOCK), offset),
        )
        self.struct.encrypt_each(key.at, block.at, out.at, n)
        return out.content()

    def expand(self, keys: bytes, offset: int = 0) -> list[int]:
        n = len(keys) // BLOCK
        key, schedules = place(keys, offset), (ctypes.c_uint32 * (32 * n))()
        self.struct.expand(key.at, schedules, n)
        return list(schedules)

    def encrypt_scheduled(self, schedules: list[int], blocks: bytes, offset: int = 0) -> bytes:
        n = len(blocks) // BLOCK
        numbers = (ctypes.c_uint32 * len(schedules))(*schedules)
        pointers = (ctypes.c_void_p * n)(*(ctypes.addressof(numbers) + 128 * i for i in range(n)))
        block, out = place(blocks, offset), place(bytes(n * BLOCK), offset)
        self.struct.encrypt_scheduled(pointers, block.at, out.at, n)
        return out.content()

    def encrypt_ecb(self, schedule: list[int], blocks: bytes, offset: int = 0) -> bytes:
        numbers = (ctypes.c_uint32 * 32)(*schedule)
        block, out = place(blocks, offset), place(bytes(len(blocks)), offset)
        self.struct.encrypt_ecb(numbers, block.at, out.at, len(blocks) // BLOCK)
        return out.content()

    def chain(self, key: bytes, block: bytes, rounds: int) -> bytes:
        out = ctypes.create_string_buffer(block, BLOCK)
        self.library.sm4_chain(
            ctypes.byref(self.struct),
            ctypes.c_char_p(key),
            out,
            ctypes.c_size_t(rounds),
        )
        return out.raw


class Placed:
    """Bytes at an address of our choice, with a margin on both sides that must not change."""

    MARGIN: Final = 64
    PATTERN: Final = b"\xa5"

    def __init__(self, content: bytes, offset: int) -> None:
        self.size = len(content)
        margin = self.PATTERN * self.MARGIN
        self.buffer = ctypes.create_string_buffer(2 * self.MARGIN + self.size + 2 * 64)
        start = -ctypes.addressof(self.buffer) % 64 + offset
        self.start = start + self.MARGIN
        ctypes.memmove(
            ctypes.addressof(self.buffer) + start, margin + content + margin, self.size + 128
        )
        self.at = ctypes.addressof(self.buffer) + self.start

    def content(self) -> bytes:
        raw = self.buffer.raw
        margin = self.PATTERN * self.MARGIN
        assert raw[self.start - self.MARGIN : self.start] == margin
        assert raw[self.start + self.size : self.start + self.size + self.MARGIN] == margin
        return raw[self.start : self.start + self.size]


def place(content: bytes, offset: int) -> Placed:
    return Placed(content, offset)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Compile everything as the package is compiled."""
    flags = ["-O3", "-fPIC", "-fstack-protector-strong"]
    if not IS_CLANG:
        flags.append("-fstack-usage")
    return compile_all(tmp_path_factory.mktemp("sm4"), *flags)


@pytest.fixture(scope="module")
def library(objects: list[Path]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(link(objects[0].with_name("sm4.so"), objects, "-shared")))
    loaded.sm4_current.restype = ctypes.POINTER(PathStruct)
    loaded.sm4_chain.restype = None
    return loaded


def compiled_paths(library: ctypes.CDLL) -> list[Any]:
    pointers = (ctypes.POINTER(PathStruct) * len(PATHS)).in_dll(library, "sm4_paths")
    return [pointer.contents for pointer in pointers]


@pytest.fixture(scope="module", params=PATHS)
def sm4(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Sm4:
    for struct in compiled_paths(library):
        if struct.name.decode() == request.param:
            if not struct.is_supported():
                pytest.skip(f"this machine cannot run the {request.param} path")
            return Sm4(library, struct)
    raise AssertionError(f"{request.param} was not compiled in")


def theirs(key: bytes, blocks: bytes) -> bytes:
    encryptor = Cipher(algorithms.SM4(key), modes.ECB()).encryptor()  # noqa: S305 -- lanes are ECB.
    return encryptor.update(blocks)


class Pool:
    """As many keys and blocks as any test needs, with `cryptography`'s answers."""

    def __init__(self) -> None:
        numbers = b"".join(
            theirs(bytes(BLOCK), i.to_bytes(BLOCK, "big")) for i in range(2 * MOST_LANES)
        )
        self.keys = numbers[: BLOCK * MOST_LANES]
        self.blocks = numbers[BLOCK * MOST_LANES :]
        self.under_own = b"".join(
            theirs(self.keys[at : at + BLOCK], self.blocks[at : at + BLOCK])
            for at in range(0, BLOCK * MOST_LANES, BLOCK)
        )
        self.under_first = theirs(self.keys[:BLOCK], self.blocks)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


# --- the standard


def test_the_standards_example_holds_in_every_operation(sm4: Sm4, gm: dict[str, Any]) -> None:
    vector = gm["sm4"][0]
    key, block = bytes.fromhex(vector["key"]), bytes.fromhex(vector["plaintext"])
    ciphertext = bytes.fromhex(vector["ciphertext"])
    schedule = sm4.expand(key)
    # The first and last round key of the standard's example.
    assert (schedule[0], schedule[31]) == (0xF12186F9, 0x9124A012)
    assert sm4.encrypt_each(key, block) == ciphertext
    assert sm4.encrypt_scheduled(schedule, block) == ciphertext
    assert sm4.encrypt_ecb(schedule, block) == ciphertext
    assert sm4.encrypt_ecb(schedule[::-1], ciphertext) == block


def test_the_standards_million_rounds_hold(sm4: Sm4, gm: dict[str, Any]) -> None:
    vector = gm["sm4"][1]
    key, block = bytes.fromhex(vector["key"]), bytes.fromhex(vector["plaintext"])
    assert sm4.chain(key, block, vector["rounds"]).hex().upper() == vector["ciphertext"]


def turn(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & 0xFFFFFFFF


def substitute(word: int) -> int:
    return int.from_bytes(bytes(SM4_BOXES_TABLE[byte] for byte in word.to_bytes(4, "big")), "big")


def one_round(x: list[int], round_key: int) -> list[int]:
    b = substitute(x[1] ^ x[2] ^ x[3] ^ round_key)
    return [*x[1:], x[0] ^ b ^ turn(b, 2) ^ turn(b, 10) ^ turn(b, 18) ^ turn(b, 24)]


def test_the_ciphers_s_box_is_the_standards_table(sm4: Sm4) -> None:
    """All bytes in all places of the first round; the other 31 rounds carry a difference to the output."""
    words = [value << place for value in range(256) for place in (0, 8, 16, 24)]
    blocks = b"".join(bytes(12) + word.to_bytes(4, "big") for word in words)
    answers = []
    for word in words:
        x = [0, 0, 0, word]
        for _ in range(32):
            x = one_round(x, 0)
        answers.append(b"".join(w.to_bytes(4, "big") for w in reversed(x)))
    assert sm4.encrypt_ecb([0] * 32, blocks) == b"".join(answers)


def test_the_key_schedules_s_box_is_the_standards_table(sm4: Sm4) -> None:
    """All bytes in all places of the first round key, which shows them directly: L' is invertible."""
    words = [value << place for value in range(256) for place in (0, 8, 16, 24)]
    fk = [0xA3B1BAC6, 0x56AA3350, 0x677D9197, 0xB27022DC]
    first_ck = 0x00070E15
    keys, answers = [], []
    for word in words:
        keys.append([fk[0], fk[1] ^ word ^ first_ck, fk[2], fk[3]])
        b = substitute(word)
        answers.append(b ^ turn(b, 13) ^ turn(b, 23))
    schedules = sm4.expand(b"".join(w.to_bytes(4, "big") for key in keys for w in key))
    assert schedules[::32] == answers


# --- lanes


def test_every_number_of_lanes_has_cryptographys_answers(sm4: Sm4, pool: Pool) -> None:
    all_schedules = sm4.expand(pool.keys)
    for n in range(1, MOST_LANES + 1):
        size, offset = n * BLOCK, n % 64
        keys, blocks = pool.keys[:size], pool.blocks[:size]
        assert sm4.encrypt_each(keys, blocks, offset) == pool.under_own[:size], n
        schedules = sm4.expand(keys, offset)
        assert schedules == all_schedules[: 32 * n], n
        assert sm4.encrypt_scheduled(schedules, blocks, offset) == pool.under_own[:size], n
        assert sm4.encrypt_ecb(schedules[:32], blocks, offset) == pool.under_first[:size], n


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(
            st.binary(min_size=BLOCK, max_size=BLOCK), st.binary(min_size=BLOCK, max_size=BLOCK)
        ),
        min_size=1,
        max_size=90,
    ),
    offset=st.integers(0, 63),
)
def test_random_lanes_have_cryptographys_answers(
    sm4: Sm4, pairs: list[tuple[bytes, bytes]], offset: int
) -> None:
    keys, blocks = b"".join(key for key, _ in pairs), b"".join(block for _, block in pairs)
    answers = b"".join(theirs(key, block) for key, block in pairs)
    assert sm4.encrypt_each(keys, blocks, offset) == answers
    schedules = sm4.expand(keys, offset)
    assert sm4.encrypt_scheduled(schedules, blocks, offset) == answers
    assert sm4.encrypt_ecb(schedules[:32], blocks, offset) == theirs(pairs[0][0], blocks)
    assert sm4.encrypt_ecb(schedules[31::-1], theirs(pairs[0][0], blocks), offset) == blocks


# --- the choice


def test_the_best_supported_path_comes_first_and_any_can_be_chosen(library: ctypes.CDLL) -> None:
    structs = compiled_paths(library)
    assert [struct.name.decode() for struct in structs] == PATHS
    supported = [struct.name for struct in structs if struct.is_supported()]
    assert library.sm4_current().contents.name == supported[0]
    assert supported[-1] == b"portable"
    for name in reversed(supported):
        assert library.sm4_select(name) == 0
        assert library.sm4_current().contents.name == name
    assert library.sm4_select(b"des") == -1
    assert library.sm4_select(b"") == -1
    assert library.sm4_current().contents.name == supported[0]


def test_files_without_their_instructions_still_build_and_leave_portable(tmp_path: Path) -> None:
    """As with a compiler that knows nothing of them: the paths are there and unsupported."""
    program = link(tmp_path / "check", compile_all(tmp_path, "-O1", isa=False))
    done = run(program, "compare")
    assert (done.returncode, done.stdout.split()) == (0, ["portable"]), done.stderr


@pytest.mark.skipif(MACHINE not in ISA_FLAGS, reason="this machine has no such files")
def test_a_file_with_instructions_of_its_own_exports_only_its_path(objects: list[Path]) -> None:
    """A function that another file could be linked to would carry the instructions to lesser machines."""
    for name in ISA_FLAGS[MACHINE]:
        stem = Path(name).stem
        compiled = next(file for file in objects if file.stem == stem)
        symbols = run("nm", "--extern-only", "--defined-only", "--format=posix", compiled).stdout
        assert [line.split()[0] for line in symbols.splitlines()] == [stem]


# --- memory


def test_the_check_passes_under_the_sanitizers(tmp_path: Path) -> None:
    flags = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = link(tmp_path / "check", compile_all(tmp_path, *flags), *flags)
    done = run(program, "compare")
    assert done.returncode == 0, done.stderr
    assert "portable" in done.stdout.split()


def test_the_check_passes_as_the_package_is_built(check: Path) -> None:
    """With forbidden pages around the buffers, which masked instructions meet as well."""
    done = run(check, "compare")
    assert done.returncode == 0, done.stderr
    assert "portable" in done.stdout.split()


@pytest.mark.skipif(IS_CLANG, reason="the sizes are gcc's")
def test_what_is_burnt_covers_every_workers_stack(objects: list[Path]) -> None:
    """An operation wipes its own variables by name, and by sm4_burn() whatever stood below its frame."""
    for compiled in objects[:-1]:
        assert_burnt(compiled)


# --- secrets


@pytest.fixture(scope="module")
def check(objects: list[Path]) -> Path:
    return link(objects[0].with_name("check"), objects)


def memcheck(program: Path, mode: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    if not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("there is no valgrind/memcheck.h")
    return run(
        "valgrind", "--quiet", "--error-exitcode=99", "--exit-on-first-error=no", program, mode
    )


def test_memcheck_notices_a_lookup_that_depends_on_a_secret(check: Path) -> None:
    """Without this, silence in the next test would mean nothing."""
    done = memcheck(check, "leak")
    assert done.returncode == 99
    assert "Use of uninitialised value" in done.stderr


def test_no_path_branches_on_or_looks_up_by_a_secret(check: Path) -> None:
    done = memcheck(check, "secrets")
    assert done.returncode == 0, done.stderr
    ran = done.stdout.split()
    assert "portable" in ran
    if MACHINE == "x86_64" and "aes" in Path("/proc/cpuinfo").read_text().split():
        assert "aesni" in ran
