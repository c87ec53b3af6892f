"""The bytes of the journal, version 1: docs/journal.md in code.

A segment is a header and frames; each ends in a link, the SM3 of the previous link and of everything before
it in the header or frame. A frame holds what one tick did: use records of 32 bytes, and events, which are
MessagePack maps. Records (uses first, then events) are numbered through the whole journal, from 1.

All numbers are big-endian. This module reads no file and no clock.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from keyd.crypto.sm3 import DIGEST_BYTES, sm3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAGIC: Final = b"keyd journal 1\n"
SUFFIX: Final = ".keyd-journal"

LINK_BYTES: Final = DIGEST_BYTES

# What stands before the first segment's header.
NO_LINK: Final = bytes(LINK_BYTES)

FIRST_SEGMENT: Final = 1
FIRST_RECORD: Final = 1

# Segment names have eight digits. At a segment a minute that is 190 years.
LAST_SEGMENT: Final = 99_999_999

# The largest tick has tens of thousands of requests of 32 bytes. Whoever reads a journal must hold a frame in
# memory, and a damaged length must not ask for more than this.
MAX_FRAME: Final = 16 * 1024 * 1024

# An event is a line for an auditor, not a place for documents.
MAX_EVENT: Final = 64 * 1024

# Instance names are for people; a header stays well within one page.
MAX_INSTANCE: Final = 255

# method, status, connection, terminal, key, card identifier
USE: Final = struct.Struct(">HHIII16s")
USE_BYTES: Final = USE.size
CARD_ID_BYTES: Final = 16

# length, first record number, time, number of uses
FRAME_HEAD: Final = struct.Struct(">IQQI")
FRAME_MIN: Final = FRAME_HEAD.size + LINK_BYTES

EVENT_LENGTH: Final = struct.Struct(">I")

# segment, first record number, made_ns, previous link, length of the instance's name
_HEADER: Final = struct.Struct(">IQQ32sH")

HEADER_MAX: Final = len(MAGIC) + _HEADER.size + MAX_INSTANCE + LINK_BYTES

# What numbers are given to, and the largest number that a use record can hold.
KINDS: Final = {"method": 0xFFFF, "terminal": 0xFFFFFFFF, "key": 0xFFFFFFFF, "officer": 0xFFFFFFFF}

_NAME: Final = re.compile(r"\A([0-9]{8})\.keyd-journal\Z")
_PLAIN: Final = (str, int, bytes, bool, type(None))

_PLAIN_ONLY: Final = "an event has fields of str, int, bytes, bool, None or lists of them"


class NotAJournal(Exception):  # noqa: N818 - the name says what the bytes are
    """The bytes are not those of a journal, or not any more. `str()` is a sentence."""


class HeaderTorn(NotAJournal):
    """The segment is shorter than its header, or nothing but zeros."""


class Use(NamedTuple):
    """One use of a key: what a use record says, still by number. 0 means none."""

    method: int
    status: int
    connection: int
    terminal: int
    key: int
    card: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """How a segment begins."""

    instance: str
    segment: int
    first: int
    made_ns: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """What was written at once: the uses as they stand, and the events one by one, encoded."""

    first: int
    time_ns: int
    uses: bytes
    events: tuple[bytes, ...]
    link: bytes
    length: int

    @property
    def next(self) -> int:
        """The record number after this frame."""
        return self.first + len(self.uses) // USE_BYTES + len(self.events)


class Anchor(NamedTuple):
    """A point that a journal must go through: the record number after a frame, and the frame's link."""

    number: int
    link: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Where a journal ended at a moment: for anchors, checkpoints and backups."""

    instance: str
    segment: int
    number: int
    """The record number after the last frame."""
    link: bytes
    time_ns: int

    @property
    def anchor(self) -> Anchor:
        """What `verify` is to find."""
        return Anchor(self.number, self.link)


def _linker() -> Callable[[bytes], bytes]:
    if "sm3" not in hashlib.algorithms_available:
        return sm3
    # Looking an algorithm up costs more than hashing a short frame: do it once and copy.
    fresh = hashlib.new("sm3")

    def link(message: bytes) -> bytes:
        digest = fresh.copy()
        digest.update(message)
        return digest.digest()

    return link


link_of: Final = _linker()
"""The link of a frame: SM3 of the previous link and the frame without its link, given as one string."""


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:08d}{SUFFIX}"


def segment_number(name: str) -> int | None:
    """Return the number in a segment's file name; None for every other name."""
    matched = _NAME.match(name)
    return int(matched[1]) if matched else None


