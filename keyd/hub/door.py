"""The door: listening sockets, accepting, and what happens when file descriptors run out.

Who may come in is for `connections.py` to say; the door only opens, and waits for a moment when it cannot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyd.errors import Overloaded
from keyd.hub.limits import (
    ACCEPT_PAUSE_SECONDS,
    MAX_ACCEPTS_PER_TICK,
    MAX_TLS_ACCEPTS_PER_TICK,
)
from keyd.protocol.connection import refusal_bytes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from keyd.errors import Refusal
    from keyd.telemetry import Events, Meter
    from keyd.tls import TlsServerContext


@dataclass(eq=False, slots=True)
class Entrance:
    """A listening socket, and what comes in by it."""

    listener: socket.socket
    # Who comes in here may administer.
    is_administration: bool = False
    # Who comes in here can only ask for a certificate.
    is_enrolment: bool = False
    # Lines are encrypted, and made by this. A reload puts another one here.
    context: TlsServerContext | None = None


class Door:
    """The listeners of one hub, on its epoll."""

    def __init__(
        self,
        epoll: select.epoll,
        meter: Meter,
        events: Events,
        clock: Callable[[], float],
        let_in: Callable[[socket.socket, Entrance], None],
        has_room: Callable[[Entrance], bool],
    ) -> None:
        self._epoll = epoll
        self._meter = meter
        self._events = events
        self._clock = clock
        self._let_in = let_in
        self._has_room = has_room
        # Kept so that, when file descriptors run out, there is one to accept and refuse with.
        self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._entrances: dict[int, Entrance] = {}
        # Those at which newcomers wait for room.
        self._full: set[int] = set()
        self._accept_again_at: float | None = None

    @property
    def entrances(self) -> list[Entrance]:
        """What it listens at."""
        return list(self._entrances.values())

    def listen(self, entrances: Sequence[Entrance]) -> None:
        """Take over listening sockets, TCP or Unix."""
        for entrance in entrances:
            fd = entrance.listener.fileno()
            entrance.listener.setblocking(False)
            self._entrances[fd] = entrance
            self._epoll.register(fd, select.EPOLLIN)

    def shut(self) -> None:
        """Let nobody in any more."""
        for fd, entrance in self._entrances.items():
            self._epoll.unregister(fd)
            entrance.listener.close()
        self._entrances.clear()
        self._full.clear()
        self._accept_again_at = None

    def close(self) -> None:
        """Let go of everything; the epoll is closed by its owner."""
        for entrance in self._entrances.values():
            entrance.listener.close()
        os.close(self._reserve_fd)

    def knock(self, fd: int) -> None:
        """Accept who is waiting at this listener, if the descriptor is one."""
        entrance = self._entrances.get(fd)
        if entrance is not None:
            self._accept(entrance)

    def resume(self, now: float) -> None:
        """Accept again, if the pause is over."""
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._accept_again_at = None
            for fd in self._entrances:
                self._epoll.modify(fd, select.EPOLLIN)

    def room(self) -> None:
        """Let those in who waited for room."""
        full, self._full = self._full, set()
        for fd in full:
            self._epoll.modify(fd, select.EPOLLIN)

    def _accept(self, entrance: Entrance) -> None:
        listener = entrance.listener
        is_plain = entrance.context is None
        for _ in range(MAX_ACCEPTS_PER_TICK if is_plain else MAX_TLS_ACCEPTS_PER_TICK):
            if not self._has_room(entrance):
                # They wait where the kernel keeps them, and are not asked for again and again.
                self._full.add(listener.fileno())
                self._epoll.modify(listener.fileno(), 0)
                return
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._meter.accept_errors.inc()
                    self._refuse_without_descriptor(entrance)
                    self._pause_accepting(error)
                    return
                # The peer gave up between the handshake and accept (ECONNABORTED and its kin).
                continue
            self._let_in(sock, entrance)

    def _refuse_without_descriptor(self, entrance: Entrance) -> None:
        # With the reserve given back, one waiting peer can be told instead of left hanging.
        os.close(self._reserve_fd)
        try:
            sock, _address = entrance.listener.accept()
            sock.setblocking(False)
            if entrance.context is None:
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
        for fd in self._entrances:
            self._epoll.modify(fd, 0)
        self._accept_again_at = self._clock() + ACCEPT_PAUSE_SECONDS


def tell(sock: socket.socket, refusal: Refusal) -> None:
    """Say one thing to somebody who is not let in."""
    with contextlib.suppress(OSError):  # it is a courtesy
        sock.send(refusal_bytes(None, refusal))
