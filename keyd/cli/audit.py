"""`keyd audit`: verify, query and export a journal, offline and without a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from keyd.audit.checkpoints import CheckpointNotAuthentic, load_public_key, read_checkpoints
from keyd.audit.query import EventRecord, Filter, Record, UseRecord, query
from keyd.audit.records import Anchor, NotAJournal
from keyd.audit.verify import Report, verify
from keyd.cli.common import JsonOption
from keyd.config import load_config
from keyd.crypto.sm2 import PointNotOnCurve
from keyd.errors import Status

app = typer.Typer(
    help="Verify and read a journal, offline; keyd may go on writing it.", no_args_is_help=True
)

# The newest of a store's anchors: the last of them is what a cut shows against.
MAX_ANCHORS = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FolderArgument = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="The journal's folder."),
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="ISO 8601; UTC unless it says otherwise."),
]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="Until, exclusive, like --from.")
]
DomainOption = Annotated[
    str | None, typer.Option("--domain", help="Only this domain's records, like FINANCE.")
]


@app.command(name="verify")
def verify_command(
    folder: FolderArgument,
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME|NUMBER", help="ISO 8601 in UTC, or a record number."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME|NUMBER", help="Like --from.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File of signed checkpoints."),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(metavar="HEX|FILE", help="The checkpoints' SM2 key: 130 hex digits, or PEM."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="keyd.toml: compare with the anchors in its store as well.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the chain, and that the journal goes through checkpoints and anchors. Exit status 1: it is bad."""
    if (checkpoints is None) != (public_key is None):
        raise typer.BadParameter("--checkpoints and --public-key go together")
    from_ns, from_number = _bound(begin, "--from")
    to_ns, to_number = _bound(end, "--to")
    with _sentences():
        anchors = _anchors(checkpoints, public_key)
        if config is not None:
            anchors += _anchors_in_store(config)
        report = verify(
            folder,
            from_ns=from_ns,
            to_ns=to_ns,
            from_number=from_number,
            to_number=to_number,
            expected=anchors,
        )
    if as_json:
        typer.echo(json.dumps(_plain_report(report), ensure_ascii=False))
    else:
        _show(report, len(anchors))
    if not report.is_good:
        raise typer.Exit(1)


