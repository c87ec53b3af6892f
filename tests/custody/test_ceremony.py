"""Components: a key is the XOR of what each custodian entered, in whatever order, and nothing else is made of them.

They wait in locked memory, and after approval, rejection, expiry or a restart they are there no more.
"""

from __future__ import annotations

import itertools
import secrets
from functools import reduce
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody.proposals import DEFAULT_LIFETIME_SECONDS, Proposal
from keyd.errors import (
    ComponentRefused,
    KeyBlockRefused,
    ProposalClosed,
    ProposalNotFound,
    Refusal,
    StoreUnavailable,
)
from keyd.keys.block import Domain
from tests.custody.world import (
    CUSTODIAN,
    FailingStore,
    World,
    cells_in_use,
    contents_of,
    envelope,
    kcv_of,
    private_key,
    spec,
)

SOCIAL: Final = Domain.SOCIAL
SOFTWARE: Final = [Algorithm.SM4, Algorithm.TDES, Algorithm.DES]


def xored(components: list[bytes]) -> bytes:
    return reduce(lambda x, y: bytes(a ^ b for a, b in zip(x, y, strict=True)), components)


def begin(
    world: World,
    components: int = 2,
    kcv: bytes | None = None,
    algorithm: Algorithm = Algorithm.SM4,
) -> Proposal:
    return world.propose(SOCIAL, act.ImportKey(spec(algorithm=algorithm), components, kcv))


def same_key(world: World, key_id: bytes, material: bytes) -> None:
    """The key in the store computes what this key computes."""
    held = contents_of(world.vault).keys[key_id].key
    assert held is not None
    reference = SecretKey.load(held.algorithm, material)
    probe = bytes(range(64))
    assert held.encrypt(probe) == reference.encrypt(probe)


# --- what they come to


@pytest.mark.parametrize("algorithm", SOFTWARE, ids=str)
@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
def test_in_any_order_components_come_to_their_xor(
    world: World, algorithm: Algorithm, order: tuple[int, ...]
) -> None:
    components = [secrets.token_bytes(KEY_BYTES[algorithm]) for _ in range(3)]
    material = xored(components)
    proposal = begin(world, 3, kcv_of(material, algorithm), algorithm)
    for i, number in enumerate(order, 1):
        given = world.enter(proposal, "abc"[number - 1], number, components[number - 1])
        assert given == {n: "abc"[n - 1] for n in sorted(order[:i])}
        if i < 3:
            with pytest.raises(ComponentRefused, match="missing"):
                world.approve(proposal)
    key_id = world.approve(proposal).result["key_id"]
    same_key(world, key_id, material)
    assert world.header(key_id).kcv == kcv_of(material, algorithm)
    # It is the same key after a restart, out of the store.
    world.restart()
    same_key(world, key_id, material)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(2, 9),
    data=st.data(),
    algorithm=st.sampled_from(SOFTWARE),
)
def test_any_number_of_components_is_the_reference(
    count: int, data: st.DataObject, algorithm: Algorithm
) -> None:
    world = World()
    for code in "fghijk":
        point = private_key(SOCIAL, f"custodian {code}").public.encode()
        world.decide(SOCIAL, act.EnrolOfficer(code, code, (CUSTODIAN,), point))
    size = KEY_BYTES[algorithm]
    parts = data.draw(
        st.lists(st.binary(min_size=size, max_size=size), min_size=count, max_size=count)
    )
    # Numbers that differ in their even bits: DES ignores the odd ones, and equal components are refused.
    components = [bytes([i + 1 << 1]) + part[1:] for i, part in enumerate(parts)]
    material = xored(components)
    if algorithm is not Algorithm.SM4 and material[:8] == material[-8:] and size == 16:
        return
    proposal = begin(world, count, None, algorithm)
    try:
        for number in data.draw(st.permutations(range(1, count + 1))):
            code = "abcfghijk"[number - 1]
            # What keyd has drawn itself it opens; the custodian's name is the test's alone.
            officer = world.officer(SOCIAL, code)
            component = components[number - 1]
            world.vault.enter_component(
                officer,
                proposal.proposal_id,
                number,
                envelope(component, world.vault),
                kcv_of(component, algorithm),
            )
        key_id = world.approve(proposal).result["key_id"]
    except ComponentRefused as refused:
        assert "weak" in refused.detail or "equal" in refused.detail  # noqa: PT017 - some are
    else:
        same_key(world, key_id, material)
    finally:
        world.close()


# --- what is refused


def test_each_component_is_another_custodians_and_enters_once(world: World) -> None:
    proposal = begin(world, 3)
    world.enter(proposal, "a", 1, bytes(range(16)))
    for code, number in (("a", 2), ("b", 1), ("a", 1)):
        with pytest.raises(ComponentRefused):
            world.enter(proposal, code, number, secrets.token_bytes(16))
    assert world.vault.components_given(proposal.proposal_id) == {1: "a"}


