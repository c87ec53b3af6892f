"""Dual control, the life of keys and their ceilings do what a naive model says, whatever happens in between.

The model is written from the documents, with dictionaries, and uses nothing of keyd's custody but its names. Two keyds
work on one store in turns; they are killed, sealed and restarted at any point, and a keyd that has not seen what the
other did changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from keyd.crypto.algorithms import CardAlgorithm
from keyd.custody import actions as act
from keyd.custody.contents import Contents, open_contents
from keyd.custody.officers import Officer
from keyd.custody.proposals import DEFAULT_LIFETIME_SECONDS, MAX_OPEN_PROPOSALS
from keyd.custody.vault import Vault
from keyd.errors import (
    BadParameter,
    ChangedMeanwhile,
    KeyExhausted,
    KeyNotFound,
    KeyStateRefused,
    KeyVersionRefused,
    Overloaded,
    OwnProposal,
    ProposalClosed,
    ProposalNotFound,
    Refusal,
    RoleMissing,
    Sealed,
)
from keyd.keys.block import Domain, Use
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from tests.custody.world import (
    ADDRESS,
    CUSTODIAN,
    DAY,
    PEOPLE,
    SECURITY,
    World,
    contents_of,
    person,
    private_key,
    spec,
)

SOCIAL: Final = Domain.SOCIAL
CODES: Final = [*PEOPLE, "f", "g"]
ROLES: Final = {"security": (SECURITY,), "both": (SECURITY, CUSTODIAN), "custodian": (CUSTODIAN,)}

# A hundredth of it is a lease: four uses at once.
CEILING: Final = 400

whoever = st.sampled_from(CODES)
vaults = st.integers(0, 1)
some = st.integers(0, 10**6)


def reference(version: int, *, is_verifying: bool) -> CardKeyRef:
    """A card's key at SOCIAL's address."""
    wanted = purpose(Use.INTERNAL, is_verifying=is_verifying, version=version)
    return CardKeyRef(ADDRESS[SOCIAL], CardAlgorithm.SM4, Region("510100"), bytes(8), wanted)


class Model:
    """What should be: officers, proposals and keys as dictionaries."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.officers: dict[str, dict[str, Any]] = {
            code: {"roles": set(roles), "serves": True} for code, roles in PEOPLE.items()
        }
        self.proposals: dict[bytes, dict[str, Any]] = {}
        self.keys: dict[bytes, dict[str, Any]] = {}

    # Each returns the refusal that must come, or None.

    def serves(self, code: str) -> bool:
        return code in self.officers and self.officers[code]["serves"]

    def decides(self, code: str) -> bool:
        return self.serves(code) and SECURITY in self.officers[code]["roles"]

    def deciders(self) -> set[str]:
        return {code for code in self.officers if self.decides(code)}

    def why_not_propose(self, code: str, wish: dict[str, Any]) -> type[Refusal] | None:
        if not self.serves(code):
            return BadParameter
        if not self.decides(code):
            return RoleMissing
        if wish["what"] == "retire" and len(self.deciders() - {wish["who"]}) < 2:
            return BadParameter
        waiting = [p for p in self.proposals.values() if p["open"] and self.now < p["until"]]
        return Overloaded if len(waiting) >= MAX_OPEN_PROPOSALS else None

    def why_not_approve(self, code: str, proposal_id: bytes) -> type[Refusal] | None:
        if not self.serves(code):
            return BadParameter
        proposal = self.proposals.get(proposal_id)
        if proposal is None:
            return ProposalNotFound
        if not self.decides(code):
            return RoleMissing
        if proposal["by"] == code:
            return OwnProposal
        if (
            not self.decides(proposal["by"])
            or not proposal["open"]
            or self.now >= proposal["until"]
        ):
            return ProposalClosed
        return self.why_not_do(proposal["wish"])

    def why_not_reject(self, code: str, proposal_id: bytes) -> type[Refusal] | None:
        if not self.serves(code):
            return BadParameter
        if not self.decides(code):
            return RoleMissing
        if proposal_id not in self.proposals:
            return ProposalNotFound
        return None if self.proposals[proposal_id]["open"] else ProposalClosed

    def why_not_do(self, wish: dict[str, Any]) -> type[Refusal] | None:
        what = wish["what"]
        if what == "generate":
            return None
        if what in ("enrol", "retire"):
            who = wish["who"]
            if what == "retire" and not self.serves(who):
                return BadParameter
            if what == "enrol" and not self.serves(who):
                return None
            left = self.deciders() - {who}
            if what == "enrol" and SECURITY in wish["roles"]:
                left.add(who)
            return BadParameter if len(left) < 2 else None
        key = self.keys[wish["key"]]
        if key["gone"]:
            return KeyStateRefused
        if what == "permit":
            return BadParameter if wish["minimum"] > len(self.keys) else None
        can = {
            "activate": key["state"] in ("pre-active", "deactivated"),
            "deactivate": key["state"] == "active",
            "compromise": key["state"] in ("pre-active", "active", "deactivated"),
            "destroy": key["state"] != "destroyed",
            "restore": key["state"] == "destroyed" and self.now < key["until"],
        }
        return None if can[what] else KeyStateRefused

    def do(self, wish: dict[str, Any], result: dict[str, bytes]) -> None:
        what = wish["what"]
        if what == "generate":
            self.keys[result["key_id"]] = {
                "state": "pre-active",
                "version": len(self.keys) + 1,
                "minimum": max((key["minimum"] for key in self.keys.values()), default=1),
                "ceiling": wish["ceiling"],
                "was_compromised": False,
                "until": 0,
                "gone": False,
                "used": 0,
                "lost": 0,
            }
            return
        if what == "enrol":
            self.officers[wish["who"]] = {"roles": set(wish["roles"]), "serves": True}
            return
        if what == "retire":
            self.officers[wish["who"]]["serves"] = False
            return
        key = self.keys[wish["key"]]
        if what == "permit":
            key["minimum"] = wish["minimum"]
        elif what == "destroy":
            key |= {"state": "destroyed", "until": self.now + wish["days"] * DAY}
            key["gone"] = wish["days"] == 0
            for other in self.keys.values():
                if other["state"] != "destroyed":
                    other["minimum"] = max(other["minimum"], key["minimum"])
        elif what == "restore":
            key["state"] = "compromised" if key["was_compromised"] else "deactivated"
        elif what == "compromise":
            key |= {"state": "compromised", "was_compromised": True}
        else:
            key["state"] = {"activate": "active", "deactivate": "deactivated"}[what]

    def sweep(self) -> None:
        for key in self.keys.values():
            if key["state"] == "destroyed" and self.now >= key["until"]:
                key["gone"] = True

    def answers(self, version: int, *, is_verifying: bool) -> int | type[Refusal]:
        """Which version answers, or why none does."""
        alive = {k["version"]: k for k in self.keys.values() if k["state"] != "destroyed"}
        if not alive:
            return KeyNotFound
        least = max(key["minimum"] for key in alive.values())
        if version:
            chosen = version if version in alive and version >= least else 0
        else:
            accepted = [number for number in sorted(alive) if number >= least]
            by_state = {
                state: [number for number in accepted if alive[number]["state"] in states]
                for state, states in (
                    ("current", ("active",)),
                    ("live", ("active", "deactivated")),
                    ("any", tuple({key["state"] for key in alive.values()})),
                )
            }
            chosen = next((found[-1] for found in by_state.values() if found), 0)
        if not chosen:
            return KeyVersionRefused
        state = alive[chosen]["state"]
        if state == "active" or (state == "deactivated" and is_verifying):
            return chosen
        return KeyStateRefused


