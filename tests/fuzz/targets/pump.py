"""The short cut in C: what it answers, and what Python answers to what it hands up, is what Python alone answers.

Under sanitizers, the same C is fuzzed by `tests/pump/pump_fuzz.c`; here it stands on a real epoll, beside real
services.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from keyd.errors import RemoteProtocolError
from keyd.protocol.commands import TABLE, Cost
from keyd.protocol.connection import ServerConnection
from keyd.pump import METHODS
from tests.fuzz.mutators import mutate_bytes, mutate_message
from tests.fuzz.seeds import requests
from tests.fuzz.target import Target
from tests.pump.conftest import (
    Stand,
    cold,
    hot,
    require_one_semantics,
)

if TYPE_CHECKING:
    from random import Random


@functools.cache
def _stand() -> Stand:
    stand = Stand()
    stand.teach(*(hot(method) for method in METHODS))
    return stand


def one_input(data: bytes) -> None:
    if data and not _leaves_traces(data):
        require_one_semantics(_stand(), data)


def _leaves_traces(data: bytes) -> bool:
    """Whether it has what leaves the tick, or changes whose connection it is: that cannot be said twice."""
    connection = ServerConnection()
    try:
        connection.receive_data_untrusted(data)
        asks = connection.next_asks_untrusted(len(data))
    except RemoteProtocolError:
        return False
    rows = [TABLE[ask.method] for ask in asks if ask.method in TABLE]
    return any(row.cost is Cost.SLOW or row.family == "terminal" for row in rows)


def mutate(data: bytes, random: Random) -> bytes:
    change = mutate_bytes if random.random() < 0.4 else mutate_message
    return change(data, random)


def seeds() -> list[bytes]:
    warm = [hot(method) for method in METHODS]
    return [*warm, b"".join(warm), warm[0] + cold() + warm[1], *requests()[:10]]


TARGET = Target(one_input, seeds, mutate, max_bytes=16 * 1024)
