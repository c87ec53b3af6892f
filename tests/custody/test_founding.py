"""Founding: the one act without dual control is refused unless dual control is possible after it.

The shares open what was founded, each quorum of them and nothing less; so does a keeper, with its own key only.
"""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import Share
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.founding import Founded, Keeper, found
from keyd.custody.officers import OfficerRole
from keyd.custody.vault import Vault
from keyd.errors import BadParameter, NotSealed, ShareRefused, StoreUnavailable
from keyd.keys.block import Domain, Tier
from keyd.store.database import Store
from tests.custody.world import CUSTODIAN, NOON, SECURITY, Clock, World, contents_of, person

if TYPE_CHECKING:
    from pathlib import Path

TWO = [person(Domain.LOCAL, "a"), person(Domain.LOCAL, "b")]


def founded(**changed: Any) -> Founded:
    values: dict[str, Any] = {
        "tier": Tier.CITY,
        "threshold": 2,
        "share_count": 3,
        "officers": TWO,
        "keepers": [],
        "now": NOON,
        "random_bytes": secrets.token_bytes,
    }
    return found(**(values | changed))


def vault_on(store: Store) -> Vault:
    return Vault(store, "keyd", Clock(), secrets.token_bytes, lambda: None)


# --- what is refused


@pytest.mark.parametrize(
    ("threshold", "count"), [(0, 3), (4, 3), (-1, 1), (1, 0), (2, 256), (256, 256), (0, 0)]
)
def test_threshold_and_number_of_shares_go_together(threshold: int, count: int) -> None:
    with pytest.raises(BadParameter):
        founded(threshold=threshold, share_count=count)


@pytest.mark.parametrize("roles", list(itertools.product([SECURITY, CUSTODIAN], repeat=2)))
@pytest.mark.parametrize("domain", list(Domain))
def test_every_domain_with_officers_and_local_has_two_security_officers(
    domain: Domain, roles: tuple[OfficerRole, OfficerRole]
) -> None:
    people = [person(domain, code, [role]) for code, role in zip("cd", roles, strict=True)]
    others = [] if domain is Domain.LOCAL else TWO
    if set(roles) == {SECURITY}:
        founded(officers=[*others, *people])
        return
    with pytest.raises(BadParameter, match=f"{domain} needs 2 security officers"):
        founded(officers=[*others, *people])


@pytest.mark.parametrize("domain", [None, Domain.SOCIAL])
def test_a_store_without_local_officers_is_not_founded(domain: Domain | None) -> None:
    people = [person(domain, "a"), person(domain, "b")] if domain else []
    with pytest.raises(BadParameter, match="LOCAL needs"):
        founded(officers=people)


def test_nobody_is_two_people() -> None:
    a, b = TWO
    for twin in (
        a,
        replace(a, code="z"),  # one key under two names
        replace(b, code="a"),  # two keys under one name
        replace(person(Domain.SOCIAL, "a"), public_key=a.public_key),  # one key in two domains
    ):
        with pytest.raises(BadParameter):
            founded(officers=[a, b, twin])


@pytest.mark.parametrize(
    "changed",
    [
        {"code": ""},
        {"code": "a/b"},
        {"code": "x" * 33},
        {"code": "陈"},
        {"name": ""},
        {"name": "n" * 65},
        {"roles": ()},
        {"roles": (SECURITY,) * 5},
        {"public_key": bytes(65)},
        {"public_key": b"\x04" + bytes(64)},
        {"public_key": TWO[0].public_key[:64]},
        {"enrolled_by": "e" * 65},
        {"enrolled_at": -1},
        {"is_retired": True},
        {"revision": 2},
    ],
    ids=str,
)
def test_who_is_no_officer_is_refused_before_anything_is_made(changed: dict[str, Any]) -> None:
    """Otherwise the store would be founded, and nothing could ever open it."""
    with pytest.raises(BadParameter):
        founded(officers=[*TWO, replace(person(Domain.LOCAL, "d"), **changed)])


@pytest.mark.parametrize(("name", "hint"), [("", b""), ("n" * 33, b""), ("token", bytes(1025))])
def test_a_keeper_that_could_not_be_read_again_is_refused(name: str, hint: bytes) -> None:
    key = SecretKey.generate(Algorithm.SM4)
    with pytest.raises(BadParameter):
        founded(keepers=[Keeper(name, hint, key)])


def test_a_keeper_is_named_once() -> None:
    keepers = [Keeper("token", b"slot 1", SecretKey.generate(Algorithm.SM4)) for _ in range(2)]
    with pytest.raises(BadParameter, match="twice"):
        founded(keepers=keepers)


