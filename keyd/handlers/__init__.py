"""One short function per command, by family: wire types in, domain calls, wire types out.

Who may ask, limits, journal and measuring are not here: `keyd.dispatch` does them once for all.
"""

from keyd.handlers import (
    card,
    custody,
    daemon,
    issued,
    library,
    medical,
    psam,
    terminal,
    terminals,
)
from keyd.handlers.registry import HANDLERS
from keyd.handlers.services import Services

__all__ = [
    "HANDLERS",
    "Services",
    "card",
    "custody",
    "daemon",
    "issued",
    "library",
    "medical",
    "psam",
    "terminal",
    "terminals",
]
