"""Keys on their way between two custodies: what arrives under a transport key, what leaves, and each use counted.

How a key is wrapped is `keyd.custody.transport`'s. Like `keyd.custody.carrying_out`, these are pure decisions: rows to
write in one transaction, and events for the journal.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from keyd.custody import lifecycle
from keyd.custody.bodies import seal_key_row
from keyd.custody.ceilings import near_its_ceiling
from keyd.custody.new_keys import modes_of, new_key, require_spec
from keyd.custody.transport import unwrap_from_transport, wrap_for_transport
from keyd.custody.work import Outcome, event_of
from keyd.errors import (
    DomainCrossed,
    ExportRefused,
    KeyBlockRefused,
    KeyExhausted,
    KeyNotValidNow,
    KeyStateRefused,
    KeyUsageRefused,
)
from keyd.keys.block import (
    KEY_ID_BYTES,
    Domain,
    Export,
    KeyHeader,
    KeyState,
    Mode,
    Tier,
    Use,
)
from keyd.keys.hierarchy import child_root, region_from_digits, root_key
from keyd.store.rows import Put

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey
    from keyd.custody import actions as act
    from keyd.custody.contents import Contents, HeldKey
    from keyd.custody.work import Work

_TIER_BELOW: Final = {Tier.NATIONAL: Tier.PROVINCIAL, Tier.PROVINCIAL: Tier.CITY}

# From the strictest to the loosest.
_EXPORTS: Final = (Export.NEVER, Export.CHILD, Export.WRAPPED)


def import_wrapped(work: Work, action: act.ImportWrapped) -> Outcome:
    """Take in a key that arrived under a transport key.

    Raises:
        KeyBlockRefused: it does not open, or is another key than the one announced.
        Refusal: the key must not be, or the transport key cannot be used.
    """
    require_spec(work.contents, work.domain, action)
    transport = require_transport_key(
        work.contents, work.domain, action.transport_key, Mode.UNWRAP, work.now
    )
    header, key = unwrap_from_transport(
        transport.living(), action.format, action.wrapped, action.key.algorithm
    )
    if header is not None:
        _require_as_announced(action.key, header, work.domain)
    if not compare_digest(key.kcv(), action.kcv):
        raise KeyBlockRefused("the key does not have the check value that was announced")
    outcome = new_key(work, action.key, key)
    _count_transport(work, transport, outcome)
    return outcome


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
        not set(modes_of(spec)) <= set(header.modes)
        or (header.valid_until and not 0 < spec.valid_until <= header.valid_until)
        or spec.valid_from < header.valid_from
        or (header.ceiling and not 0 < spec.ceiling <= header.ceiling)
        or _EXPORTS.index(spec.export) > _EXPORTS.index(header.export)
    )
    if is_looser:
        raise KeyBlockRefused("the proposal allows the key more than its key block does")


def export_key(work: Work, action: act.ExportKey) -> Outcome:
    """Let a key leave under a transport key.

    Raises:
        ExportRefused: it may not.
        Refusal: one of the keys cannot be used.
    """
    held = work.key(action.key_id)
    if held.header.export is not Export.WRAPPED:
        raise ExportRefused(f"{held.header.label} may leave {held.header.export}")
    return _leave(work, held.header, held.living(), action.transport_key, action.format)


def export_child(work: Work, action: act.ExportChild) -> Outcome:
    """Let a root's child for one region leave under a transport key.

    Raises:
        ExportRefused: it may not.
        Refusal: one of the keys cannot be used.
    """
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
    child = child_root(root_key(held.living(), header.levels), region_from_digits(action.region))
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
    transport = require_transport_key(work.contents, work.domain, transport_id, Mode.WRAP, work.now)
    leaving = lifecycle.leaving(header)
    wrapped = wrap_for_transport(
        transport.living(), transport_format, leaving, key, work.random_bytes
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


def require_transport_key(
    contents: Contents, domain: Domain, key_id: bytes, mode: Mode, now: int
) -> HeldKey:
    """Return a transport key that may be used at this time for what is named.

    Raises:
        KeyUsageRefused, KeyStateRefused, KeyNotValidNow, KeyExhausted: it may not.
        KeyNotFound, DomainCrossed: as `Contents.key`.
    """
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
