"""The hub: one trio task that owns every client connection, and its tick.

hub.py        the tick: reads, has dispatch decide, writes
door.py       listeners: accepting, and what to do when file descriptors run out
handshakes.py half-open lines: whose turn it is, and who makes room
lines.py      encrypted lines: plaintext from ciphertext, and whether a line may be
deadlines.py  who has kept keyd waiting for too long
held.py       answers that wait until the disk has their records
peer.py       one connection
limits.py     what bounds a peer, and why these numbers
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
