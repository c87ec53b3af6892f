"""Answers that wait until the disk has their records, in the order in which they were recorded.

They are kept as bytes. Only if they have to be taken back are they looked into, for the msgids to refuse.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgpack

from keyd.errors import AuditUnavailable
from keyd.protocol.connection import refusal_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.hub.peer import Peer
    from keyd.telemetry import Meter


class _Portion:
    """Answers of one connection that wait for one position."""

    __slots__ = ("answers", "arrived", "count", "is_free", "peer", "position")

    def __init__(
        self,
        peer: Peer,
        answers: bytes,
        position: int,
        count: int,
        arrived: float,
        *,
        is_free: bool,
    ) -> None:
        self.peer = peer
        self.answers = answers
        self.position = position
        self.count = count
        self.arrived = arrived
        # It is no record's: it waits only so as not to overtake, and is never taken back.
        self.is_free = is_free


class HeldAnswers:
    """What all connections of a hub wait for. Positions never fall, so it is one queue."""

    def __init__(self, meter: Meter, clock: Callable[[], float]) -> None:
        self._meter = meter
        self._clock = clock
        self._portions: deque[_Portion] = deque()
        self._count = 0

    def hold(self, peer: Peer, answers: bytes, position: int, count: int, arrived: float) -> None:
        """Keep answers until the journal is durable up to a position; with 0, behind those of the same peer."""
        last = self._portions[-1] if self._portions else None
        is_free = position == 0
        if last is not None:
            position = max(position, last.position)
        if (
            last is not None
            and (last.peer, last.position, last.is_free) == (peer, position, is_free)
            and last.arrived == arrived
        ):
            last.answers += answers
            last.count += count
        else:
            portion = _Portion(peer, answers, position, count, arrived, is_free=is_free)
            self._portions.append(portion)
            peer.held += 1
        peer.held_bytes += len(answers)
        self._count += count
        self._meter.answers_held = self._count

    def release(self, durable: int) -> list[Peer]:
        """Move to their peers what need not wait any more; return whom to flush."""
        portions = self._portions
        peers: dict[Peer, None] = {}
        # Portions of one tick arrived together, and are measured together.
        arrived, count = 0.0, 0
        while portions and portions[0].position <= durable:
            portion = portions.popleft()
            if portion.arrived != arrived:
                self._observe(arrived, count)
                arrived, count = portion.arrived, 0
            count += portion.count
            self._give(portion, portion.answers, peers)
        self._observe(arrived, count)
        self._meter.answers_held = self._count
        return list(peers)

    def take_back(self) -> list[Peer]:
        """Refuse all that waits, under the same msgids; return whom to flush."""
        peers: dict[Peer, None] = {}
        for portion in self._portions:
            answers = portion.answers
            if not portion.is_free:
                answers = _refused(answers)
                self._meter.answers_withheld.inc(portion.count)
            self._observe(portion.arrived, portion.count)
            self._give(portion, answers, peers)
        self._portions.clear()
        self._meter.answers_held = self._count
        return list(peers)

    def _give(self, portion: _Portion, answers: bytes, peers: dict[Peer, None]) -> None:
        peer = portion.peer
        self._count -= portion.count
        peer.held -= 1
        peer.held_bytes -= len(portion.answers)
        if peer.is_open:
            peer.say(answers)
            peers[peer] = None

    def _observe(self, arrived: float, count: int) -> None:
        if count:
            self._meter.duration.observe(self._clock() - arrived, count)


def _refused(answers: bytes) -> bytes:
    """Return a refusal for each answer."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(answers)
    refusal = AuditUnavailable()
    return b"".join(refusal_bytes(answer[1], refusal) for answer in unpacker)
