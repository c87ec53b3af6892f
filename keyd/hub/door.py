"""The door: listening sockets, accepting, and what happens when file descriptors run out.

Who comes in is the hub's; the door only opens, and waits for a moment when it cannot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import TYPE_CHECKING

from keyd.errors import Overloaded
from keyd.hub.limits import ACCEPT_PAUSE_SECONDS, MAX_ACCEPTS_PER_TICK
from keyd.protocol.connection import refusal_bytes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from keyd.errors import Refusal
    from keyd.telemetry import Events, Meter


class Door:
    """The listeners of one hub, on its epoll."""

    def __init__(
        self,
        epoll: select.epoll,
        meter: Meter,
        events: Events,
        clock: Callable[[], float],
        let_in: Callable[[socket.socket, bool], None],
    ) -> None:
        self._epoll = epoll
        self._meter = meter
        self._events = events
        self._clock = clock
        self._let_in = let_in
        # Kept so that, when file descriptors run out, there is one to accept and refuse with.
        self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._listeners: dict[int, socket.socket] = {}
        # Those of them that are the administration's.
        self._administration: set[int] = set()
        self._accept_again_at: float | None = None

    def listen(
        self, listeners: Sequence[socket.socket], administration: Sequence[socket.socket] = ()
    ) -> None:
        """Take over listening sockets, TCP or Unix; who comes by the administration's may administer."""
        self._administration.update(listener.fileno() for listener in administration)
        for listener in (*listeners, *administration):
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    def shut(self) -> None:
        """Let nobody in any more."""
        for fd, listener in self._listeners.items():
            self._epoll.unregister(fd)
            listener.close()
        self._listeners.clear()
        self._accept_again_at = None

    def close(self) -> None:
        """Let go of everything; the epoll is closed by its owner."""
        for listener in self._listeners.values():
            listener.close()
        os.close(self._reserve_fd)

    def knock(self, fd: int) -> None:
        """Accept who is waiting at this listener, if the descriptor is one."""
        listener = self._listeners.get(fd)
        if listener is not None:
            self._accept(listener)

    def resume(self, now: float) -> None:
        """Accept again, if the pause is over."""
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._accept_again_at = None
            for fd in self._listeners:
                self._epoll.modify(fd, select.EPOLLIN)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS_PER_TICK):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._meter.accept_errors.inc()
                    self._refuse_without_descriptor(listener)
                    self._pause_accepting(error)
                    return
                # The peer gave up between the handshake and accept (ECONNABORTED and its kin).
                continue
            self._let_in(sock, listener.fileno() in self._administration)

    def _refuse_without_descriptor(self, listener: socket.socket) -> None:
        # With the reserve given back, one waiting peer can be told instead of left hanging.
        os.close(self._reserve_fd)
        try:
            sock, _address = listener.accept()
            sock.setblocking(False)
            tell(sock, Overloaded("keyd has no file descriptor left"))
            sock.close()
        except OSError:
            pass
        try:
            self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._reserve_fd = os.dup(self._epoll.fileno())

    def _pause_accepting(self, error: OSError) -> None:
        self._events.warning("accept_paused", reason=errno.errorcode.get(error.errno or 0, "?"))
        for fd in self._listeners:
            self._epoll.modify(fd, 0)
        self._accept_again_at = self._clock() + ACCEPT_PAUSE_SECONDS


def tell(sock: socket.socket, refusal: Refusal) -> None:
    """Say one thing to somebody who is not let in."""
    with contextlib.suppress(OSError):  # it is a courtesy
        sock.send(refusal_bytes(None, refusal))
