"""Bytes to asks, answers to bytes, for both sides: MessagePack-RPC without a socket, a clock or trio.

`[0, msgid, method, params]` asks; `[1, msgid, error, result]` answers, with error `[status, name, detail]` or
nil. Answers may come in any order; keeping msgids apart is the client's business. Bytes that are no such
message raise `RemoteProtocolError`, once, and the connection is over. This module knows nothing of what the
methods mean: it only frames.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final, NamedTuple, NoReturn

import msgpack
import msgspec

from keyd.errors import LocalProtocolError, Refusal, RemoteProtocolError, refusal_from_wire

# The largest honest request is a batch of 256 cards of about 120 bytes. A peer that sends more is broken or
# hostile, and we would rather not buffer for it.
MAX_MESSAGE: Final = 64 * 1024

# The largest answer is the status with its 155 keys three times over, well under this.
MAX_ANSWER: Final = 256 * 1024

# A driver reads at most this much at once, so a connection never holds more than MAX_MESSAGE + MAX_CHUNK.
MAX_CHUNK: Final = 64 * 1024

# The longest array in a request is a batch, of 256; one that is somewhat too long is refused by its command and
# not as malformed. In an answer the longest is the list of keys (up to 465).
MAX_ARRAY: Final = 512
MAX_ANSWER_ARRAY: Final = 1024

# The longest method name has 32 characters; a longer one is not ours.
MAX_METHOD: Final = 64

# As many as a busy tick has connections with something half said; the rest are made and let go.
MAX_FREE_UNPACKERS: Final = 64

ASK: Final = 0
ANSWER: Final = 1
NOTIFICATION: Final = 2

_MSGID_END: Final = 1 << 32

encode: Final = msgspec.msgpack.Encoder().encode


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One request. `msgid` is None for a notification, which cannot be answered by number."""

    msgid: int | None
    method: str
    params: list[Any]


class Answer(NamedTuple):
    """One answer: the refusal it carries, or else the result as it came."""

    msgid: int | None
    refusal: Refusal | None
    result: Any


class _Unpackers:
    """Unpackers that are not in use. One has 60 KiB, so ten thousand idle connections must not have one each."""

    def __init__(self, limit: int, max_array: int) -> None:
        self.limit = limit
        self._max_array = max_array
        self._free: list[msgpack.Unpacker] = []

    def take(self) -> msgpack.Unpacker:
        """Return an unpacker that holds nothing."""
        try:
            return self._free.pop()  # at once, since clients of several threads share this
        except IndexError:
            return self._new()

    def give(self, unpacker: msgpack.Unpacker) -> None:
        """Give back an unpacker that has returned everything it was fed."""
        if len(self._free) < MAX_FREE_UNPACKERS:
            self._free.append(unpacker)

    def _new(self) -> msgpack.Unpacker:
        return msgpack.Unpacker(
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_buffer_size=self.limit + MAX_CHUNK,
            max_str_len=self.limit,
            max_bin_len=self.limit,
            max_array_len=self._max_array,
            # keyd's requests have no maps; its status has one, of counters.
            max_map_len=self._max_array,
            max_ext_len=0,
        )


