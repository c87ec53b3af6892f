"""The vault: one keyd's custody of the store. Sealed or open, and every officer's command on what is in it.

Its methods read and write the database and therefore belong on a worker thread; one lock lets them run one after
another. Each decides from what is held, commits in one transaction, and then holds what the store says. Nothing is
half done: a commit has all rows and the journal's records of them, or none. What may be computed with is handed to
the ring by whoever runs the vault, whenever `contents` is another object than before.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from msgspec import Struct

from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody import enrolling, lifecycle, psams
from keyd.custody.bodies import (
    SealBody,
    StoreAltered,
    StoreNotOurs,
    decode,
    seal_key_row,
    seal_row,
)
from keyd.custody.carrying_out import (
    carry_out,
    near_its_ceiling,
    require_possible,
    require_rekey,
)
from keyd.custody.catalogue import Catalogue, shipped_catalogue
from keyd.custody.ceilings import LeasedQuota, next_lease
from keyd.custody.ceremony import Ceremonies
from keyd.custody.contents import Contents, open_contents
from keyd.custody.officers import (
    Officer,
    OfficerRole,
    SignedCommand,
    require_role,
    verify_command,
)
from keyd.custody.proposals import (
    DEFAULT_LIFETIME_SECONDS,
    ENVELOPES,
    FOR_SHARE,
    MAX_CLOSED_PROPOSALS,
    MAX_LIFETIME_SECONDS,
    MAX_OPEN_PROPOSALS,
    PROPOSAL_ID_BYTES,
    Proposal,
    ProposalState,
    require_approver,
    require_open,
)
from keyd.custody.rekeying import StagedSeal
from keyd.custody.seal import (
    OpenSeal,
    Progress,
    Unsealing,
    open_seal,
    require_sealed,
    unwrap_from_keeper,
    wrap_for_keeper,
)
from keyd.custody.work import Outcome, Work
from keyd.errors import (
    BadParameter,
    ChangedMeanwhile,
    ComponentRefused,
    Overloaded,
    ProposalClosed,
    Refusal,
    Sealed,
    ShareRefused,
    StoreUnavailable,
)
from keyd.keys.block import Domain, KeyState
from keyd.store.database import OutcomeUnknown
from keyd.store.rows import Drop, Kind, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from keyd.crypto.shares import Share
    from keyd.custody.founding import Keeper
    from keyd.custody.work import Event
    from keyd.registry.psam import KeptPsam
    from keyd.registry.terminal import Terminal, TerminalState
    from keyd.store.database import Store
    from keyd.store.rows import Snapshot

T = TypeVar("T")

# Another keyd at the same store may win a race for a row; a third time in a row is not a race any more.
_TRIES: Final = 3

# States in which a key computes, and so has uses to count.
_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.DEACTIVATED})

_RACE: Final = "other keyds keep changing the store: trying again later"


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
        self._store = store
        self._instance = instance
        self._now = now
        self._random_bytes = random_bytes
        self._want_lease = want_lease
        self._new_keepers = new_keepers
        self._catalogue = catalogue or shipped_catalogue()
        self._lock = threading.RLock()
        # Grows when everything is dropped: a turn that began before must not bring anything back.
        self._epoch = 0
        self._turn_epoch = 0
        self._turns = 0
        self._ceremonies = Ceremonies()
        self._staged: dict[bytes, StagedSeal] = {}
        self._unsealing: Unsealing | None = None
        self._contents: Contents | None = None
        self._quotas: dict[bytes, LeasedQuota] = {}
        self._seal_body = self._read_seal()

    # What is held ---------------------------------------------------------------------------------------

    @property
    def contents(self) -> Contents | None:
        """Everything that is held, or None while sealed."""
        return self._contents

    @property
    def is_sealed(self) -> bool:
        """Whether no key is held."""
        return self._contents is None

    @property
    def seal_body(self) -> SealBody:
        """The seal, as far as it may be known while it is closed."""
        return self._seal_body

    @property
    def quotas(self) -> dict[bytes, LeasedQuota]:
        """The leases of keys with a ceiling, by key id."""
        return self._quotas

    @property
    def progress(self) -> Progress:
        """How far unsealing is."""
        if self._unsealing is None:
            return Progress((), self._seal_body.threshold)
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
        with self._turn():
            require_sealed(self.is_sealed)
            if self._unsealing is None:
                self._seal_body = self._read_seal()
                self._unsealing = Unsealing(self._seal_body)
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
        with self._turn():
            require_sealed(self.is_sealed)
            self._seal_body = self._read_seal()
            for wrapped in self._seal_body.keepers:
                if wrapped.keeper == keeper.name and wrapped.hint == keeper.hint:
                    self._unseal(unwrap_from_keeper(wrapped, keeper.key), keeper.name)
                    return
            raise ShareRefused(f"this seal cannot be opened by a {keeper.name}")

    def forget_shares(self) -> None:
        """Let go of shares that were given for an unsealing that was not finished."""
        with self._turn():
            self._unsealing = None

    def seal(self, reason: str = "") -> bool:
        """Let go of every key. The caller wipes key memory in the same tick. Never fails, and may be repeated.

        Returns whether the store has a record of it.
        """
        with self._turn():
            try:
                if self._contents is not None:
                    self._commit_leases_back()
                    self._record(
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
        self._epoch += 1
        self._let_go()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one thread work at a time; turns may be nested."""
        with self._lock:
            if not self._turns:
                self._turn_epoch = self._epoch
            self._turns += 1
            try:
                yield
            finally:
                self._turns -= 1

    def _unseal(self, seal_key: SecretKey, by: str) -> None:
        snapshot = self._store.load()
        seal = self._opened(lambda: open_seal(seal_key, snapshot.rows))
        self._seal_body = seal.body
        self._hold(self._opened(lambda: open_contents(snapshot, seal)))
        try:
            self._record({"event": "unsealed", "domain": Domain.LOCAL.value, "by": by})
        except Refusal:
            # What the journal does not know did not happen.
            self._let_go()
            raise
        self._renew_quotas_if_possible()

    def _let_go(self) -> None:
        self._contents = None
        self._quotas = {}
        self._unsealing = None
        self._staged.clear()
        self._ceremonies.forget_all()

    def _read_seal(self) -> SealBody:
        rows = [row for row in self._store.load().rows if row.kind is Kind.SEAL]
        if len(rows) != 1:
            raise StoreUnavailable("the store has no seal: keyd init founds one")
        return self._opened(lambda: decode(rows[0], SealBody))

    @staticmethod
    def _opened(opening: Callable[[], T]) -> T:
        try:
            return opening()
        except StoreAltered as error:
            # Fail closed: what somebody has changed is not served, and says so until an operator looks.
            raise StoreNotOurs(f"the store was altered: {error}") from None

    # Officers' commands ---------------------------------------------------------------------------------

    def officer_of(self, signed: SignedCommand, challenge: bytes) -> Officer:
        """Return the officer who signed a command.

        Raises:
            OfficerNotAuthentic: nobody did, or not for this challenge.
            Sealed: nobody can be told from anybody.
        """
        contents = self._open_contents()
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
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
            require_role(officer, OfficerRole.SECURITY_OFFICER)
            now = self._seconds()
            require_possible(contents, officer.domain, action, now, self._catalogue)
            # Another domain's flood is none of this one's business, and what has expired waits for nobody.
            open_now = [
                p
                for p in contents.proposals.values()
                if p.domain is officer.domain and not p.is_closed and now < p.expires_at
            ]
            if len(open_now) >= MAX_OPEN_PROPOSALS:
                raise Overloaded("there are as many open proposals as there may be: decide on some")
            lifetime = lifetime or DEFAULT_LIFETIME_SECONDS
            proposal = Proposal(
                proposal_id=self._random_bytes(PROPOSAL_ID_BYTES),
                domain=officer.domain,
                action=action,
                note=note,
                proposed_by=officer.code,
                proposed_at=now,
                expires_at=now + min(lifetime, MAX_LIFETIME_SECONDS),
            )
            outcome = Outcome(
                [self._put_proposal(contents, proposal)],
                [_about(proposal, officer, "proposal.made")],
            )
            self._commit(outcome)
            return proposal

    def approve(self, officer: Officer, proposal_id: bytes) -> Approved:
        """Approve what another officer proposed, and carry it out.

        Raises:
            OwnProposal, RoleMissing, DomainCrossed, ProposalClosed, ProposalNotFound: it is not theirs to approve.
            Refusal: it cannot be carried out; the proposal stays open.
        """
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
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
                    contents = self._commit_leases_back(proposal.action.key_id)
                work = Work(
                    contents, proposal, officer, now, self._random_bytes, self._catalogue, combined
                )
                outcome = carry_out(work)
                done = self._decided(proposal, officer, ProposalState.DONE, outcome.result)
                outcome.changes.append(self._put_proposal(contents, done))
                outcome.events.append(_about(proposal, officer, "proposal.approved"))
                self._commit(outcome)
                self._ceremonies.forget(proposal_id)
            finally:
                # Also after a refusal, which must not leave a key without the lease that it had.
                self._renew_quotas_if_possible()
            return Approved(done)

    def reject(self, officer: Officer, proposal_id: bytes) -> Proposal:
        """Reject a proposal, or take one's own back. It needs one security officer.

        Raises:
            RoleMissing, ProposalNotFound, ProposalClosed: it is not theirs to reject, or too late.
        """
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
            require_role(officer, OfficerRole.SECURITY_OFFICER)
            proposal = contents.proposal(proposal_id, officer.domain)
            if proposal.is_closed:
                raise ProposalClosed(f"the proposal is {proposal.state} already")
            rejected = self._decided(proposal, officer, ProposalState.REJECTED, {})
            outcome = Outcome(
                [self._put_proposal(contents, rejected)],
                [_about(proposal, officer, "proposal.rejected")],
            )
            self._commit(outcome)
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
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
            require_role(officer, OfficerRole.CUSTODIAN)
            proposal = contents.proposal(proposal_id, officer.domain)
            require_open(proposal, self._seconds())
            self._ceremonies.enter(proposal, officer, number, envelope, kcv, contents.identity)
            event = _about(proposal, officer, "component.entered")
            event |= {"number": number, "kcv": kcv.hex().upper()}
            try:
                self._record(event)
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
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
            proposal = contents.proposal(proposal_id, officer.domain)
            for what, prefix in ENVELOPES.items():
                envelope = proposal.result.get(prefix + officer.code)
                if envelope is not None:
                    self._record(_about(proposal, officer, f"{what}.taken"))
                    return envelope
            raise ComponentRefused(f"the proposal has nothing for {officer.code}")

    def confirm_share(self, officer: Officer, proposal_id: bytes, commitment: bytes) -> Approved:
        """Take a custodian's proof of having the new share; with the last one, the new seal takes effect.

        Raises:
            ShareRefused: it is not the share, or the staged seal was forgotten with a restart.
            ProposalNotFound, ProposalClosed: there is no such staged seal, or it has expired.
        """
        with self._turn():
            contents = self._open_contents()
            officer = self._serving(contents, officer)
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
                self._record(_about(proposal, officer, "share.confirmed"))
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
                self._renew_quotas_if_possible()

    def record(self, officer: Officer, name: str, **nouns: object) -> None:
        """Put a record of something that an officer did outside the store into the journal's outbox."""
        with self._turn():
            self._record(
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
        with self._turn():

            def decide(contents: Contents) -> tuple[Outcome, None]:
                serving = self._serving(contents, officer)
                require_role(serving, OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR)
                now = self._seconds()
                return (
                    enrolling.stop(contents, serving, code, to, reason, now, self._random_bytes),
                    None,
                )

            self._decide_on_the_newest(decide)
            return self._open_contents().terminal(code)

    def lose_psam(self, officer: Officer, number: str, reason: str) -> KeptPsam:
        """Report a PSAM that keyd plays lost, by one officer.

        Raises:
            RoleMissing: the officer is neither security officer nor operator.
            DomainCrossed, PsamNotFound, PsamStateRefused, BadParameter: there is nothing to lose.
        """
        with self._turn():

            def decide(contents: Contents) -> tuple[Outcome, None]:
                serving = self._serving(contents, officer)
                require_role(serving, OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR)
                now = self._seconds()
                return psams.lose(contents, serving, number, reason, now, self._random_bytes), None

            self._decide_on_the_newest(decide)
            return self._open_contents().psam(number)

    def enrol_terminal(self, code: str, enrolment_code: str, request: bytes) -> bytes:
        """Issue a certificate to a machine that has an enrolment code; return it with its CA's, in PEM.

        Raises:
            BadParameter, EnrolmentRefused: see `keyd.custody.enrolling.enrol_with_code`.
        """
        with self._turn():
            return self._decide_on_the_newest(
                lambda contents: enrolling.enrol_with_code(
                    contents, code, enrolment_code, request, self._seconds(), self._random_bytes
                )
            )

    def renew_certificate(self, code: str, request: bytes) -> bytes:
        """Issue the next certificate to a terminal that has proven itself; return it with its CA's, in PEM.

        Raises:
            EnrolmentRefused: see `keyd.custody.enrolling.renew`.
        """
        with self._turn():
            return self._decide_on_the_newest(
                lambda contents: enrolling.renew(
                    contents, code, request, self._seconds(), self._random_bytes
                )
            )

    def _decide_on_the_newest(self, decide: Callable[[Contents], tuple[Outcome, T]]) -> T:
        """Decide, and decide again if another keyd was quicker: nobody has to come back for that."""
        for _ in range(_TRIES):
            outcome, answer = decide(self._open_contents())
            try:
                self._commit(outcome)
            except ChangedMeanwhile:
                continue  # what is held is the newest by now
            return answer
        raise StoreUnavailable(_RACE)

    def _stage(
        self, contents: Contents, proposal: Proposal, action: act.Rekey, officer: Officer
    ) -> Approved:
        custodians = require_rekey(contents, proposal.domain, action)
        staged = StagedSeal(contents, action, custodians, self._seconds(), self._random_bytes)
        result = {FOR_SHARE + code: sealed for code, sealed in staged.envelopes.items()}
        result["salt"] = staged.salt
        waiting = self._decided(proposal, officer, ProposalState.STAGED, result)
        outcome = Outcome(
            [self._put_proposal(contents, waiting)],
            [
                _about(proposal, officer, "proposal.approved"),
                _about(proposal, officer, "seal.staged"),
            ],
        )
        self._commit(outcome)
        self._staged = {proposal.proposal_id: staged}
        return Approved(waiting, tuple(staged.waiting_for))

    def _take_effect(self, proposal: Proposal, officer: Officer, staged: StagedSeal) -> Proposal:
        if isinstance(proposal.action, act.Rekey):
            # Somebody may have left since confirming: then the seal would be in the hands of a stranger.
            require_rekey(self._open_contents(), proposal.domain, proposal.action)
        contents = self._commit_leases_back()
        done = msgspec.structs.replace(
            contents.proposal(proposal.proposal_id, proposal.domain),
            state=ProposalState.DONE,
            result={},
        )
        keepers = [
            wrap_for_keeper(
                staged.seal_key, keeper.name, keeper.hint, keeper.key, self._random_bytes
            )
            for keeper in self._new_keepers()
        ]
        changed = msgspec.structs.replace(
            contents,
            opened={
                place: (row, done if thing is not None and place[1] == done.proposal_id else thing)
                for place, (row, thing) in contents.opened.items()
            },
        )
        puts, seal = staged.rows(changed, keepers)
        event = _about(proposal, officer, "seal.rekeyed")
        event |= {
            "generation": seal.body.generation,
            "threshold": seal.body.threshold,
            "shares": len(seal.body.shares),
            "keepers": [keeper.keeper for keeper in seal.body.keepers],
        }
        self._commit(Outcome(list(puts), [event]), seal)
        self._staged.clear()
        staged.seal_key.handle.free()
        return self._open_contents().proposal(proposal.proposal_id, proposal.domain)

    # Housekeeping ---------------------------------------------------------------------------------------

    def reload(self) -> bool:
        """Hold what the store says, if it has changed since. Returns whether it had.

        Raises:
            StoreUnavailable: it cannot be read.
            StoreNotOurs: it was altered, or has another seal now: then keyd must be sealed.
        """
        with self._turn():
            has_changed = self._reload()
            if has_changed:
                # Another keyd may have let a key be used, or given uses back: without a lease it would never serve.
                self._renew_quotas_if_possible()
            return has_changed

    def sweep(self) -> bool:
        """Delete what nobody may have any more: keys whose waiting period is over, old proposals, their envelopes.

        Returns whether there was anything to do.
        """
        with self._turn():
            contents = self._contents
            if contents is None:
                return False
            now = self._seconds()
            self._forget_ceremonies(contents, now)
            outcome = self._gone_keys(contents, now)
            outcome.changes += self._tidied_proposals(contents, now)
            if not outcome.changes:
                return False
            self._commit(outcome)
            return True

    def _forget_ceremonies(self, contents: Contents, now: int) -> None:
        still_open = {
            key: p
            for key, p in contents.proposals.items()
            if not p.is_closed and now < p.expires_at
        }
        self._ceremonies.forget_others(still_open)
        for proposal_id in [known for known in self._staged if known not in still_open]:
            del self._staged[proposal_id]

    def _gone_keys(self, contents: Contents, now: int) -> Outcome:
        outcome = Outcome()
        for held in contents.keys.values():
            header = held.header
            is_over = header.state is KeyState.DESTROYED and now >= header.destroy_after
            if held.key is None or not is_over:
                continue
            lmk = contents.seal.wrapping_keys[header.domain]
            gone = seal_key_row(lmk, lifecycle.changed(header), None, self._random_bytes)
            outcome.changes.append(Put(gone))
            outcome.events.append(
                {
                    "event": "key.gone",
                    "domain": header.domain.value,
                    "key": header.label,
                    "key_id": header.key_id.hex(),
                }
            )
        return outcome

    def _tidied_proposals(self, contents: Contents, now: int) -> list[Put | Drop]:
        over = [p for p in contents.proposals.values() if p.is_closed or now >= p.expires_at]
        over.sort(key=lambda p: p.expires_at)
        too_many = max(0, len(over) - MAX_CLOSED_PROPOSALS)
        changes: list[Put | Drop] = [
            Drop(Kind.PROPOSAL, p.proposal_id, p.revision) for p in over[:too_many]
        ]
        # Whoever was to have a component or a share has it by then; backups need no copy of it.
        changes += [
            self._put_proposal(contents, p.without_envelopes())
            for p in over[too_many:]
            if now >= p.expires_at and p.has_envelopes
        ]
        return changes

    def renew_quotas(self) -> None:
        """Take another lease for every key with a ceiling whose quota is low, and write it before it is used.

        Raises:
            StoreUnavailable: the store cannot be written; what was leased before may still be used.
        """
        with self._turn():
            for _ in range(_TRIES):
                try:
                    self._renew_quotas()
                except ChangedMeanwhile:
                    continue  # what is held is the newest by now
                else:
                    return
            raise StoreUnavailable(_RACE)

    def close(self) -> None:
        """Hand leases back, so that an orderly end costs no use."""
        with self._turn():
            if self._contents is not None:
                self._commit_leases_back()

    def _renew_quotas_if_possible(self) -> None:
        # What was asked for is done whatever becomes of the leases: they are tried again when they are needed.
        with contextlib.suppress(Refusal):
            self.renew_quotas()

    def _renew_quotas(self) -> None:
        contents = self._open_contents()
        outcome = Outcome()
        leases: list[tuple[LeasedQuota, int, bool]] = []
        for held in contents.keys.values():
            header = held.header
            # Transport keys have levels 0: their uses are counted one by one where they are used.
            if not (header.ceiling and header.levels and held.key and header.state in _LIVE):
                continue
            quota = self._quotas.setdefault(
                header.key_id, LeasedQuota(header.key_id, self._want_lease)
            )
            if not quota.is_low:
                continue
            lease = next_lease(header)
            uses = header.uses + lease
            leases.append((quota, lease, uses >= header.ceiling))
            if not lease:
                continue
            leased = lifecycle.changed(header, uses=uses)
            lmk = contents.seal.wrapping_keys[header.domain]
            outcome.changes.append(Put(seal_key_row(lmk, leased, held.key, self._random_bytes)))
            if header.warn_at and header.uses < header.warn_at <= uses:
                outcome.events.append(near_its_ceiling(leased))
        if outcome.changes:
            self._commit(outcome)
        for quota, lease, is_final in leases:
            quota.add(lease, is_final=is_final)

    def _commit_leases_back(self, key_id: bytes | None = None) -> Contents:
        """Hand back what is left of one key's lease, or of all; return what is held then."""
        for _ in range(_TRIES):
            try:
                self._give_leases_back(key_id)
            except ChangedMeanwhile:
                continue  # what is held is the newest by now
            return self._open_contents()
        raise StoreUnavailable(_RACE)

    def _give_leases_back(self, key_id: bytes | None) -> None:
        contents = self._open_contents()
        outcome = Outcome()
        returned: list[tuple[LeasedQuota, int]] = []
        for quota in self._quotas.values():
            if key_id is not None and quota.key_id != key_id:
                continue
            held = contents.keys.get(quota.key_id)
            left = quota.give_back()
            if held is None or held.key is None or not left:
                continue
            returned.append((quota, left))
            header = lifecycle.changed(held.header, uses=max(0, held.header.uses - left))
            lmk = contents.seal.wrapping_keys[header.domain]
            outcome.changes.append(Put(seal_key_row(lmk, header, held.key, self._random_bytes)))
        if not outcome.changes:
            return
        try:
            self._commit(outcome)
        except (OutcomeUnknown, StoreNotOurs):
            # They may be back already, for another keyd to use: whoever keeps them as well exceeds the ceiling.
            raise
        except Refusal:
            for quota, left in returned:
                quota.add(left, is_final=False)
            raise

    # Writing --------------------------------------------------------------------------------------------

    def _commit(self, outcome: Outcome, seal: OpenSeal | None = None) -> None:
        """Write all of it or nothing, and hold what the store then says.

        Raises:
            ChangedMeanwhile, StoreUnavailable: nothing was written.
            OutcomeUnknown: it may have been.
        """
        contents = self._open_contents()
        try:
            self._store.commit(
                outcome.changes,
                [self._encoded(event) for event in outcome.events],
                self._instance,
                expected_number=contents.number,
            )
        except ChangedMeanwhile:
            self._reload()
            raise
        except OutcomeUnknown:
            with contextlib.suppress(Refusal):
                self._reload()
            raise
        try:
            snapshot = self._store.load()
        except StoreUnavailable as error:
            raise OutcomeUnknown(
                f"{error.detail} since; what was asked for was done before that: look before asking again"
            ) from None
        if seal is not None:
            self._seal_body = seal.body
            self._hold(self._opened(lambda: open_contents(snapshot, seal)))
        else:
            self._hold(self._reopened(contents, snapshot))

    def _record(self, event: Event) -> None:
        self._store.commit([], [self._encoded(event)], self._instance)
        if self._contents is not None:
            # Nothing but the number has changed, unless another keyd was quicker: then it is read anew.
            self._reload()

    def _reload(self) -> bool:
        contents = self._contents
        if contents is None or self._store.change_number() == contents.number:
            return False
        self._hold(self._reopened(contents, self._store.load()))
        return True

    def _encoded(self, event: Event) -> bytes:
        return msgspec.msgpack.encode({**event, "at": self._seconds()})

    def _reopened(self, contents: Contents, snapshot: Snapshot) -> Contents:
        seal_rows = [row for row in snapshot.rows if row.kind is Kind.SEAL]
        if len(seal_rows) == 1:
            body = self._opened(lambda: decode(seal_rows[0], SealBody))
            if body.generation != contents.seal.body.generation:
                raise StoreNotOurs("the store has a new seal: unseal with the new shares")
        return self._opened(lambda: open_contents(snapshot, contents.seal, contents))

    def _hold(self, contents: Contents) -> None:
        if self._turn_epoch != self._epoch:
            raise Sealed("keyd was sealed meanwhile")
        self._contents = contents
        for key_id, quota in list(self._quotas.items()):
            held = contents.keys.get(key_id)
            if held is None or held.key is None:
                del self._quotas[key_id]
            elif held.header.uses > held.header.ceiling > 0:
                # The ceiling was lowered below what is leased: the rest of this lease counts as used.
                quota.give_back()
            elif held.header.uses < held.header.ceiling:
                quota.reopen()

    def _put_proposal(self, contents: Contents, proposal: Proposal) -> Put:
        lmk = contents.seal.wrapping_keys[proposal.domain]
        return Put(
            seal_row(
                lmk,
                Kind.PROPOSAL,
                proposal.proposal_id,
                proposal.domain.value,
                proposal,
                self._random_bytes,
            )
        )

    def _decided(
        self, proposal: Proposal, officer: Officer, state: ProposalState, result: dict[str, bytes]
    ) -> Proposal:
        return msgspec.structs.replace(
            proposal,
            state=state,
            decided_by=officer.code,
            decided_at=self._seconds(),
            result=result,
            revision=proposal.revision + 1,
        )

    def _serving(self, contents: Contents, officer: Officer) -> Officer:
        """Return the officer as the store has them now: a role may have been taken since the signature."""
        now = contents.officer(officer.domain, officer.code)
        if now is None or now.is_retired or now.public_key != officer.public_key:
            raise BadParameter(f"{officer.title} serves no more")
        return now

    def _open_contents(self) -> Contents:
        contents = self._contents
        if contents is None:
            raise Sealed
        return contents

    def _seconds(self) -> int:
        return int(self._now())


def _about(proposal: Proposal, officer: Officer, name: str) -> Event:
    return {
        "event": name,
        "domain": proposal.domain.value,
        "officer": officer.title,
        "proposal": proposal.proposal_id.hex(),
        "action": str(msgspec.to_builtins(proposal.action)["action"]),
    }
