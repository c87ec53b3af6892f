"""What the custody of keys stands on: new keys, components, sealed data, shares, transport keys.

Each is compared with an implementation that is not ours, and whatever is wrong is refused and leaves no key behind.
"""

from __future__ import annotations

import gc
import itertools
import random
from typing import TYPE_CHECKING, Any, Final

import pytest
from Cryptodome.Protocol.SecretSharing import Shamir
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.native import _core
from keyd.crypto.secret import (
    MAX_SEALED_BYTES,
    MAX_SHARES,
    KeyNotAuthentic,
    KeyWeak,
    SecretKey,
)
from keyd.errors import AlgorithmNotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crypto.native.conftest import Processes, Reference

MATERIAL: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")
OTHER: Final = bytes.fromhex("0123456789ABCDEFFEDCBA9876543210")
NONCE: Final = bytes(range(12))
HEADER: Final = b"usage, address, version"

BLOCK: Final = bytes(range(16))

software = pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
hardware = pytest.mark.parametrize("algorithm", [Algorithm.SM1, Algorithm.SSF33])
shareable = pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES])
materials = st.binary(min_size=16, max_size=16)


def load(algorithm: Algorithm, material: bytes = MATERIAL) -> SecretKey:
    return SecretKey.load(algorithm, material[: KEY_BYTES[algorithm]])


def is_same(one: SecretKey, other: SecretKey) -> bool:
    return one.algorithm is other.algorithm and one.encrypt(BLOCK) == other.encrypt(BLOCK)


def flips(octets: bytes) -> Iterator[bytes]:
    for bit in range(len(octets) * 8):
        yield (int.from_bytes(octets, "big") ^ 1 << bit).to_bytes(len(octets), "big")


