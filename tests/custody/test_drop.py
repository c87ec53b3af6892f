"""Dropping is at once and for good: a thread that hangs in the store brings nothing back when it comes out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from keyd.errors import ChangedMeanwhile, Sealed
from tests.custody.world import World

if TYPE_CHECKING:
    from collections.abc import Callable


class SlowStore:
    """A real store whose commits wait at a gate."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.is_reached = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        # Whether another keyd wins the next race.
        self.is_raced = False

    def commit(self, *arguments: Any, **options: Any) -> int:
        self.is_reached.set()
        assert self.gate.wait(30)
        if self.is_raced:
            self.is_raced = False
            raise ChangedMeanwhile
        number: int = self._store.commit(*arguments, **options)
        return number

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._store, name)
        return method


@pytest.mark.parametrize("work", ["reload", "record", "close", "renew_quotas", "raced"])
def test_what_hung_while_keyd_was_sealed_holds_nothing_afterwards(world: World, work: str) -> None:
    world.make_key(ceiling=1000)
    slow = SlowStore(world.store)
    vault = world.open_vault(slow)
    officer = next(iter(vault.contents.officers.values())) if vault.contents else None
    assert officer is not None
    calls: dict[str, list[Callable[[], object]]] = {
        "reload": [lambda: vault.record(officer, "looked twice"), vault.reload],
        "record": [lambda: vault.record(officer, "looked")],
        "close": [vault.close],
        "renew_quotas": [vault.close, vault.renew_quotas],
        # Reads the store anew in the middle of its turn.
        "raced": [vault.renew_quotas],
    }
    ended: list[BaseException | None] = []

    def hang() -> None:
        try:
            for call in calls[work]:
                call()
        except Sealed as refusal:
            ended.append(refusal)
        else:
            ended.append(None)

    slow.is_raced = work == "raced"
    for quota in vault.quotas.values() if slow.is_raced else ():
        while quota.left:
            quota.take()
    slow.is_reached.clear()
    slow.gate.clear()
    thread = threading.Thread(target=hang)
    thread.start()
    assert slow.is_reached.wait(30)
    vault.drop()
    assert vault.is_sealed
    slow.gate.set()
    thread.join(30)
    assert len(ended) == 1
    assert vault.is_sealed
    assert not vault.quotas
    # And it can be unsealed again.
    for share in world.founded.shares[:2]:
        vault.give_share(share)
    assert not vault.is_sealed
