"""A terminal's life: enrolled, active, suspended, lost, retired; and which step leads where.

    enrolled ── activate ──► active ── suspend ──► suspended ── report lost ──► lost
                              │  ▲                   │                           │
                              │  └──── activate ─────┴───────────────────────────┤
                              └─────────── retire, from any of them ─────────────┴──► retired

To activate takes two officers; to stop takes one, because it only takes rights away and cannot wait. Nothing leads out
of retired: a code names one machine for ever.
"""

from __future__ import annotations

from typing import Final

import msgspec

from keyd.errors import TerminalStateRefused
from keyd.registry.terminal import Terminal, TerminalSpec, TerminalState

# Of what was superseded, so many certificates are remembered until they expire: one a year, and some mishaps.
MAX_SUPERSEDED: Final = 16

_MAY_STOP: Final = {
    TerminalState.SUSPENDED: frozenset({TerminalState.ENROLLED, TerminalState.ACTIVE}),
    TerminalState.LOST: frozenset(
        {TerminalState.ENROLLED, TerminalState.ACTIVE, TerminalState.SUSPENDED}
    ),
    TerminalState.RETIRED: frozenset(set(TerminalState) - {TerminalState.RETIRED}),
}


def enrolled(spec: TerminalSpec, by: str, now: int, *, is_active: bool) -> Terminal:
    """Return a new terminal."""
    state = TerminalState.ACTIVE if is_active else TerminalState.ENROLLED
    return Terminal(spec, state, by, now)


def respecified(terminal: Terminal, spec: TerminalSpec, by: str, now: int) -> Terminal:
    """Return a terminal of which officers have decided otherwise. Its state stays.

    Raises:
        TerminalStateRefused: it is retired.
    """
    if terminal.state is TerminalState.RETIRED:
        raise TerminalStateRefused(f"{terminal.code} is retired; its code is not given twice")
    return _changed(terminal, by, now, spec=spec)


def activated(terminal: Terminal, by: str, now: int) -> Terminal:
    """Let a terminal be used.

    Raises:
        TerminalStateRefused: it is active already, or retired.
    """
    if terminal.state in (TerminalState.ACTIVE, TerminalState.RETIRED):
        raise TerminalStateRefused(f"{terminal.code} is {terminal.state}")
    return _changed(terminal, by, now, state=TerminalState.ACTIVE, reason="")


def stopped(terminal: Terminal, to: TerminalState, reason: str, by: str, now: int) -> Terminal:
    """Stop a terminal. An enrolment code that is out counts no more.

    Raises:
        TerminalStateRefused: no step leads there.
    """
    if terminal.state not in _MAY_STOP.get(to, ()):
        raise TerminalStateRefused(f"{terminal.code} is {terminal.state}: it cannot become {to}")
    return _changed(terminal, by, now, state=to, reason=reason, enrolment=b"", enrolment_until=0)


def with_enrolment(terminal: Terminal, digest: bytes, until: int, by: str, now: int) -> Terminal:
    """Return a terminal for which an enrolment code is out, of which this digest is kept.

    Raises:
        TerminalStateRefused: it is stopped.
    """
    if terminal.state not in (TerminalState.ENROLLED, TerminalState.ACTIVE):
        raise TerminalStateRefused(f"{terminal.code} is {terminal.state}")
    return _changed(terminal, by, now, enrolment=digest, enrolment_until=until)


def with_certificate(terminal: Terminal, serial: bytes, until: int, by: str, now: int) -> Terminal:
    """Return a terminal with a new certificate. The one before, and the enrolment code, count no more."""
    superseded = terminal.superseded
    if terminal.certificate:
        superseded += ((terminal.certificate, terminal.certificate_until, now),)
    return _changed(
        terminal,
        by,
        now,
        certificate=serial,
        certificate_until=until,
        superseded=tuple(s for s in superseded if s[1] > now)[-MAX_SUPERSEDED:],
        enrolment=b"",
        enrolment_until=0,
    )


def _changed(terminal: Terminal, by: str, now: int, **fields: object) -> Terminal:
    return msgspec.structs.replace(
        terminal, changed_by=by, changed_at=now, revision=terminal.revision + 1, **fields
    )
