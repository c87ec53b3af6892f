"""What feeds a target: atheris, which follows coverage, or where there is none a plain mutator without eyes.

Runs in a process of its own, since atheris ends the process that it ran in:

    python -m tests.fuzz.engines '{"target": ..., "engine": ..., "runs": ..., ...}'

What it says, it says on standard error, in libFuzzer's words whoever speaks.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from tests.fuzz.target import load

if TYPE_CHECKING:
    from tests.fuzz.target import Target

Engine = Literal["atheris", "plain"]

# keyd's own code, and the parsers in Python that stand before it.
_INSTRUMENTED: Final = ["keyd", "tomllib", "csv"]

# An input that takes longer is a finding: nothing that a peer sends may cost so much.
INPUT_SECONDS: Final = 20

# What the whole process may have. Inputs are small; whatever grows to this is a leak.
MAX_MEGABYTES: Final = 2048

# How often the plain mutator changes an input before it is tried.
_MAX_CHANGES: Final = 4

_COLLECT_EVERY: Final = 2000


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What one process is to do. `seconds` 0 is without end; `corpus` is a folder of inputs to begin with.

    atheris keeps there what reached something new, and the seeds.
    """

    target: str
    engine: Engine
    runs: int
    seconds: int
    seed: int
    corpus: str
    artifacts: str


def available() -> Engine:
    """Return the best engine that this Python has."""
    return "atheris" if importlib.util.find_spec("atheris") is not None else "plain"


def crash_name(data: bytes) -> str:
    """Return the file name of an input that was a finding, as libFuzzer forms it."""
    return f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"


def run(order: Order) -> None:
    """Feed a target. Returns, or ends the process with another status than 0 at the first finding."""
    if order.engine == "atheris":
        _run_atheris(order)
    else:
        _run_plain(order)


def _run_atheris(order: Order) -> None:
    import atheris  # not there on every platform, and it has to come first

    with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
        target = load(order.target)
    _write_seeds(target, Path(order.corpus))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        # Its own changes know what coverage liked; ours know what the bytes mean.
        if random.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        changed = target.mutate(bytes(data), random)
        return changed if len(changed) <= max_size else changed[:max_size]

    def one_input(data: bytes) -> None:
        target.one_input(bytes(data))

    arguments = [
        order.target,
        order.corpus,
        f"-artifact_prefix={order.artifacts}/",
        f"-runs={order.runs}",
        f"-max_total_time={order.seconds}",
        f"-seed={order.seed}",
        f"-max_len={target.max_bytes}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, one_input, custom_mutator=change)
    atheris.Fuzz()


def _write_seeds(target: Target, corpus: Path) -> None:
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:32]).write_bytes(seed)


def _run_plain(order: Order) -> None:
    target = load(order.target)
    kept = [path.read_bytes() for path in sorted(Path(order.corpus).iterdir())]
    seeds = [*target.seeds(), *kept]
    random = Random(order.seed)
    started = time.monotonic()
    done = 0
    for data in seeds:
        _try(target, data, order)
        done += 1
    while done < order.runs:
        seconds = time.monotonic() - started
        if order.seconds and seconds > order.seconds:
            break
        data = random.choice(seeds)
        for _ in range(random.randint(1, _MAX_CHANGES)):
            data = target.mutate(data, random)
        _try(target, data[: target.max_bytes], order)
        done += 1
        if done % _COLLECT_EVERY == 0:
            gc.collect()
    seconds = max(time.monotonic() - started, 1e-9)
    print(  # noqa: T201 - the parent process reads it
        f"stat::number_of_executed_units: {done}\n"
        f"stat::average_exec_per_sec: {int(done / seconds)}",
        file=sys.stderr,
    )


def _try(target: Target, data: bytes, order: Order) -> None:
    try:
        target.one_input(data)
    except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
        path = Path(order.artifacts) / crash_name(data)
        path.write_bytes(data)
        traceback.print_exc()
        sys.exit(77)


def order_of(text: str) -> Order:
    """Read an order as `main` gets it."""
    return msgspec.json.decode(text, type=Order)


def words_of(order: Order) -> str:
    """Write an order for `main`."""
    fields: dict[str, Any] = msgspec.structs.asdict(order)
    return json.dumps(fields)


if __name__ == "__main__":
    run(order_of(sys.argv[1]))
