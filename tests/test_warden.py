"""The warden gives the ring what the vault holds, no more often than something has changed, and takes it in one go."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from keyd.audit.journal import Journal
from keyd.audit.query import EventRecord, Filter, query
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.native._core import arena_info
from keyd.custody import actions as act
from keyd.custody.vault import Vault
from keyd.errors import KeyNotFound
from keyd.keys.block import Domain, Use
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.sam import CardKeyRef, purpose
from keyd.warden import SEAL_SECONDS, Warden
from tests.crypto.native.conftest import run
from tests.custody.test_drop import SlowStore
from tests.custody.world import World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    Drill = Callable[["Kept"], Awaitable[None]]


class Kept:
    """A warden on a founded store, and what it gave."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.store = SlowStore(self.world.store)
        self.journal = Journal(folder / "journal", "keyd1", clock_ns=lambda: 10**18)
        self.ring = KeyRing(now=self.world.clock)
        self.adoptions = 0
        self.said: list[str] = []
        self.vault: Vault = self.world.open_vault(self.store)
        self.world._vault = self.vault
        self.warden = Warden(
            self.vault,
            self.store,  # type: ignore[arg-type]  # a store, that waits at a gate
            self.ring,
            self.journal,
            "keyd1",
            lambda event, _detail: self.said.append(event),
            self._adopted,
            now=self.world.clock,
        )

    def _adopted(self) -> None:
        self.adoptions += 1

    def events(self) -> list[str]:
        records = query(self.journal.folder, Filter())
        return [record.name for record in records if isinstance(record, EventRecord)]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.journal.close()
    made.world.close()


async def test_a_lease_and_a_proposal_are_no_reason_to_forget_what_is_known_by_heart(
    kept: Kept,
) -> None:
    key_id = kept.world.make_key(ceiling=1000)
    await kept.warden.do(kept.vault.reload)
    epoch, adoptions = kept.ring.epoch, kept.adoptions
    assert adoptions
    quota = kept.vault.quotas[key_id]
    while quota.left > 1:
        quota.take()
    before = kept.world.header(key_id).uses
    await kept.warden.do(kept.vault.renew_quotas)
    assert kept.world.header(key_id).uses > before
    kept.world.propose(Domain.SOCIAL, act.Deactivate(key_id), vault=kept.vault)
    await kept.warden.do(kept.vault.reload)
    assert (kept.ring.epoch, kept.adoptions) == (epoch, adoptions)
    # What the ring holds is counted by the lease all the same.
    assert kept.ring._quotas[key_id] is kept.vault.quotas[key_id]


async def test_what_a_key_may_is_adopted_at_once(kept: Kept) -> None:
    key_id = kept.world.make_key()
    await kept.warden.do(kept.vault.reload)
    for action in (act.Deactivate(key_id), act.Activate(key_id), act.Compromise(key_id)):
        adoptions = kept.adoptions
        kept.world.decide(Domain.SOCIAL, action)
        await kept.warden.do(kept.vault.reload)
        assert kept.adoptions == adoptions + 1
        (header,) = [header for header in kept.ring.headers if header.key_id == key_id]
        assert header.state is kept.world.header(key_id).state


async def seals_though_the_store_hangs(kept: Kept) -> None:
    kept.world.make_key(ceiling=1000)
    await kept.warden.do(kept.vault.reload)
    kept.store.is_reached.clear()
    kept.store.gate.clear()
    with trio.fail_after(SEAL_SECONDS + 20):
        await kept.warden.seal("fire")
    assert arena_info().used == 0
    assert kept.store.is_reached.is_set()
    assert kept.vault.is_sealed
    assert kept.ring.headers == ()
    assert "sealed" in kept.events()
    kept.store.gate.set()
    # The thread that hung comes out, and brings nothing back.
    done = threading.Event()
    await kept.warden.do(done.set)
    assert done.is_set()
    assert kept.vault.is_sealed
    assert kept.ring.headers == ()


async def seals_where_nothing_hangs(kept: Kept) -> None:
    kept.world.make_key()
    await kept.warden.do(kept.vault.reload)
    await kept.warden.seal("lunch")
    assert arena_info().used == 0
    assert kept.events().count("sealed") == 1
    with pytest.raises(KeyNotFound):
        kept.ring.answering(
            CardKeyRef(0x0170, CardAlgorithm.SM4, Region("510100"), bytes(8), purpose(Use.INTERNAL))
        )


@pytest.mark.parametrize("sealing", [seals_though_the_store_hangs, seals_where_nothing_hangs])
def test_sealing_wipes_and_the_journal_says_so(sealing: Drill, tmp_path: Path) -> None:
    """In a process of its own: sealing wipes every key that there is."""
    done = run(
        f"""
        import pathlib, trio
        from tests.test_warden import Kept, {sealing.__name__}
        trio.run({sealing.__name__}, Kept(pathlib.Path({str(tmp_path)!r})))
        """
    )
    assert done.returncode == 0, done.stderr


async def test_the_end_of_a_keys_time_is_adopted_though_a_request_noticed_it_first(
    kept: Kept, autojump_clock: Any
) -> None:
    now = kept.world.clock()
    kept.world.make_key(valid_until=int(now) + 100)
    await kept.warden.do(kept.vault.reload)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.warden._look_at_clock_forever)
        await trio.sleep(5)
        adoptions = kept.adoptions
        kept.world.clock.now = int(now) + 101
        kept.ring.compute([])
        await trio.sleep(5)
        assert kept.adoptions == adoptions + 1
        await trio.sleep(60)
        # Once for each change, and not once a second.
        assert kept.adoptions == adoptions + 1
        nursery.cancel_scope.cancel()
