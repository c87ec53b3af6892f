"""Admission: which connections the pump reads, as whom, and for how many answers.

It may have one only while Python holds nothing of it: no bytes that came, and none that are to leave. It asks nobody
before it answers, so it is told beforehand who is there and how much that one may have, and the gate is told
afterwards how much it was. Without a pump nothing is admitted: the same answers, later.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from keyd.gate import UNLIMITED
from keyd.pump import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.dispatch import Dispatch
    from keyd.hub.peer import Peer
    from keyd.pump._pump import Pump


class Admission:
    """What a hub lets its pump read."""

    def __init__(self, pump: Pump | None, dispatch: Dispatch, clock: Callable[[], float]) -> None:
        self._pump = pump
        self._dispatch = dispatch
        self._recorder = dispatch.recorder
        self._clock = clock
        if pump is not None and self._recorder is not None:
            numbers = self._recorder.numbers
            kinds = [numbers.methods[method] for method in METHODS]
            pump.record(self._recorder.append, kinds, numbers.card_id_bytes)

    def review(self, peer: Peer) -> None:
        """Let the pump read a connection of which Python holds nothing, and no other."""
        pump = self._pump
        if pump is None:
            return
        terminal = peer.session.terminal
        if peer.is_admitted and terminal is not peer.pumped_as:
            # Somebody else by now, or the same with other rights: the pump has to be told anew.
            self._dismiss(pump, peer)
        wanted = (
            peer.is_open
            # It reads the socket itself.
            and peer.tls is None
            and terminal is not None
            and (self._recorder is None or self._recorder.unavailable_because is None)
            and peer.is_registered_for == select.EPOLLIN
            and peer.close_reason is None
            and not peer.has_more
            and not peer.out
            and not peer.connection.has_partial
        )
        if wanted and not peer.is_admitted:
            self._admit(pump, peer)
        elif peer.is_admitted and not wanted:
            self._dismiss(pump, peer)

    def renew(self, peer: Peer) -> None:
        """Tell the pump anew of a connection, whatever it was told before."""
        if self._pump is not None and peer.is_admitted:
            self._dismiss(self._pump, peer)
        self.review(peer)

    def asked_at(self, peer: Peer) -> float:
        """Return when a connection last said something whole, to Python or to the pump."""
        pumped_at = 0.0 if self._pump is None else self._pump.served_at(peer.fd)
        return max(peer.asked_at, pumped_at)

    def _admit(self, pump: Pump, peer: Peer) -> None:
        session, terminal = peer.session, peer.session.terminal
        connection = number = roles = region = 0
        allowance = UNLIMITED
        if self._recorder is not None:
            connection = session.number & 0xFFFF_FFFF
            number = self._recorder.numbers.terminal(session)
        gate = self._dispatch.gate
        if gate is not None and terminal is not None:
            allowance = gate.allowance(terminal.asker, self._clock())
            if not allowance:
                return  # the long way refuses
            roles, region = gate.role_set(terminal), gate.region(terminal)
        peer.is_admitted = True
        peer.pumped_as, peer.allowance = terminal, allowance
        pump.admit(peer.fd, connection, number, roles, region, allowance)

    def _dismiss(self, pump: Pump, peer: Peer) -> None:
        # The pump forgets when it is given the connection again.
        peer.asked_at = max(peer.asked_at, pump.served_at(peer.fd))
        answered = peer.allowance - pump.dismiss(peer.fd)
        gate, terminal = self._dispatch.gate, peer.pumped_as
        if gate is not None and terminal is not None:
            gate.charge(terminal.asker, self._clock(), answered)
        peer.is_admitted = False
        peer.pumped_as = None
