"""Handlers of custody: what officers do, on the administration's socket. All of it is slow work, beside the tick."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from keyd.crypto.shares import decode_share
from keyd.custody import actions as act
from keyd.custody.officers import (
    CHALLENGE_BYTES,
    CHALLENGE_SECONDS,
    OfficerRole,
    SignedCommand,
    require_role,
)
from keyd.custody.proposals import ProposalState, is_envelope
from keyd.errors import (
    BadParameter,
    ChallengeExpired,
    DomainCrossed,
    MethodUnknown,
    Sealed,
    StoreUnavailable,
)
from keyd.handlers.registry import handles
from keyd.keys.block import Domain
from keyd.protocol.commands import OFFICERS
from keyd.protocol.messages.custody import (
    Approve,
    AskSeal,
    BackupPart,
    CommandDone,
    ConfirmShare,
    Done,
    EnterComponent,
    ForgetShares,
    GiveShare,
    ListKeys,
    ListOfficers,
    ListProposals,
    OfficerChallenge,
    OfficerCommand,
    OfficerReport,
    Officers,
    ProposalList,
    ProposalOutcome,
    ProposalReport,
    Propose,
    Reject,
    RequestOfficerChallenge,
    SealNow,
    SealState,
    ShowProposal,
    StoredKey,
    StoredKeys,
    Take,
    TakeBackup,
    Taken,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keyd.custody.contents import Contents, HeldKey
    from keyd.custody.officers import Officer
    from keyd.custody.proposals import Proposal
    from keyd.handlers.services import Services
    from keyd.protocol.fields import Request, Response
    from keyd.terminals import Session
    from keyd.warden import Warden

    OfficersHandler = Callable[[Any, Officer, Warden], Awaitable[Response]]

T = TypeVar("T")

# A part of a backup in one answer: below MAX_MESSAGE with room for what is around it.
BACKUP_PART_BYTES: Final = 32 * 1024

# Keys or proposals in one answer: some 650 bytes each, and an answer has 256 KiB at most.
PAGE: Final = 100

# Proposals that enrol a hundred terminals are longer: so many bytes of them, or of terminals, go into one answer.
PAGE_BYTES: Final = 128 * 1024

# What an officer's signed command may be, by request; it is `handles` for those with an officer instead of a session.
OFFICERS_HANDLERS: Final[dict[type[Request[Any]], OfficersHandler]] = {}

_decode_action: Final = msgspec.msgpack.Decoder(act.Action).decode


def officers(request: type[Request[Any]]) -> Callable[[OfficersHandler], OfficersHandler]:
    """Register a function as the handler of a request that only a signed command may carry."""

    def register(handler: OfficersHandler) -> OfficersHandler:
        if request in OFFICERS_HANDLERS:
            raise TypeError(f"{request.__name__} has a handler already")
        OFFICERS_HANDLERS[request] = handler
        return handler

    return register


# The seal -------------------------------------------------------------------------------------------------


@handles(AskSeal)
async def ask_seal(_ask: AskSeal, _session: Session, services: Services) -> SealState:
    return _seal_state(warden_of(services))


@handles(GiveShare)
async def give_share(ask: GiveShare, _session: Session, services: Services) -> SealState:
    warden = warden_of(services)
    share = decode_share(ask.share)
    await warden.give_share(lambda: warden.vault.give_share(share))
    return _seal_state(warden)


@handles(ForgetShares)
async def forget_shares(_ask: ForgetShares, _session: Session, services: Services) -> SealState:
    warden = warden_of(services)
    await warden.do(warden.vault.forget_shares)
    return _seal_state(warden)


# Officers' envelopes --------------------------------------------------------------------------------------


@handles(RequestOfficerChallenge)
async def officer_challenge(
    _ask: RequestOfficerChallenge, session: Session, services: Services
) -> OfficerChallenge:
    warden = warden_of(services)
    challenge = services.random_bytes(CHALLENGE_BYTES)
    session.officer_challenge = (challenge, services.clock() + CHALLENGE_SECONDS)
    return OfficerChallenge(challenge, warden.vault.seal_body.store_id, CHALLENGE_SECONDS)


@handles(OfficerCommand)
async def officer_command(ask: OfficerCommand, session: Session, services: Services) -> CommandDone:
    warden = warden_of(services)
    opened, session.officer_challenge = session.officer_challenge, None
    if opened is None or services.clock() > opened[1]:
        raise ChallengeExpired
    signed = SignedCommand(Domain(ask.domain), ask.officer, ask.command, ask.signature)
    officer = await warden.do(lambda: _officer_of(warden, signed, opened[0]))
    request = _inner(ask.command)
    answer = await OFFICERS_HANDLERS[type(request)](request, officer, warden)
    return CommandDone(msgspec.msgpack.encode(answer))


def _officer_of(warden: Warden, signed: SignedCommand, challenge: bytes) -> Officer:
    # Another keyd may have changed the store since it was last looked at. Decided on what was, the command would be
    # refused as CHANGED_MEANWHILE; and whoever was retired there is nobody here. Without a store, keyd can be sealed.
    with contextlib.suppress(StoreUnavailable):
        warden.vault.reload()
    return warden.vault.officer_of(signed, challenge)


def _inner(command: bytes) -> Request[Any]:
    """Read what an officer has signed."""
    try:
        method, params = msgspec.msgpack.decode(command, type=tuple[str, list[Any]])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadParameter("a command is the MessagePack of [method, params]") from None
    row = OFFICERS.get(method)
    if row is None:
        raise MethodUnknown("officers have no such method")
    try:
        request: Request[Any] = msgspec.convert(params, row.request, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadParameter(str(error)) from None
    return request


@officers(SealNow)
async def seal_now(ask: SealNow, officer: Officer, warden: Warden) -> Done:
    require_local(officer)
    require_role(officer, OfficerRole.OPERATOR, OfficerRole.SECURITY_OFFICER, OfficerRole.CUSTODIAN)
    await warden.seal(f"{officer.title}: {ask.reason}" if ask.reason else officer.title)
    return Done()


# Proposals ------------------------------------------------------------------------------------------------


@officers(Propose)
async def propose(ask: Propose, officer: Officer, warden: Warden) -> ProposalOutcome:
    try:
        action = _decode_action(ask.action)
    except msgspec.ValidationError as error:
        raise BadParameter(f"the action: {error}") from None
    except (msgspec.MsgspecError, ValueError):
        raise BadParameter("the action is no MessagePack") from None
    vault = warden.vault
    proposal = await warden.do(lambda: vault.propose(officer, action, ask.note, ask.lifetime))
    return _outcome(warden, proposal)


@officers(Approve)
async def approve(ask: Approve, officer: Officer, warden: Warden) -> ProposalOutcome:
    vault = warden.vault
    approved = await warden.do(lambda: vault.approve(officer, ask.proposal_id))
    return _outcome(warden, approved.proposal)


@officers(Reject)
async def reject(ask: Reject, officer: Officer, warden: Warden) -> ProposalOutcome:
    vault = warden.vault
    return _outcome(warden, await warden.do(lambda: vault.reject(officer, ask.proposal_id)))


@officers(ListProposals)
async def list_proposals(ask: ListProposals, officer: Officer, warden: Warden) -> ProposalList:
    found = [
        proposal
        for proposal in contents_of(warden).proposals.values()
        if proposal.domain is officer.domain and (ask.all or not proposal.is_closed)
    ]
    found.sort(key=lambda proposal: (-proposal.proposed_at, proposal.proposal_id))
    reports = [_report(warden, proposal) for proposal in found[ask.offset : ask.offset + PAGE]]
    return ProposalList(tuple(page_of(reports, lambda report: len(report.action))), len(found))


@officers(ShowProposal)
async def show_proposal(ask: ShowProposal, officer: Officer, warden: Warden) -> ProposalOutcome:
    return _outcome(warden, contents_of(warden).proposal(ask.proposal_id, officer.domain))


@officers(EnterComponent)
async def enter_component(ask: EnterComponent, officer: Officer, warden: Warden) -> ProposalOutcome:
    vault = warden.vault
    await warden.do(
        lambda: vault.enter_component(officer, ask.proposal_id, ask.number, ask.envelope, ask.kcv)
    )
    return _outcome(warden, contents_of(warden).proposal(ask.proposal_id, officer.domain))


@officers(Take)
async def take(ask: Take, officer: Officer, warden: Warden) -> Taken:
    vault = warden.vault
    envelope = await warden.do(lambda: vault.take(officer, ask.proposal_id))
    proposal = contents_of(warden).proposal(ask.proposal_id, officer.domain)
    return Taken(envelope, proposal.result.get("salt", b""))


@officers(ConfirmShare)
async def confirm_share(ask: ConfirmShare, officer: Officer, warden: Warden) -> ProposalOutcome:
    vault = warden.vault
    approved = await warden.do(
        lambda: vault.confirm_share(officer, ask.proposal_id, ask.commitment)
    )
    return _outcome(warden, approved.proposal)


# Keys, officers, backups ----------------------------------------------------------------------------------


@officers(ListKeys)
async def list_keys(ask: ListKeys, officer: Officer, warden: Warden) -> StoredKeys:
    held = [
        held for held in contents_of(warden).keys.values() if held.header.domain is officer.domain
    ]
    held.sort(key=_order)
    page = held[ask.offset : ask.offset + PAGE]
    return StoredKeys(tuple(_stored(key) for key in page), len(held))


@officers(ListOfficers)
async def list_officers(_ask: ListOfficers, officer: Officer, warden: Warden) -> Officers:
    return Officers(
        tuple(
            OfficerReport(
                other.domain.value,
                other.code,
                other.name,
                tuple(role.value for role in other.roles),
                other.public_key,
                other.is_retired,
            )
            for _title, other in sorted(contents_of(warden).officers.items())
            if other.domain is officer.domain
        )
    )


@officers(TakeBackup)
async def take_backup(ask: TakeBackup, officer: Officer, warden: Warden) -> BackupPart:
    require_local(officer)
    require_role(officer, OfficerRole.OPERATOR, OfficerRole.SECURITY_OFFICER)
    whole = await warden.backup(officer, is_first=ask.offset == 0)
    part = whole[ask.offset : ask.offset + BACKUP_PART_BYTES]
    return BackupPart(part, len(whole))


# ----------------------------------------------------------------------------------------------------------


def page_of(reports: Sequence[T], size_of: Callable[[T], int]) -> list[T]:
    """Return as many of these as fit into one answer: the first at least."""
    page: list[T] = []
    size = 0
    for report in reports:
        size += size_of(report)
        if page and size > PAGE_BYTES:
            break
        page.append(report)
    return page


def warden_of(services: Services) -> Warden:
    """Return who has custody of the keys.

    Raises:
        Sealed: nobody has.
    """
    if services.warden is None:
        raise Sealed("this keyd has no store: it serves public synthetic keys")
    return services.warden


def contents_of(warden: Warden) -> Contents:
    """Return what the store holds.

    Raises:
        Sealed: nobody can tell.
    """
    contents = warden.vault.contents
    if contents is None:
        raise Sealed
    return contents


def require_local(officer: Officer) -> None:
    """Refuse another domain's officer."""
    if officer.domain is not Domain.LOCAL:
        raise DomainCrossed("the daemon itself is LOCAL's officers' to govern")