@pytest.mark.parametrize("number", [-1, 0, 3, 255])
def test_there_are_as_many_components_as_were_announced(world: World, number: int) -> None:
    proposal = begin(world, 2)
    with pytest.raises(ComponentRefused):
        world.enter(proposal, "a", number, bytes(16))
    assert world.vault.components_given(proposal.proposal_id) == {}


def test_a_component_has_the_check_value_of_its_sheet(world: World) -> None:
    proposal = begin(world)
    used = cells_in_use()
    component = secrets.token_bytes(16)
    kcv = kcv_of(component)
    for wrong in (bytes(3), kcv[:2] + bytes([kcv[2] ^ 1]), kcv[:2], kcv + b"\0"):
        with pytest.raises(ComponentRefused, match="check value"):
            world.enter(proposal, "a", 1, component, wrong)
    assert world.vault.components_given(proposal.proposal_id) == {}
    assert cells_in_use() == used


@pytest.mark.parametrize("size", [1, 8, 15, 17, 32])
def test_a_component_is_as_long_as_the_key(world: World, size: int) -> None:
    proposal = begin(world)
    with pytest.raises(ComponentRefused, match="does not open"):
        world.vault.enter_component(
            world.officer(SOCIAL, "a"),
            proposal.proposal_id,
            1,
            envelope(bytes(size), world.vault),
            bytes(3),
        )


def test_no_altered_envelope_opens(world: World) -> None:
    proposal = begin(world)
    officer = world.officer(SOCIAL, "a")
    component = secrets.token_bytes(16)
    good = envelope(component, world.vault)
    wrong = [
        *(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(0, len(good), 3)),
        good[:-1],
        good + b"\0",
        b"",
        private_key(SOCIAL, "a").public.encrypt(component),
    ]
    for one in wrong:
        with pytest.raises(ComponentRefused, match="does not open"):
            world.vault.enter_component(officer, proposal.proposal_id, 1, one, kcv_of(component))
    world.vault.enter_component(officer, proposal.proposal_id, 1, good, kcv_of(component))


@pytest.mark.parametrize("algorithm", SOFTWARE, ids=str)
def test_components_that_cancel_each_other_out_are_refused(
    world: World, algorithm: Algorithm
) -> None:
    """Two equal ones, and three of which one is the others' XOR, would make no key at all."""
    size = KEY_BYTES[algorithm]
    x, y = secrets.token_bytes(size), secrets.token_bytes(size)
    for components in ([x, x], [x, y, xored([x, y])], [x, y, x]):
        proposal = begin(world, len(components), None, algorithm)
        for number, component in enumerate(components, 1):
            world.enter(proposal, "abc"[number - 1], number, component)
        with pytest.raises(ComponentRefused):
            world.approve(proposal)
        assert not contents_of(world.vault).keys


def test_the_whole_keys_check_value_counts_if_it_was_announced(world: World) -> None:
    components = [secrets.token_bytes(16) for _ in range(2)]
    proposal = begin(world, 2, bytes(3))
    for number, (code, component) in enumerate(zip("ab", components, strict=True), 1):
        world.enter(proposal, code, number, component)
    with pytest.raises(ComponentRefused, match="check value"):
        world.approve(proposal)
    assert not contents_of(world.vault).keys


def test_components_of_one_ceremony_are_none_of_another(world: World) -> None:
    one, other = begin(world), begin(world)
    components = [secrets.token_bytes(16) for _ in range(2)]
    world.enter(one, "a", 1, components[0])
    world.enter(other, "b", 2, components[1])
    for proposal in (one, other):
        with pytest.raises(ComponentRefused, match="missing"):
            world.approve(proposal)
    with pytest.raises(ProposalNotFound):
        world.vault.enter_component(
            world.officer(SOCIAL, "a"),
            bytes(8),
            1,
            envelope(components[0], world.vault),
            kcv_of(components[0]),
        )
    generating = world.propose(SOCIAL, act.GenerateKey(spec()))
    with pytest.raises(ComponentRefused, match="takes no components"):
        world.enter(generating, "a", 1, components[0])


# --- when they go


