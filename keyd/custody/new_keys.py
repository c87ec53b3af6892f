"""New keys: which may be, and how each comes into custody: generated, in components, or in an envelope.

What arrives under a transport key is `keyd.custody.journeys`'. Like `keyd.custody.carrying_out`, these are pure
decisions: rows to write in one transaction, and events for the journal.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import Algorithm, require_software
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import CiphertextNotAuthentic
from keyd.custody import actions as act
from keyd.custody import lifecycle
from keyd.custody.appointing import custodians_of
from keyd.custody.bodies import seal_key_row
from keyd.custody.ceremony import generate_in_components
from keyd.custody.proposals import FOR_COMPONENT
from keyd.custody.work import Outcome, event_of
from keyd.errors import BadParameter, DomainCrossed, KeyBlockRefused, RoleMissing
from keyd.keys.block import (
    BLOCK_FORMAT,
    KEY_ID_BYTES,
    SOCIAL_ADDRESSES,
    Domain,
    KeyHeader,
    Mode,
    Tier,
    Use,
)
from keyd.keys.hierarchy import TERMINAL_LEVELS, TERMINAL_MASTER_ADDRESS
from keyd.store.rows import Put

if TYPE_CHECKING:
    from keyd.custody.contents import Contents
    from keyd.custody.work import Work

# From the ministry down: whoever is further down gets the keys of those above wrapped, and makes none.
_TIERS: Final = (Tier.NATIONAL, Tier.PROVINCIAL, Tier.CITY)

_CARD_MODES: Final = (Mode.PRODUCE, Mode.VERIFY)
_TRANSPORT_MODES: Final = (Mode.WRAP, Mode.UNWRAP)


def require_spec(contents: Contents, domain: Domain, action: act.NewKey) -> None:
    """Refuse a key that must not be, or not come in this way.

    Raises:
        AlgorithmNotSupported, BadParameter, DomainCrossed, RoleMissing: it is such a key.
    """
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


def generate(work: Work, action: act.GenerateKey) -> Outcome:
    """Make a key that is random and nowhere else.

    Raises:
        Refusal: it must not be.
    """
    require_spec(work.contents, work.domain, action)
    return new_key(work, action.key, SecretKey.generate(action.key.algorithm))


def import_components(work: Work, action: act.ImportKey) -> Outcome:
    """Take in the key that a ceremony's components came to.

    Raises:
        Refusal: it must not be.
    """
    require_spec(work.contents, work.domain, action)
    if work.combined is None:
        raise ValueError("an import of components is carried out with what they came to")
    return new_key(work, action.key, work.combined)


def new_key(work: Work, spec: act.KeySpec, key: SecretKey) -> Outcome:
    """Write a key that is here for the first time, as the next version at its place.

    Raises:
        KeyBlockRefused: it is an older version's key.
    """
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
        modes=modes_of(spec),
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


def modes_of(spec: act.KeySpec) -> tuple[Mode, ...]:
    """Return what a key may do: what is named, or all that its use allows."""
    return spec.modes or (_TRANSPORT_MODES if spec.use is Use.TRANSPORT else _CARD_MODES)


def give_components(work: Work, action: act.GiveComponents) -> Outcome:
    """Make a key of random components, each for one custodian.

    Raises:
        Refusal: it must not be, or somebody is no custodian.
    """
    require_spec(work.contents, work.domain, action)
    custodians = custodians_of(work.contents, work.domain, action.custodians)
    key, envelopes = generate_in_components(action.key.algorithm, custodians, work.random_bytes)
    outcome = new_key(work, action.key, key)
    outcome.result |= {FOR_COMPONENT + code: sealed for code, sealed in envelopes.items()}
    return outcome


def import_envelope(work: Work, action: act.ImportEnvelope) -> Outcome:
    """Take in a key that is encrypted to keyd's own public key.

    Raises:
        KeyBlockRefused: the envelope does not open, or has another key in it.
        Refusal: the key must not be.
    """
    require_spec(work.contents, work.domain, action)
    try:
        key = work.contents.identity.decrypt_to_key(action.envelope, action.key.algorithm)
    except (CiphertextNotAuthentic, ValueError):
        raise KeyBlockRefused("the envelope does not open: it is for another public key") from None
    if not compare_digest(key.kcv(), action.kcv):
        raise KeyBlockRefused("the key does not have the check value that was announced")
    return new_key(work, action.key, key)
