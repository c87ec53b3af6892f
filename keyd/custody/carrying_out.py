"""Carrying out what two officers decided: pure decisions, from what the store holds to what is to be written.

Each function checks everything first and changes nothing itself: it returns the rows to write, in one transaction,
and the events for the journal. What cannot be done is refused, and then nothing has happened.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import Algorithm, require_software
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import CiphertextNotAuthentic
from keyd.custody import actions as act
from keyd.custody import enrolling, lifecycle, psams
from keyd.custody.bodies import seal_key_row, seal_row
from keyd.custody.ceilings import near_its_ceiling
from keyd.custody.ceremony import generate_in_components
from keyd.custody.officers import Officer, OfficerRole, require_public_key
from keyd.custody.proposals import FOR_COMPONENT
from keyd.custody.transport import unwrap_from_transport, wrap_for_transport
from keyd.custody.work import Outcome, event_of
from keyd.errors import (
    BadParameter,
    DomainCrossed,
    ExportRefused,
    KeyBlockRefused,
    KeyExhausted,
    KeyNotValidNow,
    KeyStateRefused,
    KeyUsageRefused,
    RoleMissing,
)
from keyd.keys.block import (
    BLOCK_FORMAT,
    KEY_ID_BYTES,
    SOCIAL_ADDRESSES,
    Domain,
    Export,
    KeyHeader,
    KeyState,
    Mode,
    Tier,
    Use,
)
from keyd.keys.hierarchy import (
    TERMINAL_LEVELS,
    TERMINAL_MASTER_ADDRESS,
    child_root,
    region_from_digits,
    root_key,
)
from keyd.store.rows import Kind, Put

if TYPE_CHECKING:
    from keyd.custody.catalogue import Catalogue
    from keyd.custody.contents import Contents, HeldKey
    from keyd.custody.work import Work

# Fewer, and nobody could approve what the last one proposes.
LEAST_SECURITY_OFFICERS: Final = 2

# From the ministry down: whoever is further down gets the keys of those above wrapped, and makes none.
_TIERS: Final = (Tier.NATIONAL, Tier.PROVINCIAL, Tier.CITY)
_TIER_BELOW: Final = {Tier.NATIONAL: Tier.PROVINCIAL, Tier.PROVINCIAL: Tier.CITY}

_CARD_MODES: Final = (Mode.PRODUCE, Mode.VERIFY)
_TRANSPORT_MODES: Final = (Mode.WRAP, Mode.UNWRAP)

_SECONDS_PER_DAY: Final = 24 * 3600


def require_possible(
    contents: Contents, domain: Domain, action: act.Action, now: int, catalogue: Catalogue
) -> None:
    """Refuse at once, when it is proposed, what could not be carried out anyway.

    Raises:
        Refusal: the one that carrying it out would meet, as far as that can be told.
    """
    match action:
        case (
            act.GenerateKey()
            | act.ImportKey()
            | act.GiveComponents()
            | act.ImportWrapped()
            | act.ImportEnvelope()
        ):
            _require_spec(contents, domain, action)
            if isinstance(action, act.GiveComponents):
                _custodians(contents, domain, action.custodians)
            if isinstance(action, act.ImportWrapped):
                _transport_key(contents, domain, action.transport_key, Mode.UNWRAP, now)
        case act.ExportKey() | act.ExportChild():
            contents.key(action.key_id, domain)
            _transport_key(contents, domain, action.transport_key, Mode.WRAP, now)
        case act.EnrolOfficer():
            require_public_key(action.public_key)
            _require_unused_public_key(contents, domain, action)
        case act.RetireOfficer():
            _require_enough_officers(contents, domain, action.code, ())
        case act.Rekey():
            require_rekey(contents, domain, action)
        case (
            act.EnrolTerminals()
            | act.ActivateTerminals()
            | act.GiveEnrolmentCodes()
            | act.GiveTerminalKeys()
            | act.MakeAuthority()
        ):
            enrolling.require_possible(contents, domain, action, now)
        case act.IssuePsams() | act.ChangePsams():
            psams.require_possible(contents, domain, action, now, catalogue)
        case _:
            contents.key(action.key_id, domain)


def carry_out(work: Work) -> Outcome:
    """Carry out an approved action, other than a rekey, which has steps of its own.

    Raises:
        Refusal: it cannot be done; nothing was.
    """
    action = work.proposal.action
    match action:
        case act.GenerateKey():
            _require_spec(work.contents, work.domain, action)
            return _new_key(work, action.key, SecretKey.generate(action.key.algorithm))
        case act.ImportKey():
            _require_spec(work.contents, work.domain, action)
            if work.combined is None:
                raise ValueError("an import of components is carried out with what they came to")
            return _new_key(work, action.key, work.combined)
        case act.GiveComponents():
            return _give_components(work, action)
        case act.ImportWrapped():
            return _import_wrapped(work, action)
        case act.ImportEnvelope():
            return _import_envelope(work, action)
        case act.ExportKey():
            return _export(work, action)
        case act.ExportChild():
            return _export_child(work, action)
        case act.Permit():
            return _permit(work, action)
        case act.EnrolOfficer():
            return _enrol(work, action)
        case act.RetireOfficer():
            return _retire(work, action)
        case act.Rekey():
            raise ValueError("a rekey is staged first")
        case (
            act.EnrolTerminals()
            | act.ActivateTerminals()
            | act.GiveEnrolmentCodes()
            | act.GiveTerminalKeys()
            | act.MakeAuthority()
        ):
            return enrolling.carry_out(work, action)
        case act.IssuePsams() | act.ChangePsams():
            return psams.carry_out(work, action)
        case _:
            return _step(work, action)


# New keys ---------------------------------------------------------------------------------------------


def _require_spec(contents: Contents, domain: Domain, action: act.NewKey) -> None:
    """Refuse a key that must not be, or not come in this way."""
    spec = action.key
    require_software(spec.algorithm)
    if domain is not Domain.SOCIAL and any(a in SOCIAL_ADDRESSES for a in spec.addresses):
        raise DomainCrossed("addresses 0000 to 01FF are the social security application's")
    for held in contents.keys.values():
        if held.header.domain is not domain and set(held.header.addresses) & set(spec.addresses):
            raise DomainCrossed(f"at that address answers {held.header.label}")
    if spec.use is Use.TERMINAL or TERMINAL_MASTER_ADDRESS in spec.addresses:
        _require_terminal_master(spec, domain)
    if (spec.use is Use.TRANSPORT) is not (spec.levels == 0):
        raise BadParameter("a card's root has 1 to 3 levels, and a transport key none")
    if spec.use is Use.TRANSPORT and spec.addresses:
        raise BadParameter("a transport key answers at no address")
    if spec.use is Use.TRANSPORT and spec.algorithm is Algorithm.DES:
        raise BadParameter("a transport key is for SM4 or 3DES")
    if spec.use is not Use.TRANSPORT and not spec.addresses:
        raise BadParameter("a card's root answers at one address at least")
    if len(set(spec.addresses)) != len(spec.addresses):
        raise BadParameter("an address is named twice")
    allowed = _TRANSPORT_MODES if spec.use is Use.TRANSPORT else _CARD_MODES
    if not set(spec.modes) <= set(allowed):
        raise BadParameter(f"a key for {spec.use} may {' and '.join(allowed)}, and nothing else")
    if spec.valid_until and spec.valid_until <= spec.valid_from:
        raise BadParameter("the key would cease to be valid before it begins")
    if spec.warn_at > spec.ceiling:
        raise BadParameter("the warning comes before the ceiling")
    own = contents.seal.body.tier
    arrives_wrapped = isinstance(action, act.ImportWrapped | act.ImportEnvelope)
    if _TIERS.index(spec.tier) < _TIERS.index(own) and not arrives_wrapped:
        raise RoleMissing(
            f"a {own} custody neither makes nor enters {spec.tier} keys: they arrive wrapped"
        )


def _require_terminal_master(spec: act.KeySpec, domain: Domain) -> None:
    if domain is not Domain.LOCAL:
        raise DomainCrossed("the terminal master key is LOCAL's")
    is_whole = (
        spec.use is Use.TERMINAL
        and spec.addresses == (TERMINAL_MASTER_ADDRESS,)
        and spec.levels == TERMINAL_LEVELS
        and spec.algorithm is Algorithm.SM4
    )
    if not is_whole:
        raise BadParameter(
            f"the terminal master key is SM4, of {TERMINAL_LEVELS} levels, for terminal, and answers at "
            f"{TERMINAL_MASTER_ADDRESS:04X} alone"
        )


def _new_key(work: Work, spec: act.KeySpec, key: SecretKey) -> Outcome:
    header = KeyHeader(
        format=BLOCK_FORMAT,
        key_id=work.random_bytes(KEY_ID_BYTES),
        domain=work.domain,
        tier=spec.tier,
        name=spec.name,
        addresses=spec.addresses,
        psam_type=spec.psam_type,
        psam_id=spec.psam_id,
        set=spec.set,
        algorithm=spec.algorithm,
        levels=spec.levels,
        use=spec.use,
        modes=_modes(spec),
        version=1,
        valid_from=spec.valid_from,
        valid_until=spec.valid_until,
        ceiling=spec.ceiling,
        warn_at=spec.warn_at,
        export=spec.export,
        created_by=work.decided_by,
        created_at=work.now,
        kcv=key.kcv(),
    )
    older = work.contents.versions_at(header)
    header = lifecycle.with_version(
        header,
        version=max((other.version for other in older), default=0) + 1,
        minimum_version=max((other.minimum_version for other in older), default=1),
    )
    if any(compare_digest(other.kcv, header.kcv) for other in older):
        raise KeyBlockRefused("the key's check value is an older version's: it is the same key")
    outcome = Outcome()
    outcome.changes.append(Put(seal_key_row(work.lmk, header, key, work.random_bytes)))
    outcome.events.append(event_of(work, "key.made", header))
    outcome.result["key_id"] = header.key_id
    outcome.result["kcv"] = header.kcv
    return outcome


def _modes(spec: act.KeySpec) -> tuple[Mode, ...]:
    """Return what a key may do: what is named, or all that its use allows."""
    return spec.modes or (_TRANSPORT_MODES if spec.use is Use.TRANSPORT else _CARD_MODES)


def _give_components(work: Work, action: act.GiveComponents) -> Outcome:
    _require_spec(work.contents, work.domain, action)
    custodians = _custodians(work.contents, work.domain, action.custodians)
    key, envelopes = generate_in_components(action.key.algorithm, custodians, work.random_bytes)
    outcome = _new_key(work, action.key, key)
    outcome.result |= {FOR_COMPONENT + code: sealed for code, sealed in envelopes.items()}
    return outcome


def _import_wrapped(work: Work, action: act.ImportWrapped) -> Outcome:
    _require_spec(work.contents, work.domain, action)
    transport = _transport_key(
        work.contents, work.domain, action.transport_key, Mode.UNWRAP, work.now
    )
    header, key = unwrap_from_transport(
        _living(transport), action.format, action.wrapped, action.key.algorithm
    )
    if header is not None:
        _require_as_announced(action.key, header, work.domain)
    if not compare_digest(key.kcv(), action.kcv):
        raise KeyBlockRefused("the key does not have the check value that was announced")
    outcome = _new_key(work, action.key, key)
    _count_transport(work, transport, outcome)
    return outcome


def _import_envelope(work: Work, action: act.ImportEnvelope) -> Outcome:
    _require_spec(work.contents, work.domain, action)
    try:
        key = work.contents.identity.decrypt_to_key(action.envelope, action.key.algorithm)
    except (CiphertextNotAuthentic, ValueError):
        raise KeyBlockRefused("the envelope does not open: it is for another public key") from None
    if not compare_digest(key.kcv(), action.kcv):
        raise KeyBlockRefused("the key does not have the check value that was announced")
    return _new_key(work, action.key, key)


def _require_as_announced(spec: act.KeySpec, header: KeyHeader, domain: Domain) -> None:
    """Refuse a block whose header allows less than what the proposal would make of it, or something else."""
    announced = (
        spec.tier,
        spec.name,
        spec.algorithm,
        spec.use,
        spec.addresses,
        spec.levels,
        spec.set,
    )
    arrived = (
        header.tier,
        header.name,
        header.algorithm,
        header.use,
        header.addresses,
        header.levels,
        header.set,
    )
    if header.domain is not domain:
        raise DomainCrossed(f"the key block is {header.domain}'s")
    if announced != arrived:
        raise KeyBlockRefused("the key block's header is for another key than the one announced")
    is_looser = (
        not set(_modes(spec)) <= set(header.modes)
        or (header.valid_until and not 0 < spec.valid_until <= header.valid_until)
        or spec.valid_from < header.valid_from
        or (header.ceiling and not 0 < spec.ceiling <= header.ceiling)
        or _EXPORTS.index(spec.export) > _EXPORTS.index(header.export)
    )
    if is_looser:
        raise KeyBlockRefused("the proposal allows the key more than its key block does")


_EXPORTS: Final = (Export.NEVER, Export.CHILD, Export.WRAPPED)


# Keys that leave --------------------------------------------------------------------------------------


def _export(work: Work, action: act.ExportKey) -> Outcome:
    held = work.key(action.key_id)
    if held.header.export is not Export.WRAPPED:
        raise ExportRefused(f"{held.header.label} may leave {held.header.export}")
    return _leave(work, held.header, _living(held), action.transport_key, action.format)


def _export_child(work: Work, action: act.ExportChild) -> Outcome:
    held = work.key(action.key_id)
    header = held.header
    if header.export is Export.NEVER:
        raise ExportRefused(f"{header.label} may leave never")
    if header.use is Use.TERMINAL:
        raise ExportRefused(
            "what is below the terminal master key is given to terminals, and not exported"
        )
    if header.levels < 2:
        raise ExportRefused("below a city's root there are only cards")
    child = child_root(root_key(_living(held), header.levels), region_from_digits(action.region))
    child_header = lifecycle.child_of(
        header,
        tier=_TIER_BELOW.get(header.tier, Tier.CITY),
        key_id=work.random_bytes(KEY_ID_BYTES),
        kcv=child.kcv(),
    )
    return _leave(work, child_header, child, action.transport_key, action.format, of=header)


def _leave(
    work: Work,
    header: KeyHeader,
    key: SecretKey,
    transport_id: bytes,
    transport_format: act.TransportFormat,
    of: KeyHeader | None = None,
) -> Outcome:
    if header.state in (KeyState.COMPROMISED, KeyState.DESTROYED):
        raise KeyStateRefused(f"{header.label} is {header.state}")
    if header.use is Use.TRANSPORT:
        raise ExportRefused("a transport key travels as components only")
    transport = _transport_key(work.contents, work.domain, transport_id, Mode.WRAP, work.now)
    leaving = lifecycle.leaving(header)
    wrapped = wrap_for_transport(
        _living(transport), transport_format, leaving, key, work.random_bytes
    )
    outcome = Outcome()
    event = event_of(work, "key.exported", of or header)
    event["transport_key"] = transport.header.label
    event["kcv"] = header.kcv.hex().upper()
    if of is not None:
        event["child"] = header.key_id.hex()
    outcome.events.append(event)
    _count_transport(work, transport, outcome)
    outcome.result |= {"wrapped": wrapped, "kcv": header.kcv, "key_id": leaving.key_id}
    return outcome


def _transport_key(
    contents: Contents, domain: Domain, key_id: bytes, mode: Mode, now: int
) -> HeldKey:
    held = contents.key(key_id, domain)
    header = held.header
    if header.use is not Use.TRANSPORT or mode not in header.modes:
        raise KeyUsageRefused(f"{header.label} is no key to {mode} others with")
    if header.state is not KeyState.ACTIVE:
        raise KeyStateRefused(f"{header.label} is {header.state}")
    if now < header.valid_from or (header.valid_until and now >= header.valid_until):
        raise KeyNotValidNow(f"{header.label} is not valid at this time")
    if header.ceiling and header.uses >= header.ceiling:
        raise KeyExhausted(f"{header.label} has been used as often as it may be")
    return held


def _count_transport(work: Work, held: HeldKey, outcome: Outcome) -> None:
    """Count one use of a transport key, in the commit of what it was used for."""
    if not held.header.ceiling:
        return
    header = lifecycle.changed(held.header, uses=held.header.uses + 1)
    outcome.changes.append(Put(seal_key_row(work.lmk, header, held.key, work.random_bytes)))
    if header.uses == header.warn_at:
        outcome.events.append(near_its_ceiling(header))


def _living(held: HeldKey) -> SecretKey:
    if held.key is None:
        raise KeyStateRefused(f"{held.header.label} is gone for good")
    return held.key


# A key's life and rights ------------------------------------------------------------------------------


def _step(
    work: Work, action: act.Activate | act.Deactivate | act.Compromise | act.Destroy | act.Restore
) -> Outcome:
    held = work.key(action.key_id)
    key: SecretKey | None = _living(held)
    now = work.now
    match action:
        case act.Activate():
            header = lifecycle.step(held.header, KeyState.ACTIVE, now)
        case act.Deactivate():
            header = lifecycle.step(held.header, KeyState.DEACTIVATED, now)
        case act.Compromise():
            header = lifecycle.step(held.header, KeyState.COMPROMISED, now)
        case act.Destroy():
            after = now + action.waiting_days * _SECONDS_PER_DAY
            header = lifecycle.step(held.header, KeyState.DESTROYED, now, destroy_after=after)
            if not action.waiting_days:
                key = None
        case act.Restore():
            header = lifecycle.restore(held.header, now)
    outcome = Outcome()
    outcome.changes.append(Put(seal_key_row(work.lmk, header, key, work.random_bytes)))
    outcome.events.append(event_of(work, f"key.{header.state}", header))
    if header.state is KeyState.DESTROYED:
        _hand_minimum_on(work, header, outcome)
    return outcome


def _hand_minimum_on(work: Work, header: KeyHeader, outcome: Outcome) -> None:
    """Let the other versions keep the minimum that a destroyed one carries: destroying it readmits no older card."""
    for other in work.contents.versions_at(header):
        held = work.contents.keys[other.key_id]
        if (
            other.key_id == header.key_id
            or other.state is KeyState.DESTROYED
            or other.minimum_version >= header.minimum_version
        ):
            continue
        heir = lifecycle.changed(other, minimum_version=header.minimum_version)
        outcome.changes.append(Put(seal_key_row(work.lmk, heir, held.key, work.random_bytes)))


def _permit(work: Work, action: act.Permit) -> Outcome:
    held = work.key(action.key_id)
    key = _living(held)
    wanted = {
        name: getattr(action, name)
        for name in (
            "valid_from",
            "valid_until",
            "ceiling",
            "warn_at",
            "minimum_version",
            "export",
        )
        if getattr(action, name) is not None
    }
    if not wanted:
        raise BadParameter("nothing would change")
    header = lifecycle.changed(held.header, **wanted)
    if header.valid_until and header.valid_until <= header.valid_from:
        raise BadParameter("the key would cease to be valid before it begins")
    if header.warn_at > header.ceiling:
        raise BadParameter("the warning comes before the ceiling")
    newest = max(other.version for other in work.contents.versions_at(header))
    if header.minimum_version > newest:
        raise BadParameter(
            f"there is no version {header.minimum_version} yet: {newest} is the newest"
        )
    outcome = Outcome()
    outcome.changes.append(Put(seal_key_row(work.lmk, header, key, work.random_bytes)))
    event = event_of(work, "key.permitted", header)
    event["changed"] = [f"{name} = {value}" for name, value in wanted.items()]
    outcome.events.append(event)
    return outcome


# Officers ---------------------------------------------------------------------------------------------


def _enrol(work: Work, action: act.EnrolOfficer) -> Outcome:
    require_public_key(action.public_key)
    _require_unused_public_key(work.contents, work.domain, action)
    before = work.contents.officer(work.domain, action.code)
    if before is not None and not before.is_retired:
        _require_enough_officers(work.contents, work.domain, action.code, action.roles)
    officer = Officer(
        domain=work.domain,
        code=action.code,
        name=action.name,
        roles=tuple(dict.fromkeys(action.roles)),
        public_key=action.public_key,
        enrolled_by=work.decided_by,
        enrolled_at=work.now,
        revision=before.revision + 1 if before else 1,
    )
    return _put_officer(work, officer, "officer.enrolled")


def _retire(work: Work, action: act.RetireOfficer) -> Outcome:
    officer = work.contents.officer(work.domain, action.code)
    if officer is None or officer.is_retired:
        raise BadParameter(f"{work.domain} has no officer {action.code}")
    _require_enough_officers(work.contents, work.domain, action.code, ())
    return _put_officer(work, lifecycle.retired(officer), "officer.retired")


def _put_officer(work: Work, officer: Officer, name: str) -> Outcome:
    outcome = Outcome()
    row = seal_row(
        work.lmk,
        Kind.OFFICER,
        officer.title.encode(),
        officer.domain.value,
        officer,
        work.random_bytes,
    )
    outcome.changes.append(Put(row))
    event = event_of(work, name)
    event["subject"] = officer.title
    event["roles"] = [role.value for role in officer.roles]
    outcome.events.append(event)
    return outcome


def _custodians(contents: Contents, domain: Domain, codes: tuple[str, ...]) -> list[Officer]:
    found = {
        officer.code: officer
        for officer in contents.serving_officers(domain, OfficerRole.CUSTODIAN)
    }
    if len(set(codes)) != len(codes):
        raise BadParameter("a custodian is named twice")
    for code in codes:
        if code not in found:
            raise BadParameter(f"{domain} has no custodian {code}")
    return [found[code] for code in codes]


def _require_unused_public_key(
    contents: Contents, domain: Domain, action: act.EnrolOfficer
) -> None:
    # Two codes for one person would be dual control by one.
    for officer in contents.officers.values():
        is_same_officer = officer.domain is domain and officer.code == action.code
        if officer.public_key == action.public_key and not is_same_officer:
            raise BadParameter(f"the public key is {officer.title}'s already")


def _require_enough_officers(
    contents: Contents, domain: Domain, without: str, new_roles: tuple[OfficerRole, ...]
) -> None:
    left = {
        officer.code
        for officer in contents.serving_officers(domain, OfficerRole.SECURITY_OFFICER)
        if officer.code != without
    }
    if OfficerRole.SECURITY_OFFICER in new_roles:
        left.add(without)
    if len(left) < LEAST_SECURITY_OFFICERS:
        raise BadParameter(
            f"{domain} would have fewer than {LEAST_SECURITY_OFFICERS} security officers, and nothing "
            "could be approved any more"
        )


def require_rekey(contents: Contents, domain: Domain, action: act.Rekey) -> list[Officer]:
    """Return the custodians of a new seal.

    Raises:
        DomainCrossed: another domain than LOCAL asks.
        BadParameter: somebody is no custodian, or the threshold is above the number of shares.
    """
    if domain is not Domain.LOCAL:
        raise DomainCrossed("the seal is the daemon's own: LOCAL's officers decide on it")
    if action.threshold > len(action.custodians):
        raise BadParameter("there would be fewer shares than are needed")
    return _custodians(contents, domain, action.custodians)