def test_there_is_no_vault_without_a_seal(tmp_path: Path) -> None:
    store = Store.create(f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(StoreUnavailable, match="keyd init"):
        vault_on(store)
    store.close()


# --- what opens it


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 5)])
def test_every_quorum_in_every_order_opens_and_one_share_less_does_not(
    tmp_path: Path, threshold: int, count: int
) -> None:
    made = founded(threshold=threshold, share_count=count)
    store = Store.create(f"sqlite:///{tmp_path}/s.db")
    store.commit(made.changes)
    for chosen in itertools.permutations(made.shares, threshold):
        vault = vault_on(store)
        for i, share in enumerate(chosen[:-1], 1):
            given = vault.give_share(share)
            assert given.given == tuple(sorted(s.number for s in chosen[:i]))
            assert given.threshold == threshold
            # Giving one again is no fault and no progress.
            assert vault.give_share(share) == given
            assert vault.is_sealed
        last = vault.give_share(chosen[-1])
        assert last.given == tuple(sorted(share.number for share in chosen))
        assert not vault.is_sealed
        with pytest.raises(NotSealed):
            vault.give_share(chosen[0])
    store.close()


def test_a_wrong_share_is_refused_by_number_and_says_nothing_more(world: World) -> None:
    """Whichever bit of a share's value is wrong, the sentence is the same, and what was given stays."""
    good, other = world.founded.shares[0], world.founded.shares[1]
    vault = world.sealed_vault()
    vault.give_share(other)
    said = set()
    for bit in range(128):
        value = (int.from_bytes(good.value, "big") ^ 1 << bit).to_bytes(16, "big")
        with pytest.raises(ShareRefused) as refused:
            vault.give_share(Share(good.store, good.generation, good.number, good.threshold, value))
        said.add(refused.value.detail)
        assert value.hex() not in repr(refused.value)
    assert said == {"share 1 is not the one of this seal"}
    assert vault.progress.given == (2,)
    vault.give_share(good)
    assert not vault.is_sealed


@pytest.mark.parametrize(
    "changed",
    [
        {"store": b"\0\0\0\0"},
        {"generation": 0},
        {"generation": 2},
        {"number": 2},
        {"number": 3},
        {"number": 9},
        {"threshold": 1},
        {"threshold": 3},
    ],
    ids=str,
)
def test_a_share_of_another_place_is_refused(world: World, changed: dict[str, Any]) -> None:
    share = world.founded.shares[0]
    fields = {
        name: getattr(share, name)
        for name in ("store", "generation", "number", "threshold", "value")
    }
    vault = world.sealed_vault()
    with pytest.raises(ShareRefused):
        vault.give_share(Share(**(fields | changed)))
    assert vault.progress.given == ()


def test_another_stores_shares_are_refused(world: World) -> None:
    for share in founded().shares:
        with pytest.raises(ShareRefused, match="another store's"):
            world.sealed_vault().give_share(share)


def test_shares_that_were_forgotten_do_not_count(world: World) -> None:
    vault = world.sealed_vault()
    vault.give_share(world.founded.shares[0])
    vault.forget_shares()
    assert vault.progress == ((), 2)
    vault.give_share(world.founded.shares[1])
    assert vault.is_sealed


def test_a_keeper_opens_with_its_own_key_only(tmp_path: Path) -> None:
    key = SecretKey.generate(Algorithm.SM4)
    made = founded(keepers=[Keeper("token", b"slot 1", key), Keeper("credential", b"", key)])
    store = Store.create(f"sqlite:///{tmp_path}/s.db")
    store.commit(made.changes)
    vault = vault_on(store)
    stranger = SecretKey.generate(Algorithm.SM4)
    for wrong in (
        Keeper("token", b"slot 1", stranger),
        Keeper("token", b"slot 2", key),
        Keeper("other", b"slot 1", key),
    ):
        with pytest.raises(ShareRefused):
            vault.unseal_by_keeper(wrong)
        assert vault.is_sealed
    for right in (Keeper("token", b"slot 1", key), Keeper("credential", b"", key)):
        vault = vault_on(store)
        vault.unseal_by_keeper(right)
        assert contents_of(vault).officer(Domain.LOCAL, "a") is not None
        with pytest.raises(NotSealed):
            vault.unseal_by_keeper(right)
    store.close()


def test_a_keepers_copy_is_bound_to_its_name(tmp_path: Path) -> None:
    """Who can write the store cannot give one keeper's copy of the seal key to another."""
    key = SecretKey.generate(Algorithm.SM4)
    made = founded(keepers=[Keeper("token", b"", key)])
    store = Store.create(f"sqlite:///{tmp_path}/s.db")
    changes = list(made.changes)
    row = changes[0].row
    body = row.body.replace(b"\xa5token", b"\xa5other")
    assert body != row.body
    changes[0] = replace(changes[0], row=replace(row, body=body))
    store.commit(changes)
    with pytest.raises((ShareRefused, StoreNotOurs)):
        vault_on(store).unseal_by_keeper(Keeper("other", b"", key))
    store.close()
