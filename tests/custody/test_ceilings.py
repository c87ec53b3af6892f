"""Ceilings are exact: no crash, no thread and no second keyd makes one use too many, and an orderly end loses none."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.custody import actions as act
from keyd.custody.ceilings import LEASE_SHARE, MAX_LEASE, LeasedQuota, next_lease
from keyd.errors import (
    BadParameter,
    ChangedMeanwhile,
    Overloaded,
    Refusal,
    StoreUnavailable,
)
from keyd.keys.block import Domain, KeyState
from tests.custody.world import FAILURES, FailingStore, World, contents_of

if TYPE_CHECKING:
    from keyd.custody.vault import Vault

SOCIAL: Final = Domain.SOCIAL
CEILING: Final = 1000
LEASE: Final = CEILING // LEASE_SHARE


def take(quota: LeasedQuota) -> bool:
    """Use it once if that is possible now; a lease that is still to come is no use."""
    try:
        return quota.take()
    except Overloaded:
        return False


def use(vault: Vault, key_id: bytes, times: int) -> int:
    """Use a key as often as it lets itself be used, with a worker that leases when asked to."""
    used = 0
    while used < times:
        quota = vault.quotas.get(key_id)
        if quota is not None and take(quota):
            used += 1
            continue
        vault.reload()
        vault.renew_quotas()
        quota = vault.quotas.get(key_id)
        if quota is None or not quota.left:
            break
    return used


def events(world: World, *instances: str) -> list[dict[str, Any]]:
    return [
        msgspec.msgpack.decode(record)
        for instance in instances
        for _, record in world.store.outbox(instance)
    ]


@given(ceiling=st.integers(1, 10**9), used=st.integers(0, 2 * 10**9))
def test_a_lease_is_a_hundredth_and_never_more_than_what_is_left(ceiling: int, used: int) -> None:
    header = msgspec.structs.replace(_HEADER, ceiling=ceiling, uses=used)
    lease = next_lease(header)
    assert 0 <= lease <= MAX_LEASE
    assert lease <= max(1, ceiling // 100)
    assert used + lease <= ceiling or lease == 0
    assert lease or used >= ceiling


def _any_header() -> Any:
    world = World()
    header = world.header(world.make_key(ceiling=1))
    world.close()
    return header


_HEADER: Final = _any_header()


def test_one_keyd_uses_a_key_exactly_as_often_as_it_may(world: World) -> None:
    key_id = world.make_key(ceiling=CEILING)
    assert use(world.vault, key_id, CEILING * 2) == CEILING
    assert world.header(key_id).uses == CEILING
    world.restart()
    assert use(world.vault, key_id, 10) == 0


def test_many_threads_take_no_use_twice() -> None:
    quota = LeasedQuota(bytes(16), lambda: None)
    quota.add(5000, is_final=False)
    taken: list[int] = []

    def take_many() -> None:
        taken.append(sum(take(quota) for _ in range(2000)))

    threads = [threading.Thread(target=take_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 5000
    assert quota.left == 0


def test_threads_and_two_keyds_together_reach_the_ceiling_and_no_more(either_world: World) -> None:
    world = either_world
    ceiling = 600
    key_id = world.make_key(ceiling=ceiling)
    vaults = [world.vault, world.open_vault()]
    taken: list[int] = []
    failed: list[BaseException] = []

    def run(vault: Vault) -> None:
        try:
            taken.append(_patiently(vault, key_id, ceiling))
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failed.append(error)

    threads = [threading.Thread(target=run, args=(vault,)) for vault in vaults * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(taken) + sum(vault.quotas[key_id].left for vault in vaults) == ceiling
    assert sum(taken) == ceiling


def _patiently(vault: Vault, key_id: bytes, times: int) -> int:
    used = refused = 0
    while used < times and refused < 5:
        quota = vault.quotas[key_id]
        if take(quota):
            used, refused = used + 1, 0
            continue
        try:
            vault.reload()
            vault.renew_quotas()
        except (ChangedMeanwhile, StoreUnavailable):
            continue
        refused += not quota.left
    return used


@pytest.mark.parametrize("seed", range(3))
def test_kills_and_restarts_lose_a_lease_each_at_most_and_orderly_ends_none(seed: int) -> None:
    """Whatever happens to two keyds in whatever order, uses and losses add up to what the store says."""
    rng = random.Random(seed)  # noqa: S311 - a choice of steps
    world = World()
    key_id = world.make_key(ceiling=CEILING)
    vaults = [world.vault, world.open_vault()]
    world._vault = None
    used = lost = kills = 0
    for _ in range(16):
        which = rng.randrange(2)
        vault = vaults[which]
        step = rng.choice(["use", "use", "use", "kill", "close", "seal"])
        if step == "use":
            used += use(vault, key_id, rng.randrange(1, 25))
            continue
        if step == "kill":
            lost += vault.quotas[key_id].left if key_id in vault.quotas else 0
            kills += 1
        else:
            vault.reload()
            vault.close() if step == "close" else vault.seal()
        vaults[which] = world.open_vault()
        del vault
        gc.collect()
    for vault in vaults:
        vault.reload()
        vault.close()
    held = contents_of(world.open_vault())
    # The last one has leased again: what is on record is what was used, what was lost, and its lease.
    left = min(LEASE, CEILING - used - lost)
    assert held.keys[key_id].header.uses == used + lost + left or used + lost == CEILING
    assert used + lost <= CEILING
    # Nothing is leased beyond a hundredth and what was left of the one before.
    assert lost <= kills * (LEASE + LEASE // 2 + 1)
    world.close()


@pytest.mark.parametrize("end", ["close", "seal"])
def test_an_orderly_end_gives_everything_back_though_others_change_the_store(
    world: World, end: str
) -> None:
    key_id = world.make_key(ceiling=CEILING)
    assert use(world.vault, key_id, 3) == 3
    other = world.open_vault()
    other.record(world.officer(SOCIAL, "e"), "somebody else was here")
    if end == "close":
        world.vault.close()
    else:
        world.vault.seal()
    other.close()
    header = contents_of(other).keys[key_id].header
    assert header.uses == 3


def test_what_one_keyd_gives_back_another_may_use(world: World) -> None:
    """A keyd that was told that nothing is left asks again when something is."""
    key_id = world.make_key(ceiling=2 * LEASE_SHARE, active=True)
    other = world.open_vault()
    # The other has leased; this one now uses all that there is.
    others = other.quotas[key_id].left
    assert others
    assert use(world.vault, key_id, 10**6) == 2 * LEASE_SHARE - others
    assert world.vault.quotas[key_id].is_final
    other.close()
    world.vault.reload()
    assert use(world.vault, key_id, 10**6) == others


def test_a_key_that_another_keyd_activated_is_served_here_too(world: World) -> None:
    other = world.open_vault()
    key_id = world.make_key(ceiling=CEILING)
    assert other.reload()
    assert other.quotas[key_id].left == LEASE


@pytest.mark.parametrize("active", [True, False])
def test_a_deactivated_key_verifies_within_its_ceiling(world: World, active: bool) -> None:
    """It is still used, so it is still counted, after a restart as well."""
    key_id = world.make_key(ceiling=CEILING)
    if not active:
        world.decide(SOCIAL, act.Deactivate(key_id))
    lost = world.vault.quotas[key_id].left
    world.restart()
    assert world.header(key_id).state is (KeyState.ACTIVE if active else KeyState.DEACTIVATED)
    assert use(world.vault, key_id, 10**6) == CEILING - lost


# --- permits


def test_a_raised_ceiling_is_exact_and_reaches_every_keyd(world: World) -> None:
    key_id = world.make_key(ceiling=CEILING)
    other = world.open_vault()
    total = use(world.vault, key_id, 10**6) + use(other, key_id, 10**6)
    assert total == CEILING
    world.vault.reload()
    world.decide(SOCIAL, act.Permit(key_id, ceiling=CEILING + 50))
    other.reload()
    total += use(other, key_id, 20)
    total += use(world.vault, key_id, 10**6)
    total += use(other, key_id, 10**6)
    assert total == CEILING + 50


@pytest.mark.parametrize("ceiling", [1, 137, 138, 139, 200])
def test_a_lowered_ceiling_counts_what_was_used_and_not_what_was_leased(
    world: World, ceiling: int
) -> None:
    key_id = world.make_key(ceiling=CEILING)
    assert use(world.vault, key_id, 137) == 137
    world.decide(SOCIAL, act.Permit(key_id, ceiling=ceiling))
    assert use(world.vault, key_id, 10**6) == max(0, ceiling - 137)


def test_a_lease_that_a_lowered_ceiling_no_longer_covers_is_void(world: World) -> None:
    """Another keyd's lease is taken back as soon as that keyd looks."""
    key_id = world.make_key(ceiling=CEILING)
    other = world.open_vault()
    assert other.quotas[key_id].left == LEASE
    world.vault.reload()
    world.decide(SOCIAL, act.Permit(key_id, ceiling=LEASE - 1))
    other.reload()
    assert use(other, key_id, 10**6) == 0


