"""The two GFNI paths of SM4 take no branch and touch no address that depends on a key or a block: shown twice, because
valgrind 3.19 runs neither GFNI nor AVX-512.

The source: sm4_gfni256.c and sm4_gfni512.c are compiled, unchanged, against emulated/immintrin.h, which spells each
instruction in plain C, and run under memcheck with keys and blocks marked undefined, as test_sm4_paths.py does with the
other paths. This covers all that the C text does with a secret, whether through a vector, a copy in memory or a byte
read by itself, for the numbers of blocks that sm4_check runs. It says nothing of what the compiler makes of it for the
real instructions. Where the processor has these instructions, each emulated one is compared with it; everywhere the
emulated paths have to give SM4's answers.

The machine code: the real object files, with the package's flags, are followed instruction by instruction
(machine_code.py) for all numbers of blocks at once. A secret may be in vector registers, in the caller's buffers and on
the stack. Bytes of a key that are loaded one by one, a tail or a copied schedule, would pass through a general register
and are complained of, even where they would do no harm; so nothing that the source hides in a memcpy escapes. Public
numbers go everywhere: lengths to mask registers (the paths do so to read and write under a mask) and pointers to vector
registers and back (gcc parks them there). A secret never comes back from a vector, nor from where a vector was stored.

Neither proof says that an instruction takes the same time for all values; that of these is known to be so. What calls
the paths (card.c, key.c) is not covered here.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from build_native import COMPILE, HARDENING, ISA_FLAGS
from tests.crypto.native.machine_code import TO_POINTERS, TO_SECRETS, SecretFlow, listing

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE: Final = Path(__file__).parent
NATIVE: Final = HERE.parents[2] / "keyd" / "crypto" / "native"
EMULATED: Final = HERE / "emulated"

NAMES: Final = ["sm4_gfni256", "sm4_gfni512"]

CC: Final = shlex.split(os.environ.get("CC", "gcc"))
IS_CLANG: Final = "clang" in Path(CC[0]).name
STRICT: Final = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]

IS_X86_64: Final = platform.machine().lower() in {"x86_64", "amd64"}

pytestmark = [
    pytest.mark.skipif(not IS_X86_64, reason="this machine cannot run what is for x86-64"),
    pytest.mark.skipif(shutil.which(CC[0]) is None, reason=f"there is no {CC[0]}"),
]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compiled(*arguments: str | Path) -> Path:
    """Compile or link, and return the target, which is named last."""
    done = run(*CC, *arguments[:-1], "-o", arguments[-1])
    assert done.returncode == 0, done.stderr
    assert isinstance(arguments[-1], Path)
    return arguments[-1]


def pretended(name: str) -> list[str]:
    """Return what makes a file believe that it was given its instructions."""
    return [f"-D__{flag.removeprefix('-m').upper()}__" for flag in ISA_FLAGS["x86_64"][f"{name}.c"]]


# --- faults, which both proofs must notice


@dataclass(frozen=True)
class Fault:
    """Text that is put behind a line of each file, and what memcheck and machine_code.py say of it.

    What needs an instruction that is not emulated does not even compile there, and memcheck has nothing to say.
    """

    behind: str
    text: str
    memcheck: str | None
    complaint: str


# Where a vector of secrets enters the S-box.
S_BOX: Final = r"SM4_INLINE vec (?:into_aes|substitute)\(vec s\)\n\{\n"

BRANCHES: Final = "Conditional jump or move depends on uninitialised value"
LOOKS_UP: Final = "Use of uninitialised value"
TO_GENERAL: Final = "takes a secret to a general register or the flags"

FAULTS: Final = {
    "a branch": Fault(
        S_BOX,
        'uint32_t word; memcpy(&word, &s, 4); if (word == 0) __asm__ volatile("");\n',
        BRANCHES,
        TO_GENERAL,
    ),
    "a lookup": Fault(
        S_BOX,
        "static volatile const uint8_t table[256]; uint8_t byte; memcpy(&byte, &s, 1);"
        " (void)table[byte];\n",
        LOOKS_UP,
        TO_GENERAL,
    ),
    "a branch by way of the stack": Fault(
        S_BOX,
        "volatile vec copy; memcpy((void *)&copy, &s, sizeof s);"
        ' if (((volatile uint32_t *)&copy)[3] == 0) __asm__ volatile("");\n',
        BRANCHES,
        TO_GENERAL,
    ),
    "a byte of a block by itself": Fault(
        r"SM4_INLINE void load_blocks\(.*\)\n\{\n",
        'if (n > 0 && blocks[0] == 0) __asm__ volatile("");\n',
        BRANCHES,
        TO_GENERAL,
    ),
    "a byte of a schedule by itself": Fault(
        r"SM4_INLINE void load_round_keys\(.*\)\n\{\n",
        'if (n > 0 && (*schedules[0])[at] == 0) __asm__ volatile("");\n',
        BRANCHES,
        TO_GENERAL,
    ),
    "a gather": Fault(
        S_BOX,
        "static const int table[256];\n"
        "#ifdef __AVX512F__\n"
        "s = _mm512_i32gather_epi32(_mm512_srli_epi32(s, 24), table, 4);\n"
        "#else\n"
        "s = _mm256_i32gather_epi32(table, _mm256_srli_epi32(s, 24), 4);\n"
        "#endif\n",
        None,
        "has a vector in its address",
    ),
    "a mask made from a secret": Fault(
        S_BOX,
        "static long long kept[8];\n"
        "#ifdef __AVX512F__\n"
        "_mm512_mask_storeu_epi32(kept, _mm512_test_epi32_mask(s, s), s);\n"
        "#else\n"
        "_mm256_maskstore_epi64(kept, s, s);\n"
        "#endif\n",
        None,
        "as a secret says|to a mask register",
    ),
}


def with_fault(name: str, fault: Fault, folder: Path) -> Path:
    text, count = re.subn(
        fault.behind,
        lambda found: found[0] + fault.text,
        (NATIVE / f"{name}.c").read_text(),
    )
    assert count == 1
    target = folder / f"{name}.c"
    target.write_text(text)
    return target


# --- the source


def compile_emulated(source: Path, folder: Path) -> Path:
    """Compile with so little optimisation that a branch of the source stays one.

    DWARF 4 is what valgrind 3.19 reads from any compiler.
    """
    isa = pretended(source.stem) if source.stem in NAMES else []
    target = folder / f"{source.stem}.o"
    # The emulation comes before the compiler's own header of that name.
    flags = [*STRICT, "-Og", "-gdwarf-4", f"-I{EMULATED}", f"-I{NATIVE}", *isa]
    return compiled(*flags, "-c", source, target)


@pytest.fixture(scope="module")
def emulated_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("emulated")
    sources = [HERE / "sm4_check.c", EMULATED / "sm4_paths.c", *(NATIVE / f"{n}.c" for n in NAMES)]
    return {source.stem: compile_emulated(source, folder) for source in sources}


@pytest.fixture(scope="module")
def emulated_check(emulated_objects: dict[str, Path]) -> Path:
    objects = list(emulated_objects.values())
    return compiled(*objects, objects[0].with_name("check"))


def memcheck(program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    if not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("there is no valgrind/memcheck.h")
    return run("valgrind", "--quiet", "--error-exitcode=99", *options, program, "secrets")


def test_the_emulated_paths_pass_the_check(emulated_check: Path) -> None:
    """All numbers of lanes, with forbidden pages around the buffers."""
    done = run(emulated_check, "compare")
    assert (done.returncode, done.stdout.split()) == (0, ["gfni512", "gfni256"]), done.stderr


def test_the_emulation_uses_no_instruction_beyond_any_x86_64(
    emulated_objects: dict[str, Path],
) -> None:
    """Otherwise valgrind might not run it, and nor might an older machine."""
    for name in NAMES:
        code = run("objdump", "--disassemble", "--no-show-raw-insn", emulated_objects[name]).stdout
        assert "%xmm" in code or "%rax" in code
        assert not re.search(r"%[yz]mm|%k[0-7]\b|\tv[a-z]", code)


def test_the_source_branches_on_and_looks_up_by_no_secret(emulated_check: Path) -> None:
    done = memcheck(emulated_check)
    assert (done.returncode, done.stdout.split()) == (0, ["gfni512", "gfni256"]), done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [which for which, fault in FAULTS.items() if fault.memcheck])
def test_memcheck_notices_a_fault_in_the_source(
    name: str, which: str, emulated_objects: dict[str, Path], tmp_path: Path
) -> None:
    """Without this, silence in the previous test would mean nothing."""
    fault = FAULTS[which]
    faulty = compile_emulated(with_fault(name, fault, tmp_path), tmp_path)
    objects = {**emulated_objects, name: faulty}
    # The first error says it: one for every byte of every round takes long.
    program = compiled(*objects.values(), tmp_path / "check")
    done = memcheck(program, "--exit-on-first-error=yes")
    assert done.returncode == 99
    assert fault.memcheck is not None
    assert fault.memcheck in done.stderr
    assert name in done.stderr


# --- the emulation


def intrinsics(file: Path) -> set[str]:
    return set(re.findall(r"\b_mm(?:256|512)?_\w+", file.read_text()))


def test_every_emulated_instruction_is_used_and_compared() -> None:
    emulated = intrinsics(EMULATED / "immintrin.h")
    assert emulated == set.union(*(intrinsics(NATIVE / f"{name}.c") for name in NAMES))
    assert emulated == intrinsics(EMULATED / "intrinsics.c")


@pytest.mark.parametrize("name", NAMES)
def test_the_emulation_computes_what_the_processor_computes(name: str, tmp_path: Path) -> None:
    flags = ISA_FLAGS["x86_64"][f"{name}.c"]
    has = Path("/proc/cpuinfo").read_text().split()
    if missing := [flag for flag in flags if flag.removeprefix("-m") not in has]:
        pytest.skip(f"this machine cannot run {' '.join(missing)}")
    source = EMULATED / "intrinsics.c"
    real = compiled(*STRICT, "-O1", *flags, source, tmp_path / "real")
    # -mavx512f brings AVX2 with it.
    isa = {*pretended(name), "-D__AVX2__"}
    emulated = compiled(*STRICT, "-O1", f"-I{EMULATED}", *isa, source, tmp_path / "emulated")
    expected = run(real).stdout
    # Nothing was left out: a line for each call.
    assert expected.count("gf2p8affineinv") >= 5 * 200
    assert run(emulated).stdout == expected


# --- the machine code

# What the four operations are given (sm4.h), in the order of the calling convention; the last argument is a number.
ARGUMENTS: Final[Mapping[str, Mapping[str, int]]] = {
    "encrypt_each": {"rdi": TO_SECRETS, "rsi": TO_SECRETS, "rdx": TO_SECRETS},
    "expand": {"rdi": TO_SECRETS, "rsi": TO_SECRETS},
    "encrypt_scheduled": {"rdi": TO_POINTERS, "rsi": TO_SECRETS, "rdx": TO_SECRETS},
    "encrypt_ecb": {"rdi": TO_SECRETS, "rsi": TO_SECRETS, "rdx": TO_SECRETS},
}

machine_code: Final = pytest.mark.skipif(
    IS_CLANG or not shutil.which("objdump"),
    reason="the package's objects are gcc's, and binutils is needed to read them",
)


def follow(source: Path, folder: Path) -> SecretFlow:
    """Compile as the package is compiled, by Python's own flags and ours, and follow the secrets."""
    flags = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    # Without what is there for debuggers, which changes no instruction.
    flags += [
        "-g0",
        "-fPIC",
        *COMPILE,
        *HARDENING,
        f"-I{NATIVE}",
        *ISA_FLAGS["x86_64"][source.name],
    ]
    compiled_file = compiled(*flags, "-c", source, folder / f"{source.stem}.o")
    # Linked, so that every jump and call says where it leads.
    shared = compiled("-shared", "-nostdlib", compiled_file, folder / f"{source.stem}.so")
    return SecretFlow(listing(shared), ARGUMENTS)


@machine_code
@pytest.mark.parametrize("name", NAMES)
def test_the_machine_code_keeps_secrets_in_vectors(name: str, tmp_path: Path) -> None:
    flow = follow(NATIVE / f"{name}.c", tmp_path)
    assert list(flow.complaints) == []
    # It was read at all: 32 rounds in several shapes.
    assert flow.count("vgf2p8affineinvqb") >= 100
    assert flow.count("ret") >= len(ARGUMENTS)


@machine_code
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", FAULTS)
def test_a_fault_in_the_machine_code_is_complained_of(
    name: str, which: str, tmp_path: Path
) -> None:
    """Without this, silence in the previous test would mean nothing."""
    fault = FAULTS[which]
    flow = follow(with_fault(name, fault, tmp_path), tmp_path)
    assert re.search(fault.complaint, "\n".join(flow.complaints)), flow.complaints
