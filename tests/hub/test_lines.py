"""Invariant: a line says to the session exactly what its certificate says, and no line outlives what allows it: the
registry's consent, its certificate's time, its CA and the revocation lists.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from keyd.hub.door import Entrance
from keyd.hub.lines import Lines, work_off
from keyd.hub.peer import Peer
from keyd.telemetry import Events, Meter
from keyd.terminals import Line, Session
from keyd.tls import TlsClientConnection, TlsClientContext, TlsFault, TlsKind
from tests.tls.lines import CODE, DAY, NOW, client_context, pki, server_context
from tests.tls.test_handshake import revocation_list

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = TlsKind.STANDARD


class World:
    """Lines with a registry and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOW
        self.allowed: set[str] = {CODE}
        self.asked: list[Line] = []
        self.listener = socket.socket()
        self._opened = [self.listener]
        self.entrance = Entrance(self.listener, context=server_context(KIND))
        self.meter = Meter()
        events = Events(lambda: 0.0)
        self.lines = Lines(self.meter, events, lambda: 0.0, lambda: self.now, self._allows)

    def _allows(self, line: Line, now_unix: int) -> bool:
        assert now_unix == self.now
        self.asked.append(line)
        return line.common_name in self.allowed

    def begin(self) -> Peer:
        sock = socket.socket()
        self._opened.append(sock)
        peer = Peer(sock, Session(1, source="10.0.0.1"))
        assert self.entrance.context is not None
        self.lines.begin(peer, self.entrance, self.entrance.context)
        return peer

    def shake_hands(
        self, peer: Peer, context: TlsClientContext | None = None
    ) -> TlsClientConnection:
        client = (context or client_context(KIND)).connect("keyd.example", NOW)
        assert peer.tls is not None
        while peer.tls.is_handshaking:
            step = self.lines.step(peer, client.data_to_send())
            work_off([step], [])
            if step.error is not None:
                raise step.error
            client.receive_data_untrusted(peer.tls.data_to_send())
        return client

    def opened(self) -> Peer:
        peer = self.begin()
        self.shake_hands(peer)
        self.lines.open(peer)
        return peer

    def judge(self) -> list[tuple[Peer, Exception | None]]:
        """Judge all that are to be judged."""
        done = []
        while judgements := self.lines.next_judgements():
            work_off([], judgements)
            done += [(judgement.peer, judgement.error) for judgement in judgements]
        return done

    def close(self) -> None:
        for sock in self._opened:
            sock.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_the_session_learns_what_the_certificate_says(world: World) -> None:
    peer = world.begin()
    client = world.shake_hands(peer)
    assert peer.session.line is None
    world.lines.open(peer)
    assert peer.tls is not None
    certificate = peer.tls.peer_certificate
    assert certificate is not None
    assert peer.session.line == Line(
        CODE,
        certificate.serial,
        certificate.fingerprint,
        certificate.public_key.point,
        certificate.not_after,
        client.channel_binding,
    )
    assert world.asked == [peer.session.line]
    assert (peer.is_half_open, len(world.lines.handshakes), world.meter.tls_half_open) == (
        *(False, 0),
        0,
    )


def test_whom_the_registry_does_not_allow_gets_no_line_and_no_ticket(world: World) -> None:
    world.allowed.clear()
    peer = world.begin()
    client = world.shake_hands(peer)
    with pytest.raises(TlsFault) as refused:
        world.lines.open(peer)
    assert peer.session.line is None
    assert peer.is_half_open
    world.lines.give_up(peer, refused.value)
    # The end, and nothing before it.
    assert client.receive_data_untrusted(bytes(peer.out)) == b""
    assert client.state.value == "peer closed"


def test_a_line_that_the_registry_allows_no_more_is_noticed(world: World) -> None:
    peer = world.opened()
    assert world.lines.is_allowed(peer)
    world.allowed.clear()
    assert not world.lines.is_allowed(peer)


def test_a_line_expires_once_and_with_its_certificate(world: World) -> None:
    first, second = world.opened(), world.opened()
    assert first.session.line is not None
    world.now = first.session.line.not_after
    assert world.lines.expired() == []
    world.now += 1
    assert world.lines.expired() == [first, second]
    assert world.lines.expired() == []


def test_open_lines_are_judged_by_the_context_that_is_there_now(world: World) -> None:
    peers = [world.opened() for _ in range(20)]
    assert world.judge() == []
    world.lines.judge_again()
    assert [error for _, error in world.judge()] == [None] * 20
    world.entrance.context = server_context(KIND, revoked=revocation_list(KIND, CODE))
    world.lines.judge_again()
    world.lines.forget(peers[0])
    peers[0].is_open = False
    judged = world.judge()
    assert [peer for peer, _ in judged] == peers[1:]
    assert all("revoked" in str(getattr(error, "cause", "")) for _, error in judged)


def test_a_line_that_began_before_a_reload_is_judged_after_it(world: World) -> None:
    peer = world.begin()
    world.shake_hands(peer)
    world.entrance.context = server_context(KIND, revoked=revocation_list(KIND, CODE))
    world.lines.open(peer)
    ((judged, error),) = world.judge()
    assert judged is peer
    assert isinstance(error, TlsFault)


def test_a_judgement_looks_at_the_time(world: World) -> None:
    world.opened()
    world.now += 30 * DAY
    world.lines.judge_again()
    ((_, error),) = world.judge()
    assert isinstance(error, TlsFault)
    assert "expired" in error.cause


def test_a_line_for_enrolment_has_nobody_on_it(world: World) -> None:
    world.entrance = Entrance(
        world.listener, is_enrolment=True, context=server_context(KIND, client_authorities=None)
    )
    peer = world.begin()
    bare = TlsClientContext(KIND, server_authorities=pki(KIND).authority.certificate)
    world.shake_hands(peer, bare)
    world.allowed.clear()
    world.lines.open(peer)
    assert peer.session.line is None
    assert world.lines.is_allowed(peer)
    assert world.lines.expired() == []
    world.lines.judge_again()
    assert world.judge() == []


def test_a_fault_of_our_own_in_a_step_is_handed_on(world: World) -> None:
    peer = world.begin()
    step = world.lines.step(peer, bytes(100_000))  # more than may be received at once
    work_off([step], [])
    assert step.error is not None
    assert not isinstance(step.error, TlsFault)
