"""Which key answers, and whether it may: by its state, validity, use, modes, version and ceiling, at any moment.

`decided` asks the ring three ways, and the answers must agree: for the header, and for a cryptogram with a new and
with a cached city key. So every test here is also one of the cache.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.crypto.algorithms import KEY_BYTES, Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.errors import (
    AlgorithmNotSupported,
    BadParameter,
    KeyExhausted,
    KeyNotFound,
    KeyNotValidNow,
    KeyStateRefused,
    KeyUsageRefused,
    KeyVersionRefused,
    Refusal,
    StoreUnavailable,
)
from keyd.keys.block import KEY_ID_BYTES, Domain, KeyHeader, KeyPlace, KeyState, Mode, Use
from keyd.keys.hierarchy import (
    TERMINAL_MASTER_ADDRESS,
    Region,
    Side,
    TerminalMasterKey,
    city_key,
    root_key,
    terminal_factor_by_code,
)
from keyd.keys.ring import KeyRing
from keyd.keys.roots import active_root
from keyd.keys.sam import CardKeyRef, CryptogramTask, ProofTask, TerminalKeyRef, purpose, purpose_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.keys.sam import SamTask

FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")
DIVERSIFIER: Final = bytes.fromhex("8649519930000BEE")
CHENGDU: Final = Region("510100")

IRK: Final = 0x0170
NOON: Final = 1_800_000_000

CARD_ALGORITHM: Final = {
    Algorithm.SM4: CardAlgorithm.SM4,
    Algorithm.TDES: CardAlgorithm.DES,
    Algorithm.DES: CardAlgorithm.DES,
}

Entry = tuple[KeyHeader, SecretKey]


class Clock:
    """A clock that stands still until a test sets it, and counts how often it is looked at."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


