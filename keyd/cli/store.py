"""What founding, restoring and upgrading share: which store the configuration names, and whether it is empty."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from keyd.cli.common import ConfigOption, JsonOption, Printer
from keyd.config import load_config
from keyd.errors import StoreUnavailable
from keyd.keepers import new_credential

if TYPE_CHECKING:
    from keyd.store.database import Store

app = typer.Typer(help="The store's database.", no_args_is_help=True)


class Settings(NamedTuple):
    """The store of a configuration, and what its keyd is called in the journal."""

    url: str
    instance: str


def settings(config: Path) -> Settings:
    """Read from the configuration where the store is.

    Raises:
        ConfigError: as `load_config`.
    """
    loaded = load_config(config)
    # As the daemon does: a password may come from the environment.
    return Settings(os.path.expandvars(loaded.store.url), loaded.audit.instance)


def empty_store(url: str) -> Store:
    """Make a store, or open one that nothing was ever put into, as when a founding was broken off.

    Raises:
        StoreUnavailable: there is something in it, or it cannot be made.
    """
    store_type = _store_type()
    try:
        return store_type.create(url)
    except StoreUnavailable as refusal:
        try:
            store = store_type.open(url)
        except StoreUnavailable:
            raise refusal from None
        snapshot = store.load()
        if snapshot.number or snapshot.rows:
            store.close()
            raise StoreUnavailable(
                "the store holds something already: found or restore into an empty one"
            ) from None
        return store


def _store_type() -> type[Store]:
    # SQLAlchemy takes a quarter of a second to be imported, and most commands open no database.
    from keyd.store.database import Store

    return Store


def record_of(event: dict[str, Any], now: int) -> bytes:
    """Return a record for the journal's outbox, in the form in which the vault writes them."""
    return msgspec.msgpack.encode({**event, "at": now})


@app.command()
def upgrade(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Bring the store to this program's schema. Stop every keyd that uses it, and back it up first."""
    place = settings(config)
    _store_type().upgrade(place.url)
    Printer(as_json=as_json).tell({"upgraded": True}, ("the store has this program's schema",))


@app.command()
def credential(
    file: Annotated[Path, typer.Argument(help="The file to write. Never overwritten.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key that can open a seal without people: for keyd init --credential, and systemd-creds encrypt.

    Whoever has it, and the store, has every key.
    """
    new_credential(file)
    Printer(as_json=as_json).tell({"file": str(file)}, (f"the key is in {file}",))
