"""A new seal: until every custodian has confirmed, the old shares open the store; from then on the new ones do.

Never both, never neither, whatever fails at whichever moment; and everything that was in the store is in it still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import Share, share_commitment
from keyd.custody import actions as act
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.founding import Keeper
from keyd.custody.proposals import DEFAULT_LIFETIME_SECONDS, Proposal, ProposalState
from keyd.custody.vault import Vault
from keyd.errors import (
    BadParameter,
    ComponentRefused,
    DomainCrossed,
    ProposalClosed,
    Refusal,
    ShareRefused,
)
from keyd.keys.block import Domain, Use
from keyd.registry.terminal import Proof, TerminalSpec
from tests.custody.world import (
    FAILURES,
    NOTHING_MADE,
    FailingStore,
    World,
    contents_of,
    private_key,
    psam_spec,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCAL: Final = Domain.LOCAL
NAMES: Final = ("a", "b", "c")
TERMINAL: Final = TerminalSpec("DESK-0001", "org", "510100", ("counter",), (Proof.SIGNATURE,))


class Lost(BaseException):
    """The process ends here."""


def furnish(world: World) -> None:
    world.make_key(Domain.SOCIAL, ceiling=1000)
    world.make_key(Domain.FINANCE)
    world.decide(Domain.ACSE, act.Destroy(world.make_key(Domain.ACSE), 0))
    world.make_key(Domain.LOCAL, use=Use.TRANSPORT)
    world.decide(Domain.SOCIAL, act.RetireOfficer("d"))
    world.decide(LOCAL, act.EnrolTerminals((TERMINAL,), activate=True))
    world.decide(LOCAL, act.MakeAuthority("guomi", "CA", 10))
    world.decide(LOCAL, act.IssuePsams((psam_spec(),)))


def everything(vault: Vault) -> dict[str, Any]:
    """All that must survive: keys by what they compute, headers, officers, who keyd is."""
    held = contents_of(vault)
    return {
        "keys": {
            key_id: (
                {
                    name: getattr(key.header, name)
                    for name in key.header.__struct_fields__
                    if name not in ("revision", "uses")
                },
                key.key and key.key.encrypt(bytes(range(64))),
            )
            for key_id, key in held.keys.items()
        },
        "terminals": {
            code: [getattr(t, f) for f in t.__struct_fields__ if f != "revision"]
            for code, t in held.terminals.items()
        },
        "psams": {
            number: (
                [getattr(kept, f) for f in kept.__struct_fields__ if f != "revision"],
                held.psam_keys[number].encrypt(bytes(16)),
            )
            for number, kept in held.psams.items()
        },
        "authorities": {
            kind: (authority.unwrapped(), authority.body.certificate)
            for kind, authority in held.authorities.items()
        },
        "officers": {
            name: [getattr(o, f) for f in o.__struct_fields__ if f != "revision"]
            for name, o in held.officers.items()
        },
        "identity": held.identity.public.encode(),
        "proposals": set(held.proposals),
    }


def staged(
    world: World, threshold: int = 2, names: tuple[str, ...] = NAMES, vault: Vault | None = None
) -> Proposal:
    proposal = world.decide(LOCAL, act.Rekey(threshold, names), vault)
    assert proposal.state is ProposalState.STAGED
    return proposal


def opens(world: World, shares: Sequence[Share]) -> bool:
    try:
        world.open_vault(shares=shares)
    except ShareRefused:
        return False
    return True


def test_when_all_have_confirmed_the_new_shares_open_it_and_the_old_do_not(
    either_world: World,
) -> None:
    world = either_world
    furnish(world)
    before = everything(world.vault)
    old = world.founded.shares
    proposal = staged(world)
    shares = [world.share_of(proposal, code) for code in NAMES]
    for code in NAMES[:-1]:
        assert world.confirm(proposal, code).state is ProposalState.STAGED
        assert opens(world, old)
        assert not opens(world, shares)
    done = world.confirm(proposal, NAMES[-1])
    assert done.state is ProposalState.DONE
    # The shares are not kept for anybody to take once more.
    assert done.result == {}
    with pytest.raises(ComponentRefused):
        world.share_of(done, "a")
    before["proposals"].add(proposal.proposal_id)
    assert everything(world.vault) == before
    assert not opens(world, old)
    for pair in ((0, 1), (1, 2), (2, 0)):
        vault = world.open_vault(shares=[shares[i] for i in pair])
        assert everything(vault) == before
    assert contents_of(world.vault).seal.body.generation == 2
    # And the next change works, under the new keys.
    world.vault.reload()
    world.make_key(Domain.SOCIAL)


def test_every_row_is_under_new_keys(world: World) -> None:
    furnish(world)
    before = {(row.kind, row.id): row for row in world.store.load().rows}
    proposal = staged(world)
    for code in NAMES:
        world.confirm(proposal, code)
    for row in world.store.load().rows:
        was = before.get((row.kind, row.id))
        if was is not None:
            assert row.revision > was.revision
            assert (row.nonce, row.sealed) != (was.nonce, was.sealed)


def test_a_restart_forgets_what_was_staged(world: World) -> None:
    furnish(world)
    proposal = staged(world)
    shares = [world.share_of(proposal, code) for code in NAMES]
    world.confirm(proposal, "a")
    world.restart()
    for code in NAMES:
        with pytest.raises(ShareRefused, match="forgotten"):
            world.confirm(proposal, code)
    assert opens(world, world.founded.shares)
    assert not opens(world, shares)
    world.vault.reload()
    world.vault.reject(world.officer(LOCAL, "d"), proposal.proposal_id)
    again = staged(world)
    for code in NAMES:
        world.confirm(again, code)
    assert not opens(world, world.founded.shares)


@pytest.mark.parametrize("end", ["rejected", "expired", "sealed", "overtaken"])
def test_a_staged_seal_that_is_given_up_takes_no_effect(world: World, end: str) -> None:
    proposal = staged(world, names=("a", "b"))
    world.confirm(proposal, "a")
    share = world.share_of(proposal, "b")
    salt = contents_of(world.vault).proposals[proposal.proposal_id].result["salt"]
    if end == "rejected":
        world.vault.reject(world.officer(LOCAL, "d"), proposal.proposal_id)
    elif end == "expired":
        world.clock.now += DEFAULT_LIFETIME_SECONDS
    elif end == "sealed":
        world.vault.seal()
        world.restart()
    else:
        staged(world)
    with pytest.raises((ProposalClosed, ShareRefused)):
        world.vault.confirm_share(
            world.officer(LOCAL, "b"), proposal.proposal_id, share_commitment(share, salt)
        )
    assert opens(world, world.founded.shares)


def test_a_share_is_confirmed_by_whose_it_is_and_by_having_it(world: World) -> None:
    proposal = staged(world, names=("a", "b"))
    salt = contents_of(world.vault).proposals[proposal.proposal_id].result["salt"]
    mine = share_commitment(world.share_of(proposal, "a"), salt)
    other = share_commitment(world.share_of(proposal, "b"), bytes(16))
    vault = world.vault
    for code, commitment in (
        ("b", mine),
        ("b", other),
        ("b", bytes(16)),
        ("b", b""),
        ("c", mine),
        ("d", mine),
    ):
        with pytest.raises(ShareRefused):
            vault.confirm_share(world.officer(LOCAL, code), proposal.proposal_id, commitment)
    assert vault.waiting_for(proposal.proposal_id) == ("a", "b")
    # Twice by one is not once by two.
    for _ in range(2):
        vault.confirm_share(world.officer(LOCAL, "a"), proposal.proposal_id, mine)
    assert vault.waiting_for(proposal.proposal_id) == ("b",)
    assert opens(world, world.founded.shares)


def test_a_custodian_who_left_after_confirming_gets_no_new_seal(world: World) -> None:
    """Otherwise a quorum of the new seal could be in a stranger's pocket."""
    point = private_key(LOCAL, "f").public.encode()
    world.decide(LOCAL, act.EnrolOfficer("f", "F", world.officer(LOCAL, "c").roles, point))
    proposal = staged(world, names=("f", "b"))
    world.confirm(proposal, "f")
    world.decide(LOCAL, act.RetireOfficer("f"))
    with pytest.raises(BadParameter, match="no custodian f"):
        world.confirm(proposal, "b")
    assert opens(world, world.founded.shares)


