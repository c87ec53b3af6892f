"""What came of a soak, for people and for later: a short table and a dated pair of files."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tests.fuzz.running import commit, machine

RESULTS: Final = Path(__file__).parent / "results"


class Result(Struct, frozen=True, kw_only=True):
    """What came of it. `faults` has to be empty. Waits are of tickets that became turns, in seconds."""

    seconds: float
    is_exact: bool
    terminals: int
    strategy: str
    seed: int
    done: dict[str, int]
    refused: dict[str, int]
    turns: dict[str, int]
    failures: dict[str, int]
    ran_out: int
    transaction_numbers: int
    least_served: int
    most_served: int
    least_granted_share: float
    tickets: int
    expired: int
    mean_wait: float
    wait_of_99_percent: float
    longest_wait: float
    most_overtaken: int
    faults: list[str]


def summary(result: Result) -> str:
    """Show a result to people."""
    clock = "a mock clock's" if result.is_exact else "real"
    tickets, granted = result.tickets, sum(result.turns.values())
    lines = [
        f"{result.terminals} terminals, {len(result.turns)} members, {result.seconds:,.0f} of {clock} seconds,",
        f"strategy {result.strategy}, seed {result.seed}.",
        "",
        "| what | done |",
        "| - | -: |",
        *(f"| {what.replace('_', ' ')} | {count:,} |" for what, count in result.done.items()),
        "",
        "| refused | times |",
        "| - | -: |",
        *(f"| {what} | {count:,} |" for what, count in result.refused.items()),
        "",
        "| member | turns | failures |",
        "| - | -: | -: |",
        *(f"| {name} | {n:,} | {result.failures[name]} |" for name, n in result.turns.items()),
        "",
        f"- Of {tickets:,} tickets {granted:,} became turns and {result.expired:,} waited too long;"
        f" {result.ran_out:,} turns ran out.",
        f"- Waits in seconds: mean {result.mean_wait}, 99 of 100 {result.wait_of_99_percent},"
        f" longest {result.longest_wait}.",
        "- Nobody was overtaken twice by the same terminal at a member; at most"
        f" {result.most_overtaken} others had a turn there first."
        if not any("had two turns" in fault for fault in result.faults)
        else "- There were terminals that were overtaken twice.",
        f"- Served by terminal: {result.least_served} to {result.most_served}; the least lucky one"
        f" waited long enough for {result.least_granted_share:.0%} of the turns that it asked for.",
        f"- {result.transaction_numbers:,} terminal transaction numbers, none twice.",
        f"- Faults: {'; '.join(result.faults) or 'none'}.",
    ]
    return "\n".join(lines)


def write(result: Result, folder: Path = RESULTS) -> Path:
    """Keep a result with machine and commit; return the path of the JSON file."""
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(tz=datetime.UTC)
    ran, on = commit(), machine()
    path = folder / f"{now:%Y-%m-%d-%H%M}-{ran.rstrip('+')}.json"
    content = {
        "ended_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "commit": ran,
        "machine": on,
        "result": msgspec.to_builtins(result),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(
        f"# Soak of the pool, {now:%Y-%m-%d}\n\n"
        f"Commit {ran}, {on['processor']}, Python {on['python']}, one process.\n"
        f"{summary(result)}\n",
        encoding="utf-8",
    )
    return path
