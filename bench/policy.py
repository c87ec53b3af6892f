"""What a decision of the policy costs, as a ratio to an empty call with the same arguments, on the same machine.

Run it alone: `python -m bench.policy`. The ratio can be compared between machines, the nanoseconds cannot.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.cards.profile_files import load_profiles
from keyd.errors import NotAllowed
from keyd.needs import Needs, catalogue
from keyd.policy import Asker, Limiter, Policy, Watch, read_policy
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalAuthenticate

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: Final = 20_000
REPETITIONS: Final = 15

_CONF: Final = Path(__file__).parent.parent / "conf" / "policy.toml"

# The same role again with a region and with hours, which the policy as shipped does without.
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


class Cost(Struct, frozen=True):
    """One row: nanoseconds of a call, and how many empty calls that is; medians."""

    what: str
    nanoseconds: float
    empty_calls: float


def measure(calls: int = CALLS, repetitions: int = REPETITIONS) -> list[Cost]:
    """Measure each kind of decision in turn, again and again, each repetition beside its empty calls."""
    profiles = load_profiles()
    text = _CONF.read_text(encoding="utf-8").replace(
        "[limits.connections]", _RESTRICTED + "\n[limits.connections]"
    )
    file = read_policy(text.encode(), catalogue(profiles))
    kinds = _kinds(
        file.policy, Limiter(file.limits.rates), Watch(file.limits.cards), Needs(profiles)
    )
    taken: dict[str, list[tuple[float, float]]] = {what: [] for what in kinds}
    for _ in range(repetitions):
        for what, call in kinds.items():
            empty = _time(_empty, calls)
            taken[what].append((_time(call, calls), empty))
    return [
        Cost(
            what,
            statistics.median(call for call, _empty in times) / calls * 1e9,
            statistics.median(call / empty for call, empty in times),
        )
        for what, times in taken.items()
    ]


def _kinds(
    policy: Policy, limiter: Limiter, watch: Watch, needs: Needs
) -> dict[str, Callable[[], object]]:
    hospital, regional = frozenset({"hospital"}), frozenset({"regional"})
    method, now = "card.internal_authenticate", 1_700_000_000
    may, admit, of = policy.may, limiter.admit, needs.of
    card = bytes.fromhex("510100D15600000530000BEE00000000")
    ask = InternalAuthenticate(CardIdentity(card, bytes(13)), bytes(8), bytes(8), bytes(8))
    asker, clock = Asker("T-0001", "hospital 1"), iter(range(0, 10**18, 10**7))

    def denied() -> None:
        try:
            may(hospital, "card.pin_reload", 0x0173, 3, "510100", now)
        except NotAllowed:
            return

    def denied_key() -> None:
        try:
            may(hospital, "card.external_authenticate", 0x0090, 3, "510100", now)
        except NotAllowed:
            return

    return {
        "may: allowed": lambda: may(hospital, method, 0x0170, 3, "510100", now),
        "may: allowed, by region and hours": lambda: may(
            regional, method, 0x0170, 3, "510100", now
        ),
        "may: denied, no rule for the method": denied,
        "may: denied, key not named": denied_key,
        "what a request needs": lambda: of(ask),
        "rates: admitted": lambda: admit(asker, method, ((0x0170, 3),), next(clock)),
        "watch: a card seen": lambda: watch.notice(card, "510100", now),
    }


def _empty() -> None:
    """Return at once: what calling costs, whatever is called."""


def _time(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    print("| what | ns | empty calls |\n| - | -: | -: |")
    for cost in measure():
        print(f"| {cost.what} | {cost.nanoseconds:.0f} | {cost.empty_calls:.1f} |")


if __name__ == "__main__":
    main()