@pytest.mark.parametrize(
    ("threshold", "names"),
    [(3, ("a", "b")), (2, ("a", "a")), (2, ("a", "d")), (2, ("a", "zz")), (2, ("a", "e"))],
)
def test_a_seal_that_could_not_be_opened_is_not_proposed(
    world: World, threshold: int, names: tuple[str, ...]
) -> None:
    with pytest.raises(BadParameter):
        world.propose(LOCAL, act.Rekey(threshold, names))


def test_another_domain_decides_nothing_about_the_seal(world: World) -> None:
    with pytest.raises(DomainCrossed):
        world.propose(Domain.SOCIAL, act.Rekey(2, ("a", "b")))


def test_what_happens_while_it_is_staged_is_under_the_new_seal_too(world: World) -> None:
    proposal = staged(world)
    key_id = world.make_key()
    shares = [world.share_of(proposal, code) for code in NAMES]
    for code in NAMES:
        world.confirm(proposal, code)
    vault = world.open_vault(shares=shares)
    assert contents_of(vault).keys[key_id].key is not None


def test_other_keyds_notice_and_do_nothing_more(world: World) -> None:
    """Their keys are those of a seal that is no more: they must be sealed, and unsealed with the new shares."""
    other = world.open_vault()
    proposal = staged(world)
    shares = [world.share_of(proposal, code) for code in NAMES]
    for code in NAMES:
        world.confirm(proposal, code)
    with pytest.raises(StoreNotOurs, match="new seal"):
        other.reload()
    with pytest.raises(StoreNotOurs):
        world.make_key(vault=other)
    other.seal()
    with pytest.raises(ShareRefused, match="of seal 1"):
        other.give_share(world.founded.shares[0])
    for share in shares[:2]:
        other.give_share(share)
    assert everything(other) == everything(world.vault)