def _seal_state(warden: Warden) -> SealState:
    vault = warden.vault
    body = vault.seal_body
    contents = vault.contents
    return SealState(
        sealed=vault.is_sealed,
        store_id=body.store_id,
        tier=body.tier.value,
        generation=body.generation,
        threshold=body.threshold,
        given=vault.progress.given,
        public_key=contents.identity.public.encode() if contents else b"",
        keepers=tuple(keeper.keeper for keeper in body.keepers),
    )


def _outcome(warden: Warden, proposal: Proposal) -> ProposalOutcome:
    # What is for one custodian alone is theirs to take, though nobody else could open it.
    result = {name: value for name, value in proposal.result.items() if not is_envelope(name)}
    return ProposalOutcome(_report(warden, proposal), result)


def _report(warden: Warden, proposal: Proposal) -> ProposalReport:
    vault = warden.vault
    given = (
        vault.components_given(proposal.proposal_id) if proposal.state is ProposalState.OPEN else {}
    )
    return ProposalReport(
        proposal_id=proposal.proposal_id,
        domain=proposal.domain.value,
        action=msgspec.msgpack.encode(proposal.action),
        note=proposal.note,
        state=proposal.state.value,
        proposed_by=proposal.proposed_by,
        proposed_at=proposal.proposed_at,
        expires_at=proposal.expires_at,
        decided_by=proposal.decided_by,
        decided_at=proposal.decided_at,
        components={str(number): code for number, code in given.items()},
        waiting_for=vault.waiting_for(proposal.proposal_id),
    )


def _order(held: HeldKey) -> tuple[object, ...]:
    header = held.header
    return header.addresses, header.name, header.algorithm.value, header.version, header.key_id


def _stored(held: HeldKey) -> StoredKey:
    header = held.header
    fields = msgspec.structs.asdict(header)
    return StoredKey(
        key_id=header.key_id,
        header={name: _text(value) for name, value in fields.items()},
        is_gone=held.key is None,
    )


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, tuple):
        return " ".join(f"{part:04X}" if isinstance(part, int) else str(part) for part in value)
    return str(getattr(value, "value", value))
