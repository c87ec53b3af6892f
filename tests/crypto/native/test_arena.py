"""A key is in locked memory and nowhere else, until it is freed; then it is nowhere, and its handle is refused.

Memory is searched from outside: the process that holds the key waits while its parent, which knows the key,
reads all of its memory. The key travels there disguised, so that no copy is the test's own.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.native import _core

if TYPE_CHECKING:
    from tests.crypto.native.conftest import Processes, Reference, ReferenceKey, Watched

MATERIAL: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")

# AddressSanitizer makes mlock do nothing, and its shadow memory is too large to search.
sanitized: Final = pytest.mark.skipif(
    "libasan" in Path("/proc/self/maps").read_text(), reason="AddressSanitizer is in the way"
)


def load(material: bytes = MATERIAL) -> _core.KeyHandle:
    return _core.load(_core.SM4, material)


# --- handles


def test_the_counters_count() -> None:
    gc.collect()  # other tests' keys
    before = _core.arena_info()
    keys = [load() for _ in range(10)]
    during = _core.arena_info()
    assert during.used == before.used + 10
    assert 0 < during.used < during.capacity
    assert during.capacity * during.cell_bytes <= during.locked_bytes
    keys[0].free()
    assert _core.arena_info().used == before.used + 9
    del keys
    gc.collect()
    assert _core.arena_info().used == before.used


def uses(key: _core.KeyHandle) -> dict[str, object]:
    """Everything that can be done with a key."""
    other = load()
    return {
        "encrypt": lambda: key.encrypt(bytes(16)),
        "decrypt": lambda: key.decrypt(bytes(16)),
        "cbc_mac": lambda: key.cbc_mac(bytes(16), bytes(16)),
        "encrypt_to_key": lambda: key.encrypt_to_key(bytes(16), _core.SM4),
        "diversify": lambda: key.diversify(bytes(8)),
        "kcv": key.kcv,
        "wrap": lambda: key.wrap(other, bytes(12), b""),
        "wrapped": lambda: other.wrap(key, bytes(12), b""),
        "unwrap": lambda: key.unwrap(bytes(32), bytes(12), b"", _core.SM4),
        "xor": lambda: key.xor(other),
        "xored": lambda: other.xor(key),
        "wrap_ecb": lambda: key.wrap_ecb(other),
        "encrypted_key": lambda: other.wrap_ecb(key),
        "unwrap_ecb": lambda: key.unwrap_ecb(bytes(16), _core.SM4),
        "seal": lambda: key.seal(b"", bytes(12), b""),
        "open": lambda: key.open(bytes(16), bytes(12), b""),
        "open_into": lambda: key.open_into(bytearray(), bytes(16), bytes(12), b""),
        "split": lambda: key.split(2, 3),
        "free": key.free,
    }


@pytest.mark.parametrize("use", uses(load()))
def test_use_after_free_is_refused_whoever_has_the_cell(use: str) -> None:
    key = load()
    key.free()
    attempt = uses(key)[use]
    assert callable(attempt)
    with pytest.raises(_core.KeyGone):
        attempt()
    # The free cell goes to the next key; the old handle does not name it.
    heir = load(bytes(16))
    with pytest.raises(_core.KeyGone):
        attempt()
    assert heir.kcv() == load(bytes(16)).kcv()


def test_no_key_is_made_of_a_freed_key() -> None:
    key = _core.load(_core.TDES, MATERIAL)
    key.free()
    with pytest.raises(_core.KeyGone):
        key.xor_halves()
    with pytest.raises(_core.KeyGone):
        key.left_half()
    with pytest.raises(_core.KeyGone):
        key.unwrap_within(MATERIAL, 0, _core.DES)


def test_freeing_twice_is_refused_and_frees_nothing_else() -> None:
    key = load()
    key.free()
    heir = load()
    held = _core.arena_info().used
    with pytest.raises(_core.KeyGone):
        key.free()
    del key
    gc.collect()
    assert _core.arena_info().used == held
    assert heir.kcv() == load().kcv()


def test_a_cell_is_used_again_a_million_times() -> None:
    before = _core.arena_info().used
    for _ in range(1_000_000):
        load().free()
    assert _core.arena_info().used == before


# --- the arena


def test_sealing_wipes_everything_and_leaves_room_for_new_keys(processes: Processes) -> None:
    done = processes.run(
        """
        from keyd.crypto.native import _core
        keys = [_core.load(_core.SM4, bytes(16)) for _ in range(100)]
        expected = keys[0].kcv()
        _core.wipe_all()
        assert _core.arena_info().used == 0
        for key in keys:
            try:
                key.kcv()
            except _core.KeyGone:
                continue
            raise SystemExit("a wiped key was used")
        new = [_core.load(_core.SM4, bytes(16)) for _ in range(100)]
        assert all(key.kcv() == expected for key in new)
        del keys
        assert _core.arena_info().used == 100
        _core.wipe_all()
        _core.wipe_all()
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_full_arena_says_so_and_goes_on(processes: Processes) -> None:
    done = processes.run(
        """
        from keyd.crypto.native import _core
        _core.open_arena(160 * 1024)
        info = _core.arena_info()
        keys = [_core.load(_core.SM4, bytes(16)) for _ in range(info.capacity)]
        for make in (lambda: _core.load(_core.SM4, bytes(16)), lambda: keys[0].diversify(bytes(8))):
            try:
                make()
            except _core.KeyMemoryFull as full:
                assert str(info.capacity) in str(full)
            else:
                raise SystemExit("one key too many")
        keys.pop()
        _core.load(_core.SM4, bytes(16)).kcv()
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_size_is_given_once(processes: Processes) -> None:
    done = processes.run(
        """
        from keyd.crypto.native import _core
        for wrong in (0, 1, 128 * 1024, 2**31, 2**63, 2**64 - 1):
            try:
                _core.open_arena(wrong)
            except _core.KeyMemoryError as refused:
                assert "has room for" in str(refused), refused
            else:
                raise SystemExit(f"{wrong} bytes were taken")
        assert _core.arena_info().locked_bytes == 0
        _core.open_arena(1_000_000)
        assert _core.arena_info().locked_bytes >= 1_000_000
        _core.open_arena(1_000_000)
        try:
            _core.open_arena(2_000_000)
        except _core.KeyMemoryError as refused:
            assert "another size" in str(refused)
        else:
            raise SystemExit("it was opened twice")
        """
    )
    assert done.returncode == 0, done.stderr


@sanitized
def test_memory_that_cannot_be_locked_is_a_clear_error_with_the_remedy(
    processes: Processes,
) -> None:
    done = processes.run(
        """
        import os, resource
        from keyd.crypto.native import _core
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if os.geteuid() == 0:
            os.setuid(65534)  # with root goes CAP_IPC_LOCK, which would lift the limit
        for _ in range(2):
            try:
                _core.load(_core.SM4, bytes(16))
            except _core.KeyMemoryNotLocked as refused:
                print(refused)
            else:
                raise SystemExit("it was locked all the same")
        assert _core.arena_info().locked_bytes == 0
        """
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "locks 4096 KiB",
        "may lock 64 KiB",
        "RLIMIT_MEMLOCK",
        "LimitMEMLOCK=",
        "ulimit -l",
    ):
        assert done.stdout.count(words) == 2


@sanitized
def test_a_limit_that_suffices_suffices(processes: Processes) -> None:
    done = processes.run(
        """
        import os, resource
        from keyd.crypto.native import _core
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (_core.DEFAULT_ARENA_BYTES,) * 2)
        if os.geteuid() == 0:
            os.setuid(65534)
        _core.load(_core.SM4, bytes(16))
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_memory_is_locked_guarded_and_not_dumped() -> None:
    key = load()
    address = _core.arena_info().address
    smaps = Path("/proc/self/smaps").read_text()
    regions = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) (\S+) .*?^VmFlags: ([^\n]*)$", smaps, re.MULTILINE | re.DOTALL
    )
    spans = [(int(start, 16), int(end, 16), rights, flags) for start, end, rights, flags in regions]
    (place,) = [i for i, (start, end, _, _) in enumerate(spans) if start <= address < end]
    start, end, rights, flags = spans[place]
    assert rights == "rw-p"
    assert end - start == _core.arena_info().locked_bytes
    assert {"dd", "wf"} <= set(flags.split())  # MADV_DONTDUMP, MADV_WIPEONFORK
    if "libasan" not in smaps:
        assert "lo" in flags.split()
    for neighbour in (spans[place - 1], spans[place + 1]):
        assert neighbour[2] == "---p"
    assert (spans[place - 1][1], spans[place + 1][0]) == (start, end)
    key.free()


