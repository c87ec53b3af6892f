"""keyd's side of a connection: any bytes, in any pieces, are asks or exactly `RemoteProtocolError`.

The first byte says into which pieces the others are cut, and whether they are repeated until they are long.
"""

from __future__ import annotations

from random import Random
from typing import Final

from keyd.errors import RemoteProtocolError
from keyd.protocol.connection import MAX_CHUNK, MAX_MESSAGE, Ask, ServerConnection, encode
from tests.fuzz.mutators import mutate_bytes, mutate_message
from tests.fuzz.seeds import requests
from tests.fuzz.target import Target

# From this on, the stream is as long as two of the largest messages. Few, since they are slow.
REPEATED: Final = 0xF0

# Of a stream that is repeated: a hundred thousand tiny messages would take seconds and show nothing more.
MAX_COPIES: Final = 4000

# Nested more deeply than Python shows, and not so deeply that it is refused.
DEEP: Final = b"\x91" * 1010 + b"\x90"
TOO_DEEP: Final = "nested too deeply to be shown"

_ASKS_AT_ONCE: Final = 16


def one_input(data: bytes) -> None:
    if not data:
        return
    cut, stream = data[0], data[1:]
    if cut >= REPEATED and stream:
        stream *= min(2 * MAX_MESSAGE // len(stream), MAX_COPIES)
    whole = heard(stream, [MAX_CHUNK])
    random = Random(cut)
    pieces = [random.choice((1, 2, 3, 7, 64, 1000, 20_000)) for _ in range(50)]
    if cut >= REPEATED:
        pieces.append(MAX_CHUNK)
    assert heard(stream, pieces) == whole
    if len(stream) < 200:
        assert heard(stream, [1]) == whole


def heard(stream: bytes, pieces: list[int]) -> tuple[list[str], bool]:
    """Return all asks in words, and whether the line broke. Pieces are as long as said; the last length stays."""
    connection = ServerConnection()
    said: list[str] = []
    at = turn = 0
    try:
        while at < len(stream):
            size = pieces[min(turn, len(pieces) - 1)]
            connection.receive_data_untrusted(stream[at : at + size])
            at += size
            turn += 1
            while asks := connection.next_asks_untrusted(_ASKS_AT_ONCE):
                said += map(_words, asks)
            reader = connection._reader
            assert reader._fed - reader._start <= MAX_MESSAGE + MAX_CHUNK
            assert connection.is_broken or reader._fed - reader._start <= MAX_MESSAGE
    except RemoteProtocolError as error:
        _require_broken(connection, error)
        return said, True
    return said, False


def _require_broken(connection: ServerConnection, error: RemoteProtocolError) -> None:
    assert type(error) is RemoteProtocolError
    assert connection.is_broken
    # What broke stays broken, whatever comes.
    for data in (b"", b"\x94\x00\x01\xa1a\x90"):
        try:
            connection.receive_data_untrusted(data)
            asks = connection.next_asks_untrusted(1)
        except RemoteProtocolError:
            continue
        raise AssertionError(f"a broken line went on: {asks}")


def in_words(value: object) -> str:
    """Return what compares as the value does: NaN is itself, and what is too deep for Python to show is the same."""
    try:
        return repr(value)
    except RecursionError:
        return TOO_DEEP


def _words(ask: Ask) -> str:
    words = in_words(ask)
    if words == TOO_DEEP:
        return words
    assert ask.msgid is None or 0 <= ask.msgid < 1 << 32
    kind = [2] if ask.msgid is None else [0, ask.msgid]
    connection = ServerConnection()
    again = encode([*kind, ask.method, ask.params])
    # What was read in other words than ours may be longer in ours, but not beyond one message.
    if len(again) <= MAX_MESSAGE:
        connection.receive_data_untrusted(again)
        (same,) = connection.next_asks_untrusted(2)
        assert repr(same) == words
    return words


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    change = mutate_message if random.random() < 0.7 else mutate_bytes
    return data[:1] + change(data[1:], random)


def seeds() -> list[bytes]:
    alone = [bytes([number % 128]) + request for number, request in enumerate(requests())]
    together = b"\x05" + b"".join(requests()[:20])
    return [
        *alone,
        together,
        bytes([REPEATED]) + requests()[0],
        b"\x01\x93\x02\xa1a\x90",
        b"\x01\x94\x00\x01\xa1a" + DEEP,
    ]


TARGET = Target(one_input, seeds, mutate)
