"""The one writer of a journal: a folder of segments that are only ever appended to.

`append` is called once per tick, and costs one write. `sync` may run in another thread meanwhile. What fails
is undone, and then the journal is unavailable until `recover` succeeds: nothing is acknowledged that is not
whole on file. The bytes are in records.py; who may read them is not decided here.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from keyd.audit.records import (
    FIRST_RECORD,
    FIRST_SEGMENT,
    HEADER_MAX,
    KINDS,
    LAST_SEGMENT,
    LINK_BYTES,
    NO_LINK,
    SUFFIX,
    USE_BYTES,
    Head,
    Header,
    HeaderTorn,
    NotAJournal,
    decode_event,
    decode_frame,
    decode_header,
    encode_definition,
    encode_event,
    encode_frame,
    encode_header,
    is_torn,
    segment_name,
    segment_number,
)
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

# A segment of 64 MiB holds two million records and is verified in seconds.
SEGMENT_BYTES: Final = 64 * 1024 * 1024

# Room for the last event of a full disk and for saying goodbye, hundreds of times over.
RESERVE_BYTES: Final = 256 * 1024
RESERVE_NAME: Final = "reserve"

# Whoever reads the times must know of it when they do not follow from each other. Forward, a minute: a tick
# may be late, and a suspended machine's monotonic clock stands. Backward, a second: slewing never steps back.
CLOCK_FORWARD_NS: Final = 60 * 1_000_000_000
CLOCK_BACKWARD_NS: Final = 1_000_000_000

# How long `close` waits for an fsync that hangs in another thread.
_CLOSE_WAIT_S: Final = 5.0

# Segments that wait for a sync stay open, since an error in writing them back is told to who has them open;
# but not without limit when nobody syncs.
_MAX_OPEN: Final = 8

# Definitions are restated in frames of at most this size, far below MAX_FRAME.
_DEFINITIONS_BYTES: Final = 1024 * 1024

# After a full disk, this much must be free beside the reserve: else the journal would come back and go again
# every second, with an event each time.
RECOVERY_BYTES: Final = 2 * RESERVE_BYTES

# What the reserve helps against. EFBIG is the limit of RLIMIT_FSIZE or of the filesystem.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_APPENDING: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class _Segment:
    """A segment file that is open, for appending or until it is durable."""

    __slots__ = (
        *(
            "begun",
            "durable_at",
            "fd",
            "identity",
            "is_lost",
            "is_removed",
            "is_suspect",
            "is_told",
        ),
        *("number", "path", "size"),
    )

    def __init__(self, path: Path, number: int, fd: int, *, size: int) -> None:
        self.path = path
        self.number = number
        self.fd = fd  # -1 if it is closed although a sync is still to come
        own = os.fstat(fd)
        self.identity = (own.st_ino, own.st_dev)
        self.begun = size  # its size when this process began to append to it
        self.size = (
            size  # its size when it was closed for appending; until then `_Tail.size` is right
        )
        self.durable_at = 0
        self.is_suspect = False  # an fsync of it failed
        self.is_lost = False  # the file under its name is not this one, or not as it was written
        self.is_removed = False  # retention has removed it
        self.is_told = False  # a sync has said so to those who wait

    def why_lost(self, least: int, most: int | None) -> str | None:
        """Tell what has happened to the file under the daemon; sizes as they must be."""
        name = self.path.name
        try:
            named = self.path.lstat()
        except OSError:
            return f"{name} was removed under keyd"
        if (named.st_ino, named.st_dev) != self.identity:
            return f"{name} was replaced under keyd"
        if named.st_size < least or (most is not None and named.st_size > most):
            return f"{name} was changed under keyd"
        return None


class _Tail(NamedTuple):
    """Where the journal ends. Replaced whole, so that another thread sees one state or the next."""

    number: int
    segment: _Segment
    size: int
    link: bytes
    time_ns: int


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
        self.folder = folder
        self.instance = instance
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._segment_bytes = segment_bytes
        self._retain = retain_segments
        self._numbers: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        self._last_numbers = dict.fromkeys(KINDS, 0)
        self._undefined: list[bytes] = []  # definitions that are not on file yet
        self._trouble: _Trouble | None = None
        self._is_closed = False
        self._writing = threading.Lock()  # held while the tail moves
        self._syncing = threading.Lock()  # held during an fsync
        self._listing = threading.Lock()  # held while `_unsynced` changes; never while waiting
        self._unsynced: tuple[_Segment, ...] = ()
        self._is_folder_dirty = True
        self._folder_fd = -1
        self._offset = clock_ns() - monotonic_ns()
        self._durable = 0
        self._tail: _Tail
        try:
            self._take_folder()
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
            ValueError: there are no numbers left.
        """
        numbers = self._numbers[kind]
        number = numbers.get(name)
        if number is None:
            number = self._last_numbers[kind] + 1
            if number > KINDS[kind]:
                raise ValueError(f"the journal has no number left for a {kind}")
            encoded = encode_definition(kind, number, name)
            # In this order: a segment that another thread begins restates what has a number by then.
            numbers[name] = self._last_numbers[kind] = number
            self._undefined.append(encoded)
        return number

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
        undefined = len(self._undefined)
        if undefined:
            # They count as records like any event; readers look for them before they resolve the uses.
            frame_events = [*self._undefined[:undefined], *frame_events]
        tail = self._tail
        frame, link = encode_frame(tail.link, tail.number, now, uses, b"".join(frame_events))
        size = tail.size + len(frame)
        if size > self._segment_bytes and may_rotate and tail.size > tail.segment.begun:
            self._rotate(now, len(uses) // USE_BYTES + len(events))
            return self._write(uses, events, may_rotate=False)
        try:
            _put(tail.segment.fd, frame)
        except OSError as error:
            self._fail(error, len(uses) // USE_BYTES + len(events))
            raise AuditUnavailable(self._sentence) from error
        number = tail.number + len(uses) // USE_BYTES + len(frame_events)
        self._offset = offset
        self._tail = _Tail(number, tail.segment, size, link, now)
        if undefined:
            del self._undefined[:undefined]
        return number

    @property
    def position(self) -> int:
        """The record number after the last frame."""
        return self._tail.number

    @property
    def durable(self) -> int:
        """The record number up to which everything would survive a power cut, as the last `sync` left it."""
        return self._durable

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
        with self._syncing:
            # The tail first: segments that are opened after this only add to what is synced.
            tail = self._tail
            with self._listing:
                if self._folder_fd < 0:
                    raise AuditUnavailable(self._sentence)
                segments = self._unsynced
                is_folder_dirty, self._is_folder_dirty = self._is_folder_dirty, False
            try:
                for segment in segments:
                    self._sync_one(segment, tail)
                if is_folder_dirty:
                    os.fsync(self._folder_fd)
            except OSError as error:
                self._is_folder_dirty = True
                why = f"the journal cannot be made durable: {_reason(error)}"
                self._unavailable(why)
                raise AuditUnavailable(why) from error
            except AuditUnavailable:
                self._is_folder_dirty = True
                raise
            self._durable = max(self._durable, tail.number)
            return tail.number

    def _sync_one(self, segment: _Segment, tail: _Tail) -> None:
        is_current = segment is self._tail.segment
        end = tail.size if segment is tail.segment else segment.size
        if not segment.is_lost and (why := segment.why_lost(end, None)) is not None:
            if segment.is_removed:
                self._forget(segment)
                return
            segment.is_lost = True
            self._unavailable(why)
        if segment.is_lost:
            was_told, segment.is_told = segment.is_told, True
            if not is_current:
                self._forget(segment)
            if is_current or not was_told:
                raise AuditUnavailable(f"{segment.path.name} was removed or changed under keyd")
            return
        if segment.is_suspect and is_current:
            # It must not be written to again in its middle while it grows: recovery begins another.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        try:
            if segment.fd < 0:
                segment.fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            if segment.is_suspect:
                _write_again(segment.fd, segment.durable_at, end)
            os.fdatasync(segment.fd)
        except OSError:
            # After a failed fsync the kernel takes the pages for clean: asking again proves nothing.
            segment.is_suspect = True
            raise
        segment.is_suspect = False
        segment.durable_at = end
        if not is_current:
            self._forget(segment)

    def _forget(self, segment: _Segment) -> None:
        with self._listing:
            self._unsynced = tuple(other for other in self._unsynced if other is not segment)
            _close(segment)

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
            self._hold_folder()
            if trouble.is_full:
                self._require_room()
            if not tail.segment.is_lost and tail.segment.why_lost(tail.size, None) is not None:
                tail.segment.is_lost = True
            self._make_reserve()
            if tail.segment.is_lost:
                lost = {
                    "event": "journal.lost",
                    "segment": tail.segment.number,
                    "number": tail.number,
                    "link": tail.link,
                    "because": trouble.sentence,
                }
                self._begin_next([lost, event])
            elif trouble.needs_segment and not self._cut(tail):
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
            self._drop_reserve()
            trouble.sentence = _sentence_of(error)
            return False
        self._trouble = None
        return True

    def _require_room(self) -> None:
        room = os.fstatvfs(self._folder_fd)
        if room.f_bavail * room.f_frsize < RESERVE_BYTES + RECOVERY_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _cut(self, tail: _Tail) -> bool:
        try:
            os.ftruncate(tail.segment.fd, tail.size)
        except OSError:
            return False
        return os.fstat(tail.segment.fd).st_size == tail.size

    def _unavailable(self, sentence: str, *, left_out: int = 0) -> _Trouble:
        if self._trouble is None:
            self._trouble = _Trouble(sentence, self._clock_ns(), left_out)
        return self._trouble

    def _fail(self, error: OSError, left_out: int) -> None:
        trouble = self._unavailable(_sentence_of(error), left_out=left_out)
        trouble.needs_segment = not self._cut(self._tail)
        if error.errno in _FULL:
            trouble.is_full = True
            if self._drop_reserve():
                self._try_to_say({"event": "journal.full", "because": trouble.sentence})

    def _say(self, event: Mapping[str, object]) -> None:
        """Write one event although the journal is unavailable. An OSError leaves nothing of it on file."""
        tail = self._tail
        undefined = len(self._undefined)
        encoded = [*self._undefined[:undefined], encode_event(event)]
        now = self._clock_ns()
        frame, link = encode_frame(tail.link, tail.number, now, b"", b"".join(encoded))
        try:
            _put(tail.segment.fd, frame)
        except OSError:
            if not self._cut(tail) and self._trouble is not None:
                self._trouble.needs_segment = True
            raise
        number = tail.number + len(encoded)
        self._tail = _Tail(number, tail.segment, tail.size + len(frame), link, now)
        del self._undefined[:undefined]

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
            self._drop_reserve()
            for event in (*events, last):
                self._try_to_say(event)
            self._is_closed = True
            self._unavailable("").sentence = "the journal is closed"
        if self._syncing.acquire(timeout=_CLOSE_WAIT_S):
            self._syncing.release()
            with suppress(AuditUnavailable):
                self.sync()
            self._release()
        # Otherwise an fsync hangs, and its thread has the descriptors; they go with the process.

    def _release(self) -> None:
        with self._listing:
            segments, self._unsynced = self._unsynced, ()
        for segment in segments:
            _close(segment)
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    # --- the folder ------------------------------------------------------------------------------------

    def _take_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o700)
        except BlockingIOError:
            os.close(fd)
            raise AuditUnavailable(f"another process writes the journal in {self.folder}") from None
        except OSError:
            os.close(fd)
            raise
        self._folder_fd = fd

    def _hold_folder(self) -> None:
        """Make sure that the folder is the one that is locked; if it has vanished, make it again."""
        own = os.fstat(self._folder_fd)
        try:
            named = self.folder.stat()
            if (named.st_ino, named.st_dev) == (own.st_ino, own.st_dev) and own.st_nlink:
                return
        except FileNotFoundError:
            pass
        old = self._folder_fd
        self._take_folder()
        os.close(old)
        self._is_folder_dirty = True

    def _segments(self) -> list[int]:
        return segments_of(self.folder)

    def _make_reserve(self) -> None:
        path = self.folder / RESERVE_NAME
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def _drop_reserve(self) -> bool:
        try:
            (self.folder / RESERVE_NAME).unlink()
        except OSError:
            return False
        return True

    # --- segments --------------------------------------------------------------------------------------

    def _open(self) -> None:
        for leftover in self.folder.glob("*" + SUFFIX + ".new"):
            leftover.unlink()
        self._make_reserve()
        numbers = self._segments()
        torn = 0
        is_open = False
        while numbers and not is_open:
            number = numbers.pop()
            try:
                torn += self._reopen(number)
            except HeaderTorn:
                # It was begun, but never arrived on the disk: the journal ends in the segment before.
                torn += self._set_aside(number)
            except NotAJournal as error:
                raise AuditUnavailable(
                    f"{self.folder / segment_name(number)} was changed: {error}; "
                    "move the folder away and keep it"
                ) from None
            else:
                is_open = True
        opened = {"event": "journal.opened", "torn_bytes": torn}
        if not is_open:
            self._begin_segment(FIRST_SEGMENT, FIRST_RECORD, NO_LINK, [opened])
            return
        events = [encode_event(opened)]
        by = self._clock_ns() - self._tail.time_ns
        if by < -CLOCK_BACKWARD_NS:
            events.append(encode_event({"event": "clock.jumped", "by_ns": by}))
        self._write(b"", events)

    def _reopen(self, number: int) -> int:
        """Go on with a segment; return how many torn bytes were cut off.

        Raises:
            NotAJournal: it is not what was written.
        """
        path = self.folder / segment_name(number)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NotAJournal("it is no file")
        path.chmod(0o600)  # if the segment after it was set aside, it was closed already
        fd = os.open(path, _APPENDING)
        try:
            size = os.fstat(fd).st_size
            data = _whole(fd, size)
            header, offset, link = decode_header(data)
            self._require_own(header, path)
            first, time_ns = header.first, header.made_ns
            while offset < size:
                try:
                    frame = decode_frame(data, offset, link, first)
                except NotAJournal as error:
                    if is_torn(data[offset:], link):
                        break
                    raise NotAJournal(f"at record {first}, offset {offset}, {error}") from None
                for event in frame.events:
                    self._learn(decode_event(event))
                first, link, time_ns = frame.next, frame.link, frame.time_ns
                offset += frame.length
            if offset < size:
                self._keep_as_torn(number, data[offset:])
                os.ftruncate(fd, offset)
        except BaseException:
            os.close(fd)
            raise
        segment = _Segment(path, number, fd, size=offset)
        self._unsynced = (segment,)
        self._tail = _Tail(first, segment, offset, link, time_ns)
        return size - offset

    def _require_own(self, header: Header, path: Path) -> None:
        if segment_name(header.segment) != path.name:
            raise NotAJournal(f"it is segment {header.segment} under another's name")
        if header.instance != self.instance:
            raise AuditUnavailable(f"{self.folder} is the journal of {header.instance}")

    def _learn(self, fields: Mapping[str, Any]) -> None:
        if "define" in fields:
            kind, number = fields["define"], fields["number"]
            self._numbers[kind][fields["name"]] = number
            self._last_numbers[kind] = max(self._last_numbers[kind], number)

    def _set_aside(self, number: int) -> int:
        path = self.folder / segment_name(number)
        size = path.stat().st_size
        path.rename(self._torn_path(number))
        return size

    def _keep_as_torn(self, number: int, rest: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._torn_path(number), flags, 0o400)
        try:
            _put(fd, rest)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _torn_path(self, number: int) -> Path:
        path = self.folder / f"{number:08d}.torn"
        count = 1
        while path.exists():
            count += 1
            path = self.folder / f"{number:08d}.torn-{count}"
        return path

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
        self._begin_segment(tail.segment.number + 1, tail.number, tail.link, events, now=now)

    def _begin_segment(
        self,
        number: int,
        first: int,
        previous: bytes,
        events: Iterable[Mapping[str, object]],
        *,
        now: int | None = None,
    ) -> None:
        """Begin a segment that goes on from a record and a link. It appears whole or not at all."""
        if number > LAST_SEGMENT:
            raise OSError(errno.EOVERFLOW, "the journal has no segment number left")
        path = self.folder / segment_name(number)
        if path.exists():
            raise OSError(errno.EEXIST, f"{path.name} is there, and keyd did not write it")
        now = self._clock_ns() if now is None else now
        encoded = encode_header(Header(self.instance, number, first, now, previous))
        link = encoded[-LINK_BYTES:]
        parts = [encoded]
        undefined = len(self._undefined)
        for batch in self._restated(events):
            frame, link = encode_frame(link, first, now, b"", b"".join(batch))
            parts.append(frame)
            first += len(batch)
        content = b"".join(parts)
        making = path.with_name(path.name + ".new")
        fd = os.open(making, _APPENDING | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _put(fd, content)
            making.rename(path)
        except OSError:
            os.close(fd)
            making.unlink(missing_ok=True)
            raise
        segment = _Segment(path, number, fd, size=len(content))
        self._retire(segment)
        self._tail = _Tail(first, segment, len(content), link, now)
        del self._undefined[:undefined]

    def _retire(self, successor: _Segment) -> None:
        for segment in self._unsynced:
            if segment is self._tail.segment:
                segment.size = self._tail.size
                try:
                    os.fchmod(segment.fd, 0o400)
                    # What may have to be written again must go to its place, not to the end.
                    flags = fcntl.fcntl(segment.fd, fcntl.F_GETFL)
                    fcntl.fcntl(segment.fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
                except OSError:
                    segment.is_lost = True
        with self._listing:
            self._unsynced = (*self._unsynced, successor)
            self._is_folder_dirty = True
        if len(self._unsynced) > _MAX_OPEN and self._syncing.acquire(blocking=False):
            # Nobody syncs. A sync that comes after all opens them again.
            for segment in self._unsynced[:-_MAX_OPEN]:
                _close(segment)
            self._syncing.release()

    def _restated(self, events: Iterable[Mapping[str, object]]) -> Iterable[list[bytes]]:
        batch: list[bytes] = []
        size = 0
        for kind, numbers in self._numbers.items():
            # Copied: `number_of` goes on in another thread.
            for name, number in list(numbers.items()):
                encoded = encode_definition(kind, number, name)
                if size + len(encoded) > _DEFINITIONS_BYTES:
                    yield batch
                    batch, size = [], 0
                batch.append(encoded)
                size += len(encoded)
        batch += map(encode_event, events)
        if batch:
            yield batch

    def _remove_oldest(self, retain: int) -> None:
        numbers = self._segments()
        oldest = numbers[: max(0, len(numbers) - retain) + 1]
        for number, following in pairwise(oldest):
            path = self.folder / segment_name(number)
            try:
                # The header of the next segment says all that is to be kept of this one.
                header = _header_of(path)
                after = _header_of(self.folder / segment_name(following))
                removed: dict[str, object] = {
                    "event": "journal.removed",
                    "segment": following - 1,
                    "first": header.first,
                    "next": after.first,
                    "link": after.previous,
                }
                # First the event: a removal that nobody knows of looks like tampering, the other way does not.
                self._write(b"", [encode_event(removed)], may_rotate=False)
                for segment in self._unsynced:
                    segment.is_removed |= segment.number == number
                path.unlink()
            except (OSError, NotAJournal) as error:
                # A journal that is too long is no reason to refuse work.
                kept = {"event": "journal.not_removed", "segment": number, "because": str(error)}
                self._write(b"", [encode_event(kept)], may_rotate=False)
                return


def segments_of(folder: Path) -> list[int]:
    """Return the numbers of the segments in a folder, in order."""
    numbers = (segment_number(path.name) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)


def _close(segment: _Segment) -> None:
    if segment.fd >= 0:
        os.close(segment.fd)
        segment.fd = -1


def _put(fd: int, content: bytes) -> None:
    written = os.write(fd, content)
    if written != len(content):
        # A disk that fills up takes a part, and says why not more when asked again.
        written += os.write(fd, content[written:])
    if written != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _whole(fd: int, size: int) -> bytes:
    if not size:
        return b""
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


def _header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return decode_header(file.read(HEADER_MAX))[0]


def _write_again(fd: int, start: int, end: int) -> None:
    while start < end:
        chunk = os.pread(fd, min(1024 * 1024, end - start), start)
        if not chunk:
            raise OSError(errno.EIO, "the segment is shorter than what was written")
        start += os.pwrite(fd, chunk, start)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _sentence_of(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the journal cannot be written: {_reason(error)}"
    return str(error)
