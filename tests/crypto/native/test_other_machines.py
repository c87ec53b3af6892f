"""The package computes the same on machines that are not this one: AArch64, and x86-64 without later instructions.

AArch64 is emulated, with SM4 instructions and without, so only answers count here, not time. What an older machine
lacks is searched for in the compiled files: none may have it but those that run only after sm4_paths.c has found it
there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from build_native import ISA_FLAGS, MACHINE, sources
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region
from keyd.keys.sam import (
    CardKeyRef,
    CryptogramTask,
    MacTask,
    ProtectTask,
    SamTask,
    TacTask,
    purpose,
)
from tests.crypto.native.conftest import assert_burnt

if TYPE_CHECKING:
    from tests.crypto.native.conftest import Reference

ROOT: Final = Path(__file__).parents[3]
NATIVE: Final = ROOT / "keyd" / "crypto" / "native"
PUMP: Final = ROOT / "keyd" / "pump"
CHECK: Final = Path(__file__).parent / "sm4_check.c"
KEY_CHECK: Final = Path(__file__).parent / "key_check.c"
GM: Final = ROOT / "tests" / "vectors" / "gm.json"

# What setup.py compiles on every machine, so on one without files of its own.
PLAIN: Final = list(sources(NATIVE.glob("*.c"), machine="none"))

# As the package is built.
FLAGS: Final = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- AArch64

CC: Final = "aarch64-linux-gnu-gcc"
ASSEMBLER: Final = "aarch64-linux-gnu-as"
OBJDUMP: Final = "aarch64-linux-gnu-objdump"
NM: Final = "aarch64-linux-gnu-nm"
EMULATOR: Final = "qemu-aarch64"

# Processors that the emulator knows, and the paths that keyd finds there, best first.
WITH_SM4: Final = "max"
WITHOUT_SM4: Final = "cortex-a57"
PATHS: Final = {WITH_SM4: ["armv8", "portable"], WITHOUT_SM4: ["portable"]}

emulated: Final = pytest.mark.skipif(
    not (shutil.which(CC) and shutil.which(EMULATOR)),
    reason="AArch64 needs the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user",
)

# E(key, block), so many times over, and the path that computed it; the path may be chosen, as KEYD_SM4 chooses it.
SM4_PROGRAM: Final = r"""
#include <stdio.h>
#include <stdlib.h>
#include "sm4.h"

