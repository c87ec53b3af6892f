"""The three things systemd and a daemon say to each other: sockets, readiness, and signs of life.

The protocols are sd_listen_fds(3) and sd_notify(3); they are a few bytes each.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

_FIRST_FD: Final = 3


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process, if it did.

    Raises:
        ValueError, OSError: what was handed over is no listening stream socket.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    # Not for children: the descriptors are ours alone.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    sockets = []
    for fd in range(_FIRST_FD, _FIRST_FD + count):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        is_stream = sock.type == socket.SOCK_STREAM
        if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"file descriptor {fd} is no listening stream socket")
        sockets.append(sock)
    return sockets


def notify(*states: str) -> None:
    """Tell systemd, e.g. "READY=1". Without systemd this does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    # A supervisor that is gone, or too busy to read, must not stop keyd; it misses the sign of life by itself.
    with socket.socket(socket.AF_UNIX, kind) as sock, contextlib.suppress(OSError):
        sock.sendto("\n".join(states).encode(), address)


def watchdog_seconds() -> float | None:
    """Return within how many seconds systemd wants a sign of life, if it does."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 1_000_000 if microseconds else None
