"""Records come back by name, each filter lets through what it says, and a domain view shows one domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.audit.query import EventRecord, Filter, UseRecord, query
from keyd.audit.records import NotAJournal, Use, encode_use, segment_name
from keyd.errors import Status
from tests.audit.conftest import SECOND

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.audit.journal import Journal
    from tests.audit.conftest import Clock

ZHUHAI: Final = bytes.fromhex("519900") + bytes(13)
CHENGDU: Final = bytes.fromhex("510100") + bytes(13)
START: Final = 1_772_323_200 * SECOND


@pytest.fixture
def filled(journal: Journal, folder: Path, clock: Clock) -> Path:
    def append(method: str, terminal: str, key: str, card: bytes, status: Status) -> None:
        clock.wait(SECOND)
        numbers = (
            journal.number_of("terminal", terminal),
            journal.number_of("key", key) if key else 0,
        )
        use = Use(journal.number_of("method", method), status, 9, *numbers, card)
        journal.append(encode_use(use))

    append("card.internal_authenticate", "T-1", "SOCIAL/0170/v1", ZHUHAI, Status.OK)
    append(
        "card.internal_authenticate", "T-2", "SOCIAL/0170/v2", CHENGDU, Status.CARD_NOT_AUTHENTIC
    )
    append("medical.debit", "T-1", "FINANCE/01/v1", ZHUHAI, Status.OK)
    append("terminal.prove", "T-3", "", bytes(16), Status.OK)
    clock.wait(SECOND)
    journal.append(
        events=[
            {
                "event": "key.activated",
                "domain": "FINANCE",
                "officer": "Wei",
                "key": "FINANCE/01/v1",
            },
            {
                "event": "key.activated",
                "domain": "SOCIAL",
                "officer": "Li",
                "key": "SOCIAL/0170/v2",
            },
        ]
    )
    return folder


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(terminal="T-1"), 2),
        (Filter(method="card.internal_authenticate"), 2),
        (Filter(status=Status.CARD_NOT_AUTHENTIC), 1),
        (Filter(key="SOCIAL/0170/v1"), 1),
        (Filter(key="SOCIAL/0170"), 3),
        (Filter(key="SOCIAL/017"), 0),
        (Filter(card=bytes.fromhex("5199")), 2),
        (Filter(card=CHENGDU), 1),
        (Filter(officer="Wei"), 1),
        (Filter(event="key.activated"), 2),
        (Filter(event="key.activated", officer="Li"), 1),
        (Filter(terminal="T-1", event="key.activated"), 0),
        (Filter(from_ns=START + 3 * SECOND, to_ns=START + 5 * SECOND), 2),
        (Filter(from_ns=START + 6 * SECOND), 0),
    ],
)
def test_a_filter_lets_through_what_it_says(filled: Path, wanted: Filter, count: int) -> None:
    assert len(list(query(filled, wanted))) == count


@pytest.mark.parametrize("domain", ["SOCIAL", "FINANCE", "ACSE"])
def test_a_view_shows_one_domain_and_nothing_else(filled: Path, domain: str) -> None:
    """Also nothing without a domain, and nothing that another filter would add."""
    seen = list(query(filled, Filter(domain=domain)))
    assert len(seen) == {"SOCIAL": 3, "FINANCE": 2, "ACSE": 0}[domain]
    for record in seen:
        text = str(record.fields) if isinstance(record, EventRecord) else str(record.key)
        assert domain in text
        assert not any(other in text for other in {"SOCIAL", "FINANCE"} - {domain})


def test_records_are_numbered_and_named(filled: Path) -> None:
    use = next(record for record in query(filled) if isinstance(record, UseRecord))
    assert use == UseRecord(
        number=2,
        time_ns=START + SECOND,
        instance="keyd-1",
        connection=9,
        terminal="T-1",
        method="card.internal_authenticate",
        key="SOCIAL/0170/v1",
        card=ZHUHAI,
        status=0,
    )
    assert (use.status_name, use.domain) == ("OK", "SOCIAL")


def test_an_undefined_number_is_shown(journal: Journal, folder: Path) -> None:
    journal.append(encode_use(Use(5, 999, 0, 6, 7, bytes(16))))
    (use,) = (record for record in query(folder) if isinstance(record, UseRecord))
    assert (use.method, use.terminal, use.key) == ("#5", "#6", "#7")
    assert use.status_name == "999"


def test_changed_records_are_not_shown(filled: Path) -> None:
    path = filled / segment_name(1)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    shown: list[Any] = []
    with pytest.raises(NotAJournal, match="00000001"):
        shown.extend(query(filled))
