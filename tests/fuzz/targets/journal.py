"""Journals that were altered: `verify` says what is bad and never falls, `query` yields records or `NotAJournal`.

The first byte says who altered it. Somebody who changes bytes is always noticed against an anchor. Somebody who
writes the segments anew, with links that hold, can say in them what a segment can say: then the two readers still end
as they should, and where `verify` finds nothing wrong `query` reads all of it.
"""

from __future__ import annotations

import functools
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack

from keyd.audit.journal import Journal
from keyd.audit.query import Filter, query
from keyd.audit.records import (
    EVENT_LENGTH,
    Header,
    NotAJournal,
    Use,
    decode_frame,
    decode_header,
    encode_frame,
    encode_header,
    encode_use,
    segment_name,
)
from keyd.audit.verify import verify
from tests.fuzz.mutators import messages_of, mutate_bytes, mutate_message
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from random import Random

    from keyd.audit.records import Anchor

BYTES, WRITTEN_ANEW = 0, 1

_folder: Final = tempfile.TemporaryDirectory(prefix="keyd-fuzz-")


@functools.cache
def _recorded() -> tuple[list[bytes], Anchor]:
    """A journal of some segments with uses, events and definitions, and its end."""
    folder = Path(_folder.name) / "recorded"
    ticks = iter(range(10**18, 10**19, 10**6))
    journal = Journal(
        folder,
        "keyd-1",
        clock_ns=lambda: next(ticks),
        monotonic_ns=lambda: next(ticks),
        segment_bytes=900,
    )
    use = encode_use(Use(1, 0, 7, 1, 1, bytes.fromhex("510100") + bytes(13)))
    for count in range(9):
        journal.number_of("key", f"SOCIAL/{count % 3}")
        events: list[dict[str, object]] = [{"event": "officer.spoke", "n": count, "b": b"\1"}]
        journal.append(use * (1 + count % 3), events * (count % 2))
    journal.close()
    paths = sorted(folder.glob("*.keyd-journal"))
    return [path.read_bytes() for path in paths], journal.head().anchor


def one_input(data: bytes) -> None:
    if not data:
        return
    if data[0] % 2 == BYTES:
        _change_bytes(data[1:])
    else:
        _write_anew(data[1:])


def _change_bytes(script: bytes) -> None:
    """Each change is [segment, offset, bytes to put there, how many to take away]."""
    original, anchor = _recorded()
    segments = list(original)
    for change in messages_of(script)[:8]:
        match change:
            case [int(number), int(offset), bytes(octets), int(gone)]:
                number %= len(segments)
                segment = segments[number]
                offset %= len(segment) + 1
                gone = max(0, gone)
                segments[number] = segment[:offset] + octets + segment[offset + gone :]
    folder = _written(segments)
    report = verify(folder, expected=[anchor])
    if report.is_good:
        # What came behind the end is a write that was cut short; nothing before it is another.
        assert segments[:-1] == original[:-1]
        assert segments[-1].startswith(original[-1])
    with suppress(NotAJournal):
        list(query(folder))


def _write_anew(tree: bytes) -> None:
    try:
        segments = [segment for segment in map(_segment, messages_of(tree)[:4]) if segment]
    except (ValueError, TypeError, OverflowError):
        return  # nobody could write this down
    folder = _written(segments)
    report = verify(folder)
    verify(folder, from_ns=10**18, to_number=5)
    try:
        records = list(query(folder))
    except NotAJournal:
        assert not report.is_good
        return
    if report.is_good and segments:
        # Definitions are records that are not shown.
        assert len(records) <= report.records
    list(query(folder, Filter(domain="SOCIAL", key="SOCIAL", status=0)))
    list(query(folder, Filter(officer="a", event="officer.spoke")))


def _segment(tree: Any) -> bytes:
    """Make a segment of [number, first, previous link, [[uses, [event, ...]], ...]], with links that hold."""
    match tree:
        case [int(number), int(first), bytes(previous), list(frames)]:
            pass
        case _:
            return b""
    header = Header(
        "keyd-1", number & 0xFFFF, first & 0xFFFFFFFF, 10**18, (previous + bytes(32))[:32]
    )
    data = encode_header(header)
    link, place = data[-32:], header.first
    for frame in frames:
        match frame:
            case [bytes(uses), list(events)]:
                pass
            case _:
                continue
        encoded = b"".join(map(_event, events))
        uses = uses[: len(uses) // 32 * 32]
        framed, link = encode_frame(link, place, 10**18, uses, encoded)
        data += framed
        place += len(uses) // 32 + len(events)
    return data


def _event(fields: Any) -> bytes:
    octets = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    return EVENT_LENGTH.pack(len(octets)) + octets


def _written(segments: list[bytes]) -> Path:
    folder = Path(_folder.name) / "altered"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for number, segment in enumerate(segments, 1):
        (folder / segment_name(number)).write_bytes(segment)
    return folder


def _tree(segment: bytes) -> list[Any]:
    header, offset, link = decode_header(segment)
    number, frames = header.first, []
    while offset < len(segment):
        frame = decode_frame(segment, offset, link, number)
        frames.append([frame.uses, [msgpack.unpackb(event) for event in frame.events]])
        number, link, offset = frame.next, frame.link, offset + frame.length
    return [header.segment, header.first, header.previous, frames]


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    if data[0] % 2 == BYTES and random.random() < 0.5:
        change = [
            random.randrange(4),
            random.randrange(900),
            random.randbytes(random.choice((0, 1, 1, 4, 32))),
            random.choice((0, 1, 1, 4, 32, 1000)),
        ]
        added: bytes = msgpack.packb(change)
        return data[:1] + added + (data[1:] if random.random() < 0.3 else b"")
    return data[:1] + mutate_message(data[1:], random)


def seeds() -> list[bytes]:
    trees = [_tree(segment) for segment in _recorded()[0]]
    told = {"event": "journal.torn", "segment": 1, "offset": 70, "because": "x"}
    defined = {"define": "key", "number": 9, "name": "SOCIAL/0170/SM4/v1/00000000"}
    removed = {"event": "journal.removed", "segment": 1, "link": bytes(32)}
    return [
        bytes([BYTES]),
        bytes([BYTES]) + msgpack.packb([0, 100, b"\1", 1]),
        bytes([WRITTEN_ANEW]) + b"".join(map(msgpack.packb, trees)),
        bytes([WRITTEN_ANEW]) + msgpack.packb(trees[0]),
        bytes([WRITTEN_ANEW]) + msgpack.packb([1, 1, bytes(32), [[b"", [told, defined, removed]]]]),
    ]


TARGET = Target(one_input, seeds, mutate, max_bytes=8192)
