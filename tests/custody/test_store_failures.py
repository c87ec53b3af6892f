"""Whatever a commit comes to, a vault holds what the store says, and nothing is half done.

Every command of the vault meets every way in which a commit can fail, at each of its commits in turn.
"""

from __future__ import annotations

import functools
import secrets
from typing import TYPE_CHECKING, Final

import pytest
from msgspec.structs import replace

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import share_commitment
from keyd.custody import actions as act
from keyd.custody.contents import open_contents
from keyd.custody.transport import wrap_for_transport
from keyd.errors import Refusal, StoreUnavailable
from keyd.keys.block import Domain, Export, Use
from keyd.store.database import OutcomeUnknown
from tests.custody.world import (
    DAY,
    FAILURES,
    NOTHING_MADE,
    FailingStore,
    World,
    contents_of,
    envelope,
    kcv_of,
    private_key,
    spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyd.custody.vault import Vault
    from keyd.store.rows import Row

SOCIAL: Final = Domain.SOCIAL
MATERIAL: Final = bytes(range(16))

COMMANDS: Final = (
    *("propose", "reject", "enter", "take", "confirm", "record", "sweep", "renew", "close"),
    *("generate", "import", "give", "envelope", "wrapped", "export", "child", "activate"),
    *("destroy", "restore", "permit", "enrol", "retire", "stage"),
)


class Template:
    """A store in which every command can be done, made once; each test has a copy of its file."""

    def __init__(self) -> None:
        world = World()
        vault = world.vault
        kek = world.make_key(use=Use.TRANSPORT, ceiling=100)
        key = world.make_key(export=Export.WRAPPED, ceiling=1000)
        inactive = world.make_key(active=False)
        destroyed, dying = world.make_key(), world.make_key(addresses=(9,))
        world.decide(SOCIAL, act.Destroy(destroyed, 20))
        world.decide(SOCIAL, act.Destroy(dying, 1))
        block = act.TransportFormat.BLOCK
        fresh = private_key(SOCIAL, "fresh").public.encode()
        self.given = world.decide(SOCIAL, act.GiveComponents(spec(addresses=(8,)), ("a", "c")))
        # A key that travelled here from elsewhere, under the same transport key.
        transport = contents_of(vault).keys[kek].key
        assert transport is not None
        arriving = SecretKey.generate(Algorithm.SM4)
        header = replace(
            world.header(key), addresses=(6,), kcv=arriving.kcv(), ceiling=0, warn_at=0
        )
        message = wrap_for_transport(transport, block, header, arriving, secrets.token_bytes)
        self.actions: dict[str, act.Action] = {
            "import": act.ImportKey(spec(addresses=(7,)), 2),
            "generate": act.GenerateKey(spec()),
            "give": act.GiveComponents(spec(addresses=(5,)), ("a", "b")),
            "envelope": act.ImportEnvelope(spec(), envelope(MATERIAL, vault), kcv_of(MATERIAL)),
            "wrapped": act.ImportWrapped(spec(addresses=(6,)), kek, block, message, header.kcv),
            "export": act.ExportKey(key, kek, block),
            "child": act.ExportChild(key, "510100", kek, block),
            "activate": act.Activate(inactive),
            "destroy": act.Destroy(key, 0),
            "restore": act.Restore(destroyed),
            "permit": act.Permit(key, ceiling=2000),
            "enrol": act.EnrolOfficer("new", "New", world.officer(SOCIAL, "a").roles, fresh),
            "retire": act.RetireOfficer("d"),
        }
        self.proposals = {
            name: world.propose(SOCIAL, action) for name, action in self.actions.items()
        }
        self.proposals["stage"] = world.propose(Domain.LOCAL, act.Rekey(2, ("a", "b")))
        vault.close()
        world.close()
        self.path = world.path


@functools.cache
def template() -> Template:
    return Template()


class Prepared:
    """A copy of the template, on a store that can be told to fail; and what a command needs in memory."""

    def __init__(self, folder: Path, name: str) -> None:
        made = template()
        self.world = world = World(folder, source=made.path)
        world.clock.now += DAY
        self.store = FailingStore(world.store)
        self.vault = vault = world.open_vault(self.store)
        world._vault = vault
        self.actions, self.proposals, self.given = made.actions, made.proposals, made.given
        self.commitments: dict[str, bytes] = {}
        if name == "import":
            for number, code in enumerate("ac", 1):
                world.enter(self.proposals["import"], code, number, secrets.token_bytes(16))
        if name == "confirm":
            staged = world.approve(self.proposals["stage"])
            self.commitments = {
                code: share_commitment(world.share_of(staged, code), staged.result["salt"])
                for code in "ab"
            }

    def call(self, name: str) -> Callable[[], object]:
        """A command, ready to be given."""
        world, vault = self.world, self.vault
        a, b = (world.officer(SOCIAL, code) for code in "ab")
        local = {code: world.officer(Domain.LOCAL, code) for code in "ab"}
        sealed = envelope(MATERIAL, vault)
        calls: dict[str, Callable[[], object]] = {
            "propose": lambda: vault.propose(a, self.actions["generate"]),
            "reject": lambda: vault.reject(b, self.proposals["generate"].proposal_id),
            "enter": lambda: vault.enter_component(
                a, self.proposals["import"].proposal_id, 1, sealed, kcv_of(MATERIAL)
            ),
            "take": lambda: vault.take(a, self.given.proposal_id),
            "confirm": lambda: [
                vault.confirm_share(
                    local[c], self.proposals["stage"].proposal_id, self.commitments[c]
                )
                for c in "ab"
            ],
            "record": lambda: vault.record(a, "looked"),
            "sweep": vault.sweep,
            "renew": self.renew,
            "close": vault.close,
        }
        if name in calls:
            return calls[name]
        proposal = self.proposals[name]
        approver = local["b"] if name == "stage" else b
        return lambda: vault.approve(approver, proposal.proposal_id)

    def renew(self) -> None:
        for quota in self.vault.quotas.values():
            while quota.left and quota.take():
                pass
        self.vault.renew_quotas()


def rows(world: World) -> dict[tuple[str, bytes], Row]:
    return {(row.kind, row.id): row for row in world.store.load().rows}


def holds_what_the_store_says(vault: Vault, world: World) -> None:
    """Every row that is held is the store's, and opens to what is held of it."""
    held = contents_of(vault)
    truth = open_contents(world.store.load(), held.seal)
    assert held.officers == truth.officers
    assert held.proposals == truth.proposals
    assert {key: k.header for key, k in held.keys.items()} == {
        key: k.header for key, k in truth.keys.items()
    }
    for key_id, held_key in held.keys.items():
        true_key = truth.keys[key_id].key
        assert (held_key.key is None) == (true_key is None)
        if held_key.key is not None and true_key is not None:
            assert held_key.key.encrypt(bytes(64)) == true_key.encrypt(bytes(64))
    assert held.number == truth.number


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_commit_that_fails_leaves_memory_and_store_as_one(
    tmp_path: Path, name: str, failure: str
) -> None:
    """And another keyd, which never saw the failure, opens all of it."""
    for at in range(4):
        prepared = Prepared(tmp_path, name)
        world = prepared.world
        call, vault = prepared.call(name), prepared.vault
        before = rows(world)
        prepared.store.plan = [None] * at + [failure]
        try:
            call()
        except Refusal:
            is_refused = True
        else:
            is_refused = False
        was_reached = not prepared.store.plan
        if was_reached and at == 0 and failure in NOTHING_MADE and name != "renew":
            # One commit carries all of a command: without it, nothing has changed.
            # A race for leases alone is run again.
            assert is_refused or (failure == "changed" and name in ("close", "permit"))
            if is_refused:
                changed = {key for key, row in rows(world).items() if before.get(key) != row}
                # Leases may have moved; nothing else has.
                assert all(kind == "key" for kind, _ in changed) or name == "confirm"
        prepared.store.plan = []
        why = ""
        try:
            vault.reload()
        except StoreUnavailable as refused:
            why = refused.detail
        else:
            holds_what_the_store_says(vault, world)
            if contents_of(vault).seal.body.generation == 1:
                holds_what_the_store_says(world.open_vault(), world)
        # A rekey that was made, and of which this keyd had no answer: it must be sealed, and says so.
        assert not why or (name == "confirm" and "new seal" in why)
        world.close()
        (tmp_path / "world.db").unlink()
        if not was_reached:
            break


@pytest.mark.parametrize("failure", FAILURES)
def test_an_unsealing_that_the_journal_does_not_have_did_not_happen(
    world: World, failure: str
) -> None:
    failing = FailingStore(world.store)
    vault = world.sealed_vault(failing)
    vault.give_share(world.founded.shares[0])
    failing.plan = [failure]
    if failure == "blind":
        # It is recorded, and what was read before is held until more can be read.
        with pytest.raises(StoreUnavailable):
            vault.give_share(world.founded.shares[1])
    else:
        with pytest.raises(Refusal):
            vault.give_share(world.founded.shares[1])
    assert vault.is_sealed
    assert not vault.quotas
    for share in world.founded.shares[:2]:
        vault.give_share(share)
    assert not vault.is_sealed


@pytest.mark.parametrize("failure", ["lost", "blind"])
def test_what_was_done_and_not_answered_says_so(world: World, failure: str) -> None:
    """That nothing was changed is never said of something that was."""
    failing = FailingStore(world.store)
    vault = world.open_vault(failing)
    officer = world.officer(SOCIAL, "a", vault)
    failing.plan = [failure]
    with pytest.raises(OutcomeUnknown):
        vault.propose(officer, act.GenerateKey(spec()))
    vault.reload()
    assert len(contents_of(vault).proposals) == 1
