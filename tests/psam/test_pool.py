"""The pool's rules, one conversation each: who is served by whom, in which order, and what is lost with a member."""

from __future__ import annotations

from typing import Final

import pytest

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import LocalProtocolError, NotAllowed, PoolExhausted, PsamGone, PsamNotFound
from keyd.psam.level_index import MemberFacts, Place
from keyd.psam.pool import (
    Event,
    Expired,
    Found,
    Granted,
    MemberState,
    Pool,
    PoolLimits,
    RanOut,
    Session,
    Strategy,
    Turn,
)

IRK: Final = Place(7, 0x08, CardAlgorithm.SM4)
RK: Final = Place(7, 0x0A, CardAlgorithm.SM4)
NOWHERE: Final = Place(7, 0x3F, CardAlgorithm.SM4)
ANY: Final[frozenset[Place]] = frozenset()


def facts(number: int, *places: Place) -> MemberFacts:
    terminal = bytes.fromhex(f"{number:012d}")
    return MemberFacts(bytes(10), terminal, b"\x3b\x00", dict.fromkeys(places or (IRK,), 3))


def pool_of(
    *slots: int, limits: PoolLimits | None = None, strategy: Strategy = Strategy.LEAST_USED
) -> Pool:
    """A pool of the members "1", "2" and so on with so many slots, which have the IRK and are ready at 0 s."""
    pool = Pool(limits or PoolLimits(), strategy)
    for number, of_it in enumerate(slots, 1):
        pool.join(str(number), of_it)
        pool.ready(str(number), facts(number), 0)
    return pool


def granted(events: list[Event]) -> list[Turn]:
    """The turns of events that are nothing but grants."""
    turns = [event.turn for event in events if isinstance(event, Granted)]
    assert len(turns) == len(events)
    return turns


def take(pool: Pool, session: Session, now: float = 0) -> Turn:
    """The turn that a session gets at once."""
    pool.ask(session, now)
    (turn,) = granted(pool.settle(now))
    assert turn.session is session
    return turn


def test_members_that_are_read_or_quarantined_serve_nobody() -> None:
    pool = Pool(PoolLimits(), Strategy.LEAST_USED)
    with pytest.raises(PsamNotFound):
        pool.attach("a", 0)
    pool.join("1", 1)
    for number in ("", "000000000001"):
        # It may turn out to be what is wanted.
        with pytest.raises(PoolExhausted):
            pool.attach("a", 0, number=number)
    pool.ready("1", facts(1), 0)
    assert pool.state("1") is MemberState.READY
    pool.attach("a", 0)
    with pytest.raises(PsamNotFound, match="000000000002"):
        pool.attach("a", 0, number="000000000002")
    with pytest.raises(PsamNotFound):
        pool.attach("a", 0, places=frozenset({NOWHERE}))
    with pytest.raises(PsamNotFound):
        pool.ask_any("a", frozenset({NOWHERE}), 0)
    pool.fail("1", 0)
    with pytest.raises(PoolExhausted) as no:
        pool.attach("a", 0.25, number="000000000001", places=frozenset({IRK}))
    assert no.value.retry_milliseconds == 750, "when it is read again"
    with pytest.raises(PsamNotFound):
        pool.attach("a", 0, places=frozenset({NOWHERE}))


def test_a_member_that_was_never_read_is_nobody_after_its_first_failure() -> None:
    pool = Pool(PoolLimits(), Strategy.LEAST_USED)
    pool.join("1", 1)
    pool.fail("1", 0)
    with pytest.raises(PsamNotFound):
        pool.attach("a", 0)


def test_a_terminals_own_psam_serves_it_alone_and_first() -> None:
    pool = pool_of(1)
    pool.join("own", 1, owner="a")
    pool.ready("own", facts(2, IRK, RK), 0)
    assert [pool.attach("a", 0).member for _ in range(3)] == ["own"] * 3
    assert pool.attach("b", 0).member == "1"
    with pytest.raises(NotAllowed):
        pool.attach("b", 0, number="000000000002")
    with pytest.raises(PsamNotFound):
        pool.ask_any("b", frozenset({RK}), 0)
    pool.ask_any("a", frozenset({RK}), 0)
    assert [turn.member for turn in granted(pool.settle(0))] == ["own"]


