"""Half-open lines: whose turn it is, and who makes room when there are too many of them.

A step of a handshake costs up to 1.5 ms of a processor, and whoever can connect can ask for one. So lines that have
sent something wait for a turn, sources take turns with each other, and the steps are taken beside the tick.

When there are too many, one is dropped that keeps keyd waiting, never one that waits for keyd: of the source that has
the most, one that was not answered yet before one that was, and the oldest of these. Ten thousand lines that say
nothing therefore drop each other. Whoever goes on with the handshake is dropped only in place of others of the same
source that go on as well.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyd.hub.peer import Peer

# Whoever has an IPv6 address has a network of them, with this much in common.
_IPV6_NETWORK_BYTES: Final = 8


class _Source:
    """The half-open lines of one source, each kind the oldest first."""

    __slots__ = ("answered", "count", "in_turn", "silent")

    def __init__(self) -> None:
        # All of them, with the one that has its turn.
        self.count = 0
        # These keep keyd waiting: no answer was due to them yet, or it has left.
        self.silent: OrderedDict[Peer, None] = OrderedDict()
        self.answered: OrderedDict[Peer, None] = OrderedDict()
        # These wait for keyd.
        self.in_turn: OrderedDict[Peer, None] = OrderedDict()

    def waiting_on(self, peer: Peer) -> OrderedDict[Peer, None]:
        return self.answered if peer.is_answered else self.silent


class Handshakes:
    """The half-open lines of a hub."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        # The sources that have lines in turn; the first one is next.
        self._turns: OrderedDict[str, None] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def has_turns(self) -> bool:
        """Whether somebody waits for a turn."""
        return bool(self._turns)

    def add(self, peer: Peer) -> None:
        """Begin a line."""
        source = self._sources.setdefault(source_of(peer), _Source())
        source.silent[peer] = None
        source.count += 1
        self._count += 1

    def line_up(self, peer: Peer) -> None:
        """Give a turn, later, to a line that has sent something."""
        name = source_of(peer)
        source = self._sources[name]
        source.waiting_on(peer).pop(peer, None)
        source.in_turn[peer] = None
        peer.is_in_turn = True
        self._turns.setdefault(name)

    def next(self) -> Peer | None:
        """Return whose turn it is. Until it rests, nobody drops it."""
        if not self._turns:
            return None
        name, _ = self._turns.popitem(last=False)
        source = self._sources[name]
        peer, _ = source.in_turn.popitem(last=False)
        if source.in_turn:
            self._turns[name] = None
        return peer

    def rest(self, peer: Peer) -> None:
        """Go on waiting for a line that has had its turn."""
        peer.is_in_turn = False
        self._sources[source_of(peer)].waiting_on(peer)[peer] = None

    def remove(self, peer: Peer) -> None:
        """Forget a line: its handshake is done, or it is closed."""
        name = source_of(peer)
        source = self._sources[name]
        for peers in (source.silent, source.answered, source.in_turn):
            peers.pop(peer, None)
        peer.is_in_turn = False
        source.count -= 1
        self._count -= 1
        if not source.in_turn:
            self._turns.pop(name, None)
        if not source.count:
            del self._sources[name]

    def whom_to_drop(self) -> Peer | None:
        """Return the line to drop for another one; None if keyd keeps all of them waiting."""
        droppable = [
            source for source in self._sources.values() if source.silent or source.answered
        ]
        if not droppable:
            return None
        source = max(droppable, key=lambda source: source.count)
        return next(iter(source.silent or source.answered))


def source_of(peer: Peer) -> str:
    """Return what is one source: an IPv4 address, or a whole IPv6 network."""
    source = peer.session.source
    if ":" not in source:
        return source
    address = ipaddress.IPv6Address(source.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:_IPV6_NETWORK_BYTES].hex()
