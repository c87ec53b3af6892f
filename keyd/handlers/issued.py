"""Handlers of issued PSAMs: what officers ask about those that keyd plays, and what one of them does alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keyd.handlers.custody import PAGE, contents_of, officers, page_of, require_local
from keyd.protocol.messages.registry import (
    IssuedPsam,
    IssuedPsams,
    ListIssuedPsams,
    LosePsam,
    ShowIssuedPsam,
    ShownPsam,
)
from keyd.psam.state import MAC2

if TYPE_CHECKING:
    from keyd.custody.officers import Officer
    from keyd.registry.psam import KeptPsam
    from keyd.warden import Warden


@officers(ListIssuedPsams)
async def list_issued(ask: ListIssuedPsams, officer: Officer, warden: Warden) -> IssuedPsams:
    require_local(officer)
    words = ask.search.casefold().split()
    found = [
        kept
        for _number, kept in sorted(contents_of(warden).psams.items())
        if ask.state in ("any", kept.state.value) and _has(kept, words)
    ]
    reports = [_report(kept) for kept in found[ask.offset : ask.offset + PAGE]]
    return IssuedPsams(tuple(page_of(reports, lambda report: len(report.psam))), len(found))


@officers(ShowIssuedPsam)
async def show_issued(ask: ShowIssuedPsam, officer: Officer, warden: Warden) -> ShownPsam:
    require_local(officer)
    kept = contents_of(warden).psam(ask.number)
    record = await warden.psam_record(kept)
    return ShownPsam(_report(kept).psam, record.number, record.wrong.get(MAC2, 0))


@officers(LosePsam)
async def lose(ask: LosePsam, officer: Officer, warden: Warden) -> IssuedPsam:
    vault = warden.vault
    return _report(await warden.do(lambda: vault.lose_psam(officer, ask.number, ask.reason)))


def _has(kept: KeptPsam, words: list[str]) -> bool:
    spec = kept.spec
    text = "\n".join(
        (kept.number, spec.serial.hex(), spec.profile, kept.terminal, *spec.keys)
    ).casefold()
    return all(word in text for word in words)


def _report(kept: KeptPsam) -> IssuedPsam:
    return IssuedPsam(msgspec.msgpack.encode(kept))
