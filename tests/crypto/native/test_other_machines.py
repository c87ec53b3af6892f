"""The package computes the same on machines that are not this one: AArch64, and x86-64 without later instructions.

AArch64 is emulated, so only answers count here, not time. What an older x86-64 lacks is searched for
in the compiled files: none may have it but those that run only after sm4_paths.c has found it there.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from build_native import ISA_FLAGS
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.keys.hierarchy import Region
from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, ProtectTask, SamTask, TacTask

if TYPE_CHECKING:
    from tests.crypto.native.conftest import Reference

ROOT: Final = Path(__file__).parents[3]
NATIVE: Final = ROOT / "keyd" / "crypto" / "native"
PUMP: Final = ROOT / "keyd" / "pump"
CHECK: Final = Path(__file__).parent / "sm4_check.c"
GM: Final = ROOT / "tests" / "vectors" / "gm.json"

# What setup.py compiles on every machine.
PLAIN: Final = [file for file in sorted(NATIVE.glob("*.c")) if not ISA_FLAGS.get(file.name)]

# As the package is built.
FLAGS: Final = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- AArch64

CC: Final = "aarch64-linux-gnu-gcc"
EMULATOR: Final = "qemu-aarch64"

emulated: Final = pytest.mark.skipif(
    not (shutil.which(CC) and shutil.which(EMULATOR)),
    reason="AArch64 needs the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user",
)

# E(key, block), and the path that computed it.
SM4_PROGRAM: Final = r"""
#include <stdio.h>
#include "sm4.h"

int main(int count, char **arguments)
{
    uint8_t key[16], block[16];
    sm4_schedule schedule;
    const sm4_path *path = sm4_current();

    if (count != 3)
        return 2;
    for (int i = 0; i < 16; i++) {
        sscanf(arguments[1] + 2 * i, "%2hhx", &key[i]);
        sscanf(arguments[2] + 2 * i, "%2hhx", &block[i]);
    }
    path->expand(key, &schedule, 1);
    path->encrypt_ecb((const sm4_schedule *)&schedule, block, block, 1);
    printf("%s ", path->name);
    for (int i = 0; i < 16; i++)
        printf("%02X", block[i]);
    return 0;
}
"""

# One task: algorithm, kind, city key, diversifier, session factor, header, data; "-" is empty.
CARD_PROGRAM: Final = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "card.h"

static uint8_t bytes[5][256];
static size_t lengths[5];

int main(int count, char **arguments)
{
    static uint8_t out[512];
    arena_handle city;

    if (count != 8)
        return 2;
    for (int field = 0; field < 5; field++)
        if (strcmp(arguments[3 + field], "-") != 0)
            for (const char *at = arguments[3 + field]; *at; at += 2)
                sscanf(at, "%2hhx", &bytes[field][lengths[field]++]);

    arena_status status = arena_open(ARENA_DEFAULT_BYTES);
    if (status == ARENA_OK)
        status = arena_take((arena_algorithm)atoi(arguments[1]), bytes[0], &city);
    if (status != ARENA_OK) {
        fprintf(stderr, "the arena refuses: %d\n", status);
        return 1;
    }
    card_task task = {
        .city = city,
        .algorithm = (arena_algorithm)atoi(arguments[1]),
        .kind = (card_kind)atoi(arguments[2]),
        .diversifier = {bytes[1], lengths[1]},
        .session_factor = {bytes[2], lengths[2]},
        .header = {bytes[3], lengths[3]},
        .data = {bytes[4], lengths[4]},
        .out = out,
    };
    card_measure(&task);
    card_compute(&task, 1);
    for (size_t i = 0; i < task.out_length; i++)
        printf("%02X", out[i]);
    arena_wipe_all();
    return task.result;
}
"""


def build(folder: Path, name: str, *files: Path) -> Path:
    """Compile for AArch64. Static, because no AArch64 library is installed where the emulator would look."""
    program = folder / name
    done = run(CC, *FLAGS, "-static", *files, "-o", program)
    assert done.returncode == 0, done.stderr
    return program


def build_text(folder: Path, name: str, text: str) -> Path:
    source = folder / f"{name}.c"
    source.write_text(text)
    return build(folder, name, *PLAIN, source)


@pytest.fixture(scope="module")
def sm4_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text(tmp_path_factory.mktemp("aarch64"), "sm4", SM4_PROGRAM)


@pytest.fixture(scope="module")
def card_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text(tmp_path_factory.mktemp("aarch64"), "card", CARD_PROGRAM)


@emulated
def test_the_portable_path_passes_the_check_on_aarch64(tmp_path: Path) -> None:
    files = [file for file in PLAIN if file.name.startswith("sm4_")]
    done = run(EMULATOR, build(tmp_path, "check", *files, CHECK), "compare")
    assert (done.returncode, done.stdout.split()) == (0, ["portable"]), done.stderr


@emulated
def test_the_standards_example_holds_on_aarch64(sm4_program: Path) -> None:
    """The standard's other one, a million rounds, would be half a minute of emulation."""
    vector = cast("dict[str, Any]", json.loads(GM.read_text())["sm4"][0])
    done = run(EMULATOR, sm4_program, vector["key"], vector["plaintext"])
    assert done.stdout.split() == ["portable", vector["ciphertext"]], done.stderr