def test_an_overwritten_edge_loses_that_key_and_no_other(processes: Processes) -> None:
    done = processes.run(
        """
        import ctypes
        from keyd.crypto.native import _core
        keys = [_core.load(_core.SM4, bytes(16)) for _ in range(4)]
        expected = keys[0].kcv()
        info = _core.arena_info()

        def smash(cell, offset):
            ctypes.memset(info.address + cell * info.cell_bytes + offset, 0x5A, 1)

        def refused(attempt, wanted):
            try:
                attempt()
            except wanted:
                return
            raise SystemExit("it was not noticed")

        smash(1, 0)                       # the first byte of the canary before
        refused(keys[1].kcv, _core.KeyMemoryCorrupt)
        refused(keys[1].kcv, _core.KeyGone)
        smash(2, 5)
        refused(keys[2].free, _core.KeyMemoryCorrupt)
        assert keys[0].kcv() == keys[3].kcv() == expected
        # The lost cells are not used again.
        assert _core.arena_info().used == 2
        more = [_core.load(_core.SM4, bytes(16)) for _ in range(info.capacity - 4)]
        assert all(key.kcv() == expected for key in more)
        refused(lambda: _core.load(_core.SM4, bytes(16)), _core.KeyMemoryFull)
        # Sealing mends what is left.
        _core.wipe_all()
        assert _core.load(_core.SM4, bytes(16)).kcv() == expected
        """
    )
    assert done.returncode == 0, done.stderr