class Custody(RuleBasedStateMachine):
    """Two keyds, their people, and what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model = Model(self.world.clock.now)
        self.vaults: list[Vault | None] = [None, None]
        self.auditor: Contents | None = None
        self.generation: dict[str, int] = {}

    def teardown(self) -> None:
        self.vaults = []
        self.world.close()

    @initialize()
    def begin(self) -> None:
        opened = self.world.open_vault()
        self.auditor = contents_of(opened)
        self.vaults = [opened, self.world.open_vault()]

    # --- what is and what is believed

    @property
    def truth(self) -> Contents:
        """The store, opened beside the vaults."""
        assert self.auditor is not None
        if self.auditor.number != self.world.store.change_number():
            self.auditor = open_contents(self.world.store.load(), self.auditor.seal, self.auditor)
        return self.auditor

    def caller(self, code: str) -> Officer:
        """Who comes to a vault: the officer as the store has them, or a stranger."""
        return self.truth.officer(SOCIAL, code) or replace(person(SOCIAL, "a"), code=code)

    def is_stale(self, vault: Vault) -> bool:
        held = vault.contents
        return held is not None and held.number != self.world.store.change_number()

    def ask(self, which: int, call: Any, expected: type[Refusal] | None) -> Any:
        """Ask a vault; return what it gave if the model says that it should."""
        vault = self.vaults[which]
        if vault is None:
            return None
        if self.is_stale(vault):
            before = self.truth.opened
            # It decides from what it has seen; whatever it says, it changes nothing of what others did.
            with pytest.raises(Refusal):
                call(vault)
            self.same_but_for_leases(before)
            vault.reload()
        if vault.is_sealed:
            expected = Sealed
        try:
            given = call(vault)
        except ChangedMeanwhile:
            raise AssertionError("nobody else has changed anything") from None
        except Refusal as refusal:
            if type(refusal) is not expected:
                raise AssertionError(f"{refusal!r} where {expected} should be") from refusal
            return None
        assert expected is None, f"it was done, and {expected} was to come"
        return given

    def same_but_for_leases(self, before: Any) -> None:
        after = self.truth.opened
        assert set(after) == set(before)
        for place, (_, thing) in after.items():
            was = before[place][1]
            if hasattr(thing, "header"):
                headers = [replace(x.header, uses=0, revision=1) for x in (was, thing)]
                assert headers[0] == headers[1]
            else:
                assert thing == was

    # --- rules

    def propose(self, which: int, code: str, wish: dict[str, Any], action: act.Action) -> None:
        caller = self.caller(code)
        expected = self.model.why_not_propose(code, wish)
        made = self.ask(which, lambda vault: vault.propose(caller, action), expected)
        if made is not None:
            until = self.model.now + DEFAULT_LIFETIME_SECONDS
            self.model.proposals[made.proposal_id] = {
                "by": code,
                "wish": wish,
                "open": True,
                "until": until,
            }

    @rule(which=vaults, code=whoever, ceiling=st.sampled_from([0, CEILING]))
    def propose_a_key(self, which: int, code: str, ceiling: int) -> None:
        wish = {"what": "generate", "ceiling": ceiling}
        self.propose(which, code, wish, act.GenerateKey(spec(SOCIAL, ceiling=ceiling)))

    @precondition(lambda self: self.model.keys)
    @rule(
        which=vaults,
        code=whoever,
        what=st.sampled_from(["activate", "activate", "deactivate", "compromise", "restore"]),
        key=some,
    )
    def propose_a_step(self, which: int, code: str, what: str, key: int) -> None:
        key_id = list(self.model.keys)[key % len(self.model.keys)]
        kinds: dict[str, type[act.Activate | act.Deactivate | act.Compromise | act.Restore]] = {
            "activate": act.Activate,
            "deactivate": act.Deactivate,
            "compromise": act.Compromise,
            "restore": act.Restore,
        }
        self.propose(which, code, {"what": what, "key": key_id}, kinds[what](key_id))

    @precondition(lambda self: self.model.keys)
    @rule(which=vaults, code=whoever, key=some, days=st.sampled_from([0, 1, 4]))
    def propose_to_destroy(self, which: int, code: str, key: int, days: int) -> None:
        key_id = list(self.model.keys)[key % len(self.model.keys)]
        wish = {"what": "destroy", "key": key_id, "days": days}
        self.propose(which, code, wish, act.Destroy(key_id, days))

    @precondition(lambda self: self.model.keys)
    @rule(which=vaults, code=whoever, key=some, minimum=st.integers(1, 4))
    def propose_a_minimum(self, which: int, code: str, key: int, minimum: int) -> None:
        key_id = list(self.model.keys)[key % len(self.model.keys)]
        wish = {"what": "permit", "key": key_id, "minimum": minimum}
        self.propose(which, code, wish, act.Permit(key_id, minimum_version=minimum))

    @rule(which=vaults, code=whoever, who=whoever, roles=st.sampled_from(sorted(ROLES)))
    def propose_to_enrol(self, which: int, code: str, who: str, roles: str) -> None:
        key = private_key(SOCIAL, f"{who} in the model")
        wish = {"what": "enrol", "who": who, "roles": ROLES[roles]}
        action = act.EnrolOfficer(who, who.upper(), ROLES[roles], key.public.encode())
        self.propose(which, code, wish, action)

    @rule(which=vaults, code=whoever, who=whoever)
    def propose_to_retire(self, which: int, code: str, who: str) -> None:
        self.propose(which, code, {"what": "retire", "who": who}, act.RetireOfficer(who))

    def approve_one(self, which: int, code: str, proposal_id: bytes) -> None:
        caller = self.caller(code)
        expected = self.model.why_not_approve(code, proposal_id)
        done = self.ask(which, lambda vault: vault.approve(caller, proposal_id), expected)
        if done is not None:
            self.model.proposals[proposal_id]["open"] = False
            self.model.do(self.model.proposals[proposal_id]["wish"], done.proposal.result)

    @precondition(lambda self: self.model.proposals)
    @rule(which=vaults, code=whoever, choice=some)
    def approve(self, which: int, code: str, choice: int) -> None:
        proposals = list(self.model.proposals)
        self.approve_one(which, code, proposals[choice % len(proposals)])

    @precondition(lambda self: any(p["open"] for p in self.model.proposals.values()))
    @rule(which=vaults, choice=some)
    def approve_as_one_should(self, which: int, choice: int) -> None:
        """The same, with the odds on its being done."""
        waiting = [key for key, p in self.model.proposals.items() if p["open"]]
        proposal_id = waiting[-1 - choice % len(waiting) % 2]
        others = sorted(self.model.deciders() - {self.model.proposals[proposal_id]["by"]})
        self.approve_one(which, others[choice % len(others)], proposal_id)

    @precondition(lambda self: any(p["open"] for p in self.model.proposals.values()))
    @rule(which=vaults, choice=some)
    def approve_ones_own(self, which: int, choice: int) -> None:
        waiting = [key for key, p in self.model.proposals.items() if p["open"]]
        proposal_id = waiting[choice % len(waiting)]
        self.approve_one(which, self.model.proposals[proposal_id]["by"], proposal_id)

    @rule(
        which=vaults,
        elsewhere=st.booleans(),
        choice=some,
        what=st.sampled_from(
            [
                "activate",
                "activate",
                "deactivate",
                "compromise",
                "restore",
                "destroy",
                "permit",
                "retire",
            ]
        ),
        number=st.integers(1, 4),
    )
    def decide(self, which: int, elsewhere: bool, choice: int, what: str, number: int) -> None:
        """Two who may propose and approve at once, at one keyd or at both: most of what is refused is refused here."""
        by, approver = sorted(self.model.deciders())[:2]
        known = len(self.model.proposals)
        if what == "retire":
            self.propose_to_retire(which, by, CODES[choice % len(CODES)])
        elif len(self.model.keys) < number:
            self.propose_a_key(which, by, CEILING * (choice % 2))
        elif what == "destroy":
            self.propose_to_destroy(which, by, choice, number - 1)
        elif what == "permit":
            self.propose_a_minimum(which, by, choice, number)
        else:
            self.propose_a_step(which, by, what, choice)
        if len(self.model.proposals) > known:
            proposal_id = list(self.model.proposals)[-1]
            self.approve_one(1 - which if elsewhere else which, approver, proposal_id)

    @precondition(lambda self: self.model.proposals)
    @rule(which=vaults, code=whoever, choice=some)
    def reject(self, which: int, code: str, choice: int) -> None:
        proposals = list(self.model.proposals)
        proposal_id = proposals[choice % len(proposals)]
        caller = self.caller(code)
        expected = self.model.why_not_reject(code, proposal_id)
        if self.ask(which, lambda vault: vault.reject(caller, proposal_id), expected) is not None:
            self.model.proposals[proposal_id]["open"] = False

    @rule(which=vaults, code=whoever)
    def approve_what_is_not_there(self, which: int, code: str) -> None:
        self.approve_one(which, code, bytes(8))

    @rule(seconds=st.sampled_from([1, 3600, DAY - 1, DAY, DEFAULT_LIFETIME_SECONDS]))
    def wait(self, seconds: int) -> None:
        self.world.clock.now += seconds
        self.model.now += seconds

    @rule(which=vaults)
    def sweep(self, which: int) -> None:
        vault = self.vaults[which]
        if vault is None or vault.is_sealed:
            return
        vault.reload()
        vault.sweep()
        self.model.sweep()

    @rule(which=vaults)
    def reload(self, which: int) -> None:
        vault = self.vaults[which]
        if vault is not None:
            vault.reload()

    @rule(which=vaults)
    def seal(self, which: int) -> None:
        vault = self.vaults[which]
        if vault is not None:
            vault.seal("test")
            assert vault.contents is None
            assert not vault.quotas

    @rule(which=vaults)
    def unseal(self, which: int) -> None:
        vault = self.vaults[which]
        if vault is not None and vault.is_sealed:
            for share in self.world.founded.shares[1:]:
                vault.give_share(share)
            assert not vault.is_sealed

    @rule(which=vaults)
    def kill(self, which: int) -> None:
        """SIGKILL: what was leased and not used is lost, and nothing else is."""
        vault = self.vaults[which]
        if vault is None:
            return
        for key_id, quota in vault.quotas.items():
            self.model.keys[key_id]["lost"] += quota.left
        self.vaults[which] = None
        gc.collect()
        self.vaults[which] = self.world.open_vault()

    @precondition(lambda self: any(key["ceiling"] for key in self.model.keys.values()))
    @rule(which=vaults, times=st.sampled_from([1, 3, 5, 150]))
    def use(self, which: int, times: int) -> None:
        """Compute with the newest version, as the tick does, with a worker that leases in between."""
        vault = self.vaults[which]
        if vault is None or vault.is_sealed or self.is_stale(vault):
            return
        answering = self.model.answers(0, is_verifying=True)
        if not isinstance(answering, int):
            return
        key_id = next(k for k, key in self.model.keys.items() if key["version"] == answering)
        key = self.model.keys[key_id]
        ring = self.ring_of(vault)
        task = CryptogramTask(reference(0, is_verifying=True), bytes(8), bytes(8))
        for _ in range(times):
            (given,) = ring.compute([task])
            if isinstance(given, bytes):
                key["used"] += 1
                continue
            # Nothing is left of the lease: the worker has not been there, or had nothing to bring the last time.
            assert isinstance(given, Overloaded | KeyExhausted)
            vault.renew_quotas()
            ring = self.ring_of(vault)
            (given,) = ring.compute([task])
            if isinstance(given, bytes):
                key["used"] += 1
                continue
            # Really nothing is left: it is used, lost, or the other keyd has it.
            assert isinstance(given, KeyExhausted)
            elsewhere = self.left(key_id)
            assert key["used"] + key["lost"] + elsewhere == key["ceiling"]
            break

    # --- what holds always

    def ring_of(self, vault: Vault) -> KeyRing:
        return KeyRing([], now=self.world.clock) if vault.is_sealed else self.loaded_ring(vault)

    def loaded_ring(self, vault: Vault) -> KeyRing:
        ring = KeyRing([], now=self.world.clock)
        ring.load(contents_of(vault).loaded_keys, vault.quotas)
        return ring

    def left(self, key_id: bytes) -> int:
        return sum(
            vault.quotas[key_id].left
            for vault in self.vaults
            if vault is not None and key_id in vault.quotas
        )

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        if self.auditor is None:
            return
        truth = self.truth
        people = {
            officer.code: {"roles": set(officer.roles), "serves": not officer.is_retired}
            for officer in truth.officers.values()
            if officer.domain is SOCIAL
        }
        assert people == self.model.officers
        opens = {key: p.state == "open" for key, p in truth.proposals.items()}
        assert opens == {key: p["open"] for key, p in self.model.proposals.items()}
        assert set(truth.keys) == set(self.model.keys)
        for key_id, key in self.model.keys.items():
            held = truth.keys[key_id]
            assert (held.header.state, held.header.version) == (key["state"], key["version"])
            assert held.header.minimum_version == key["minimum"]
            assert (held.key is None) == key["gone"]
            if key["ceiling"] and not key["gone"]:
                spent = key["used"] + key["lost"] + self.left(key_id)
                assert held.header.uses == spent
                assert key["used"] <= spent <= key["ceiling"]

    @invariant()
    def a_ring_that_is_up_to_date_answers_as_the_model_does(self) -> None:
        for vault in self.vaults:
            if vault is None or vault.is_sealed or self.is_stale(vault):
                continue
            ring = self.loaded_ring(vault)
            for version in range(min(len(self.model.keys), 4) + 2):
                for is_verifying in (False, True):
                    expected = self.model.answers(version, is_verifying=is_verifying)
                    try:
                        answer: int | type[Refusal] = ring.answering(
                            reference(version, is_verifying=is_verifying)
                        ).version
                    except Refusal as refusal:
                        answer = type(refusal)
                    assert answer == expected

    @invariant()
    def what_a_vault_holds_is_a_state_of_the_store(self) -> None:
        for vault in self.vaults:
            if vault is not None and vault.contents is not None and not self.is_stale(vault):
                held = contents_of(vault)
                assert held.officers == self.truth.officers
                assert held.proposals == self.truth.proposals
                assert {k: v.header for k, v in held.keys.items()} == {
                    k: v.header for k, v in self.truth.keys.items()
                }


TestCustody = Custody.TestCase
TestCustody.settings = settings(
    max_examples=12,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_the_limit_of_open_proposals_is_each_domains_own_and_forgets_what_expired(
    world: World,
) -> None:
    """One domain's flood silences no other, and nobody has to reject what has expired."""
    action = act.GenerateKey(spec(SOCIAL))
    for _ in range(MAX_OPEN_PROPOSALS):
        world.propose(SOCIAL, action)
    with pytest.raises(Overloaded):
        world.propose(SOCIAL, action)
    world.propose(Domain.FINANCE, act.GenerateKey(spec(Domain.FINANCE)))
    world.clock.now += DEFAULT_LIFETIME_SECONDS
    world.propose(SOCIAL, action)