KEY: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")
REF: Final = CardKeyRef(1, CardAlgorithm.SM4, Region("510100"), bytes(range(8)))
FACTOR: Final = bytes(range(0x10, 0x18))
HEADER: Final = bytes.fromhex("04D68100")
DATA: Final = bytes(range(100))

# As card_kind has them.
TASKS: Final[dict[int, SamTask]] = {
    1: CryptogramTask(REF, FACTOR, DATA[:8]),
    2: MacTask(REF, FACTOR, DATA),
    3: ProtectTask(REF, FACTOR, HEADER, DATA, encrypt=False),
    4: ProtectTask(REF, FACTOR, HEADER, DATA, encrypt=True),
    5: TacTask(REF, DATA),
}


@emulated
@pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
@pytest.mark.parametrize("kind", TASKS)
def test_a_card_is_answered_on_aarch64_as_the_reference_answers(
    card_program: Path, reference: Reference, algorithm: Algorithm, kind: int
) -> None:
    city, task = reference.key(algorithm, KEY), TASKS[kind]
    expected = reference.answer(city, task)
    assert isinstance(expected, bytes)
    fields = [
        city.material,
        REF.diversifier,
        b"" if isinstance(task, TacTask) else FACTOR,
        HEADER if isinstance(task, ProtectTask) else b"",
        DATA[:8] if isinstance(task, CryptogramTask) else DATA,
    ]
    arguments = [str(reference.numbers[algorithm]), str(kind), *(f.hex() or "-" for f in fields)]
    done = run(EMULATOR, card_program, *arguments)
    assert (done.returncode, done.stdout) == (0, expected.hex().upper()), done.stderr


# --- x86-64 without later instructions

IS_X86_64: Final = platform.machine().lower() in {"x86_64", "amd64"}

# SSE2 is x86-64's own. Everything with VEX or EVEX is written v..., as are verr and verw of the kernel, which no
# compiler emits; then come SSE3 to SSE4.2, AES, carry-less products, GFNI, SHA, and the bit instructions of Haswell.
LATER: Final = re.compile(
    r"v[a-z]|aes|gf2p8|pclmul|sha(1|256)|pshufb|palign|phadd|phsub|pmaddub|pmulhrs|psign|pabs"
    r"|h(add|sub)p|addsubp|mov(ddup|shdup|sldup)|lddqu|p?blend|ptest|pmov[sz]x|p(ins|ext)r[bdq]"
    r"|p(min|max)(s[bd]|u[dw])|pmuld|pmulld|pcmpeqq|pcmpgtq|pcmp[ei]str|packusdw|roundp|rounds[sd]|insertps"
    r"|extractps|dpp[sd]|mpsad|crc32|popcnt|lzcnt|tzcnt|andn\b|bextr|bls|bzhi|mulx|pdep|pext\b|rorx|s[ahr][lrx]x|adcx"
    r"|adox|movbe|rdrand|rdseed|k(mov|and|or|xor|not|shift)"
)


def later_instructions(compiled: Path) -> set[str]:
    """Return the instructions, and the uses of ymm and zmm registers, that an x86-64 need not have."""
    listing = run("objdump", "--disassemble", "--no-show-raw-insn", compiled)
    assert listing.returncode == 0, listing.stderr
    found, count = set(), 0
    for line in listing.stdout.splitlines():
        # "   1a3:\tpxor   %xmm0,%xmm0"
        place, tab, instruction = line.partition(":\t")
        if tab and place.strip():
            count += 1
            mnemonic = instruction.split()[0]
            if LATER.match(mnemonic) or re.search(r"%[yz]mm|%k[0-7]\b", instruction):
                found.add(mnemonic)
    # sm4_paths.c is the smallest; a listing that was not understood would have none.
    assert count > 20, compiled
    return found


baseline: Final = pytest.mark.skipif(
    not (IS_X86_64 and shutil.which("gcc") and shutil.which("objdump")),
    reason="the search needs x86-64, gcc and binutils",
)


def compile_one(source: Path, folder: Path, *flags: str) -> Path:
    compiled = folder / f"{source.stem}.o"
    done = run("gcc", *FLAGS, "-fPIC", f"-I{PUMP}", *flags, "-c", source, "-o", compiled)
    assert done.returncode == 0, done.stderr
    return compiled


@baseline
@pytest.mark.parametrize("source", [*PLAIN, PUMP / "pump.c"], ids=lambda file: file.name)
def test_a_file_without_instructions_of_its_own_runs_on_every_x86_64(
    source: Path, tmp_path: Path
) -> None:
    assert later_instructions(compile_one(source, tmp_path)) == set()


@baseline
@pytest.mark.parametrize(
    ("name", "telling"),
    [
        ("sm4_aesni.c", "aesenclast"),
        ("sm4_gfni256.c", "vgf2p8affineqb"),
        ("sm4_gfni512.c", "vgf2p8affineqb"),
    ],
)
def test_the_search_notices_instructions_that_are_there(
    name: str, telling: str, tmp_path: Path
) -> None:
    """Without this, silence in the previous test would mean nothing."""
    assert telling in later_instructions(compile_one(NATIVE / name, tmp_path, *ISA_FLAGS[name]))
