"""Handlers of the daemon family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keyd import __version__
from keyd.crypto.algorithms import IN_SOFTWARE
from keyd.crypto.sm2 import backend_name
from keyd.handlers.registry import handles
from keyd.protocol.messages.daemon import (
    AskRandom,
    AskStatus,
    DaemonState,
    KeyReport,
    RandomBytes,
    RunSelftest,
    SelftestReport,
    SelftestResults,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.crypto.selftest import SelftestResult
    from keyd.handlers.services import Services
    from keyd.keys.block import KeyHeader
    from keyd.terminals import Session


@handles(AskStatus)
def status(_ask: AskStatus, _session: Session, services: Services) -> DaemonState:
    return DaemonState(
        version=__version__,
        state=_state(services),
        synthetic_keys=services.has_synthetic_keys,
        algorithms=tuple(sorted(algorithm.value for algorithm in IN_SOFTWARE)),
        sm2=backend_name(),
        selftest=_reports(services.selftest),
        keys=tuple(map(_key_report, services.key_headers)),
        counters=dict(services.counters()),
    )


@handles(RunSelftest)
async def selftest(_ask: RunSelftest, _session: Session, services: Services) -> SelftestResults:
    results = await trio.to_thread.run_sync(services.run_selftest)
    services.selftest = results
    services.has_failed_selftest |= not all(result.passed for result in results)
    return SelftestResults(_reports(results))


@handles(AskRandom)
def random(ask: AskRandom, _session: Session, services: Services) -> RandomBytes:
    return RandomBytes(services.random_bytes(ask.length))


def _state(services: Services) -> str:
    if services.is_draining:
        return "draining"
    return "sealed" if services.is_sealed else "serving"


def _key_report(header: KeyHeader) -> KeyReport:
    return KeyReport(
        addresses=header.addresses,
        name=header.name,
        set=header.set,
        algorithm=header.algorithm.value,
        levels=header.levels,
        kcv=header.kcv,
        key_id=header.key_id,
        domain=header.domain.value,
        tier=header.tier.value,
        use=header.use.value,
        version=header.version,
        state=header.state.value,
    )


def _reports(results: Iterable[SelftestResult]) -> tuple[SelftestReport, ...]:
    return tuple(SelftestReport(result.name, result.passed, result.detail) for result in results)