class Counted:
    """A quota of so many uses."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        return True


def secret_of(name: str, algorithm: Algorithm) -> SecretKey:
    return SecretKey.load(algorithm, sm3(name.encode())[: KEY_BYTES[algorithm]])


def a_root(
    version: int = 1,
    address: int = IRK,
    algorithm: Algorithm = Algorithm.SM4,
    levels: int = 3,
    **changes: Any,
) -> Entry:
    """Make an active root whose bytes follow from its name, which no other key has."""
    name = changes.pop("name", f"{address:04X} v{version} {algorithm.value}")
    key = secret_of(name, algorithm)
    place = KeyPlace(address, name, 1, algorithm, Use.INTERNAL)
    header = active_root(place, max(levels, 1), key, sm3(name.encode())[:KEY_ID_BYTES], "a test")
    return replace(header, version=version, levels=levels, **changes), key


def ref(
    address: int = IRK,
    use: Use = Use.INTERNAL,
    *,
    is_verifying: bool = False,
    version: int = 0,
    algorithm: CardAlgorithm = CardAlgorithm.SM4,
) -> CardKeyRef:
    wanted = purpose(use, is_verifying=is_verifying, version=version)
    return CardKeyRef(address, algorithm, CHENGDU, DIVERSIFIER, wanted)


def ask(wanted: CardKeyRef) -> CryptogramTask:
    return CryptogramTask(wanted, FACTOR, CHALLENGE)


def answer_of(header: KeyHeader) -> bytes:
    """Compute what a root answers, past the ring."""
    root = root_key(secret_of(header.name, header.algorithm), header.levels)
    return city_key(root, CHENGDU).diversify(DIVERSIFIER).derive(FACTOR).cryptogram(CHALLENGE)


def decided(ring: KeyRing, wanted: CardKeyRef) -> KeyHeader | type[Refusal]:
    """Return which key answers, or why none does."""
    try:
        verdict: KeyHeader | type[Refusal] = ring.answering(wanted)
    except Refusal as refusal:
        verdict = type(refusal)
    for _ in range(2):
        (result,) = ring.compute([ask(wanted)])
        if isinstance(verdict, KeyHeader):
            assert result == answer_of(verdict)
        else:
            assert type(result) is verdict
    return verdict


def version_of(verdict: KeyHeader | type[Refusal]) -> int | type[Refusal]:
    return verdict.version if isinstance(verdict, KeyHeader) else verdict


# --- state

# What a key in each state answers: when it produces, and when it verifies.
STATES: Final[dict[KeyState, tuple[type[Refusal] | int, type[Refusal] | int]]] = {
    KeyState.PRE_ACTIVE: (KeyStateRefused, KeyStateRefused),
    KeyState.ACTIVE: (1, 1),
    KeyState.DEACTIVATED: (KeyStateRefused, 1),
    KeyState.COMPROMISED: (KeyStateRefused, KeyStateRefused),
    KeyState.DESTROYED: (KeyStateRefused, KeyStateRefused),
}


@pytest.mark.parametrize("state", list(KeyState))
@pytest.mark.parametrize("version", [0, 1])
def test_the_state_decides_who_is_answered(state: KeyState, version: int) -> None:
    ring = KeyRing([a_root(state=state)], Clock())
    produced = decided(ring, ref(version=version))
    verified = decided(ring, ref(version=version, is_verifying=True))
    assert (version_of(produced), version_of(verified)) == STATES[state]


# --- validity


def test_a_key_is_valid_from_its_first_second_to_its_last() -> None:
    clock = Clock(NOON - 1)
    ring = KeyRing([a_root(valid_from=NOON, valid_until=NOON + 60)], clock)
    # No refresh in between, and back again: the cache never outlives a decision.
    moments: list[tuple[float, bool]] = [
        (NOON - 1, False),
        (NOON - 0.001, False),
        (NOON, True),
        (NOON + 59, True),
        (NOON + 59.999, True),
        (NOON + 60, False),
        (NOON + 10**9, False),
    ]
    for now, is_valid in (*moments, *reversed(moments)):
        clock.now = now
        for wanted in (ref(), ref(is_verifying=True), ref(version=1)):
            assert version_of(decided(ring, wanted)) == (1 if is_valid else KeyNotValidNow)


def test_zero_is_no_limit() -> None:
    clock = Clock(0)
    ring = KeyRing([a_root(valid_from=0, valid_until=0)], clock)
    for clock.now in (0, NOON, 2**62):
        assert version_of(decided(ring, ref())) == 1
        assert ring.refresh_at() is None


def test_refresh_is_due_when_next_a_key_begins_or_ceases_to_be_valid() -> None:
    clock = Clock(NOON)
    ring = KeyRing(
        [
            a_root(1, valid_until=NOON + 30),
            a_root(2, valid_from=NOON + 10, valid_until=NOON + 40),
            # Deactivated, and at another address: it counts as well.
            a_root(1, 0x0171, valid_from=NOON + 20, state=KeyState.DEACTIVATED),
            # What is no card's root does not answer, so its moments are nobody's.
            a_root(1, 0x0172, levels=0, valid_until=NOON + 5),
        ],
        clock,
    )
    for now, due in ((0, 10), (9.5, 10), (10, 20), (20, 30), (29, 30), (30, 40), (40, None)):
        clock.now = NOON + now
        assert ring.refresh_at() == (None if due is None else NOON + due)


def test_the_current_version_changes_in_the_second_in_which_it_should() -> None:
    clock = Clock(NOON)
    ring = KeyRing([a_root(1, valid_until=NOON + 30), a_root(2, valid_from=NOON + 10)], clock)
    for now, version in ((0, 1), (9.999, 1), (10, 2), (31, 2), (9, 1)):
        clock.now = NOON + now
        assert version_of(decided(ring, ref())) == version


def test_a_batch_is_decided_for_one_moment() -> None:
    class Running(Clock):
        def __call__(self) -> float:
            self.now += 1
            return super().__call__()

    clock = Running(NOON)
    ring = KeyRing([a_root(1), a_root(2, valid_from=NOON + 3)], clock)
    assert clock.looks == 1
    # The second batch is the first in which the new version is valid; its two cities agree on that.
    for looks, version in ((2, 1), (3, 2)):
        tasks = [ask(ref()), ask(ref(is_verifying=True)), ask(ref())]
        assert ring.compute(tasks) == [answer_of(a_root(version)[0])] * 3
        assert clock.looks == looks + (version == 2)


def test_nobody_outside_gets_a_city_whose_key_is_no_longer_valid() -> None:
    clock = Clock(NOON)
    ring = KeyRing([a_root(valid_until=NOON + 10)], clock)
    ring.compute([ask(ref())])
    asked = (IRK, CardAlgorithm.SM4, CHENGDU, ref().purpose)
    assert ring.maybe_city(*asked) is not None
    clock.now = NOON + 10
    assert ring.maybe_city(*asked) is None


# --- versions


def test_the_current_version_is_the_newest_that_is_active_and_valid() -> None:
    ring = KeyRing(
        [
            a_root(1),
            a_root(3),
            a_root(4, state=KeyState.DEACTIVATED),
            a_root(5, valid_until=NOON),
            a_root(6, valid_from=NOON + 1),
            a_root(7, state=KeyState.PRE_ACTIVE),
            a_root(8, state=KeyState.COMPROMISED),
            a_root(9, state=KeyState.DESTROYED),
        ],
        Clock(),
    )
    for is_verifying in (False, True):
        assert version_of(decided(ring, ref(is_verifying=is_verifying))) == 3


@pytest.mark.parametrize(
    ("states", "produced", "verified"),
    [
        # Alive goes before newer.
        ({1: "deactivated", 2: "pre-active"}, KeyStateRefused, 1),
        ({1: "deactivated", 2: "deactivated", 3: "destroyed"}, KeyStateRefused, 2),
        ({1: "compromised", 2: "pre-active"}, KeyStateRefused, KeyStateRefused),
        # An active key that is not valid says so, rather than to verify with another in its place.
        ({1: "deactivated", 2: "expired"}, KeyNotValidNow, KeyNotValidNow),
    ],
)
def test_without_a_current_version_the_newest_that_is_alive_stands_for_it(
    states: dict[int, str], produced: int | type[Refusal], verified: int | type[Refusal]
) -> None:
    ring = KeyRing(
        [
            a_root(version, valid_until=NOON)
            if state == "expired"
            else a_root(version, state=KeyState(state))
            for version, state in states.items()
        ],
        Clock(),
    )
    assert version_of(decided(ring, ref())) == produced
    assert version_of(decided(ring, ref(is_verifying=True))) == verified


def test_an_old_version_answers_by_its_number_and_for_nobody_else() -> None:
    ring = KeyRing([a_root(1), a_root(2, state=KeyState.DEACTIVATED), a_root(0xFFFF)], Clock())
    assert version_of(decided(ring, ref())) == 0xFFFF
    for is_verifying in (True, False):
        assert version_of(decided(ring, ref(version=1, is_verifying=is_verifying))) == 1
        assert version_of(decided(ring, ref(version=0xFFFF, is_verifying=is_verifying))) == 0xFFFF
    assert version_of(decided(ring, ref(version=2, is_verifying=True))) == 2
    assert decided(ring, ref(version=2)) is KeyStateRefused


@pytest.mark.parametrize("version", [2, 4, 0xFFFF])
def test_a_version_that_is_not_there_is_refused_by_its_number(version: int) -> None:
    ring = KeyRing([a_root(1), a_root(3)], Clock())
    assert decided(ring, ref(version=version)) is KeyVersionRefused
    with pytest.raises(KeyVersionRefused, match=f"0170 has no version {version}"):
        ring.answering(ref(version=version))


def test_versions_below_the_minimum_are_refused_though_they_are_there() -> None:
    # Whichever key says it: the strictest counts, at its addresses only.
    ring = KeyRing(
        [
            a_root(1),
            a_root(2, minimum_version=3),
            a_root(3, minimum_version=2),
            a_root(4),
            a_root(1, 0x0171),
        ],
        Clock(),
    )
    for version, answer in ((1, KeyVersionRefused), (2, KeyVersionRefused), (3, 3), (4, 4), (0, 4)):
        assert version_of(decided(ring, ref(version=version))) == answer
    assert version_of(decided(ring, ref(0x0171, version=1))) == 1
    with pytest.raises(KeyVersionRefused, match="version 3 and later, not 2"):
        ring.answering(ref(version=2))


@pytest.mark.parametrize("state", [KeyState.PRE_ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED])
def test_no_version_below_the_minimum_becomes_the_current_one(state: KeyState) -> None:
    ring = KeyRing([a_root(1), a_root(2, minimum_version=2, state=state)], Clock())
    for is_verifying in (False, True):
        assert decided(ring, ref(is_verifying=is_verifying)) is KeyStateRefused
    none_left = KeyRing([a_root(1, minimum_version=5)], Clock())
    assert decided(none_left, ref()) is KeyVersionRefused


def test_the_sets_of_a_key_are_addresses_of_their_own() -> None:
    sets = {number: a_root(number, IRK + number - 1, set=number)[0] for number in (1, 2, 3)}
    ring = KeyRing([a_root(number, IRK + number - 1, set=number) for number in (1, 2, 3)], Clock())
    for number, header in sets.items():
        assert decided(ring, ref(IRK + number - 1)) == header
        for other in {1, 2, 3} - {number}:
            # A set's number is no version of another set.
            assert decided(ring, ref(IRK + number - 1, version=other)) is KeyVersionRefused


def test_the_algorithms_of_a_version_are_keys_of_their_own() -> None:
    ring = KeyRing(
        [a_root(1), a_root(1, algorithm=Algorithm.TDES), a_root(2, algorithm=Algorithm.TDES)],
        Clock(),
    )
    assert version_of(decided(ring, ref())) == 1
    assert version_of(decided(ring, ref(algorithm=CardAlgorithm.DES))) == 2
    assert decided(ring, ref(version=2)) is KeyVersionRefused


# --- use and modes


@pytest.mark.parametrize("use", [use for use in Use if use is not Use.TERMINAL])
def test_a_key_answers_for_its_own_use_only(use: Use) -> None:
    ring = KeyRing([a_root(use=use)], Clock())
    for asked in Use:
        for is_verifying in (False, True):
            answer = decided(ring, ref(use=asked, is_verifying=is_verifying))
            assert version_of(answer) == (1 if asked is use else KeyUsageRefused)


@pytest.mark.parametrize(
    ("modes", "produces", "verifies"),
    [
        ((Mode.PRODUCE, Mode.VERIFY), True, True),
        ((Mode.PRODUCE,), True, False),
        ((Mode.VERIFY,), False, True),
        ((Mode.WRAP, Mode.UNWRAP), False, False),
    ],
)
def test_a_key_answers_in_its_own_modes_only(
    modes: tuple[Mode, ...], produces: bool, verifies: bool
) -> None:
    # An older version that might do it is no way round.
    ring = KeyRing([a_root(1), a_root(2, modes=modes)], Clock())
    for version in (0, 2):
        for is_verifying, may in ((False, produces), (True, verifies)):
            answer = decided(ring, ref(version=version, is_verifying=is_verifying))
            assert version_of(answer) == (2 if may else KeyUsageRefused)


# --- the terminal master key


def proof_task(*, is_verifying: bool = False) -> ProofTask:
    factor = terminal_factor_by_code("T-0001")
    return ProofTask(TerminalKeyRef(factor, Side.TERMINAL, is_verifying), bytes(16), bytes(16))


def test_no_card_service_computes_under_the_terminal_master_key() -> None:
    # Even if it stood at a card's address, and even if a service said that it wants a terminal's key.
    ring = KeyRing([a_root(use=Use.TERMINAL, levels=2)], Clock())
    for asked in Use:
        for is_verifying in (False, True):
            wanted = ref(use=asked, is_verifying=is_verifying)
            (result,) = ring.compute([ask(wanted)])
            assert type(result) is KeyUsageRefused


@pytest.mark.parametrize("use", [use for use in Use if use is not Use.TERMINAL])
def test_no_terminal_is_proven_under_a_cards_root(use: Use) -> None:
    # Even if one stood at the terminal master key's address.
    ring = KeyRing([a_root(address=TERMINAL_MASTER_ADDRESS, use=use)], Clock())
    for is_verifying in (False, True):
        (result,) = ring.prove([proof_task(is_verifying=is_verifying)])
        assert type(result) is KeyUsageRefused


@pytest.mark.parametrize(
    ("changes", "produces", "verifies"),
    [
        ({}, None, None),
        ({"state": KeyState.DEACTIVATED}, KeyStateRefused, None),
        ({"state": KeyState.COMPROMISED}, KeyStateRefused, KeyStateRefused),
        ({"state": KeyState.PRE_ACTIVE}, KeyStateRefused, KeyStateRefused),
        ({"valid_from": 2**40}, KeyNotValidNow, KeyNotValidNow),
        ({"ceiling": 1}, KeyExhausted, KeyExhausted),
        ({"modes": (Mode.VERIFY,)}, KeyUsageRefused, None),
    ],
)
def test_the_terminal_master_key_obeys_its_header(
    changes: dict[str, Any], produces: type[Refusal] | None, verifies: type[Refusal] | None
) -> None:
    master = a_root(address=TERMINAL_MASTER_ADDRESS, use=Use.TERMINAL, levels=2, **changes)
    ring = KeyRing([master], Clock())
    for is_verifying, refusal in ((False, produces), (True, verifies)):
        (result,) = ring.prove([proof_task(is_verifying=is_verifying)])
        if refusal is None:
            root = TerminalMasterKey(secret_of(master[0].name, Algorithm.SM4))
            key = root.diversify(terminal_factor_by_code("T-0001")).diversify(Side.TERMINAL)
            assert result == key.proof(bytes(16), bytes(16))
        else:
            assert type(result) is refusal


def test_without_a_terminal_master_key_there_is_no_proof() -> None:
    (result,) = KeyRing([a_root()], Clock()).prove([proof_task()])
    assert type(result) is KeyNotFound


def test_every_purpose_is_a_number_of_its_own_and_says_what_was_meant() -> None:
    meant = [
        (use, is_verifying, version)
        for use in Use
        for is_verifying in (False, True)
        for version in (0, 1, 2, 255, 256, 0xFFFF)
    ]
    numbers = [purpose(use, is_verifying=v, version=version) for use, v, version in meant]
    assert [purpose_of(number) for number in numbers] == meant
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 << 24 for number in numbers)


# --- which keys are in the ring


def test_a_key_of_several_addresses_answers_at_each_of_them_and_nowhere_else() -> None:
    shared = a_root(name="shared", addresses=(0x0171, IRK, 0x0002, IRK))
    ring = KeyRing([shared, a_root(2)], Clock())
    assert decided(ring, ref(0x0002)) == decided(ring, ref(0x0171)) == shared[0]
    assert version_of(decided(ring, ref(IRK))) == 2
    assert decided(ring, ref(IRK, version=1)) == shared[0]
    assert decided(ring, ref(0x0172)) is KeyNotFound
    # It is listed once, under the lowest of them.
    assert [header.name for header in ring.headers] == ["shared", "0170 v2 SM4"]


def test_a_key_that_is_no_cards_root_is_not_in_the_ring() -> None:
    transport = a_root(name="transport", levels=0, use=Use.TRANSPORT, modes=(Mode.WRAP,))
    ring = KeyRing([transport, a_root(2)], Clock())
    assert [header.version for header in ring.headers] == [2]
    assert decided(ring, ref(version=1)) is KeyVersionRefused
    # Nor does it stand in a root's way.
    assert version_of(decided(KeyRing([transport, a_root(1)], Clock()), ref())) == 1
    assert decided(KeyRing([transport], Clock()), ref()) is KeyNotFound


REFUSED_TOGETHER: Final = {
    "one version": ([a_root(1), a_root(1, name="other")], "one version"),
    "one version, by a second address": (
        [a_root(1), a_root(1, name="other", addresses=(0x0001, IRK))],
        "address 0170.*one version",
    ),
    "one id": ([a_root(1), a_root(2, key_id=a_root(1)[0].key_id)], "the id of"),
    "two domains": ([a_root(1), a_root(2, domain=Domain.LOCAL)], "two domains.*0170"),
}


@pytest.mark.parametrize("why", REFUSED_TOGETHER)
def test_keys_that_cannot_stand_together_replace_nothing(why: str) -> None:
    keys, said = REFUSED_TOGETHER[why]
    with pytest.raises(ValueError, match=said):
        KeyRing(keys, Clock())
    quota = Counted(5)
    before = a_root(7, ceiling=9)
    ring = KeyRing(now=Clock())
    ring.load([before], {before[0].key_id: quota})
    with pytest.raises(ValueError, match=said):
        ring.load(keys)
    assert ring.headers == (before[0],)
    assert ring.compute([ask(ref())]) == [answer_of(before[0])]
    assert quota.left == 4


def test_no_decision_outlives_a_change_of_keys() -> None:
    ring = KeyRing([a_root(1)], Clock())
    everything = [
        ref(is_verifying=is_verifying, version=version)
        for is_verifying in (False, True)
        for version in (0, 1, 2)
    ]

    def answers() -> list[int | type[Refusal]]:
        return [version_of(decided(ring, wanted)) for wanted in everything]

    none = KeyVersionRefused
    assert answers() == [1, 1, none, 1, 1, none]
    ring.load([a_root(1), a_root(2)])
    assert answers() == [2, 1, 2, 2, 1, 2]
    ring.load([a_root(1, state=KeyState.DEACTIVATED), a_root(2)])
    assert answers() == [2, KeyStateRefused, 2, 2, 1, 2]
    ring.load([a_root(1), a_root(2, state=KeyState.COMPROMISED)])
    assert answers() == [1, 1, KeyStateRefused, 1, 1, KeyStateRefused]
    # Another key in the place of the first.
    ring.load([a_root(1, name="another")])
    assert answers() == [1, 1, none, 1, 1, none]
    ring.load([])
    assert answers() == [KeyNotFound] * 6


# --- against a model

VERSIONS: Final = (1, 2, 3)
MOMENTS: Final = (0, NOON - 1, NOON, NOON + 1)

entries = st.builds(
    lambda version, address, more: a_root(version, address, **more),
    st.sampled_from(VERSIONS),
    st.sampled_from([IRK, IRK + 1]),
    st.fixed_dictionaries(
        {
            "state": st.sampled_from([*KeyState, KeyState.ACTIVE, KeyState.ACTIVE]),
            "valid_from": st.sampled_from(MOMENTS),
            "valid_until": st.sampled_from(MOMENTS),
            "minimum_version": st.sampled_from((1, 1, 1, 2, 3, 4)),
            "use": st.sampled_from([Use.INTERNAL, Use.INTERNAL, Use.TAC]),
            "modes": st.sampled_from([(Mode.PRODUCE, Mode.VERIFY), (Mode.VERIFY,)]),
            "levels": st.sampled_from([3, 3, 2, 1, 0]),
            "algorithm": st.sampled_from([Algorithm.SM4, Algorithm.SM4, Algorithm.TDES]),
        }
    ),
)
asked = st.builds(
    lambda address, use, is_verifying, version, algorithm: ref(
        address, use, is_verifying=is_verifying, version=version, algorithm=algorithm
    ),
    st.sampled_from([IRK, IRK, IRK + 1, IRK + 2]),
    st.sampled_from([Use.INTERNAL, Use.INTERNAL, Use.TAC]),
    st.booleans(),
    st.sampled_from((0, 0, *VERSIONS, 4)),
    st.sampled_from([CardAlgorithm.SM4, CardAlgorithm.SM4, CardAlgorithm.DES, CardAlgorithm.SSF33]),
)


def modelled(
    headers: Iterable[KeyHeader], wanted: CardKeyRef, now: float
) -> KeyHeader | type[Refusal]:
    """Decide as the rules are told, by striking keys off a list and without any order of versions kept."""
    if wanted.algorithm == 2:
        return AlgorithmNotSupported
    here = [
        header
        for header in headers
        if header.levels > 0
        and wanted.address in header.addresses
        and (header.algorithm is Algorithm.SM4) == (wanted.algorithm == 3)
    ]
    if not here:
        return KeyNotFound
    use, is_verifying, number = purpose_of(wanted.purpose)
    left = [
        header
        for header in here
        if not any(header.version < other.minimum_version for other in here)
        and number in (0, header.version)
    ]
    if not left:
        return KeyVersionRefused

    def is_in_time(header: KeyHeader) -> bool:
        ends = header.valid_until or 1e99
        return not (now < header.valid_from or now >= ends)

    active = [header for header in left if header.state == "active" and is_in_time(header)]
    alive = [header for header in left if header.state in ("active", "deactivated")]
    one = max(active or alive or left, key=lambda header: header.version)
    if use != one.use or ("verify" if is_verifying else "produce") not in one.modes:
        return KeyUsageRefused
    if one.state not in {"active", "deactivated" if is_verifying else "active"}:
        return KeyStateRefused
    return one if is_in_time(one) else KeyNotValidNow


@settings(deadline=None)
@given(
    keys=st.lists(
        entries,
        max_size=6,
        # Other combinations the ring does not load.
        unique_by=lambda entry: (
            entry[0].addresses,
            entry[0].version,
            CARD_ALGORITHM[entry[0].algorithm],
        ),
    ),
    asks=st.lists(st.tuples(asked, st.sampled_from((*MOMENTS[1:], NOON + 0.5))), min_size=1),
)
def test_the_ring_decides_as_the_rules_are_told(
    keys: list[Entry], asks: list[tuple[CardKeyRef, float]]
) -> None:
    clock = Clock()
    ring = KeyRing(keys, clock)
    for wanted, clock.now in asks:
        assert decided(ring, wanted) == modelled([h for h, _ in keys], wanted, clock.now)


# --- ceilings


def test_a_quota_is_used_up_to_the_last_and_no_further() -> None:
    root = a_root(ceiling=1000)
    quota = Counted(3)
    ring = KeyRing(now=Clock())
    ring.load([root], {root[0].key_id: quota})
    for left in (2, 1, 0):
        assert ring.compute([ask(ref())]) == [answer_of(root[0])]
        assert quota.left == left
    for _ in range(2):
        (refused,) = ring.compute([ask(ref())])
        assert type(refused) is KeyExhausted
        assert root[0].label in refused.detail
    # More uses, and it answers again.
    quota.left = 1
    assert ring.compute([ask(ref())]) == [answer_of(root[0])]


def test_asking_which_key_answers_uses_nothing() -> None:
    root = a_root(ceiling=10)
    quota = Counted(1)
    ring = KeyRing(now=Clock())
    ring.load([root], {root[0].key_id: quota})
    ring.answering(ref())
    ring.maybe_city(IRK, CardAlgorithm.SM4, CHENGDU, ref().purpose)
    assert quota.left == 1


def test_what_is_refused_for_its_key_uses_nothing() -> None:
    root = a_root(ceiling=10, modes=(Mode.VERIFY,))
    quota = Counted(1)
    ring = KeyRing(now=Clock())
    ring.load([root], {root[0].key_id: quota})
    for wanted in (ref(), ref(version=2), ref(use=Use.TAC), ref(0x0171)):
        (refused,) = ring.compute([ask(wanted)])
        assert isinstance(refused, Refusal)
    assert quota.left == 1


def test_a_ceiling_without_a_quota_is_refused_and_one_that_comes_later_counts() -> None:
    root = a_root(ceiling=10)
    (result,) = KeyRing([root], Clock()).compute([ask(ref())])
    assert type(result) is KeyExhausted
    # The mapping is the caller's, who may add to it without loading all keys anew, even if it was empty.
    quotas: dict[bytes, Counted] = {}
    ring = KeyRing(now=Clock())
    ring.load([root], quotas)
    (result,) = ring.compute([ask(ref())])
    assert type(result) is KeyExhausted
    quotas[root[0].key_id] = Counted(1)
    assert ring.compute([ask(ref())]) == [answer_of(root[0])]


def test_only_the_versions_with_a_ceiling_count() -> None:
    old, new = a_root(1, ceiling=10), a_root(2)
    quota = Counted(1)
    ring = KeyRing(now=Clock())
    ring.load([old, new], {old[0].key_id: quota})
    assert ring.compute([ask(ref())] * 3) == [answer_of(new[0])] * 3
    assert quota.left == 1
    first, second = ring.compute([ask(ref(version=1))] * 2)
    assert first == answer_of(old[0])
    assert type(second) is KeyExhausted


def test_a_key_of_several_addresses_has_one_quota() -> None:
    root = a_root(ceiling=10, addresses=(IRK, IRK + 1))
    ring = KeyRing(now=Clock())
    ring.load([root], {root[0].key_id: Counted(3)})
    results = ring.compute([ask(ref(IRK + i % 2)) for i in range(4)])
    assert results[:3] == [answer_of(root[0])] * 3
    assert type(results[3]) is KeyExhausted


def test_a_new_version_with_a_ceiling_counts_from_its_first_second() -> None:
    clock = Clock(NOON)
    old, new = a_root(1), a_root(2, ceiling=10, valid_from=NOON + 1)
    quota = Counted(1)
    ring = KeyRing(now=clock)
    ring.load([old, new], {new[0].key_id: quota})
    assert ring.compute([ask(ref())] * 2) == [answer_of(old[0])] * 2
    clock.now = NOON + 1
    first, second = ring.compute([ask(ref())] * 2)
    # Whose use was counted is who computed.
    assert first == answer_of(new[0])
    assert type(second) is KeyExhausted


def test_a_quota_that_cannot_say_refuses_its_own_tasks_only() -> None:
    class Broken:
        def take(self) -> bool:
            raise StoreUnavailable

    counted, free = a_root(ceiling=10), a_root(1, IRK + 1)
    ring = KeyRing(now=Clock())
    ring.load([counted, free], {counted[0].key_id: Broken()})
    first, second, third = ring.compute([ask(ref(IRK + 1)), ask(ref()), ask(ref(IRK + 1))])
    assert first == third == answer_of(free[0])
    assert type(second) is StoreUnavailable


def test_nobody_outside_gets_a_city_whose_key_is_counted() -> None:
    counted, free = a_root(1, ceiling=10), a_root(1, IRK + 1)
    ring = KeyRing(now=Clock())
    ring.load([counted, a_root(2), free], {counted[0].key_id: Counted(9)})
    ring.compute([ask(ref(address, version=v)) for address in (IRK, IRK + 1) for v in (0, 1)])
    for version in (0, 1, 2):
        wanted = ref(version=version).purpose
        assert ring.maybe_city(IRK, CardAlgorithm.SM4, CHENGDU, wanted) is None
    assert ring.maybe_city(IRK + 1, CardAlgorithm.SM4, CHENGDU, ref().purpose) is not None


# Two counted keys, one of them with an older version that is not, a free one, and what is refused in each way.
COUNTED: Final = (a_root(2, ceiling=100), a_root(1, IRK + 1, ceiling=100))
FREE: Final = (a_root(1), a_root(1, IRK + 2))
BATCHABLE: Final[list[tuple[SamTask, KeyHeader | type[Refusal]]]] = [
    (ask(ref()), COUNTED[0][0]),
    (ask(ref(version=2, is_verifying=True)), COUNTED[0][0]),
    (ask(ref(IRK + 1)), COUNTED[1][0]),
    (ask(ref(version=1)), FREE[0][0]),
    (ask(ref(IRK + 2)), FREE[1][0]),
    (ask(ref(IRK + 3)), KeyNotFound),
    (ask(ref(version=9)), KeyVersionRefused),
    (ask(ref(use=Use.TAC)), KeyUsageRefused),
    (CryptogramTask(ref(IRK + 2), FACTOR, b"short"), BadParameter),
]


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(st.sampled_from(BATCHABLE), max_size=8), max_size=4),
    allowed=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_counting_is_exact_keeps_the_order_and_spoils_no_other(
    batches: list[list[tuple[SamTask, KeyHeader | type[Refusal]]]], allowed: tuple[int, int]
) -> None:
    quotas = {root[0].key_id: Counted(uses) for root, uses in zip(COUNTED, allowed, strict=True)}
    ring = KeyRing(now=Clock())
    ring.load([*COUNTED, *FREE], quotas)
    left = Counter({key_id: quota.left for key_id, quota in quotas.items()})
    for batch in batches:
        results = ring.compute([task for task, _ in batch])
        assert len(results) == len(batch)
        for result, (_, wanted) in zip(results, batch, strict=True):
            if not isinstance(wanted, KeyHeader):
                assert type(result) is wanted
                continue
            if wanted.ceiling and not left[wanted.key_id]:
                assert type(result) is KeyExhausted
                continue
            left[wanted.key_id] -= bool(wanted.ceiling)
            assert result == answer_of(wanted)
        assert all(quota.left == left[key_id] for key_id, quota in quotas.items())


def test_a_use_counts_even_if_its_task_is_refused_for_another_reason() -> None:
    # Never the other way round: a count that is too low would be a ceiling that is passed.
    root = a_root(ceiling=10)
    quota = Counted(2)
    ring = KeyRing(now=Clock())
    ring.load([root], {root[0].key_id: quota})
    bad, good = ring.compute([CryptogramTask(ref(), FACTOR, b"short"), ask(ref())])
    assert type(bad) is BadParameter
    assert good == answer_of(root[0])
    assert quota.left == 0
