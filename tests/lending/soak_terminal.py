"""One terminal of the soak: thinks, wants something of a PSAM, and knows beforehand what the right answer is.

Its cards, session factors and challenges are its own, so another's answer is never the right one. What it may be told
instead of an answer is that its turn did not come in time, or that the PSAM is gone; with a mock clock the latter only
of a member that fails, or after it has kept the chip too long itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed, PoolExhausted, PsamGone, PsamNotFound, Refusal
from keyd.handlers.desk import Wanted
from keyd.keys.block import Use
from keyd.keys.sam import MacTask
from keyd.lending.wrong_proofs import MOST_IN_A_ROW
from tests.lending.soak_cards import APPLICATION, GET_DATA, GET_TERMINAL, RESPONSE, Cards, lv

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

    from keyd.handlers.desk import OpenPsam
    from keyd.keys.ring import KeyRing
    from keyd.lending.lender import Lender, Times
    from keyd.psam import Applet
    from keyd.psam.pool import PoolLimits
    from tests.lending.soak_watch import Watch

PURCHASE_KEY: Final = 0x017F
OK, WRONG_MAC2 = bytes.fromhex("9000"), bytes.fromhex("9302")

# How often a terminal that was told to come back later does so.
TRIES: Final = 4


class GaveUp(Exception):  # noqa: N818 - says what happened
    """The terminal was refused, as may be, and leaves it there."""


@dataclass
class Site:
    """What all terminals share. `is_exact`: time passes only while nobody computes, so limits of time are exact."""

    lender: Lender
    ring: KeyRing
    limits: PoolLimits
    times: Times
    watch: Watch
    # PSAMs that nobody else has, by 终端机编号; and those whose members fail.
    alone: dict[str, Applet]
    flaky: frozenset[str]
    round_trip: float
    longest_pause: float
    is_exact: bool
    numbers: dict[str, set[int]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


class Terminal:
    """One of many. `run_one` does what comes next in its deck, which is shuffled anew each time it is through."""

    def __init__(self, number: int, site: Site, chance: random.Random) -> None:
        self.code = f"T{number:03}"
        self.served = 0
        self.left: list[tuple[OpenPsam, float, bytes]] = []
        self._site = site
        self._chance = chance
        self._cards = Cards(number, chance)
        self._wrong_in_a_row = 0
        self._deck: list[Callable[[], Awaitable[None]]] = []

    async def run_one(self) -> None:
        """Do one thing. What goes wrong is in the watch's faults; whatever else is raised is a fault of keyd."""
        if not self._deck:
            self._deck = [
                *(self._have_computed, self._have_computed, self._have_computed),
                *(self._read, self._read, self._read, self._buy, self._buy, self._buy),
                *(self._abandon, self._close_waiting, self._give_up, self._keep, self._hog),
                *(self._leave_open, self._leave_open),
            ]
            self._chance.shuffle(self._deck)
        do = self._deck.pop()
        name = do.__name__.lstrip("_")
        try:
            await do()
        except GaveUp as gave_up:
            self._site.refused[str(gave_up)] += 1
        else:
            self.served += 1
            self._site.done[name] += 1

    async def read_with(self, lent: OpenPsam) -> None:
        """Read a card with pauses, as somebody does who asks the card in between, and close the PSAM."""
        try:
            commands = [*self._cards.begin(), *self._cards.cipher()]
            if self._chance.random() < 0.5:
                commands += [*self._cards.cipher(), GET_TERMINAL]
            await self._talk(lent, commands, self._alone(lent, commands))
        finally:
            await lent.close()

    # What it wants --------------------------------------------------------------------------------------------

    async def _have_computed(self) -> None:
        tasks = [self._cards.task() for _ in range(self._chance.randint(1, 3))]
        expected = self._site.ring.compute(tasks)
        results = await self._site.lender.compute(tasks, self.code)
        refused = [result for result in results if isinstance(result, Refusal)]
        for result, right in zip(results, expected, strict=True):
            if isinstance(result, bytes) and result != right:
                self._fault("a card task was computed wrongly")
        for refusal in refused:
            if not isinstance(refusal, PoolExhausted | PsamGone):
                self._fault(f"a card task was refused: {refusal}")
        if refused:
            raise GaveUp(f"a card task: {type(refused[0]).__name__}")

    async def _read(self) -> None:
        await self.read_with(await self._open())

    async def _buy(self) -> None:
        """80 70 and 80 72: a number that this PSAM gave nobody before, and a MAC1 and MAC2 of its own number."""
        lent = await self._open()
        try:
            select = bytes.fromhex("00A4000002DDF2")
            begin = [select, GET_TERMINAL, APPLICATION]
            await self._talk(lent, begin, self._alone(lent, begin))
            for _ in range(self._chance.randint(1, 3)):
                await self._buy_once(lent)
        finally:
            await lent.close()

    async def _buy_once(self, lent: OpenPsam) -> None:
        random_and_number, amounts = self._chance.randbytes(6), self._chance.randbytes(12)
        when = bytes.fromhex("01") + self._chance.randbytes(7)
        data = random_and_number + amounts + when + bytes.fromhex("0103") + self._cards.factors()
        begin = bytes.fromhex("80700100") + lv(data)
        if self._chance.random() < 0.5:
            answer = await self._begin_purchase(lent, begin + b"\x08")
        else:
            waits = await self._begin_purchase(lent, begin)
            self._same(waits, bytes.fromhex("6108"), "80 70")
            await self._pause()
            answer = await self._send(lent, RESPONSE)
        if len(answer) != 10:
            self._fault(f"80 70 was answered wrongly, SW {answer[-2:].hex()}")
            return
        number, mac1 = answer[:4], answer[4:-2]
        given = self._site.numbers.setdefault(lent.facts.number, set())
        if int.from_bytes(number, "big") in given:
            self._fault(f"{lent.facts.number} gave a transaction number twice")
        given.add(int.from_bytes(number, "big"))
        key = self._cards.key(PURCHASE_KEY, Use.DEBIT, CardAlgorithm.SM4)
        factor = random_and_number + number[2:]
        terms = amounts + when[:1] + lent.facts.terminal + when[1:]
        right = self._site.ring.compute(
            [MacTask(key, factor, terms), MacTask(key, factor, amounts)]
        )
        self._same(mac1 + answer[-2:], _bytes(right[0]) + OK, "MAC1")
        await self._pause()
        if self._chance.random() < 0.1:
            wrong = bytes.fromhex("8072000004") + bytes(4)
            self._same(await self._send(lent, wrong), WRONG_MAC2, "a wrong MAC2")
            self._wrong_in_a_row += 1
            return
        credit = bytes.fromhex("8072000004") + _bytes(right[1])
        self._same(await self._send(lent, credit), OK, "MAC2")
        self._wrong_in_a_row = 0

    async def _begin_purchase(self, lent: OpenPsam, command: bytes) -> bytes:
        try:
            return await self._send(lent, command)
        except NotAllowed:
            if self._wrong_in_a_row < MOST_IN_A_ROW:
                self._fault("a purchase is not allowed to a terminal that was right")
            raise GaveUp("a purchase: NotAllowed") from None

    async def _abandon(self) -> None:
        """Be gone in the middle of a command, with a key on the chip."""
        lent = await self._open()
        *begin, last = [*self._cards.begin(), *self._cards.cipher()]
        try:
            answers = self._alone(lent, [*begin, last])
            await self._talk(lent, begin, answers[:-1])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._may_be_gone, lent, last, answers[-1])
                await self._moment()
                lent.abandon()
            await self._must_be_gone(lent, last)
        finally:
            await lent.close()

    async def _close_waiting(self) -> None:
        """Close it from elsewhere while a command of its waits for its turn."""
        lent = await self._open()
        try:
            command = self._cards.begin()[0]
            (right,) = self._alone(lent, [command])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._may_be_gone, lent, command, right)
                await self._moment()
                await lent.close()
            await self._must_be_gone(lent, command)
        finally:
            await lent.close()

    async def _give_up(self) -> None:
        """Cancel a command, wherever it is, and go on from where the PSAM was."""
        lent = await self._open()
        try:
            # One file is in the environment and one in the application: whoever is elsewhere does not find it.
            begin = self._cards.begin()
            begin, again = (
                (begin[:1], GET_TERMINAL) if self._chance.random() < 0.5 else (begin, GET_DATA)
            )
            *answers, right = self._alone(lent, [*begin, again])
            await self._talk(lent, begin, answers)
            for _ in range(6):
                await trio.sleep(self._chance.uniform(0, 2 * self._site.longest_pause))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._may_be_gone, lent, again, right)
                    await self._moment()
                    nursery.cancel_scope.cancel()
                await self._talk(lent, [again], [right])
        finally:
            await lent.close()

    async def _keep(self) -> None:
        """Keep the chip in silence: what was begun is lost, that is said once, and all can be begun anew."""
        lent = await self._open()
        try:
            commands = [*self._cards.begin(), *self._cards.cipher()]
            answers = self._alone(lent, commands)
            await self._talk(lent, commands[:-1], answers[:-1])
            await trio.sleep(self._site.limits.idle_seconds * 1.5)
            if self._site.is_exact:
                await self._must_be_gone(lent, commands[-1])
            else:
                await self._may_be_gone(lent, commands[-1], answers[-1])
            again = self._cards.cipher()
            await self._talk(lent, again, self._alone(lent, [*commands[:-2], *again])[-2:])
        finally:
            await lent.close()

    async def _hog(self) -> None:
        """Keep the chip busy: a turn has an end all the same."""
        lent = await self._open()
        limits, times = self._site.limits, self._site.times
        try:
            deliver, last = self._cards.cipher(CardAlgorithm.SM4)
            more = last[:2] + b"\x02" + last[3:]
            begin = [*self._cards.begin(CardAlgorithm.SM4), deliver, more]
            answers = self._alone(lent, begin)
            await self._talk(lent, begin, answers)
            began = trio.current_time()
            while await self._may_be_gone(lent, more, answers[-1]):
                await trio.sleep(limits.idle_seconds / 2)
                late = trio.current_time() - began - limits.turn_seconds
                if late > times.answer_seconds and self._site.is_exact:
                    self._fault("a turn has no end")
                    return
            again = self._cards.cipher(CardAlgorithm.SM4)
            await self._talk(lent, again, self._alone(lent, [*begin[:-2], *again])[-2:])
        finally:
            await lent.close()

    async def _leave_open(self) -> None:
        """Leave one open, and come back to it another time, when it may have been closed."""
        if self.left and self._chance.random() < 0.5:
            lent, used, right = self.left.pop(0)
            # It was paused a little, at most, between the last command and when it was put aside.
            unused = trio.current_time() - used + self._site.longest_pause
            may_be_gone = unused >= self._site.times.open_seconds
            try:
                answer = await self._send(lent, GET_TERMINAL, may_be_gone=may_be_gone)
                self._same(answer, right, "a PSAM that was left open")
            finally:
                await lent.close()
            return
        lent = await self._open()
        begin = self._cards.begin()[:2]
        answers = self._alone(lent, begin)
        try:
            await self._talk(lent, begin, answers)
        except BaseException:
            lent.abandon()
            raise
        self.left.append((lent, trio.current_time(), answers[-1]))

    # How it speaks --------------------------------------------------------------------------------------------

    async def _open(self) -> OpenPsam:
        wanted = Wanted()
        if self._chance.random() < 0.2:
            wanted = Wanted(self._chance.choice(sorted(self._site.alone)))
        try:
            return await self._site.lender.open(self.code, wanted)
        except PoolExhausted as exhausted:
            if not wanted.number or wanted.number not in self._site.flaky:
                self._fault("no PSAM was lent, and there are healthy ones")
            await trio.sleep(exhausted.retry_milliseconds / 1000)
            raise GaveUp("open: PoolExhausted") from None
        except PsamNotFound:
            if wanted.number not in self._site.flaky:
                self._fault("a PSAM was not found that is there")
            raise GaveUp("open: PsamNotFound") from None

    async def _talk(
        self, lent: OpenPsam, commands: Iterable[bytes], right: Iterable[bytes]
    ) -> None:
        for command, answer in zip(commands, right, strict=True):
            self._same(await self._send(lent, command), answer, command[:2].hex(" "))
            await self._pause()

    async def _send(self, lent: OpenPsam, command: bytes, *, may_be_gone: bool = False) -> bytes:
        for _ in range(TRIES):
            try:
                return await lent.transmit(command)
            except PoolExhausted as exhausted:
                # It was not sent: the same command later is right.
                await trio.sleep(exhausted.retry_milliseconds / 1000)
            except PsamGone as gone:
                if self._is_faultless(lent) and not may_be_gone:
                    self._fault(f"{lent.facts.number} is sound and was lost: {gone}")
                raise GaveUp("a command: PsamGone") from None
        raise GaveUp("a command: PoolExhausted")

    async def _may_be_gone(self, lent: OpenPsam, command: bytes, right: bytes) -> bool:
        """Send a command that is answered rightly or refused; return whether it was answered."""
        try:
            answer = await lent.transmit(command)
        except (PsamGone, PoolExhausted):
            return False
        self._same(answer, right, "a command that might have been lost")
        return True

    async def _must_be_gone(self, lent: OpenPsam, command: bytes) -> None:
        try:
            await lent.transmit(command)
        except PsamGone:
            return
        self._fault("a command was answered that had to be refused")

    async def _pause(self) -> None:
        if self._chance.random() < 0.5:
            await trio.sleep(self._chance.uniform(0, self._site.longest_pause))

    async def _moment(self) -> None:
        """Wait as long as others take for a step or a few commands."""
        if self._chance.random() < 0.5:
            for _ in range(self._chance.randint(0, 5)):
                await trio.lowlevel.checkpoint()
            return
        await trio.sleep(self._chance.uniform(0, 4 * self._site.round_trip))

    # What is right --------------------------------------------------------------------------------------------

    def _alone(self, lent: OpenPsam, commands: Iterable[bytes]) -> list[bytes]:
        """Return what this PSAM answers somebody who has it alone."""
        applet = self._site.alone[lent.facts.number]
        applet.reset()
        return [applet.transmit(command) for command in commands]

    def _same(self, answer: bytes, right: bytes, what: str) -> None:
        if answer != right:
            self._fault(f"{what} was answered wrongly, SW {answer[-2:].hex()}")

    def _is_faultless(self, lent: OpenPsam) -> bool:
        return self._site.is_exact and lent.facts.number not in self._site.flaky

    def _fault(self, sentence: str) -> None:
        self._site.watch.fault(f"{trio.current_time():.3f} {self.code}: {sentence}")


def _bytes(result: bytes | Refusal) -> bytes:
    assert isinstance(result, bytes), result
    return result
