"""A drawing shows every server at every point and is well-formed, whatever the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from bench.draw import latencies, rates, write_charts
from bench.loadgen import PERCENTILES
from bench.measure import Run
from bench.report import Report, Settings

if TYPE_CHECKING:
    from pathlib import Path

POINTS = ["1×1", "16×64"]


def report(servers: tuple[str, ...]) -> Report:
    made = Report.begin("server", Settings(POINTS, 1.0, 0.0, 1, "not pinned"))
    seen = {name: 10.0 * number for number, name in enumerate(PERCENTILES, start=1)}
    for number, point in enumerate(POINTS):
        for server in servers:
            rate = 10.0**6 * number + 1000.0
            made.runs.append(Run(point, server, 1, rate, 10.0, 30.0, 1, 1.0, 1.0, 1.0, seen))
    return made


def words(svg: str | None) -> list[str]:
    assert svg is not None
    tree = ET.fromstring(svg)  # noqa: S314 -- it is our own.
    return [text.text or "" for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_every_point_and_server_is_there_with_its_number() -> None:
    drawn = report(("keyd", "naive", "redis", "echo"))
    said = words(rates(drawn))
    assert set(POINTS) < set(said)
    assert [said.count(name) for name in ("keyd", "redis", "naive", "echo")] == [2, 2, 2, 0]
    assert said.count("1,001,000") == 3
    assert words(latencies(drawn)).count("30 µs") == 6


def test_results_without_percentiles_are_drawn_with_what_they_have() -> None:
    drawn = report(())
    drawn.runs.append(Run("1×1", "keyd", 1, 7.0, 1.0, 2500.0, 1, 1.0, 1.0, 1.0))
    assert "2.5 ms" in words(latencies(drawn))


def test_nothing_measured_is_nothing_drawn(tmp_path: Path) -> None:
    assert write_charts(report(("echo",)), tmp_path) == []
    written = write_charts(report(("keyd",)), tmp_path)
    assert [path.suffix for path in written] == [".svg", ".svg"]
