"""The lines suite measures what it says: all sorts of lines, requests and handshakes, with figures that can be true."""

from __future__ import annotations

from bench import lines
from bench.findings import Findings
from bench.points import Point
from keyd.tls import TlsKind


def test_every_sort_of_line_is_measured() -> None:
    findings = Findings.begin(lines.NAME, "a smoke test")
    lines.measure(findings, (Point(4, 2),), seconds=0.2, handshakes=3, repetitions=1)
    measured = {(sample.what, sample.who) for sample in findings.samples}
    for who in (lines.PLAIN, *(kind.value for kind in TlsKind)):
        assert ("requests 4×2", who) in measured
        assert ("keyd's CPU a request 4×2", who) in measured
    for kind in TlsKind:
        assert ("full handshakes", kind.value) in measured
        assert ("resumed handshakes", kind.value) in measured
    assert all(sample.value > 0 for sample in findings.samples)