def test_an_overwritten_free_cell_is_noticed_when_it_is_taken(processes: Processes) -> None:
    done = processes.run(
        """
        import ctypes
        from keyd.crypto.native import _core
        key = _core.load(_core.SM4, bytes(16))
        expected = key.kcv()
        info = _core.arena_info()
        ctypes.memset(info.address + info.cell_bytes, 0x5A, info.cell_bytes)
        try:
            _core.load(_core.SM4, bytes(16))
        except _core.KeyMemoryCorrupt:
            pass
        else:
            raise SystemExit("it was not noticed")
        assert key.kcv() == expected
        """
    )
    assert done.returncode == 0, done.stderr


# --- after a fork


FORK: Final = """
    import ctypes, os
    from keyd.crypto.native import _core
    keys = [_core.load(number, bytes(length)) for number, length in ((1, 16), (2, 16), (3, 8))]
    expected = [key.kcv() for key in keys]
    info = _core.arena_info()

    def cells():
        return ctypes.string_at(info.address, 64 * info.cell_bytes)

    def gone(attempt):
        try:
            attempt()
        except _core.KeyGone:
            return
        os._exit(3)

    assert any(cells())
    child = os.fork()
    if child == 0:
        if any(cells()):
            os._exit(4)
        for key in keys:
            gone(key.kcv)
            gone(key.free)
        if _core.arena_info().used or _core.arena_info().locked_bytes:
            os._exit(5)
        {child}
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert [key.kcv() for key in keys] == expected
    """


def test_a_child_sees_zeros_and_every_handle_is_refused(processes: Processes) -> None:
    done = processes.run(FORK.format(child="_core.wipe_all()"))
    assert done.returncode == 0, done.stderr


def test_a_child_may_have_keys_of_its_own_and_still_not_its_parents(processes: Processes) -> None:
    child = """
        own = [_core.load(1, bytes(16)) for _ in range(3)]
        for key in keys:
            gone(key.kcv)
            gone(key.free)
        if any(key.kcv() != expected[0] for key in own):
            os._exit(6)
        if _core.arena_info().used != 3:
            os._exit(7)
    """
    done = processes.run(FORK.format(child=child))
    assert done.returncode == 0, done.stderr