def test_a_session_has_its_member_for_life() -> None:
    pool = pool_of(1, 1)
    first, second = pool.attach("a", 0), pool.attach("a", 0)
    assert {first.member, second.member} == {"1", "2"}
    for now in range(3):
        turn = take(pool, first, now)
        assert turn.member == first.member
        pool.give_back(turn, now, is_clean=True)
    assert pool.sessions == 2
    lost = pool.part(first.member)
    assert lost.sessions == [first]
    with pytest.raises(PsamGone):
        pool.ask(first, 3)
    # The other goes on.
    take(pool, second, 3)


def test_a_turn_is_one_holders_and_who_waits_gets_it_next() -> None:
    pool = pool_of(1)
    a, b = pool.attach("a", 0), pool.attach("b", 0)
    turn = take(pool, a)
    assert turn.found is Found.FRESH
    pool.ask(b, 0)
    assert pool.settle(1) == []
    assert pool.give_back(turn, 1, is_clean=True)
    (turn,) = granted(pool.settle(1))
    assert (turn.session, turn.found) == (b, Found.USED)
    pool.give_back(turn, 1, is_clean=True)
    assert take(pool, b, 1).found is Found.OWN


def test_a_session_likely_finds_its_slot_as_it_left_it() -> None:
    pool = pool_of(2)
    a, b = pool.attach("a", 0), pool.attach("b", 0)
    for session, found in ((a, Found.FRESH), (b, Found.FRESH), (a, Found.OWN), (b, Found.OWN)):
        turn = take(pool, session)
        assert turn.found is found
        pool.give_back(turn, 0, is_clean=True)
    pool.ask_any("c", ANY, 0)
    (turn,) = granted(pool.settle(0))
    # Longest unused was a's.
    assert turn.found is Found.USED
    pool.give_back(turn, 0, is_clean=True)
    assert take(pool, b).found is Found.OWN
    assert take(pool, a).found is Found.USED


def test_a_slot_that_was_not_left_in_order_waits_for_its_reset() -> None:
    pool = pool_of(1)
    a = pool.attach("a", 0)
    turn = take(pool, a)
    pool.give_back(turn, 0, is_clean=False)
    pool.ask(a, 0)
    assert pool.settle(0) == []
    assert pool.dirty("1") == {0}
    pool.clean("1", 0)
    (turn,) = granted(pool.settle(0))
    assert turn.found is Found.FRESH
    with pytest.raises(LocalProtocolError):
        pool.clean("1", 0)


def test_a_silent_holder_loses_its_turn_and_its_slot_is_not_given_on_before_its_reset() -> None:
    pool = pool_of(1)
    a, b = pool.attach("a", 0), pool.attach("b", 0)
    turn = take(pool, a)
    pool.touch(turn, 2)
    assert pool.next_moment() == 5
    pool.ask(b, 4)
    assert pool.settle(4.9) == []
    assert pool.settle(5) == [RanOut(turn, was_idle=True)]
    with pytest.raises(PsamGone):
        pool.touch(turn, 5)
    assert not pool.give_back(turn, 5, is_clean=True)
    assert pool.settle(5.5) == []
    pool.clean("1", 0)
    (turn,) = granted(pool.settle(5.5))
    assert turn.session is b
    # The session itself goes on.
    pool.ask(a, 5.5)


def test_a_holder_that_waits_for_its_chip_is_not_idle_but_no_turn_is_longer_than_the_longest() -> (
    None
):
    pool = pool_of(1)
    turn = take(pool, pool.attach("a", 0))
    pool.touch(turn, 2, is_busy=True)
    assert pool.next_moment() == 10
    assert pool.settle(9.9) == []
    pool.touch(turn, 9.9)
    assert pool.settle(10) == [RanOut(turn, was_idle=False)]


def test_who_waits_too_long_is_told_when_to_ask_again() -> None:
    pool = pool_of(1)
    turn = take(pool, pool.attach("a", 0))
    pool.touch(turn, 0, is_busy=True)
    ticket = pool.ask_any("b", ANY, 1)
    assert pool.next_moment() == 3
    # Not before the turn runs out, at 10 s.
    assert pool.settle(3) == [Expired(ticket, 7000)]
    assert not pool.withdraw(ticket)
    assert pool.waiting == 0


