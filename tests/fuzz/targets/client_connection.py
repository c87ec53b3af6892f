"""The client's side of a connection: whatever calls itself keyd, its bytes are answers or `RemoteProtocolError`.

The first byte says into which pieces the others are cut.
"""

from __future__ import annotations

from random import Random

from keyd.errors import Refusal, RemoteProtocolError
from keyd.protocol.connection import MAX_ANSWER, MAX_CHUNK, Answer, ClientConnection
from tests.fuzz.seeds import answers
from tests.fuzz.target import Target
from tests.fuzz.targets.server_connection import DEEP, MAX_COPIES, REPEATED, in_words, mutate


def one_input(data: bytes) -> None:
    if not data:
        return
    cut, stream = data[0], data[1:]
    if cut >= REPEATED and stream:
        stream *= min(2 * MAX_ANSWER // len(stream), MAX_COPIES)
    whole = heard(stream, [len(stream) or 1])
    random = Random(cut)
    sizes = (1000, 20_000, MAX_CHUNK) if cut >= REPEATED else (1, 2, 3, 7, 64, 1000)
    assert heard(stream, [random.choice(sizes) for _ in range(50)]) == whole
    if len(stream) < 200:
        assert heard(stream, [1]) == whole


def heard(stream: bytes, pieces: list[int]) -> tuple[list[str], bool]:
    """Return all answers in words, and whether the line broke."""
    connection = ClientConnection()
    said: list[str] = []
    at = turn = 0
    try:
        while at < len(stream):
            size = pieces[min(turn, len(pieces) - 1)]
            said += map(_words, connection.receive_data_untrusted(stream[at : at + size]))
            at += size
            turn += 1
            reader = connection._reader
            assert connection.is_broken or reader._fed - reader._start <= MAX_ANSWER
        if connection.is_broken:
            connection.receive_data_untrusted(b"")
            raise AssertionError("a broken line says nothing of it")
    except RemoteProtocolError as error:
        assert type(error) is RemoteProtocolError
        assert connection.is_broken
        return said, True
    return said, False


def _words(answer: Answer) -> str:
    refusal = answer.refusal
    assert refusal is None or isinstance(refusal, Refusal)
    return in_words((answer.msgid, type(refusal), str(refusal), answer.result))


def seeds() -> list[bytes]:
    alone = [bytes([number % 128]) + answer for number, answer in enumerate(answers())]
    return [
        *alone,
        b"\x05" + b"".join(answers()[:20]),
        bytes([REPEATED]) + answers()[0],
        b"\x01\x94\x01\x01\xc0" + DEEP,
    ]


TARGET = Target(one_input, seeds, mutate)
