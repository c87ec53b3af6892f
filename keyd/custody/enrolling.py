"""Terminals and certificates: what two officers decide about them, what one may, and what a machine asks for.

Like `keyd.custody.carrying_out`, these are pure decisions: rows to write in one transaction, and events for the
journal. LOCAL's officers govern terminals, for they belong to the daemon and to no card's domain.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.authority import SERIAL_BYTES, authority_row, moment_of, new_authority
from keyd.custody.bodies import seal_row
from keyd.custody.proposals import FOR_CODES, FOR_KEYS
from keyd.custody.psams import require_no_other_psam
from keyd.custody.work import Outcome, event_of
from keyd.errors import (
    BadParameter,
    DomainCrossed,
    EnrolmentRefused,
    ExportRefused,
    KeyNotFound,
)
from keyd.keys.block import Domain, Export, KeyState, Use
from keyd.keys.hierarchy import (
    TerminalMasterKey,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.registry import lifecycle
from keyd.registry.enrolment import digest_of, is_code_of, make_code, read_code
from keyd.registry.terminal import (
    Proof,
    Terminal,
    TerminalSpec,
    TerminalState,
    require_good,
)
from keyd.store.rows import Kind, Put
from keyd.tls import TlsKind
from keyd.tls.pki import (
    Request,
    RequestRefused,
    Validity,
    issue_terminal,
    random_serial,
    read_request_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.crypto.secret import SecretKey
    from keyd.custody.contents import Contents
    from keyd.custody.officers import Officer
    from keyd.custody.work import Event, Work
    from keyd.store.rows import Drop

# What stands before enrolment codes and terminal keys when they are encrypted to an officer.
KIND_CODES: Final = b"keyd enrolment codes 1\n"
KIND_KEYS: Final = b"keyd terminal keys 1\n"

# A certificate's life, unless the terminal's own validity ends before that.
CERTIFICATE_DAYS: Final = 365

# One machine's clock may be behind.
_BACKDATED: Final = datetime.timedelta(minutes=5)

_DAY: Final = 86_400


def require_possible(
    contents: Contents, domain: Domain, action: act.AboutTerminals, now: int
) -> None:
    """Refuse at once, when it is proposed, what could not be carried out anyway.

    Raises:
        Refusal: the one that carrying it out would meet.
    """
    _require_local(domain)
    match action:
        case act.EnrolTerminals():
            _changed_terminals(contents, action, "", now)
        case act.ActivateTerminals():
            _each(contents, action.codes, lambda one: lifecycle.activated(one, "", now))
        case act.GiveEnrolmentCodes():
            _officer(contents, action.officer)
            _each(
                contents, action.codes, lambda one: lifecycle.with_enrolment(one, b"", 1, "", now)
            )
        case act.GiveTerminalKeys():
            _officer(contents, action.officer)
            _terminal_master(contents)
            for code in _distinct(action.codes):
                _factor(contents.terminal(code))
        case act.MakeAuthority():
            pass


def carry_out(work: Work, action: act.AboutTerminals) -> Outcome:
    """Carry out an approved action about terminals.

    Raises:
        Refusal: it cannot be done; nothing was.
    """
    contents, now, by = work.contents, work.now, work.decided_by
    require_possible(contents, work.domain, action, now)
    match action:
        case act.EnrolTerminals():
            changed = _changed_terminals(contents, action, by, now)
            return _put(work, changed, "terminal.enrolled")
        case act.ActivateTerminals():
            changed = _each(contents, action.codes, lambda one: lifecycle.activated(one, by, now))
            return _put(work, changed, "terminal.activated")
        case act.GiveEnrolmentCodes():
            return _give_codes(work, action)
        case act.GiveTerminalKeys():
            return _give_keys(work, action)
        case act.MakeAuthority():
            return _make_authority(work, action)


def stop(
    contents: Contents,
    officer: Officer,
    code: str,
    to: TerminalState,
    reason: str,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> Outcome:
    """Stop a terminal: one officer is enough, because it only takes rights away and cannot wait.

    Raises:
        DomainCrossed: it is not LOCAL's officer.
        BadParameter: the reason is not printable.
        TerminalNotFound, TerminalStateRefused: there is nothing to stop.
    """
    _require_local(officer.domain)
    if not reason.isprintable():
        # Neither cursor keys nor colours for whoever reads the journal on a terminal.
        raise BadParameter("a reason is printable")
    stopped = lifecycle.stopped(contents.terminal(code), to, reason, officer.code, now)
    lmk = contents.seal.wrapping_keys[Domain.LOCAL]
    event: Event = {
        "event": f"terminal.{to}",
        "domain": Domain.LOCAL.value,
        "officer": officer.title,
        "terminals": [code],
        "reason": reason,
    }
    return Outcome([_row(lmk, stopped, random_bytes)], [event])


def enrol_with_code(
    contents: Contents,
    code: str,
    enrolment_code: str,
    request: bytes,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[Outcome, bytes]:
    """Issue a certificate to a machine that has a one-time enrolment code; return what to write, and the chain in PEM.

    Raises:
        BadParameter: the enrolment code was mistyped.
        EnrolmentRefused: whatever else is wrong; a terminal that is not enrolled looks like a wrong code.
    """
    digits = read_code(enrolment_code)
    terminal = contents.terminals.get(code)
    kept = terminal.enrolment if terminal is not None else bytes(32)
    is_right = is_code_of(kept, code, digits)
    if terminal is None or not is_right or now >= terminal.enrolment_until:
        raise EnrolmentRefused
    return _issue(contents, terminal, request, "enrolment code", now, random_bytes)


def renew(
    contents: Contents,
    code: str,
    request: bytes,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[Outcome, bytes]:
    """Issue the next certificate to a terminal that has proven itself; otherwise as `enrol_with_code`.

    Raises:
        EnrolmentRefused: the request is not for it, or it is active no more.
    """
    terminal = contents.terminals.get(code)
    if terminal is None or terminal.state is not TerminalState.ACTIVE:
        raise EnrolmentRefused
    return _issue(contents, terminal, request, code, now, random_bytes)


def _issue(
    contents: Contents,
    terminal: Terminal,
    request: bytes,
    by: str,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[Outcome, bytes]:
    kind, asked = _read_request(request)
    if asked.common_name != terminal.code:
        raise EnrolmentRefused("the certificate request is for another terminal")
    held = contents.authorities.get(kind)
    if held is None:
        raise EnrolmentRefused(f"this keyd has no {kind.value} authority")
    until = now + CERTIFICATE_DAYS * _DAY
    if terminal.spec.valid_until:
        until = min(until, terminal.spec.valid_until)
    if until <= now:
        raise EnrolmentRefused("the terminal is valid no more")
    validity = Validity(moment_of(now) - _BACKDATED, moment_of(until))
    serial = random_serial()
    certificate = issue_terminal(held.authority, terminal.code, asked.public_key, validity, serial)
    octets = serial.to_bytes(SERIAL_BYTES, "big").lstrip(b"\0")
    changed = lifecycle.with_certificate(terminal, octets, until, by, now)
    lmk = contents.seal.wrapping_keys[Domain.LOCAL]
    event: Event = {
        "event": "terminal.certified",
        "domain": Domain.LOCAL.value,
        "terminals": [terminal.code],
        "by": by,
        "kind": kind.value,
        "serial": octets.hex(),
        "until": until,
    }
    outcome = Outcome([_row(lmk, changed, random_bytes)], [event])
    return outcome, certificate + held.body.certificate


def _read_request(request: bytes) -> tuple[TlsKind, Request]:
    """Read a request of either kind; what is of neither says why it is not of the second."""
    try:
        return TlsKind.GUOMI, read_request_untrusted(request, TlsKind.GUOMI)
    except RequestRefused:
        pass
    try:
        return TlsKind.STANDARD, read_request_untrusted(request, TlsKind.STANDARD)
    except RequestRefused as error:
        raise EnrolmentRefused(str(error)) from None


def _give_codes(work: Work, action: act.GiveEnrolmentCodes) -> Outcome:
    until = work.now + action.days * _DAY
    given: dict[str, str] = {}

    def with_code(terminal: Terminal) -> Terminal:
        text = make_code(work.random_bytes)
        given[terminal.code] = text
        digest = digest_of(terminal.code, read_code(text))
        return lifecycle.with_enrolment(terminal, digest, until, work.decided_by, work.now)

    outcome = _put(work, _each(work.contents, action.codes, with_code), "terminal.code_given")
    outcome.events[0]["to"] = action.officer
    officer = _officer(work.contents, action.officer)
    outcome.result[FOR_CODES + officer.code] = _envelope(officer, KIND_CODES, given)
    return outcome


def _give_keys(work: Work, action: act.GiveTerminalKeys) -> Outcome:
    master, label = _terminal_master(work.contents)
    officer = _officer(work.contents, action.officer)
    given = {code: master.hand_over(_factor(work.contents.terminal(code))) for code in action.codes}
    event = event_of(work, "terminal.key_given")
    event |= {"terminals": list(action.codes), "to": action.officer, "key": label}
    return Outcome([], [event], {FOR_KEYS + officer.code: _envelope(officer, KIND_KEYS, given)})


def _make_authority(work: Work, action: act.MakeAuthority) -> Outcome:
    kind = TlsKind(action.kind)
    before = work.contents.authorities.get(kind)
    revision = before.body.revision + 1 if before is not None else 1
    body, key = new_authority(
        kind, action.common_name, action.years, work.decided_by, work.now, revision
    )
    event = event_of(work, "authority.made")
    event |= {"kind": kind.value, "name": action.common_name}
    row = authority_row(work.lmk, body, key, work.random_bytes)
    return Outcome([Put(row)], [event], {"certificate": body.certificate})


def _changed_terminals(
    contents: Contents, action: act.EnrolTerminals, by: str, now: int
) -> list[Terminal]:
    _distinct(tuple(spec.code for spec in action.terminals))
    # What proves a terminal proves one: among all that are not retired, and among the new ones.
    others = {
        terminal.code: terminal.spec
        for terminal in contents.terminals.values()
        if terminal.state is not TerminalState.RETIRED
    }
    others |= {spec.code: spec for spec in action.terminals}
    _require_own(others.values())
    changed = []
    for spec in action.terminals:
        require_good(spec)
        require_no_other_psam(contents, spec)
        before = contents.terminals.get(spec.code)
        if before is None:
            changed.append(lifecycle.enrolled(spec, by, now, is_active=action.activate))
        else:
            changed.append(lifecycle.respecified(before, spec, by, now))
    return changed


def _require_own(specs: Iterable[TerminalSpec]) -> None:
    owners: dict[bytes, str] = {}
    for spec in specs:
        for means in (spec.psam_number, spec.public_key):
            other = owners.setdefault(means, spec.code)
            if means and other != spec.code:
                raise BadParameter(f"{spec.code} and {other} would prove themselves with the same")


def _each(
    contents: Contents, codes: tuple[str, ...], change: Callable[[Terminal], Terminal]
) -> list[Terminal]:
    return [change(contents.terminal(code)) for code in _distinct(codes)]


def _distinct(codes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(codes)) != len(codes):
        raise BadParameter("a terminal is named twice")
    return codes


def _put(work: Work, terminals: list[Terminal], name: str) -> Outcome:
    event = event_of(work, name)
    event["terminals"] = [terminal.code for terminal in terminals]
    return Outcome([_row(work.lmk, one, work.random_bytes) for one in terminals], [event])


def _row(lmk: SecretKey, terminal: Terminal, random_bytes: Callable[[int], bytes]) -> Put | Drop:
    domain = Domain.LOCAL.value
    return Put(seal_row(lmk, Kind.TERMINAL, terminal.code.encode(), domain, terminal, random_bytes))


def _officer(contents: Contents, code: str) -> Officer:
    officer = contents.officer(Domain.LOCAL, code)
    if officer is None or officer.is_retired:
        raise BadParameter(f"LOCAL has no officer {code}")
    return officer


def _envelope(officer: Officer, kind: bytes, given: dict[str, Any]) -> bytes:
    return Sm2PublicKey.load(officer.public_key).encrypt(kind + msgspec.msgpack.encode(given))


def _terminal_master(contents: Contents) -> tuple[TerminalMasterKey, str]:
    for held in contents.keys.values():
        header = held.header
        if header.use is Use.TERMINAL and header.state is KeyState.ACTIVE and held.key is not None:
            if header.export is Export.NEVER:
                raise ExportRefused(f"{header.label} may leave never, and neither what is below it")
            return TerminalMasterKey(held.key), header.label
    raise KeyNotFound("there is no active terminal master key")


def _factor(terminal: Terminal) -> bytes:
    if Proof.KEY_BY_CODE in terminal.spec.proofs:
        return terminal_factor_by_code(terminal.code)
    if Proof.KEY_BY_PSAM in terminal.spec.proofs:
        return terminal_factor_by_psam(terminal.spec.psam_number)
    raise BadParameter(f"{terminal.code} proves itself with no key")


def _require_local(domain: Domain) -> None:
    if domain is not Domain.LOCAL:
        raise DomainCrossed("terminals belong to the daemon: LOCAL's officers decide on them")
