"""Invariant: whoever waits for keyd is not dropped, whoever keeps keyd waiting may be; and sources take turns, however
many lines one of them has.
"""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest

from keyd.hub.handshakes import Handshakes, source_of
from keyd.hub.peer import Peer
from keyd.terminals import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    NewPeer = Callable[[str], Peer]


@pytest.fixture
def new_peer() -> Iterator[NewPeer]:
    """Make peers that come from an address."""
    opened: list[socket.socket] = []

    def make(source: str) -> Peer:
        sock = socket.socket()
        opened.append(sock)
        return Peer(sock, Session(len(opened), source=source))

    yield make
    for sock in opened:
        sock.close()


def test_sources_take_turns_whatever_they_bring(new_peer: NewPeer) -> None:
    handshakes = Handshakes()
    crowd = [new_peer("10.0.0.1") for _ in range(50)]
    alone, other = new_peer("10.0.0.2"), new_peer("10.0.0.3")
    for peer in (*crowd, alone, other):
        handshakes.add(peer)
        handshakes.line_up(peer)
    assert [handshakes.next() for _ in range(4)] == [crowd[0], alone, other, crowd[1]]


def test_a_line_has_one_turn_for_what_it_sent(new_peer: NewPeer) -> None:
    handshakes = Handshakes()
    peer = new_peer("10.0.0.1")
    handshakes.add(peer)
    assert handshakes.next() is None
    handshakes.line_up(peer)
    assert handshakes.has_turns
    assert (handshakes.next(), handshakes.next()) == (peer, None)
    assert not handshakes.has_turns


def test_the_oldest_silent_line_of_the_largest_source_is_dropped(new_peer: NewPeer) -> None:
    handshakes = Handshakes()
    one = new_peer("10.0.0.2")
    crowd = [new_peer("10.0.0.1") for _ in range(3)]
    for peer in (one, *crowd):
        handshakes.add(peer)
    assert handshakes.whom_to_drop() is crowd[0]
    handshakes.remove(crowd[0])
    assert handshakes.whom_to_drop() is crowd[1]


def test_whoever_was_answered_goes_after_the_silent(new_peer: NewPeer) -> None:
    handshakes = Handshakes()
    honest, silent = new_peer("10.0.0.1"), new_peer("10.0.0.1")
    for peer in (honest, silent):
        handshakes.add(peer)
    handshakes.line_up(honest)
    assert handshakes.next() is honest
    honest.is_answered = True
    handshakes.rest(honest)
    assert handshakes.whom_to_drop() is silent
    handshakes.remove(silent)
    assert handshakes.whom_to_drop() is honest


def test_whoever_waits_for_keyd_is_never_dropped(new_peer: NewPeer) -> None:
    handshakes = Handshakes()
    waiting, has_turn = new_peer("10.0.0.1"), new_peer("10.0.0.1")
    for peer in (has_turn, waiting):
        handshakes.add(peer)
        handshakes.line_up(peer)
    assert handshakes.next() is has_turn
    assert handshakes.whom_to_drop() is None
    handshakes.rest(has_turn)
    assert handshakes.whom_to_drop() is has_turn


@pytest.mark.parametrize(
    ("address", "same", "different"),
    [
        ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
        ("::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.2"),
        ("fe80::1%eth0", "fe80::2", "fd00::1"),
        ("gone", "gone", "unix"),
    ],
)
def test_what_one_source_is(new_peer: NewPeer, address: str, same: str, different: str) -> None:
    assert source_of(new_peer(address)) == source_of(new_peer(same))
    assert source_of(new_peer(address)) != source_of(new_peer(different))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost_and_nothing_is_left(new_peer: NewPeer, seed: int) -> None:
    """The books are kept right by any order of events, and end empty."""
    chance = random.Random(seed)  # noqa: S311 - a test's choices
    handshakes = Handshakes()
    alive: list[Peer] = []
    with_turn: list[Peer] = []
    for _ in range(300):
        what = chance.choice(["add", "add", "line up", "next", "rest", "remove", "drop"])
        idle = [peer for peer in alive if not peer.is_in_turn]
        if what == "add" and len(alive) < 30:
            alive.append(new_peer(f"10.0.0.{chance.randrange(4)}"))
            handshakes.add(alive[-1])
        elif what == "line up" and idle:
            handshakes.line_up(chance.choice(idle))
        elif what == "next":
            waiting = [peer for peer in alive if peer.is_in_turn and peer not in with_turn]
            peer = handshakes.next()
            assert (peer is None) == (not waiting)
            if peer is not None:
                assert peer in waiting
                with_turn.append(peer)
        elif what == "rest" and with_turn:
            peer = with_turn.pop()
            peer.is_answered = chance.random() < 0.5 or peer.is_answered
            handshakes.rest(peer)
        elif what == "remove" and alive:
            peer = chance.choice(alive)
            alive.remove(peer)
            with_turn = [other for other in with_turn if other is not peer]
            handshakes.remove(peer)
        elif what == "drop":
            assert (handshakes.whom_to_drop() is None) == (not idle)
            assert handshakes.whom_to_drop() in (None, *idle)
        assert len(handshakes) == len(alive)
    for peer in alive:
        handshakes.remove(peer)
    assert len(handshakes) == 0
    assert handshakes.next() is None
    assert handshakes._sources == {}
    assert handshakes._turns == {}
