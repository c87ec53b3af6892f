"""Who is at the other end of a connection, and how a terminal proves to be one of the registry's. Middle floor.

    session.py         what keyd knows of one connection
    authentication.py  how a terminal and keyd prove themselves, who may stay, and until when
    known.py           a terminal of the registry, in the form that decides
    signatures.py      the judging of SM2 signatures, for a worker thread
    lockouts.py        how long nobody is listened to who has given wrong proofs
    notes.py           what the journal is told of those who were refused

Everything else asks a `Session` who it is and nothing more.
"""

from keyd.terminals.authentication import (
    CHALLENGE_SECONDS,
    MAX_FAILURES,
    SESSION_SECONDS,
    Terminals,
)
from keyd.terminals.known import KnownTerminal, Moment, Proven
from keyd.terminals.lockouts import Lockouts
from keyd.terminals.session import Line, Session
from keyd.terminals.signatures import CLOCK_SECONDS, Presented

__all__ = [
    "CHALLENGE_SECONDS",
    "CLOCK_SECONDS",
    "MAX_FAILURES",
    "SESSION_SECONDS",
    "KnownTerminal",
    "Line",
    "Lockouts",
    "Moment",
    "Presented",
    "Proven",
    "Session",
    "Terminals",
]