def added(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No key is left behind when the test's own are gone."""
    gc.collect()
    before = _core.arena_info().used
    yield
    gc.collect()
    assert _core.arena_info().used == before


# --- new keys


@software
@pytest.mark.usefixtures("nothing_left")
def test_new_keys_are_all_different_and_work(algorithm: Algorithm) -> None:
    keys = [SecretKey.generate(algorithm) for _ in range(200)]
    assert {key.algorithm for key in keys} == {algorithm}
    assert len({key.encrypt(BLOCK) for key in keys}) == len(keys)
    assert keys[0].decrypt(keys[0].encrypt(BLOCK)) == BLOCK


def unwrapped(key: SecretKey) -> bytes:
    """Look at a key's bytes: under a transport key that another library knows."""
    transport = OTHER if key.algorithm is Algorithm.SM4 else bytes(8) + OTHER[:8]
    algorithm = Algorithm.SM4 if key.algorithm is Algorithm.SM4 else Algorithm.TDES
    return load(algorithm, transport).decrypt(load(algorithm, transport).wrap_ecb(key))


@software
def test_every_bit_of_a_new_key_is_random_but_parity(algorithm: Algorithm) -> None:
    """Each bit is set about half the time: 400 draws of a fair coin stay within 120 and 280 but once in 10^15."""
    drawn = [unwrapped(SecretKey.generate(algorithm)) for _ in range(400)]
    for bit in range(8 * KEY_BYTES[algorithm]):
        ones = sum(int.from_bytes(octets, "big") >> bit & 1 for octets in drawn)
        assert 120 < ones < 280, bit
    if algorithm is not Algorithm.SM4:
        assert all(octet.bit_count() % 2 for octets in drawn for octet in octets)


@hardware
def test_what_only_hardware_has_is_neither_drawn_nor_combined_nor_received(
    algorithm: Algorithm,
) -> None:
    with pytest.raises(AlgorithmNotSupported):
        SecretKey.generate(algorithm)
    with pytest.raises(AlgorithmNotSupported):
        SecretKey.combine(algorithm, [(1, bytes(16))])
    with pytest.raises(AlgorithmNotSupported):
        load(Algorithm.SM4).unwrap_ecb(bytes(16), algorithm)


# --- components


@software
@given(left=materials, right=materials, third=materials)
def test_components_add_up_in_any_order(
    algorithm: Algorithm, reference: Reference, left: bytes, right: bytes, third: bytes
) -> None:
    keys = [load(algorithm, material) for material in (left, right, third)]
    expected = reference.key(algorithm, added(added(left, right), third))
    try:
        made = [one.xor(two).xor(three) for one, two, three in itertools.permutations(keys)]
    except KeyWeak:
        # What hypothesis likes to try: equal components.
        return
    assert {key.encrypt(BLOCK) for key in made} == {expected.encrypt(BLOCK)}
    assert {key.algorithm for key in made} == {algorithm}


@software
@pytest.mark.usefixtures("nothing_left")
def test_the_same_component_twice_is_refused(algorithm: Algorithm) -> None:
    key = load(algorithm)
    with pytest.raises(KeyWeak, match="the same"):
        key.xor(load(algorithm))
    with pytest.raises(KeyWeak, match="the same"):
        key.xor(key)


def test_components_of_two_algorithms_are_refused() -> None:
    for one, two in itertools.permutations([Algorithm.SM4, Algorithm.TDES, Algorithm.DES], 2):
        with pytest.raises(ValueError, match="one algorithm"):
            load(one).xor(load(two))


# NIST SP 800-67, 3.3.2: four weak keys, then pairs of semi-weak ones.
WEAK_DES: Final = [
    bytes.fromhex(f"{left:08X}{right:08X}")
    for left, right in (
        *((0x01010101, 0x01010101), (0xFEFEFEFE, 0xFEFEFEFE)),
        *((0xE0E0E0E0, 0xF1F1F1F1), (0x1F1F1F1F, 0x0E0E0E0E)),
        *((0x011F011F, 0x010E010E), (0x1F011F01, 0x0E010E01)),
        *((0x01E001E0, 0x01F101F1), (0xE001E001, 0xF101F101)),
        *((0x01FE01FE, 0x01FE01FE), (0xFE01FE01, 0xFE01FE01)),
        *((0x1FE01FE0, 0x0EF10EF1), (0xE01FE01F, 0xF10EF10E)),
        *((0x1FFE1FFE, 0x0EFE0EFE), (0xFE1FFE1F, 0xFE0EFE0E)),
        *((0xE0FEE0FE, 0xF1FEF1FE), (0xFEE0FEE0, 0xFEF1FEF1)),
    )
]


def test_a_key_that_des_lists_as_weak_is_not_made_whatever_its_parity() -> None:
    component = load(Algorithm.DES)
    for weak in WEAK_DES:
        for parity in (bytes(8), b"\1" * 8, bytes.fromhex("0100010001000100")):
            other = load(Algorithm.DES, added(added(weak, parity), MATERIAL[:8]))
            with pytest.raises(KeyWeak):
                component.xor(other)
        for place in range(8):
            near = added(weak, bytes(place) + b"\2" + bytes(7 - place))
            component.xor(load(Algorithm.DES, added(near, MATERIAL[:8])))


def test_a_3des_key_with_a_weak_half_or_equal_halves_is_not_made() -> None:
    component = load(Algorithm.TDES)
    good = OTHER[:8]
    weak = [(half, good) for half in WEAK_DES] + [(good, half) for half in WEAK_DES]
    weak += [(good, good), (good, added(good, b"\1" * 8)), (bytes(8), bytes(8))]
    for left, right in weak:
        with pytest.raises(KeyWeak):
            component.xor(load(Algorithm.TDES, added(left + right, MATERIAL)))
    for place in range(8):
        near = added(good, bytes(place) + b"\2" + bytes(7 - place))
        component.xor(load(Algorithm.TDES, added(good + near, MATERIAL)))


def test_weak_keys_are_weak() -> None:
    """The list has no misprint: under a weak key encrypting twice is nothing, under a pair one undoes the other."""
    pairs = [(weak, weak) for weak in WEAK_DES[:4]]
    pairs += zip(WEAK_DES[4::2], WEAK_DES[5::2], strict=True)
    for first, second in pairs:
        once = load(Algorithm.DES, first).encrypt(BLOCK)
        assert load(Algorithm.DES, second).encrypt(once) == BLOCK


# --- sealed data


def cryptographys(material: bytes, data: bytes, nonce: bytes, header: bytes) -> bytes:
    sealer = Cipher(algorithms.SM4(material), modes.GCM(nonce)).encryptor()
    sealer.authenticate_additional_data(header)
    return sealer.update(data) + sealer.finalize() + sealer.tag


@given(
    material=materials,
    nonce=st.binary(min_size=12, max_size=12),
    header=st.binary(max_size=100),
    data=st.binary(max_size=300),
)
def test_sealing_is_sm4_gcm(material: bytes, nonce: bytes, header: bytes, data: bytes) -> None:
    key = load(Algorithm.SM4, material)
    sealed = key.seal(data, nonce, header)
    assert sealed == cryptographys(material, data, nonce, header)
    assert key.open(sealed, nonce, header) == data
    place = bytearray(b"\xa5" * len(data))
    key.open_into(place, sealed, nonce, header)
    assert place == data
    assert key.seal(place, nonce, header) == sealed
    assert place == data


def test_every_path_seals_every_length(path: str) -> None:
    assert _core.path_name() == path
    key, draw = load(Algorithm.SM4), random.Random(path)  # noqa: S311 - data of a test
    for length in [*range(200), 1007, 1008, 1024, 1025, 2047, 2049, 16384, 65535, 65536]:
        data, header = draw.randbytes(length), draw.randbytes(length % 70)
        sealed = key.seal(data, NONCE, header)
        assert sealed == cryptographys(MATERIAL, data, NONCE, header), length
        assert key.open(sealed, NONCE, header) == data


def test_the_header_may_be_longer_than_the_data() -> None:
    header = bytes(range(256)) * 4096
    sealed = load(Algorithm.SM4).seal(b"", NONCE, header)
    assert sealed == cryptographys(MATERIAL, b"", NONCE, header)
    assert load(Algorithm.SM4).open(sealed, NONCE, header) == b""


@pytest.mark.parametrize("data", [b"", b"a", b"two blocks of data and a bit more"])
def test_whatever_is_altered_does_not_open(data: bytes) -> None:
    key = load(Algorithm.SM4)
    sealed = key.seal(data, NONCE, HEADER)
    attempts = [
        *((attempt, NONCE, HEADER) for attempt in flips(sealed)),
        *((sealed, nonce, HEADER) for nonce in flips(NONCE)),
        *((sealed, NONCE, header) for header in flips(HEADER)),
        *((sealed, NONCE, header) for header in (b"", HEADER + b"\0", HEADER[:-1])),
        *((sealed[:length], NONCE, HEADER) for length in range(len(sealed))),
        (sealed + b"\0", NONCE, HEADER),
        (b"\0" + sealed, NONCE, HEADER),
        (bytes(MAX_SEALED_BYTES + 17), NONCE, HEADER),
    ]
    for attempt in attempts:
        with pytest.raises(KeyNotAuthentic):
            key.open(*attempt)
    with pytest.raises(KeyNotAuthentic):
        load(Algorithm.SM4, OTHER).open(sealed, NONCE, HEADER)


def test_what_does_not_open_leaves_the_place_as_it_was() -> None:
    key = load(Algorithm.SM4)
    sealed = key.seal(b"data", NONCE, HEADER)
    place = bytearray(b"1234")
    with pytest.raises(KeyNotAuthentic):
        key.open_into(place, sealed, NONCE, b"another header")
    assert place == b"1234"
    for length in (0, 3, 5):
        with pytest.raises(ValueError, match="another length"):
            key.open_into(bytearray(length), sealed, NONCE, HEADER)


def test_wrong_lengths_and_keys_are_refused() -> None:
    key = load(Algorithm.SM4)
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        key.seal(bytes(MAX_SEALED_BYTES + 1), NONCE, HEADER)
    for nonce in (b"", NONCE[:-1], NONCE + b"\0"):
        with pytest.raises(ValueError, match="12 bytes"):
            key.seal(b"data", nonce, HEADER)
        with pytest.raises(ValueError, match="12 bytes"):
            key.open(bytes(20), nonce, HEADER)
    for algorithm in (Algorithm.TDES, Algorithm.DES):
        with pytest.raises(ValueError, match="under SM4"):
            load(algorithm).seal(b"data", NONCE, HEADER)
        with pytest.raises(ValueError, match="under SM4"):
            load(algorithm).open(bytes(20), NONCE, HEADER)
        with pytest.raises(ValueError, match="under SM4"):
            load(algorithm).open_into(bytearray(4), bytes(20), NONCE, HEADER)


def test_a_sealed_key_unwraps_and_a_wrapped_one_does_not_unseal_under_another_header() -> None:
    """Wrapping is sealing the key's bytes: callers keep them apart by their headers."""
    key = load(Algorithm.SM4)
    assert key.wrap(load(Algorithm.SM4, OTHER), NONCE, HEADER) == key.seal(OTHER, NONCE, HEADER)


# --- shares

SCHEMES: Final = [(k, n) for n in range(1, 7) for k in range(1, n + 1)]


@shareable
@pytest.mark.parametrize(("threshold", "count"), SCHEMES)
def test_every_sufficient_subset_makes_the_key_and_no_smaller_one(
    algorithm: Algorithm, threshold: int, count: int
) -> None:
    key = load(algorithm)
    shares = list(enumerate(key.split(threshold, count), 1))
    assert len(shares) == count
    for size in range(1, count + 1):
        for subset in itertools.combinations(shares, size):
            combined = SecretKey.combine(algorithm, subset)
            # More shares than needed lie on the same polynomial.
            assert is_same(combined, key) == (size >= threshold)


@pytest.mark.parametrize(("threshold", "count"), [*SCHEMES, (3, 255), (255, 255)])
def test_sharing_is_pycryptodomes(threshold: int, count: int) -> None:
    key = load(Algorithm.SM4)
    ours = list(enumerate(key.split(threshold, count), 1))
    draw = random.Random(count)  # noqa: S311 - which shares a test takes
    few = draw.sample(ours, threshold) if threshold < 20 else ours[:1]
    if threshold < 20:
        assert Shamir.combine(few, ssss=False) == MATERIAL
    theirs = (
        Shamir.split(threshold, min(count, 20), MATERIAL, ssss=False) if threshold < 20 else ours
    )
    assert is_same(SecretKey.combine(Algorithm.SM4, draw.sample(theirs, threshold)), key)


@settings(max_examples=30, deadline=None)
@given(material=materials, data=st.data())
def test_random_keys_and_shares_agree_with_pycryptodome(
    material: bytes, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    shares = Shamir.split(threshold, count, material, ssss=False)
    combined = SecretKey.combine(Algorithm.SM4, [shares[place] for place in chosen])
    assert is_same(combined, load(Algorithm.SM4, material))
    ours = list(enumerate(combined.split(threshold, count), 1))
    assert Shamir.combine([ours[place] for place in chosen], ssss=False) == material


@given(numbers=st.sets(st.integers(1, 255), min_size=1, max_size=6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_shares_at_all_make_the_key_that_pycryptodome_makes(
    numbers: set[int], data: st.DataObject
) -> None:
    shares = [(number, data.draw(materials)) for number in numbers]
    expected = load(Algorithm.SM4, Shamir.combine(shares, ssss=False))
    assert is_same(SecretKey.combine(Algorithm.SM4, shares), expected)


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_one_share_too_few_is_consistent_with_every_key(threshold: int) -> None:
    """threshold - 1 shares and any key at number 0 are `threshold` points, and one polynomial goes through them.

    So for each possible key there is a last share that would make it: the shares that are there rule none out. That
    share is what interpolation at its number gives, computed here with another library.
    """
    shares = list(enumerate(load(Algorithm.SM4).split(threshold, threshold), 1))
    held, last = shares[:-1], threshold
    for key in (MATERIAL, OTHER, bytes(16), b"\xff" * 16, bytes(15) + b"\1"):
        # Interpolation at `last` is interpolation at 0 with all numbers moved by `last`; addition is XOR.
        points = [(number ^ last, value) for number, value in [*held, (0, key)]]
        fitting = (last, Shamir.combine(points, ssss=False))
        assert is_same(SecretKey.combine(Algorithm.SM4, [*held, fitting]), load(Algorithm.SM4, key))


def test_every_split_is_another_and_each_share_alone_is_random() -> None:
    key = load(Algorithm.SM4)
    splits = [key.split(3, 4) for _ in range(400)]
    assert len({share for shares in splits for share in shares}) == 1600
    for place in range(4):
        for bit in range(128):
            ones = sum(int.from_bytes(shares[place], "big") >> bit & 1 for shares in splits)
            assert 120 < ones < 280, (place, bit)


def test_with_a_threshold_of_one_each_share_is_the_key() -> None:
    assert load(Algorithm.SM4).split(1, 3) == [MATERIAL] * 3


@pytest.mark.usefixtures("nothing_left")
def test_what_is_no_set_of_shares_is_refused() -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([], "at least one share"),
        ([(0, MATERIAL)], "number is 1 to 255"),
        ([(256, MATERIAL)], "number is 1 to 255"),
        ([(-1, MATERIAL)], "number is 1 to 255"),
        ([(2**70, MATERIAL)], "number is 1 to 255"),
        ([(1, MATERIAL), (1, OTHER)], "same number"),
        ([(1, MATERIAL), (2, OTHER), (1, MATERIAL)], "same number"),
        ([(1, MATERIAL[:-1])], "16 bytes"),
        ([(1, MATERIAL), (2, OTHER + b"\0")], "16 bytes"),
        ([(1, b"")], "16 bytes"),
    ]
    for shares, sentence in wrong:
        with pytest.raises(ValueError, match=sentence) as refused:
            SecretKey.combine(Algorithm.SM4, shares)
        assert MATERIAL.hex() not in str(refused.value)
    for shares in (
        [(1, bytearray(16))],
        [(1, "0" * 16)],
        [(1.5, MATERIAL)],
        [1],
        [("1", MATERIAL)],
    ):
        with pytest.raises((TypeError, ValueError)):
            SecretKey.combine(Algorithm.SM4, shares)  # type: ignore[arg-type]


def test_all_255_shares_combine() -> None:
    key = load(Algorithm.TDES)
    shares = list(enumerate(key.split(MAX_SHARES, MAX_SHARES), 1))
    assert is_same(SecretKey.combine(Algorithm.TDES, shares), key)
    assert not is_same(SecretKey.combine(Algorithm.TDES, shares[1:]), key)


@pytest.mark.parametrize(
    ("threshold", "count"),
    [(0, 1), (2, 1), (1, 256), (256, 256), (-1, 3), (0, 0), (1, 0), (1, 2**70), (-(2**70), 3)],
)
def test_a_scheme_that_cannot_be_is_refused(threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="threshold <= count"):
        load(Algorithm.SM4).split(threshold, count)


def test_half_a_share_is_none() -> None:
    for threshold, count in ((1.5, 3), (1, 2.0), (None, 3), ("1", "3")):
        with pytest.raises(TypeError):
            load(Algorithm.SM4).split(threshold, count)  # type: ignore[arg-type]


def test_a_des_key_is_not_shared() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        load(Algorithm.DES).split(1, 1)
    with pytest.raises(ValueError, match="16 bytes"):
        SecretKey.combine(Algorithm.DES, [(1, bytes(16))])


# --- transport keys

TRANSPORTS: Final = [
    (Algorithm.SM4, Algorithm.SM4),
    (Algorithm.SM4, Algorithm.TDES),
    (Algorithm.TDES, Algorithm.SM4),
    (Algorithm.TDES, Algorithm.TDES),
    (Algorithm.TDES, Algorithm.DES),
]


@pytest.mark.parametrize(("transport", "algorithm"), TRANSPORTS)
@given(material=materials, under=materials)
def test_a_key_under_a_transport_key_is_its_bytes_in_ecb(
    transport: Algorithm, algorithm: Algorithm, reference: Reference, material: bytes, under: bytes
) -> None:
    expected = reference.key(transport, under).encrypt(material[: KEY_BYTES[algorithm]])
    key, transport_key = load(algorithm, material), load(transport, under)
    assert transport_key.wrap_ecb(key) == expected
    assert is_same(transport_key.unwrap_ecb(expected, algorithm), key)


@pytest.mark.usefixtures("nothing_left")
def test_what_does_not_fit_a_transport_key_is_refused() -> None:
    sm4, des = load(Algorithm.SM4), load(Algorithm.DES)
    with pytest.raises(ValueError, match="no whole block of SM4"):
        sm4.wrap_ecb(des)
    for length in (8, 16):
        with pytest.raises(ValueError, match="no whole block of SM4"):
            sm4.unwrap_ecb(bytes(length), Algorithm.DES)
    for algorithm in (Algorithm.SM4, Algorithm.TDES, Algorithm.DES):
        with pytest.raises(ValueError, match="transport key is"):
            des.wrap_ecb(load(algorithm))
        with pytest.raises(ValueError, match="transport key is"):
            des.unwrap_ecb(bytes(KEY_BYTES[algorithm]), algorithm)
    for length in (0, 8, 15, 17, 32):
        for transport in (sm4, load(Algorithm.TDES)):
            with pytest.raises(ValueError, match="key has 16 bytes"):
                transport.unwrap_ecb(bytes(length), Algorithm.SM4)


# --- of all of them


@pytest.mark.parametrize("wrong", [None, "00" * 16, 16, memoryview(bytes(16))])
def test_only_bytes_are_bytes(wrong: Any) -> None:
    key = load(Algorithm.SM4)
    attempts: list[Callable[[], object]] = [
        lambda: key.seal(b"data", wrong, HEADER),
        lambda: key.seal(b"data", NONCE, wrong),
        lambda: key.open(wrong, NONCE, HEADER),
        lambda: key.open(bytes(20), wrong, HEADER),
        lambda: key.open(bytes(20), NONCE, wrong),
        lambda: key.open_into(wrong, bytes(20), NONCE, HEADER),
        lambda: key.open_into(bytearray(4), wrong, NONCE, HEADER),
        lambda: key.unwrap_ecb(wrong, Algorithm.SM4),
        lambda: key.handle.xor(wrong),
        lambda: key.handle.wrap_ecb(wrong),
        lambda: _core.wipe(wrong),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError):
            attempt()
    if not isinstance(wrong, memoryview):
        with pytest.raises(TypeError):
            key.seal(wrong, NONCE, HEADER)


@pytest.mark.parametrize("number", [-1, 0, 4, 2**31 - 1])
def test_there_are_three_algorithms(number: int) -> None:
    key = load(Algorithm.SM4)
    attempts: list[Callable[[], object]] = [
        lambda: _core.generate(number),
        lambda: _core.combine(number, [(1, MATERIAL)]),
        lambda: key.handle.unwrap_ecb(MATERIAL, number),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="an algorithm is"):
            attempt()


def test_wiping_leaves_zeros() -> None:
    octets = bytearray(MATERIAL)
    _core.wipe(octets)
    assert octets == bytes(16)
    _core.wipe(bytearray())


FIRST: Final = """
    from keyd.crypto.algorithms import Algorithm
    from keyd.crypto.native import _core
    from keyd.crypto.secret import SecretKey

    assert _core.arena_info().capacity == 0
    key = {make}
    assert _core.arena_info().used == 1
    assert len(key.kcv()) == 3
"""


@pytest.mark.parametrize(
    "make",
    ["SecretKey.generate(Algorithm.DES)", "SecretKey.combine(Algorithm.SM4, [(1, bytes(16))])"],
)
def test_a_process_may_begin_with_it(make: str, processes: Processes) -> None:
    """The arena is opened by the first key, whichever way that is made."""
    done = processes.run(FIRST.format(make=make))
    assert (done.returncode, done.stderr) == (0, "")