def test_the_advice_grows_with_the_queue_and_with_the_length_of_turns() -> None:
    pool = pool_of(2, limits=PoolLimits(waiting=11))
    for _ in range(50):
        turn = take(pool, session := pool.attach("a", 0))
        pool.give_back(turn, 1, is_clean=True)
        pool.detach(session)
    for _ in range(2):
        pool.ask_any("a", ANY, 1)
    turns = granted(pool.settle(1))
    for turn in turns:
        # They could be idle until 4 s; it is the queue that takes longer.
        pool.touch(turn, 1)
    for asker in range(11):
        pool.ask_any(str(asker), ANY, 1)
    with pytest.raises(PoolExhausted) as no:
        pool.ask_any("late", ANY, 1)
    # Twelve turns of about 1 s each, on two slots.
    assert 5900 <= no.value.retry_milliseconds <= 6000


def test_the_queue_is_bounded_as_a_whole_and_for_each_asker() -> None:
    pool = pool_of(1, limits=PoolLimits(waiting=5, waiting_per_asker=3))
    take(pool, pool.attach("x", 0))
    tickets = [pool.ask_any("a", ANY, 0) for _ in range(3)]
    with pytest.raises(PoolExhausted):
        pool.ask_any("a", ANY, 0)
    pool.ask_any("b", ANY, 0)
    pool.ask_any("b", ANY, 0)
    with pytest.raises(PoolExhausted) as no:
        pool.ask_any("c", ANY, 0)
    assert no.value.retry_milliseconds > 0
    assert pool.withdraw(tickets[1])
    assert not pool.withdraw(tickets[1])
    pool.ask_any("c", ANY, 0)


def test_sessions_are_bounded_as_a_whole_and_for_each_asker() -> None:
    pool = pool_of(1, limits=PoolLimits(sessions=3, sessions_per_asker=2))
    first = pool.attach("a", 0)
    pool.attach("a", 0)
    with pytest.raises(PoolExhausted):
        pool.attach("a", 0)
    pool.attach("b", 0)
    with pytest.raises(PoolExhausted):
        pool.attach("c", 0)
    pool.detach(first)
    pool.attach("c", 0)
    pool.part("1")
    assert pool.sessions == 0
    pool.join("1", 1)
    pool.ready("1", facts(1), 0)
    pool.attach("a", 0)
    pool.attach("a", 0)


def test_one_asker_with_many_tickets_does_not_starve_one_with_a_single() -> None:
    pool = pool_of(1, limits=PoolLimits(waiting_per_asker=500, wait_seconds=1000))
    many = [pool.ask_any("many", ANY, 0) for _ in range(500)]
    (turn,) = granted(pool.settle(0))
    session = pool.attach("one", 0)
    order = []
    for _ in range(4):
        if session not in pool._busy:
            pool.ask(session, 0)
        pool.give_back(turn, 0, is_clean=True)
        (turn,) = granted(pool.settle(0))
        order.append(turn.asker)
    assert order == ["one", "many", "one", "many"]
    # Its own come in the order in which they were asked.
    assert not pool.withdraw(many[2])
    assert pool.withdraw(many[3])


def test_a_session_is_not_put_back_for_what_its_asker_is_served_elsewhere() -> None:
    pool = pool_of(1, 1)
    here, there = (take(pool, pool.attach("x", 0, number=f"{n:012d}")) for n in (1, 2))
    for asker in "yza":
        pool.ask(pool.attach(asker, 0, number="000000000001"), 0)
    for _ in range(4):
        # Member 2 serves a again and again, while a waits for member 1 as well.
        pool.ask_any("a", ANY, 0)
        pool.give_back(there, 0, is_clean=True)
        (there,) = granted(pool.settle(0))
        assert (there.asker, there.member) == ("a", "2")
    order = []
    for _ in range(6):
        pool.give_back(here, 0, is_clean=True)
        if here.session is not None:
            pool.ask(here.session, 0)
        (here,) = granted(pool.settle(0))
        order.append(here.asker)
    assert order == ["y", "z", "a", "x", "y", "z"]


