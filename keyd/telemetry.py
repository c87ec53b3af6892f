"""What keyd tells of itself: Prometheus metrics and one canonical log line per event.

Both are fed per tick, not per request. One registry serves one process; label children are looked up once and
kept. A log line names the event first and carries nouns as keys; what it may say of a message is decided by
the schema (`keyd.protocol.redaction`), never here.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
from bisect import bisect_left
from collections import Counter as Counts
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from keyd.errors import Refusal, Status
from keyd.policy import Strange
from keyd.protocol.redaction import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence

    from msgspec import Struct

    from keyd.crypto.selftest import SelftestResult
    from keyd.handlers.desk import MemberReport
    from keyd.keys.block import KeyHeader

# From a single warm request to the patience of a person at a counter.
SECONDS_BUCKETS: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

# What peers cause (refusals, connections) must not become a flood of log lines; what is left out is counted
# and said.
MAX_PEER_LINES_PER_SECOND: Final = 100


class _Histogram(Collector):
    """A histogram that takes many equal observations at once.

    All requests of a tick wait as long as the tick takes; prometheus-client's own histogram would have to be
    told so once for each of them.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[HistogramMetricFamily]:
        total = 0
        buckets = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        # Told in advance, the registry notices a second metric of the same name without collecting.
        yield HistogramMetricFamily(self._name, self._documentation)


class _Tally(Collector):
    """A counter that only the hub's thread adds to, every tick: without a lock, and with no time of its making."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self.value = 0

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, self.value)

    def describe(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation)


class _Reasons(Collector):
    """A counter by reason that is kept elsewhere and only read here."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self.source: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=["reason"])
        for reason, count in list(self.source().items()):
            family.add_metric([reason], count)
        yield family

    def describe(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, labels=["reason"])


class _Psams(Collector):
    """What the lender says of its members, read when somebody asks."""

    def __init__(self) -> None:
        self.source: Callable[[], Sequence[MemberReport]] = tuple

    def collect(self) -> Iterable[Metric]:
        members = GaugeMetricFamily(
            "keyd_psams", "PSAMs of the pool, by kind and state.", labels=["kind", "state"]
        )
        sessions = GaugeMetricFamily("keyd_psams_open", "PSAMs that terminals have open.")
        waiting = GaugeMetricFamily(
            "keyd_psam_waiting", "Requests that wait for a PSAM.", labels=["psam"]
        )
        turns = CounterMetricFamily(
            "keyd_psam_turns", "Turns that were had on a PSAM.", labels=["psam"]
        )
        failures = CounterMetricFamily(
            "keyd_psam_failures", "Times that a PSAM was quarantined.", labels=["psam"]
        )
        reports = self.source()
        by_state = Counts((report.kind, report.state) for report in reports)
        for labels, count in by_state.items():
            members.add_metric(labels, count)
        sessions.add_metric([], sum(report.sessions for report in reports))
        for report in reports:
            waiting.add_metric([report.name], report.waiting)
            turns.add_metric([report.name], report.turns)
            failures.add_metric([report.name], report.failures)
        yield from (members, sessions, waiting, turns, failures)

    def describe(self) -> Iterable[Metric]:
        return self.collect()


