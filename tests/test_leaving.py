"""What needs the pool leaves the tick and is decided, recorded, counted and answered as what does not; each item once.

The pool is one real PSAM's, with the ring's keys: so whatever the ring answers, the pool must answer too, and only who
was asked tells them apart.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import pytest
import trio.testing
from structlog.testing import capture_logs

from keyd.audit.journal import Journal
from keyd.dispatch import Dispatch, Pass, Slow
from keyd.errors import AuditUnavailable, Overloaded, PoolExhausted, Refusal, Status
from keyd.handlers import HANDLERS
from keyd.handlers.card import card_of
from keyd.keys.block import Use
from keyd.keys.sam import MacTask
from keyd.leaving import MAX_AT_ONCE, side_by_side
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import Ask, ServerConnection
from keyd.protocol.messages.card import PinUnblock, ReadyApdu
from keyd.pump import METHODS
from keyd.recorder import Recorder
from keyd.registry.synthetic import synthetic_terminal
from keyd.routing import RouteRow, Routing
from keyd.telemetry import Events
from keyd.terminals import KnownTerminal
from keyd.uses import Numbers
from tests.daemon.journals import named_uses
from tests.policy.conftest import LIMITS
from tests.psam.sams import LendsNothing, OnePool
from tests.pump.conftest import INTERNAL_CRYPTOGRAM as CRYPTOGRAM
from tests.pump.conftest import Stand, hot
from tests.test_dispatch import (
    BAD_CARD,
    CANARY,
    CARD,
    CHALLENGE,
    CODE,
    FACTOR,
    Keyd,
    Learning,
    Raising,
    Recording,
    heard,
    items_of,
    status_of,
)
from tests.test_gate import Guarded, policy_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from keyd.dispatch import Decided
    from keyd.keys.sam import SamTask
    from keyd.terminals import Session

DES_CARD: Final = [CARD[0], CARD[1], 1, 3]
DPK: Final = 0x017F

UNBLOCK: Final = "card.pin_unblock"
MUTUAL: Final = [CARD, FACTOR, CHALLENGE, FACTOR, CHALLENGE]


class Pooled(Keyd):
    """A keyd with a pool, whose late answers wait to be asked for, and what a ring alone would say."""

    def __init__(self, *rows: RouteRow) -> None:
        super().__init__(has_pool=True)
        if rows:
            self.services.routing = Routing.of(rows, self.services.profiles)
        self.plain = Keyd()

    @property
    def pool(self) -> OnePool:
        return cast("OnePool", self.services.psams)

    def tick(self, *asks: tuple[Session, Ask]) -> list[bytes | Slow]:
        return self.dispatch.run(asks).answers

    def leave(self, session: Session, method: str, *params: Any) -> Slow:
        """Ask what must leave the tick."""
        (slow,) = self.tick((session, Ask(1, method, list(params))))
        assert isinstance(slow, Slow)
        return slow

    def by_ring(self, method: str, *params: Any) -> Any:
        """What a keyd without a pool answers."""
        return self.plain.say(self.plain.terminal(), method, *params)


@pytest.fixture
def keyd() -> Pooled:
    return Pooled()


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield cast("list[Any]", lines)


# --- who computes


async def test_a_pooled_key_is_never_the_rings_though_the_ring_has_it(keyd: Pooled) -> None:
    recording = keyd.services.sam = Recording(keyd.ring)
    slow = keyd.leave(keyd.terminal(), CRYPTOGRAM, CARD, FACTOR, CHALLENGE)
    recording.batches.clear()

    answer = heard(await keyd.slow(slow))

    assert answer.result == keyd.by_ring(CRYPTOGRAM, CARD, FACTOR, CHALLENGE).result
    assert recording.batches == []
    assert [(terminal, task.key.address) for terminal, task in keyd.pool.asked] == [(CODE, 0x0170)]
    assert keyd.counted(CRYPTOGRAM, Status.OK) == 1


def test_what_is_not_routed_stays_in_the_tick(keyd: Pooled) -> None:
    keyd = Pooled(RouteRow(("IRK",), "pool", "DES"))
    (answer,) = keyd.tick((keyd.terminal(), Ask(1, CRYPTOGRAM, [CARD, FACTOR, CHALLENGE])))
    assert isinstance(answer, bytes)
    keyd.leave(keyd.terminal(), CRYPTOGRAM, DES_CARD, FACTOR, CHALLENGE)
    assert keyd.pool.asked == []


async def test_one_step_may_need_both() -> None:
    keyd = Pooled(RouteRow(("RKSSSE",), "pool"))
    recording = keyd.services.sam = Recording(keyd.ring)
    slow = keyd.leave(keyd.terminal(), "card.mutual_cryptograms", *MUTUAL)
    answer = heard(await keyd.slow(slow))
    assert answer.result == keyd.by_ring("card.mutual_cryptograms", *MUTUAL).result
    assert recording.batches[-1] == len(keyd.pool.asked) == 1


async def test_a_service_may_leave_at_a_later_step(
    keyd: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No service of today takes two steps; one that does is a service like any other."""
    unblock = cast("Any", HANDLERS[PinUnblock])

    def steps(ask: PinUnblock, session: Any, services: Any) -> Generator[Any, Any, ReadyApdu]:
        card = card_of(ask.card, services)
        of_ring = MacTask(card.key(DPK, Use.DEBIT), FACTOR, b"data")
        (first,) = yield (of_ring,)
        reply: ReadyApdu = yield from unblock(ask, session, services)
        (last,) = yield (of_ring,)
        assert first == last
        return reply

    monkeypatch.setitem(cast("dict[Any, Any]", HANDLERS), PinUnblock, steps)
    recording = keyd.services.sam = Recording(keyd.ring)
    slow = keyd.leave(keyd.terminal(), UNBLOCK, CARD, FACTOR)
    monkeypatch.undo()
    assert (recording.batches, keyd.pool.asked) == ([1], [])
    assert heard(await keyd.slow(slow)).result == keyd.by_ring(UNBLOCK, CARD, FACTOR).result
    assert (recording.batches, len(keyd.pool.asked)) == ([1, 1], 1)


