"""The curves of a server run as SVG, written by hand: rates by point, and latency percentiles by point.

Both are horizontal, on a logarithmic scale, and readable without colour: every mark has its number or its name.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import escape

from bench.loadgen import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.measure import Run
    from bench.report import Report

# Who is drawn, in this order and colour. The echo is no rival, and redis-benchmark asks the same redis.
_COLOURS: Final = {"keyd": "#0b6e4f", "redis": "#c8553d", "naive": "#8d99ae"}

_WIDTH: Final = 860
_LEFT: Final = 150
_RIGHT: Final = 90
_TOP: Final = 64
_BOTTOM: Final = 34
_LANE: Final = 17
_GAP: Final = 12

_STYLE: Final = (
    "text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#222}"
    ".title{font-size:15px;font-weight:600}.small{font-size:11px;fill:#666}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.grid{stroke:#e3e3e3}"
)


class _Scale(NamedTuple):
    """From a number to a place, over whole powers of ten."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float]) -> _Scale:
        low = math.floor(math.log10(min(values)))
        return cls(low, max(math.ceil(math.log10(max(values))), low + 1))

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


class _Row(NamedTuple):
    point: str
    server: str
    values: dict[str, float]


def write_charts(report: Report, folder: Path) -> list[Path]:
    """Draw a report into SVG files beside its JSON; return where."""
    stem = f"{report.date[:10]}-{report.suite}-{report.source.commit}"
    written = []
    for name, chart in (("rates", rates(report)), ("latencies", latencies(report))):
        if chart is not None:
            path = folder / f"{stem}-{name}.svg"
            path.write_text(chart)
            written.append(path)
    return written


def rates(report: Report) -> str | None:
    """Draw requests a second, the median over the repetitions, by point and server."""
    rows = list(_rows(report, lambda runs: {"rate": median(run.rate for run in runs)}))
    if not rows:
        return None
    scale = _Scale.over([row.values["rate"] for row in rows])

    def mark(row: _Row, y: float) -> Iterator[str]:
        rate, colour = row.values["rate"], _COLOURS[row.server]
        width = max(scale.x(rate) - _LEFT, 1)
        yield f'<rect x="{_LEFT}" y="{y - 6:.1f}" width="{width:.1f}" height="12" fill="{colour}"/>'
        yield _text(scale.x(rate) + 5, y + 4, f"{rate:,.0f}")

    return _chart(
        "Requests a second by connections × depth, logarithmic", _caption(report), rows, scale, mark
    )


def latencies(report: Report) -> str | None:
    """Draw the latency's percentiles, medians over the repetitions, by point and server."""
    rows = list(_rows(report, _percentiles))
    if not rows:
        return None
    scale = _Scale.over([value for row in rows for value in row.values.values()])

    def mark(row: _Row, y: float) -> Iterator[str]:
        colour = _COLOURS[row.server]
        places = [scale.x(value) for value in row.values.values()]
        yield (
            f'<line x1="{places[0]:.1f}" x2="{places[-1]:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        # The median is filled; the others are rings, in the order of the title.
        for number, x in enumerate(places):
            fill = "#fff" if number else colour
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
        yield _text(places[-1] + 9, y + 4, _duration(row.values["p99"]), "small")

    names = ", ".join(f"{name} (filled)" if name == "p50" else name for name in PERCENTILES)
    return _chart(
        f"Latency in the closed loop: {names}; logarithmic, the number is p99",
        *(_caption(report), rows, scale, mark),
        tick=_duration,
    )


def _rows(report: Report, values: Callable[[list[Run]], dict[str, float]]) -> Iterator[_Row]:
    for point in report.settings.points:
        for server in _COLOURS:
            runs = [run for run in report.runs if (run.point, run.server) == (point, server)]
            found = values(runs) if runs else {}
            if found:
                yield _Row(point, server, found)


def _percentiles(runs: list[Run]) -> dict[str, float]:
    # Results of old runs have the median and the 99th only.
    names = PERCENTILES if all(run.latencies_us for run in runs) else ("p50", "p99")
    return {
        name: median(
            run.latencies_us[name] if run.latencies_us else getattr(run, f"{name}_us")
            for run in runs
        )
        for name in names
    }


def _chart(
    title: str,
    caption: str,
    rows: Sequence[_Row],
    scale: _Scale,
    mark: Callable[[_Row, float], Iterator[str]],
    tick: Callable[[float], str] = "{:,.0f}".format,
) -> str:
    points = list(dict.fromkeys(row.point for row in rows))
    bottom = _TOP + len(rows) * _LANE + len(points) * _GAP
    parts = [_text(14, 24, title, "title"), _text(14, 42, caption, "small")]
    for value in scale.ticks():
        x = scale.x(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom:.1f}"/>'
        )
        parts.append(_text(x, bottom + 16, tick(value), "small middle"))
    y = float(_TOP)
    for point in points:
        own = [row for row in rows if row.point == point]
        parts.append(_text(14, y + _LANE / 2 + 4, point))
        for row in own:
            middle = y + _LANE / 2
            parts.append(_text(_LEFT - 8, middle + 4, row.server, "end"))
            parts.extend(mark(row, middle))
            y += _LANE
        y += _GAP
    height = bottom + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}">\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _caption(report: Report) -> str:
    return (
        f"{report.machine.cpu}, one core for the server; {report.date[:10]}, commit {report.source}"
    )


def _duration(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1e3 else f"{microseconds:.3g} µs"


def _text(x: float, y: float, words: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{escape(words)}</text>'