def encode_header(header: Header) -> bytes:
    """Return a header with its link."""
    instance = header.instance.encode()
    if not 1 <= len(instance) <= MAX_INSTANCE:
        raise ValueError(f"an instance's name has 1 to {MAX_INSTANCE} bytes")
    fields = _HEADER.pack(
        header.segment, header.first, header.made_ns, header.previous, len(instance)
    )
    encoded = MAGIC + fields + instance
    return encoded + link_of(encoded)


def decode_header(data: bytes) -> tuple[Header, int, bytes]:
    """Return the header at the start of a segment, where it ends, and its link.

    Raises:
        NotAJournal: the header is not whole, or not what was written.
    """
    start = len(MAGIC) + _HEADER.size
    if len(data) < start:
        raise HeaderTorn("the segment ends within its header")
    if data[: len(MAGIC)] != MAGIC:
        if not data.strip(b"\0"):
            raise HeaderTorn("the segment holds nothing but zeros")
        raise NotAJournal("the segment does not begin like a keyd journal of version 1")
    segment, first, made_ns, previous, length = _HEADER.unpack_from(data, len(MAGIC))
    end = start + length + LINK_BYTES
    if length > MAX_INSTANCE or (len(data) < end and _has_header_of_other_length(data, start)):
        raise NotAJournal("the segment's header is not what was written")
    if len(data) < end:
        raise HeaderTorn("the segment ends within its header")
    encoded, link = data[: end - LINK_BYTES], data[end - LINK_BYTES : end]
    if link_of(encoded) != link:
        raise NotAJournal("the segment's header is not what was written")
    try:
        instance = encoded[start:].decode()
    except UnicodeDecodeError:
        raise NotAJournal("the segment's header is not what was written") from None
    return Header(instance, segment, first, made_ns, previous), end, link


def _has_header_of_other_length(data: bytes, start: int) -> bool:
    # A changed length must not pass for a header that was cut short: is there a whole one of another length?
    for length in range(1, min(MAX_INSTANCE, len(data) - start - LINK_BYTES) + 1):
        end = start + length
        repaired = data[: start - 2] + length.to_bytes(2, "big") + data[start:end]
        if link_of(repaired) == data[end : end + LINK_BYTES]:
            return True
    return False


def encode_use(use: Use) -> bytes:
    """Return a use record, 32 bytes."""
    if len(use.card) != CARD_ID_BYTES:
        raise ValueError(f"a card identifier has {CARD_ID_BYTES} bytes")
    return USE.pack(*use)


def decode_uses(uses: bytes) -> Iterator[Use]:
    """Return the uses of a frame, in order."""
    return map(Use._make, USE.iter_unpack(uses))


def encode_event(fields: Mapping[str, object]) -> bytes:
    """Return an event with its length.

    Only plain values are taken: a message of the protocol would bring fields that nobody chose.

    Raises:
        TypeError: a field is of another type, or the event has no name.
        ValueError: the event is longer than MAX_EVENT.
    """
    if type(fields.get("event")) is not str:
        raise TypeError("an event has a name: its field `event`")
    for name, value in fields.items():
        if type(name) is not str or not _is_plain(value):
            raise TypeError(f"{name}: {_PLAIN_ONLY}, not {type(value).__name__}")
    return _with_length(fields)


def _is_plain(value: object) -> bool:
    if type(value) is list:
        return all(type(item) in _PLAIN for item in value)
    return type(value) in _PLAIN


def encode_definition(kind: str, number: int, name: str) -> bytes:
    """Return the event that gives a number to a name, with its length."""
    return _with_length({"define": kind, "number": number, "name": name})


def _with_length(fields: Mapping[str, object]) -> bytes:
    encoded = msgspec.msgpack.encode(fields)
    if len(encoded) > MAX_EVENT:
        raise ValueError(f"an event has at most {MAX_EVENT} bytes")
    return EVENT_LENGTH.pack(len(encoded)) + encoded