async def test_without_a_pool_nobody_computes_with_its_keys(keyd: Pooled) -> None:
    keyd.services.psams = None
    answer = heard(await keyd.slow(keyd.leave(keyd.terminal(), UNBLOCK, CARD, FACTOR)))
    assert answer.refusal is not None
    assert answer.refusal.status is Status.KEY_NOT_FOUND
    assert answer.refusal.detail == "PSAMs compute with the key 0173, and keyd has none"


async def test_a_key_of_the_pool_that_no_psam_has_is_refused(keyd: Pooled) -> None:
    slow = keyd.leave(keyd.terminal(), CRYPTOGRAM, CARD, FACTOR, CHALLENGE, 0x0171)
    answer = heard(await keyd.slow(slow))
    assert status_of(answer) is Status.KEY_NOT_FOUND


async def test_the_pools_refusal_is_the_answer_with_its_hint(keyd: Pooled, log: list[Any]) -> None:
    class Full(LendsNothing):
        async def compute(self, tasks: Sequence[SamTask], _terminal: str) -> list[bytes | Refusal]:
            return [PoolExhausted.retry_in(250) for _ in tasks]

    keyd.services.psams = Full()
    answer = heard(await keyd.slow(keyd.leave(keyd.terminal(), UNBLOCK, CARD, FACTOR)))
    assert isinstance(answer.refusal, PoolExhausted)
    assert answer.refusal.retry_milliseconds == 250
    assert keyd.counted(UNBLOCK, Status.POOL_EXHAUSTED) == 1
    (line,) = log
    assert (line["event"], line["terminal"]) == ("refused", CODE)


async def test_it_is_asked_for_who_asked_whoever_is_there_at_the_end(keyd: Pooled) -> None:
    session = keyd.terminal()
    slow = keyd.leave(session, UNBLOCK, CARD, FACTOR)
    session.leave()
    assert status_of(heard(await keyd.slow(slow))) is Status.OK
    assert [terminal for terminal, _ in keyd.pool.asked] == [CODE]


# --- batches

# The ring computes for SM4 cards here, the pool for DES ones.
DIVIDED: Final = RouteRow(("STKSSSE",), "pool", "DES")

