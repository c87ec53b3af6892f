"""What a run says: medians and ranges out of its repetitions, as a table, as Markdown and as JSON."""

from __future__ import annotations

import datetime
from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec

from bench.machine import (
    Machine,
    Source,
    describe_machine,
    describe_source,
    describe_versions,
    origin,
)
from bench.measure import Run
from bench.tables import console_table, markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

# What all else is compared with; and what is no rival but the ceiling of the measurement.
BASELINE: Final = "keyd"
CEILING: Final = "echo"

_SERVER_COLUMNS: Final = (
    *("point", "server", "req/s, median", "min – max", "p50 µs", "p99 µs"),
    *("CPU µs/req", "server busy", "generator busy"),
)

# In both, more is better. A stranger on the server's CPU takes from the first and hardly from the second.
_COMPARED: Final[tuple[tuple[str, Callable[[Run], float]], ...]] = (
    ("rate", lambda run: run.rate),
    ("per CPU second", lambda run: 1 / run.server_cpu_us),
)
_READING: Final = (
    "A point is connections × requests outstanding on each. Medians over the repetitions; a ratio is taken "
    "within each repetition, and then its median. See bench/README.md before quoting any of it."
)


class Settings(msgspec.Struct, frozen=True):
    """How it was measured."""

    points: list[str]
    seconds: float
    warm_up_seconds: float
    repetitions: int
    pinning: str


class Report(msgspec.Struct, frozen=True):
    """One run of a suite: everything that was seen, not only what is printed."""

    suite: str
    date: str
    source: Source
    machine: Machine
    versions: dict[str, str]
    settings: Settings
    runs: list[Run]

    @classmethod
    def begin(cls, suite: str, settings: Settings) -> Report:
        """Start a report: the time, the machine and the source are those of the beginning."""
        return cls(
            suite=suite,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            source=describe_source(),
            machine=describe_machine(),
            versions=describe_versions(),
            settings=settings,
            runs=[],
        )


def server_rows(report: Report) -> list[tuple[str, ...]]:
    """Return one row per point and server."""
    rows = []
    for point in report.settings.points:
        for server in _servers(report.runs):
            runs = [run for run in report.runs if (run.point, run.server) == (point, server)]
            if runs:
                rows.append((point, server, *_summary(runs)))
    return rows


def ratio_rows(report: Report) -> list[tuple[str, ...]]:
    """Return two rows per point: keyd's rate, and what it answers in a second of CPU, by each other's."""
    return [
        (point, what, *(_ratio(report.runs, point, other, value) for other in _others(report)))
        for point in report.settings.points
        for what, value in _COMPARED
    ]


def ratio_columns(report: Report) -> list[str]:
    """Return the heads of `ratio_rows`."""
    return ["point", "ratio of", *(f"{BASELINE} / {other}" for other in _others(report))]


def print_report(console: Console, report: Report) -> None:
    """Print the tables."""
    console.print("\n".join(_preamble(report)), highlight=False)
    console.print(console_table(_SERVER_COLUMNS, server_rows(report)))
    console.print(console_table(ratio_columns(report), ratio_rows(report)))
    console.print(_READING, highlight=False)


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{report.date[:10]}-{report.suite}-{report.source.commit}"
    as_json, as_markdown = folder / f"{stem}.json", folder / f"{stem}.md"
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    as_markdown.write_text(markdown(report))
    return as_json, as_markdown


def markdown(report: Report) -> str:
    """Return the report as a page."""
    parts = (
        f"# {report.suite}, {report.date[:10]}",
        "\n".join(f"- {line}" for line in _preamble(report)),
        markdown_table(_SERVER_COLUMNS, server_rows(report)),
        markdown_table(ratio_columns(report), ratio_rows(report)),
        _READING,
    )
    return "\n\n".join(parts) + "\n"


def _preamble(report: Report) -> list[str]:
    settings = report.settings
    return [
        *origin(report.source, report.date, report.machine, report.versions),
        f"{settings.repetitions} repetitions of {settings.seconds:g} s after "
        f"{settings.warm_up_seconds:g} s of warming up; {settings.pinning}",
    ]


def _servers(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.server for run in runs))


def _summary(runs: Sequence[Run]) -> tuple[str, ...]:
    rates = [run.rate for run in runs]
    return (
        f"{median(rates):,.0f}",
        f"{min(rates):,.0f} – {max(rates):,.0f}",
        f"{median(run.p50_us for run in runs):,.0f}",
        f"{median(run.p99_us for run in runs):,.0f}",
        f"{median(run.server_cpu_us for run in runs):.2f}",
        f"{median(run.server_busy for run in runs):.0%}",
        f"{median(run.generator_busy for run in runs):.0%}",
    )


def _others(report: Report) -> list[str]:
    return [name for name in _servers(report.runs) if name not in (BASELINE, CEILING)]


def _ratio(runs: Sequence[Run], point: str, other: str, value: Callable[[Run], float]) -> str:
    values = {(run.server, run.repetition): value(run) for run in runs if run.point == point}
    ratios = [
        values[BASELINE, repetition] / theirs
        for (server, repetition), theirs in values.items()
        if server == other
    ]
    if not ratios:
        return ""
    return f"{median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
