"""What a PSAM answers to a card task is the ring's answer to the byte, and what it cannot do it refuses clearly."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import (
    AlgorithmNotSupported,
    KeyNotFound,
    KeyStateRefused,
    KeyUsageRefused,
    KeyVersionRefused,
    PsamDeclined,
    Refusal,
    RemoteProtocolError,
)
from keyd.iso7816 import SW, CommandApdu, converse
from keyd.keys.block import KeyHeader, KeyPlace, KeyState, Use
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.roots import active_root, synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, ProtectTask, TacTask, purpose
from keyd.psam import load_psam_profiles
from keyd.psam.card_tasks import dialogue_of, place_of_task, require_possible
from keyd.psam.level_index import Place
from tests.psam.bench import ALGORITHMS, PROFILES, make_both, synthetic_keys
from tests.psam.sams import PROFILE, RINGS_ALONE, PsamSam

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyd.keys.sam import SamTask

CARDS: Final = newest(load_profiles())
BOTH: Final = (CardAlgorithm.DES, CardAlgorithm.SM4)

# Those of a PSAM that serve whoever asks: the first set, and neither purchases nor TACs.
SERVED: Final = [k for k in CARDS.keys.values() if k.set == 1 and k.use not in RINGS_ALONE]

IRK, RKSSSE, STK, DPK, DLK, DTK = 0x0170, 0x004C, 0x0173, 0x017F, 0x00B2, 0x00B5

FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")
CHENGDU, HANGZHOU = Region("510100"), Region("330102")


def entries(levels: int, **changes: Any) -> list[tuple[KeyHeader, SecretKey]]:
    """The synthetic roots, all at one level, and RKSSSE changed."""
    made = synthetic(CARDS.key_places(BOTH))
    return [
        (
            replace(header, levels=levels, **(changes if header.addresses == (RKSSSE,) else {})),
            key,
        )
        for header, key in made
    ]


@pytest.fixture(scope="module")
def rings() -> dict[int, tuple[KeyRing, PsamSam]]:
    """Ring and PSAM with the same keys, by the keys' level."""
    made = {levels: KeyRing(entries(levels)) for levels in (1, 2, 3)}
    return {levels: (ring, PsamSam(ring, CARDS.keys)) for levels, ring in made.items()}


def ref(
    address: int,
    algorithm: CardAlgorithm = CardAlgorithm.SM4,
    use: Use | None = None,
    **wanted: Any,
) -> CardKeyRef:
    use = use or CARDS.keys[address].use
    return CardKeyRef(
        address, algorithm, CHENGDU, bytes.fromhex("8649519930000BEE"), purpose(use, **wanted)
    )


def place_of(task: SamTask) -> Place:
    place = place_of_task(task, CARDS.keys)
    assert place is not None
    return place


@st.composite
def tasks(draw: st.DrawFn) -> SamTask:
    """Any task over any key that a PSAM serves; one in a few is badly formed."""
    key = draw(st.sampled_from(SERVED))
    algorithm = draw(st.sampled_from(BOTH))
    region = draw(st.sampled_from([CHENGDU, HANGZHOU]))
    wanted = purpose(key.use, is_verifying=draw(st.booleans()))
    diversifier = draw(st.binary(min_size=8, max_size=8))
    card = CardKeyRef(key.address, algorithm, region, diversifier, wanted)
    lengths = [8, 8, 8, 4, 16, 5]
    factor = draw(st.binary(min_size=16, max_size=16))[: draw(st.sampled_from(lengths))]
    kinds: list[type[SamTask]] = [CryptogramTask, MacTask, ProtectTask]
    if key.psam_type == 0x07:
        kinds = [CryptogramTask]  # its session keys encrypt and make no MAC
    kind = draw(st.sampled_from(kinds))
    if kind is CryptogramTask:
        challenge = draw(st.binary(min_size=8, max_size=8))
        return CryptogramTask(card, factor, challenge[: draw(st.sampled_from([8, 8, 8, 7]))])
    if kind is MacTask:
        # Longer than any MAC of a command, so that there are first, next and last parts.
        return MacTask(card, factor, draw(st.binary(max_size=600)))
    header = draw(st.binary(min_size=4, max_size=4))[: draw(st.sampled_from([4, 4, 4, 3]))]
    return ProtectTask(card, factor, header, draw(st.binary(max_size=255)), draw(st.booleans()))