def test_a_note_that_is_too_long_is_not_written(world: World) -> None:
    """A row that could not be read again would close the store for good."""
    officer = world.officer(SOCIAL, "a")
    before = world.store.load()
    for note, lifetime in (("x" * 201, 0), ("", -10 * world.clock.now)):
        with pytest.raises((Refusal, ValueError)):
            world.vault.propose(officer, act.GenerateKey(spec()), note, lifetime)
    assert world.store.load() == before
    world.restart()


@pytest.mark.parametrize(
    "change",
    ["own", "no security officer", "retired proposer", "demoted proposer", "no officer of keys"],
)
def test_an_approval_is_a_second_persons(world: World, change: str) -> None:
    """One by one, what the model finds by chance: each alone is refused, and the proposal stays open."""
    proposal = world.propose(SOCIAL, act.GenerateKey(spec()))
    a, by = world.officer(SOCIAL, "a"), "b"
    expected: type[Refusal] = ProposalClosed
    if change == "own":
        by, expected = "a", OwnProposal
    elif change == "no security officer":
        by, expected = "c", RoleMissing
    elif change == "retired proposer":
        world.approve(world.propose(SOCIAL, act.RetireOfficer("a"), by="d"))
    elif change == "demoted proposer":
        demoted = act.EnrolOfficer("a", "A", (CUSTODIAN,), a.public_key)
        world.approve(world.propose(SOCIAL, demoted, by="d"))
    else:
        by, expected = "e", RoleMissing
    with pytest.raises(expected):
        world.approve(proposal, by=by)
    assert contents_of(world.vault).proposals[proposal.proposal_id].state == "open"
    assert not contents_of(world.vault).keys


