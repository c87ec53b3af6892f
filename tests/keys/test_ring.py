"""A key ring answers a batch item by item, in order; no item spoils another, and no key answers for another.

What a key's header allows is decided in `test_ring_decisions.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.crypto.algorithms import KEY_BYTES, Algorithm, CardAlgorithm
from keyd.crypto.native._core import CardKernel
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.errors import (
    AlgorithmNotSupported,
    BadParameter,
    KeyNotFound,
    Refusal,
    TooLarge,
)
from keyd.keys import ring as ring_module
from keyd.keys.block import KEY_ID_BYTES, KeyPlace, Use
from keyd.keys.hierarchy import CardKey, Region, city_key, root_key
from keyd.keys.ring import KeyRing
from keyd.keys.roots import active_root
from keyd.keys.sam import (
    CardKeyRef,
    CryptogramTask,
    MacTask,
    ProtectTask,
    Sam,
    SamTask,
    TacTask,
    purpose,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.keys.block import KeyHeader

FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")
DIVERSIFIER: Final = bytes.fromhex("8649519930000BEE")
CHENGDU: Final = Region("510100")
HANGZHOU: Final = Region("330102")

IRK: Final = 0x0170
STK: Final = 0x0173
DTK: Final = 0x00B5

ALGORITHMS: Final = (Algorithm.SM4, Algorithm.TDES, Algorithm.DES)
CARD_ALGORITHM: Final = {
    Algorithm.SM4: CardAlgorithm.SM4,
    Algorithm.TDES: CardAlgorithm.DES,
    Algorithm.DES: CardAlgorithm.DES,
}


def material(address: int, algorithm: Algorithm) -> bytes:
    return sm3(f"{address} {algorithm}".encode())[: KEY_BYTES[algorithm]]


def entry(address: int, algorithm: Algorithm, levels: int = 3) -> tuple[KeyHeader, SecretKey]:
    key = SecretKey.load(algorithm, material(address, algorithm))
    place = KeyPlace(address, f"K{address:04X}", 1, algorithm, Use.INTERNAL)
    key_id = sm3(key.kcv())[:KEY_ID_BYTES]
    return active_root(place, levels, key, key_id, "a test"), key


# A DES card's STK is single-length; the other keys have both halves.
ENTRIES: Final = (
    (IRK, Algorithm.SM4),
    (IRK, Algorithm.TDES),
    (STK, Algorithm.SM4),
    (STK, Algorithm.DES),
    (DTK, Algorithm.SM4),
    (DTK, Algorithm.TDES),
)


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing(entry(*place) for place in ENTRIES)


def ref(
    address: int = IRK,
    algorithm: CardAlgorithm = CardAlgorithm.SM4,
    region: Region = CHENGDU,
    diversifier: bytes = DIVERSIFIER,
) -> CardKeyRef:
    return CardKeyRef(address, algorithm, region, diversifier, purpose(Use.INTERNAL))


def card_key(key: CardKeyRef, levels: int = 3) -> CardKey:
    """Diversify a card's key anew, past the ring."""
    (algorithm,) = (
        algorithm
        for address, algorithm in ENTRIES
        if address == key.address and CARD_ALGORITHM[algorithm] is key.algorithm
    )
    root = root_key(SecretKey.load(algorithm, material(key.address, algorithm)), levels)
    return city_key(root, key.region).diversify(key.diversifier)


def expected(task: SamTask) -> bytes:
    key = card_key(task.key)
    match task:
        case CryptogramTask():
            return key.derive(task.session_factor).cryptogram(task.challenge)
        case ProtectTask():
            session = key.derive(task.session_factor)
            return session.protect(task.header, task.plaintext, encrypt=task.encrypt)
        case MacTask():
            return key.derive(task.session_factor).mac(task.data)
        case TacTask():
            return key.tac(task.data)


