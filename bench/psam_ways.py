"""The psam suite's ways to a PSAM that begin in this process: the applet by itself, members, the pool, a rack, readers.

Each is a function that carries one command; all are asked the same, and every answer is compared. The pool is made as
the daemon makes it, of a configuration.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from bench.card_reading import (
    ALGORITHMS,
    CARDS,
    CHALLENGE,
    IRK,
    PROFILE,
    SELECT_SM4,
    SESSION_FACTOR,
    make_psam,
    make_ring,
    require,
)
from keyd.config import PsamsConfig
from keyd.crypto.algorithms import CardAlgorithm
from keyd.handlers.desk import Wanted
from keyd.iso7816 import converse
from keyd.keys.block import Use
from keyd.keys.hierarchy import region_from_digits
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from keyd.lending.lender import Lender, Times
from keyd.lending.racks import RackSource
from keyd.lending.readers import ReaderSource
from keyd.lending.virtual import VirtualMember
from keyd.psam import Applet
from keyd.psam.card_tasks import dialogue_of, place_of_task
from keyd.psam.level_index import every_place
from keyd.psam.pool import Pool, PoolLimits, Strategy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bench.card_reading import Exchange
    from keyd.errors import Refusal
    from keyd.keys.sam import SamTask
    from keyd.lending.member import Member, Source

    Speak = Callable[[bytes], Awaitable[bytes]]

BARE: Final = "the bare applet"
MEMBER: Final = "a virtual member, no pool"
POOL: Final = "the pool"
POOL_MANY: Final = "the pool, {} open"
RACK: Final = "the pool, a rack"
RACK_MANY: Final = "the pool, a rack, {} open"
READER: Final = "the pool, a reader"
PCSC: Final = "pyscard, no pool"

RING: Final = "the key ring"
DIALOGUE: Final = "dialogues with the bare applet"

# A terminal of the pool's. Its code matters to no figure.
_TERMINAL: Final = "BENCH"

# So often the clock is looked at, in commands: what is measured takes microseconds, and a look a tenth of one.
_COMMANDS_BETWEEN: Final = 16

# Waited for members to be read: 155 keys at up to three levels, through PC/SC.
_READY_SECONDS: Final = 60.0

# Both: an open PSAM is not to be closed while something else is measured for a long time.
_TIMES: Final = Times(open_seconds=PsamsConfig().open_seconds * 100)


class Spent(NamedTuple):
    """How often something was done, in what time, and with how much CPU time of this process. Seconds."""

    done: int
    elapsed: float
    cpu: float


class OneMember:
    """A source that has one member, for good."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """See `Source.run`."""
        del parted
        joined(self._member)
        await trio.sleep_forever()


def virtual_source() -> Source:
    """Return a source of one PSAM that is played in this process."""
    return OneMember(VirtualMember("virtual", make_psam()))


def rack_source(port: int) -> Source:
    """Return a source of one PSAM in a rack on loopback."""
    return RackSource([("127.0.0.1", port)], PROFILE)


def reader_source(reader: str) -> Source:
    """Return a source of one PSAM in a reader of pcscd."""
    return ReaderSource([reader], PROFILE)


async def lending(nursery: trio.Nursery, source: Source) -> Lender:
    """Return a lender with the daemon's own settings that runs, once its member serves."""
    config = PsamsConfig()
    limits = PoolLimits(
        waiting=config.waiting,
        wait_seconds=config.wait_seconds,
        turn_seconds=config.turn_seconds,
        idle_seconds=config.idle_seconds,
    )
    places = every_place(CARDS.keys.values(), ALGORITHMS)
    lender = Lender(
        Pool(limits, Strategy(config.strategy)), [source], CARDS.keys, places, PROFILE, _TIMES
    )
    nursery.start_soon(lender.run)
    with trio.fail_after(_READY_SECONDS):
        while not any(member.state == "ready" for member in lender.members()):  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.02)
    return lender


