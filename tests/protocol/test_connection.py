"""Any message survives any chunking; no bytes raise anything but RemoteProtocolError, or cost more than a bound."""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keyd.errors import (
    REFUSALS,
    BadParameter,
    LocalProtocolError,
    NotAuthenticated,
    RemoteProtocolError,
)
from keyd.protocol.connection import (
    ANSWER,
    ASK,
    MAX_ANSWER,
    MAX_ANSWER_ARRAY,
    MAX_ARRAY,
    MAX_CHUNK,
    MAX_MESSAGE,
    MAX_METHOD,
    NOTIFICATION,
    Answer,
    Ask,
    ClientConnection,
    ServerConnection,
    answer_bytes,
    encode,
    refusal_bytes,
    refusal_on_wire,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What one connection may hold, whatever its peer sends: a message and a chunk, and what msgpack reserves for
# announced arrays. Three bytes reserve 4 KiB, and it nests 1,024 deep: 4 MiB for 3 KiB sent.
MAX_HELD: Final = 6 * 1024 * 1024

# --- conversations

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
asks = st.builds(
    Ask,
    st.none() | st.integers(0, 2**32 - 1),
    st.text(max_size=MAX_METHOD),
    st.lists(values, max_size=6),
)
refusals = st.builds(
    lambda refusal, detail: refusal(detail),
    st.sampled_from(list(REFUSALS.values())),
    st.text(min_size=1, max_size=20),
)
msgids = st.none() | st.integers(0, 2**32 - 1)


def wire(ask: Ask) -> bytes:
    """Encode a request as a client does; a notification has no number."""
    if ask.msgid is None:
        return encode((NOTIFICATION, ask.method, ask.params))
    return encode((ASK, ask.msgid, ask.method, ask.params))


def chunks(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Cut a stream at these places, and where a chunk would be larger than may be fed."""
    places = {cut % (len(data) + 1) for cut in cuts} | {0, len(data)}
    places |= set(range(0, len(data), MAX_CHUNK))
    ordered = sorted(places)
    for start, end in itertools.pairwise(ordered):
        yield data[start:end]


def hear(connection: ServerConnection, data: bytes, *cuts: int, limit: int = 64) -> list[Ask]:
    """Feed a stream chunk by chunk and return what was asked."""
    heard: list[Ask] = []
    for chunk in chunks(data, cuts):
        connection.receive_data_untrusted(chunk)
        while asked := connection.next_asks_untrusted(limit):
            heard += asked
    return heard


def require_broken(connection: ServerConnection) -> None:
    """Fail unless the connection refuses everything from now on, and with the one error."""
    assert connection.is_broken
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            connection.next_asks_untrusted(64)
        # Feeding it may be ignored or refused.
        with contextlib.suppress(RemoteProtocolError):
            connection.receive_data_untrusted(wire(Ask(1, "daemon.status", [])))
        with pytest.raises(RemoteProtocolError):
            connection.next_asks_untrusted(64)


@given(
    conversation=st.lists(asks, max_size=6),
    cuts=st.lists(st.integers(0, 2**16), max_size=30),
    limit=st.integers(1, 4),
)
def test_any_requests_survive_any_chunking(
    conversation: list[Ask], cuts: list[int], limit: int
) -> None:
    stream = b"".join(map(wire, conversation))
    connection = ServerConnection()
    heard = hear(connection, stream, *cuts, limit=limit)
    assert heard == conversation
    assert not connection.is_broken
    # And whatever parsed marshals back to the same bytes.
    assert b"".join(map(wire, heard)) == stream
    connection.receive_eof_untrusted()


@given(conversation=st.lists(asks, min_size=1, max_size=3))
def test_byte_by_byte_is_a_chunking_too(conversation: list[Ask]) -> None:
    stream = b"".join(map(wire, conversation))
    assert hear(ServerConnection(), stream, *range(len(stream))) == conversation


@given(conversation=st.lists(asks, max_size=8), limit=st.integers(1, 10))
def test_no_more_than_the_limit_are_returned_and_none_is_lost(
    conversation: list[Ask], limit: int
) -> None:
    connection = ServerConnection()
    stream = b"".join(map(wire, conversation))
    assume(len(stream) <= MAX_CHUNK)
    connection.receive_data_untrusted(stream)
    for start in range(0, len(conversation), limit):
        assert connection.next_asks_untrusted(limit) == conversation[start : start + limit]
    assert connection.next_asks_untrusted(limit) == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_may_be_fed_and_used_again(kind: Any) -> None:
    connection = ServerConnection()
    ask = Ask(7, "card.pin_reload", [[b"\1" * 16], b"factor", "123456"])
    buffer = bytearray(wire(ask))
    connection.receive_data_untrusted(kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert connection.next_asks_untrusted(1) == [ask]


# --- the end of the stream


@given(conversation=st.lists(asks, max_size=2), last=asks, cut=st.integers(0))
def test_an_end_within_a_message_is_noticed(conversation: list[Ask], last: Ask, cut: int) -> None:
    whole = wire(last)
    part = whole[: 1 + cut % (len(whole) - 1)]
    connection = ServerConnection()
    assert hear(connection, b"".join(map(wire, conversation)) + part) == conversation
    with pytest.raises(RemoteProtocolError, match="within a message"):
        connection.receive_eof_untrusted()


def test_an_end_before_anything_is_an_end() -> None:
    ServerConnection().receive_eof_untrusted()


# --- bytes that are no request

NESTED: Final = b"\x91" * 5000
SURROGATE: Final = b"\xed\xa0\x80"

# Each is a whole message or never becomes one; a peer that sends it is answered by the end of the connection.
NOT_REQUESTS: Final = {
    "nil": b"\xc0",
    "never used": b"\xc1",
    "a number": b"\x07",
    "a text": b"\xa1m",
    "bytes": b"\xc4\x01m",
    "a map": b"\x80",
    "nothing in an array": b"\x90",
    "an array in an array": b"\x91\x90",
    "too short": encode([ASK, 1, "m"]),
    "too long": encode([ASK, 1, "m", [], None]),
    "a notification with a number": encode([NOTIFICATION, 1, "m", []]),
    "an answer": encode([ANSWER, 1, None, None]),
    "an unknown type": encode([3, 1, "m", []]),
    "a type below zero": encode([-1, 1, "m", []]),
    "a huge type": encode([2**64 - 1, 1, "m", []]),
    "type nil": encode([None, 1, "m", []]),
    "type text": encode(["0", 1, "m", []]),
    "type false": encode([False, 1, "m", []]),
    "type 0.0": encode([0.0, 1, "m", []]),
    "type 2.0": encode([2.0, "m", []]),
    "type array": encode([[], 1, "m", []]),
    "msgid nil": encode([ASK, None, "m", []]),
    "msgid true": encode([ASK, True, "m", []]),
    "msgid 1.0": encode([ASK, 1.0, "m", []]),
    "msgid NaN": encode([ASK, math.nan, "m", []]),
    "msgid text": encode([ASK, "1", "m", []]),
    "msgid below zero": encode([ASK, -1, "m", []]),
    "msgid of 33 bits": encode([ASK, 2**32, "m", []]),
    "method nil": encode([ASK, 1, None, []]),
    "method bytes": encode([ASK, 1, b"m", []]),
    "method number": encode([ASK, 1, 5, []]),
    "method too long": encode([ASK, 1, "m" * (MAX_METHOD + 1), []]),
    "params nil": encode([ASK, 1, "m", None]),
    "params map": encode([ASK, 1, "m", {}]),
    "params text": encode([ASK, 1, "m", "[]"]),
    "params bytes": encode([ASK, 1, "m", b""]),
    "invalid UTF-8": b"\x94\x00\x01\xa1\xff\x90",
    "invalid UTF-8 in params": b"\x94\x00\x01\xa1m\x91\xa2\xc3\x28",
    "overlong UTF-8": b"\x94\x00\x01\xa2\xc0\xae\x90",
    "a surrogate": b"\x94\x00\x01\xa3" + SURROGATE + b"\x90",
    "map key nil": b"\x94\x00\x01\xa1m\x91\x81\xc0\x01",
    "map key array": b"\x94\x00\x01\xa1m\x91\x81\x90\x01",
    "map key map": b"\x94\x00\x01\xa1m\x91\x81\x80\x01",
    "map key number": b"\x94\x00\x01\xa1m\x91\x81\x01\x01",
    "ext 1": b"\x94\x00\x01\xa1m\x91\xd4\x05\x00",
    "ext 16": b"\x94\x00\x01\xa1m\x91\xd8\x05" + bytes(16),
    "timestamp 32": b"\x94\x00\x01\xa1m\x91\xd6\xff" + bytes(4),
    "timestamp 96": b"\x94\x00\x01\xa1m\x91\xc7\x0c\xff" + bytes(12),
    "timestamp of no bytes": b"\x94\x00\x01\xa1m\x91\xc7\x00\xff",
    "ext of 4 GiB": b"\x94\x00\x01\xa1m\x91\xc9\xff\xff\xff\xff\x05",
    "array of 4 G": b"\x94\x00\x01\xa1m\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\x94\x00\x01\xa1m\x91\xdf\xff\xff\xff\xff",
    "array just too long": b"\x94\x00\x01\xa1m\xdc" + struct.pack(">H", MAX_ARRAY + 1),
    "map just too long": b"\x94\x00\x01\xa1m\x91\xde" + struct.pack(">H", MAX_ARRAY + 1),
    "nested too deep": NESTED,
    "nested too deep in params": b"\x94\x00\x01\xa1m" + NESTED,
    "maps nested too deep": b"\x94\x00\x01\xa1m\x91" + b"\x81\xa1k" * 3000,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: keyd\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100C8010000C40303") + bytes(64),
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
}

not_requests = pytest.mark.parametrize("octets", NOT_REQUESTS.values(), ids=NOT_REQUESTS)


@not_requests
def test_what_is_no_request_breaks_the_connection_for_good(octets: bytes) -> None:
    connection = ServerConnection()
    with pytest.raises(RemoteProtocolError):
        hear(connection, octets)
    require_broken(connection)


@not_requests
def test_the_requests_before_it_are_heard_and_those_after_are_not(octets: bytes) -> None:
    good = [Ask(1, "daemon.status", []), Ask(2, "daemon.random", [8])]
    connection = ServerConnection()
    stream = b"".join(map(wire, good)) + octets + wire(Ask(3, "daemon.status", []))
    connection.receive_data_untrusted(stream)
    assert connection.next_asks_untrusted(64) == good
    require_broken(connection)


@not_requests
def test_the_error_does_not_quote_the_bytes(octets: bytes) -> None:
    connection = ServerConnection()
    canary = b"CANARY"
    connection.receive_data_untrusted(wire(Ask(1, "m", [canary])) + octets + canary)
    connection.next_asks_untrusted(1)
    with pytest.raises(RemoteProtocolError) as broken:
        connection.next_asks_untrusted(1)
    assert "CANARY" not in str(broken.value)
    assert broken.value.__cause__ is None


@settings(max_examples=500)
@given(octets=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=10))
def test_no_bytes_raise_anything_else(octets: bytes, cuts: list[int]) -> None:
    connection = ServerConnection()
    try:
        heard = hear(connection, octets, *cuts)
    except RemoteProtocolError:
        require_broken(connection)
    else:
        assert all(type(ask) is Ask for ask in heard)


@settings(max_examples=250)
@given(
    conversation=st.lists(asks, min_size=1, max_size=4),
    changes=st.lists(
        st.tuples(
            st.integers(0), st.integers(0, 255), st.sampled_from(["set", "insert", "delete"])
        ),
        min_size=1,
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=5),
)
def test_no_altered_request_raises_anything_else(
    conversation: list[Ask], changes: list[tuple[int, int, str]], cuts: list[int]
) -> None:
    stream = bytearray(b"".join(map(wire, conversation)))
    for place, octet, change in changes:
        at = place % (len(stream) or 1)
        end = at if change == "insert" else at + 1
        stream[at:end] = b"" if change == "delete" else bytes([octet])
    connection = ServerConnection()
    try:
        heard = hear(connection, bytes(stream), *cuts)
        connection.receive_eof_untrusted()
    except RemoteProtocolError:
        return
    for ask in heard:
        # What came through is a request in every respect.
        assert ask.msgid is None or (type(ask.msgid) is int and 0 <= ask.msgid < 2**32)
        assert type(ask.method) is str
        assert len(ask.method) <= MAX_METHOD
        assert type(ask.params) is list


@given(structure=values)
def test_no_other_structure_is_taken_for_a_request(structure: Any) -> None:
    connection = ServerConnection()
    message = encode(structure)
    try:
        heard = hear(connection, message)
    except RemoteProtocolError:
        return
    assert [wire(ask) for ask in heard] == [message]


def test_nan_and_the_infinities_are_values_like_others() -> None:
    numbers = [math.nan, math.inf, -math.inf]
    (ask,) = hear(ServerConnection(), wire(Ask(1, "m", numbers)))
    assert list(map(repr, ask.params)) == list(map(repr, numbers))


# --- limits, at the boundary


def ask_of(size: int, *, pieces: int = 1) -> bytes:
    """Return a request of exactly that many bytes, its params in so many pieces."""
    empty = len(wire(Ask(1, "m", [b""] * pieces)))
    filler = [bytes((size - empty) // pieces - 4)] * (pieces - 1)
    for last in range(size, 0, -1):
        message = wire(Ask(1, "m", [*filler, bytes(last)]))
        if len(message) == size:
            return message
    raise AssertionError("there is no such request")


piecewise = pytest.mark.parametrize("pieces", [1, 2, 40])
chunkings = pytest.mark.parametrize(
    "step", [1000, 4096, MAX_CHUNK - 1, MAX_CHUNK], ids=lambda step: f"by {step}"
)


@piecewise
@chunkings
def test_the_largest_message_passes_and_one_byte_more_does_not(pieces: int, step: int) -> None:
    cuts = range(0, MAX_MESSAGE, step)
    largest = ask_of(MAX_MESSAGE, pieces=pieces)
    assert len(hear(ServerConnection(), largest * 3, *cuts)) == 3
    larger = ask_of(MAX_MESSAGE + 1, pieces=pieces)
    connection = ServerConnection()
    small = wire(Ask(1, "m", []))
    with pytest.raises(RemoteProtocolError, match="larger than the limit"):
        hear(connection, small + larger, *cuts)
    require_broken(connection)


@piecewise
def test_a_message_that_grows_too_large_is_not_waited_for(pieces: int) -> None:
    unfinished = ask_of(2 * MAX_MESSAGE, pieces=pieces)[: MAX_MESSAGE + 1]
    connection = ServerConnection()
    hear(connection, unfinished[:MAX_MESSAGE])
    with pytest.raises(RemoteProtocolError, match="larger than the limit"):
        hear(connection, unfinished[MAX_MESSAGE:])


def test_a_message_of_many_small_parts_is_not_waited_for_either() -> None:
    # Every part is whole when it arrives, so that a reader that counts what it has not yet parsed sees nothing.
    part = b"\xc5" + struct.pack(">H", 1000) + bytes(1000)
    connection = ServerConnection()
    connection.receive_data_untrusted(b"\x94\x00\x01\xa1m\xdc\x01\x00")
    fed = 8
    while fed + len(part) <= MAX_MESSAGE:
        connection.receive_data_untrusted(part)
        fed += len(part)
        assert connection.next_asks_untrusted(1) == []
    connection.receive_data_untrusted(part)
    with pytest.raises(RemoteProtocolError, match="larger than the limit"):
        connection.next_asks_untrusted(1)


@pytest.mark.parametrize("mark", [b"\xc6", b"\xdb"], ids=["bytes", "text"])
@pytest.mark.parametrize("length", [MAX_MESSAGE, 2**31, 2**32 - 1])
def test_what_announces_too_much_is_read_to_the_limit_and_no_further(
    mark: bytes, length: int
) -> None:
    connection = ServerConnection()
    start = b"\x94\x00\x01\xa1m\x91" + mark + struct.pack(">I", length)
    assert hear(connection, start + bytes(MAX_MESSAGE - len(start))) == []
    with pytest.raises(RemoteProtocolError, match="larger than the limit"):
        hear(connection, b"\0")
    require_broken(connection)


def test_a_chunk_is_at_most_max_chunk() -> None:
    connection = ServerConnection()
    connection.receive_data_untrusted(bytes(MAX_CHUNK))
    with pytest.raises(LocalProtocolError):
        ServerConnection().receive_data_untrusted(bytes(MAX_CHUNK + 1))


def test_a_full_chunk_always_fits_beside_an_unfinished_message() -> None:
    message = ask_of(MAX_MESSAGE)
    connection = ServerConnection()
    connection.receive_data_untrusted(message[:-1])
    assert connection.next_asks_untrusted(64) == []
    small = wire(Ask(9, "m", []))
    rest = message[-1:] + small * ((MAX_CHUNK - 1) // len(small))
    heard = hear(connection, rest)
    assert len(heard) == 1 + (MAX_CHUNK - 1) // len(small)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(0, "m", []),
        Ask(2**32 - 1, "m", []),
        Ask(1, "", []),
        Ask(1, "m" * MAX_METHOD, []),
        Ask(1, "法" * MAX_METHOD, []),
        Ask(1, "m", [None] * MAX_ARRAY),
        Ask(1, "m", [{str(n): None for n in range(MAX_ARRAY)}]),
    ],
    ids=["msgid 0", "msgid max", "no method", "method", "method in Chinese", "array", "map"],
)
def test_what_is_at_a_limit_passes(ask: Ask) -> None:
    assert hear(ServerConnection(), wire(ask)) == [ask]


# --- memory


def flood(start: bytes, part: bytes, total: int) -> Iterator[bytes]:
    """Yield a stream that begins and then goes on in the same way."""
    yield start
    for _ in range(0, total, len(part)):
        yield part


FLOODS: Final = {
    "one text": flood(b"\x94\x00\x01\xdb\x00\x00\xff\xff", b"m" * 4096, 2**20),
    "parts of 64 KiB": flood(
        b"\x94\x00\x01\xa1m\xdc\x04\x00", b"\xc5\xff\x00" + bytes(0xFF00), 40 * 2**20
    ),
    "small texts": flood(b"\x94\x00\x01\xa1m\xdc\x04\x00", b"\xa1m" * 500, 2**20),
    "arrays in arrays": flood(b"\x94\x00\x01\xa1m", b"\xdc\x04\x00" * 200, 2**17),
    "wide arrays of arrays": flood(
        b"\x94\x00\x01\xa1m\xdc\x04\x00", b"\xdc\x04\x00" + b"\x90" * 1024, 2**21
    ),
    "maps in maps": flood(b"\x94\x00\x01\xa1m\x91", b"\xde\x04\x00\xa1k" * 200, 2**17),
    "wide maps": flood(
        b"\x94\x00\x01\xa1m\xdc\x04\x00",
        b"\xde\x01\x00" + b"".join(b"\xa2" + b"%02x" % n + b"\x80" for n in range(256)),
        2**21,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_no_flood_makes_a_connection_hold_much(name: str) -> None:
    connection = ServerConnection()
    tracemalloc.start()
    try:
        for chunk in FLOODS[name]:
            try:
                connection.receive_data_untrusted(chunk)
                connection.next_asks_untrusted(64)
            except RemoteProtocolError:
                break
            assert tracemalloc.get_traced_memory()[1] < MAX_HELD
        else:
            pytest.fail("the flood was taken to its end")
        assert tracemalloc.get_traced_memory()[1] < MAX_HELD
        # A broken connection lets go of what it held.
        require_broken(connection)
        assert tracemalloc.get_traced_memory()[0] < 1024 * 1024
    finally:
        tracemalloc.stop()


# --- the client's side


def listen(connection: ClientConnection, data: bytes, *cuts: int) -> list[Answer]:
    return [
        answer
        for chunk in chunks(data, cuts)
        for answer in connection.receive_data_untrusted(chunk)
    ]


answers = st.one_of(
    st.builds(Answer, msgids, st.none(), values), st.builds(Answer, msgids, refusals, st.none())
)


def answer_wire(answer: Answer) -> bytes:
    if answer.refusal is None:
        return answer_bytes(answer.msgid, answer.result)
    return refusal_bytes(answer.msgid, answer.refusal)


@given(
    conversation=st.lists(answers, max_size=6), cuts=st.lists(st.integers(0, 2**16), max_size=30)
)
def test_any_answers_survive_any_chunking(conversation: list[Answer], cuts: list[int]) -> None:
    stream = b"".join(map(answer_wire, conversation))
    heard = listen(ClientConnection(), stream, *cuts)
    assert [a._replace(refusal=None) for a in heard] == [
        a._replace(refusal=None) for a in conversation
    ]
    for was, now in zip(conversation, heard, strict=True):
        assert type(was.refusal) is type(now.refusal)
        assert str(was.refusal) == str(now.refusal)
    assert b"".join(map(answer_wire, heard)) == stream


@given(
    method=st.text(max_size=MAX_METHOD),
    params=st.lists(values, max_size=6),
    times=st.integers(1, 4),
)
def test_what_a_client_asks_a_server_hears(method: str, params: list[Any], times: int) -> None:
    client, server = ClientConnection(), ServerConnection()
    sent = [client.ask(method, params) for _ in range(times)]
    assert [msgid for msgid, _ in sent] == list(range(times))
    stream = b"".join(data for _, data in sent)
    assert hear(server, stream) == [Ask(msgid, method, params) for msgid, _ in sent]


def test_msgids_begin_again_after_32_bits() -> None:
    client = ClientConnection()
    client._next_msgid = 2**32 - 1
    assert client.ask("m", [])[0] == 2**32 - 1
    assert client.ask("m", [])[0] == 0


def test_a_client_does_not_send_what_a_server_would_refuse() -> None:
    def params(size: int) -> list[bytes]:
        for filler in range(size, 0, -1):
            if len(encode((ASK, 0, "m", [bytes(filler)]))) == size:
                return [bytes(filler)]
        raise AssertionError

    msgid, data = ClientConnection().ask("m", params(MAX_MESSAGE))
    assert [ask.msgid for ask in hear(ServerConnection(), data)] == [msgid]
    with pytest.raises(LocalProtocolError, match="more than"):
        ClientConnection().ask("m", params(MAX_MESSAGE + 1))


NOT_ANSWERS: Final = {
    name: octets for name, octets in NOT_REQUESTS.items() if name != "an answer"
} | {
    "a request": encode([ASK, 1, "m", []]),
    "a notification": encode([NOTIFICATION, "m", []]),
    "too short": encode([ANSWER, 1, None]),
    "too long": encode([ANSWER, 1, None, None, None]),
    "type true": encode([True, 1, None, None]),
    "type 1.0": encode([1.0, 1, None, None]),
    "msgid text": encode([ANSWER, "1", None, None]),
    "msgid true": encode([ANSWER, True, None, None]),
    "error text": encode([ANSWER, 1, "INTERNAL", None]),
    "error false": encode([ANSWER, 1, False, None]),
    "error map": encode([ANSWER, 1, {}, None]),
    "error empty": encode([ANSWER, 1, [], None]),
    "error too long": encode([ANSWER, 1, [500, "INTERNAL", "", 1], None]),
    "status text": encode([ANSWER, 1, ["500", "INTERNAL", ""], None]),
    "status true": encode([ANSWER, 1, [True, "INTERNAL", ""], None]),
    "detail bytes": encode([ANSWER, 1, [500, "INTERNAL", b""], None]),
}
# In an answer, these stand where any value may.
for _name in ("array just too long", "map just too long"):
    NOT_ANSWERS[_name] = (
        NOT_ANSWERS[_name]
        .replace(b"\x94\x00\x01\xa1m", b"\x94\x01\x01\xc0", 1)
        .replace(struct.pack(">H", MAX_ARRAY + 1), struct.pack(">H", MAX_ANSWER_ARRAY + 1))
    )

not_answers = pytest.mark.parametrize("octets", NOT_ANSWERS.values(), ids=NOT_ANSWERS)


@not_answers
def test_what_is_no_answer_breaks_a_clients_connection_for_good(octets: bytes) -> None:
    connection = ClientConnection()
    with pytest.raises(RemoteProtocolError):
        listen(connection, octets)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            listen(connection, answer_bytes(1, None))


@pytest.mark.parametrize("name", ["nil", "a request", "invalid UTF-8", "ext 1", "status text"])
def test_a_client_hears_the_answers_before_the_bad_bytes(name: str) -> None:
    # They were computed and journalled: a client that loses them believes that nothing was done.
    good = [Answer(1, None, [b"reply"]), Answer(2, None, [b"other"])]
    connection = ClientConnection()
    heard = listen(connection, b"".join(map(answer_wire, good)) + NOT_ANSWERS[name])
    assert heard == good
    with pytest.raises(RemoteProtocolError):
        listen(connection, answer_bytes(3, None))


@settings(max_examples=300)
@given(octets=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=8))
def test_no_bytes_raise_anything_else_at_a_client(octets: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(RemoteProtocolError):
        listen(ClientConnection(), octets, *cuts)


@given(structure=values)
def test_no_error_but_a_triple_is_a_refusal(structure: Any) -> None:
    try:
        (answer,) = listen(ClientConnection(), encode([ANSWER, 1, structure, None]))
    except RemoteProtocolError:
        return
    if answer.refusal is None:
        assert structure is None
    else:
        assert [type(part) for part in structure] == [int, str, str]


def test_the_largest_answer_passes_and_one_byte_more_does_not() -> None:
    def answer(size: int) -> bytes:
        for filler in range(size, 0, -1):
            data = answer_bytes(1, [bytes(filler // 2), bytes(filler - filler // 2)])
            if len(data) == size:
                return data
        raise AssertionError

    assert len(listen(ClientConnection(), answer(MAX_ANSWER) * 2)) == 2
    with pytest.raises(RemoteProtocolError, match="larger than the limit"):
        listen(ClientConnection(), answer(MAX_ANSWER + 1))


# --- golden bytes of the framing


def test_the_framing_is_the_published_one() -> None:
    assert wire(Ask(1, "daemon.random", [8])).hex() == "940001ad6461656d6f6e2e72616e646f6d9108"
    assert wire(Ask(None, "m", [])).hex() == "9302a16d90"
    assert answer_bytes(1, [b"\1\2"]).hex() == "940101c091c4020102"
    assert answer_bytes(None, None).hex() == "9401c0c0c0"
    assert refusal_bytes(2, BadParameter("no")).hex() == (
        "94010293" + "66" + (b"\xad" + b"BAD_PARAMETER").hex() + "a26e6f" + "c0"
    )
    assert refusal_on_wire(NotAuthenticated("who?")) == (200, "NOT_AUTHENTICATED", "who?")


@given(ask=asks)
def test_another_msgpack_implementation_reads_and_writes_the_same(ask: Ask) -> None:
    # msgpack-python wrote what keyd reads, and reads what msgspec wrote.
    rest = [ask.method, ask.params]
    message = [NOTIFICATION, *rest] if ask.msgid is None else [ASK, ask.msgid, *rest]
    assert hear(ServerConnection(), msgpack.packb(message)) == [ask]
    assert msgpack.unpackb(wire(ask), strict_map_key=False) == message
