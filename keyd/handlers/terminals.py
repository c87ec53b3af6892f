"""Handlers of the registry: what officers ask about terminals, and what machines ask to become one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from keyd.errors import NotAuthenticated
from keyd.handlers.custody import (
    PAGE,
    contents_of,
    officers,
    page_of,
    require_local,
    warden_of,
)
from keyd.handlers.registry import handles
from keyd.protocol.messages.registry import (
    AuthorityList,
    AuthorityReport,
    Enrolled,
    EnrolWithCode,
    ListAuthorities,
    ListTerminals,
    RenewCertificate,
    ShowTerminal,
    StopTerminal,
    TerminalList,
    TerminalReport,
)
from keyd.registry.terminal import Terminal, TerminalState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyd.custody.officers import Officer
    from keyd.handlers.services import Services
    from keyd.store.rows import Activity
    from keyd.terminals import Session
    from keyd.warden import Warden


@officers(ListTerminals)
async def list_terminals(ask: ListTerminals, officer: Officer, warden: Warden) -> TerminalList:
    require_local(officer)
    words = ask.search.casefold().split()
    found = [
        terminal
        for _code, terminal in sorted(contents_of(warden).terminals.items())
        if ask.state in ("any", terminal.state.value) and _has(terminal, words)
    ]
    seen = await warden.activity()
    reports = [_report(terminal, seen) for terminal in found[ask.offset : ask.offset + PAGE]]
    return TerminalList(tuple(page_of(reports, lambda report: len(report.terminal))), len(found))


@officers(ShowTerminal)
async def show_terminal(ask: ShowTerminal, officer: Officer, warden: Warden) -> TerminalReport:
    require_local(officer)
    return _report(contents_of(warden).terminal(ask.code), await warden.activity())


@officers(StopTerminal)
async def stop_terminal(ask: StopTerminal, officer: Officer, warden: Warden) -> TerminalReport:
    to = TerminalState(ask.state)
    vault = warden.vault
    stopped = await warden.do(lambda: vault.stop_terminal(officer, ask.code, to, ask.reason))
    return _report(stopped, await warden.activity())


@officers(ListAuthorities)
async def list_authorities(
    _ask: ListAuthorities, officer: Officer, warden: Warden
) -> AuthorityList:
    require_local(officer)
    contents = contents_of(warden)
    now = int(time.time())

    def reports() -> tuple[AuthorityReport, ...]:
        return tuple(
            AuthorityReport(
                kind.value,
                held.body.certificate,
                held.revocation_list(contents.terminals.values(), now, contents.number + 1),
            )
            for kind, held in sorted(contents.authorities.items(), key=lambda item: item[0].value)
        )

    return AuthorityList(await warden.do(reports))


@handles(EnrolWithCode)
async def enrol_with_code(ask: EnrolWithCode, _session: Session, services: Services) -> Enrolled:
    warden = warden_of(services)
    vault = warden.vault
    return Enrolled(
        await warden.do(lambda: vault.enrol_terminal(ask.code, ask.enrolment_code, ask.request))
    )


@handles(RenewCertificate)
async def renew_certificate(
    ask: RenewCertificate, session: Session, services: Services
) -> Enrolled:
    warden = warden_of(services)
    vault = warden.vault
    terminal = session.terminal
    if terminal is None:
        raise NotAuthenticated
    return Enrolled(await warden.do(lambda: vault.renew_certificate(terminal.code, ask.request)))


def _has(terminal: Terminal, words: list[str]) -> bool:
    spec = terminal.spec
    text = "\n".join(
        (
            *(spec.code, spec.organisation, spec.region, spec.vendor, spec.model, spec.serial),
            *(spec.psam_number.hex(), *spec.roles),
        )
    ).casefold()
    return all(word in text for word in words)


def _report(terminal: Terminal, seen: Mapping[str, Activity]) -> TerminalReport:
    # Whether a code is out may be known; nothing may be tried on its digest.
    shown = msgspec.structs.replace(terminal, enrolment=b"")
    encoded = msgspec.msgpack.encode(shown)
    one = seen.get(terminal.code)
    if one is None:
        return TerminalReport(encoded)
    return TerminalReport(
        encoded, one.last_seen, one.last_source, one.authentications, one.failures
    )
