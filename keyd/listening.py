"""Where keyd listens: sockets that systemd hands over, or that it opens itself, and how many files that takes."""

from __future__ import annotations

import os
import resource
import socket
from typing import TYPE_CHECKING, Final

from keyd import systemd
from keyd.config import expand

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keyd.config import Listen

# File descriptors beside the client connections: listeners, officers, logs, journal, store, scrapers, threads.
SPARE_DESCRIPTORS: Final = 96

# Who may connect to a Unix socket, by its mode: its owner and group to keyd's, its owner alone to administer it.
GROUP_MAY: Final = 0o117
OWNER_MAY: Final = 0o177

_LISTEN_BACKLOG: Final = 1024


class CannotStart(Exception):  # noqa: N818 - says what happened
    """keyd cannot start; the sentence says why. Trying again may help."""


def allow_descriptors(connections: int) -> None:
    """Raise the soft limit of file descriptors to what so many connections need.

    Raises:
        CannotStart: the hard limit is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_DESCRIPTORS
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CannotStart(
            f"limits.connections = {connections} needs {needed} file descriptors, and the limit is "
            f"{hard}: raise LimitNOFILE= or lower limits.connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def inherited() -> list[socket.socket]:
    """Return the sockets that systemd handed over, if it did.

    Raises:
        CannotStart: they are not what keyd can serve.
    """
    try:
        return systemd.inherited_sockets()
    except (ValueError, OSError) as error:
        raise CannotStart(f"the sockets that were handed over cannot be used: {error}") from None


def listen(where: Listen) -> list[socket.socket]:
    """Listen where the configuration says.

    Raises:
        CannotStart: one of the addresses cannot be had.
    """
    listeners = [listen_tcp(address) for address in where.tcp]
    if where.unix:
        listeners.append(listen_unix(expand(where.unix)))
    return listeners


def listen_tcp(address: str) -> socket.socket:
    """Listen on HOST:PORT.

    Raises:
        CannotStart: it is no address, or cannot be had.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CannotStart(f"{address!r} is no address: write HOST:PORT, e.g. 127.0.0.1:7170")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=_LISTEN_BACKLOG)
    except OSError as error:
        raise CannotStart(f"cannot listen on {address}: {error.strerror or error}") from None


def listen_unix(path: Path, umask: int = GROUP_MAY) -> socket.socket:
    """Listen on a Unix socket, in place of one that nobody listens on any more.

    Raises:
        CannotStart: it cannot be had, or another process has it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # Whoever may connect is decided by the mode from the first moment on.
        before = os.umask(umask)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its keyd is gone
        else:
            raise CannotStart(f"another process is listening on {path}")


def require_local(listeners: Sequence[socket.socket]) -> None:
    """Refuse to serve a plain line beyond this machine.

    Raises:
        CannotStart: one of the addresses is not loopback.
    """
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            continue
        host = listener.getsockname()[0]
        if not (host.startswith("127.") or host == "::1"):
            raise CannotStart(
                f"{host} is not a loopback address, and the line is plain: PINs would be readable on "
                "it. Listen on loopback behind a TLS front, or set listen.allow_plain_tcp = true"
            )


def name_of(listener: socket.socket) -> str:
    """Return where a socket listens, as a client writes it."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
