"""Is a journal what was written? Offline, without a key, also while keyd goes on writing it.

The chain shows what was changed within the journal. It has no key, so whoever can write the folder could make
another journal that is whole in itself; and a journal that ends early looks like one that is young. Both show
against anchors, which come from where the journal is not: the store, or signed checkpoints.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyd.audit.folder import segments_of
from keyd.audit.records import (
    FIRST_RECORD,
    FIRST_SEGMENT,
    FRAME_HEAD,
    FRAME_MIN,
    HEADER_MAX,
    LINK_BYTES,
    MAX_FRAME,
    NO_LINK,
    USE_BYTES,
    Anchor,
    Head,
    Header,
    HeaderTorn,
    NotAJournal,
    decode_event,
    decode_frame,
    decode_header,
    is_torn,
    link_of,
    segment_name,
    split_events,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bad:
    """The first bad record: the first record of the first frame that is not what was written."""

    number: int
    file: str
    offset: int
    why: str

    def __str__(self) -> str:
        return f"record {self.number} is bad ({self.file}, offset {self.offset}): {self.why}"


@dataclass(frozen=True, slots=True)
class Torn:
    """What stands behind the last whole frame: the beginning of a write that is going on, or was cut short."""

    file: str
    offset: int
    bytes: int


@dataclass(slots=True)
class Report:
    """What was read, and what is wrong with it."""

    records: int = 0
    frames: int = 0
    segments: int = 0
    first: int = 0
    head: Head | None = None
    """Where the verified part ends."""
    bad: Bad | None = None
    torn: Torn | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was changed, removed or cut off, as far as that can be seen."""
        return self.bad is None


class _Found(Exception):  # noqa: N818 - what happened, not an error of this module
    def __init__(self, bad: Bad) -> None:
        self.bad = bad


def verify(
    folder: Path,
    *,
    from_ns: int | None = None,
    to_ns: int | None = None,
    from_number: int | None = None,
    to_number: int | None = None,
    expected: Sequence[Anchor] = (),
) -> Report:
    """Verify a journal, or those of its segments that may hold records of a time or of numbers.

    Times and numbers choose whole segments. Anchors that the journal must go through are looked for in what
    is verified; one beyond its end means that the journal was cut short.

    Raises:
        OSError: the folder or a segment cannot be read.
    """
    numbers = segments_of(folder)
    verifier = _Verifier(folder, expected)
    try:
        chosen = _choose(folder, numbers, (from_ns, from_number), (to_ns, to_number))
        for number in chosen:
            verifier.segment(number, is_last=number == numbers[-1])
        verifier.finish(
            is_from_start=chosen[:1] == numbers[:1], is_to_end=chosen[-1:] == numbers[-1:]
        )
    except _Found as found:
        verifier.report.bad = found.bad
    return verifier.report


