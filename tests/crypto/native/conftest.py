"""A second opinion on all that the native layer computes, and a process to look into from outside.

The second opinion is `cryptography` under the typed levels of `keyd.keys.hierarchy`, which are Python: it stays
what it is when the product's own `SecretKey` goes native.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never, cast

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyd.crypto.algorithms import BLOCK_BYTES, KEY_BYTES, Algorithm
from keyd.crypto.native import _core
from keyd.errors import Refusal
from keyd.keys.hierarchy import CityKey
from keyd.keys.sam import CryptogramTask, MacTask, ProtectTask, SamTask, TacTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.crypto.secret import SecretKey

REPOSITORY: Final = Path(__file__).parents[3]

NUMBERS: Final = {Algorithm.SM4: _core.SM4, Algorithm.TDES: _core.TDES, Algorithm.DES: _core.DES}

# A build with sanitizers has to be preloaded into every process.
SANITIZERS: Final = {
    name: os.environ[name]
    for name in ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS")
    if name in os.environ
}

# Kernel interfaces that are no memory of the program's.
_NOT_MEMORY: Final = frozenset({"[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"})


class ReferenceKey:
    """A key as `cryptography` has it, with the methods of `SecretKey`."""

    def __init__(self, algorithm: Algorithm, material: bytes) -> None:
        assert len(material) == KEY_BYTES[algorithm]
        self.algorithm = algorithm
        self.block_bytes = BLOCK_BYTES[algorithm]
        self.material = material

    def encrypt(self, blocks: bytes) -> bytes:
        return self._cipher(modes.ECB()).encryptor().update(blocks)  # noqa: S305 - single blocks

    def decrypt(self, blocks: bytes) -> bytes:
        return self._cipher(modes.ECB()).decryptor().update(blocks)  # noqa: S305 - single blocks

    def cbc_mac(self, blocks: bytes, iv: bytes) -> bytes:
        return self._cipher(modes.CBC(iv)).encryptor().update(blocks)[-self.block_bytes :]

    def encrypt_to_key(self, blocks: bytes, algorithm: Algorithm) -> ReferenceKey:
        return ReferenceKey(algorithm, self.encrypt(blocks))

    def xor_halves(self) -> ReferenceKey:
        left, right = self.material[:8], self.material[8:]
        return ReferenceKey(Algorithm.DES, bytes(a ^ b for a, b in zip(left, right, strict=True)))

    def kcv(self) -> bytes:
        return self.encrypt(bytes(self.block_bytes))[:3]

    def wrap(self, key: ReferenceKey, nonce: bytes, header: bytes) -> bytes:
        sealer = Cipher(algorithms.SM4(self.material), modes.GCM(nonce)).encryptor()
        sealer.authenticate_additional_data(header)
        return sealer.update(key.material) + sealer.finalize() + sealer.tag

    def handle(self) -> _core.KeyHandle:
        """Return the same key in locked memory."""
        return _core.load(NUMBERS[self.algorithm], self.material)

    def _cipher(self, mode: modes.ECB | modes.CBC) -> Cipher[modes.ECB | modes.CBC]:
        if self.algorithm is Algorithm.SM4:
            return Cipher(algorithms.SM4(self.material), mode)
        full = self.material * 3 if len(self.material) == 8 else self.material + self.material[:8]
        return Cipher(TripleDES(full), mode)


class Reference:
    """The second opinion."""

    numbers: Final = NUMBERS

    def key(self, algorithm: Algorithm, material: bytes) -> ReferenceKey:
        return ReferenceKey(algorithm, material[: KEY_BYTES[algorithm]])

    def answer(self, city: ReferenceKey, task: SamTask) -> bytes | Refusal:
        """Answer one task under its city's key, one step after another."""
        try:
            return self._answer(CityKey(cast("SecretKey", city)), task)
        except Refusal as refusal:
            return refusal

    def _answer(self, city: CityKey, task: SamTask) -> bytes:
        card = city.diversify(task.key.diversifier)
        if isinstance(task, CryptogramTask):
            return card.derive(task.session_factor).cryptogram(task.challenge)
        if isinstance(task, ProtectTask):
            session = card.derive(task.session_factor)
            return session.protect(task.header, task.plaintext, encrypt=task.encrypt)
        if isinstance(task, MacTask):
            return card.derive(task.session_factor).mac(task.data)
        if isinstance(task, TacTask):
            return card.tac(task.data)
        assert_never(task)


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(params=_core.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each SM4 path of this machine in turn."""
    before = _core.path_name()
    _core.select_path(request.param)
    yield request.param
    _core.select_path(before)


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, which has to end well."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", **SANITIZERS, **environment},
    )


class Watched:
    """A process that says where it stands, line by line, and waits; its memory can be searched meanwhile."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def expect(self, line: str) -> str:
        """Wait until it prints a line that begins so, and return the rest."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().rstrip("\n")
        if not said.startswith(line):
            self._process.kill()
            _, errors = self._process.communicate()
            pytest.fail(f"expected {line!r}, got {said!r}: {errors}")
        return said.removeprefix(line).strip()

    def find(self, needle: bytes) -> list[int]:
        """Return every address where the bytes are, in all memory that can be read."""
        found = []
        maps = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            for line in maps:
                span, rights, *rest = line.split()
                if "r" not in rights or (rest and rest[-1] in _NOT_MEMORY):
                    continue
                start, end = (int(address, 16) for address in span.split("-"))
                memory.seek(start)
                content = memory.read(end - start)
                found += [start + at.start() for at in re.finditer(re.escape(needle), content)]
        return found


class Processes:
    """Processes of their own, for what the tests' own must not do or be."""

    def run(self, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(program, **environment)

    @contextmanager
    def watched(self, program: str) -> Iterator[Watched]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Watched(process)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def processes() -> Processes:
    return Processes()


def assert_burnt(compiled: Path) -> None:
    """Insist that sm4_burn() reaches all that the workers of an SM4 path leave on the stack.

    The object has been compiled by gcc with -fstack-usage, which puts the sizes of frames beside it.
    """
    header = (REPOSITORY / "keyd" / "crypto" / "native" / "sm4_common.h").read_text()
    [limit] = re.findall(r"#define SM4_FRAME (\d+)", header)
    operations = {"encrypt_each", "expand", "encrypt_scheduled", "encrypt_ecb", "sm4_burn"}
    workers, helpers = {0}, {0}
    for line in compiled.with_suffix(".su").read_text().splitlines():
        place, size, _ = line.split("\t")
        function = place.rpartition(":")[2].partition(".")[0]
        if function.startswith(("load_", "store_", "transpose")):
            helpers.add(int(size))
        elif function not in operations:
            workers.add(int(size))
    # A worker calls a helper, and that one may call another.
    assert max(workers) + 2 * max(helpers) <= int(limit), compiled.stem


def pytest_make_parametrize_id(config: pytest.Config, val: Any) -> str | None:
    """Call an algorithm by its name."""
    return val.value if isinstance(val, Algorithm) else None
