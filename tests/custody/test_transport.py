"""Keys under transport keys: the bytes are the vectors', nothing altered is taken, nothing gains a right on its way."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from msgspec.structs import replace

from keyd.crypto.algorithms import KEY_BYTES, Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody.actions import TransportFormat
from keyd.custody.transport import unwrap_from_transport, wrap_for_transport
from keyd.errors import (
    BadParameter,
    DomainCrossed,
    ExportRefused,
    KeyBlockRefused,
    KeyExhausted,
    KeyNotValidNow,
    KeyStateRefused,
    KeyUsageRefused,
    Refusal,
)
from keyd.keys.block import Domain, Export, KeyState, Mode, Tier, Use, read_header
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from tests.custody.world import ADDRESS, NOON, World, contents_of, kcv_of, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.keys.block import KeyHeader

SOCIAL: Final = Domain.SOCIAL
BLOCK, ECB_MAC = TransportFormat.BLOCK, TransportFormat.ECB_MAC

VECTORS: Final = Path(__file__).parents[1] / "vectors"
CASES: Final = cast(
    "list[dict[str, Any]]",
    json.loads((VECTORS / "key_transport.json").read_text(encoding="utf-8"))["cases"],
)
OPENING: Final = [case for case in CASES if case["must"] == "opens"]
WORKED: Final = cast(
    "list[dict[str, Any]]",
    json.loads((VECTORS / "worked_examples.json").read_text(encoding="utf-8"))["examples"],
)
DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "key-blocks.md").read_text(encoding="utf-8")

opening = pytest.mark.parametrize("case", OPENING, ids=lambda case: case["name"])


def loaded(case: dict[str, Any], name: str, algorithm: str) -> SecretKey:
    return SecretKey.load(Algorithm(case[algorithm]), bytes.fromhex(case[name]))


def unwrapped(case: dict[str, Any], message: bytes) -> tuple[KeyHeader | None, SecretKey]:
    transport = loaded(case, "transport_key", "transport_algorithm")
    return unwrap_from_transport(
        transport, TransportFormat(case["format"]), message, Algorithm(case["algorithm"])
    )


# --- the bytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_vector_opens_or_is_refused_as_it_says(case: dict[str, Any]) -> None:
    if case["must"] == "refused":
        with pytest.raises(KeyBlockRefused):
            unwrapped(case, bytes.fromhex(case["message"]))
        return
    header, key = unwrapped(case, bytes.fromhex(case["message"]))
    assert key.kcv().hex().upper() == case["kcv"]
    assert key.encrypt(bytes(64)) == loaded(case, "key", "algorithm").encrypt(bytes(64))
    assert header == (read_header(bytes.fromhex(case["header"])) if case["header"] else None)


@pytest.mark.parametrize(
    "case", [case for case in OPENING if case["header"]], ids=lambda case: case["name"]
)
def test_keyd_makes_the_bytes_of_the_vector(case: dict[str, Any]) -> None:
    made = wrap_for_transport(
        loaded(case, "transport_key", "transport_algorithm"),
        TransportFormat(case["format"]),
        read_header(bytes.fromhex(case["header"])),
        loaded(case, "key", "algorithm"),
        lambda _: bytes.fromhex(case["nonce"]),
    )
    assert made.hex().upper() == case["message"]


def flips(octets: bytes) -> Iterator[bytes]:
    for i in range(len(octets)):
        for change in (1, 0x80, 0xFF):
            yield octets[:i] + bytes([octets[i] ^ change]) + octets[i + 1 :]
    yield from (octets[:-1], octets + b"\0", b"", octets * 2, b"\xc0" * 5000)


@opening
def test_nothing_altered_is_taken(case: dict[str, Any]) -> None:
    for altered in flips(bytes.fromhex(case["message"])):
        with pytest.raises(KeyBlockRefused):
            unwrapped(case, altered)


@opening
def test_nothing_is_taken_under_another_key_in_another_format_or_as_another_algorithm(
    case: dict[str, Any],
) -> None:
    message = bytes.fromhex(case["message"])
    for algorithm in (Algorithm.SM4, Algorithm.TDES):
        other = SecretKey.load(algorithm, secrets.token_bytes(16))
        for transport_format in TransportFormat:
            with pytest.raises(KeyBlockRefused):
                unwrap_from_transport(
                    other, transport_format, message, Algorithm(case["algorithm"])
                )
    another = ECB_MAC if case["format"] == BLOCK else BLOCK
    with pytest.raises(KeyBlockRefused):
        unwrapped(case | {"format": another}, message)


def test_the_document_takes_two_vectors_apart_byte_by_byte() -> None:
    for name in ("an SM4 key in a key block", "a 3DES key under a 3DES key"):
        case = next(case for case in CASES if case["name"] == name)
        _, found, rest = DOCUMENT.partition(f'The vector "{name}"')
        assert found, name
        lines = [line.strip() for line in rest.split("\n\n")[1].splitlines()]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
        octets = [bytes.fromhex(row[1]) for row in cells]
        at = 0
        for row, part in zip(cells, octets, strict=True):
            assert int(row[0]) == at
            at += len(part)
        assert b"".join(octets).hex().upper() == case["message"]


# --- two custodies


class Two:
    """A ministry and a province that have one transport key in common."""

    def __init__(self, algorithm: Algorithm = Algorithm.SM4) -> None:
        self.ministry, self.province = World(), World(tier=Tier.PROVINCIAL)
        shared = secrets.token_bytes(16)
        fields: dict[str, Any] = {
            "use": Use.TRANSPORT,
            "algorithm": algorithm,
            "tier": Tier.PROVINCIAL,
        }
        self.there = self.ministry.load_key(shared, **fields)
        self.here = self.province.load_key(shared, **fields)

    def close(self) -> None:
        self.ministry.close()
        self.province.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    """One pair for the module: their keys grow in number, and no test minds."""
    made = Two()
    yield made
    made.close()


def cryptogram(world: World, key_id: bytes, region: str = "510100") -> bytes | Refusal:
    """What a card would be answered, by the newest key at SOCIAL's address."""
    header = world.header(key_id)
    ring = KeyRing([], now=world.clock)
    ring.load(contents_of(world.vault).loaded_keys, world.vault.quotas)
    card = CardAlgorithm.SM4 if header.algorithm is Algorithm.SM4 else CardAlgorithm.DES
    wanted = purpose(header.use, version=header.version)
    ref = CardKeyRef(header.addresses[0], card, Region(region), bytes(range(8)), wanted)
    (answer,) = ring.compute([CryptogramTask(ref, bytes(range(8)), bytes(range(8, 16)))])
    return answer


