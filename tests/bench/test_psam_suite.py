"""The psam suite measures every way to a PSAM, and each gives the answers of the bare applet.

Nothing here says how fast.
"""

from __future__ import annotations

import pytest

from bench import psam, psam_readers, psam_ways, psam_wire
from bench.card_reading import Exchange, exchanges
from bench.errors import BenchError
from bench.findings import Findings


def test_every_way_is_measured() -> None:
    findings = Findings.begin(psam.NAME, "a smoke test")
    psam.measure(findings, seconds=0.02, repetitions=1)
    assert all(sample.value >= 0 for sample in findings.samples)
    measured = {(sample.what, sample.who) for sample in findings.samples}
    ways = [psam_ways.BARE, psam_ways.MEMBER, psam_ways.POOL, psam_ways.RACK]
    missing = psam_readers.missing()
    if missing:
        assert missing in findings.notes
    else:
        ways += [psam_ways.READER, psam_ways.PCSC]
    for exchange in exchanges():
        assert {(psam.RATE.format(exchange.name), way) for way in ways} <= measured
    for how in psam_wire.READINGS:
        assert {(f"card readings, {psam.wire(count)}", how) for count in (1, 64)} <= measured
        # Whatever the machine does meanwhile: the line alone takes that long.
        (milliseconds,) = findings.values(psam.SLOW, how)
        assert milliseconds >= 2 * psam.ONE_WAY_MILLISECONDS


def test_a_wrong_answer_ends_the_run() -> None:
    right = exchanges()[0]
    wrong = Exchange(right.name, right.commands, (right.answers[0], bytes(18)))
    with pytest.raises(BenchError, match="wrong answer"):
        psam_ways.say(psam_ways.bare(), wrong, 0.01)
