"""The whole pipeline with its real handlers and synthetic keys: no params of any method are a bug, or tell a secret.

The first byte says whose connection it is; the rest is what the peer sends, in one tick. Every ask gets one answer
that a client can read, never INTERNAL; nothing is logged as a bug; and neither answers nor log have a key that keyd
holds, or a PIN that it was sent.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec
import trio
from structlog.testing import capture_logs

from keyd.crypto.algorithms import KEY_BYTES
from keyd.dispatch import Slow
from keyd.errors import RemoteProtocolError, Status
from keyd.keys.synthetic import synthetic_root, synthetic_terminal_key
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import Ask, ClientConnection, ServerConnection
from keyd.terminals import Session
from tests.fuzz.mutators import mutate_bytes, mutate_message
from tests.fuzz.seeds import requests
from tests.fuzz.target import Target
from tests.fuzz.targets.server_connection import DEEP, in_words
from tests.test_dispatch import (
    BAS,
    CARD,
    CHALLENGE,
    CODE,
    DEBIT,
    FACTOR,
    LOAD,
    NUMBER,
    PURCHASE,
    STEP_1,
    Keyd,
)

if TYPE_CHECKING:
    from random import Random

# Of one input; a tick takes as many from one connection.
MAX_ASKS: Final = 64

# Nobody, a terminal, the operator, the administration, a machine that enrols.
KINDS: Final = 5

# Longer than any that stands somewhere by chance.
PIN: Final = "8642097531864209"

# Where a PIN may stand in a request. Elsewhere it is no PIN, and may be shown as whatever it stands for.
OF_PINS: Final = frozenset({"card.pin_reload", "library.reload_pin_2"})


@functools.cache
def _keyd() -> Keyd:
    return Keyd(sample_every=1)


@functools.cache
def _secrets() -> tuple[bytes, ...]:
    """What may never be said: all roots and the terminal's key, as bytes and in hexadecimal digits."""
    keys = [synthetic_terminal_key(CODE)]
    for header in _keyd().ring.headers:
        if KEY_BYTES[header.algorithm] >= 16:
            keys += [synthetic_root(address, header.algorithm) for address in header.addresses]
    return tuple(dict.fromkeys(keys))


def one_input(data: bytes) -> None:
    if not data:
        return
    keyd = _keyd()
    asks = _asks(data[1:])
    with capture_logs() as log:
        session = _session(keyd, data[0] % KINDS)
        answers = keyd.tick(*((session, ask) for ask in asks))
        answered = [_finished(keyd, answer) for answer in answers]
    assert len(answered) == len(asks)
    for ask, octets in zip(asks, answered, strict=True):
        _require_answer(ask, octets)
    said = b"".join(answered) + repr(log).encode()
    for secret in _secrets():
        assert secret not in said
        assert secret.hex().encode() not in said.lower()
    if all(ask.method in OF_PINS for ask in asks if PIN in in_words(ask)):
        assert PIN.encode() not in said
        assert bytes.fromhex(PIN) not in said
    for line in log:
        assert line["log_level"] != "error", line
        assert "exc_info" not in line, line


def _session(keyd: Keyd, kind: int) -> Session:
    if kind == 1:
        return keyd.terminal()
    if kind == 4:
        return Session(1, is_enrolment=True)
    return keyd.session(is_operator=kind == 2, is_administration=kind == 3)


def _asks(stream: bytes) -> list[Ask]:
    connection = ServerConnection()
    try:
        connection.receive_data_untrusted(stream)
        return connection.next_asks_untrusted(MAX_ASKS)
    except RemoteProtocolError:
        return []


def _finished(keyd: Keyd, answer: bytes | Slow) -> bytes:
    return trio.run(keyd.slow, answer) if isinstance(answer, Slow) else answer


def _require_answer(ask: Ask, octets: bytes) -> None:
    (answer,) = ClientConnection().receive_data_untrusted(octets)
    assert answer.msgid == ask.msgid
    if answer.refusal is not None:
        assert answer.refusal.status is not Status.INTERNAL, ask
        return
    row = TABLE.get(ask.method)
    if row is not None:
        msgspec.convert(answer.result, row.response, builtin_types=(bytes,))
        return
    for error, _result in answer.result:
        assert error is None or error[0] != Status.INTERNAL, ask


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    return data[:1] + mutate_message(data[1:], random)


# What is answered well on synthetic keys, as it stands.
GOOD: Final[dict[str, list[Any]]] = {
    "daemon.random": [16],
    "terminal.challenge": [CODE, bytes(16)],
    "card.internal_cryptogram": [CARD, FACTOR, CHALLENGE],
    "card.external_authenticate": [CARD, 0x004C, FACTOR, CHALLENGE],
    "card.mutual_cryptograms": [CARD, FACTOR, CHALLENGE, FACTOR, CHALLENGE],
    "card.secure_message": [CARD, 0x0173, FACTOR, b"\x04\xd6\0\0", b"data", False],
    "card.pin_unblock": [CARD, FACTOR],
    "card.pin_reload": [CARD, FACTOR, PIN],
    "medical.make_purchase": [CARD, PURCHASE],
    "library.read_card_bas": [BAS],
    "library.read_card": [CARD, STEP_1.format(address="004C")],
    "library.reload_pin_2": [CARD, f"03|0173|0102030405060708|8424000114|{PIN}|"],
    "library.do_debit_1": [CARD, DEBIT, NUMBER],
}

# These need a cryptogram or a MAC that they refuse; they are there to be changed.
REFUSED: Final[dict[str, list[Any]]] = {
    "terminal.authenticate": [bytes(32)],
    "card.internal_authenticate": [CARD, FACTOR, CHALLENGE, bytes(8)],
    "medical.make_load": [CARD, LOAD, bytes(4)],
}


def seeds() -> list[bytes]:
    asked = [
        msgpack.packb([0, number, method, params])
        for number, (method, params) in enumerate((GOOD | REFUSED).items())
    ]
    who = [bytes([kind]) for kind in range(KINDS)]
    everything = [
        *(who[1] + ask for ask in asked),
        *(who[number % KINDS] + ask for number, ask in enumerate(requests())),
        *(who[3] + ask for ask in requests()),
        who[1] + b"".join(asked),
        who[1] + b"\x94\x00\x01\xaddaemon.random" + DEEP,
    ]
    return [seed for seed in dict.fromkeys(everything) if len(seed) <= TARGET.max_bytes]


TARGET = Target(one_input, seeds, mutate, max_bytes=8192)