def arrived(
    world: World, message: bytes, kcv: bytes, kek: bytes, fmt: TransportFormat, **fields: Any
) -> bytes:
    wanted = spec(SOCIAL, **fields)
    done = world.decide(SOCIAL, act.ImportWrapped(wanted, kek, fmt, message, kcv))
    return done.result["key_id"]


@pytest.mark.parametrize("transport", [Algorithm.SM4, Algorithm.TDES], ids=str)
@pytest.mark.parametrize("fmt", list(TransportFormat))
@pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES], ids=str)
def test_a_key_answers_the_same_where_it_arrives(
    transport: Algorithm, fmt: TransportFormat, algorithm: Algorithm
) -> None:
    pair = Two(transport)
    material = secrets.token_bytes(KEY_BYTES[algorithm])
    key_id = pair.ministry.load_key(material, algorithm=algorithm, export=Export.WRAPPED)
    can = (fmt is BLOCK and transport is Algorithm.SM4) or (
        fmt is ECB_MAC and not (transport is Algorithm.SM4 and algorithm is Algorithm.DES)
    )
    if not can:
        with pytest.raises(BadParameter):
            pair.ministry.decide(SOCIAL, act.ExportKey(key_id, pair.there, fmt))
        pair.close()
        return
    left = pair.ministry.decide(SOCIAL, act.ExportKey(key_id, pair.there, fmt)).result
    assert left["kcv"] == kcv_of(material, algorithm)
    assert material not in left["wrapped"]
    here = arrived(pair.province, left["wrapped"], left["kcv"], pair.here, fmt, algorithm=algorithm)
    # It arrives pre-active, whatever it was there.
    assert pair.province.header(here).state is KeyState.PRE_ACTIVE
    pair.province.decide(SOCIAL, act.Activate(here))
    answer = cryptogram(pair.province, here)
    assert isinstance(answer, bytes)
    assert answer == cryptogram(pair.ministry, key_id)
    pair.close()


# Below a city's root there are only cards.
WITH_CHILDREN: Final = [example for example in WORKED if example["levels"] > 1]


