"""The tls suite measures what it says: every kind, every group, full and resumed, with figures that can be true."""

from __future__ import annotations

from bench import tls
from bench.findings import Findings
from keyd.tls import TlsKind


def test_every_kind_and_group_is_measured_full_and_resumed() -> None:
    findings = Findings.begin(tls.NAME, "a smoke test")
    tls.measure(findings, handshakes=2, megabytes=1, repetitions=1)
    measured = {(sample.what, sample.who) for sample in findings.samples}
    for kind in TlsKind:
        for group in kind.groups:
            who = f"{kind.value} {group}"
            assert {("full handshakes", who), ("resumed handshakes", who)} <= measured
    assert all(sample.value > 0 for sample in findings.samples)
