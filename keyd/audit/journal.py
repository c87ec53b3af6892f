"""The one writer of a journal: a folder of segments that are only ever appended to.

`append` is called once per tick, and costs one write. `sync` may run in another thread meanwhile. What fails
is undone, and then the journal is unavailable until `recover` succeeds: nothing is acknowledged that is not
whole on file. The bytes are in records.py; who may read them is not decided here.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from keyd.audit.folder import Folder
from keyd.audit.names import Names
from keyd.audit.records import (
    FIRST_RECORD,
    FIRST_SEGMENT,
    LAST_SEGMENT,
    LINK_BYTES,
    NO_LINK,
    USE_BYTES,
    Head,
    Header,
    NotAJournal,
    encode_event,
    encode_frame,
    encode_header,
    segment_name,
)
from keyd.audit.reopening import reopen
from keyd.audit.segment import Tail, header_of, make_segment, put
from keyd.audit.unsynced import SegmentLost, Unsynced
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

# A segment of 64 MiB holds two million records and is verified in seconds.
SEGMENT_BYTES: Final = 64 * 1024 * 1024

# Whoever reads the times must know of it when they do not follow from each other. Forward, a minute: a tick
# may be late, and a suspended machine's monotonic clock stands. Backward, a second: slewing never steps back.
CLOCK_FORWARD_NS: Final = 60 * 1_000_000_000
CLOCK_BACKWARD_NS: Final = 1_000_000_000

# How long `close` waits for an fsync that hangs in another thread.
_CLOSE_WAIT_S: Final = 5.0

# Definitions are restated in frames of at most this size, far below MAX_FRAME.
_DEFINITIONS_BYTES: Final = 1024 * 1024

# What the reserve helps against. EFBIG is the limit of RLIMIT_FSIZE or of the filesystem.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class _Trouble:
    """Why the journal is unavailable, and what recovery has to know."""

    sentence: str
    since_ns: int
    left_out: int = 0  # uses and events that were refused
    needs_segment: bool = False  # half a frame could not be cut off
    is_full: bool = False


class Journal:
    """A journal that is open for writing.

    Every method may be called in any thread, and an `append` waits for no `sync` and no `recover`. Only
    `number_of` belongs to one thread.
    """

    def __init__(
        self,
        folder: Path,
        instance: str,
        *,
        clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        segment_bytes: int = SEGMENT_BYTES,
        retain_segments: int | None = None,
    ) -> None:
        """Open the journal in a folder, or begin one.

        What a crash cut short is cut off, kept beside its segment as .torn, and told in an event.

        Raises:
            AuditUnavailable: another process writes it, it cannot be written, or it is not what was written.
        """
        if retain_segments is not None and retain_segments < 1:
            raise ValueError("a journal keeps at least the segment that it writes")
        self.instance = instance
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._segment_bytes = segment_bytes
        self._retain = retain_segments
        self._folder = Folder(folder)
        self._names = Names()
        self._unsynced = Unsynced(self._folder)
        self._trouble: _Trouble | None = None
        self._is_closed = False
        self._writing = threading.Lock()  # held while the tail moves
        self._offset = clock_ns() - monotonic_ns()
        self._tail: Tail
        try:
            self._folder.take()
            self._open()
            self.sync()
        except OSError as error:
            self._release()
            raise AuditUnavailable(f"the journal in {folder} cannot be opened: {error}") from error
        except BaseException:
            self._release()
            raise

    # --- what is written -------------------------------------------------------------------------------

    def number_of(self, kind: str, name: str) -> int:
        """Return the number of a method, terminal, key or officer; the first time, give it one.

        Raises:
            KeyError: there is no such kind.
            AuditUnavailable: there are no numbers left, so nothing can be recorded of it.
        """
        return self._names.number_of(kind, name)

    def append(self, uses: bytes = b"", events: Sequence[Mapping[str, object]] = ()) -> int:
        """Write one frame of use records and events; return the position to wait for.

        Raises:
            AuditUnavailable: nothing of it is on file.
        """
        trouble = self._trouble
        if trouble is not None:
            # Before the lock: `recover` may hold it, and wait for a disk that does not answer.
            trouble.left_out += len(uses) // USE_BYTES + len(events)
            raise AuditUnavailable(trouble.sentence)
        if not uses and not events:
            return self._tail.number
        encoded = [encode_event(event) for event in events] if events else []
        with self._writing:
            if self._trouble is not None:
                raise AuditUnavailable(self._sentence)
            return self._write(uses, encoded)

    def _write(self, uses: bytes, events: list[bytes], *, may_rotate: bool = True) -> int:
        now = self._clock_ns()
        offset = now - self._monotonic_ns()
        if not -CLOCK_BACKWARD_NS <= offset - self._offset <= CLOCK_FORWARD_NS:
            jump = {"event": "clock.jumped", "by_ns": offset - self._offset}
            frame_events = [encode_event(jump), *events]
        else:
            frame_events = events
        definitions = self._names.undefined
        undefined = len(definitions)
        if undefined:
            # They count as records like any event; readers look for them before they resolve the uses.
            frame_events = [*definitions[:undefined], *frame_events]
        tail = self._tail
        frame, link = encode_frame(tail.link, tail.number, now, uses, b"".join(frame_events))
        size = tail.size + len(frame)
        if size > self._segment_bytes and may_rotate and tail.size > tail.segment.begun:
            self._rotate(now, len(uses) // USE_BYTES + len(events))
            return self._write(uses, events, may_rotate=False)
        try:
            put(tail.segment.fd, frame)
        except OSError as error:
            self._fail(error, len(uses) // USE_BYTES + len(events))
            raise AuditUnavailable(self._sentence) from error
        number = tail.number + len(uses) // USE_BYTES + len(frame_events)
        self._offset = offset
        self._tail = Tail(number, tail.segment, size, link, now)
        if undefined:
            del definitions[:undefined]
        return number

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder.path

    @property
    def position(self) -> int:
        """The record number after the last frame."""
        return self._tail.number

    @property
    def durable(self) -> int:
        """The record number up to which everything would survive a power cut, as the last `sync` left it."""
        return self._unsynced.durable

    def head(self) -> Head:
        """Return where the journal ends, for anchors, checkpoints and backups."""
        tail = self._tail
        return Head(self.instance, tail.segment.number, tail.number, tail.link, tail.time_ns)

    # --- durability ------------------------------------------------------------------------------------

    def sync(self) -> int:
        """Make durable what was written before the call, and return that position. For a worker thread.

        Raises:
            AuditUnavailable: it could not be done. What waits for a position beyond `durable` must be refused,
                even if a later sync succeeds.
        """
        try:
            return self._unsynced.sync(lambda: self._tail)
        except SegmentLost as lost:
            if lost.why is not None:
                self._unavailable(lost.why)
            raise AuditUnavailable(str(lost)) from None
        except OSError as error:
            why = f"the journal cannot be made durable: {_reason(error)}"
            self._unavailable(why)
            raise AuditUnavailable(why) from error

    # --- trouble ---------------------------------------------------------------------------------------

    @property
    def unavailable_because(self) -> str | None:
        """Why nothing can be written now, as a sentence; None when all is well."""
        return self._trouble.sentence if self._trouble is not None else None

    @property
    def _sentence(self) -> str:
        return self._trouble.sentence if self._trouble is not None else "the journal is closed"

    def check(self) -> bool:
        """Look whether the file and its folder are still there; to be called about once a second.

        If they are not, a new segment is begun that tells of it. Returns whether the journal is available.
        """
        if self._trouble is not None:
            return False  # before the lock, as in `append`
        with self._writing:
            if self._trouble is None:
                tail = self._tail
                why = tail.segment.why_lost(tail.size, tail.size)
                if why is not None:
                    tail.segment.is_lost = True
                    self._recover(self._unavailable(why))
            return self._trouble is None

    def recover(self) -> bool:
        """Try to write again after a failure; return whether the journal is available."""
        with self._writing:
            trouble = self._trouble
            if trouble is None:
                return True
            return not self._is_closed and self._recover(trouble)

    def _recover(self, trouble: _Trouble) -> bool:
        tail = self._tail
        event: dict[str, object] = {
            "event": "journal.recovered",
            "because": trouble.sentence,
            "since_ns": trouble.since_ns,
            "left_out": trouble.left_out,
        }
        try:
            self._folder.hold()
            if trouble.is_full:
                self._folder.require_room()
            if not tail.segment.is_lost and tail.segment.why_lost(tail.size, None) is not None:
                tail.segment.is_lost = True
            self._folder.make_reserve()
            if tail.segment.is_lost:
                lost = {
                    "event": "journal.lost",
                    "segment": tail.segment.number,
                    "number": tail.number,
                    "link": tail.link,
                    "because": trouble.sentence,
                }
                self._begin_next([lost, event])
            elif trouble.needs_segment and not tail.segment.cut(tail.size):
                torn = {
                    "event": "journal.torn",
                    "segment": tail.segment.number,
                    "offset": tail.size,
                    "bytes": os.fstat(tail.segment.fd).st_size - tail.size,
                }
                self._begin_next([torn, event])
            elif tail.segment.is_suspect:
                self._begin_next([event])
            else:
                trouble.needs_segment = False
                self._say(event)
        except (OSError, AuditUnavailable) as error:
            self._folder.drop_reserve()
            trouble.sentence = _sentence_of(error)
            return False
        self._trouble = None
        return True

    def _unavailable(self, sentence: str, *, left_out: int = 0) -> _Trouble:
        if self._trouble is None:
            self._trouble = _Trouble(sentence, self._clock_ns(), left_out)
        return self._trouble

    def _fail(self, error: OSError, left_out: int) -> None:
        trouble = self._unavailable(_sentence_of(error), left_out=left_out)
        tail = self._tail
        trouble.needs_segment = not tail.segment.cut(tail.size)
        if error.errno in _FULL:
            trouble.is_full = True
            if self._folder.drop_reserve():
                self._try_to_say({"event": "journal.full", "because": trouble.sentence})

    def _say(self, event: Mapping[str, object]) -> None:
        """Write one event although the journal is unavailable. An OSError leaves nothing of it on file."""
        tail = self._tail
        definitions = self._names.undefined
        undefined = len(definitions)
        encoded = [*definitions[:undefined], encode_event(event)]
        now = self._clock_ns()
        frame, link = encode_frame(tail.link, tail.number, now, b"", b"".join(encoded))
        try:
            put(tail.segment.fd, frame)
        except OSError:
            if not tail.segment.cut(tail.size) and self._trouble is not None:
                self._trouble.needs_segment = True
            raise
        number = tail.number + len(encoded)
        self._tail = Tail(number, tail.segment, tail.size + len(frame), link, now)
        del definitions[:undefined]

    def _try_to_say(self, event: Mapping[str, object]) -> None:
        trouble = self._trouble
        if self._tail.segment.is_lost or (trouble is not None and trouble.needs_segment):
            return
        with suppress(OSError):
            self._say(event)

    def close(self, events: Sequence[Mapping[str, object]] = ()) -> None:
        """Say goodbye, with these events, make everything durable if that is possible, and let the folder go.

        It raises nothing: there is nobody left who could wait for the journal.
        """
        with self._writing:
            if self._is_closed:
                return
            trouble = self._trouble
            last: dict[str, object] = {"event": "journal.closed"}
            if trouble is not None:
                last |= {"because": trouble.sentence, "left_out": trouble.left_out}
            self._folder.drop_reserve()
            for event in (*events, last):
                self._try_to_say(event)
            self._is_closed = True
            self._unavailable("").sentence = "the journal is closed"
        if self._unsynced.is_free_within(_CLOSE_WAIT_S):
            with suppress(AuditUnavailable):
                self.sync()
            self._release()
        # Otherwise an fsync hangs, and its thread has the descriptors; they go with the process.

    def _release(self) -> None:
        self._unsynced.close()
        self._folder.release()

    # --- segments --------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._folder.remove_unfinished()
        self._folder.make_reserve()
        tail, torn = reopen(self._folder, self.instance, self._names)
        opened = {"event": "journal.opened", "torn_bytes": torn}
        if tail is None:
            self._go_on(self._make_segment(FIRST_SEGMENT, FIRST_RECORD, NO_LINK, [opened]))
            return
        self._go_on(tail)
        events = [encode_event(opened)]
        by = self._clock_ns() - tail.time_ns
        if by < -CLOCK_BACKWARD_NS:
            events.append(encode_event({"event": "clock.jumped", "by_ns": by}))
        self._write(b"", events)

    def _go_on(self, tail: Tail) -> None:
        self._unsynced.add(tail.segment)
        self._tail = tail

    def _rotate(self, now: int, waiting: int) -> None:
        try:
            self._begin_next([], now=now)
        except OSError as error:
            self._fail(error, waiting)
            raise AuditUnavailable(self._sentence) from error
        if self._retain is not None:
            self._remove_oldest(self._retain)

    def _begin_next(
        self, events: Iterable[Mapping[str, object]], *, now: int | None = None
    ) -> None:
        tail = self._tail
        number = tail.segment.number + 1
        following = self._make_segment(number, tail.number, tail.link, events, now=now)
        tail.segment.retire(tail.size)
        self._go_on(following)

    def _make_segment(
        self,
        number: int,
        first: int,
        previous: bytes,
        events: Iterable[Mapping[str, object]],
        *,
        now: int | None = None,
    ) -> Tail:
        """Make a segment that goes on from a record and a link; return where the journal ends with it."""
        if number > LAST_SEGMENT:
            raise OSError(errno.EOVERFLOW, "the journal has no segment number left")
        path = self.folder / segment_name(number)
        if path.exists():
            raise OSError(errno.EEXIST, f"{path.name} is there, and keyd did not write it")
        now = self._clock_ns() if now is None else now
        encoded = encode_header(Header(self.instance, number, first, now, previous))
        link = encoded[-LINK_BYTES:]
        parts = [encoded]
        undefined = len(self._names.undefined)
        for batch in _batches(self._names.definitions(), events):
            frame, link = encode_frame(link, first, now, b"", b"".join(batch))
            parts.append(frame)
            first += len(batch)
        content = b"".join(parts)
        segment = make_segment(path, number, content)
        del self._names.undefined[:undefined]
        return Tail(first, segment, len(content), link, now)

    def _remove_oldest(self, retain: int) -> None:
        numbers = self._folder.segments()
        oldest = numbers[: max(0, len(numbers) - retain) + 1]
        for number, following in pairwise(oldest):
            path = self.folder / segment_name(number)
            try:
                # The header of the next segment says all that is to be kept of this one.
                header = header_of(path)
                after = header_of(self.folder / segment_name(following))
                removed: dict[str, object] = {
                    "event": "journal.removed",
                    "segment": following - 1,
                    "first": header.first,
                    "next": after.first,
                    "link": after.previous,
                }
                # First the event: a removal that nobody knows of looks like tampering, the other way does not.
                self._write(b"", [encode_event(removed)], may_rotate=False)
                self._unsynced.expect_removal(number)
                path.unlink()
            except (OSError, NotAJournal) as error:
                # A journal that is too long is no reason to refuse work.
                kept = {"event": "journal.not_removed", "segment": number, "because": str(error)}
                self._write(b"", [encode_event(kept)], may_rotate=False)
                return


def _batches(
    definitions: Iterable[bytes], events: Iterable[Mapping[str, object]]
) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for encoded in definitions:
        if size + len(encoded) > _DEFINITIONS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(encoded)
        size += len(encoded)
    batch += map(encode_event, events)
    if batch:
        yield batch


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _sentence_of(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the journal cannot be written: {_reason(error)}"
    return str(error)
