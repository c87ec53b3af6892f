"""What bounds a peer: MAX_MESSAGE of input, MAX_OUTPUT of output, a share of each tick, and deadlines.

`Limits` is what the operator may tune; the rest is as it is for the reasons given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# One connection's share of a tick. A pipelining client is served 64 at a time, and everybody else between.
MAX_ASKS_PER_CONNECTION: Final = 64

# A tick's work: at some 10 µs a request, 1024 of them keep the tick near 10 ms, and with it everybody's wait.
MAX_ASKS_PER_TICK: Final = 1024

# The part of it that goes to what has just arrived; the rest is kept for those with a backlog.
MAX_NEW_ASKS_PER_TICK: Final = 768

# Readiness taken from epoll at once; what is left over is reported again.
MAX_EVENTS: Final = 1024

# Connections accepted in one tick, so that a storm of them does not stop answering.
MAX_ACCEPTS_PER_TICK: Final = 64

# As long as a line is half open, it is cheap to make and dear to keep: fewer at once, each in place of another.
MAX_TLS_ACCEPTS_PER_TICK: Final = 16

# Handshake steps that are taken together outside the tick, some 1.5 ms each.
MAX_STEPS_AT_ONCE: Final = 4

# Open lines whose certificates are judged again together, some 1 ms each.
MAX_JUDGED_AT_ONCE: Final = 8

# Open lines for enrolment. No certificate is needed for one, so they must not fill keyd; a machine is done in a second.
MAX_ENROLLING: Final = 32

# Read at once from an encrypted line. With a record that was not whole before, it is still at most MAX_CHUNK.
MAX_CIPHERTEXT: Final = 47 * 1024

# How long the key of tickets is used: whoever has it, and has seen a ticket used, could resume in its owner's place.
TICKET_KEY_SECONDS: Final = 3600.0

# Connections of officers beyond the limit, so that no crowd at the counter keeps them out.
SPARE_FOR_OFFICERS: Final = 16

# Ticks in a row without giving trio's other tasks (metrics, signals) a turn.
MAX_TICKS_IN_A_ROW: Final = 4

# Unsent answers of one connection. A connection with unsent answers is not read, so honest peers stay far
# below: a whole share of the largest batches makes half of it.
MAX_OUTPUT: Final = 2 * 1024 * 1024

# Of these, how many may be waiting for the disk before the connection is read no further: then another share of
# the largest batches still fits.
MAX_HELD: Final = MAX_OUTPUT // 2

# Slow work (outside the tick) that one connection, and all together, may have under way.
MAX_SLOW_PER_CONNECTION: Final = 8
MAX_SLOW: Final = 64

# Requests that wait for PSAMs are counted apart, so that a crowd of them keeps no officer out. One costs a generator of
# memory, and the pool bounds how long it waits: as many as a connection's share of a tick, and as a tick.
MAX_LATE_PER_CONNECTION: Final = MAX_ASKS_PER_CONNECTION
MAX_LATE: Final = MAX_ASKS_PER_TICK

# After file descriptors ran out, how long not to accept: long enough not to spin, short enough not to notice.
ACCEPT_PAUSE_SECONDS: Final = 0.1

# How long a closed line is listened to, so that the last answer is not lost to a reset.
LINGER_SECONDS: Final = 2.0

# Entries of closed connections in the heap of looks, beside as many as there are open ones.
MAX_DEAD_LOOKS: Final = 64

# How often deadlines are looked at. Deadlines are seconds, so half of one is exact enough.
SWEEP_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator may tune. Seconds and counts."""

    connections: int = 1024
    first_message_seconds: float = 10.0
    idle_seconds: float = 300.0
    write_seconds: float = 10.0
    drain_seconds: float = 10.0
    handshakes: int = 256
    handshake_seconds: float = 5.0