@app.command(name="query")
def query_command(
    folder: FolderArgument,
    begin: FromOption = None,
    end: ToOption = None,
    terminal: Annotated[str | None, typer.Option(help="The terminal's code.")] = None,
    method: Annotated[str | None, typer.Option(help="Like card.internal_authenticate.")] = None,
    status: Annotated[str | None, typer.Option(help="A status by name or number.")] = None,
    key: Annotated[
        str | None, typer.Option(help="A key's name, or its beginning up to a slash.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(metavar="HEX", help="Card identifier, or its beginning: a region.")
    ] = None,
    officer: Annotated[str | None, typer.Option(help="Events of this officer.")] = None,
    event: Annotated[str | None, typer.Option(help="Events of this name.")] = None,
    domain: DomainOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the records that all given options fit."""
    from_ns, to_ns = _time(begin, "--from"), _time(end, "--to")
    wanted = Filter(
        from_ns=from_ns,
        to_ns=to_ns,
        terminal=terminal,
        method=method,
        status=_status(status),
        key=key,
        card=_card(card),
        officer=officer,
        event=event,
        domain=domain,
    )
    with _sentences():
        for record in query(folder, wanted):
            typer.echo(_json_line(record) if as_json else _line(record))


@app.command()
def export(
    folder: FolderArgument,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One JSON object per line.")] = False,
    begin: FromOption = None,
    end: ToOption = None,
    domain: DomainOption = None,
) -> None:
    """Write all records to standard output."""
    if not jsonl:
        raise typer.BadParameter("say --jsonl: it is the one format there is")
    from_ns, to_ns = _time(begin, "--from"), _time(end, "--to")
    with _sentences():
        for record in query(folder, Filter(from_ns=from_ns, to_ns=to_ns, domain=domain)):
            typer.echo(_json_line(record))


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except (NotAJournal, CheckpointNotAuthentic) as error:
        typer.echo(f"keyd: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"keyd: {error.filename}: {error.strerror}", err=True)
        raise typer.Exit(2) from None


def _bound(text: str | None, option: str) -> tuple[int | None, int | None]:
    if text is not None and re.fullmatch(r"[0-9]{1,20}", text):
        return None, int(text)
    return _time(text, option), None


def _time(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is no time like 2026-03-01T08:00") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Whole microseconds as integers: a float has no room for nanoseconds since 1970.
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _iso(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _status(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return Status[text.upper()].value
    except KeyError:
        raise typer.BadParameter(f"there is no status {text}") from None


def _card(text: str | None) -> bytes | None:
    try:
        return bytes.fromhex(text) if text is not None else None
    except ValueError:
        raise typer.BadParameter("--card is given in hexadecimal") from None


def _anchors(checkpoints: Path | None, public_key: str | None) -> list[Anchor]:
    if checkpoints is None or public_key is None:
        return []
    text = public_key
    if not re.fullmatch(r"[0-9A-Fa-f]{130}", text):
        try:
            text = Path(public_key).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise typer.BadParameter(f"{public_key}: {error.strerror}") from None
    try:
        key = load_public_key(text)
    except (ValueError, PointNotOnCurve) as error:
        raise typer.BadParameter(str(error)) from None
    return [head.anchor for head in read_checkpoints(checkpoints, key)]


def _anchors_in_store(path: Path) -> list[Anchor]:
    # SQLAlchemy takes a quarter of a second to be imported, and no other command here opens a database.
    from keyd.opening import expand_url
    from keyd.store.database import Store

    config = load_config(path)
    store = Store.open(expand_url(config.store.url))
    try:
        found = store.anchors(config.audit.instance, limit=MAX_ANCHORS)
    finally:
        store.close()
    return [Anchor(anchor.sequence, anchor.link) for anchor in found]


def _show(report: Report, anchors: int) -> None:
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.torn is not None:
        torn = report.torn
        typer.echo(
            f"note: {torn.file} ends with {torn.bytes} bytes, from offset {torn.offset}, of a write that is"
            " going on or was cut short by a crash"
        )
    if report.bad is not None:
        typer.echo(f"keyd: {report.bad}", err=True)
    elif report.head is not None:
        through = f", through {anchors} checkpoints" if anchors else ""
        typer.echo(
            f"good: {report.records} records from {report.first} on, in {report.segments} segments of"
            f" {report.head.instance}{through}; the last at {_iso(report.head.time_ns)},"
            f" link {report.head.link.hex().upper()}"
        )


def _plain_report(report: Report) -> dict[str, Any]:
    head, bad, torn = report.head, report.bad, report.torn
    return {
        "good": report.is_good,
        "records": report.records,
        "frames": report.frames,
        "segments": report.segments,
        "first": report.first,
        "head": None
        if head is None
        else {
            "instance": head.instance,
            "segment": head.segment,
            "number": head.number,
            "link": head.link.hex().upper(),
            "time": _iso(head.time_ns),
        },
        "bad": None
        if bad is None
        else {"number": bad.number, "file": bad.file, "offset": bad.offset, "why": bad.why},
        "torn": None
        if torn is None
        else {"file": torn.file, "offset": torn.offset, "bytes": torn.bytes},
        "notes": report.notes,
    }


def _plain(record: Record) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "number": record.number,
        "time": _iso(record.time_ns),
        "instance": record.instance,
    }
    if isinstance(record, EventRecord):
        # The event's own fields stay by themselves: one called `time` must not replace the record's.
        return plain | {"event": record.name, "fields": _without_bytes(record.fields)}
    return plain | {
        "connection": record.connection,
        "terminal": record.terminal,
        "method": record.method,
        "key": record.key,
        "card": record.card.hex().upper() if any(record.card) else None,
        "status": record.status_name,
    }


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_bytes(item) for name, item in value.items()}
    return value


def _json_line(record: Record) -> str:
    return json.dumps(_plain(record), ensure_ascii=False)


def _line(record: Record) -> str:
    start = f"{record.number} {_iso(record.time_ns)}"
    if isinstance(record, UseRecord):
        card = record.card.hex().upper() if any(record.card) else "-"
        return (
            f"{start} {_shown(record.method)} {record.status_name} terminal={_shown(record.terminal)}"
            f" key={_shown(record.key)} card={card} connection={record.connection}"
        )
    fields = " ".join(
        f"{_shown(name)}={json.dumps(_without_bytes(value))}"
        for name, value in record.fields.items()
    )
    return f"{start} {_shown(record.name)} {fields}".rstrip()


def _shown(name: str | None) -> str:
    # A line break or a terminal's control characters in a name must not look like another record.
    if name is None:
        return "-"
    return name if name.isprintable() and " " not in name else json.dumps(name)