def test_a_ceiling_that_is_lifted_does_not_count_any_more(world: World) -> None:
    key_id = world.make_key(ceiling=CEILING, warn_at=0)
    world.decide(SOCIAL, act.Permit(key_id, ceiling=0))
    assert world.header(key_id).ceiling == 0
    world.vault.close()
    world.decide(SOCIAL, act.Permit(key_id, ceiling=5))
    assert use(world.vault, key_id, 10**6) == 5


@pytest.mark.parametrize("fields", [{"warn_at": CEILING + 1}, {"valid_from": 9, "valid_until": 8}])
def test_a_permit_that_is_refused_leaves_the_key_its_lease(
    world: World, fields: dict[str, Any]
) -> None:
    """The lease is handed back to count, and taken again whatever comes of it: the key goes on serving."""
    key_id = world.make_key(ceiling=CEILING)
    with pytest.raises(BadParameter):
        world.decide(SOCIAL, act.Permit(key_id, **fields))
    assert world.vault.quotas[key_id].left == LEASE


def test_other_keys_keep_serving_while_one_is_permitted(world: World) -> None:
    """No key is refused for a moment because of what is decided about another."""
    key_id, other = world.make_key(ceiling=CEILING), world.make_key(ceiling=CEILING)
    failing = FailingStore(world.store)
    vault = world.open_vault(failing)
    proposal = world.propose(SOCIAL, act.Permit(key_id, ceiling=5), vault=vault)
    quota = vault.quotas[other]
    seen: list[int] = []
    commit = failing.commit

    def watched(*args: Any, **named: Any) -> int:
        seen.append(quota.left)
        return commit(*args, **named)

    failing.commit = watched  # type: ignore[method-assign]
    world.approve(proposal, vault=vault)
    assert seen
    assert all(seen)


