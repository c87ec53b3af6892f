"""What keyd did not write, it does not hold: every byte of every column, and what is missing or was put back.

Two things cannot be seen in a store alone, and the tests at the end say so: a keyd that starts takes an old row for
the current one, and a row that is gone for one that never was. The journal shows both. A keyd that is running, and so
has seen the newer row, notices them itself.
"""

# ruff: noqa: S608 - the statements are made of names that stand here.
from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final

import pytest
from msgspec.structs import replace

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody.bodies import StoreNotOurs, seal_row
from keyd.custody.officers import Officer
from keyd.errors import Refusal, StoreUnavailable
from keyd.keys.block import Domain, Export, Use
from keyd.registry.terminal import Proof, TerminalSpec
from keyd.store.rows import Kind, Put
from tests.custody.world import World, contents_of, person, psam_spec, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.custody.contents import Contents

SOCIAL: Final = Domain.SOCIAL
LOCAL: Final = Domain.LOCAL
COLUMNS: Final = ("id", "domain", "revision", "body", "nonce", "sealed")

# One row of each kind, and of each form that a kind has.
ROWS: Final = (
    "seal",
    "lmk",
    "identity",
    "officer",
    "key",
    "gone",
    "proposal",
    "result",
    "terminal",
    "authority",
    "psam",
)

TERMINAL: Final = TerminalSpec(
    "DESK-0001", "成都市人社局", "510100", ("counter",), (Proof.SIGNATURE,)
)


class Opened:
    """A world with one row of every form, and a way past keyd into its database."""

    def __init__(self, world: World) -> None:
        self.world = world
        kek = world.make_key(use=Use.TRANSPORT)
        key = world.make_key(export=Export.WRAPPED, ceiling=1000)
        gone = world.make_key(addresses=(1,))
        world.decide(SOCIAL, act.Destroy(gone, 0))
        exported = world.decide(SOCIAL, act.ExportKey(key, kek, act.TransportFormat.BLOCK))
        opened = world.propose(SOCIAL, act.Deactivate(key))
        world.decide(LOCAL, act.EnrolTerminals((TERMINAL,), activate=True))
        world.decide(LOCAL, act.MakeAuthority("guomi", "省级 CA", 10))
        world.decide(LOCAL, act.IssuePsams((psam_spec(),)))
        self.vault = world.vault
        self.database = sqlite3.connect(world.path, isolation_level=None)
        self.rows: dict[str, tuple[str, bytes]] = {
            "seal": ("seal_rows", world.founded.store_id),
            "lmk": ("lmk_rows", b"SOCIAL"),
            "identity": ("identity_rows", b"identity"),
            "officer": ("officer_rows", b"SOCIAL/a"),
            "key": ("key_rows", key),
            "gone": ("key_rows", gone),
            "proposal": ("proposal_rows", opened.proposal_id),
            "result": ("proposal_rows", exported.proposal_id),
            "terminal": ("terminal_rows", TERMINAL.code.encode()),
            "authority": ("authority_rows", self.only_id("authority_rows")),
            "psam": ("psam_rows", psam_spec().number),
        }

    def only_id(self, table: str) -> bytes:
        ((row_id,),) = self.database.execute(f"SELECT id FROM {table}").fetchall()
        assert isinstance(row_id, bytes)
        return row_id

    def value(self, row: str, column: str) -> bytes | str | int:
        table, row_id = self.rows[row]
        (value,) = self.database.execute(
            f"SELECT {column} FROM {table} WHERE id = ?", (row_id,)
        ).fetchone()
        assert isinstance(value, bytes | str | int)
        return value

    @contextlib.contextmanager
    def changed(self, row: str, column: str, value: object) -> Iterator[None]:
        """Change one value as long as it lasts, and let keyd notice that there is something new."""
        table, row_id = self.rows[row]
        was = self.value(row, column)
        self.database.execute("UPDATE changes SET number = number + 1")
        number = f"(SELECT rowid FROM {table} WHERE id = ?)"
        (rowid,) = self.database.execute(f"SELECT {number}", (row_id,)).fetchone()
        self.database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid))
        try:
            yield
        finally:
            self.database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (was, rowid))
            assert self.value(row, column) == was


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    """One world for the module; each test leaves it as it was."""
    world = World()
    made = Opened(world)
    yield made
    made.database.close()
    world.close()


def alterations(value: bytes | str | int) -> Iterator[object]:
    """A value with one byte changed, at every place, and with one too many or too few."""
    if isinstance(value, int):
        yield from (value + 1, max(1, value - 1) if value > 1 else value + 2, 2**62)
        return
    octets = value.encode() if isinstance(value, str) else value
    changed = [
        *(
            octets[:i] + bytes([octets[i] ^ 1 << i % 7]) + octets[i + 1 :]
            for i in range(len(octets))
        ),
        octets + b"A",
        octets[:-1],
    ]
    for one in changed:
        if one != octets:
            yield one.decode(errors="replace") if isinstance(value, str) else one


def test_a_row_of_each_kind_is_tried(opened: Opened) -> None:
    assert {table for table, _id in opened.rows.values()} == {f"{kind}_rows" for kind in Kind}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
