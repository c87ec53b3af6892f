"""Who is at the other end of a connection, and how a terminal proves to be one of the registry's. Middle floor.

`session` is what keyd knows of one connection; `authentication` is how a terminal and keyd prove themselves.
Everything else asks a `Session` who it is and nothing more.
"""

from keyd.terminals.authentication import (
    CHALLENGE_SECONDS,
    MAX_FAILURES,
    Terminal,
    Terminals,
)
from keyd.terminals.session import Line, Session

__all__ = ["CHALLENGE_SECONDS", "MAX_FAILURES", "Line", "Session", "Terminal", "Terminals"]