@pytest.mark.parametrize("end", ["approved", "rejected", "expired", "sealed", "restarted"])
def test_when_a_ceremony_ends_its_components_are_gone(world: World, end: str) -> None:
    proposal = begin(world)
    vault = world.vault
    used = cells_in_use()
    world.enter(proposal, "a", 1, secrets.token_bytes(16))
    world.enter(proposal, "b", 2, secrets.token_bytes(16))
    assert cells_in_use() == used + 2
    if end == "approved":
        world.approve(proposal)
        used += 1  # the key itself
    elif end == "rejected":
        vault.reject(world.officer(SOCIAL, "d"), proposal.proposal_id)
    elif end == "expired":
        world.clock.now += DEFAULT_LIFETIME_SECONDS
        vault.sweep()
    elif end == "sealed":
        before = used
        vault.seal()
        used = cells_in_use()
        assert used < before
    else:
        del vault
        vault = world.restart()
        with pytest.raises(ComponentRefused, match="1, 2 of 2 is still missing"):
            world.approve(proposal)
    assert cells_in_use() == used
    assert vault.components_given(proposal.proposal_id) == {}
    if end in ("approved", "rejected", "expired"):
        with pytest.raises(ProposalClosed):
            world.enter(proposal, "c", 1, bytes(range(16)))


def test_what_the_journal_does_not_have_did_not_happen_and_nothing_else_is_lost(
    world: World,
) -> None:
    """A component whose record cannot be written is out again; the others, which are recorded, stay."""
    failing = FailingStore(world.store)
    vault = world.open_vault(failing)
    proposal = world.propose(SOCIAL, act.ImportKey(spec(), 2), vault=vault)
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    world.enter(proposal, "a", 1, first, vault=vault)
    used = cells_in_use()
    failing.plan = ["unavailable"]
    with pytest.raises(StoreUnavailable):
        world.enter(proposal, "b", 2, second, vault=vault)
    assert vault.components_given(proposal.proposal_id) == {1: "a"}
    assert cells_in_use() == used
    world.enter(proposal, "b", 2, second, vault=vault)
    done = world.approve(proposal, vault=vault)
    assert done.result["kcv"] == kcv_of(xored([first, second]))


# --- given out, and entered elsewhere


@pytest.mark.parametrize("algorithm", SOFTWARE, ids=str)
@pytest.mark.parametrize("custodians", ["ab", "cba"])
def test_what_is_given_in_components_is_the_same_key_where_they_are_entered(
    world: World, algorithm: Algorithm, custodians: str
) -> None:
    given = world.decide(SOCIAL, act.GiveComponents(spec(algorithm=algorithm), tuple(custodians)))
    components = [world.taken(given, code) for code in custodians]
    assert len(set(components)) == len(components)
    same_key(world, given.result["key_id"], xored(components))
    for stranger in set("abcd") - set(custodians):
        with pytest.raises(ComponentRefused, match="nothing for"):
            world.taken(given, stranger)
    elsewhere = World()
    wanted = begin(elsewhere, len(components), given.result["kcv"], algorithm)
    for number, (code, component) in enumerate(zip("abc", components, strict=False), 1):
        elsewhere.enter(wanted, code, number, component)
    arrived = elsewhere.approve(wanted)
    assert arrived.result["kcv"] == given.result["kcv"]
    same_key(elsewhere, arrived.result["key_id"], xored(components))
    elsewhere.close()


@pytest.mark.parametrize("custodians", [("a", "a"), ("a", "d"), ("a", "zz")])
def test_components_are_given_to_different_custodians(
    world: World, custodians: tuple[str, str]
) -> None:
    with pytest.raises(Refusal):
        world.propose(SOCIAL, act.GiveComponents(spec(), custodians))


def test_what_was_for_one_custodian_is_not_kept_beyond_the_proposals_time(world: World) -> None:
    """Nor in a backup, which outlives the officer's key."""
    given = world.decide(SOCIAL, act.GiveComponents(spec(), ("a", "b")))
    component = given.result["component for a"]
    world.vault.sweep()
    assert world.taken(given, "a")
    world.clock.now = given.expires_at
    assert world.vault.sweep()
    left = contents_of(world.vault).proposals[given.proposal_id]
    assert set(left.result) == {"key_id", "kcv"}
    assert not any(component in row.body for row in world.store.load().rows)
    with pytest.raises(ComponentRefused, match="nothing for"):
        world.taken(given, "a")
    assert not world.vault.sweep()


@pytest.mark.parametrize("algorithm", SOFTWARE, ids=str)
def test_an_envelope_holds_the_key_that_was_announced_or_none(
    world: World, algorithm: Algorithm
) -> None:
    material = secrets.token_bytes(KEY_BYTES[algorithm])
    good = envelope(material, world.vault)
    kcv = kcv_of(material, algorithm)
    wanted = spec(algorithm=algorithm)
    for sealed, announced in (
        (good, bytes(3)),
        (good[:-1] + bytes([good[-1] ^ 1]), kcv),
        (private_key(SOCIAL, "a").public.encrypt(material), kcv),
        (envelope(material + b"\0", world.vault), kcv),
    ):
        with pytest.raises(KeyBlockRefused):
            world.decide(SOCIAL, act.ImportEnvelope(wanted, sealed, announced))
    done = world.decide(SOCIAL, act.ImportEnvelope(wanted, good, kcv))
    same_key(world, done.result["key_id"], material)
