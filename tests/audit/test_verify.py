"""Nothing can be changed quietly: every byte, every cut and every moved frame of a small journal is found."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from keyd.audit.records import (
    FRAME_MIN,
    Anchor,
    Frame,
    decode_frame,
    decode_header,
    encode_frame,
    segment_name,
)
from keyd.audit.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.audit.records import Head
    from tests.audit.conftest import Clock, OpenJournal

Small = tuple["Path", "Head"]


@pytest.fixture
def small(open_journal: OpenJournal, folder: Path, clock: Clock, use: bytes) -> Small:
    """Three segments with uses, events and definitions, and where they end."""
    journal = open_journal(segment_bytes=900)
    for count in range(9):
        clock.wait(1_000_000)
        journal.number_of("key", f"SOCIAL/{count % 3}")
        journal.append(
            use * (1 + count % 3), [{"event": "officer.spoke", "n": count}] * (count % 2)
        )
    journal.close()
    assert len(list(folder.glob("*.keyd-journal"))) == 3
    return folder, journal.head()


def segment(folder: Path, number: int) -> Path:
    return folder / segment_name(number)


def frames_of(data: bytes) -> tuple[int, list[Frame]]:
    header, offset, link = decode_header(data)
    number, start, frames = header.first, offset, []
    while offset < len(data):
        frame = decode_frame(data, offset, link, number)
        frames.append(frame)
        number, link, offset = frame.next, frame.link, offset + frame.length
    return start, frames


def test_an_unchanged_journal_is_good(small: Small) -> None:
    folder, head = small
    report = verify(folder, expected=[head.anchor])
    assert report.bad is None
    assert report.torn is None
    assert report.head == head
    assert report.records == head.number - 1
    assert report.segments == 3


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_changed_byte_is_found_and_named(small: Small, number: int, flip: int) -> None:
    """Without any anchor: a changed byte is tampering, also in the very last frame."""
    folder, _ = small
    path = segment(folder, number)
    data = path.read_bytes()
    start, frames = frames_of(data)
    path.chmod(0o600)
    ends = []
    at = start
    for frame in frames:
        at += frame.length
        ends.append((at, frame.first))
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= flip
        path.write_bytes(changed)
        report = verify(folder)
        assert report.bad is not None, f"byte {offset} of {path.name}"
        assert report.bad.file == path.name
        if offset >= start:
            first = next(first for end, first in ends if offset < end)
            assert report.bad.number == first


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_cut_is_found(small: Small, number: int) -> None:
    """A cut in an earlier segment is tampering; at the very end it is torn, or shows against the anchor."""
    folder, head = small
    path = segment(folder, number)
    data = path.read_bytes()
    start, frames = frames_of(data)
    ends = {start}
    for frame in frames:
        ends.add(max(ends) + frame.length)
    path.chmod(0o600)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert verify(folder, expected=[head.anchor]).bad is not None, length
        alone = verify(folder)
        if number < 3:
            assert alone.bad is not None, length
        elif length in ends:
            # This is what a chain cannot know, and why there are anchors.
            assert alone.bad is None
            assert alone.torn is None
        else:
            assert alone.bad is None
            assert alone.torn is not None


def test_bytes_added_at_the_end_are_found(small: Small) -> None:
    folder, _ = small
    path = segment(folder, 3)
    data = path.read_bytes()
    for more in (b"x", bytes(40), data[-200:], b"\0\0\0\x40" + bytes(80)):
        path.write_bytes(data + more)
        report = verify(folder)
        assert report.bad is not None or report.torn is not None


@pytest.mark.parametrize("number", [1, 2])
def test_bytes_added_in_the_middle_are_no_torn_write(small: Small, number: int) -> None:
    """keyd would have told of a torn end that another segment follows."""
    folder, _ = small
    path = segment(folder, number)
    path.chmod(0o600)
    piece, _ = encode_frame(bytes(32), 1, 1, bytes(320), b"")
    data = path.read_bytes()
    for more in (b"\0", bytes(100), piece[:50], piece):
        path.write_bytes(data + more)
        report = verify(folder)
        assert report.bad is not None
        assert report.bad.file == path.name


def test_a_changed_frame_before_a_good_one_is_no_torn_tail(small: Small) -> None:
    """A length that points beyond the end must not hide the frames behind it."""
    folder, _ = small
    path = segment(folder, 3)
    data = path.read_bytes()
    start, frames = frames_of(data)
    assert len(frames) >= 2
    for beyond in (len(data), len(data) + 1, 1 << 20):
        changed = bytearray(data)
        changed[start : start + 4] = beyond.to_bytes(4, "big")
        changed[start + 30] ^= 1
        path.write_bytes(changed)
        report = verify(folder)
        assert report.bad is not None
        assert report.bad.number == frames[0].first


@pytest.mark.parametrize("number", [1, 2, 3])
def test_removed_doubled_and_swapped_frames_are_found(small: Small, number: int) -> None:
    folder, head = small
    path = segment(folder, number)
    data = path.read_bytes()
    start, frames = frames_of(data)
    path.chmod(0o600)
    pieces = []
    at = start
    for frame in frames:
        pieces.append(data[at : at + frame.length])
        at += frame.length
    for index in range(len(pieces)):
        without = pieces[:index] + pieces[index + 1 :]
        doubled = pieces[: index + 1] + pieces[index:]
        for changed in (without, doubled):
            path.write_bytes(data[:start] + b"".join(changed))
            assert verify(folder, expected=[head.anchor]).bad is not None
        for other in range(index):
            swapped = list(pieces)
            swapped[index], swapped[other] = swapped[other], swapped[index]
            path.write_bytes(data[:start] + b"".join(swapped))
            assert verify(folder).bad is not None


def test_removed_and_swapped_segments_are_found(small: Small, tmp_path: Path) -> None:
    folder, head = small
    for number in (1, 2, 3):
        copy = tmp_path / f"without-{number}"
        shutil.copytree(folder, copy)
        segment(copy, number).unlink()
        report = verify(copy, expected=[head.anchor])
        assert report.bad is not None
        assert report.bad.file == segment_name(number if number < 3 else 2)
        # Without its last segment, and without an anchor, a journal is only younger.
        assert (verify(copy).bad is None) == (number == 3)
    for one, other in ((1, 2), (2, 3), (1, 3)):
        copy = tmp_path / f"swapped-{one}-{other}"
        shutil.copytree(folder, copy)
        first, second = segment(copy, one), segment(copy, other)
        first.rename(copy / "x")
        second.rename(first)
        (copy / "x").rename(second)
        assert verify(copy).bad is not None


def test_an_empty_folder_is_not_good(tmp_path: Path) -> None:
    assert verify(tmp_path).bad is not None


def test_a_journal_made_anew_does_not_go_through_the_anchors(small: Small) -> None:
    """Whoever rewrites the whole chain is stopped by anchors alone."""
    folder, head = small
    path = segment(folder, 3)
    data = path.read_bytes()
    start, frames = frames_of(data)
    _, _, link = decode_header(data)
    made = data[:start]
    for frame in frames:
        events = b"".join(len(e).to_bytes(4, "big") + e for e in frame.events)
        forged = bytes(len(frame.uses))
        piece, link = encode_frame(link, frame.first, frame.time_ns, forged, events)
        made += piece
    path.write_bytes(made)
    assert verify(folder).bad is None
    report = verify(folder, expected=[head.anchor])
    assert report.bad is not None
    assert report.bad.number == head.number


def test_every_anchor_on_the_way_is_met_and_no_other(small: Small) -> None:
    folder, head = small
    anchors = []
    for number in (1, 2, 3):
        anchors += [
            Anchor(frame.next, frame.link)
            for frame in frames_of(segment(folder, number).read_bytes())[1]
        ]
    assert verify(folder, expected=anchors).bad is None
    for anchor in anchors:
        wrong = Anchor(anchor.number, bytes(32))
        assert verify(folder, expected=[*anchors, wrong]).bad is not None
        assert verify(folder, expected=[Anchor(anchor.number - 1, anchor.link)]).bad is not None
    beyond = verify(folder, expected=[Anchor(head.number + 1, head.link)])
    assert beyond.bad is not None
    assert "went on" in beyond.bad.why


def test_a_range_is_verified_by_itself(small: Small) -> None:
    folder, head = small
    second = decode_header(segment(folder, 2).read_bytes())[0]
    third = decode_header(segment(folder, 3).read_bytes())[0]
    first_path = segment(folder, 1)
    first_path.chmod(0o600)
    data = bytearray(first_path.read_bytes())
    data[-1] ^= 1
    first_path.write_bytes(data)
    assert verify(folder).bad is not None
    report = verify(folder, from_number=second.first, expected=[head.anchor])
    assert report.bad is None
    assert (report.first, report.segments) == (second.first, 2)
    report = verify(folder, from_ns=third.made_ns)
    assert (report.first, report.segments) == (third.first, 1)
    report = verify(folder, from_number=second.first, to_number=second.first + 1)
    assert (report.first, report.segments) == (second.first, 1)
    assert verify(folder, to_number=2).bad is not None
    assert verify(folder, from_number=1).bad is not None


def test_a_frame_that_is_being_written_is_torn_and_not_bad(small: Small) -> None:
    folder, head = small
    path = segment(folder, 3)
    piece, _ = encode_frame(head.link, head.number, head.time_ns, bytes(320), b"")
    for length in (1, FRAME_MIN - 1, FRAME_MIN, len(piece) - 1):
        data = path.read_bytes()
        path.write_bytes(data + piece[:length])
        report = verify(folder, expected=[head.anchor])
        assert report.bad is None
        assert report.torn is not None
        assert report.torn.bytes == length
        # A file may have grown before its bytes arrived.
        path.write_bytes(data + piece[:length] + bytes(len(piece) - length + 4096))
        if len(piece) - length >= 32:
            assert verify(folder).torn is not None
        path.write_bytes(data)
