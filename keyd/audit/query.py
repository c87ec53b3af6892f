"""A journal's records by name: definitions resolved, filtered, oldest first.

Frames are read only if their links hold, so that what is shown is what was written. Reading stops at the last
whole frame and so works while keyd writes.

A domain view shows the records of one domain and nothing else: a use belongs to the domain that its key's name
begins with, an event to the one in its field `domain`. What belongs to none, like a start, is in no view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyd.audit.folder import segments_of
from keyd.audit.records import (
    KINDS,
    HeaderTorn,
    NotAJournal,
    decode_event,
    decode_frame,
    decode_header,
    decode_uses,
    is_torn,
    segment_name,
)
from keyd.errors import Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyd.audit.records import Frame, Use

_STATUS_NAMES: Final = {status.value: status.name for status in Status}


@dataclass(frozen=True, slots=True)
class UseRecord:
    """One use of a key, or one request that was refused one. Names are None where there was none."""

    number: int
    time_ns: int
    instance: str
    connection: int
    terminal: str | None
    method: str | None
    key: str | None
    card: bytes
    status: int

    @property
    def status_name(self) -> str:
        """The status by name; its number if this keyd does not know it."""
        return _STATUS_NAMES.get(self.status, str(self.status))

    @property
    def domain(self) -> str | None:
        """The domain of the key."""
        return self.key.partition("/")[0] if self.key is not None else None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened: an officer's command, a start, a change of keys."""

    number: int
    time_ns: int
    instance: str
    name: str
    fields: dict[str, Any]
    """All other fields."""

    @property
    def domain(self) -> str | None:
        """The domain that the event says it belongs to."""
        domain = self.fields.get("domain")
        return domain if isinstance(domain, str) else None


Record = UseRecord | EventRecord


@dataclass(frozen=True, slots=True)
class Filter:
    """What a record must be; None means anything. Times are from, inclusive, until, exclusive."""

    from_ns: int | None = None
    to_ns: int | None = None
    terminal: str | None = None
    method: str | None = None
    status: int | None = None
    key: str | None = None
    """The key's name, or its beginning up to a slash."""
    card: bytes | None = None
    """A card identifier, or its beginning: the first 3 bytes are the region."""
    officer: str | None = None
    event: str | None = None
    domain: str | None = None

    def admits(self, record: Record) -> bool:
        """Tell whether a record is what is asked for."""
        if self.from_ns is not None and record.time_ns < self.from_ns:
            return False
        if self.to_ns is not None and record.time_ns >= self.to_ns:
            return False
        if self.domain is not None and record.domain != self.domain:
            return False
        if isinstance(record, UseRecord):
            return self._admits_use(record)
        return self._admits_event(record)

    def _admits_use(self, use: UseRecord) -> bool:
        if self.officer is not None or self.event is not None:
            return False
        return (
            self.terminal in (None, use.terminal)
            and self.method in (None, use.method)
            and self.status in (None, use.status)
            and (self.card is None or use.card.startswith(self.card))
            and (self.key is None or _is_under(use.key, self.key))
        )

    def _admits_event(self, event: EventRecord) -> bool:
        if self.card is not None:
            return False
        fields = event.fields
        return (
            self.event in (None, event.name)
            and self.officer in (None, fields.get("officer"))
            and self.terminal in (None, fields.get("terminal"))
            and self.method in (None, fields.get("method"))
            and self.status in (None, fields.get("status"))
            and (self.key is None or _is_under(fields.get("key"), self.key))
        )


def query(folder: Path, wanted: Filter | None = None) -> Iterator[Record]:
    """Yield the records that a filter admits, in order.

    Raises:
        NotAJournal: a segment is not what was written; `verify` says more.
        OSError: the folder or a segment cannot be read.
    """
    wanted = wanted or Filter()
    numbers = segments_of(folder)
    for number in numbers:
        for record in _records(folder / segment_name(number), is_last=number == numbers[-1]):
            if wanted.admits(record):
                yield record


def _records(path: Path, *, is_last: bool) -> Iterator[Record]:
    try:
        data = path.read_bytes()
        header, offset, link = decode_header(data)
    except HeaderTorn:
        if is_last:
            return
        raise
    except FileNotFoundError:
        return  # retention removed it meanwhile
    except NotAJournal as error:
        raise NotAJournal(f"{path.name}: {error}") from None
    names: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    number = header.first
    while offset < len(data):
        try:
            frame = decode_frame(data, offset, link, number)
        except NotAJournal as error:
            if is_torn(data[offset:], link):
                return
            raise NotAJournal(f"{path.name}, record {number}: {error}") from None
        yield from _of_frame(frame, header.instance, names)
        offset += frame.length
        number, link = frame.next, frame.link


def _of_frame(frame: Frame, instance: str, names: dict[str, dict[int, str]]) -> Iterator[Record]:
    events = [decode_event(event) for event in frame.events]
    # A definition may stand in the same frame as its first use, and uses come first.
    for fields in events:
        if "define" in fields:
            names[fields["define"]][fields["number"]] = fields["name"]
    number = frame.first
    for use in decode_uses(frame.uses):
        yield _named(use, number, frame.time_ns, instance, names)
        number += 1
    for fields in events:
        if "define" not in fields:
            name = fields.pop("event")
            yield EventRecord(number, frame.time_ns, instance, name, fields)
        number += 1


def _named(
    use: Use, number: int, time_ns: int, instance: str, names: dict[str, dict[int, str]]
) -> UseRecord:
    return UseRecord(
        number,
        time_ns,
        instance,
        use.connection,
        _name(names["terminal"], use.terminal),
        _name(names["method"], use.method),
        _name(names["key"], use.key),
        use.card,
        use.status,
    )


def _name(names: dict[int, str], number: int) -> str | None:
    # A number without a definition is shown as it is: an auditor must see the record all the same.
    return names.get(number, f"#{number}") if number else None


def _is_under(key: object, wanted: str) -> bool:
    return isinstance(key, str) and (key == wanted or key.startswith(wanted.rstrip("/") + "/"))