@pytest.mark.parametrize("example", WITH_CHILDREN, ids=lambda e: f"{e['algorithm']}-{e['levels']}")
@pytest.mark.parametrize("fmt", list(TransportFormat))
def test_a_child_is_the_worked_examples_key_one_level_down(
    example: dict[str, Any], fmt: TransportFormat
) -> None:
    """母卡: what the city imports makes the same card keys as the root that stayed where it was."""
    algorithm = Algorithm(example["algorithm"])
    pair = Two()
    root = pair.ministry.load_key(
        bytes.fromhex(example["root"]),
        algorithm=algorithm,
        levels=example["levels"],
        export=Export.CHILD,
    )
    child = act.ExportChild(root, example["region"], pair.there, fmt)
    left = pair.ministry.decide(SOCIAL, child).result
    fields: dict[str, Any] = {
        "algorithm": algorithm,
        "levels": example["levels"] - 1,
        "tier": Tier.PROVINCIAL,
    }
    here = arrived(pair.province, left["wrapped"], left["kcv"], pair.here, fmt, **fields)
    pair.province.decide(SOCIAL, act.Activate(here))
    ring = KeyRing([], now=pair.province.clock)
    ring.load(contents_of(pair.province.vault).loaded_keys)
    card = CardAlgorithm.SM4 if algorithm is Algorithm.SM4 else CardAlgorithm.DES
    ref = CardKeyRef(
        ADDRESS[SOCIAL],
        card,
        Region(example["region"]),
        bytes.fromhex(example["historical"])[-8:],
        purpose(Use.INTERNAL),
    )
    task = CryptogramTask(
        ref, bytes.fromhex(example["session_factor"]), bytes.fromhex(example["challenge"])
    )
    (answer,) = ring.compute([task])
    assert isinstance(answer, bytes)
    assert answer.hex().upper() == example["cryptogram"]
    # And it goes no further.
    assert pair.province.header(here).export is Export.NEVER
    with pytest.raises(ExportRefused):
        pair.province.decide(SOCIAL, act.ExportKey(here, pair.here, fmt))
    pair.close()


def test_a_child_of_a_key_that_may_leave_whole_may_have_children_and_no_more(two: Two) -> None:
    root = two.ministry.make_key(export=Export.WRAPPED, levels=3)
    left = two.ministry.decide(SOCIAL, act.ExportChild(root, "510100", two.there, BLOCK)).result
    fields: dict[str, Any] = {"levels": 2, "tier": Tier.PROVINCIAL}
    for export, may in ((Export.WRAPPED, False), (Export.CHILD, True)):
        if may:
            arrived(
                two.province, left["wrapped"], left["kcv"], two.here, BLOCK, export=export, **fields
            )
            continue
        with pytest.raises(KeyBlockRefused, match="allows the key more"):
            arrived(
                two.province, left["wrapped"], left["kcv"], two.here, BLOCK, export=export, **fields
            )


@pytest.mark.parametrize("export", list(Export))
def test_a_key_leaves_as_its_header_allows(two: Two, export: Export) -> None:
    key_id = two.ministry.make_key(export=export)
    for action, may in (
        (act.ExportKey(key_id, two.there, BLOCK), export is Export.WRAPPED),
        (act.ExportChild(key_id, "510100", two.there, BLOCK), export is not Export.NEVER),
    ):
        if may:
            two.ministry.decide(SOCIAL, action)
            continue
        with pytest.raises(ExportRefused):
            two.ministry.decide(SOCIAL, action)


@pytest.mark.parametrize("region", ["510100"])
def test_a_citys_root_has_no_child(two: Two, region: str) -> None:
    key_id = two.ministry.make_key(export=Export.WRAPPED, levels=1)
    with pytest.raises(ExportRefused, match="only cards"):
        two.ministry.decide(SOCIAL, act.ExportChild(key_id, region, two.there, BLOCK))


def test_a_transport_key_does_not_travel_wrapped(two: Two) -> None:
    other = two.ministry.make_key(use=Use.TRANSPORT, name="K2", export=Export.WRAPPED)
    for key_id in (other, two.there):
        with pytest.raises(ExportRefused):
            two.ministry.decide(SOCIAL, act.ExportKey(key_id, two.there, BLOCK))