def test_who_comes_late_and_had_no_turn_comes_before_who_had_one() -> None:
    pool = pool_of(1)
    for asker in "ab":
        for _ in range(2):
            pool.ask_any(asker, ANY, 0)
    (turn,) = granted(pool.settle(0))
    served = [turn.asker]
    for late in ("c", "a", "d", "", ""):
        if late:
            pool.ask_any(late, ANY, 0)
        pool.give_back(turn, 0, is_clean=True)
        (turn,) = granted(pool.settle(0))
        served.append(turn.asker)
    assert served == ["a", "b", "c", "d", "a", "b"]


def test_who_waits_for_one_member_is_not_starved_by_who_takes_any() -> None:
    pool = pool_of(1, 1)
    turns = [take(pool, pool.attach("x", 0)) for _ in range(2)]
    pinned = pool.attach("pinned", 0, number="000000000001")
    for asker in "abc":
        pool.ask_any(asker, ANY, 0)
    pool.ask(pinned, 0)
    served = []
    while turns:
        turn = turns.pop(0)
        pool.give_back(turn, 0, is_clean=True)
        got = granted(pool.settle(0))
        served += [(turn.asker, turn.member) for turn in got]
        turns += got
    assert served == [("a", "1"), ("b", "2"), ("c", "1"), ("pinned", "1")]


def test_a_member_that_comes_takes_part_of_who_waits() -> None:
    pool = pool_of(1)
    take(pool, pool.attach("x", 0))
    pool.ask_any("a", ANY, 0)
    pool.ask_any("b", frozenset({IRK}), 0)
    assert pool.settle(0) == []
    pool.join("2", 2)
    assert pool.settle(1) == []
    pool.ready("2", facts(2), 1)
    assert [(turn.asker, turn.member) for turn in granted(pool.settle(1))] == [
        ("a", "2"),
        ("b", "2"),
    ]


def test_what_a_failure_takes_with_it_and_what_waits_on() -> None:
    pool = pool_of(1, 1)
    holder, waiter = (pool.attach(name, 0, number="000000000001") for name in "ab")
    turn = take(pool, holder)
    other = take(pool, pool.attach("x", 0, number="000000000002"))
    pinned = pool.ask(waiter, 0)
    loose = pool.ask_any("c", ANY, 0)
    lost = pool.fail("1", 0)
    assert lost == ([holder, waiter], [turn], [pinned])
    assert not pool.give_back(turn, 0, is_clean=True)
    assert pool.detach(holder) is None
    pool.give_back(other, 0, is_clean=True)
    (granted_now,) = pool.settle(0)
    assert isinstance(granted_now, Granted)
    assert (granted_now.ticket, granted_now.turn.member) == (loose, "2")


def test_who_waits_when_the_last_member_fails_is_served_if_it_comes_back_in_time() -> None:
    pool = pool_of(1)
    take(pool, pool.attach("x", 0))
    ticket, late = pool.ask_any("a", ANY, 0), pool.ask_any("b", ANY, 0)
    pool.fail("1", 0.5)
    assert pool.due_probes(1.5) == ["1"]
    pool.ready("1", facts(1), 1.5)
    (event,) = pool.settle(1.5)
    assert isinstance(event, Granted)
    assert event.ticket is ticket
    pool.fail("1", 1.75)
    (expired,) = pool.settle(2)
    # Its second failure in a row: 2 s from 1.75 s on.
    assert expired == Expired(late, 1750)


def test_the_time_between_probes_doubles_until_a_turn_ends_in_order() -> None:
    pool = pool_of(1)
    now, pauses = 0.0, []
    pool.fail("1", now)
    for attempt in range(12):
        moment = pool.next_moment()
        pauses.append(moment - now)
        assert pool.due_probes(moment - 0.001) == []
        assert pool.due_probes(moment) == ["1"]
        assert pool.due_probes(moment + 100) == [], "it is being probed"
        now = moment
        if attempt % 2:
            # To be read is not to serve: the next failure doubles the pause all the same.
            pool.ready("1", facts(1), now)
        pool.fail("1", now)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    pool.ready("1", facts(1), now)
    turn = take(pool, pool.attach("a", now), now)
    pool.give_back(turn, now, is_clean=True)
    pool.fail("1", now)
    assert pool.next_moment() == now + 1