MIXED: Final[list[Any]] = [
    [CARD, FACTOR],
    [DES_CARD, FACTOR],
    [BAD_CARD, FACTOR],
    [DES_CARD, bytes(5)],
    None,
    [CARD, FACTOR],
    [DES_CARD, FACTOR],
]
MIXED_STATUSES: Final = [
    *(Status.OK, Status.OK, Status.CARD_DATA_INCONSISTENT, Status.BAD_PARAMETER),
    *(Status.BAD_PARAMETER, Status.OK, Status.OK),
]


async def test_a_mixed_batch_is_one_answer_in_its_order() -> None:
    keyd = Pooled(DIVIDED)
    terminal = keyd.terminal()
    slow, other = keyd.tick(
        (terminal, Ask(1, UNBLOCK + "_batch", [MIXED])), (terminal, Ask(2, UNBLOCK, [CARD, FACTOR]))
    )
    assert isinstance(slow, Slow)
    # Whoever else asked in this tick does not wait for it.
    assert isinstance(other, bytes)
    assert keyd.counted(UNBLOCK + "_batch", Status.OK) == 0

    answer = heard(await keyd.slow(slow))

    assert answer.msgid == 1
    assert items_of(answer) == items_of(keyd.by_ring(UNBLOCK + "_batch", MIXED))
    assert [status for status, _ in items_of(answer)] == MIXED_STATUSES
    assert keyd.counted(UNBLOCK + "_batch", Status.OK) == 4
    assert keyd.counted(UNBLOCK + "_batch", Status.BAD_PARAMETER) == 2
    assert keyd.counted(UNBLOCK, Status.OK) == 1


async def test_what_is_refused_before_it_went_on_costs_only_what_left() -> None:
    keyd = Pooled(DIVIDED)
    slow = keyd.leave(keyd.terminal(), UNBLOCK + "_batch", MIXED)
    (octets,) = keyd.dispatch.refuse_slow(slow, Overloaded()).answers
    assert isinstance(octets, bytes)
    left = {1: Status.OVERLOADED, 3: Status.OVERLOADED, 6: Status.OVERLOADED}
    expected = [left.get(place, status) for place, status in enumerate(MIXED_STATUSES)]
    assert [status for status, _ in items_of(heard(octets))] == expected
    assert keyd.pool.asked == []


async def test_a_bug_in_the_pool_costs_the_items_that_met_it(log: list[Any]) -> None:
    keyd = Pooled(RouteRow(("STK*",), "pool"))
    keyd.pool.psam = Raising(keyd.pool.psam)
    good, poison = ([CARD, 0x0173, FACTOR, bytes((4, ins, 0, 0)), b"data"] for ins in (0xD6, 0xDC))
    slow = keyd.leave(keyd.terminal(), "card.secure_message_batch", [good, poison, good])
    octets = await keyd.slow(slow)
    statuses = [status for status, _ in items_of(heard(octets))]
    assert statuses == [Status.OK, Status.INTERNAL, Status.OK]
    assert CANARY.encode() not in octets
    (bug,) = [line for line in log if line["log_level"] == "error"]
    assert CANARY in str(bug["exc_info"])
    assert bug["method"] == "card.secure_message"


@pytest.mark.parametrize("lost", [-1, 0])
async def test_a_pool_that_loses_a_result_is_a_bug_and_no_wrong_answer(
    keyd: Pooled, lost: int
) -> None:
    class Losing(LendsNothing):
        async def compute(self, tasks: Sequence[SamTask], _terminal: str) -> list[bytes | Refusal]:
            results = keyd.ring.compute(tasks)
            return [*results, b""] if lost == 0 else results[:lost]

    keyd.services.psams = Losing()
    slow = keyd.leave(keyd.terminal(), "card.mutual_cryptograms", *MUTUAL)
    assert status_of(heard(await keyd.slow(slow))) is Status.INTERNAL


async def test_a_few_items_of_a_batch_wait_side_by_side(keyd: Pooled) -> None:
    inside = most = 0

    class Watched(LendsNothing):
        async def compute(self, tasks: Sequence[SamTask], _terminal: str) -> list[bytes | Refusal]:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await trio.testing.wait_all_tasks_blocked()
            inside -= 1
            return keyd.ring.compute(tasks)

    keyd.services.psams = Watched()
    items = [[CARD, bytes(7) + bytes((n,))] for n in range(40)]
    slow = keyd.leave(keyd.terminal(), UNBLOCK + "_batch", items)
    answer = heard(await keyd.slow(slow))
    assert items_of(answer) == items_of(keyd.by_ring(UNBLOCK + "_batch", items))
    assert most == MAX_AT_ONCE