class Meter:
    """The metrics of one keyd."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "keyd_requests",
            "Requests by method and status.",
            ["method", "status"],
            registry=registry,
        )
        self._children: dict[tuple[str, Status], Counter] = {}
        self.duration = _Histogram(
            "keyd_request_duration_seconds",
            "From reading a request to handing its answer to the kernel: with queueing.",
            SECONDS_BUCKETS,
        )
        self.compute = _Histogram(
            "keyd_request_compute_seconds",
            "Deciding and computing the batch that a request was part of: without queueing.",
            SECONDS_BUCKETS,
        )
        self.batch = _Histogram(
            "keyd_tick_requests", "Requests that one tick decided as a batch.", BATCH_BUCKETS
        )
        self.journal_append = _Histogram(
            "keyd_journal_append_seconds",
            "Writing the uses of one tick, or of a part of it, into the journal.",
            SECONDS_BUCKETS,
        )
        self.tls_handshake = _Histogram(
            "keyd_tls_handshake_seconds",
            "From accepting a connection to the end of its handshake.",
            SECONDS_BUCKETS,
        )
        self.journal_sync = _Histogram(
            "keyd_journal_sync_seconds",
            "Waiting until the disk had everything that was written by then.",
            SECONDS_BUCKETS,
        )
        for histogram in (
            *(self.duration, self.compute, self.batch),
            *(self.journal_append, self.journal_sync, self.tls_handshake),
        ):
            registry.register(histogram)
        self.connections = Gauge("keyd_connections", "Open client connections.", registry=registry)
        self.connections_opened = Counter(
            "keyd_connections_opened", "Client connections accepted.", registry=registry
        )
        self._connections_closed = Counter(
            "keyd_connections_closed", "Client connections closed.", ["reason"], registry=registry
        )
        self.connections_refused = Counter(
            "keyd_connections_refused", "Connections beyond the limit.", registry=registry
        )
        self.accept_errors = Counter(
            "keyd_accept_errors", "Times that accepting a connection failed.", registry=registry
        )
        self._tls_lines = Gauge(
            "keyd_tls_lines", "Open encrypted lines.", ["kind"], registry=registry
        )
        self._tls_handshakes = Counter(
            "keyd_tls_handshakes",
            "Handshakes that were done: full, or shortened by a ticket.",
            ["kind", "form"],
            registry=registry,
        )
        self._tls_faults = Counter(
            "keyd_tls_faults",
            "Encrypted lines that ended badly, or were never there.",
            ["kind", "cause"],
            registry=registry,
        )
        self.tls_half_open = 0
        half_open = Gauge(
            "keyd_tls_half_open", "Lines in the middle of their handshake.", registry=registry
        )
        half_open.set_function(lambda: self.tls_half_open)
        self._selftest = Gauge(
            "keyd_selftest_passed",
            "Whether the last self-test passed.",
            ["test"],
            registry=registry,
        )
        self._keys = Gauge("keyd_keys_loaded", "Loaded keys.", ["algorithm"], registry=registry)
        self._synthetic = Gauge(
            "keyd_keys_synthetic", "Whether the loaded keys are public ones.", registry=registry
        )
        self.terminals = Gauge("keyd_terminals_enrolled", "Enrolled terminals.", registry=registry)
        self._terminal_refusals = _Reasons(
            "keyd_terminal_refusals",
            "Terminals that were refused when they came to prove themselves, by reason.",
        )
        registry.register(self._terminal_refusals)
        self._psams = _Psams()
        registry.register(self._psams)
        self._lockouts = Gauge(
            "keyd_terminal_lockouts",
            "Terminals, sites and pairs of them that are locked because of wrong proofs.",
            registry=registry,
        )
        self.journal_records = _Tally("keyd_journal_records", "Uses written into the journal.")
        self.journal_frames = _Tally(
            "keyd_journal_frames",
            "Times that uses were written into the journal, for all of a tick at once.",
        )
        registry.register(self.journal_records)
        registry.register(self.journal_frames)
        self.journal_failures = Counter(
            "keyd_journal_failures",
            "Times that the journal became unavailable.",
            registry=registry,
        )
        self.journal_available = Gauge(
            "keyd_journal_available",
            "Whether the journal can be written; -1 if this keyd keeps none.",
            registry=registry,
        )
        self.journal_available.set(-1)
        self.answers_held = 0
        held = Gauge(
            "keyd_answers_held",
            "Answers that wait until the disk has their records.",
            registry=registry,
        )
        held.set_function(lambda: self.answers_held)
        self.answers_withheld = Counter(
            "keyd_answers_withheld",
            "Answers that were held and then refused, because the disk did not take their records.",
            registry=registry,
        )
        self._strange = Counter(
            "keyd_cards_strange",
            "Requests for cards that look copied or attacked, by what is strange.",
            ["what"],
            registry=registry,
        )
        for what in Strange:
            # A rate needs the zero that comes before the first.
            self._strange.labels(what.value)
        self.cards_forgotten: Callable[[], int] = lambda: 0
        forgotten = Gauge(
            "keyd_cards_forgotten",
            "Cards that were forgotten while they still mattered, since the policy was loaded.",
            registry=registry,
        )
        forgotten.set_function(lambda: self.cards_forgotten())
        self._build = Info("keyd_build", "What is running.", registry=registry)
        self._totals = {"requests": 0, "refusals": 0, "connections": 0}

    def count(self, counts: Mapping[tuple[str, Status], int]) -> None:
        """Add a tick's requests by method and status."""
        for key, times in counts.items():
            child = self._children.get(key)
            if child is None:
                method, status = key
                child = self._children[key] = self._requests.labels(method, status.name)
            child.inc(times)
            self._totals["requests"] += times
            if key[1] is not Status.OK:
                self._totals["refusals"] += times

    def opened(self) -> None:
        """Count an accepted connection."""
        self.connections.inc()
        self.connections_opened.inc()
        self._totals["connections"] += 1

    def closed(self, reason: str) -> None:
        """Count a connection that ended, by one of few fixed reasons."""
        self.connections.dec()
        self._connections_closed.labels(reason).inc()

    def strange(self, what: str) -> None:
        """Count a request for a card that is strange."""
        self._strange.labels(what).inc()

    def watch_terminals(
        self, refused: Callable[[], Mapping[str, int]], locked: Callable[[], int]
    ) -> None:
        """Show what these say, whenever somebody asks: refusals by reason, and how much is locked."""
        self._terminal_refusals.source = refused
        self._lockouts.set_function(locked)

    def watch_psams(self, members: Callable[[], Sequence[MemberReport]]) -> None:
        """Show what the lender says of its members, whenever somebody asks."""
        self._psams.source = members

    def tls_opened(self, kind: str, seconds: float, *, is_resumed: bool) -> None:
        """Count a handshake that was done after so many seconds."""
        self._tls_lines.labels(kind).inc()
        self._tls_handshakes.labels(kind, "resumed" if is_resumed else "full").inc()
        self.tls_handshake.observe(seconds)

    def tls_closed(self, kind: str) -> None:
        """Count the end of an open line."""
        self._tls_lines.labels(kind).dec()

    def tls_failed(self, kind: str, cause: str) -> None:
        """Count a line that ended badly, or was never there, by one of few fixed causes."""
        self._tls_faults.labels(kind, cause).inc()

    def show_selftest(self, results: Sequence[SelftestResult]) -> None:
        """Show the last self-test."""
        for result in results:
            self._selftest.labels(result.name).set(result.passed)

    def show_keys(self, headers: Sequence[KeyHeader], *, are_synthetic: bool) -> None:
        """Show how many keys are loaded."""
        self._keys.clear()
        for header in headers:
            self._keys.labels(header.algorithm.value).inc()
        self._synthetic.set(are_synthetic)

    def show_build(self, version: str) -> None:
        """Show which keyd runs on which Python."""
        self._build.info({"version": version, "python": platform.python_version()})

    def totals(self) -> Mapping[str, int]:
        """Return the few counts that daemon.status shows."""
        return self._totals


