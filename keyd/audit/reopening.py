"""Where a journal goes on: its last segment, checked to its last byte, without what a crash cut short.

Only what can be a write that was cut short is taken away, and it is kept as evidence. Anything else that is not what
was written is refused.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import TYPE_CHECKING

from keyd.audit.records import (
    HeaderTorn,
    NotAJournal,
    decode_event,
    decode_frame,
    decode_header,
    is_torn,
    segment_name,
)
from keyd.audit.segment import APPENDING, Segment, Tail
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.audit.folder import Folder
    from keyd.audit.names import Names
    from keyd.audit.records import Header


def reopen(folder: Folder, instance: str, names: Names) -> tuple[Tail | None, int]:
    """Return where the journal ends, None if it has no segment, and how many torn bytes were taken away.

    Raises:
        AuditUnavailable: it is not what was written, or it is another instance's.
        OSError: it cannot be read or cut.
    """
    torn = 0
    for number in reversed(folder.segments()):
        try:
            tail, cut_off = _reopen_segment(folder, number, instance, names)
        except HeaderTorn:
            # It was begun, but never arrived on the disk: the journal ends in the segment before.
            torn += folder.set_aside(number)
        except NotAJournal as error:
            raise AuditUnavailable(
                f"{folder.path / segment_name(number)} was changed: {error}; "
                "move the folder away and keep it"
            ) from None
        else:
            return tail, torn + cut_off
    return None, torn


def _reopen_segment(folder: Folder, number: int, instance: str, names: Names) -> tuple[Tail, int]:
    path = folder.path / segment_name(number)
    if not stat.S_ISREG(path.lstat().st_mode):
        raise NotAJournal("it is no file")
    path.chmod(0o600)  # if the segment after it was set aside, it was closed already
    fd = os.open(path, APPENDING)
    try:
        size = os.fstat(fd).st_size
        data = _whole(fd, size)
        header, offset, link = decode_header(data)
        _require_own(header, path, instance)
        first, time_ns = header.first, header.made_ns
        while offset < size:
            try:
                frame = decode_frame(data, offset, link, first)
            except NotAJournal as error:
                if is_torn(data[offset:], link):
                    break
                raise NotAJournal(f"at record {first}, offset {offset}, {error}") from None
            for event in frame.events:
                names.learn(decode_event(event))
            first, link, time_ns = frame.next, frame.link, frame.time_ns
            offset += frame.length
        if offset < size:
            folder.keep_as_torn(number, data[offset:])
            os.ftruncate(fd, offset)
    except BaseException:
        os.close(fd)
        raise
    segment = Segment(path, number, fd, size=offset)
    return Tail(first, segment, offset, link, time_ns), size - offset


def _require_own(header: Header, path: Path, instance: str) -> None:
    if segment_name(header.segment) != path.name:
        raise NotAJournal(f"it is segment {header.segment} under another's name")
    if header.instance != instance:
        raise AuditUnavailable(f"{path.parent} is the journal of {header.instance}")


def _whole(fd: int, size: int) -> bytes:
    if not size:
        return b""
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        return mapped[:]
