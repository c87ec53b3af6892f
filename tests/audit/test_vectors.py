"""The worked example of docs/journal.md: its bytes do not change, and changing one is found where it is said.

The files in tests/vectors/journal are the contract with journals that are already written. If the first test
fails, the format has changed: that needs a new version, not new vectors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyd.audit.query import UseRecord, query
from keyd.audit.records import Anchor, Use, encode_use, segment_name
from keyd.audit.verify import verify
from tests.audit.conftest import SECOND

if TYPE_CHECKING:
    from tests.audit.conftest import Clock, OpenJournal

VECTORS = Path(__file__).parent.parent / "vectors" / "journal"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "expected.json").read_text())
CARD = bytes.fromhex("510100") + bytes(13)


def write_example(open_journal: OpenJournal, clock: Clock) -> None:
    """Two segments: a start, three uses in two frames, an officer's act; and what a rotation restates."""
    journal = open_journal(segment_bytes=640)
    method = journal.number_of("method", "card.internal_authenticate")
    terminal = journal.number_of("terminal", "T-0001")
    key = journal.number_of("key", "SOCIAL/0170/v1")
    clock.wait(SECOND)
    journal.append(
        encode_use(Use(method, 0, 1, terminal, key, CARD))
        + encode_use(Use(method, 400, 2, terminal, key, CARD))
    )
    clock.wait(SECOND)
    journal.append(events=[{"event": "key.activated", "domain": "SOCIAL", "officer": "Wei"}])
    clock.wait(SECOND)
    journal.append(encode_use(Use(method, 0, 1, terminal, key, CARD)))
    clock.wait(SECOND)
    journal.close()


def test_the_example_is_written_with_these_bytes(
    open_journal: OpenJournal, folder: Path, clock: Clock
) -> None:
    write_example(open_journal, clock)
    for number in (1, 2):
        name = segment_name(number)
        assert (folder / name).read_bytes() == (VECTORS / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [segment_name(1), segment_name(2)]


def test_the_example_verifies_and_reads_as_it_says() -> None:
    head = EXPECTED["head"]
    report = verify(VECTORS, expected=[Anchor(head["number"], bytes.fromhex(head["link"]))])
    assert report.is_good
    assert report.torn is None
    assert report.records == head["number"] - 1
    read = [
        [r.number, r.method, r.terminal, r.key, r.card.hex(), r.status_name]
        if isinstance(r, UseRecord)
        else [r.number, r.name, r.fields]
        for r in query(VECTORS)
    ]
    assert read == EXPECTED["records"]


@pytest.mark.parametrize("case", EXPECTED["changed"], ids=lambda case: case["what"])
def test_a_changed_byte_is_found_where_it_is_said(case: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    shutil.copytree(VECTORS, folder)
    path = folder / case["file"]
    data = bytearray(path.read_bytes())
    assert data[case["offset"]] == case["was"]
    data[case["offset"]] = case["is"]
    path.write_bytes(data)
    bad = verify(folder).bad
    assert bad is not None
    assert (bad.number, bad.file, bad.offset) == (case["bad"], case["bad_file"], case["bad_offset"])
