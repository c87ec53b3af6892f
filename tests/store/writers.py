"""Processes that write to a store, for tests that race them and kill them.

They are forked from a server that has imported everything already, so that a hundred of them cost seconds.
"""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

from keyd.errors import ChangedMeanwhile
from keyd.store.database import Store
from keyd.store.rows import Kind, Put, Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def context() -> Any:
    """Return what starts such processes."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.store.writers", "psycopg"])
    return made


def row(row_id: bytes, revision: int = 1, body: bytes = b"body", kind: Kind = Kind.KEY) -> Row:
    """Make a row whose ciphertext is its revision's own, as a fresh nonce makes it."""
    nonce = revision.to_bytes(12, "big")
    return Row(kind, row_id, "SOCIAL", revision, body, nonce, b"sealed" + nonce)


PAIR = ((Kind.KEY, b"one"), (Kind.PROPOSAL, b"other"))


def write_pairs(url: str, acknowledged: Connection) -> None:
    """Commit a new revision of two rows and a record of it, for ever; say of each that its commit returned."""
    store = Store.open(url)
    revision = store.load().rows[0].revision
    acknowledged.send(revision)
    while True:
        revision += 1
        body = revision.to_bytes(4, "big") * 1000
        puts = [Put(row(row_id, revision, body, kind)) for kind, row_id in PAIR]
        store.commit(puts, [body], "killed")
        acknowledged.send(revision)


def count_up(url: str, ids: list[bytes], times: int, done: Connection) -> None:
    """Add one to the count in each row, so many times each, however often somebody else comes first."""
    store = Store.open(url)
    done.send("ready")
    done.recv()
    conflicts = 0
    for _ in range(times):
        for row_id in ids:
            while True:
                found = next(r for r in store.load().rows if r.id == row_id)
                counted = int.from_bytes(found.body, "big") + 1
                try:
                    store.commit([Put(row(row_id, found.revision + 1, counted.to_bytes(8, "big")))])
                except ChangedMeanwhile:
                    conflicts += 1
                else:
                    break
    store.close()
    done.send(conflicts)
