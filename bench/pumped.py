"""What a policy adds to a request that the pump answers: two pumps answer the same requests, one under a policy.

It compares roles with each route and takes from an allowance; and the watch finds each card among those that were seen,
and notes it.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from bench.errors import BenchError
from bench.workload import FIRST_MSGID
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import ASK, encode
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalCryptogram
from keyd.pump import METHODS
from keyd.pump._pump import Pump, SeenCards

if TYPE_CHECKING:
    from types import TracebackType

# Requests that are read in one tick, each for another card, and so many cards.
AT_ONCE: Final = 64
CARDS: Final = 4096

_METHOD: Final = BY_REQUEST[InternalCryptogram].method
_CITY: Final = Region("510100")
_REGION: Final = 5101
_ROLES: Final = 1
# As shipped.
_WINDOW_SECONDS: Final = 600


class Pumped:
    """One pump and a line to it."""

    def __init__(self, *, is_governed: bool) -> None:
        profile = newest(load_profiles())
        self._ring = KeyRing(synthetic(profile.key_places((CardAlgorithm.SM4,))))
        self._is_governed = is_governed
        self._opened = ExitStack()
        requests = [_request(number) for number in range(CARDS)]
        self._ticks = [
            b"".join(requests[start : start + AT_ONCE]) for start in range(0, CARDS, AT_ONCE)
        ]

    def __enter__(self) -> Self:
        self._epoll = self._opened.enter_context(select.epoll())
        self._theirs, ours = socket.socketpair()
        for sock in (self._theirs, ours):
            self._opened.enter_context(sock)
            sock.setblocking(False)
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        self._pump = Pump(self._epoll.fileno())
        roles = 0
        if self._is_governed:
            roles = _ROLES
            self._pump.watch(SeenCards(bytes(8)), _WINDOW_SECONDS)
            self._pump.admit(ours.fileno(), roles=roles, region=_REGION)
        else:
            self._pump.admit(ours.fileno())
        request = _ask(0)
        use = purpose(Use.INTERNAL)
        key = CardKeyRef(request.address, CardAlgorithm.SM4, _CITY, bytes(8), use)
        # The ring knows a city's key by heart once it was used.
        self._ring.compute([CryptogramTask(key, bytes(8), bytes(8))])
        city = self._ring.maybe_city(request.address, CardAlgorithm.SM4, _CITY, use)
        if city is None:
            raise BenchError("the ring has no key of that city")
        self._pump.learn(
            METHODS.index(_METHOD),
            request.card.generation,
            request.address,
            CardAlgorithm.SM4,
            bytes.fromhex(_CITY),
            city,
            0,
            roles=roles,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def answer_all(self) -> float:
        """Have every card's request answered once; return the seconds that its ticks took."""
        spent = 0.0
        for requests in self._ticks:
            self._theirs.sendall(requests)
            started = time.perf_counter()
            rests, answered = self._pump.tick()
            spent += time.perf_counter() - started
            if rests or sum(answered) != AT_ONCE:
                raise BenchError("the pump left something to Python")
            self._theirs.recv(1 << 20)
        return spent


def _ask(number: int) -> InternalCryptogram:
    serial = number.to_bytes(4, "big")
    city = bytes.fromhex(_CITY)
    card = CardIdentity(
        city + bytes.fromhex("D156000005") + serial + b"\xff\xff\xff\xff",
        b"\x00\x00SIM\x00\x00" + city[:2] + serial,
    )
    return InternalCryptogram(card, session_factor=bytes(8), challenge=bytes(8))


def _request(number: int) -> bytes:
    return encode((ASK, FIRST_MSGID + number, _METHOD, _ask(number)))