def test_a_child_that_exits_in_order_disturbs_nobody(processes: Processes) -> None:
    done = processes.run(FORK.format(child="raise SystemExit(0)"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [4])
def test_a_fork_in_the_midst_of_computing_leaves_a_child_that_works(
    processes: Processes, threads: int
) -> None:
    done = processes.run(
        f"""
        import os, threading
        from keyd.crypto.native import _core
        key = _core.load(_core.SM4, bytes(16))
        octets, done = bytes(1 << 18), threading.Event()

        def compute():
            while not done.is_set():
                key.encrypt(octets)
                _core.load(_core.SM4, bytes(16)).free()

        workers = [threading.Thread(target=compute) for _ in range({threads})]
        for worker in workers:
            worker.start()
        for _ in range(30):
            child = os.fork()
            if child == 0:
                own = _core.load(_core.SM4, bytes(16))
                own.decrypt(bytes(16))
                _core.wipe_all()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
        for worker in workers:
            worker.join()
        """
    )
    assert done.returncode == 0, done.stderr


# --- threads


def test_a_key_freed_while_others_use_it_computes_right_or_is_refused(
    reference: Reference,
) -> None:
    theirs = reference.key(Algorithm.SM4, MATERIAL)
    octets = bytes(range(256)) * 1024
    expected = theirs.encrypt(octets)
    current = [theirs.handle()]
    answers: list[bytes] = []
    finished = threading.Event()

    def use() -> None:
        while not finished.is_set():
            try:
                answer = current[0].encrypt(octets)
            except _core.KeyGone:
                continue
            if answer != expected:
                answers.append(answer)

    workers = [threading.Thread(target=use) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(300):
        old = current[0]
        old.free()
        # The cell is taken at once by another key, if nobody has it pinned.
        other = load(bytes(16))
        current[0] = theirs.handle()
        del old, other
    finished.set()
    for worker in workers:
        worker.join()
    assert not answers


def test_sealing_waits_for_those_who_compute(processes: Processes) -> None:
    done = processes.run(
        """
        import threading
        from keyd.crypto.native import _core
        octets = bytes(range(256)) * 1024
        expected = _core.load(_core.SM4, bytes(16)).encrypt(octets)
        finished, wrong, computed = threading.Event(), [], []

        def use():
            while not finished.is_set():
                try:
                    key = _core.load(_core.SM4, bytes(16))
                    for _ in range(3):
                        if key.encrypt(octets) != expected:
                            wrong.append(1)
                        computed.append(1)
                except _core.KeyGone:
                    continue

        workers = [threading.Thread(target=use) for _ in range(4)]
        for worker in workers:
            worker.start()
        for _ in range(200):
            _core.wipe_all()
        while len(computed) < 100:
            pass
        finished.set()
        for worker in workers:
            worker.join()
        assert not wrong
        """
    )
    assert done.returncode == 0, done.stderr


# --- hygiene: what memory shows

# It takes in disguised keys, uses each in every way, and stops where its parent wants to look.
HOLDER: Final = """
    import sys
    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.crypto.native import _core
    from keyd.keys.hierarchy import Region
    from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, ProtectTask, TacTask

    if len(_core.paths()) > 1 and "{path}":
        _core.select_path("{path}")

    def undisguised(line):
        disguised = bytes.fromhex(line)
        material = bytearray(len(disguised))
        for i, octet in enumerate(disguised):
            material[i] = octet ^ 0xA5
        return material

    def wait(state):
        print(state, flush=True)
        return sys.stdin.readline().strip()

    root = _core.load(int(sys.stdin.readline()), undisguised(sys.stdin.readline()))
    kek = _core.load(_core.SM4, undisguised(sys.stdin.readline()))
    info = _core.arena_info()
    print("arena", info.address + info.capacity * info.cell_bytes - info.locked_bytes,
          info.locked_bytes, flush=True)

    city = kek.unwrap(kek.wrap(root, b"N" * 12, b"header"), b"N" * 12, b"header", root.algorithm)
    city = city.diversify(b"51010000")
    kernel = _core.CardKernel(cryptogram=CryptogramTask, mac=MacTask, protect=ProtectTask,
                              tac=TacTask, max_cities=10)
    ref = CardKeyRef(1, CardAlgorithm.SM4, Region("510100"), b"CARD0001", 0)
    tasks = [CryptogramTask(ref, b"FACTOR00", b"CHALLENG"), MacTask(ref, b"FACTOR00", b"data"),
             ProtectTask(ref, b"FACTOR00", b"HEAD", b"123456", True), TacTask(ref, b"data")]
    for count in (1, 20):
        kernel.compute(tasks * count, lambda _: city)
    for key in (root, kek, city):
        key.kcv()
        key.decrypt(key.encrypt(bytes(64)))
        key.cbc_mac(bytes(64), key.encrypt(bytes(16))[: 8 if key.algorithm != _core.SM4 else 16])
    other, transport = _core.generate(root.algorithm), _core.generate(_core.TDES)
    assert root.xor(other).xor(other).kcv() == root.kcv()
    transport.unwrap_ecb(transport.wrap_ecb(root), root.algorithm)
    kek.open(kek.seal(b"data" * 100, b"n" * 12, b"header"), b"n" * 12, b"header")
    assert _core.combine(_core.SM4, enumerate(kek.split(2, 2), 1)).kcv() == kek.kcv()
    wait("holding")
    root.free()
    wait("freed")
    _core.wipe_all()
    wait("sealed")
    """


def disguised(material: bytes) -> str:
    return bytes(octet ^ 0xA5 for octet in material).hex()


def swapped(material: bytes) -> bytes:
    """The same as numbers of 32 bits in this machine's byte order, as a key schedule begins with them."""
    return b"".join(material[i : i + 4][::-1] for i in range(0, len(material), 4))


class Canaries:
    """Random keys, what comes of them, and where each may be seen."""

    def __init__(self, reference: Reference, algorithm: Algorithm) -> None:
        self.root = reference.key(algorithm, os.urandom(16))
        self.kek = reference.key(Algorithm.SM4, os.urandom(16))
        self.city = self._diversified(self.root, b"51010000")
        self.card = self._diversified(self.city, b"CARD0001")
        is_sm4 = algorithm is Algorithm.SM4
        factor = b"FACTOR00" + bytes(8 if is_sm4 else 0)
        self.session = self.card.encrypt_to_key(factor, algorithm if is_sm4 else Algorithm.DES)

    def _diversified(self, key: ReferenceKey, diversifier: bytes) -> ReferenceKey:
        blocks = diversifier + bytes(octet ^ 0xFF for octet in diversifier)
        return key.encrypt_to_key(blocks[: len(key.material)], key.algorithm)

    def found(self, process: Watched) -> dict[str, list[int]]:
        """Return where each key is seen, as it is or as numbers."""
        return {
            name: [
                address
                for needle in (key.material, swapped(key.material))
                for address in process.find(needle)
            ]
            for name, key in vars(self).items()
        }


def start(process: Watched, canaries: Canaries) -> range:
    """Hand the keys over and return where the arena is."""
    number = {Algorithm.SM4: _core.SM4, Algorithm.TDES: _core.TDES, Algorithm.DES: _core.DES}
    process.tell(str(number[canaries.root.algorithm]))
    process.tell(disguised(canaries.root.material))
    process.tell(disguised(canaries.kek.material))
    address, size = map(int, process.expect("arena").split())
    return range(address, address + size)


@sanitized
@pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
def test_a_key_is_in_the_arena_only_and_after_sealing_nowhere(
    reference: Reference, processes: Processes, algorithm: Algorithm, path: str
) -> None:
    canaries = Canaries(reference, algorithm)
    with processes.watched(HOLDER.replace("{path}", path)) as process:
        arena = start(process, canaries)
        process.expect("holding")
        found = canaries.found(process)
        # The search works: it finds what is to be found. Of card and session keys nothing is left at all.
        assert {name for name, places in found.items() if places} == {"root", "kek", "city"}
        outside = [
            (name, hex(place))
            for name, places in found.items()
            for place in places
            if place not in arena
        ]
        assert not outside
        process.tell("")
        process.expect("freed")
        assert not canaries.found(process)["root"]
        process.tell("")
        process.expect("sealed")
        assert not any(canaries.found(process).values())


@sanitized
@pytest.mark.skipif(not shutil.which("gcore"), reason="gcore of gdb makes the core")
def test_a_core_dump_has_no_key(reference: Reference, processes: Processes, tmp_path: Path) -> None:
    canaries = Canaries(reference, Algorithm.SM4)
    with processes.watched(HOLDER.replace("{path}", "")) as process:
        start(process, canaries)
        process.expect("holding")
        done = subprocess.run(
            ["gcore", "-o", str(tmp_path / "core"), str(process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"gcore may not look here: {done.stderr.splitlines()[-1:]}")
        core = (tmp_path / f"core.{process.pid}").read_bytes()
    # What the process says of itself is in the core, so the search works.
    assert b"51010000" in core
    for name, key in vars(canaries).items():
        assert key.material not in core, name
        assert swapped(key.material) not in core, name
