"""Officers: who is enrolled, whose roles change and who retires, and that enough of them are left.

Like `keyd.custody.carrying_out`, these are pure decisions: rows to write in one transaction, and events for the
journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.custody import lifecycle
from keyd.custody.bodies import seal_row
from keyd.custody.officers import Officer, OfficerRole, require_public_key
from keyd.custody.work import Outcome, event_of
from keyd.errors import BadParameter
from keyd.store.rows import Kind, Put

if TYPE_CHECKING:
    from keyd.custody import actions as act
    from keyd.custody.contents import Contents
    from keyd.custody.work import Work
    from keyd.keys.block import Domain

# Fewer, and nobody could approve what the last one proposes.
LEAST_SECURITY_OFFICERS: Final = 2


def enrol(work: Work, action: act.EnrolOfficer) -> Outcome:
    """Enrol an officer, or give one who is there other roles or another public key.

    Raises:
        BadParameter: the public key is somebody's already, or too few security officers would be left.
    """
    require_public_key(action.public_key)
    require_unused_public_key(work.contents, work.domain, action)
    before = work.contents.officer(work.domain, action.code)
    if before is not None and not before.is_retired:
        require_enough_officers(work.contents, work.domain, action.code, action.roles)
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


def retire(work: Work, action: act.RetireOfficer) -> Outcome:
    """Let an officer serve no more.

    Raises:
        BadParameter: there is no such officer, or too few security officers would be left.
    """
    officer = work.contents.officer(work.domain, action.code)
    if officer is None or officer.is_retired:
        raise BadParameter(f"{work.domain} has no officer {action.code}")
    require_enough_officers(work.contents, work.domain, action.code, ())
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


def custodians_of(contents: Contents, domain: Domain, codes: tuple[str, ...]) -> list[Officer]:
    """Return the custodians of a domain who have these codes.

    Raises:
        BadParameter: somebody is none, or is named twice.
    """
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


def require_unused_public_key(contents: Contents, domain: Domain, action: act.EnrolOfficer) -> None:
    """Refuse an officer with the public key of another.

    Raises:
        BadParameter: there is such an officer.
    """
    # Two codes for one person would be dual control by one.
    for officer in contents.officers.values():
        is_same_officer = officer.domain is domain and officer.code == action.code
        if officer.public_key == action.public_key and not is_same_officer:
            raise BadParameter(f"the public key is {officer.title}'s already")


def require_enough_officers(
    contents: Contents, domain: Domain, without: str, new_roles: tuple[OfficerRole, ...]
) -> None:
    """Refuse a change after which too few could approve.

    Raises:
        BadParameter: so it would be.
    """
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