def same(one: bytes | Refusal, other: bytes | Refusal) -> bool:
    if isinstance(one, Refusal):
        return type(one) is type(other) and str(one) == str(other)
    return one == other


@settings(deadline=None, max_examples=300)
@given(batch=st.lists(tasks(), min_size=1, max_size=6))
def test_a_psam_answers_as_the_ring_does(
    rings: dict[int, tuple[KeyRing, PsamSam]], batch: list[SamTask]
) -> None:
    for ring, psam in rings.values():
        for one, other in zip(ring.compute(batch), psam.compute(batch), strict=True):
            assert same(one, other), (one, other)


def test_every_key_that_is_served_is_served_at_every_level(
    rings: dict[int, tuple[KeyRing, PsamSam]],
) -> None:
    for levels, (ring, psam) in rings.items():
        for key in SERVED:
            for algorithm in BOTH:
                task = CryptogramTask(ref(key.address, algorithm), FACTOR, CHALLENGE)
                assert psam.facts.levels[place_of(task)] == levels
                assert psam.compute([task]) == ring.compute([task])


@pytest.mark.parametrize("length", [*range(20), 55, 56, 63, 64, 103, 104, 111, 112, 239, 247, 251])
@pytest.mark.parametrize("encrypt", [False, True])
def test_a_command_of_any_length_is_protected_as_the_ring_does(
    rings: dict[int, tuple[KeyRing, PsamSam]], length: int, encrypt: bool
) -> None:
    ring, psam = rings[3]
    for algorithm in BOTH:
        # The DES STK is single length, the other maintenance keys are not.
        for address in (STK, 0x0094):
            header, data = b"\x04\xd6\x81\x02", bytes(range(length))
            task = ProtectTask(ref(address, algorithm), FACTOR, header, data, encrypt)
            (ours,), (theirs,) = psam.compute([task]), ring.compute([task])
            assert same(ours, theirs), (ours, theirs)


@pytest.mark.parametrize("environment", ["DES", "SM4"])
def test_the_naive_psam_agrees(environment: str) -> None:
    """The applet shares the ring's arithmetic; the naive PSAM shares nothing with either."""
    algorithm = ALGORITHMS[environment]
    # What of the bench's keys is at a logical address: the rest of the table is the ring's.
    found = {
        (kind, key_id): (levels, material)
        for (kind, key_id, name), (levels, material) in synthetic_keys().items()
        if name == environment
    }
    checked = 0
    for key in SERVED:
        if (key.psam_type, key.psam_id) not in found:
            continue
        levels, material = found[key.psam_type, key.psam_id]
        secret = SecretKey.load(key.algorithm(algorithm), material)
        place = KeyPlace(key.address, key.name, key.set, key.algorithm(algorithm), key.use)
        ring = KeyRing([(active_root(place, levels, secret, bytes(16), "a test"), secret)])
        made: list[SamTask] = [CryptogramTask(ref(key.address, algorithm), FACTOR, CHALLENGE)]
        if key.psam_type == 0x08:
            made += [
                ProtectTask(ref(key.address, algorithm), FACTOR, b"\x04\xd6\0\0", data, encrypt)
                for data in (b"", bytes(range(9)), bytes(range(150)))
                for encrypt in (False, True)
            ]
        for task in made:
            both = make_both("social-security", environment)
            answer = converse(dialogue_of(task, place_of(task), levels, PROFILE), both.transmit)
            assert [answer] == ring.compute([task])
            checked += 1
    assert checked >= 9


# --- whole in itself


class Wire:
    """The way to an applet: it keeps what went over it, and may answer some commands itself."""

    def __init__(
        self, psam: PsamSam, answer: Callable[[CommandApdu], bytes | None] = lambda _: None
    ) -> None:
        self.transmitted: list[bytes] = []
        self._psam = psam
        self._answer = answer

    def transmit(self, message: bytes) -> bytes:
        self.transmitted.append(message)
        answer = self._answer(CommandApdu.parse_untrusted(message))
        return self._psam.applet.transmit(message) if answer is None else answer