def decode_event(encoded: bytes) -> dict[str, Any]:
    """Return the fields of an event or definition, given without its length.

    Raises:
        NotAJournal: it is neither.
    """
    try:
        fields = msgspec.msgpack.decode(encoded, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise NotAJournal("an event is not a MessagePack map") from None
    if isinstance(fields.get("event"), str) and "define" not in fields:
        return fields
    if (
        isinstance(fields.get("define"), str)
        and fields["define"] in KINDS
        and type(number := fields.get("number")) is int
        and 0 < number <= KINDS[fields["define"]]
        and isinstance(fields.get("name"), str)
    ):
        return fields
    raise NotAJournal("an event is neither an event nor a definition")


def encode_frame(
    link: bytes, first: int, time_ns: int, uses: bytes, events: bytes
) -> tuple[bytes, bytes]:
    """Return the frame that follows a link, and its own link. `events` are encoded, with their lengths.

    Raises:
        ValueError: the frame would be longer than MAX_FRAME, or `uses` are no whole records.
    """
    length = FRAME_MIN + len(uses) + len(events)
    count, rest = divmod(len(uses), USE_BYTES)
    if rest or length > MAX_FRAME:
        raise ValueError(f"a frame has whole use records and at most {MAX_FRAME} bytes")
    # One string and one update: for a frame of one use that is faster than four small ones.
    linked = link + FRAME_HEAD.pack(length, first, time_ns, count) + uses + events
    own = link_of(linked)
    return linked[LINK_BYTES:] + own, own


def decode_frame(data: bytes, offset: int, link: bytes, first: int) -> Frame:
    """Return the frame at an offset, which must follow `link` and begin with record number `first`.

    Raises:
        NotAJournal: there is no such frame.
    """
    if len(data) - offset < FRAME_MIN:
        raise NotAJournal("the frame is not whole")
    length, number, time_ns, count = FRAME_HEAD.unpack_from(data, offset)
    if not FRAME_MIN <= length <= MAX_FRAME:
        raise NotAJournal("the frame's length is not one that keyd writes")
    end = offset + length
    if len(data) < end:
        raise NotAJournal("the frame is not whole")
    at = end - LINK_BYTES
    own = data[at:end]
    if link_of(link + data[offset:at]) != own:
        raise NotAJournal("the frame's link is not that of its bytes")
    if number != first:
        raise NotAJournal(f"the frame begins with record {number} where {first} is due")
    uses_at = offset + FRAME_HEAD.size
    events_at = uses_at + count * USE_BYTES
    if events_at > at:
        raise NotAJournal("the frame's uses do not fit into it")
    return Frame(
        number,
        time_ns,
        data[uses_at:events_at],
        tuple(split_events(data, events_at, at)),
        own,
        length,
    )


def split_events(data: bytes, offset: int, end: int) -> Iterator[bytes]:
    """Return the events between two offsets, each without its length.

    Raises:
        NotAJournal: they do not end where the frame does.
    """
    while offset < end:
        start = offset + EVENT_LENGTH.size
        if start > end:
            raise NotAJournal("the frame's events do not fit into it")
        (length,) = EVENT_LENGTH.unpack_from(data, offset)
        offset = start + length
        if offset > end:
            raise NotAJournal("the frame's events do not fit into it")
        yield data[start:offset]


def is_torn(rest: bytes, link: bytes) -> bool:
    """Tell whether what follows the last good frame of a segment is a write that a crash cut short.

    A torn write is the beginning of one frame: shorter than it says, or zeros from some point on, since a file
    may have grown before its bytes arrived. Anything else was changed afterwards; so was a tail in which a
    whole frame can still be found.
    """
    if len(rest) < FRAME_MIN:
        return True
    (length,) = EVENT_LENGTH.unpack_from(rest)
    if not rest.endswith(NO_LINK) and not len(rest) < length <= MAX_FRAME:
        return False
    return not _has_whole_frame(rest, link)


def _has_whole_frame(rest: bytes, link: bytes) -> bool:
    if _has_changed_length(rest, link):
        return True
    # A frame can be recognised without the frames before it: its link follows from the 32 bytes before it.
    # The first byte of a length within MAX_FRAME is 0 or 1, and few positions pass the next test.
    for offset in range(LINK_BYTES, len(rest) - FRAME_MIN + 1):
        if rest[offset] > 1:
            continue
        (length,) = EVENT_LENGTH.unpack_from(rest, offset)
        end = offset + length
        if not FRAME_MIN <= length <= MAX_FRAME or end > len(rest):
            continue
        if link_of(rest[offset - LINK_BYTES : end - LINK_BYTES]) == rest[end - LINK_BYTES : end]:
            return True
    return False


def _has_changed_length(rest: bytes, link: bytes) -> bool:
    # The uses and events say by themselves where the frame could end; put that length in, and see.
    (_, _, _, count) = FRAME_HEAD.unpack_from(rest)
    at = FRAME_HEAD.size + count * USE_BYTES
    while at + LINK_BYTES <= len(rest):
        repaired = EVENT_LENGTH.pack(at + LINK_BYTES) + rest[EVENT_LENGTH.size : at]
        if link_of(link + repaired) == rest[at : at + LINK_BYTES]:
            return True
        (length,) = EVENT_LENGTH.unpack_from(rest, at)
        at += EVENT_LENGTH.size + length
    return False