def test_the_warning_comes_once_and_in_time(world: World) -> None:
    key_id = world.make_key(ceiling=CEILING, warn_at=500)
    vault = world.vault
    use(vault, key_id, 480)
    warned = [e for e in events(world, "keyd1") if e["event"] == "key.near_its_ceiling"]
    assert not warned
    use(vault, key_id, 10**6)
    (warned_once,) = [e for e in events(world, "keyd1") if e["event"] == "key.near_its_ceiling"]
    assert (warned_once["ceiling"], warned_once["key"]) == (CEILING, world.header(key_id).label)
    assert 500 <= warned_once["uses"] < 500 + 2 * LEASE


# --- a store that fails


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("step", ["renew", "close", "seal", "permit", "reload"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_failure_of_the_store_makes_a_use_too_many(
    world: World, failure: str, step: str, at: int
) -> None:
    """Whether a commit was made or not: what is in hand and what the store would give never exceed the ceiling."""
    ceiling = 300
    key_id = world.make_key(ceiling=ceiling, active=False)
    failing = FailingStore(world.store)
    vault = world.open_vault(failing)
    world._vault = vault
    world.decide(SOCIAL, act.Activate(key_id))
    used = use(vault, key_id, 50)
    proposal = world.propose(SOCIAL, act.Permit(key_id, warn_at=7))
    officer = world.officer(SOCIAL, "b")
    failing.plan = [None] * at + [failure]
    steps: dict[str, Any] = {
        "renew": vault.renew_quotas,
        "close": vault.close,
        "seal": vault.seal,
        "permit": lambda: vault.approve(officer, proposal.proposal_id),
        "reload": vault.reload,
    }
    with contextlib.suppress(Refusal):
        steps[step]()
    failing.plan = []
    if not vault.is_sealed:
        vault.reload()
        used += use(vault, key_id, 7)
    # Another keyd takes all that the store still gives; then this one uses what it has in hand.
    other = world.open_vault()
    used += use(other, key_id, 10**6)
    if not vault.is_sealed:
        used += use(vault, key_id, 10**6)
        used += use(other, key_id, 10**6)
    assert used <= ceiling
    # And no more is lost than this keyd had in hand.
    assert used >= ceiling - 3 * (ceiling // LEASE_SHARE)


def test_sealing_never_fails_and_leaves_nothing(world: World) -> None:
    world.make_key(ceiling=CEILING)
    for failure in FAILURES:
        failing = FailingStore(world.store)
        vault = world.open_vault(failing)
        failing.plan = [failure] * 9
        vault.seal()
        assert vault.contents is None
        assert not vault.quotas
        vault.seal()


def test_a_key_without_a_ceiling_is_not_leased(world: World) -> None:
    key_id = world.make_key()
    commits = world.store.change_number()
    world.vault.renew_quotas()
    assert key_id not in world.vault.quotas
    assert world.store.change_number() == commits
