"""Carrying out what two officers decided: pure decisions, from what the store holds to what is to be written.

Each function checks everything first and changes nothing itself: it returns the rows to write, in one transaction,
and the events for the journal. What cannot be done is refused, and then nothing has happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.custody import actions as act
from keyd.custody import appointing, enrolling, journeys, lifecycle, new_keys, psams
from keyd.custody.bodies import seal_key_row
from keyd.custody.officers import require_public_key
from keyd.custody.rekeying import require_rekey
from keyd.custody.work import Outcome, event_of
from keyd.errors import BadParameter
from keyd.keys.block import KeyState, Mode
from keyd.store.rows import Put

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey
    from keyd.custody.catalogue import Catalogue
    from keyd.custody.contents import Contents
    from keyd.custody.work import Work
    from keyd.keys.block import Domain, KeyHeader

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
            new_keys.require_spec(contents, domain, action)
            if isinstance(action, act.GiveComponents):
                appointing.custodians_of(contents, domain, action.custodians)
            if isinstance(action, act.ImportWrapped):
                journeys.require_transport_key(
                    contents, domain, action.transport_key, Mode.UNWRAP, now
                )
        case act.ExportKey() | act.ExportChild():
            contents.key(action.key_id, domain)
            journeys.require_transport_key(contents, domain, action.transport_key, Mode.WRAP, now)
        case act.EnrolOfficer():
            require_public_key(action.public_key)
            appointing.require_unused_public_key(contents, domain, action)
        case act.RetireOfficer():
            appointing.require_enough_officers(contents, domain, action.code, ())
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
            return new_keys.generate(work, action)
        case act.ImportKey():
            return new_keys.import_components(work, action)
        case act.GiveComponents():
            return new_keys.give_components(work, action)
        case act.ImportEnvelope():
            return new_keys.import_envelope(work, action)
        case act.ImportWrapped():
            return journeys.import_wrapped(work, action)
        case act.ExportKey():
            return journeys.export_key(work, action)
        case act.ExportChild():
            return journeys.export_child(work, action)
        case act.Permit():
            return _permit(work, action)
        case act.EnrolOfficer():
            return appointing.enrol(work, action)
        case act.RetireOfficer():
            return appointing.retire(work, action)
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


# A key's life and rights ------------------------------------------------------------------------------


def _step(
    work: Work, action: act.Activate | act.Deactivate | act.Compromise | act.Destroy | act.Restore
) -> Outcome:
    held = work.key(action.key_id)
    key: SecretKey | None = held.living()
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
    key = held.living()
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