def run(task: SamTask, wire: Wire, levels: int = 3) -> bytes:
    return converse(dialogue_of(task, place_of(task), levels, PROFILE), wire.transmit)


def test_a_task_does_not_depend_on_what_the_psam_did_before(
    rings: dict[int, tuple[KeyRing, PsamSam]],
) -> None:
    ring, psam = rings[3]
    before = [
        "00A40000023F00",
        "00A4040006D15600000590",
        "BFEC000001 51",
        "00A4000002DDF1",
        "0084000008",
    ]
    for command in before:
        for algorithm in BOTH:
            psam.applet.transmit(bytes.fromhex(command))
            task = ProtectTask(
                ref(STK, algorithm), FACTOR, b"\x84\x24\0\1", b"\x12\x34", encrypt=True
            )
            assert psam.compute([task]) == ring.compute([task])


def test_no_key_is_left_delivered(rings: dict[int, tuple[KeyRing, PsamSam]]) -> None:
    _, psam = rings[3]
    for task in (
        CryptogramTask(ref(IRK), FACTOR, CHALLENGE),
        MacTask(ref(DLK), FACTOR, b"data"),
        ProtectTask(ref(STK), FACTOR, b"\x84\x24\0\1", b"\x12\x34", encrypt=True),
    ):
        psam.compute([task])
        assert psam.applet.transmit(bytes.fromhex("80FA000010") + bytes(16)) == b"\x69\x01"


def test_a_cryptogram_takes_four_commands_of_the_documented_form(
    rings: dict[int, tuple[KeyRing, PsamSam]],
) -> None:
    wire = Wire(rings[3][1])
    run(CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE), wire)

    factors = "8649519930000BEE" + b"510100sx510000sh".hex().upper()
    assert [message.hex().upper() for message in wire.transmitted] == [
        "00A404000F7378332E73682EC9E7BBE1B1A3D5CF00",
        "00A4040006D1560000059000",
        f"BFDE670A28{factors}01020304050607080000000000000000",
        "80FA000010111213141516171800000000000000" + "0010",
    ]


# --- what a PSAM cannot


CANNOT: Final[list[tuple[SamTask, type[Refusal], str]]] = [
    (TacTask(ref(DTK), b"data"), KeyUsageRefused, "TAC"),
    (MacTask(ref(DPK), FACTOR, b"data"), KeyUsageRefused, "transaction number of its own"),
    (MacTask(ref(IRK), FACTOR, b"data"), KeyUsageRefused, "does not mac with keys of type 07"),
    (
        ProtectTask(ref(IRK), FACTOR, bytes(4), b"", encrypt=True),
        KeyUsageRefused,
        "does not mac with keys of type 07",
    ),
    (CryptogramTask(ref(IRK, version=2), FACTOR, CHALLENGE), KeyVersionRefused, "one version"),
]


@pytest.mark.parametrize(("task", "refusal", "sentence"), CANNOT)
def test_what_a_psam_cannot_do_is_refused_before_one_is_asked(
    task: SamTask, refusal: type[Refusal], sentence: str
) -> None:
    with pytest.raises(refusal, match=sentence):
        dialogue_of(task, place_of(task), 3, PROFILE)


def test_a_dialect_without_session_keys_serves_no_card_task() -> None:
    task = CryptogramTask(ref(IRK), FACTOR, CHALLENGE)
    with pytest.raises(KeyUsageRefused, match="no session key"):
        require_possible(task, place_of(task), PROFILES["pboc"])


def test_a_key_of_another_use_set_or_address_has_no_place() -> None:
    with pytest.raises(KeyUsageRefused, match="IRK at 0170 is for internal, not external"):
        place_of_task(CryptogramTask(ref(IRK, use=Use.EXTERNAL), FACTOR, CHALLENGE), CARDS.keys)
    second = CryptogramTask(ref(0x0171), FACTOR, CHALLENGE)
    assert place_of_task(second, CARDS.keys) is None
    nowhere = CryptogramTask(ref(0xFFFF, use=Use.INTERNAL), FACTOR, CHALLENGE)
    assert place_of_task(nowhere, CARDS.keys) is None