def test_who_ends_a_session_ends_what_it_waits_for_and_holds() -> None:
    pool = pool_of(1)
    a, b = pool.attach("a", 0), pool.attach("b", 0)
    turn = take(pool, a)
    pool.ask(b, 0)
    assert pool.detach(b) is None
    assert pool.waiting == 0
    assert pool.detach(a) is turn
    assert pool.detach(a) is None
    assert pool.dirty("1") == {0}
    assert (pool.sessions, pool.next_moment()) == (0, float("inf"))


@pytest.mark.parametrize(
    ("strategy", "members"),
    [
        # Member 1 has two slots and many keys, member 2 one of each, member 3 one slot and two keys.
        (Strategy.LEAST_USED, ["1", "2", "3", "1"]),
        (Strategy.KEY_SET, ["2", "2", "2", "2"]),
        (Strategy.AFFINITY, ["1", "1", "1", "1"]),
    ],
)
def test_strategies(strategy: Strategy, members: list[str]) -> None:
    pool = Pool(PoolLimits(), strategy)
    for name, slots, places in (
        ("1", 2, (IRK, RK, NOWHERE)),
        ("2", 1, (IRK,)),
        ("3", 1, (IRK, RK)),
    ):
        pool.join(name, slots)
        pool.ready(name, facts(int(name), *places), 0)
    assert [pool.attach("a", 0, places=frozenset({IRK})).member for _ in members] == members
    if strategy is Strategy.KEY_SET:
        assert pool.attach("a", 0, places=frozenset({RK})).member == "3"
        pool.ask_any("b", frozenset({RK}), 0)
        assert granted(pool.settle(0))[0].member == "3"
    if strategy is Strategy.AFFINITY:
        # Another starts with the least used, and stays there too; a turn counts as well as a session.
        assert pool.attach("b", 0).member == "2"
        pool.ask_any("a", ANY, 0)
        assert granted(pool.settle(0))[0].member == "1"
        assert pool.attach("b", 0).member == "2"


def test_what_is_reported() -> None:
    pool = pool_of(2)
    pool.join("2", 1, owner="a")
    session = pool.attach("a", 0)
    take(pool, session)
    pool.ask_any("b", ANY, 0)
    pool.fail("2", 0)
    pool.settle(0)
    one, two = pool.standings()
    assert (one.name, one.terminal_number, one.keys) == ("1", "000000000001", 1)
    assert (one.sessions, one.held, one.waiting, one.turns, one.failures) == (1, 2, 0, 2, 0)
    assert (two.state, two.owner, two.terminal_number) == (MemberState.QUARANTINED, "a", "")
    assert (two.failures, two.keys, two.dirty) == (1, 0, 1)


