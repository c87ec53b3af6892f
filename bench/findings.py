"""What a suite with targets says: what was measured, and beside each target what came out."""

from __future__ import annotations

import datetime
from pathlib import Path
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
from bench.tables import console_for_tables, console_table, markdown_table

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

_SAMPLE_COLUMNS: Final = ("what", "who", "unit", "median", "min – max")
_FINDING_COLUMNS: Final = ("what", "median", "min – max", "target", "met")


class Sample(msgspec.Struct, frozen=True):
    """One number, once."""

    what: str
    who: str
    unit: str
    repetition: int
    value: float


class Target(msgspec.Struct, frozen=True):
    """What is wanted of a figure."""

    bound: float
    is_at_least: bool = False

    def is_met(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return value >= self.bound if self.is_at_least else value <= self.bound


class Finding(msgspec.Struct, frozen=True):
    """One figure, once for each repetition, and what is wanted of it if anything is."""

    what: str
    unit: str
    values: list[float]
    target: Target | None = None


class Findings(msgspec.Struct, frozen=True):
    """One run of a suite: everything that was seen, not only what is printed."""

    suite: str
    date: str
    source: Source
    machine: Machine
    versions: dict[str, str]
    how: str
    samples: list[Sample]
    findings: list[Finding]
    notes: list[str]

    @classmethod
    def begin(cls, suite: str, how: str) -> Findings:
        """Start: the time, the machine and the source are those of the beginning."""
        return cls(
            suite=suite,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            source=describe_source(),
            machine=describe_machine(),
            versions=describe_versions(),
            how=how,
            samples=[],
            findings=[],
            notes=[],
        )

    def note_changed_source(self) -> None:
        """Say so if the source is another than at the beginning: the figures then belong to no one commit."""
        now = describe_source()
        if now != self.source:
            self.notes.append(
                f"THE SOURCE CHANGED DURING THIS RUN, from {self.source} to {now}: measure again before quoting it."
            )

    def values(self, what: str, who: str) -> list[float]:
        """Return what was measured of somebody, in the order of repetitions."""
        return [s.value for s in self.samples if (s.what, s.who) == (what, who)]


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where a suite's results are kept."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path(__file__).with_name("results"),
        help="where results are kept (default bench/results)",
    )


def finish(findings: Findings, folder: Path) -> None:
    """End a run: print the tables and write the results."""
    findings.note_changed_source()
    console = console_for_tables()
    print_findings(console, findings)
    for path in write_findings(findings, folder):
        console.print(f"written: {path}", soft_wrap=True)


def sample_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Return one row for each thing measured of somebody."""
    seen = dict.fromkeys((s.what, s.who, s.unit) for s in findings.samples)
    order = list(dict.fromkeys(s.what for s in findings.samples))
    # What is compared stands together, however it was measured in turn.
    keys = sorted(seen, key=lambda key: order.index(key[0]))
    return [(*key, *_summary(findings.values(key[0], key[1]), "")) for key in keys]


def finding_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Return one row for each figure, its target beside it."""
    return [
        (found.what, *_summary(found.values, found.unit), *_verdict(found))
        for found in findings.findings
    ]


def print_findings(console: Console, findings: Findings) -> None:
    """Print the tables."""
    console.print("\n".join(_preamble(findings)), highlight=False)
    console.print(console_table(_SAMPLE_COLUMNS, sample_rows(findings)))
    console.print(console_table(_FINDING_COLUMNS, finding_rows(findings)))
    console.print("\n".join(findings.notes), highlight=False)


def write_findings(findings: Findings, folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{findings.date[:10]}-{findings.suite}-{findings.source.commit}"
    as_json, as_markdown = folder / f"{stem}.json", folder / f"{stem}.md"
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(findings)) + b"\n")
    as_markdown.write_text(markdown(findings))
    return as_json, as_markdown


def markdown(findings: Findings) -> str:
    """Return the findings as a page."""
    parts = (
        f"# {findings.suite}, {findings.date[:10]}",
        "\n".join(f"- {line}" for line in _preamble(findings)),
        markdown_table(_FINDING_COLUMNS, finding_rows(findings)),
        markdown_table(_SAMPLE_COLUMNS, sample_rows(findings)),
        "\n".join(f"- {note}" for note in findings.notes),
        "See bench/README.md before quoting any of it.",
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _preamble(findings: Findings) -> list[str]:
    return [
        *origin(findings.source, findings.date, findings.machine, findings.versions),
        findings.how,
    ]


def _summary(values: list[float], unit: str) -> tuple[str, str]:
    return _number(median(values)) + unit, f"{_number(min(values))} – {_number(max(values))}"


def _verdict(found: Finding) -> tuple[str, str]:
    if found.target is None:
        return "", ""
    sign = "≥" if found.target.is_at_least else "≤"
    is_met = found.target.is_met(median(found.values))
    return f"{sign} {found.target.bound:g}{found.unit}", "yes" if is_met else "no"


def _number(value: float) -> str:
    # Three digits say what a measurement can.
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