def test_no_altered_byte_of_any_column_is_held(opened: Opened, row: str, column: str) -> None:
    """Neither by a keyd that is running nor, tried at every fifth place, by one that starts."""
    vault, before = opened.vault, opened.vault.contents
    tried = 0
    for altered in alterations(opened.value(row, column)):
        try:
            with opened.changed(row, column, altered):
                with pytest.raises(StoreUnavailable):
                    vault.reload()
                if tried % 5 == 0 or row in ("seal", "lmk"):
                    with pytest.raises(Refusal):
                        opened.world.open_vault()
        except sqlite3.IntegrityError:
            # The database itself refuses it.
            assert column in ("nonce", "revision")
            continue
        tried += 1
        assert vault.contents is before
    assert tried or not opened.value(row, column)
    # And as it was written, it is held.
    vault.reload()
    opened.world.open_vault()


@pytest.mark.parametrize("row", ["seal", "lmk", "identity"])
def test_without_its_seal_a_wrapping_key_or_its_own_key_nothing_is_held(
    world: World, row: str
) -> None:
    made = Opened(world)
    table, row_id = made.rows[row]
    made.database.execute(f"DELETE FROM {table} WHERE id = ?", (row_id,))
    made.database.execute("UPDATE changes SET number = number + 1")
    with pytest.raises(StoreNotOurs):
        made.vault.reload()
    with pytest.raises(StoreUnavailable):
        world.open_vault()
    made.database.close()


def test_a_second_seal_is_refused(world: World) -> None:
    made = Opened(world)
    made.database.execute(
        "INSERT INTO seal_rows SELECT X'00', domain, revision, body, nonce, sealed FROM seal_rows"
    )
    made.database.execute("UPDATE changes SET number = number + 1")
    with pytest.raises(StoreNotOurs):
        made.vault.reload()
    with pytest.raises(StoreUnavailable):
        world.open_vault()
    made.database.close()


def test_a_row_under_a_key_that_somebody_else_chose_is_refused(world: World) -> None:
    """Who can write the database, and knows every format, still cannot enrol an officer."""
    vault = world.vault
    officer = Officer(
        SOCIAL, "evil", "Evil", person(SOCIAL, "a").roles, person(SOCIAL, "a").public_key, "", 0
    )
    forged = seal_row(
        SecretKey.generate(Algorithm.SM4),
        Kind.OFFICER,
        b"SOCIAL/evil",
        "SOCIAL",
        officer,
        lambda n: bytes(n),
    )
    world.store.commit([Put(forged)])
    with pytest.raises(StoreNotOurs):
        vault.reload()
    with pytest.raises(StoreNotOurs):
        world.open_vault()


def test_another_stores_rows_are_refused(world: World) -> None:
    """Good rows of another keyd, with the same people, are strangers here."""
    other = World()
    other.make_key()
    row = next(row for row in other.store.load().rows if row.kind == "key")
    other.close()
    vault = world.vault
    world.store.commit([Put(replace(row, revision=1))])
    with pytest.raises(StoreNotOurs):
        vault.reload()


# --- what is found, and by whom


@pytest.mark.parametrize("row", ["key", "officer", "terminal", "authority", "psam"])
def test_a_keyd_that_runs_notices_what_is_gone(world: World, row: str) -> None:
    made = Opened(world)
    table, row_id = made.rows[row]
    made.database.execute(f"DELETE FROM {table} WHERE id = ?", (row_id,))
    made.database.execute("UPDATE changes SET number = number + 1")
    with pytest.raises(StoreNotOurs, match="missing"):
        made.vault.reload()
    # One that starts has nothing to compare with: only the journal says that there was one.
    assert _number(contents_of(world.open_vault())) == _number(contents_of(made.vault)) - 1
    made.database.close()


def _number(contents: Contents) -> int:
    parties = len(contents.officers) + len(contents.terminals)
    return parties + len(contents.keys) + len(contents.authorities) + len(contents.psams)


def test_a_keyd_that_runs_notices_an_old_row_that_was_put_back(world: World) -> None:
    """Both rows are keyd's own; which is newer is known to whoever saw both, and to the journal."""
    key_id = world.make_key()
    active = next(row for row in world.store.load().rows if row.id == key_id)
    world.decide(SOCIAL, act.Compromise(key_id))
    vault = world.vault
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        database.execute(
            "UPDATE key_rows SET revision = ?, body = ?, nonce = ?, sealed = ? WHERE id = ?",
            (active.revision, active.body, active.nonce, active.sealed, key_id),
        )
        database.execute("UPDATE changes SET number = number + 1")
    with pytest.raises(StoreNotOurs, match="put back"):
        vault.reload()
    assert world.header(key_id, world.open_vault()).state == "active"


def test_a_row_of_before_a_rekey_is_no_row_any_more(world: World) -> None:
    """A new seal ends all old rows, whoever has kept them."""
    key_id = world.make_key()
    old = next(row for row in world.store.load().rows if row.id == key_id)
    proposal = world.decide(Domain.LOCAL, act.Rekey(2, ("a", "b")))
    shares = [world.share_of(proposal, code) for code in "ab"]
    for code in "ab":
        world.confirm(proposal, code)
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        database.execute(
            "UPDATE key_rows SET revision = ?, body = ?, nonce = ?, sealed = ? WHERE id = ?",
            (old.revision, old.body, old.nonce, old.sealed, key_id),
        )
    with pytest.raises(StoreNotOurs):
        world.open_vault(shares=shares)


def test_a_change_that_nobody_counted_is_found_when_the_next_is(world: World) -> None:
    """Rows are read when the store's number moves, and not every second: until then, what was read is served."""
    key_id = world.make_key()
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        database.execute("UPDATE key_rows SET body = zeroblob(200) WHERE id = ?", (key_id,))
    assert not world.vault.reload()
    with pytest.raises(StoreNotOurs):
        world.propose(SOCIAL, act.GenerateKey(spec()))
