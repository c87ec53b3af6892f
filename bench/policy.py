"""The policy suite: what a decision costs, each sort by itself and then all of a request, beside an empty call; and
what it adds to a request that the pump answers.

Calls are timed in a Python loop, each sort beside as many empty calls, and sorts take turns in every repetition, so
that a machine that slows down slows them all.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.cpus import choose_cpus, on_cpu
from bench.findings import Finding, Findings, Sample, Target, add_out, finish
from bench.pumped import CARDS, Pumped
from keyd.cards.profile_files import load_profiles
from keyd.errors import NotAllowed
from keyd.gate import SECRET_BYTES, Gate
from keyd.needs import Needs, catalogue
from keyd.policy import Asker, Limiter, Watch, read_policy
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalAuthenticate
from keyd.registry.synthetic import synthetic_terminal
from keyd.terminals import KnownTerminal, Moment

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

HELP: Final = "what a decision of the policy costs, beside an empty call"

NAME: Final = "policy"

# What a sample says of each sort of decision.
TIME: Final = "one decision"
RATIO: Final = "in empty calls"

# One request of the hottest kind, answered by the pump.
PUMPED: Final = "the pump: all of a request, without a policy"
PUMPED_GOVERNED: Final = "the pump: all of a request, under a policy"
ADDED: Final = "the pump: what a policy adds to a request"

# What a decision may cost.
TARGET_NS: Final = 1000
_TARGETED: Final = ("may: allowed", "may: allowed, by region and hours", "all of a request")

# A morning in 2023, and seconds between two requests of a terminal: within its rate.
_NOW: Final = 1_700_000_000
_BETWEEN: Final = 0.01

_CONF: Final = Path(__file__).parent.parent / "conf" / "policy.toml"

# The policy as shipped does without regions and hours.
_RESTRICTED: Final = """
[roles.regional]
what = "for the benchmark"
[[roles.regional.rules]]
why = "for the benchmark"
methods = ["card.internal_authenticate"]
keys = ["IRK"]
regions = ["11", "5101", "3301"]
hours = ["00:00-12:00", "12:00-23:59"]
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument("--calls", type=int, default=20_000, help="timed at once (default 20000)")
    parser.add_argument("--repetitions", type=int, default=15, help="of all that (default 15)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    findings = Findings.begin(
        NAME, f"{options.repetitions} repetitions of {options.calls} calls of each sort"
    )
    measure(findings, options.calls, options.repetitions)
    finish(findings, options.out)


def measure(findings: Findings, calls: int, repetitions: int) -> None:
    """Measure each sort of decision in turn, again and again."""
    sorts = _sorts()
    with (
        on_cpu(choose_cpus().generator),
        Pumped(is_governed=False) as free,
        Pumped(is_governed=True) as governed,
    ):
        for pumped in (free, governed):
            pumped.answer_all()
        for repetition in range(repetitions):
            for what, pumped in ((PUMPED, free), (PUMPED_GOVERNED, governed)):
                spent = pumped.answer_all() / CARDS * 1e9
                findings.samples.append(Sample(TIME, what, "ns", repetition, spent))
            for what, call in sorts.items():
                empty, spent = _time(_empty, calls), _time(call, calls)
                findings.samples.append(Sample(TIME, what, "ns", repetition, spent / calls * 1e9))
                findings.samples.append(Sample(RATIO, what, "×", repetition, spent / empty))
    for what in sorts:
        target = Target(TARGET_NS) if what in _TARGETED else None
        findings.findings.append(Finding(what, " ns", findings.values(TIME, what), target))
    without, within = (findings.values(TIME, what) for what in (PUMPED, PUMPED_GOVERNED))
    added = [more - less for more, less in zip(within, without, strict=True)]
    findings.findings.append(Finding(ADDED, " ns", added, Target(TARGET_NS)))
    findings.notes.append(
        "Empty calls can be compared between machines, nanoseconds cannot. The policy is the one as shipped, and a "
        "role more that has regions and hours."
    )


def _sorts() -> dict[str, Callable[[], object]]:
    profiles = load_profiles()
    text = _CONF.read_text(encoding="utf-8").replace(
        "[limits.connections]", _RESTRICTED + "\n[limits.connections]"
    )
    file = read_policy(text.encode(), catalogue(profiles))
    needs, watch = Needs(profiles), Watch(file.limits.cards)
    may, admit, of = file.policy.may, Limiter(file.limits.rates).admit, needs.of
    hospital, regional = frozenset({"hospital"}), frozenset({"regional"})
    method = "card.internal_authenticate"
    card = bytes.fromhex("510100D15600000530000BEE00000000")
    ask = InternalAuthenticate(CardIdentity(card, bytes(13)), bytes(8), bytes(8), bytes(8))
    asker, steps = Asker("T-0001", "hospital 1"), itertools.count()
    gate = Gate(file, needs, bytes(SECRET_BYTES), lambda _what, _code: None)
    terminal = KnownTerminal(synthetic_terminal("T-0001", roles=("hospital",), region="510100"))

    def denied() -> None:
        try:
            may(hospital, "card.pin_reload", 0x0173, 3, "510100", _NOW)
        except NotAllowed:
            return

    def denied_key() -> None:
        try:
            may(hospital, "card.external_authenticate", 0x0090, 3, "510100", _NOW)
        except NotAllowed:
            return

    def nanoseconds() -> int:
        return int(next(steps) * _BETWEEN * 1e9)

    return {
        "may: allowed": lambda: may(hospital, method, 0x0170, 3, "510100", _NOW),
        "may: allowed, by region and hours": lambda: may(
            regional, method, 0x0170, 3, "510100", _NOW
        ),
        "may: denied, no rule for the method": denied,
        "may: denied, key not named": denied_key,
        "what a request needs": lambda: of(ask),
        "rates: admitted": lambda: admit(asker, method, ((0x0170, 3),), nanoseconds()),
        "watch: a card seen": lambda: watch.notice(card, "510100", _NOW),
        "all of a request": lambda: gate.admit(
            terminal, method, ask, Moment(next(steps) * _BETWEEN, _NOW)
        ),
    }


def _empty() -> None:
    """Return at once: what calling costs, whatever is called."""


def _time(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started
