"""The hub: one trio task that owns every client connection, and its tick.

hub.py         the tick: reads, has dispatch decide, has the answers written
pumping.py     the pump's part of a tick
admission.py   which connections the pump reads, as whom, and for how many answers
slow_work.py   requests that have left the tick, and their answers' way back
connections.py who comes in, what is said to them and when it leaves, and how they end
door.py        listeners: accepting, and what to do when file descriptors run out
handshakes.py  half-open lines: whose turn it is, and who makes room
lines.py       encrypted lines: plaintext from ciphertext, and whether a line may be
line_work.py   what encrypted lines cost, done beside the tick
deadlines.py   who has kept keyd waiting for too long
sweeper.py     what is done about it, and whatever else time brings
held.py        answers that wait until the disk has their records
peer.py        one connection
limits.py      what bounds a peer, and why these numbers
"""

from keyd.hub.door import Entrance
from keyd.hub.hub import Hub
from keyd.hub.limits import (
    LINGER_SECONDS,
    MAX_ASKS_PER_CONNECTION,
    MAX_SLOW_PER_CONNECTION,
    Limits,
)

__all__ = [
    "LINGER_SECONDS",
    "MAX_ASKS_PER_CONNECTION",
    "MAX_SLOW_PER_CONNECTION",
    "Entrance",
    "Hub",
    "Limits",
]