def test_keepers_get_the_new_seal_and_keep_no_old_one(world: World) -> None:
    keeper = Keeper("token", b"slot 1", SecretKey.generate(Algorithm.SM4))
    vault = world.open_vault()
    vault._new_keepers = lambda: [keeper]
    proposal = staged(world, vault=vault)
    for code in NAMES:
        world.confirm(proposal, code, vault)
    opened = world.sealed_vault()
    opened.unseal_by_keeper(keeper)
    assert everything(opened) == everything(vault)


# --- what fails


def stories(failing: FailingStore, world: World, vault: Vault) -> list[Share]:
    """A whole rekey; return the new shares. It may end anywhere."""
    proposal = staged(world, vault=vault)
    shares = [world.share_of(proposal, code, vault) for code in NAMES]
    world.shares = shares  # type: ignore[attr-defined]
    for code in NAMES:
        world.confirm(proposal, code, vault)
    return shares


@pytest.mark.parametrize("failure", [*FAILURES, "crash before", "crash after"])
@pytest.mark.parametrize("at", range(15))
def test_whatever_fails_wherever_one_set_of_shares_opens_everything(
    world: World, failure: str, at: int
) -> None:
    """Every commit of a whole rekey in turn, by a database that fails and by a process that ends."""
    world.make_key(Domain.SOCIAL, ceiling=1000)
    world.make_key(Domain.FINANCE)
    vault = world.open_vault(failing := CrashingStore(world.store))
    before = everything(vault)
    world.shares = []  # type: ignore[attr-defined]
    failing.plan = [None] * at + [failure]
    is_done = False
    try:
        stories(failing, world, vault)
        is_done = True
    except (Refusal, Lost):
        pass
    new: list[Share] = world.shares  # type: ignore[attr-defined]
    by_old, by_new = opens(world, world.founded.shares), bool(new) and opens(world, new)
    assert by_old != by_new
    if is_done:
        assert by_new
    vault = world.open_vault(shares=new if by_new else ())
    after = everything(vault)
    assert {k: after[k] for k in ("keys", "officers", "identity")} == {
        k: before[k] for k in ("keys", "officers", "identity")
    }
    world._vault = vault
    # And it goes on, with the shares that open it.
    world.make_key(Domain.SOCIAL)


def test_the_failures_above_reach_every_commit(world: World) -> None:
    world.make_key(Domain.SOCIAL, ceiling=1000)
    vault = world.open_vault(failing := CrashingStore(world.store))
    failing.commits = 0
    stories(failing, world, vault)
    assert failing.commits <= 15


class CrashingStore(FailingStore):
    """A failing store, in a process that may also end before or after a commit."""

    def commit(self, *args: Any, **named: Any) -> int:
        failure = self.plan[0] if self.plan else None
        if failure == "crash before":
            raise Lost
        if failure == "crash after":
            self.plan = []
            super().commit(*args, **named)
            raise Lost
        return super().commit(*args, **named)


@pytest.mark.parametrize("failure", sorted(NOTHING_MADE))
def test_a_last_confirmation_that_failed_can_be_repeated(world: World, failure: str) -> None:
    """Nothing was made, so the same person confirms again, and then it takes effect."""
    for at in (0, 1):
        failing = FailingStore(world.store)
        vault = world.open_vault(failing, world.__dict__.get("shares", ()))
        proposal = staged(world, vault=vault)
        shares = [world.share_of(proposal, code, vault) for code in NAMES]
        salt = contents_of(vault).proposals[proposal.proposal_id].result["salt"]
        for code in NAMES[:-1]:
            world.confirm(proposal, code, vault)
        last = share_commitment(shares[-1], salt)
        officer = world.officer(LOCAL, NAMES[-1], vault)
        failing.plan = [None] * at + [failure]
        with pytest.raises(Refusal):
            vault.confirm_share(officer, proposal.proposal_id, last)
        # What the journal does not have did not happen: whoever's record failed is still waited for.
        assert (vault.waiting_for(proposal.proposal_id) == (NAMES[-1],)) == (at == 0)
        done = vault.confirm_share(officer, proposal.proposal_id, last)
        assert done.proposal.state is ProposalState.DONE
        world.shares = shares  # type: ignore[attr-defined]
