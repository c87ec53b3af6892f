"""The operator's command line. It is never imported by the daemon.

One module per command; `common` holds what they share: how to reach a keyd, and how to print.
"""

from keyd.cli.main import main

__all__ = ["main"]