class _Verifier:
    """The state between segments."""

    def __init__(self, folder: Path, expected: Sequence[Anchor]) -> None:
        self.report = Report()
        self._folder = folder
        self._expected = sorted(set(expected))
        self._wanted = {anchor.number for anchor in expected}
        self._seen: set[Anchor] = set()
        self._removed: dict[int, bytes] = {}
        self._begin: Header | None = None
        self._end: Head | None = None
        self._owed: tuple[int, int] | None = None  # a torn end that the next segment must tell of

    def segment(self, number: int, *, is_last: bool) -> None:
        name = segment_name(number)
        due = self._end.number if self._end is not None else FIRST_RECORD
        try:
            # Read, not mapped: keyd cuts off what it could not write, and a map would then kill its reader.
            data = (self._folder / name).read_bytes()
        except FileNotFoundError:
            if self._end is None and not is_last:
                self.report.notes.append(f"{name} was removed meanwhile, as retention does")
                return
            raise _Found(Bad(due, name, 0, "the segment was removed meanwhile")) from None
        try:
            header, offset, link = decode_header(data)
        except NotAJournal as error:
            if is_last and isinstance(error, HeaderTorn):
                self.report.torn = Torn(name, 0, len(data))
                return
            raise _Found(Bad(due, name, 0, str(error))) from None
        if header.segment != number:
            why = f"it is segment {header.segment} under another's name"
            raise _Found(Bad(due, name, 0, why))
        end = self._end
        if end is None:
            self._begin = header
            self.report.first = header.first
        elif number != end.segment + 1:
            why = "the segment is missing" + _explained(data, offset, header.first, link)
            raise _Found(Bad(due, segment_name(end.segment + 1), 0, why))
        elif (header.previous, header.first) != (end.link, end.number):
            why = "the segment does not go on from the end of the one before"
            raise _Found(Bad(due, name, 0, why))
        elif header.instance != end.instance:
            raise _Found(Bad(due, name, 0, "the segment is of another instance"))
        # Where a segment begins, one record number has two links: of the frame before, and of the header.
        self._seen |= {Anchor(header.first, header.previous), Anchor(header.first, link)}
        self.report.segments += 1
        head = Head(header.instance, number, header.first, link, header.made_ns)
        self._frames(name, data, offset, head, is_last=is_last)

    def _frames(self, name: str, data: bytes, offset: int, head: Head, *, is_last: bool) -> None:
        number, link, time_ns = head.number, head.link, head.time_ns
        frames, end, wanted = 0, len(data), self._wanted
        # This loop is what 200,000 records a second are asked of: it repeats the checks of decode_frame.
        unpack, size = FRAME_HEAD.unpack_from, FRAME_HEAD.size
        while end - offset >= FRAME_MIN:
            length, begins, time, count = unpack(data, offset)
            after = offset + length
            if not FRAME_MIN <= length <= MAX_FRAME or after > end or begins != number:
                break
            at = after - LINK_BYTES
            own = data[at:after]
            if link_of(link + data[offset:at]) != own:
                break
            events_at = offset + size + count * USE_BYTES
            if events_at != at:
                if events_at > at:
                    break
                try:
                    count += self._events(data, events_at, at)
                except NotAJournal as error:
                    raise _Found(Bad(number, name, offset, str(error))) from None
            number, link, time_ns = number + count, own, time
            offset = after
            frames += 1
            if number in wanted:
                self._seen.add(Anchor(number, link))
        self._end = self.report.head = Head(head.instance, head.segment, number, link, time_ns)
        self.report.records += number - head.number
        self.report.frames += frames
        if self._owed is not None:
            segment, torn_at = self._owed
            why = "the segment does not end with a whole frame, and the next does not tell of it"
            raise _Found(Bad(head.number, segment_name(segment), torn_at, why))
        if offset < end:
            self._rest(name, data, offset, is_last=is_last)

    def _rest(self, name: str, data: bytes, offset: int, *, is_last: bool) -> None:
        head = self._end
        assert head is not None  # noqa: S101 - for mypy; `_frames` has just set it
        why = "the frame is not what was written"
        try:
            decode_frame(data, offset, head.link, head.number)
        except NotAJournal as error:
            why = str(error)
        if not is_torn(data[offset:], head.link):
            raise _Found(Bad(head.number, name, offset, why))
        if is_last:
            self.report.torn = Torn(name, offset, len(data) - offset)
        else:
            self._owed = (head.segment, offset)

    def _events(self, data: bytes, offset: int, end: int) -> int:
        count = 0
        for event in split_events(data, offset, end):
            count += 1
            fields = decode_event(event)
            name = fields.get("event")
            if name == "journal.removed":
                segment, link = fields.get("segment"), fields.get("link")
                if isinstance(segment, int) and isinstance(link, bytes):
                    self._removed[segment] = link
            elif (
                name == "journal.torn"
                and self._owed is not None
                and self._owed
                == (
                    fields.get("segment"),
                    fields.get("offset"),
                )
            ):
                self.report.notes.append(
                    f"{segment_name(self._owed[0])} ends with bytes of a failed write that keyd could"
                    " not cut off; the next segment tells of them"
                )
                self._owed = None
        return count

    def finish(self, *, is_from_start: bool, is_to_end: bool) -> None:
        """Check what only shows when everything was read."""
        begin, end = self._begin, self._end
        if begin is None or end is None:
            if is_from_start and is_to_end:
                why = "there is no segment, or none with a header"
                raise _Found(Bad(FIRST_RECORD, segment_name(FIRST_SEGMENT), 0, why))
            return
        if is_from_start:
            self._require_beginning(begin, is_to_end=is_to_end)
        for anchor in self._expected:
            if anchor in self._seen or (anchor.number > end.number and not is_to_end):
                continue
            if anchor.number < begin.first:
                self.report.notes.append(
                    f"the anchor at record {anchor.number} is older than what was verified"
                )
            elif anchor.number > end.number:
                why = (
                    f"the journal ends here, but an anchor says that it went on to {anchor.number}"
                )
                raise _Found(Bad(end.number, segment_name(end.segment), 0, why))
            else:
                why = f"the journal does not go through the anchor at record {anchor.number}"
                raise _Found(Bad(anchor.number, segment_name(begin.segment), 0, why))

    def _require_beginning(self, begin: Header, *, is_to_end: bool) -> None:
        if begin.segment == FIRST_SEGMENT:
            if (begin.first, begin.previous) != (FIRST_RECORD, NO_LINK):
                why = "the first segment does not begin a journal"
                raise _Found(Bad(begin.first, segment_name(FIRST_SEGMENT), 0, why))
        elif is_to_end and self._removed.get(begin.segment - 1) != begin.previous:
            # Retention writes its event before it removes, so that the newest event explains the beginning.
            why = "the segment is missing, and no event tells that retention removed it"
            raise _Found(Bad(begin.first - 1, segment_name(begin.segment - 1), 0, why))


def _explained(data: bytes, offset: int, first: int, link: bytes) -> str:
    with suppress(NotAJournal):
        for event in decode_frame(data, offset, link, first).events:
            fields = decode_event(event)
            if fields.get("event") == "journal.lost":
                return f"; keyd noticed: {fields.get('because')}"
    return ""


def _choose(
    folder: Path,
    numbers: list[int],
    begin: tuple[int | None, int | None],
    end: tuple[int | None, int | None],
) -> list[int]:
    """Return the segments that may hold records of the range; headers say where each begins."""
    if not any(bound is not None for bound in (*begin, *end)):
        return numbers
    first, last = 0, len(numbers)
    for index, number in enumerate(numbers):
        header = _header_of(folder / segment_name(number))
        if header is None:
            continue
        starts = (header.made_ns, header.first)
        if any(b is not None and s <= b for b, s in zip(begin, starts, strict=True)):
            first = index
        if any(b is not None and s > b for b, s in zip(end, starts, strict=True)):
            last = index
            break
    return numbers[first : max(last, first + 1)]


def _header_of(path: Path) -> Header | None:
    # A header that is not what was written is reported when its segment's turn comes.
    with suppress(NotAJournal, FileNotFoundError), path.open("rb") as file:
        return decode_header(file.read(HEADER_MAX))[0]
    return None
