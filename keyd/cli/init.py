"""`keyd init`: found a store. It is the one act without dual control, done once by those who will hold the shares."""

from __future__ import annotations

import contextlib
import secrets
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from msgspec import Meta, Struct

from keyd.cli.common import ConfigOption, JsonOption, Printer, groups_of_4
from keyd.cli.component import no_core_dump
from keyd.cli.files import private_folder, public_key, read_small, require_new, write_new
from keyd.cli.keyboard import ask_open, is_interactive, show_once
from keyd.cli.papers import share_envelope
from keyd.cli.store import empty_store, record_of, settings
from keyd.cli.words import fingerprint_of
from keyd.config import ConfigError, load_config
from keyd.custody.actions import MAX_SHARES
from keyd.custody.founding import Founded, found
from keyd.custody.officers import Officer, OfficerCode, OfficerRole
from keyd.keepers import founding_keepers
from keyd.keys.block import Domain, Tier

if TYPE_CHECKING:
    from collections.abc import Iterator


class _FirstOfficer(Struct, frozen=True, forbid_unknown_fields=True):
    domain: Domain
    code: OfficerCode
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    roles: Annotated[tuple[OfficerRole, ...], Meta(min_length=1, max_length=4)]
    public_key: str


class _OfficersFile(Struct, frozen=True, forbid_unknown_fields=True):
    officers: Annotated[tuple[_FirstOfficer, ...], Meta(min_length=2)]


def init(
    config: ConfigOption,
    tier: Annotated[Tier, typer.Option("--tier", help="Whose keys the store is for.")],
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=MAX_SHARES, help="How many shares unseal it.")
    ],
    shares: Annotated[
        int, typer.Option("--shares", min=2, max=MAX_SHARES, help="How many shares there are.")
    ],
    officers: Annotated[
        Path, typer.Option("--officers", metavar="FILE", help="The first officers, in TOML.")
    ],
    shares_to: Annotated[
        Path | None,
        typer.Option(
            "--shares-to",
            metavar="FOLDER",
            help="Write share-1.txt … there, mode 0600; else the terminal shows one after another.",
        ),
    ] = None,
    credential: Annotated[
        Path | None,
        typer.Option(
            "--credential",
            metavar="FILE",
            help="A key that can open the seal as well, as a systemd credential (keyd store credential).",
        ),
    ] = None,
    pkcs11: Annotated[
        bool, typer.Option("--pkcs11", help="The configured token can open the seal as well.")
    ] = False,
    pin_file: Annotated[
        Path | None, typer.Option("--pin-file", metavar="FILE", help="File with the token's PIN.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Found a store: its seal, its wrapping keys, keyd's own key and the first officers.

    The officers' file lists [[officers]] with domain, code, name, roles and public_key (hex, or a FILE.pub beside it).
    Nothing is founded before every share has been shown or written.
    """
    printer = Printer(as_json=as_json)
    if shares_to is None and (as_json or not is_interactive()):
        raise typer.BadParameter("shares go to a terminal or into files: say --shares-to FOLDER")
    if threshold > shares:
        raise typer.BadParameter("there are fewer shares than are needed", param_hint="--threshold")
    no_core_dump()
    place = settings(config)
    now = int(time.time())
    first = first_officers(officers, now)
    keepers = founding_keepers(
        load_config(config), credential=credential, pkcs11=pkcs11, pin_file=pin_file
    )
    founded = found(
        tier=tier,
        threshold=threshold,
        share_count=shares,
        officers=first,
        keepers=keepers,
        now=now,
        random_bytes=secrets.token_bytes,
    )
    with contextlib.closing(empty_store(place.url)) as store:
        files = _hand_out(founded, shares_to)
        event = {
            "event": "store.founded",
            "domain": Domain.LOCAL.value,
            "store": founded.store_id.hex(),
            "tier": tier.value,
            "threshold": threshold,
            "shares": shares,
            "keepers": [keeper.name for keeper in keepers],
            "officers": [officer.title for officer in first],
        }
        try:
            store.commit(founded.changes, [record_of(event, now)], place.instance)
        except BaseException:
            # Shares of a seal that is not there would be taken for those of the next one.
            for file in files:
                file.unlink(missing_ok=True)
            raise
    printer.tell(
        _plain(founded, tier, threshold, shares, files, first),
        _lines(founded, tier, threshold, shares, files, first),
    )


def first_officers(file: Path, now: int) -> list[Officer]:
    """Read the officers that a store begins with.

    Raises:
        ConfigError: the file cannot be read, or has a wrong, missing or unknown entry.
        BadParameter, KeyFileUnusable: a public key is none.
    """
    try:
        read = msgspec.convert(tomllib.loads(read_small(file).decode()), _OfficersFile)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is no TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    return [
        Officer(
            domain=officer.domain,
            code=officer.code,
            name=officer.name,
            roles=tuple(dict.fromkeys(officer.roles)),
            public_key=public_key(officer.public_key, file.parent).encode(),
            enrolled_by="keyd init",
            enrolled_at=now,
        )
        for officer in read.officers
    ]


def _hand_out(founded: Founded, folder: Path | None) -> list[Path]:
    of = len(founded.shares)
    papers = [share_envelope(share, of, founded.store_id) for share in founded.shares]
    if folder is None:
        for share, paper in zip(founded.shares, papers, strict=True):
            ask_open(
                f"Share {share.number} of {of}: call its custodian, everybody else turns away. Enter. ",
                "say --shares-to FOLDER",
            )
            show_once(
                paper,
                "  Copy it by hand into the envelope, compare, press Enter. The screen is then cleared. ",
                "say --shares-to FOLDER",
            )
        return []
    private_folder(folder)
    files = [folder / f"share-{share.number}.txt" for share in founded.shares]
    require_new(*files)
    written: list[Path] = []
    try:
        for file, paper in zip(files, papers, strict=True):
            write_new(file, paper.encode())
            written.append(file)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return files


def _plain(
    founded: Founded,
    tier: Tier,
    threshold: int,
    shares: int,
    files: list[Path],
    officers: list[Officer],
) -> dict[str, Any]:
    return {
        "store_id": founded.store_id.hex(),
        "public_key": founded.public_key.hex().upper(),
        "fingerprint": fingerprint_of(founded.public_key),
        "tier": tier.value,
        "threshold": threshold,
        "shares": shares,
        "share_files": [str(file) for file in files],
        "officers": [officer.title for officer in officers],
    }


def _lines(
    founded: Founded,
    tier: Tier,
    threshold: int,
    shares: int,
    files: list[Path],
    officers: list[Officer],
) -> Iterator[str]:
    point = founded.public_key.hex().upper()
    yield f"store        {groups_of_4(founded.store_id.hex().upper())}, {tier}"
    yield f"public key   {point[:66]}"
    yield f"             {point[66:]}"
    yield f"fingerprint  {fingerprint_of(founded.public_key)}"
    yield f"officers     {', '.join(officer.title for officer in officers)}"
    yield f"shares       {shares}, of which any {threshold} unseal it"
    for file in files:
        yield f"             {file}"
    yield "Write the public key down: by it, backups and journals are known to be this keyd's."
