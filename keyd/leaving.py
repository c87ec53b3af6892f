"""Services that leave the tick, since a key that they need is in the pool and a PSAM takes its time.

A service is taken from where it stopped to its end. Which of its tasks are the pool's is asked at each step; the others
are the ring's, as in the tick. This module knows nothing of requests, rights, records and answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from keyd.errors import KeyNotFound, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from keyd.handlers.services import Services
    from keyd.keys.sam import SamTask, Steps

# How many items of one batch wait for PSAMs side by side: enough to keep a rack's members busy, and few enough that
# one terminal's batch of 256 does not fill everybody's queue.
MAX_AT_ONCE: Final = 8


async def finish_service(
    steps: Steps[Any], tasks: tuple[SamTask, ...], services: Services, terminal: str
) -> Any:
    """Take a service that wants these tasks to its end, for a terminal; return its response or refusal."""
    try:
        while True:
            results = await _compute(tasks, services, terminal)
            tasks = resume(steps, results)
    except StopIteration as stop:
        return stop.value
    except Refusal as refusal:
        return refusal


def resume(steps: Steps[Any], results: Sequence[bytes | Refusal]) -> tuple[SamTask, ...]:
    """Give a service its results, or the first refusal among them; return what it needs next.

    Raises:
        StopIteration: it needs nothing more, and this is its response.
        Refusal: its own, or the one that it was given.
    """
    for result in results:
        if isinstance(result, Refusal):
            return steps.throw(result)
    return steps.send(results)  # type: ignore[arg-type]  # no refusal is left in it


async def side_by_side(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all jobs, a few at a time. One that raises ends the others."""
    if len(jobs) == 1:
        await jobs[0]()
        return
    waiting = iter(jobs)
    async with trio.open_nursery() as nursery:
        for _ in range(min(MAX_AT_ONCE, len(jobs))):
            nursery.start_soon(_do, waiting)


async def _do(waiting: Iterator[Callable[[], Awaitable[None]]]) -> None:
    for job in waiting:
        await job()


async def _compute(
    tasks: Sequence[SamTask], services: Services, terminal: str
) -> list[bytes | Refusal]:
    routing = services.routing
    pooled = [routing is not None and routing.is_pooled(task.key) for task in tasks]
    theirs = [task for task, is_pooled in zip(tasks, pooled, strict=True) if is_pooled]
    ours = [task for task, is_pooled in zip(tasks, pooled, strict=True) if not is_pooled]
    of_pool = await _compute_pooled(theirs, services, terminal) if theirs else []
    of_ring = services.sam.compute(ours) if ours else []
    if len(of_pool) != len(theirs) or len(of_ring) != len(ours):
        raise RuntimeError("there are not as many results as tasks")
    results = {True: iter(of_pool), False: iter(of_ring)}
    return [next(results[is_pooled]) for is_pooled in pooled]


async def _compute_pooled(
    tasks: Sequence[SamTask], services: Services, terminal: str
) -> list[bytes | Refusal]:
    if services.psams is None:
        return [
            KeyNotFound(f"PSAMs compute with the key {task.key.address:04X}, and keyd has none")
            for task in tasks
        ]
    return await services.psams.compute(tasks, terminal)