@pytest.mark.parametrize("moment", [-1, 0, 1])
def test_a_proposal_ends_in_its_last_second(world: World, moment: int) -> None:
    proposal = world.propose(SOCIAL, act.GenerateKey(spec()))
    world.clock.now = proposal.expires_at + moment
    with contextlib.ExitStack() as stack:
        if moment >= 0:
            stack.enter_context(pytest.raises(ProposalClosed))
        world.approve(proposal)


def test_what_can_be_done_is_done_on_either_database(either_world: World) -> None:
    """The same story on SQLite and on PostgreSQL: two keyds, a race, a restart."""
    world = either_world
    other = world.open_vault()
    proposal = world.propose(SOCIAL, act.GenerateKey(spec(ceiling=CEILING)))
    with pytest.raises(Refusal):
        world.approve(proposal, vault=other)
    other.reload()
    key_id = world.approve(proposal, vault=other).result["key_id"]
    with pytest.raises(Refusal):
        world.approve(proposal)
    world.vault.reload()
    with pytest.raises(ProposalClosed):
        world.approve(proposal)
    world.decide(SOCIAL, act.Activate(key_id))
    other.reload()
    # Each of them has a lease of its own, and both are on record.
    assert world.header(key_id, other).uses == 2 * CEILING // 100
    world.restart()
    assert world.header(key_id).state == "active"