async def opened(lender: Lender, count: int) -> list[Speak]:
    """Open so many PSAMs, each for a terminal of its own."""
    return [
        (await lender.open(f"{_TERMINAL}-{number}", Wanted())).transmit for number in range(count)
    ]


def bare() -> Callable[[bytes], bytes]:
    """Return the applet with nothing around it."""
    return Applet(make_psam()).transmit


async def member_alone() -> Speak:
    """Return a virtual member that nobody lends."""
    member = VirtualMember("alone", make_psam())
    await member.reset(0)

    async def speak(command: bytes) -> bytes:
        return await member.transmit(0, command)

    return speak


def say(transmit: Callable[[bytes], bytes], exchange: Exchange, seconds: float) -> Spent:
    """Say an exchange again and again to something that does not wait."""
    commands, answers = exchange.commands, exchange.answers
    transmit(SELECT_SM4)
    require([transmit(command) for command in commands], answers)
    rounds = max(1, _COMMANDS_BETWEEN // len(commands))
    done = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        for _ in range(rounds):
            for command, expected in zip(commands, answers, strict=True):
                answer = transmit(command)
                if answer != expected:
                    require((answer,), (expected,))
        done += rounds
    return Spent(done, time.perf_counter() - began, time.process_time() - cpu)


async def say_to_all(speakers: Sequence[Speak], exchange: Exchange, seconds: float) -> Spent:
    """Say an exchange again and again to each of some PSAMs, side by side."""
    commands, answers = exchange.commands, exchange.answers
    rounds = max(1, _COMMANDS_BETWEEN // len(commands))
    done = 0

    async def say_to(speak: Speak, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            for _ in range(rounds):
                for command, expected in zip(commands, answers, strict=True):
                    answer = await speak(command)
                    if answer != expected:
                        require((answer,), (expected,))
                done += 1

    for speak in speakers:
        await speak(SELECT_SM4)
        require([await speak(command) for command in commands], answers)
    began, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for speak in speakers:
            nursery.start_soon(say_to, speak, began + seconds)
    return Spent(done, time.perf_counter() - began, time.process_time() - cpu)


class CardTasks:
    """Card tasks, whole: by the key ring, by dialogues with an applet, and by a pool. `count` in a call."""

    def __init__(self, lender: Lender) -> None:
        self._ring = make_ring()
        self._lender = lender
        self._transmit = bare()
        self.tasks: dict[int, list[SamTask]] = {}

    async def measure(self, who: str, count: int, seconds: float) -> Spent:
        """Have one of RING, DIALOGUE and POOL compute so many tasks a call; `done` counts tasks."""
        tasks = self.tasks.setdefault(count, [_task(number) for number in range(count)])
        compute = {RING: self._by_ring, DIALOGUE: self._by_dialogues, POOL: self._by_pool}[who]
        right = [result for result in self._ring.compute(tasks) if isinstance(result, bytes)]
        done = 0
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < began + seconds:
            results = await compute(tasks)
            if results != right:
                require(results, right)  # type: ignore[arg-type]  # a Refusal is a wrong answer, too
            done += count
        return Spent(done, time.perf_counter() - began, time.process_time() - cpu)

    async def _by_ring(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        return self._ring.compute(tasks)

    async def _by_dialogues(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        results: list[bytes | Refusal] = []
        for task in tasks:
            place = place_of_task(task, CARDS.keys)
            assert place is not None
            results.append(converse(dialogue_of(task, place, 3, PROFILE), self._transmit))
        return results

    async def _by_pool(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        return await self._lender.compute(tasks, _TERMINAL)


def _task(number: int) -> SamTask:
    # Any bytes are as good as random ones here, and the same in every run.
    diversifier = ((number + 1) * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big")
    region = region_from_digits("510100")
    key = CardKeyRef(IRK, CardAlgorithm.SM4, region, diversifier, purpose(Use.INTERNAL))
    return CryptogramTask(key, SESSION_FACTOR, CHALLENGE)
