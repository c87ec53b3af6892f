"""kill -9 at any moment: every commit that was acknowledged is there, and none is half there."""

from __future__ import annotations

import contextlib
import random
import time

from keyd.store.database import Store
from keyd.store.rows import Put
from tests.store import writers
from tests.store.writers import PAIR, row

KILLS = 100

# A writer lives for a few commits and then for up to this many seconds, in which the next one is under way.
LONGEST_LIFE = 0.01
MOST_COMMITS = 5


def test_a_hundred_kills_lose_nothing_that_was_acknowledged(store_url: str) -> None:
    """Whenever a writer dies, the store has all that it acknowledged, at most one commit more, and nothing in part."""
    chance = random.Random(507)  # noqa: S311 - moments, not secrets
    store = Store.create(store_url)
    store.commit([Put(row(row_id, kind=kind)) for kind, row_id in PAIR])
    context = writers.context()
    commits = 0
    for _ in range(KILLS):
        before = store.change_number()
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=writers.write_pairs, args=(store_url, theirs))
        process.start()
        theirs.close()
        first = acknowledged = ours.recv()
        for _ in range(chance.randrange(MOST_COMMITS)):
            acknowledged = ours.recv()
        time.sleep(chance.random() * LONGEST_LIFE)
        process.kill()
        process.join()
        process.close()
        with ours, contextlib.suppress(EOFError):
            while True:
                acknowledged = ours.recv()
        # A commit of our own waits for the lock: a server may not have noticed yet that its client is dead.
        number = store.commit([], [b"look"], "looker") - 1
        seen, records = store.load(), store.outbox("killed")
        assert len(seen.rows) == 2
        [revision] = {r.revision for r in seen.rows}
        assert first <= acknowledged <= revision <= acknowledged + 1
        assert number - before == revision - first
        bodies = [n.to_bytes(4, "big") * 1000 for n in range(first + 1, revision + 1)]
        assert [record for _, record in records] == bodies
        if bodies:
            assert {r.body for r in seen.rows} == {bodies[-1]}
        store.sent([n for n, _ in records])
        commits += len(bodies)
    assert commits > KILLS, "the writers hardly wrote, so this has shown little"
    store.close()