async def test_no_jobs_are_none() -> None:
    await side_by_side([])


# --- rights


async def test_the_short_cut_never_learns_a_pooled_key(keyd: Pooled) -> None:
    keyd.dispatch.short_cut = noted = Learning()
    terminal = keyd.terminal()
    noted.learnt.clear()
    await keyd.slow(keyd.leave(terminal, CRYPTOGRAM, CARD, FACTOR, CHALLENGE))
    await keyd.slow(keyd.leave(terminal, CRYPTOGRAM + "_batch", [[CARD, FACTOR, CHALLENGE]]))
    assert noted.learnt == []


@pytest.mark.parametrize("method", METHODS)
def test_the_pump_takes_no_key_that_is_the_pools(method: str) -> None:
    """Whoever says that it was answered well, and whatever the ring has."""
    connection = ServerConnection()
    connection.receive_data_untrusted(hot(method))
    (ask,) = connection.next_asks_untrusted(1)
    request = msgspec.convert(ask.params, TABLE[method].request, builtin_types=(bytes,))
    rows = [RouteRow(("IRK", "RKSSSE"), "pool", "SM4")]
    with closing(Stand()) as stand:
        stand.teach(hot(method))
        stand.routes.forget()
        for routing, answered in ((Routing.of(rows, stand.services.profiles), 0), (None, 1)):
            stand.services.routing = routing
            stand.routes.learn(request, Pass(None))
            theirs, _ours = stand.open()
            theirs.sendall(hot(method))
            assert stand.tick()[1] == answered


async def test_the_policy_decides_before_anything_leaves() -> None:
    keyd = guarded()
    ask = Ask(1, CRYPTOGRAM, [CARD, FACTOR, CHALLENGE])
    (refused,) = keyd.dispatch.run([(keyd.as_("counter"), ask)]).answers
    assert isinstance(refused, bytes)
    assert status_of(heard(refused)) is Status.NOT_ALLOWED
    (slow,) = keyd.dispatch.run([(keyd.as_("reader"), ask)]).answers
    assert isinstance(slow, Slow)
    assert status_of(heard(await keyd.slow(slow))) is Status.OK


async def test_cards_that_fail_in_the_pool_are_strange_too() -> None:
    keyd = guarded()
    keyd.services.psams = OnePool(keyd.ring)
    session = keyd.as_("reader")
    forged = Ask(1, "card.internal_authenticate", [CARD, FACTOR, CHALLENGE, bytes(8)])
    statuses = []
    for _ in range(12):
        (slow,) = keyd.dispatch.run([(session, forged)]).answers
        octets = await keyd.slow(slow) if isinstance(slow, Slow) else slow
        statuses.append(status_of(heard(octets)))
    assert Status.CARD_NOT_AUTHENTIC in statuses
    assert statuses[-1] is Status.CARD_LIMIT
    assert ("many_failures", "T-1") in keyd.strange


def guarded() -> Guarded:
    limits = LIMITS.replace("failure_minutes = 10", "failure_minutes = 10\ndeny_failures = true")
    keyd = Guarded(policy_file(limits=limits))
    keyd.services.routing = Routing.of([RouteRow(("*",), "pool")], keyd.services.profiles)
    keyd.services.psams = OnePool(keyd.ring)
    return keyd


# --- records


class Recorded(Pooled):
    """One that records, into a journal of the test's."""

    def __init__(self, folder: Path, *rows: RouteRow) -> None:
        super().__init__(*rows)
        self.folder = folder
        self.journal = Journal(folder, "keyd", clock_ns=time.time_ns)
        events = Events(time.monotonic)
        self.recorder = Recorder(
            self.journal,
            Numbers(self.journal, self.ring, "masked"),
            self.meter,
            events,
            waits_for_disk=True,
            wait_seconds=1.0,
        )
        self.dispatch = Dispatch(self.services, self.meter, events, self.recorder)

    def uses(self) -> list[tuple[str, int, str | None, str | None, bytes]]:
        """What is recorded of card commands."""
        return [
            (use.method, use.status, use.terminal, use.key, use.card)
            for use in named_uses(self.folder)
            if use.method.startswith("card.")
        ]

    async def decided(self, slow: Slow) -> Decided:
        return await self.dispatch.run_slow(slow)