class _Reader:
    """Cuts a stream of bytes into MessagePack arrays, within limits, in amortised constant memory."""

    __slots__ = ("_fed", "_start", "_unpacker", "_unpackers", "fault")

    def __init__(self, unpackers: _Unpackers) -> None:
        self._unpackers = unpackers
        # Only while there are bytes of an unfinished message, or messages that were not asked for yet.
        self._unpacker: msgpack.Unpacker | None = None
        # Places in the unpacker's stream: where what was fed ends, and where the message that comes next
        # begins. The unpacker's own tell() moves within a partial message.
        self._fed = 0
        self._start = 0
        # What broke the protocol. Nothing mends it, and every further call says it again.
        self.fault: str | None = None

    def feed_untrusted(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > MAX_CHUNK:
            raise LocalProtocolError(f"at most {MAX_CHUNK} bytes may be fed at once")
        if self.fault is not None or not data:
            return
        if self._unpacker is None:
            self._unpacker = self._unpackers.take()
            self._fed = self._start = self._unpacker.tell()
        self._fed += len(data)
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            self._fail("a message is larger than the limit")

    def next_untrusted(self) -> Any:
        """Return the next object; raise `msgpack.OutOfData` when there is no whole one."""
        if self.fault is not None:
            raise RemoteProtocolError(self.fault)
        unpacker = self._unpacker
        if unpacker is None:
            raise msgpack.OutOfData
        try:
            message = unpacker.unpack()
        except msgpack.OutOfData:
            if self._fed - self._start > self._unpackers.limit:
                self._fail("a message is larger than the limit")
            raise
        except (ValueError, TypeError, RecursionError, OverflowError):
            # FormatError, StackError, limits and bad UTF-8 are ValueErrors; an unhashable map key is a
            # TypeError. The library's words may quote the bytes, so ours replace them.
            self._fail("the bytes are not MessagePack within the limits")
        end = unpacker.tell()
        if end - self._start > self._unpackers.limit:
            self._fail("a message is larger than the limit")
        self._start = end
        if end == self._fed:
            self._unpacker = None
            self._unpackers.give(unpacker)
        return message

    @property
    def has_partial(self) -> bool:
        """Whether bytes of an unfinished message are waiting."""
        return self._unpacker is not None

    @property
    def is_broken(self) -> bool:
        """Whether the stream stopped making sense."""
        return self.fault is not None

    def _fail(self, detail: str) -> NoReturn:
        self.fault = detail
        self._unpacker = None  # lets go of what was buffered
        raise RemoteProtocolError(detail) from None


_ASK_UNPACKERS: Final = _Unpackers(MAX_MESSAGE, MAX_ARRAY)
_ANSWER_UNPACKERS: Final = _Unpackers(MAX_ANSWER, MAX_ANSWER_ARRAY)


class ServerConnection:
    """keyd's side of one connection."""

    __slots__ = ("_reader",)

    def __init__(self) -> None:
        self._reader = _Reader(_ASK_UNPACKERS)

    def receive_data_untrusted(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the peer sent, at most MAX_CHUNK bytes.

        Raises:
            RemoteProtocolError: more is buffered than one message may have.
        """
        self._reader.feed_untrusted(data)

    def next_asks_untrusted(self, limit: int) -> list[Ask]:
        """Return up to `limit` whole requests; fewer means that no further one is whole yet.

        Raises:
            RemoteProtocolError: at the first malformed message, after the good ones before it have
                been returned.
        """
        asks: list[Ask] = []
        reader = self._reader
        try:
            while len(asks) < limit and (reader.has_partial or reader.is_broken):
                asks.append(_ask_from_untrusted(reader.next_untrusted()))
        except msgpack.OutOfData:
            pass
        except RemoteProtocolError as error:
            # The good ones come first; the next call raises again, since the reader stays broken.
            reader.fault = str(error)
            if not asks:
                raise
        return asks

    @property
    def is_broken(self) -> bool:
        """Whether a malformed message was met: the next call for asks raises."""
        return self._reader.is_broken

    @property
    def has_partial(self) -> bool:
        """Whether it holds bytes that have not been returned as asks."""
        return self._reader.has_partial

    def receive_eof_untrusted(self) -> None:
        """The peer will send no more.

        Raises:
            RemoteProtocolError: it stopped within a message.
        """
        if self._reader.has_partial:
            raise RemoteProtocolError("the peer closed within a message")


def answer_bytes(msgid: int | None, result: Any) -> bytes:
    """Encode a successful answer."""
    return encode((ANSWER, msgid, None, result))


def refusal_bytes(msgid: int | None, refusal: Refusal) -> bytes:
    """Encode a refusal. A msgid of None says that it belongs to no request in particular."""
    return encode((ANSWER, msgid, refusal_on_wire(refusal), None))


def refusal_on_wire(refusal: Refusal) -> tuple[int, str, str]:
    """Return the error triple: status, name, detail."""
    return (int(refusal.status), refusal.status.name, refusal.detail)


class ClientConnection:
    """A client's side of one connection: numbers the asks and reads the answers."""

    __slots__ = ("_next_msgid", "_reader")

    def __init__(self) -> None:
        self._reader = _Reader(_ANSWER_UNPACKERS)
        self._next_msgid = 0

    def ask(self, method: str, params: Any) -> tuple[int, bytes]:
        """Number a request and encode it.

        Raises:
            LocalProtocolError: the request is larger than keyd accepts.
        """
        msgid = self._next_msgid
        self._next_msgid = (msgid + 1) % _MSGID_END
        data = encode((ASK, msgid, method, params))
        if len(data) > MAX_MESSAGE:
            raise LocalProtocolError(f"the request has {len(data)} bytes, more than {MAX_MESSAGE}")
        return msgid, data

    def receive_data_untrusted(self, data: bytes) -> list[Answer]:
        """Take what keyd sent and return the answers that are whole.

        Raises:
            RemoteProtocolError: keyd sent something else than answers; the good ones before it have been
                returned.
        """
        reader = self._reader
        answers: list[Answer] = []
        try:
            # Once at least, so that a connection that is broken says so whatever is received.
            for start in range(0, len(data) or 1, MAX_CHUNK):
                reader.feed_untrusted(data[start : start + MAX_CHUNK])
                with contextlib.suppress(msgpack.OutOfData):
                    while reader.has_partial or reader.is_broken:
                        answers.append(_answer_from_untrusted(reader.next_untrusted()))
        except RemoteProtocolError as error:
            # The good ones come first; the next call raises again, since the reader stays broken.
            reader.fault = str(error)
            if not answers:
                raise
        return answers

    @property
    def is_broken(self) -> bool:
        """Whether keyd's words stopped making sense: the next call for answers raises."""
        return self._reader.is_broken


def _ask_from_untrusted(message: Any) -> Ask:
    # Types are compared, not values: in Python, False is 0 and 2.0 is 2.
    if type(message) is not list or not message or type(message[0]) is not int:
        raise RemoteProtocolError("a message is an array that begins with its kind")
    if message[0] == NOTIFICATION and len(message) == 3:
        _, method, params = message
        msgid = None
    elif message[0] == ASK and len(message) == 4:
        _, msgid, method, params = message
        if type(msgid) is not int or not 0 <= msgid < _MSGID_END:
            raise RemoteProtocolError("a msgid is an unsigned 32-bit integer")
    else:
        raise RemoteProtocolError("a request is [0, msgid, method, params]")
    if type(method) is not str or len(method) > MAX_METHOD:
        raise RemoteProtocolError(f"a method is a string of at most {MAX_METHOD} characters")
    if type(params) is not list:
        raise RemoteProtocolError("params are an array")
    return Ask(msgid, method, params)


def _answer_from_untrusted(message: Any) -> Answer:
    if type(message) is not list or len(message) != 4 or type(message[0]) is not int:
        raise RemoteProtocolError("an answer is [1, msgid, error, result]")
    if message[0] != ANSWER:
        raise RemoteProtocolError("an answer is [1, msgid, error, result]")
    _, msgid, error, result = message
    if msgid is not None and type(msgid) is not int:
        raise RemoteProtocolError("a msgid is an integer or nil")
    return Answer(msgid, refusal_from_untrusted(error), result)


def refusal_from_untrusted(error: Any) -> Refusal | None:
    """Read the error triple of an answer; None stands for success.

    Raises:
        RemoteProtocolError: it is neither nil nor `[status, name, detail]`.
    """
    if error is None:
        return None
    if type(error) is not list or [type(part) for part in error] != [int, str, str]:
        raise RemoteProtocolError("an error is [status, name, detail]")
    status, name, detail = error
    return refusal_from_wire(status, name, detail)
