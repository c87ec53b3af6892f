"""`keyd backup`, `restore`, `verify-backup`: the whole store in one file that opens with its shares only."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyd.cli.common import (
    ConfigOption,
    Desk,
    JsonOption,
    Printer,
    groups_of_4,
    officers_desk,
    using,
)
from keyd.cli.files import public_key, read_large, require_new, write_new
from keyd.cli.store import empty_store, record_of, settings
from keyd.cli.words import fingerprint_of, moment
from keyd.custody.backup import MAX_BACKUP_BYTES, verify_backup
from keyd.errors import RemoteProtocolError
from keyd.keys.block import Domain
from keyd.protocol.messages.custody import TakeBackup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.custody.backup import Report

PublicKeyOption = Annotated[
    str | None,
    typer.Option(
        "--public-key",
        metavar="HEX|FILE",
        help="The key that keyd init showed: the backup must be signed with it.",
    ),
]
BackupArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


@using(officers_desk)
def backup(
    desk: Desk,
    file: Annotated[Path, typer.Argument(help="The file to write. Never overwritten.")],
) -> None:
    """Write a backup while keyd serves: ciphertext, signed by keyd. LOCAL's operators may.

    FILE is complete, or it is not there at all.
    """
    require_new(file)
    data = _taken(desk)
    # What is kept for a bad day is known to be good on the day it is made.
    report, _snapshot = verify_backup(data)
    write_new(file, data)
    desk.tell(_plain(report, file), (f"{file}, {len(data)} bytes", *_lines(report)))


def verify(
    file: BackupArgument,
    public_key_text: PublicKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a backup is whole and whose it is. It needs no share, no key and no keyd."""
    report, _snapshot = verify_backup(_read(file), _point(public_key_text))
    remark = () if public_key_text else ("Compare the fingerprint: nobody else did.",)
    Printer(as_json=as_json).tell(
        _plain(report, file), (f"{file} is whole", *_lines(report), *remark)
    )


def restore(
    file: BackupArgument,
    config: ConfigOption,
    public_key_text: PublicKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup into the empty store of a configuration; the shares of its seal then unseal it."""
    report, snapshot = verify_backup(_read(file), _point(public_key_text))
    place = settings(config)
    now = int(time.time())
    event = {
        "event": "store.restored",
        "domain": Domain.LOCAL.value,
        "store": report.store_id.hex(),
        "backup_of": report.made_at,
        "backup_by": report.made_by,
        "number": snapshot.number,
    }
    with contextlib.closing(empty_store(place.url)) as store:
        store.fill(snapshot)
        store.commit([], [record_of(event, now)], place.instance)
    Printer(as_json=as_json).tell(
        _plain(report, file),
        (
            f"restored from {file}",
            *_lines(report),
            f"Start keyd; any {report.threshold} of the {report.shares} shares of seal "
            f"{report.generation} unseal it.",
        ),
    )


def _taken(desk: Desk) -> bytes:
    data = bytearray()
    while True:
        part = desk.ask(TakeBackup(len(data)))
        if part.total > MAX_BACKUP_BYTES or (data and not part.part):
            raise RemoteProtocolError("keyd gave something else than a backup")
        data += part.part
        if len(data) >= part.total:
            return bytes(data)


def _read(file: Path) -> bytes:
    return read_large(file, MAX_BACKUP_BYTES)


def _point(text: str | None) -> bytes | None:
    return None if text is None else public_key(text).encode()


def _plain(report: Report, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "store_id": report.store_id.hex(),
        "generation": report.generation,
        "threshold": report.threshold,
        "shares": report.shares,
        "public_key": report.public_key.hex().upper(),
        "fingerprint": fingerprint_of(report.public_key),
        "made_at": report.made_at,
        "made_by": report.made_by,
        "journal": {
            "instance": report.journal.instance,
            "segment": report.journal.segment,
            "record": report.journal.record,
            "link": report.journal.link.hex().upper(),
            "time_ns": report.journal.time_ns,
        },
        "rows": report.rows,
        "keys": list(report.keys),
    }


def _lines(report: Report) -> Iterator[str]:
    journal = report.journal
    rows = ", ".join(f"{count} {kind}" for kind, count in sorted(report.rows.items()))
    yield f"store        {groups_of_4(report.store_id.hex().upper())}"
    yield f"made         {moment(report.made_at)} by {report.made_by}"
    yield f"seal         {report.generation}, opened by any {report.threshold} of {report.shares} shares"
    yield f"holds        {rows}"
    yield f"journal      {journal.instance}, segment {journal.segment}, record {journal.record}"
    yield f"fingerprint  {fingerprint_of(report.public_key)}"
