"""A key handle does what `cryptography` does with the same key, shows nothing, and refuses every wrong length."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import BLOCK_BYTES, KEY_BYTES, Algorithm
from keyd.crypto.native import _core
from keyd.errors import BadParameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crypto.native.conftest import Processes, Reference

MATERIAL: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")
NONCE: Final = bytes(range(12))
HEADER: Final = b"usage, address, version"

software = pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
materials = st.binary(min_size=16, max_size=16)


# --- the same as cryptography


@software
@given(material=materials, count=st.integers(1, 150), data=st.randoms(use_true_random=False))
def test_blocks_and_macs_agree_with_cryptography(
    algorithm: Algorithm, reference: Reference, material: bytes, count: int, data: Any
) -> None:
    size = BLOCK_BYTES[algorithm]
    octets, iv = data.randbytes(count * size), data.randbytes(size)
    theirs = reference.key(algorithm, material)
    ours = theirs.handle()
    assert ours.encrypt(octets) == theirs.encrypt(octets)
    assert ours.decrypt(octets) == theirs.decrypt(octets)
    assert ours.decrypt(ours.encrypt(octets)) == octets
    assert ours.cbc_mac(octets, iv) == theirs.cbc_mac(octets, iv)
    assert ours.kcv() == theirs.kcv()


@software
def test_every_path_computes_the_same(
    algorithm: Algorithm, reference: Reference, path: str
) -> None:
    assert _core.path_name() == path
    theirs = reference.key(algorithm, MATERIAL)
    ours = theirs.handle()
    for count in range(1, 201):
        octets = bytes(place * 167 & 255 for place in range(count * theirs.block_bytes))
        assert ours.encrypt(octets) == theirs.encrypt(octets)
        assert ours.decrypt(octets) == theirs.decrypt(octets)


@software
def test_long_input_is_computed_without_the_gil_and_alike(
    algorithm: Algorithm, reference: Reference
) -> None:
    theirs = reference.key(algorithm, MATERIAL)
    octets = bytes(range(256)) * 4096
    assert theirs.handle().encrypt(octets) == theirs.encrypt(octets)
    assert theirs.handle().decrypt(octets) == theirs.decrypt(octets)
    iv = bytes(theirs.block_bytes)
    assert theirs.handle().cbc_mac(octets, iv) == theirs.cbc_mac(octets, iv)


@software
@given(material=materials, blocks=materials)
def test_a_key_out_of_a_key_is_the_same_key(
    algorithm: Algorithm, reference: Reference, material: bytes, blocks: bytes
) -> None:
    for made in (Algorithm.SM4, Algorithm.TDES, Algorithm.DES):
        if KEY_BYTES[made] % BLOCK_BYTES[algorithm]:
            continue
        octets = blocks[: KEY_BYTES[made]]
        theirs = reference.key(algorithm, material).encrypt_to_key(octets, made)
        ours = reference.key(algorithm, material).handle()
        ours = ours.encrypt_to_key(octets, reference.numbers[made])
        assert ours.algorithm == reference.numbers[made]
        assert ours.encrypt(blocks) == theirs.encrypt(blocks)


@software
@given(material=materials, diversifier=st.binary(min_size=8, max_size=8))
def test_diversifying_is_encrypting_the_diversifier_and_its_complement(
    algorithm: Algorithm, reference: Reference, material: bytes, diversifier: bytes
) -> None:
    theirs = reference.key(algorithm, material)
    complement = bytes(octet ^ 0xFF for octet in diversifier)
    expected = theirs.encrypt_to_key((diversifier + complement)[: KEY_BYTES[algorithm]], algorithm)
    made = theirs.handle().diversify(diversifier)
    assert made.algorithm == reference.numbers[algorithm]
    assert made.encrypt(MATERIAL) == expected.encrypt(MATERIAL)


@given(material=materials)
def test_the_tac_key_is_left_xor_right(reference: Reference, material: bytes) -> None:
    theirs = reference.key(Algorithm.TDES, material)
    folded = theirs.handle().xor_halves()
    assert folded.algorithm == _core.DES
    assert folded.encrypt(MATERIAL) == theirs.xor_halves().encrypt(MATERIAL)


@given(material=materials)
def test_the_left_half(reference: Reference, material: bytes) -> None:
    theirs = reference.key(Algorithm.TDES, material)
    half = theirs.handle().left_half()
    assert half.algorithm == _core.DES
    right = reference.key(Algorithm.DES, material[:8])
    assert half.encrypt(MATERIAL) == right.encrypt(MATERIAL)


@software
@given(
    material=materials,
    inside=materials,
    blocks=st.integers(1, 16),
    offset=st.integers(0, 256),
    kind=st.sampled_from([Algorithm.SM4, Algorithm.TDES, Algorithm.DES]),
)
def test_a_key_within_other_bytes_is_taken_out_and_nothing_else(
    algorithm: Algorithm,
    reference: Reference,
    material: bytes,
    inside: bytes,
    blocks: int,
    offset: int,
    kind: Algorithm,
) -> None:
    theirs = reference.key(algorithm, material)
    length = blocks * BLOCK_BYTES[algorithm]
    key = inside[: KEY_BYTES[kind]]
    plain = bytes((7 * i + 1) % 256 for i in range(length))
    number = reference.numbers[kind]
    if offset + len(key) > length:
        with pytest.raises(ValueError, match="key has"):
            theirs.handle().unwrap_within(theirs.encrypt(plain), offset, number)
        return
    with_key = plain[:offset] + key + plain[offset + len(key) :]
    around, made = theirs.handle().unwrap_within(theirs.encrypt(with_key), offset, number)
    assert around == plain[:offset] + bytes(len(key)) + plain[offset + len(key) :]
    assert made.algorithm == number
    assert made.encrypt(MATERIAL) == reference.key(kind, key).encrypt(MATERIAL)


def test_a_key_stands_within_a_short_command_at_most() -> None:
    key = _core.load(_core.SM4, MATERIAL)
    key.unwrap_within(bytes(256), 240, _core.SM4)
    with pytest.raises(ValueError, match="256 bytes"):
        key.unwrap_within(bytes(272), 0, _core.SM4)
    for length in (0, 15, 17):
        with pytest.raises(ValueError, match="whole blocks"):
            key.unwrap_within(bytes(length), 0, _core.SM4)
    with pytest.raises(OverflowError):
        key.unwrap_within(bytes(16), -1, _core.DES)
    with pytest.raises(ValueError, match="SM4 key has"):
        key.unwrap_within(bytes(16), 2**63, _core.SM4)


# --- wrapping


@software
@given(
    material=materials,
    kek=materials,
    nonce=st.binary(min_size=12, max_size=12),
    header=st.binary(max_size=100),
)
def test_wrapping_is_sm4_gcm(
    algorithm: Algorithm,
    reference: Reference,
    material: bytes,
    kek: bytes,
    nonce: bytes,
    header: bytes,
) -> None:
    wrapping = reference.key(Algorithm.SM4, kek)
    key = reference.key(algorithm, material)
    wrapped = wrapping.wrap(key, nonce, header)
    ours = wrapping.handle()
    assert ours.wrap(key.handle(), nonce, header) == wrapped
    opened = ours.unwrap(wrapped, nonce, header, reference.numbers[algorithm])
    assert opened.encrypt(MATERIAL) == key.encrypt(MATERIAL)


def flips(octets: bytes) -> Iterator[bytes]:
    for bit in range(len(octets) * 8):
        yield (int.from_bytes(octets, "big") ^ 1 << bit).to_bytes(len(octets), "big")


@software
def test_whatever_is_altered_does_not_open_and_leaves_no_key(
    algorithm: Algorithm, reference: Reference
) -> None:
    number = reference.numbers[algorithm]
    key, wrapping = reference.key(algorithm, MATERIAL), _core.load(_core.SM4, bytes(range(16)))
    wrapped = wrapping.wrap(key.handle(), NONCE, HEADER)
    held = _core.arena_info().used
    attempts = [
        *((attempt, NONCE, HEADER) for attempt in flips(wrapped)),
        *((wrapped, nonce, HEADER) for nonce in flips(NONCE)),
        *((wrapped, NONCE, header) for header in flips(HEADER)),
        *((wrapped, NONCE, header) for header in (b"", HEADER + b"\0", HEADER[:-1])),
        *((wrapped[:length], NONCE, HEADER) for length in range(len(wrapped))),
        (wrapped + b"\0", NONCE, HEADER),
    ]
    for attempt in attempts:
        with pytest.raises(_core.KeyNotAuthentic):
            wrapping.unwrap(*attempt, number)
    with pytest.raises(_core.KeyNotAuthentic):
        _core.load(_core.SM4, MATERIAL).unwrap(wrapped, NONCE, HEADER, number)
    assert _core.arena_info().used == held


def test_keys_are_wrapped_under_sm4_with_a_whole_nonce() -> None:
    key = _core.load(_core.SM4, MATERIAL)
    with pytest.raises(ValueError, match="wrapped under SM4"):
        _core.load(_core.TDES, MATERIAL).wrap(key, NONCE, HEADER)
    with pytest.raises(ValueError, match="wrapped under SM4"):
        _core.load(_core.TDES, MATERIAL).unwrap(bytes(32), NONCE, HEADER, _core.SM4)
    for nonce in (b"", NONCE[:-1], NONCE + b"\0"):
        with pytest.raises(ValueError, match="12 bytes"):
            key.wrap(key, nonce, HEADER)
        with pytest.raises(ValueError, match="12 bytes"):
            key.unwrap(bytes(32), nonce, HEADER, _core.SM4)


# --- what is wrong is refused


@software
@given(data=st.data())
def test_partial_blocks_are_refused(
    algorithm: Algorithm, reference: Reference, data: st.DataObject
) -> None:
    size = BLOCK_BYTES[algorithm]
    key = reference.key(algorithm, MATERIAL).handle()
    wrong = data.draw(st.integers(0, 5 * size).filter(lambda n: n == 0 or n % size))
    for compute in (
        key.encrypt,
        key.decrypt,
        lambda blocks: key.cbc_mac(blocks, bytes(size)),
        lambda blocks: key.encrypt_to_key(blocks, _core.SM4),
    ):
        with pytest.raises(ValueError, match=f"whole blocks of {size} bytes"):
            compute(bytes(wrong))


@software
def test_other_wrong_lengths_are_refused(algorithm: Algorithm, reference: Reference) -> None:
    size = BLOCK_BYTES[algorithm]
    number = reference.numbers[algorithm]
    key = reference.key(algorithm, MATERIAL).handle()
    for length in {0, 1, 7, 8, 9, 15, 17, 32} - {KEY_BYTES[algorithm]}:
        with pytest.raises(ValueError, match=f"key has {KEY_BYTES[algorithm]} bytes"):
            _core.load(number, bytes(length))
    for length in {0, 1, size - 1, size + 1}:
        with pytest.raises(ValueError, match=f"initial value has {size} bytes"):
            key.cbc_mac(bytes(size), bytes(length))
    with pytest.raises(ValueError, match="key has 16 bytes"):
        key.encrypt_to_key(bytes(48), _core.SM4)
    for length in (0, 7, 9):
        with pytest.raises(BadParameter, match="8 bytes"):
            key.diversify(bytes(length))


def test_only_3des_keys_have_halves() -> None:
    for number, length in ((_core.SM4, 16), (_core.DES, 8)):
        with pytest.raises(ValueError, match="only a 3DES key"):
            _core.load(number, bytes(length)).xor_halves()
        with pytest.raises(ValueError, match="only a 3DES key"):
            _core.load(number, bytes(length)).left_half()


@pytest.mark.parametrize("number", [-1, 0, 4, 2**31 - 1])
def test_there_are_three_algorithms(number: int) -> None:
    key = _core.load(_core.SM4, MATERIAL)
    attempts: list[Callable[[], object]] = [
        lambda: _core.load(number, MATERIAL),
        lambda: key.encrypt_to_key(MATERIAL, number),
        lambda: key.unwrap(bytes(32), NONCE, HEADER, number),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="an algorithm is"):
            attempt()


@pytest.mark.parametrize("wrong", [None, "00" * 16, 16, bytearray(16), memoryview(bytes(16))])
def test_only_bytes_are_bytes(wrong: Any) -> None:
    key = _core.load(_core.SM4, MATERIAL)
    for attempt in (
        lambda: key.encrypt(wrong),
        lambda: key.decrypt(wrong),
        lambda: key.cbc_mac(wrong, bytes(16)),
        lambda: key.cbc_mac(bytes(16), wrong),
        lambda: key.diversify(wrong),
        lambda: key.wrap(key, wrong, HEADER),
        lambda: key.wrap(key, NONCE, wrong),
        lambda: key.unwrap(wrong, NONCE, HEADER, _core.SM4),
    ):
        with pytest.raises(TypeError):
            attempt()


# --- nothing shows or carries the bytes


@software
@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_no_text_shows_the_bytes(
    algorithm: Algorithm, reference: Reference, show: Callable[[object], str]
) -> None:
    assert show(reference.key(algorithm, MATERIAL).handle()) == f"<KeyHandle {algorithm.value}>"


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy, bytes, vars])
def test_a_handle_is_not_carried_away(attempt: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        attempt(_core.load(_core.SM4, MATERIAL))


def test_handles_are_made_by_keys_only() -> None:
    with pytest.raises(TypeError, match="loaded, unwrapped, or made"):
        _core.KeyHandle()
    with pytest.raises(TypeError):
        type("Other", (_core.KeyHandle,), {})
    # What __new__ alone makes names no key.
    with pytest.raises(_core.KeyGone):
        _core.KeyHandle.__new__(_core.KeyHandle).free()


def test_what_can_be_wiped_is_wiped_on_loading() -> None:
    material = bytearray(MATERIAL)
    key = _core.load(_core.SM4, material)
    assert material == bytes(16)
    assert key.kcv() == _core.load(_core.SM4, MATERIAL).kcv()
    refused = bytearray(MATERIAL[:-1])
    with pytest.raises(ValueError, match="16 bytes"):
        _core.load(_core.SM4, refused)
    assert refused == bytes(15)


# --- paths


def test_the_portable_path_is_always_there_and_last() -> None:
    assert _core.paths()[-1] == "portable"
    assert _core.path_name() in _core.paths()


@pytest.mark.parametrize("name", ["", "sse9", "PORTABLE", "portable\0", "x" * 1000])
def test_an_unknown_path_is_refused_and_nothing_changes(name: str) -> None:
    before = _core.path_name()
    with pytest.raises(ValueError, match=r"it supports .*portable"):
        _core.select_path(name)
    assert _core.path_name() == before


def test_the_environment_chooses_the_path(processes: Processes) -> None:
    for name in _core.paths():
        done = processes.run(
            "from keyd.crypto.native import _core; print(_core.path_name())", KEYD_SM4=name
        )
        assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_a_path_that_this_machine_lacks_stops_the_import_with_a_sentence(
    processes: Processes,
) -> None:
    done = processes.run("from keyd.crypto.native import _core", KEYD_SM4="abacus")
    assert done.returncode == 1
    assert "ImportError: KEYD_SM4: no SM4 path 'abacus' on this machine" in done.stderr


# --- threads


def test_threads_share_a_key(reference: Reference) -> None:
    theirs = reference.key(Algorithm.SM4, MATERIAL)
    key = theirs.handle()
    octets = bytes(range(256)) * 1024
    expected = theirs.encrypt(octets)
    wrong: list[int] = []

    def compute(number: int) -> None:
        wrong.extend(number for _ in range(20) if key.encrypt(octets) != expected)

    # Twice as many as there are scratch regions, so that some wait.
    threads = [threading.Thread(target=compute, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