@pytest.mark.parametrize(
    ("sw", "refusal"),
    [
        (0x6A88, KeyNotFound),
        (0x9403, KeyNotFound),
        (0x6A81, AlgorithmNotSupported),
        (0x6985, KeyStateRefused),
        (0x6A80, PsamDeclined),
        (0x9303, PsamDeclined),
        (0x6F00, PsamDeclined),
    ],
)
def test_a_delivery_that_is_refused_is_refused_in_the_rings_words(
    rings: dict[int, tuple[KeyRing, PsamSam]], sw: int, refusal: type[Refusal]
) -> None:
    wire = Wire(rings[3][1], lambda c: sw.to_bytes(2, "big") if c.ins == 0xDE else None)
    with pytest.raises(refusal, match=f"004C: INS DE was answered {sw:04X}"):
        run(CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE), wire)


def test_a_psam_without_the_environment_has_not_the_algorithm(
    rings: dict[int, tuple[KeyRing, PsamSam]],
) -> None:
    wire = Wire(rings[3][1], lambda c: b"\x6a\x82" if c.ins == 0xA4 else None)
    with pytest.raises(AlgorithmNotSupported):
        run(CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE), wire)


@pytest.mark.parametrize("sw", [SW.KEY_NOT_FOUND, SW.COMMAND_NOT_ACCEPTED, 0x6F00])
def test_a_psam_that_does_not_compute_has_declined(
    rings: dict[int, tuple[KeyRing, PsamSam]], sw: int
) -> None:
    wire = Wire(rings[3][1], lambda c: sw.to_bytes(2, "big") if c.ins == 0xFA else None)
    with pytest.raises(PsamDeclined, match=f"INS FA was answered {sw:04X}"):
        run(CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE), wire)


@pytest.mark.parametrize("answer", [b"", bytes(8), bytes(17), bytes(32)])
def test_an_answer_of_another_length_is_no_result(
    rings: dict[int, tuple[KeyRing, PsamSam]], answer: bytes
) -> None:
    wire = Wire(rings[3][1], lambda c: answer + b"\x90\0" if c.ins == 0xFA else None)
    for task in (
        CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE),
        MacTask(ref(DLK), FACTOR, b"data"),
        ProtectTask(ref(STK), FACTOR, bytes(4), b"\x12\x34", encrypt=True),
    ):
        with pytest.raises(RemoteProtocolError, match=f"answered {len(answer)} bytes"):
            run(task, wire)


def test_a_psam_that_gives_the_whole_block_of_a_mac_is_a_profile(
    rings: dict[int, tuple[KeyRing, PsamSam]], tmp_path: Path
) -> None:
    ring, psam = rings[3]
    shipped = resources.files("keyd.psam") / "profiles" / "social-security.toml"
    (tmp_path / "social-security.toml").write_bytes(shipped.read_bytes())
    variant = 'name = "variant"\nextends = "social-security.toml"\n[cipher]\nmac = "block"\n'
    # An odd limit: parts are whole blocks all the same.
    (tmp_path / "variant.toml").write_text(variant + "most_bytes_8 = 45\nmost_bytes_16 = 47\n")
    whole = PsamSam(ring, CARDS.keys, load_psam_profiles(tmp_path)["variant"])
    for algorithm in BOTH:
        task = MacTask(ref(DLK, algorithm), FACTOR, bytes(range(200)))
        assert whole.compute([task]) == psam.compute([task]) == ring.compute([task])


def test_a_key_that_must_not_be_used_is_refused_as_such() -> None:
    ring = KeyRing(entries(3))
    psam = PsamSam(ring, CARDS.keys)
    task = CryptogramTask(ref(RKSSSE), FACTOR, CHALLENGE)
    ring.load(entries(3, state=KeyState.COMPROMISED))
    (refused,) = psam.compute([task])
    assert isinstance(refused, KeyStateRefused)