MASKED: Final = bytes.fromhex("510100").ljust(16, b"\0")


async def test_what_left_is_recorded_once_with_its_key_and_card(tmp_path: Path) -> None:
    keyd = Recorded(tmp_path)
    with closing(keyd.journal):
        session = keyd.terminal()
        slow = keyd.leave(session, UNBLOCK, CARD, FACTOR)
        assert keyd.uses() == []
        session.leave()
        decided = await keyd.decided(slow)
        assert keyd.uses() == [(UNBLOCK, 0, CODE, "pool/0173/SM4", MASKED)]
        assert decided.position == keyd.journal.position


async def test_each_item_of_a_mixed_batch_is_recorded_once(tmp_path: Path) -> None:
    keyd = Recorded(tmp_path, DIVIDED)
    with closing(keyd.journal):
        await keyd.decided(keyd.leave(keyd.terminal(), UNBLOCK + "_batch", MIXED))
        found = keyd.uses()
        assert [status for _, status, _, _, _ in found] == [int(s) for s in MIXED_STATUSES]
        by_ring = next(
            header.label
            for header in keyd.ring.headers
            if header.addresses == (0x0173,) and header.algorithm.value == "SM4"
        )
        by_pool = "pool/0173/DES"
        keys = [by_ring, by_pool, None, by_pool, None, by_ring, by_pool]
        assert [key for _, _, _, key, _ in found] == keys
        assert {terminal for _, _, terminal, _, _ in found} == {CODE}
        assert [card for *_, card in found] == [MASKED] * 4 + [bytes(16)] + [MASKED] * 2


async def test_what_was_refused_before_it_went_on_is_recorded_once(tmp_path: Path) -> None:
    keyd = Recorded(tmp_path, DIVIDED)
    with closing(keyd.journal):
        slow = keyd.leave(keyd.terminal(), UNBLOCK + "_batch", MIXED)
        keyd.dispatch.refuse_slow(slow, Overloaded())
        assert len(keyd.uses()) == len(MIXED)
        assert [status for _, status, *_ in keyd.uses()].count(Status.OVERLOADED) == 3


async def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path) -> None:
    keyd = Recorded(tmp_path, DIVIDED)
    session = keyd.terminal()
    alone = keyd.leave(session, UNBLOCK, DES_CARD, FACTOR)
    batch = keyd.leave(session, UNBLOCK + "_batch", MIXED)
    keyd.journal.close()
    assert keyd.recorder.unavailable_because is None, "it is not known yet"
    assert status_of(heard(await keyd.slow(alone))) is Status.AUDIT_UNAVAILABLE
    answer = heard(await keyd.slow(batch))
    assert items_of(answer) == [(Status.AUDIT_UNAVAILABLE, None)] * len(MIXED)


async def test_no_psam_is_asked_while_nothing_can_be_recorded(tmp_path: Path) -> None:
    keyd = Recorded(tmp_path)
    with closing(keyd.journal):
        slow = keyd.leave(keyd.terminal(), UNBLOCK, CARD, FACTOR)
        keyd.recorder.unavailable_because = "the disk is full"
        assert status_of(heard(await keyd.slow(slow))) is Status.AUDIT_UNAVAILABLE
        assert keyd.pool.asked == []


def test_what_could_not_be_recorded_as_anybodys_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyd = Recorded(tmp_path, DIVIDED)
    newcomer = keyd.session()
    newcomer.enter(KnownTerminal(synthetic_terminal("T-0002")))

    def no_number(_session: Session) -> int:
        raise AuditUnavailable

    monkeypatch.setattr(keyd.recorder.numbers, "terminal", no_number)
    alone, batch = keyd.tick(
        (newcomer, Ask(1, UNBLOCK, [DES_CARD, FACTOR])),
        (newcomer, Ask(2, UNBLOCK + "_batch", [MIXED])),
    )
    assert isinstance(alone, bytes)
    assert isinstance(batch, bytes)
    assert status_of(heard(alone)) is Status.AUDIT_UNAVAILABLE
    assert items_of(heard(batch)) == [(Status.AUDIT_UNAVAILABLE, None)] * len(MIXED)
    assert keyd.pool.asked == []
    keyd.journal.close()