@pytest.mark.parametrize("state", ["compromised", "destroyed"])
def test_a_key_that_somebody_may_know_or_that_is_to_go_does_not_leave(two: Two, state: str) -> None:
    key_id = two.ministry.make_key(export=Export.WRAPPED)
    step = act.Compromise(key_id) if state == "compromised" else act.Destroy(key_id, 1)
    two.ministry.decide(SOCIAL, step)
    for action in (
        act.ExportKey(key_id, two.there, BLOCK),
        act.ExportChild(key_id, "510100", two.there, BLOCK),
    ):
        with pytest.raises(KeyStateRefused):
            two.ministry.decide(SOCIAL, action)


# --- transport keys


@pytest.mark.parametrize("mode", [Mode.WRAP, Mode.UNWRAP])
def test_a_transport_key_goes_in_its_own_directions(world: World, mode: Mode) -> None:
    key_id = world.make_key(export=Export.WRAPPED)
    both = world.make_key(use=Use.TRANSPORT, name="both")
    one = world.make_key(use=Use.TRANSPORT, name="one", modes=(mode,))
    left = world.decide(SOCIAL, act.ExportKey(key_id, both, BLOCK)).result
    with pytest.raises(KeyUsageRefused):
        world.propose(
            SOCIAL,
            act.ExportKey(key_id, one, BLOCK)
            if mode is Mode.UNWRAP
            else act.ImportWrapped(spec(), one, BLOCK, left["wrapped"], left["kcv"]),
        )


def test_a_cards_root_is_no_transport_key(world: World) -> None:
    key_id = world.make_key(export=Export.WRAPPED)
    with pytest.raises(KeyUsageRefused):
        world.propose(SOCIAL, act.ExportKey(key_id, world.make_key(), BLOCK))


@pytest.mark.parametrize("state", ["pre-active", "deactivated", "compromised", "destroyed", "gone"])
def test_only_an_active_transport_key_is_used(two: Two, state: str) -> None:
    key_id = two.ministry.make_key(export=Export.WRAPPED)
    kek = two.ministry.make_key(use=Use.TRANSPORT, name="K2", active=state != "pre-active")
    steps: dict[str, act.Action] = {
        "deactivated": act.Deactivate(kek),
        "compromised": act.Compromise(kek),
        "destroyed": act.Destroy(kek, 1),
        "gone": act.Destroy(kek, 0),
    }
    proposal = None
    if state != "pre-active":
        # While it was active, it could be proposed; it is looked at again when it is used.
        proposal = two.ministry.propose(SOCIAL, act.ExportKey(key_id, kek, BLOCK))
        two.ministry.decide(SOCIAL, steps[state])
    with pytest.raises(KeyStateRefused):
        two.ministry.propose(SOCIAL, act.ExportKey(key_id, kek, BLOCK))
    if proposal is not None:
        with pytest.raises(KeyStateRefused):
            two.ministry.approve(proposal)


def test_a_transport_key_is_used_while_it_is_valid(world: World) -> None:
    key_id = world.make_key(export=Export.WRAPPED)
    kek = world.make_key(use=Use.TRANSPORT, valid_from=NOON + 10, valid_until=NOON + 20)
    export = act.ExportKey(key_id, kek, BLOCK)
    for now, may in ((NOON + 9, False), (NOON + 10, True), (NOON + 19, True), (NOON + 20, False)):
        world.clock.now = now
        if may:
            proposal = world.propose(SOCIAL, export)
        else:
            with pytest.raises(KeyNotValidNow):
                world.propose(SOCIAL, export)
    with pytest.raises(KeyNotValidNow):
        world.approve(proposal)


def test_a_transport_keys_ceiling_counts_each_use_in_both_directions(world: World) -> None:
    key_id = world.make_key(export=Export.WRAPPED)
    kek = world.make_key(use=Use.TRANSPORT, ceiling=3, warn_at=2)
    assert kek not in world.vault.quotas
    export = act.ExportKey(key_id, kek, BLOCK)
    left = world.decide(SOCIAL, export).result
    material = act.ImportWrapped(spec(addresses=(0x101,)), kek, BLOCK, left["wrapped"], left["kcv"])
    with pytest.raises(KeyBlockRefused):
        world.decide(SOCIAL, material)
    # What was refused was no use.
    assert world.header(kek).uses == 1
    world.decide(SOCIAL, export)
    world.restart()
    world.decide(SOCIAL, export)
    assert world.header(kek).uses == 3
    with pytest.raises(KeyExhausted):
        world.propose(SOCIAL, export)
    world.decide(SOCIAL, act.Permit(kek, ceiling=4))
    world.decide(SOCIAL, export)
    with pytest.raises(KeyExhausted):
        world.decide(SOCIAL, export)


