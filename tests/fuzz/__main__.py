"""Fuzz by hand, for as long as you like: `python -m tests.fuzz --target dispatch --minutes 30`.

Without --target, all of them share the time. The result is a dated pair of files in tests/fuzz/results/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz import running
from tests.fuzz.engines import available
from tests.fuzz.target import names

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
CRASHES: Final = HERE / "crashes"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=names(), help="one or more; all if none"
    )
    parser.add_argument(
        "--runs", type=int, default=0, help="inputs for each target; 0 is without end"
    )
    parser.add_argument("--minutes", type=float, default=0, help="for all of them together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--engine", choices=("atheris", "plain"), default=available())
    parser.add_argument("--corpus", type=Path, help="a folder to keep what was worth keeping")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    if not chosen.runs and not chosen.minutes:
        parser.error("say --runs or --minutes")
    targets = chosen.target or names()
    seconds = max(1, int(chosen.minutes * 60 / len(targets))) if chosen.minutes else 0
    results = []
    for target in targets:
        result = running.run(
            target,
            runs=chosen.runs,
            seconds=seconds,
            seed=chosen.seed,
            engine=chosen.engine,
            artifacts=CRASHES / target,
            corpus=chosen.corpus / target if chosen.corpus else None,
        )
        results.append(result)
        _tidy(CRASHES / target)
        _say(running.table([result]).splitlines()[-1])
        if result.said:
            _say(result.said)
    if not chosen.dry:
        _say(f"written: {_write(results)}")
    return 0 if all(result.is_clean for result in results) else 1


def _tidy(folder: Path) -> None:
    """Take away a folder in which nothing was kept."""
    if not any(folder.iterdir()):
        folder.rmdir()


def _write(results: list[running.Result]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.datetime.now(tz=datetime.UTC)
    commit = running.commit()
    path = RESULTS / f"{now:%Y-%m-%d-%H%M}-{commit.rstrip('+')}.json"
    machine = running.machine()
    content = {
        "ended_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit,
        "machine": machine,
        "results": [msgspec.to_builtins(msgspec.structs.replace(one, said="")) for one in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    total = sum(one.runs for one in results)
    hours = sum(one.seconds for one in results) / 3600
    path.with_suffix(".md").write_text(
        f"# Fuzzing, {now:%Y-%m-%d}\n\n"
        f"Commit {commit}, {machine['processor']}, Python {machine['python']}, one process.\n"
        f"{total:,} inputs in {hours:.2f} hours.\n\n{running.table(results)}\n",
        encoding="utf-8",
    )
    return path


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