refs = st.builds(
    ref,
    st.sampled_from([IRK, STK, DTK]),
    st.sampled_from([CardAlgorithm.SM4, CardAlgorithm.DES]),
    st.sampled_from([CHENGDU, HANGZHOU, Region("110100")]),
    st.binary(min_size=8, max_size=8),
)
factors = st.binary(min_size=8, max_size=8)
good = st.one_of(
    st.builds(CryptogramTask, refs, factors, st.binary(min_size=8, max_size=8)),
    st.builds(
        ProtectTask,
        refs,
        factors,
        st.just(b"\x04\xd6\0\0"),
        st.binary(min_size=1, max_size=100),
        st.booleans(),
    ),
    st.builds(MacTask, refs, factors, st.binary(max_size=60)),
    st.builds(TacTask, refs, st.binary(max_size=60)),
)

# Tasks that are refused, each for its own reason.
BAD: Final[list[tuple[SamTask, type[Refusal]]]] = [
    (CryptogramTask(ref(0xFFFF), FACTOR, CHALLENGE), KeyNotFound),
    (CryptogramTask(ref(algorithm=CardAlgorithm.SSF33), FACTOR, CHALLENGE), AlgorithmNotSupported),
    (TacTask(ref(0xFFFF, CardAlgorithm.SSF33), b""), AlgorithmNotSupported),
    (CryptogramTask(ref(), b"", CHALLENGE), BadParameter),
    (CryptogramTask(ref(), FACTOR, b"1234567"), BadParameter),
    (CryptogramTask(ref(diversifier=b"short"), FACTOR, CHALLENGE), BadParameter),
    (CryptogramTask(ref(IRK, CardAlgorithm.DES), bytes(16), CHALLENGE), BadParameter),
    (ProtectTask(ref(), FACTOR, b"\x04\xd6\0\0", bytes(252), encrypt=False), TooLarge),
    (ProtectTask(ref(), FACTOR, b"\x04\xd6\0\0", bytes(251), encrypt=True), TooLarge),
    (ProtectTask(ref(), FACTOR, b"\x04\xd6\0", b"", encrypt=False), BadParameter),
]


def test_a_key_ring_is_a_sam(ring: KeyRing) -> None:
    sam: Sam = ring
    assert sam.compute([]) == []


@given(tasks=st.lists(good, max_size=8))
def test_a_batch_is_answered_in_order(tasks: list[SamTask]) -> None:
    ring = KeyRing(entry(*place) for place in ENTRIES)
    assert ring.compute(tasks) == [expected(task) for task in tasks]
    # And again, now with city keys that are already open.
    assert ring.compute(tasks) == [expected(task) for task in tasks]


@given(tasks=st.lists(st.one_of(good, st.sampled_from(BAD)), min_size=1, max_size=10))
def test_a_refusal_spoils_no_other_item(tasks: list[Any]) -> None:
    ring = KeyRing(entry(*place) for place in ENTRIES)
    results = ring.compute([task[0] if isinstance(task, tuple) else task for task in tasks])
    for task, result in zip(tasks, results, strict=True):
        if isinstance(task, tuple):
            assert type(result) is task[1]
        else:
            assert result == expected(task)


@pytest.mark.parametrize(("task", "refusal"), BAD)
def test_each_bad_task_has_its_own_refusal(
    ring: KeyRing, task: SamTask, refusal: type[Refusal]
) -> None:
    (result,) = ring.compute([task])
    assert type(result) is refusal


def test_an_unknown_address_is_named_with_its_algorithm(ring: KeyRing) -> None:
    (result,) = ring.compute([TacTask(ref(0x0199, CardAlgorithm.DES), b"")])
    assert "0199" in str(result)
    assert "DES" in str(result)


def test_ssf33_is_refused_as_what_needs_hardware(ring: KeyRing) -> None:
    (result,) = ring.compute([TacTask(ref(algorithm=CardAlgorithm.SSF33), b"")])
    assert "hardware" in str(result)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_number_of_levels_is_each_keys_own(levels: int) -> None:
    ring = KeyRing([entry(IRK, Algorithm.SM4, levels), entry(DTK, Algorithm.SM4, 3)])
    task = CryptogramTask(ref(), FACTOR, CHALLENGE)
    key = card_key(task.key, levels)
    assert ring.compute([task]) == [key.derive(FACTOR).cryptogram(CHALLENGE)]
    other = TacTask(ref(DTK), b"data")
    assert ring.compute([other]) == [expected(other)]