# --- what a proposal may make of a block

LOOSER: Final[list[dict[str, Any]]] = [
    {"modes": (Mode.PRODUCE, Mode.VERIFY)},
    {"modes": ()},
    {"valid_until": 0},
    {"valid_until": NOON + 1001},
    {"valid_from": 0},
    {"valid_from": NOON - 1},
    {"ceiling": 0, "warn_at": 0},
    {"ceiling": 101},
    {"export": Export.WRAPPED},
]
ANOTHER: Final[list[dict[str, Any]]] = [
    {"tier": Tier.CITY},
    {"name": "STK"},
    {"algorithm": Algorithm.TDES},
    {"use": Use.EXTERNAL},
    {"addresses": (0x0171,)},
    {"addresses": (0x0170, 0x0171)},
    {"levels": 2},
    {"set": 2},
]
STRICTER: Final[list[dict[str, Any]]] = [
    {},
    {"valid_until": NOON + 999},
    {"valid_from": NOON + 1},
    {"ceiling": 99},
    {"export": Export.NEVER},
]


def limited(**changed: Any) -> dict[str, Any]:
    """A key with every restriction that a block can carry."""
    values: dict[str, Any] = {
        "modes": (Mode.VERIFY,),
        "valid_from": NOON,
        "valid_until": NOON + 1000,
        "ceiling": 100,
        "warn_at": 90,
        "export": Export.CHILD,
    }
    return values | changed


@pytest.mark.parametrize("fmt", list(TransportFormat))
@pytest.mark.parametrize(
    ("changed", "is_taken"),
    [*((c, False) for c in LOOSER), *((c, False) for c in ANOTHER), *((c, True) for c in STRICTER)],
    ids=str,
)
def test_a_key_gains_nothing_and_becomes_nothing_else_by_travelling(
    two: Two, fmt: TransportFormat, changed: dict[str, Any], is_taken: bool
) -> None:
    material = secrets.token_bytes(16)
    transport = contents_of(two.ministry.vault).keys[two.there].key
    assert transport is not None
    key_id = two.ministry.make_key(**limited())
    header = replace(two.ministry.header(key_id), kcv=kcv_of(material), state=KeyState.PRE_ACTIVE)
    key = SecretKey.load(Algorithm.SM4, material)
    message = wrap_for_transport(transport, fmt, header, key, secrets.token_bytes)
    before = len(contents_of(two.province.vault).keys)
    if is_taken:
        arrived(two.province, message, header.kcv, two.here, fmt, **limited(**changed))
        return
    with pytest.raises((KeyBlockRefused, DomainCrossed)):
        arrived(two.province, message, header.kcv, two.here, fmt, **limited(**changed))
    assert len(contents_of(two.province.vault).keys) == before


@pytest.mark.parametrize("domain", [Domain.FINANCE, Domain.ACSE, Domain.LOCAL])
@pytest.mark.parametrize("fmt", list(TransportFormat))
def test_a_block_of_another_domain_is_refused_though_the_transport_key_is_the_same(
    two: Two, domain: Domain, fmt: TransportFormat
) -> None:
    """Two domains of two organisations could have been given one transport key by mistake."""
    key_id = two.ministry.make_key(domain, export=Export.WRAPPED, addresses=(ADDRESS[domain],))
    held = contents_of(two.ministry.vault).keys[key_id]
    transport = contents_of(two.ministry.vault).keys[two.there].key
    assert held.key is not None
    assert transport is not None
    message = wrap_for_transport(transport, fmt, held.header, held.key, secrets.token_bytes)
    with pytest.raises(DomainCrossed):
        arrived(two.province, message, held.header.kcv, two.here, fmt, addresses=(ADDRESS[domain],))


def test_the_check_value_that_was_announced_is_the_keys(two: Two) -> None:
    key_id = two.ministry.make_key(export=Export.WRAPPED)
    left = two.ministry.decide(SOCIAL, act.ExportKey(key_id, two.there, BLOCK)).result
    with pytest.raises(KeyBlockRefused, match="announced"):
        arrived(two.province, left["wrapped"], bytes(3), two.here, BLOCK)
