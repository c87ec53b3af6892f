"""The vault: one keyd's custody of the store. Sealed or open, and every officer's command on what is in it.

Its methods read and write the database and therefore belong on a worker thread; they run one after another, each in a
turn of `keyd.custody.holding`. Each decides from what is held, commits in one transaction, and then what the store says
is held. Nothing is half done: a commit has all rows and the journal's records of them, or none. What may be computed
with is handed to the ring by whoever runs the vault, whenever `contents` is another object than before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from keyd.custody import actions as act
from keyd.custody import enrolling, housekeeping, psams
from keyd.custody.carrying_out import carry_out, require_possible
from keyd.custody.catalogue import Catalogue, shipped_catalogue
from keyd.custody.ceremony import Ceremonies
from keyd.custody.holding import Holding
from keyd.custody.officers import (
    Officer,
    OfficerRole,
    SignedCommand,
    require_role,
    verify_command,
)
from keyd.custody.proposals import (
    ENVELOPES,
    FOR_SHARE,
    Proposal,
    ProposalState,
    make_proposal,
    put_proposal,
    require_approver,
    require_open,
)
from keyd.custody.rekeying import StagedSeal, require_rekey
from keyd.custody.seal import Progress, Unsealing, require_sealed, unwrap_from_keeper
from keyd.custody.work import Outcome, Work
from keyd.errors import (
    BadParameter,
    ComponentRefused,
    ProposalClosed,
    Refusal,
    ShareRefused,
)
from keyd.keys.block import Domain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.crypto.secret import SecretKey
    from keyd.crypto.shares import Share
    from keyd.custody.bodies import SealBody
    from keyd.custody.ceilings import LeasedQuota
    from keyd.custody.contents import Contents
    from keyd.custody.founding import Keeper
    from keyd.custody.work import Event
    from keyd.registry.psam import KeptPsam
    from keyd.registry.terminal import Terminal, TerminalState
    from keyd.store.database import Store


class Approved(Struct, frozen=True):
    """What an approval came to: the proposal as it stands now, and who must still confirm."""

    proposal: Proposal
    waiting_for: tuple[str, ...] = ()


class Vault:
    """Custody of one store. `now` is seconds since 1970.

    `want_lease` is called from the tick when a quota runs low, `new_keepers` when a new seal is made. PSAMs can
    be issued as the catalogue says; as keyd ships it, without one.
    """

    def __init__(
        self,
        store: Store,
        instance: str,
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        want_lease: Callable[[], None],
        new_keepers: Callable[[], Sequence[Keeper]] = list,
        catalogue: Catalogue | None = None,
    ) -> None:
        self._now = now
        self._random_bytes = random_bytes
        self._new_keepers = new_keepers
        self._catalogue = catalogue or shipped_catalogue()
        self._ceremonies = Ceremonies()
        self._staged: dict[bytes, StagedSeal] = {}
        self._unsealing: Unsealing | None = None
        self._holding = Holding(store, instance, now, random_bytes, want_lease)

    # What is held ---------------------------------------------------------------------------------------

    @property
    def contents(self) -> Contents | None:
        """Everything that is held, or None while sealed."""
        return self._holding.contents

    @property
    def is_sealed(self) -> bool:
        """Whether no key is held."""
        return self._holding.contents is None

    @property
    def seal_body(self) -> SealBody:
        """The seal, as far as it may be known while it is closed."""
        return self._holding.seal_body

    @property
    def quotas(self) -> dict[bytes, LeasedQuota]:
        """The leases of keys with a ceiling, by key id."""
        return self._holding.quotas

    @property
    def progress(self) -> Progress:
        """How far unsealing is."""
        if self._unsealing is None:
            return Progress((), self._holding.seal_body.threshold)
        return self._unsealing.progress

    def components_given(self, proposal_id: bytes) -> dict[int, str]:
        """Which components of an import are in, and whose."""
        return self._ceremonies.given(proposal_id)

    def waiting_for(self, proposal_id: bytes) -> tuple[str, ...]:
        """Who must still confirm a staged seal."""
        staged = self._staged.get(proposal_id)
        return tuple(staged.waiting_for) if staged else ()

    # The seal -------------------------------------------------------------------------------------------

    def give_share(self, share: Share) -> Progress:
        """Take one share; with the last one that is needed, unseal.

        Raises:
            NotSealed: there is nothing to unseal.
            ShareRefused: see `keyd.custody.seal.Unsealing.give`.
            StoreUnavailable: the store cannot be read, or somebody has altered it.
        """
        with self._holding.turn():
            require_sealed(self.is_sealed)
            if self._unsealing is None:
                self._unsealing = Unsealing(self._holding.read_seal())
            before = self._unsealing.progress
            key = self._unsealing.give(share)
            if key is None:
                return self._unsealing.progress
            self._unsealing = None
            self._unseal(key, "shares")
            return Progress(tuple(sorted({*before.given, share.number})), before.threshold)

    def unseal_by_keeper(self, keeper: Keeper) -> None:
        """Unseal with a key that a keeper holds: a credential or a token.

        Raises:
            NotSealed, ShareRefused, StoreUnavailable: as `give_share`.
        """
        with self._holding.turn():
            require_sealed(self.is_sealed)
            for wrapped in self._holding.read_seal().keepers:
                if wrapped.keeper == keeper.name and wrapped.hint == keeper.hint:
                    self._unseal(unwrap_from_keeper(wrapped, keeper.key), keeper.name)
                    return
            raise ShareRefused(f"this seal cannot be opened by a {keeper.name}")

    def forget_shares(self) -> None:
        """Let go of shares that were given for an unsealing that was not finished."""
        with self._holding.turn():
            self._unsealing = None

    def seal(self, reason: str = "") -> bool:
        """Let go of every key. The caller wipes key memory in the same tick. Never fails, and may be repeated.

        Returns whether the store has a record of it.
        """
        with self._holding.turn():
            try:
                if not self.is_sealed:
                    self._holding.commit_leases_back()
                    self._holding.record(
                        {"event": "sealed", "domain": Domain.LOCAL.value, "reason": reason}
                    )
            except Refusal:
                # The store is not there: what was leased counts as used, and the seal closes all the same.
                return False
            finally:
                self._let_go()
        return True

    def drop(self) -> None:
        """Let go of everything at once, whatever another thread is waiting for. It will not hold anything again."""
        self._holding.drop()
        self._forget_unfinished()

    def _unseal(self, seal_key: SecretKey, by: str) -> None:
        self._holding.open(seal_key)
        try:
            self._holding.record({"event": "unsealed", "domain": Domain.LOCAL.value, "by": by})
        except Refusal:
            # What the journal does not know did not happen.
            self._let_go()
            raise
        self._holding.renew_quotas_if_possible()

    def _let_go(self) -> None:
        self._holding.let_go()
        self._forget_unfinished()

    def _forget_unfinished(self) -> None:
        self._unsealing = None
        self._staged.clear()
        self._ceremonies.forget_all()

    # Officers' commands ---------------------------------------------------------------------------------

    def officer_of(self, signed: SignedCommand, challenge: bytes) -> Officer:
        """Return the officer who signed a command.

        Raises:
            OfficerNotAuthentic: nobody did, or not for this challenge.
            Sealed: nobody can be told from anybody.
        """
        contents = self._holding.require_contents()
        officer = contents.officer(signed.domain, signed.code)
        verify_command(officer, signed, contents.seal.body.store_id, challenge)
        if officer is None:
            raise RuntimeError("a stranger's command was verified")
        return officer

    def propose(
        self, officer: Officer, action: act.Action, note: str = "", lifetime: int = 0
    ) -> Proposal:
        """Propose an action to the other security officers of the domain.

        Raises:
            RoleMissing: the officer is no security officer.
            Overloaded: too many proposals are open.
            Refusal: it could not be carried out anyway.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            require_role(officer, OfficerRole.SECURITY_OFFICER)
            now = self._seconds()
            require_possible(contents, officer.domain, action, now, self._catalogue)
            proposal = make_proposal(
                contents, officer, action, note, lifetime, now, self._random_bytes
            )
            outcome = Outcome(
                [put_proposal(contents, proposal, self._random_bytes)],
                [_about(proposal, officer, "proposal.made")],
            )
            self._holding.commit(outcome)
            return proposal

    def approve(self, officer: Officer, proposal_id: bytes) -> Approved:
        """Approve what another officer proposed, and carry it out.

        Raises:
            OwnProposal, RoleMissing, DomainCrossed, ProposalClosed, ProposalNotFound: it is not theirs to approve.
            Refusal: it cannot be carried out; the proposal stays open.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            proposal = contents.proposal(proposal_id, officer.domain)
            now = self._seconds()
            require_approver(
                proposal, officer, contents.officer(proposal.domain, proposal.proposed_by)
            )
            require_open(proposal, now)
            if isinstance(proposal.action, act.Rekey):
                return self._stage(contents, proposal, proposal.action, officer)
            combined = (
                self._ceremonies.combine(proposal)
                if isinstance(proposal.action, act.ImportKey)
                else None
            )
            try:
                if isinstance(proposal.action, act.Permit):
                    # A new ceiling is held against what was used, not against what was leased.
                    contents = self._holding.commit_leases_back(proposal.action.key_id)
                work = Work(
                    contents, proposal, officer, now, self._random_bytes, self._catalogue, combined
                )
                outcome = carry_out(work)
                done = proposal.decided(
                    ProposalState.DONE, officer, self._seconds(), outcome.result
                )
                outcome.changes.append(put_proposal(contents, done, self._random_bytes))
                outcome.events.append(_about(proposal, officer, "proposal.approved"))
                self._holding.commit(outcome)
                self._ceremonies.forget(proposal_id)
            finally:
                # Also after a refusal, which must not leave a key without the lease that it had.
                self._holding.renew_quotas_if_possible()
            return Approved(done)

    def reject(self, officer: Officer, proposal_id: bytes) -> Proposal:
        """Reject a proposal, or take one's own back. It needs one security officer.

        Raises:
            RoleMissing, ProposalNotFound, ProposalClosed: it is not theirs to reject, or too late.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            require_role(officer, OfficerRole.SECURITY_OFFICER)
            proposal = contents.proposal(proposal_id, officer.domain)
            if proposal.is_closed:
                raise ProposalClosed(f"the proposal is {proposal.state} already")
            rejected = proposal.decided(ProposalState.REJECTED, officer, self._seconds(), {})
            outcome = Outcome(
                [put_proposal(contents, rejected, self._random_bytes)],
                [_about(proposal, officer, "proposal.rejected")],
            )
            self._holding.commit(outcome)
            self._ceremonies.forget(proposal_id)
            self._staged.pop(proposal_id, None)
            return rejected

    def enter_component(
        self, officer: Officer, proposal_id: bytes, number: int, envelope: bytes, kcv: bytes
    ) -> dict[int, str]:
        """Enter one component; return which are in, and whose.

        Raises:
            RoleMissing: the officer is no custodian.
            ProposalNotFound, ProposalClosed, ComponentRefused: see `keyd.custody.ceremony`.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            require_role(officer, OfficerRole.CUSTODIAN)
            proposal = contents.proposal(proposal_id, officer.domain)
            require_open(proposal, self._seconds())
            self._ceremonies.enter(proposal, officer, number, envelope, kcv, contents.identity)
            event = _about(proposal, officer, "component.entered")
            event |= {"number": number, "kcv": kcv.hex().upper()}
            try:
                self._holding.record(event)
            except Refusal:
                # What the journal does not know did not happen.
                self._ceremonies.take_back(proposal_id, number)
                raise
            return self._ceremonies.given(proposal_id)

    def take(self, officer: Officer, proposal_id: bytes) -> bytes:
        """Give a custodian the component or the share that a proposal made for them: encrypted to their key.

        Raises:
            ComponentRefused: there is none for them.
            ProposalNotFound: there is no such proposal.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            proposal = contents.proposal(proposal_id, officer.domain)
            for what, prefix in ENVELOPES.items():
                envelope = proposal.result.get(prefix + officer.code)
                if envelope is not None:
                    self._holding.record(_about(proposal, officer, f"{what}.taken"))
                    return envelope
            raise ComponentRefused(f"the proposal has nothing for {officer.code}")

    def confirm_share(self, officer: Officer, proposal_id: bytes, commitment: bytes) -> Approved:
        """Take a custodian's proof of having the new share; with the last one, the new seal takes effect.

        Raises:
            ShareRefused: it is not the share, or the staged seal was forgotten with a restart.
            ProposalNotFound, ProposalClosed: there is no such staged seal, or it has expired.
        """
        with self._holding.turn():
            contents = self._holding.require_contents()
            officer = _serving(contents, officer)
            proposal = contents.proposal(proposal_id, officer.domain)
            if proposal.state is not ProposalState.STAGED or self._seconds() >= proposal.expires_at:
                raise ProposalClosed(
                    "there is no seal that waits to be confirmed, or it has expired"
                )
            staged = self._staged.get(proposal_id)
            if staged is None:
                raise ShareRefused(
                    "this keyd has forgotten the staged seal: reject the proposal and rekey again"
                )
            is_new = staged.confirm(officer.code, commitment)
            try:
                self._holding.record(_about(proposal, officer, "share.confirmed"))
            except Refusal:
                # What the journal does not know did not happen.
                if is_new:
                    staged.take_back(officer.code)
                raise
            if staged.waiting_for:
                return Approved(proposal, tuple(staged.waiting_for))
            try:
                return Approved(self._take_effect(proposal, officer, staged))
            finally:
                self._holding.renew_quotas_if_possible()

    def record(self, officer: Officer, name: str, **nouns: object) -> None:
        """Put a record of something that an officer did outside the store into the journal's outbox."""
        with self._holding.turn():
            self._holding.record(
                {"event": name, "domain": officer.domain.value, "officer": officer.title} | nouns
            )

    # Terminals --------------------------------------------------------------------------------------

    def stop_terminal(
        self, officer: Officer, code: str, to: TerminalState, reason: str
    ) -> Terminal:
        """Stop a terminal, by one officer.

        Raises:
            RoleMissing: the officer is neither security officer nor operator.
            DomainCrossed, TerminalNotFound, TerminalStateRefused: there is nothing to stop.
        """
        with self._holding.turn():

            def decide(contents: Contents) -> tuple[Outcome, None]:
                serving = _serving(contents, officer)
                require_role(serving, OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR)
                now = self._seconds()
                return (
                    enrolling.stop(contents, serving, code, to, reason, now, self._random_bytes),
                    None,
                )

            self._holding.decide_on_the_newest(decide)
            return self._holding.require_contents().terminal(code)

    def lose_psam(self, officer: Officer, number: str, reason: str) -> KeptPsam:
        """Report a PSAM that keyd plays lost, by one officer.

        Raises:
            RoleMissing: the officer is neither security officer nor operator.
            DomainCrossed, PsamNotFound, PsamStateRefused, BadParameter: there is nothing to lose.
        """
        with self._holding.turn():

            def decide(contents: Contents) -> tuple[Outcome, None]:
                serving = _serving(contents, officer)
                require_role(serving, OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR)
                now = self._seconds()
                return psams.lose(contents, serving, number, reason, now, self._random_bytes), None

            self._holding.decide_on_the_newest(decide)
            return self._holding.require_contents().psam(number)

    def enrol_terminal(self, code: str, enrolment_code: str, request: bytes) -> bytes:
        """Issue a certificate to a machine that has an enrolment code; return it with its CA's, in PEM.

        Raises:
            BadParameter, EnrolmentRefused: see `keyd.custody.enrolling.enrol_with_code`.
        """
        with self._holding.turn():
            return self._holding.decide_on_the_newest(
                lambda contents: enrolling.enrol_with_code(
                    contents, code, enrolment_code, request, self._seconds(), self._random_bytes
                )
            )

    def renew_certificate(self, code: str, request: bytes) -> bytes:
        """Issue the next certificate to a terminal that has proven itself; return it with its CA's, in PEM.

        Raises:
            EnrolmentRefused: see `keyd.custody.enrolling.renew`.
        """
        with self._holding.turn():
            return self._holding.decide_on_the_newest(
                lambda contents: enrolling.renew(
                    contents, code, request, self._seconds(), self._random_bytes
                )
            )

    def _stage(
        self, contents: Contents, proposal: Proposal, action: act.Rekey, officer: Officer
    ) -> Approved:
        custodians = require_rekey(contents, proposal.domain, action)
        staged = StagedSeal(contents, action, custodians, self._seconds(), self._random_bytes)
        result = {FOR_SHARE + code: sealed for code, sealed in staged.envelopes.items()}
        result["salt"] = staged.salt
        waiting = proposal.decided(ProposalState.STAGED, officer, self._seconds(), result)
        outcome = Outcome(
            [put_proposal(contents, waiting, self._random_bytes)],
            [
                _about(proposal, officer, "proposal.approved"),
                _about(proposal, officer, "seal.staged"),
            ],
        )
        self._holding.commit(outcome)
        self._staged = {proposal.proposal_id: staged}
        return Approved(waiting, tuple(staged.waiting_for))

    def _take_effect(self, proposal: Proposal, officer: Officer, staged: StagedSeal) -> Proposal:
        if isinstance(proposal.action, act.Rekey):
            # Somebody may have left since confirming: then the seal would be in the hands of a stranger.
            require_rekey(self._holding.require_contents(), proposal.domain, proposal.action)
        contents = self._holding.commit_leases_back()
        done = msgspec.structs.replace(
            contents.proposal(proposal.proposal_id, proposal.domain),
            state=ProposalState.DONE,
            result={},
        )
        keepers = staged.wrapped_for(self._new_keepers())
        puts, seal = staged.rows(contents, done, keepers)
        event = _about(proposal, officer, "seal.rekeyed")
        event |= {
            "generation": seal.body.generation,
            "threshold": seal.body.threshold,
            "shares": len(seal.body.shares),
            "keepers": [keeper.keeper for keeper in seal.body.keepers],
        }
        self._holding.commit(Outcome(list(puts), [event]), seal)
        self._staged.clear()
        staged.seal_key.handle.free()
        return self._holding.require_contents().proposal(proposal.proposal_id, proposal.domain)

    # Housekeeping ---------------------------------------------------------------------------------------

    def reload(self) -> bool:
        """Hold what the store says, if it has changed since. Returns whether it had.

        Raises:
            StoreUnavailable: it cannot be read.
            StoreNotOurs: it was altered, or has another seal now: then keyd must be sealed.
        """
        with self._holding.turn():
            has_changed = self._holding.reload()
            if has_changed:
                # Another keyd may have let a key be used, or given uses back: without a lease it would never serve.
                self._holding.renew_quotas_if_possible()
            return has_changed

    def sweep(self) -> bool:
        """Delete what nobody may have any more: keys whose waiting period is over, old proposals, their envelopes.

        Returns whether there was anything to do.
        """
        with self._holding.turn():
            contents = self._holding.contents
            if contents is None:
                return False
            now = self._seconds()
            self._forget_ceremonies(contents, now)
            outcome = housekeeping.sweep(contents, now, self._random_bytes)
            if not outcome.changes:
                return False
            self._holding.commit(outcome)
            return True

    def _forget_ceremonies(self, contents: Contents, now: int) -> None:
        still_open = {key: p for key, p in contents.proposals.items() if not p.is_over(now)}
        self._ceremonies.forget_others(still_open)
        for proposal_id in [known for known in self._staged if known not in still_open]:
            del self._staged[proposal_id]

    def renew_quotas(self) -> None:
        """Take another lease for every key with a ceiling whose quota is low, and write it before it is used.

        Raises:
            StoreUnavailable: the store cannot be written; what was leased before may still be used.
        """
        self._holding.renew_quotas()

    def close(self) -> None:
        """Hand leases back, so that an orderly end costs no use."""
        with self._holding.turn():
            if not self.is_sealed:
                self._holding.commit_leases_back()

    def _seconds(self) -> int:
        return int(self._now())


def _serving(contents: Contents, officer: Officer) -> Officer:
    """Return the officer as the store has them now: a role may have been taken since the signature."""
    now = contents.officer(officer.domain, officer.code)
    if now is None or now.is_retired or now.public_key != officer.public_key:
        raise BadParameter(f"{officer.title} serves no more")
    return now


def _about(proposal: Proposal, officer: Officer, name: str) -> Event:
    return {
        "event": name,
        "domain": proposal.domain.value,
        "officer": officer.title,
        "proposal": proposal.proposal_id.hex(),
        "action": str(msgspec.to_builtins(proposal.action)["action"]),
    }
