"""A journal as tests see it: its uses by name, read from the files alone while the daemon goes on writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keyd.audit.records import (
    NotAJournal,
    decode_event,
    decode_frame,
    decode_header,
    decode_uses,
    segment_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NamedUse(NamedTuple):
    """A use record with names where it has numbers; None where it has none."""

    method: str
    status: int
    connection: int
    terminal: str | None
    key: str | None
    card: bytes


def frames(folder: Path) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    """Yield the uses and events of each frame that is whole."""
    for path in sorted(path for path in folder.iterdir() if segment_number(path.name)):
        data = path.read_bytes()
        header, offset, link = decode_header(data)
        first = header.first
        while offset < len(data):
            try:
                frame = decode_frame(data, offset, link, first)
            except NotAJournal:
                return  # it is being written
            yield frame.uses, frame.events
            offset += frame.length
            first, link = frame.next, frame.link


def named_uses(folder: Path) -> list[NamedUse]:
    """Return all uses that are on file, in order."""
    names: dict[tuple[str, int], str] = {}
    uses = []
    for used, events in frames(folder):
        for event in map(decode_event, events):
            if "define" in event:
                names[event["define"], event["number"]] = event["name"]
        for use in decode_uses(used):
            terminal, key = names.get(("terminal", use.terminal)), names.get(("key", use.key))
            assert (terminal is None, key is None) == (not use.terminal, not use.key)
            method = names["method", use.method]
            uses.append(NamedUse(method, use.status, use.connection, terminal, key, use.card))
    return uses
