"""A key's life: every step from every state, the edges of its waiting period, versions, tiers, what the ring says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.custody import actions as act
from keyd.errors import (
    AlgorithmNotSupported,
    BadParameter,
    DomainCrossed,
    KeyBlockRefused,
    KeyNotFound,
    KeyNotValidNow,
    KeyStateRefused,
    KeyVersionRefused,
    Refusal,
    RoleMissing,
)
from keyd.keys.block import Domain, Export, KeyState, Mode, Tier, Use
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.sam import CardKeyRef, purpose
from tests.custody.world import ADDRESS, DAY, NOON, World, contents_of, envelope, kcv_of, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOCIAL: Final = Domain.SOCIAL

ACTIONS: Final[dict[str, Callable[[bytes], act.Action]]] = {
    "activate": act.Activate,
    "deactivate": act.Deactivate,
    "compromise": act.Compromise,
    "destroy": lambda key_id: act.Destroy(key_id, 1),
    "destroy at once": lambda key_id: act.Destroy(key_id, 0),
    "restore": act.Restore,
}

# How a test gets a key into a state.
STATES: Final = {
    "pre-active": [],
    "active": ["activate"],
    "deactivated": ["activate", "deactivate"],
    "compromised": ["compromise"],
    "destroyed": ["destroy"],
    "destroyed, once compromised": ["compromise", "destroy"],
    "gone": ["destroy at once"],
}

# The whole table, as docs/architecture and lifecycle.py draw it; what is not here is refused.
LEADS: Final = {
    ("pre-active", "activate"): "active",
    ("pre-active", "compromise"): "compromised",
    ("pre-active", "destroy"): "destroyed",
    ("pre-active", "destroy at once"): "gone",
    ("active", "deactivate"): "deactivated",
    ("active", "compromise"): "compromised",
    ("active", "destroy"): "destroyed",
    ("active", "destroy at once"): "gone",
    ("deactivated", "activate"): "active",
    ("deactivated", "compromise"): "compromised",
    ("deactivated", "destroy"): "destroyed",
    ("deactivated", "destroy at once"): "gone",
    ("compromised", "destroy"): "destroyed, once compromised",
    ("compromised", "destroy at once"): "gone",
    ("destroyed", "restore"): "deactivated",
    ("destroyed, once compromised", "restore"): "compromised",
}


def ring_of(world: World) -> KeyRing:
    ring = KeyRing([], now=world.clock)
    ring.load(contents_of(world.vault).loaded_keys, world.vault.quotas)
    return ring


def answering(
    world: World, version: int = 0, address: int = ADDRESS[SOCIAL], *, is_verifying: bool = False
) -> int:
    wanted = purpose(Use.INTERNAL, is_verifying=is_verifying, version=version)
    ref = CardKeyRef(address, CardAlgorithm.SM4, Region("510100"), bytes(8), wanted)
    return ring_of(world).answering(ref).version


def where(world: World, key_id: bytes) -> str:
    held = contents_of(world.vault).keys[key_id]
    if held.key is None:
        assert held.header.state is KeyState.DESTROYED
        return "gone"
    if held.header.state is KeyState.DESTROYED and held.header.was_compromised:
        return "destroyed, once compromised"
    return held.header.state.value


@pytest.mark.parametrize(("state", "action"), list(itertools.product(STATES, ACTIONS)))
def test_every_step_from_every_state_is_the_tables_or_refused(
    world: World, state: str, action: str
) -> None:
    key_id = world.make_key(active=False)
    for way in STATES[state]:
        world.decide(SOCIAL, ACTIONS[way](key_id))
    assert where(world, key_id) == state
    before = contents_of(world.vault).keys[key_id].header
    leads = LEADS.get((state, action))
    if leads is None:
        with pytest.raises(KeyStateRefused):
            world.decide(SOCIAL, ACTIONS[action](key_id))
        assert contents_of(world.vault).keys[key_id].header == before
        return
    world.clock.now += 5
    world.decide(SOCIAL, ACTIONS[action](key_id))
    assert where(world, key_id) == leads
    after = world.header(key_id)
    assert (after.changed_at, after.revision) == (world.clock.now, before.revision + 1)
    # What it is never changes with its life.
    for name in ("key_id", "kcv", "use", "modes", "levels", "version", "addresses", "export"):
        assert getattr(after, name) == getattr(before, name)
    world.restart()
    assert where(world, key_id) == leads


@pytest.mark.parametrize("moment", [-1, 0, 1])
def test_a_destroyed_key_comes_back_until_the_last_second_of_its_waiting_period(
    world: World, moment: int
) -> None:
    key_id = world.make_key()
    world.decide(SOCIAL, act.Destroy(key_id, 2))
    end = world.header(key_id).destroy_after
    assert end == world.clock.now + 2 * DAY
    proposal = world.propose(SOCIAL, act.Restore(key_id))
    world.clock.now = end + moment
    if moment < 0:
        assert not world.vault.sweep()
        world.approve(proposal)
        assert where(world, key_id) == "deactivated"
        assert not world.vault.sweep()
        return
    with pytest.raises(KeyStateRefused):
        world.approve(proposal)
    assert world.vault.sweep()
    assert where(world, key_id) == "gone"
    assert not world.vault.sweep()
    world.restart()
    assert where(world, key_id) == "gone"


def test_of_a_key_that_is_gone_no_wrapped_byte_is_left(world: World) -> None:
    key_id = world.make_key()
    world.decide(SOCIAL, act.Destroy(key_id, 0))
    row = next(row for row in world.store.load().rows if row.id == key_id)
    assert len(row.sealed) == 16  # a tag, and nothing under it


@pytest.mark.parametrize("action", [*ACTIONS, "permit", "export"])
def test_nothing_is_done_with_a_key_that_is_gone(world: World, action: str) -> None:
    kek = world.make_key(use=Use.TRANSPORT)
    key_id = world.make_key(export=Export.WRAPPED)
    block = act.TransportFormat.BLOCK
    acts = ACTIONS | {
        "permit": lambda k: act.Permit(k, ceiling=5),
        "export": lambda k: act.ExportKey(k, kek, block),
    }
    world.decide(SOCIAL, act.Destroy(key_id, 0))
    with pytest.raises(KeyStateRefused):
        world.decide(SOCIAL, acts[action](key_id))


# --- versions


def test_a_version_is_never_given_twice(world: World) -> None:
    first = world.make_key()
    world.decide(SOCIAL, act.Destroy(first, 0))
    assert world.header(world.make_key()).version == 2
    world.restart()
    assert world.header(world.make_key()).version == 3


def test_versions_are_counted_over_every_shared_address_and_kind_of_card(world: World) -> None:
    def version(*addresses: int, **fields: Any) -> int:
        return world.header(world.make_key(addresses=addresses, **fields)).version

    assert version(1) == 1
    assert version(2) == 1
    assert version(1, 2) == 2
    assert version(2, 3) == 3
    assert version(3) == 4
    # A DES card's keys are 3DES and DES ones; an SM4 card's are its own.
    assert version(1, algorithm=Algorithm.TDES) == 1
    assert version(1, algorithm=Algorithm.DES) == 2
    # A transport key answers nowhere: its name counts.
    assert version(use=Use.TRANSPORT, name="K1") == 1
    assert version(use=Use.TRANSPORT, name="K1") == 2
    assert version(use=Use.TRANSPORT, name="K2") == 1
    ring_of(world)  # which would refuse two keys in one place


def test_the_same_key_is_not_taken_for_a_new_version(world: World) -> None:
    """A rotation that brings the old key back is none, also when the old one is gone."""
    material = bytes(range(1, 17))
    first = world.load_key(material)
    with pytest.raises(KeyBlockRefused, match="same key"):
        world.load_key(material)
    world.decide(SOCIAL, act.Destroy(first, 0))
    with pytest.raises(KeyBlockRefused, match="same key"):
        world.load_key(material)
    world.load_key(material, addresses=(0x1F0,))


def test_a_minimum_version_holds_for_all_versions_and_for_those_to_come(world: World) -> None:
    keys = [world.make_key() for _ in range(3)]
    world.decide(SOCIAL, act.Permit(keys[0], minimum_version=3))
    for version in (1, 2):
        with pytest.raises(KeyVersionRefused):
            answering(world, version)
    assert answering(world) == answering(world, 3) == 3
    assert world.header(world.make_key()).minimum_version == 3
    with pytest.raises(BadParameter, match="no version 5"):
        world.decide(SOCIAL, act.Permit(keys[0], minimum_version=5))


@pytest.mark.parametrize("days", [0, 30])
def test_destroying_the_key_that_carries_the_minimum_readmits_no_older_card(
    world: World, days: int
) -> None:
    old, new = world.make_key(), world.make_key()
    world.decide(SOCIAL, act.Permit(new, minimum_version=2))
    with pytest.raises(KeyVersionRefused):
        answering(world, 1)
    world.decide(SOCIAL, act.Destroy(new, days))
    for version in (0, 1):
        with pytest.raises(KeyVersionRefused):
            answering(world, version)
    # Officers may still decide otherwise.
    world.decide(SOCIAL, act.Permit(old, minimum_version=1))
    assert answering(world, 1) == 1


# --- what may be


def test_each_state_computes_what_it_may(world: World) -> None:
    key_id = world.make_key(active=False)
    for way, produces, verifies in (
        (None, False, False),
        ("activate", True, True),
        ("deactivate", False, True),
        ("compromise", False, False),
    ):
        if way is not None:
            world.decide(SOCIAL, ACTIONS[way](key_id))
        for is_verifying, may in ((False, produces), (True, verifies)):
            if may:
                assert answering(world, is_verifying=is_verifying) == 1
            else:
                with pytest.raises(KeyStateRefused):
                    answering(world, is_verifying=is_verifying)
    world.decide(SOCIAL, ACTIONS["destroy"](key_id))
    with pytest.raises(KeyNotFound):
        answering(world)


def test_validity_is_changed_by_a_permit_and_kept_by_the_ring(world: World) -> None:
    key_id = world.make_key()
    start, end = NOON + 100, NOON + 200
    world.decide(SOCIAL, act.Permit(key_id, valid_from=start, valid_until=end))
    for now, may in ((start - 1, False), (start, True), (end - 1, True), (end, False)):
        world.clock.now = now
        if may:
            assert answering(world) == 1
        else:
            with pytest.raises(KeyNotValidNow):
                answering(world)


@pytest.mark.parametrize(
    "fields",
    [
        {"levels": 0},
        {"addresses": ()},
        {"addresses": (5, 5)},
        {"modes": (Mode.WRAP,)},
        {"modes": (Mode.PRODUCE, Mode.UNWRAP)},
        {"valid_from": 10, "valid_until": 10},
        {"valid_from": 10, "valid_until": 9},
        {"ceiling": 5, "warn_at": 6},
        {"warn_at": 1},
        {"use": Use.TRANSPORT, "levels": 1},
        {"use": Use.TRANSPORT, "addresses": (0x4000,)},
        {"use": Use.TRANSPORT, "modes": (Mode.PRODUCE,)},
        {"use": Use.TRANSPORT, "algorithm": Algorithm.DES},
    ],
    ids=str,
)
def test_a_key_that_contradicts_itself_is_not_even_proposed(
    world: World, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadParameter):
        world.propose(SOCIAL, act.GenerateKey(spec(**fields)))


@pytest.mark.parametrize("algorithm", [Algorithm.SM1, Algorithm.SSF33])
def test_what_only_hardware_has_is_not_proposed(world: World, algorithm: Algorithm) -> None:
    with pytest.raises(AlgorithmNotSupported):
        world.propose(SOCIAL, act.GenerateKey(spec(algorithm=algorithm)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"valid_from": NOON, "valid_until": NOON},
        {"warn_at": 1},
        {"minimum_version": 2},
    ],
    ids=str,
)
def test_a_permit_that_makes_no_sense_is_refused(world: World, fields: dict[str, Any]) -> None:
    key_id = world.make_key()
    before = world.header(key_id)
    with pytest.raises(BadParameter):
        world.decide(SOCIAL, act.Permit(key_id, **fields))
    assert world.header(key_id) == before


@pytest.mark.parametrize("kind", ["generate", "components", "give", "envelope"])
@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("own", list(Tier))
def test_keys_of_those_above_arrive_wrapped_or_not_at_all(
    tmp_path: Path, own: Tier, tier: Tier, kind: str
) -> None:
    """A city makes and enters its own keys, a province its own and its cities', the ministry any."""
    world = World(tmp_path, tier=own)
    wanted = spec(tier=tier)
    material = bytes(range(16))
    actions: dict[str, act.Action] = {
        "generate": act.GenerateKey(wanted),
        "components": act.ImportKey(wanted, 2),
        "give": act.GiveComponents(wanted, ("a", "c")),
        "envelope": act.ImportEnvelope(wanted, envelope(material, world.vault), kcv_of(material)),
    }
    order = [Tier.NATIONAL, Tier.PROVINCIAL, Tier.CITY]
    if kind == "envelope" or order.index(tier) >= order.index(own):
        proposal = world.propose(SOCIAL, actions[kind])
        if kind != "components":
            assert world.header(world.approve(proposal).result["key_id"]).tier is tier
    else:
        with pytest.raises(RoleMissing, match="arrive wrapped"):
            world.propose(SOCIAL, actions[kind])
    world.close()


