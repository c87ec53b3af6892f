"""Who may ask a command at all, by what the connection is: decided before its parameters are read.

What a terminal's own roles allow it, with which keys and how often, is the gate's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.errors import AuditUnavailable, NotAuthenticated, RoleMissing, Sealed, SelftestFailed
from keyd.needs import GOVERNED
from keyd.protocol.commands import Role

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.protocol.commands import Command
    from keyd.recorder import Recorder
    from keyd.terminals import Session

# What a sealed keyd answers: how it does, and unsealing.
_WHILE_SEALED: Final = frozenset({Role.OPERATOR, Role.ADMINISTRATION, Role.OFFICER})

_ENROLMENT: Final = "on this line machines ask for a certificate, and for nothing else"
_NO_ENROLMENT: Final = "this is asked on an enrolment line, and nowhere else"


def authorise(
    session: Session, command: Command, services: Services, recorder: Recorder | None
) -> None:
    """Refuse a command that this connection may not ask, or that nobody may ask now.

    Raises:
        RoleMissing: it is asked on another line, by others.
        Sealed: until enough shareholders unseal it, keyd answers its operators alone.
        AuditUnavailable: it would have to be recorded.
        NotAuthenticated: nobody has proven to be there.
        SelftestFailed: keyd does not trust itself.
    """
    role = command.role
    if session.is_enrolment is not (role is Role.ENROLMENT):
        raise RoleMissing(_ENROLMENT if session.is_enrolment else _NO_ENROLMENT)
    if services.is_sealed and role not in _WHILE_SEALED:
        raise Sealed
    if command.audited and recorder is not None and recorder.unavailable_because is not None:
        # Before any key is used and anybody becomes anybody.
        raise AuditUnavailable
    if role in (Role.ANYONE, Role.ENROLMENT):
        return
    if role is Role.ADMINISTRATION:
        if not session.is_administration:
            raise RoleMissing("this is asked on the administration's socket, and nowhere else")
        return
    if role is Role.OFFICER:
        raise RoleMissing("an officer signs this: officer.command carries it")
    session.expire(services.clock())
    if session.terminal is None and not (role is Role.OPERATOR and session.is_operator):
        raise NotAuthenticated
    if services.has_failed_selftest and role is not Role.OPERATOR:
        raise SelftestFailed


def is_governed(session: Session, command: Command) -> bool:
    """Whether it is the policy's to decide. An operator on the Unix socket has no roles."""
    is_operators = command.role is Role.OPERATOR and session.is_operator
    return command.role in GOVERNED and not is_operators