int main(int count, char **arguments)
{
    uint8_t key[16], block[16];
    sm4_schedule schedule;

    if (count != 4 && count != 5)
        return 2;
    if (count == 5 && sm4_select(arguments[4]) != 0)
        fprintf(stderr, "no path %s; ", arguments[4]);
    const sm4_path *path = sm4_current();
    for (int i = 0; i < 16; i++) {
        sscanf(arguments[1] + 2 * i, "%2hhx", &key[i]);
        sscanf(arguments[2] + 2 * i, "%2hhx", &block[i]);
    }
    path->expand(key, &schedule, 1);
    for (long rounds = atol(arguments[3]); rounds > 0; rounds--)
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


def emulate(cpu: str, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(EMULATOR, "-cpu", cpu, program, *arguments)


def compile_for_aarch64(source: Path, folder: Path, *flags: str) -> Path:
    compiled = folder / f"{source.stem}.o"
    done = run(CC, *FLAGS, *flags, "-c", source, "-o", compiled)
    assert done.returncode == 0, done.stderr
    return compiled


def link(target: Path, *objects: Path) -> Path:
    """Link for AArch64. Static, because no AArch64 library is installed where the emulator would look."""
    done = run(CC, "-static", *objects, "-o", target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Compile the native layer for AArch64, as setup.py compiles it there."""
    folder = tmp_path_factory.mktemp("aarch64")
    flags = ["-fPIC", "-fstack-protector-strong", "-fstack-usage"]
    return [
        compile_for_aarch64(file, folder, *flags, *own)
        for file, own in sources(NATIVE.glob("*.c"), machine="aarch64").items()
    ]


def kernels(objects: list[Path]) -> list[Path]:
    return [compiled for compiled in objects if compiled.name.startswith("sm4_")]


def build_text(objects: list[Path], name: str, text: str) -> Path:
    folder = objects[0].parent
    source = folder / f"{name}.c"
    source.write_text(text)
    return link(folder / name, *objects, compile_for_aarch64(source, folder))


@pytest.fixture(scope="module")
def check_program(aarch64: list[Path]) -> Path:
    folder = aarch64[0].parent
    return link(folder / "check", *kernels(aarch64), compile_for_aarch64(CHECK, folder))


@pytest.fixture(scope="module")
def sm4_program(aarch64: list[Path]) -> Path:
    return build_text(aarch64, "sm4_program", SM4_PROGRAM)


@pytest.fixture(scope="module")
def card_program(aarch64: list[Path]) -> Path:
    return build_text(aarch64, "card_program", CARD_PROGRAM)


@emulated
@pytest.mark.parametrize("cpu", PATHS)
def test_every_path_passes_the_check_on_aarch64(check_program: Path, cpu: str) -> None:
    """Each operation, 0 to 200 blocks, against a plain SM4, at the edges of memory; what is unsupported is not run."""
    done = emulate(cpu, check_program, "compare")
    assert (done.returncode, done.stdout.split()) == (0, PATHS[cpu]), done.stderr


@emulated
def test_files_without_their_instructions_still_build_on_aarch64_and_leave_portable(
    tmp_path: Path,
) -> None:
    files = list(sources(NATIVE.glob("sm4_*.c"), machine="aarch64"))
    objects = [compile_for_aarch64(file, tmp_path) for file in [*files, CHECK]]
    done = emulate(WITH_SM4, link(tmp_path / "check", *objects), "compare")
    assert (done.returncode, done.stdout.split()) == (0, ["portable"]), done.stderr


@emulated
def test_custody_gives_the_known_answers_on_aarch64(tmp_path: Path) -> None:
    """Sealing with the RFC's answer, and what is made, added, split or wrapped comes back."""
    program = tmp_path / "key_check"
    wrap = "-Wl,--wrap=getrandom,--wrap=bytes_differ,--wrap=key_is_weak"
    files = sources(NATIVE.glob("*.c"), machine="aarch64")
    done = run(CC, *FLAGS, "-static", wrap, *files, KEY_CHECK, "-o", program)
    assert done.returncode == 0, done.stderr
    done = run(EMULATOR, program, "answers")
    assert (done.returncode, done.stdout.split()) == (0, ["portable"]), done.stderr


def standard(number: int) -> tuple[list[str], str]:
    """Return one of the standard's two examples, as the program's arguments and its answer."""
    vector = cast("dict[str, Any]", json.loads(GM.read_text())["sm4"][number])
    arguments = [vector["key"], vector["plaintext"], str(vector.get("rounds", 1))]
    return arguments, vector["ciphertext"]


@emulated
@pytest.mark.parametrize("cpu", PATHS)
def test_the_best_path_is_chosen_on_aarch64_and_has_the_standards_answer(
    sm4_program: Path, cpu: str
) -> None:
    arguments, ciphertext = standard(0)
    done = emulate(cpu, sm4_program, *arguments)
    assert done.stdout.split() == [PATHS[cpu][0], ciphertext], done.stderr


@emulated
def test_the_standards_million_rounds_hold_on_aarch64(sm4_program: Path) -> None:
    """On the armv8 path. On the portable one they would be half a minute of emulation."""
    arguments, ciphertext = standard(1)
    assert arguments[2] == "1000000"
    done = emulate(WITH_SM4, sm4_program, *arguments)
    assert done.stdout.split() == ["armv8", ciphertext], done.stderr


@emulated
@pytest.mark.parametrize("cpu", PATHS)
@pytest.mark.parametrize("name", ["armv8", "portable", "aesni"])
def test_a_path_is_chosen_by_name_on_aarch64_if_the_processor_has_it(
    sm4_program: Path, cpu: str, name: str
) -> None:
    arguments, ciphertext = standard(0)
    done = emulate(cpu, sm4_program, *arguments, name)
    if name in PATHS[cpu]:
        assert (done.stdout.split(), done.stderr) == ([name, ciphertext], "")
    else:
        assert done.stdout.split() == [PATHS[cpu][0], ciphertext]
        assert done.stderr == f"no path {name}; "


# The result of an SM4 instruction is there when so many more could have begun, on the processors that say how long.
LATENCY: Final = 4
SM4_INSTRUCTION: Final = re.compile(r"(sm4e|sm4ekey)\tv(\d+)\.4s, v(\d+)\.4s(?:, v(\d+)\.4s)?")


def sm4_instructions(compiled: Path) -> dict[str, list[tuple[str, ...]]]:
    """Return each function's SM4 instructions, in order: the name and the numbers of the registers, target first."""
    listing = run(OBJDUMP, "--disassemble", "--no-show-raw-insn", compiled)
    assert listing.returncode == 0, listing.stderr
    functions: dict[str, list[tuple[str, ...]]] = {}
    for line in listing.stdout.splitlines():
        if found := re.fullmatch(r"[0-9a-f]+ <(\w+)>:", line):
            current = functions.setdefault(found[1], [])
        elif "\tsm4" in line:
            instruction = SM4_INSTRUCTION.search(line)
            assert instruction, line
            current.append(tuple(part for part in instruction.groups() if part))
    # A listing that was not understood would have no function at all.
    assert functions, compiled
    return functions


@emulated
def test_the_armv8_path_computes_with_the_instructions_and_no_other_file_has_them(
    aarch64: list[Path],
) -> None:
    used = {
        (compiled.stem, function): {name for name, *_ in instructions}
        for compiled in aarch64
        for function, instructions in sm4_instructions(compiled).items()
        if instructions
    }
    assert used == {
        ("sm4_armv8", "each_worker"): {"sm4e", "sm4ekey"},
        ("sm4_armv8", "expand_worker"): {"sm4ekey"},
        ("sm4_armv8", "scheduled_worker"): {"sm4e"},
        ("sm4_armv8", "ecb_worker"): {"sm4e"},
    }


@emulated
def test_lanes_take_turns_in_the_armv8_path(aarch64: list[Path]) -> None:
    """In a full batch, no instruction needs the result of one of the few before it, which is not there yet."""
    [compiled] = [file for file in aarch64 if file.stem == "sm4_armv8"]
    for function, instructions in sm4_instructions(compiled).items():
        if not instructions:
            continue
        longest, begin = 0, 0
        for at, (name, target, *operands) in enumerate(instructions):
            # SM4E changes its first register, SM4EKEY only writes it.
            needed = {*operands, target} if name == "sm4e" else {*operands}
            for before in range(max(begin, at - LATENCY + 1), at):
                if instructions[before][1] in needed:
                    begin = before + 1
            longest = max(longest, at + 1 - begin)
        # Eight lanes of eight instructions, or twice that where keys are expanded on the way.
        assert longest >= (128 if function == "each_worker" else 64), function


@emulated
def test_the_armv8_path_needs_nothing_newer_than_sm4(tmp_path: Path) -> None:
    """The flags would allow all of ARMv8.2, which HWCAP_SM4 does not promise: the first ARMv8 refuses only SM4."""
    text = tmp_path / "sm4_armv8.s"
    [own] = ISA_FLAGS["aarch64"].values()
    done = run(CC, *FLAGS, *own, "-S", NATIVE / "sm4_armv8.c", "-o", text)
    assert done.returncode == 0, done.stderr
    first, changed = re.subn(r"\.arch .*", ".arch armv8-a", text.read_text())
    assert changed == 1
    text.write_text(first)
    refused = run(ASSEMBLER, text, "-o", tmp_path / "sm4_armv8.o").stderr
    assert set(re.findall(r"Error: .* `(\w+)", refused)) == {"sm4e", "sm4ekey"}
    others = [line for line in refused.splitlines() if "Error" in line and "sm4e" not in line]
    assert others == []


@emulated
def test_a_file_with_instructions_of_its_own_exports_only_its_path_on_aarch64(
    aarch64: list[Path],
) -> None:
    [compiled] = [file for file in aarch64 if file.stem == "sm4_armv8"]
    symbols = run(NM, "--extern-only", "--defined-only", "--format=posix", compiled).stdout
    assert [line.split()[0] for line in symbols.splitlines()] == ["sm4_armv8"]


@emulated
def test_what_is_burnt_covers_every_workers_stack_on_aarch64(aarch64: list[Path]) -> None:
    for compiled in kernels(aarch64):
        assert_burnt(compiled)


KEY: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")
REF: Final = CardKeyRef(
    1, CardAlgorithm.SM4, Region("510100"), bytes(range(8)), purpose(Use.INTERNAL)
)
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
@pytest.mark.parametrize("cpu", PATHS)
@pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
@pytest.mark.parametrize("kind", TASKS)
def test_a_card_is_answered_on_aarch64_as_the_reference_answers(
    card_program: Path, reference: Reference, algorithm: Algorithm, kind: int, cpu: str
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
    done = emulate(cpu, card_program, *arguments)
    assert (done.returncode, done.stdout) == (0, expected.hex().upper()), done.stderr


# --- x86-64 without later instructions

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
    not (MACHINE == "x86_64" and shutil.which("gcc") and shutil.which("objdump")),
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
    flags = ISA_FLAGS["x86_64"][name]
    assert telling in later_instructions(compile_one(NATIVE / name, tmp_path, *flags))