# --- what is in the ring


def other_id(made: tuple[KeyHeader, SecretKey]) -> tuple[KeyHeader, SecretKey]:
    return replace(made[0], key_id=bytes(KEY_ID_BYTES)), made[1]


def test_two_keys_at_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="two keys for address 0170"):
        KeyRing([entry(IRK, Algorithm.SM4), other_id(entry(IRK, Algorithm.SM4))])
    # To a DES card, a 3DES and a DES key at one address are one place.
    with pytest.raises(ValueError, match="two keys for address 0173"):
        KeyRing([entry(STK, Algorithm.TDES), entry(STK, Algorithm.DES)])


def test_the_headers_are_listed_by_address_and_algorithm(ring: KeyRing) -> None:
    reverse = KeyRing(entry(*place) for place in reversed(ENTRIES))
    listed = [(header.addresses, header.algorithm) for header in ring.headers]
    assert listed == [
        ((DTK,), Algorithm.TDES),
        ((DTK,), Algorithm.SM4),
        ((IRK,), Algorithm.TDES),
        ((IRK,), Algorithm.SM4),
        ((STK,), Algorithm.DES),
        ((STK,), Algorithm.SM4),
    ]
    assert reverse.headers == ring.headers
    assert KeyRing([]).headers == ()


def test_no_text_of_a_ring_shows_a_key(ring: KeyRing) -> None:
    ring.compute([CryptogramTask(ref(), FACTOR, CHALLENGE)])
    texts = repr(ring) + repr(vars(ring)) + repr(ring.headers)
    for address, algorithm in ENTRIES:
        octets = material(address, algorithm)
        for at in range(len(octets) - 3):
            assert octets[at : at + 4].hex() not in texts.lower()
            assert repr(octets[at : at + 4])[2:-1] not in texts


# --- the cache of city keys


def regions(numbers: Iterable[int]) -> list[Region]:
    return [Region(f"{number:06}") for number in numbers]


def test_the_cache_is_bounded_and_right_after_it_let_go(ring: KeyRing) -> None:
    ring._kernel = CardKernel(
        cryptogram=CryptogramTask, mac=MacTask, protect=ProtectTask, tac=TacTask, max_cities=5
    )
    asked = regions([1, 2, 3, 1, 4, 5, 6, 7, 1, 2, 100, 1, 8, 9, 10, 11, 12, 1, 2, 3, 3, 3])
    for region in asked:
        for task in (
            CryptogramTask(ref(region=region), FACTOR, CHALLENGE),
            CryptogramTask(ref(IRK, CardAlgorithm.DES, region), FACTOR, CHALLENGE),
            MacTask(ref(STK, region=region), FACTOR, b"data"),
        ):
            assert ring.compute([task]) == [expected(task)]
            assert ring._kernel.cities <= 5


def test_the_real_bound_holds(ring: KeyRing) -> None:
    tasks = [
        TacTask(ref(DTK, region=region), b"")
        for region in regions(range(ring_module.MAX_CITY_KEYS + 300))
    ]
    ring.compute(tasks)
    assert ring._kernel.cities == ring_module.MAX_CITY_KEYS
    assert ring.compute(tasks[:3]) == [expected(task) for task in tasks[:3]]


def test_a_refused_task_leaves_nothing_in_the_cache(ring: KeyRing) -> None:
    ring.compute([task for task, refusal in BAD if refusal in (KeyNotFound, AlgorithmNotSupported)])
    assert ring._kernel.cities == 0


def test_no_card_key_is_kept(ring: KeyRing) -> None:
    tasks = [
        CryptogramTask(ref(diversifier=number.to_bytes(8, "big")), FACTOR, CHALLENGE)
        for number in range(50)
    ]
    ring.compute(tasks)
    assert ring._kernel.cities == 1
