"""`keyd audit` in its own process: sentences, exit statuses, and JSON that a program can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyd.audit.checkpoints import append_checkpoint
from keyd.audit.records import Use, encode_use, segment_name
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.store.database import Store
from keyd.store.rows import Anchor
from tests.audit.conftest import SECOND

if TYPE_CHECKING:
    from keyd.audit.journal import Journal
    from tests.audit.conftest import Clock


def audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "keyd", "audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def filled(journal: Journal, folder: Path, clock: Clock) -> Path:
    clock.wait(SECOND)
    journal.append(
        encode_use(
            Use(
                journal.number_of("method", "card.internal_authenticate"),
                0,
                1,
                journal.number_of("terminal", "T-1\nx"),
                journal.number_of("key", "SOCIAL/0170/v1"),
                bytes.fromhex("510100") + bytes(13),
            )
        ),
        [{"event": "officer.spoke", "officer": "Wei", "digest": b"\1\2", "domain": "SOCIAL"}],
    )
    return folder


def test_a_good_journal_is_0_and_a_bad_one_1_with_its_first_bad_record(
    filled: Path, journal: Journal, tmp_path: Path
) -> None:
    """While the journal is open for writing."""
    key = Sm2PrivateKey.generate()
    checkpoints, public = tmp_path / "checkpoints", key.public.encode().hex()
    append_checkpoint(checkpoints, journal.head(), key)
    options = ("--checkpoints", checkpoints, "--public-key", public)
    good = audit("verify", filled, *options)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("good: 6 records from 1 on, in 1 segments of keyd-1, through 1")
    report = json.loads(audit("verify", filled, *options, "--json").stdout)
    assert report["good"] is True
    assert report["head"]["number"] == 7

    path = filled / segment_name(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    bad = audit("verify", filled)
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("keyd: record 2 is bad (00000001.keyd-journal, offset ")
    report = json.loads(audit("verify", filled, "--json").stdout)
    assert report["bad"]["number"] == 2
    assert audit("query", filled).returncode == 1


def test_a_query_is_lines_or_json(filled: Path) -> None:
    lines = audit("query", filled, "--domain", "SOCIAL").stdout.splitlines()
    assert lines == [
        "2 2026-03-01T00:00:01.000000000Z card.internal_authenticate OK "
        'terminal="T-1\\nx" key=SOCIAL/0170/v1 card=51010000000000000000000000000000 connection=1',
        '6 2026-03-01T00:00:01.000000000Z officer.spoke officer="Wei" digest="0102" domain="SOCIAL"',
    ]
    (event,) = audit("query", filled, "--officer", "Wei", "--json").stdout.splitlines()
    assert json.loads(event) == {
        "number": 6,
        "time": "2026-03-01T00:00:01.000000000Z",
        "instance": "keyd-1",
        "event": "officer.spoke",
        "fields": {"officer": "Wei", "digest": "0102", "domain": "SOCIAL"},
    }
    until = audit("query", filled, "--to", "2026-03-01T08:00:01+08:00").stdout.splitlines()
    assert len(until) == 1
    assert "journal.opened" in until[0]


def test_an_export_is_one_object_per_line(filled: Path) -> None:
    done = audit("export", filled, "--jsonl")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["number"] for record in records] == [1, 2, 6]
    assert records[1]["card"] == "51010000000000000000000000000000"
    assert audit("export", filled).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "/nonexistent"),
        ("verify", ".", "--from", "yesterday"),
        ("verify", ".", "--public-key", "04"),
        ("query", ".", "--status", "SOMEHOW"),
        ("query", ".", "--card", "xyz"),
        ("query", ".", "--from", "5"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert audit(*arguments).returncode == 2


def test_what_was_cut_shows_against_the_anchors_in_the_store(
    filled: Path, journal: Journal, clock: Clock, tmp_path: Path
) -> None:
    """The chain alone cannot tell: a journal that ends sooner is a whole journal."""
    before = filled.joinpath(segment_name(1)).stat().st_size
    clock.wait(SECOND)
    journal.append(events=[{"event": "officer.spoke", "officer": "Wei", "domain": "SOCIAL"}])
    head = journal.head()
    store = Store.create(f"sqlite:///{tmp_path}/store.db")
    store.put_anchor(Anchor(journal.instance, head.segment, head.number, head.link, head.time_ns))
    store.close()
    config = tmp_path / "keyd.toml"
    config.write_text(
        f'store.url = "sqlite:///{tmp_path}/store.db"\npolicy.file = "none"\n'
        f'audit = {{folder = "{filled}", instance = "{journal.instance}"}}\n'
    )
    good = audit("verify", filled, "--config", config)
    assert good.returncode == 0, good.stdout + good.stderr
    journal.close()
    os.truncate(filled / segment_name(1), before)
    assert audit("verify", filled).returncode == 0
    cut = audit("verify", filled, "--config", config)
    assert cut.returncode == 1, cut.stdout