def test_a_driver_that_contradicts_itself_is_told() -> None:
    pool = pool_of(1)
    session = pool.attach("a", 0)
    pool.ask(session, 0)
    for wrong in (
        lambda: pool.join("1", 1),
        lambda: pool.join("0", 0),
        lambda: pool.ready("1", facts(1), 0),
        lambda: pool.ready("2", facts(1), 0),
        lambda: pool.fail("2", 0),
        lambda: pool.part("2"),
        lambda: pool.ask(session, 0),
        lambda: pool.clean("1", 1),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()
    # What comes too late, since the member has gone meanwhile, is no contradiction.
    pool.clean("2", 0)


def test_five_hundred_askers_share_eight_members_evenly() -> None:
    pool = pool_of(*[1] * 8, limits=PoolLimits(waiting=2048, wait_seconds=1000))
    askers = [str(number) for number in range(500)]
    for asker in askers:
        for _ in range(4):
            pool.ask_any(asker, frozenset({IRK}), 0)
    served = dict.fromkeys(askers, 0)
    turns = granted(pool.settle(0))
    for _ in range(2000 // 8):
        for turn in turns:
            served[turn.asker] += 1
            pool.give_back(turn, 0, is_clean=True)
        assert max(served.values()) - min(served.values()) <= 1
        turns = granted(pool.settle(0))
    assert set(served.values()) == {4}
    assert turns == []


def test_who_leaves_and_comes_back_is_not_new() -> None:
    pool = pool_of(1)
    for asker in "ba":
        pool.ask_any(asker, ANY, 0)
        (turn,) = granted(pool.settle(0))
        pool.give_back(turn, 0, is_clean=True)
    turn = take(pool, pool.attach("x", 0))
    for asker in "ab":
        pool.ask_any(asker, ANY, 0)
    pool.give_back(turn, 0, is_clean=True)
    assert [turn.asker for turn in granted(pool.settle(0))] == ["b"]


def test_nobody_is_forgotten_among_many_who_come_and_go() -> None:
    pool = pool_of(1)
    turn = take(pool, pool.attach("x", 0))
    stays = pool.ask_any("a", ANY, 0)
    for number in range(1000):
        assert pool.withdraw(pool.ask_any(f"goes {number}", ANY, 0))
    pool.give_back(turn, 0, is_clean=True)
    (event,) = pool.settle(0)
    assert isinstance(event, Granted)
    assert event.ticket is stays


def test_who_takes_any_member_does_not_go_before_who_waits_for_the_one_that_is_preferred() -> None:
    pool = pool_of(1, 1)
    for number in (1, 2):
        turn = take(pool, pool.attach("x", 0, number=f"{number:012d}"))
        pool.give_back(turn, 0, is_clean=False)
    # Member 1 is used more.
    pool.attach("y", 0, number="000000000001")
    pool.ask(pool.attach("pinned", 0, number="000000000002"), 0)
    pool.ask_any("any", ANY, 0)
    pool.attach("y", 0, number="000000000001")
    assert pool.settle(0) == []
    # Both can serve at the same time, and member 1 looks first.
    pool.clean("1", 0)
    pool.clean("2", 0)
    turns = granted(pool.settle(0))
    assert {turn.asker: turn.member for turn in turns} == {"pinned": "2", "any": "1"}


def test_a_session_that_waits_is_not_taken_over_by_a_member_that_comes() -> None:
    pool = pool_of(1)
    first, second = pool.attach("a", 0), pool.attach("b", 0)
    take(pool, first)
    pool.ask(second, 0)
    pool.join("2", 1)
    pool.ready("2", facts(2), 0)
    assert pool.settle(0) == []


def test_a_session_that_withdrew_can_ask_again() -> None:
    pool = pool_of(1)
    session = pool.attach("a", 0)
    assert pool.withdraw(pool.ask(session, 0))
    take(pool, session)


def test_what_is_being_read_for_another_is_nothing_to_wait_for() -> None:
    pool = Pool(PoolLimits(), Strategy.LEAST_USED)
    pool.join("1", 1, owner="a")
    with pytest.raises(PoolExhausted):
        pool.attach("a", 0)
    with pytest.raises(PsamNotFound):
        pool.attach("b", 0)


def test_a_member_that_was_read_early_is_not_probed_again() -> None:
    pool = pool_of(1)
    pool.fail("1", 0)
    pool.ready("1", facts(1), 0.5)
    assert pool.due_probes(100) == []
    assert pool.next_moment() == float("inf")


def test_affinity_is_to_the_member_that_was_had_last() -> None:
    pool = pool_of(1, 1, strategy=Strategy.AFFINITY)
    for number in (1, 2):
        pool.attach("a", 0, number=f"{number:012d}")
    pool.attach("b", 0, number="000000000002")
    assert pool.attach("a", 0).member == "2"


def test_the_pool_wakes_up_for_the_turn_that_runs_out_first() -> None:
    pool = pool_of(2)
    busy = take(pool, pool.attach("a", 0))
    pool.touch(busy, 0, is_busy=True)
    idle = take(pool, pool.attach("b", 1), 1)
    assert pool.next_moment() == 4
    assert pool.settle(4) == [RanOut(idle, was_idle=True)]
    assert pool.next_moment() == 10