@pytest.mark.parametrize("domain", [Domain.FINANCE, Domain.ACSE, Domain.LOCAL])
def test_an_address_belongs_to_one_domain(world: World, domain: Domain) -> None:
    for address in (0x0000, 0x0170, 0x01FF):
        with pytest.raises(DomainCrossed):
            world.propose(domain, act.GenerateKey(spec(domain, addresses=(0x5000, address))))
    world.make_key(SOCIAL, addresses=(0x0200, 0x0201))
    with pytest.raises(DomainCrossed):
        world.propose(domain, act.GenerateKey(spec(domain, addresses=(0x0201,))))
    # What was free when it was proposed may be taken when it is approved.
    proposal = world.propose(domain, act.GenerateKey(spec(domain, addresses=(0x0300,))))
    world.make_key(SOCIAL, addresses=(0x0300,), algorithm=Algorithm.TDES)
    with pytest.raises(DomainCrossed):
        world.approve(proposal)


# --- officers' rights


def test_a_domain_keeps_two_security_officers(world: World) -> None:
    world.decide(SOCIAL, act.RetireOfficer("d"))
    for action in (act.RetireOfficer("a"), act.RetireOfficer("b")):
        with pytest.raises(BadParameter, match="fewer than 2"):
            world.propose(SOCIAL, action)
    a = world.officer(SOCIAL, "a")
    demoted = act.EnrolOfficer("a", "A", (a.roles[1],), a.public_key)
    with pytest.raises(BadParameter, match="fewer than 2"):
        world.decide(SOCIAL, demoted)
    # Each retirement could be alone; both together would not be.
    b = world.officer(SOCIAL, "b")
    world.decide(SOCIAL, act.EnrolOfficer("d", "D", b.roles, world.officer(SOCIAL, "d").public_key))
    first = world.propose(SOCIAL, act.RetireOfficer("a"), by="d")
    second = world.propose(SOCIAL, act.RetireOfficer("b"), by="d")
    world.approve(first, by="b")
    with pytest.raises(Refusal):
        world.approve(second, by="b")


@pytest.mark.parametrize("domain", list(Domain))
def test_one_public_key_is_one_officer_everywhere_and_for_ever(
    world: World, domain: Domain
) -> None:
    """A second code for one person would be dual control by one, in another domain as well."""
    world.decide(SOCIAL, act.RetireOfficer("d"))
    for code in ("a", "d"):
        point = world.officer(SOCIAL, code).public_key
        roles = world.officer(domain, "b").roles
        with pytest.raises(BadParameter, match="already"):
            world.propose(domain, act.EnrolOfficer("new", "New", roles, point))


@pytest.mark.parametrize("point", [bytes(65), b"\x04" + b"\x01" * 64, b"\x02" + bytes(64)])
def test_a_public_key_is_a_point_of_the_curve(world: World, point: bytes) -> None:
    roles = world.officer(SOCIAL, "a").roles
    with pytest.raises(BadParameter, match="point"):
        world.propose(SOCIAL, act.EnrolOfficer("new", "New", roles, point))