class Events:
    """The log: one line per event, as JSON on standard error."""

    def __init__(self, clock: Callable[[], float], *, sample_every: int = 0) -> None:
        self._log = structlog.get_logger()
        self._clock = clock
        # Of answered requests one in this many is logged; 0 logs none.
        self.sample_every = sample_every
        self._answered = 0
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def info(self, event: str, **nouns: Any) -> None:
        """Log something that is as it should be."""
        self._log.info(event, **nouns)

    def warning(self, event: str, **nouns: Any) -> None:
        """Log something that somebody should look at."""
        self._log.warning(event, **nouns)

    def bug(self, event: str, error: BaseException, **nouns: Any) -> None:
        """Log a fault of keyd's own, with its whole traceback. The peer learns INTERNAL and no more."""
        self._log.error(event, exc_info=error, **nouns)

    def peer(self, event: str, **nouns: Any) -> None:
        """Log something that a peer caused, unless peers caused too much this second."""
        second = int(self._clock())
        if second != self._second:
            self.say_left_out()
            self._second, self._lines = second, 0
        if self._lines >= MAX_PEER_LINES_PER_SECOND:
            self._left_out += 1
            return
        self._lines += 1
        self._log.info(event, **nouns)

    def say_left_out(self) -> None:
        """Say how many lines were left out since this was last said, if any were."""
        if self._left_out:
            self._log.warning("lines_left_out", count=self._left_out)
            self._left_out = 0

    def refused(self, method: str, refusal: Refusal, message: Struct | None, **nouns: Any) -> None:
        """Log a refusal."""
        self.peer(
            "refused",
            method=method,
            status=refusal.status.name,
            detail=refusal.detail,
            **nouns,
            **(describe(message) if message is not None else {}),
        )

    def wants_answered(self, times: int) -> bool:
        """Count answered requests and say whether one of them is due for a line."""
        if not self.sample_every:
            return False
        before = self._answered // self.sample_every
        self._answered += times
        return self._answered // self.sample_every > before

    def answered(self, method: str, message: Struct, **nouns: Any) -> None:
        """Log an answered request, as the sample."""
        self._log.info("answered", method=method, **nouns, **describe(message))


class _Log:
    """A stream whose failures stop nothing: a log on a full disk, or whose reader has gone, is no reason to die.

    What cannot be written is lost. What must not be lost is in the journal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure_logging(level: str) -> None:
    """Send structlog's JSON lines to standard error, from this level up."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Tracebacks without local variables: one of them may be a key or a PIN.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            _event_first,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Log(sys.stderr))),
        cache_logger_on_first_use=False,
    )


def _event_first(
    _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    head = {name: line.pop(name) for name in ("event", "level", "timestamp")}
    return {**head, **line}
