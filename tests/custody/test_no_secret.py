"""Key bytes are in no event, no refusal, no repr and no row: known keys are searched for in all of them."""

from __future__ import annotations

import base64
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keyd.crypto.shares import encode_share, share_commitment
from keyd.crypto.sm3 import sm3
from keyd.custody import actions as act
from keyd.errors import Refusal
from keyd.keys.block import Domain, Export, Use
from tests.custody.test_ceremony import xored
from tests.custody.world import World, contents_of, envelope, kcv_of, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCIAL: Final = Domain.SOCIAL

# Bytes that are nowhere by accident, and whose differences are not either.
CANARIES: Final = [sm3(b"canary %d" % number)[:16] for number in range(6)]


def spellings(secret: bytes) -> Iterator[bytes]:
    """The ways in which 8 bytes of a secret get into a text or a record."""
    for start in range(0, len(secret) - 7, 4):
        part = secret[start : start + 8]
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield repr(part)[2:-1].encode()
        yield str(int.from_bytes(part, "big")).encode()
        yield ", ".join(map(str, part)).encode()
    yield base64.b64encode(secret)[:16]


def found_in(places: dict[str, bytes], secrets: list[bytes]) -> list[str]:
    return [
        name
        for name, text in places.items()
        for secret in secrets
        for spelling in spellings(secret)
        if spelling in text
    ]


def seen(places: dict[str, bytes], name: str, thing: object) -> None:
    """Note every way in which somebody may look at a thing."""
    for how in (repr, str, "{}".format):
        places[f"{name}, {how}"] = how(thing).encode()


def test_the_search_finds_what_is_there() -> None:
    """The search itself is tested: each way of writing a canary is found."""
    secret = CANARIES[0]
    for text in (secret, secret.hex().encode(), repr(secret).encode(), str(list(secret)).encode()):
        assert found_in({"here": b"before " + text + b" after"}, [secret])
    assert not found_in({"here": b"nothing of it"}, [secret])


def test_no_known_key_is_seen_anywhere(world: World) -> None:
    assert len({len(canary) for canary in CANARIES}) == 1
    assert len(CANARIES[0]) == 16
    vault, places = world.vault, dict[str, bytes]()

    def refused(name: str, call: Any) -> None:
        with pytest.raises(Refusal) as error:
            call()
        places[f"refusal: {name}"] = "".join(traceback.format_exception(error.value)).encode()
        seen(places, f"refusal: {name}", error.value)

    # Components: right, wrong, and what they come to.
    secrets = [*CANARIES, xored(CANARIES[:2]), xored(CANARIES[2:4])]
    proposal = world.propose(SOCIAL, act.ImportKey(spec(export=Export.WRAPPED), 2))
    officer = world.officer(SOCIAL, "a")
    refused("a wrong check value", lambda: world.enter(proposal, "a", 1, CANARIES[0], bytes(3)))
    refused("a long one", lambda: world.enter(proposal, "a", 1, CANARIES[0] * 2, bytes(3)))
    world.enter(proposal, "a", 1, CANARIES[0])
    refused("twice", lambda: world.enter(proposal, "b", 1, CANARIES[1]))
    refused("missing", lambda: world.approve(proposal))
    world.enter(proposal, "b", 2, CANARIES[1])
    seen(places, "ceremonies", vault._ceremonies._components)
    key_id = world.approve(proposal).result["key_id"]
    kek = world.load_key(CANARIES[4], use=Use.TRANSPORT)
    # An envelope, an export, and what does not open.
    world.decide(
        SOCIAL, act.ImportEnvelope(spec(), envelope(CANARIES[2], vault), kcv_of(CANARIES[2]))
    )
    for fmt in act.TransportFormat:
        done = world.decide(SOCIAL, act.ExportKey(key_id, kek, fmt))
        seen(places, f"exported as {fmt}", done)
        places[f"wrapped as {fmt}"] = done.result["wrapped"]
    refused(
        "an envelope's check value",
        lambda: world.decide(
            SOCIAL, act.ImportEnvelope(spec(), envelope(CANARIES[3], vault), bytes(3))
        ),
    )
    # Shares, old and new.
    rekey = world.decide(Domain.LOCAL, act.Rekey(2, ("a", "b")))
    shares = [world.share_of(rekey, code) for code in "ab"]
    secrets += [share.value for share in [*world.founded.shares, *shares]]
    seen(places, "a staged seal", vault._staged)
    seen(places, "founded", world.founded)
    refused(
        "another's share",
        lambda: vault.confirm_share(
            world.officer(Domain.LOCAL, "b"),
            rekey.proposal_id,
            share_commitment(shares[0], rekey.result["salt"]),
        ),
    )
    sealed = world.sealed_vault()
    sealed.give_share(world.founded.shares[0])
    seen(places, "an unsealing", sealed._unsealing)
    seen(places, "progress", sealed.progress)
    vault.reload()
    for code in "ab":
        world.confirm(rekey, code)
    refused("an old share", lambda: sealed.give_share(world.founded.shares[1]))
    given = world.decide(SOCIAL, act.GiveComponents(spec(addresses=(1,)), ("a", "c")))
    secrets += [world.taken(given, code) for code in "ac"]
    secrets.append(xored(secrets[-2:]))
    # Everything that can be looked at.
    for name, thing in (
        ("vault", vault),
        ("contents", contents_of(vault)),
        ("seal", contents_of(vault).seal),
        ("identity", contents_of(vault).identity),
        ("quotas", vault.quotas),
        ("officer", officer),
        *((f"proposal {p.proposal_id.hex()}", p) for p in contents_of(vault).proposals.values()),
        *((f"key {k.header.label}", k) for k in contents_of(vault).keys.values()),
    ):
        seen(places, name, thing)
    for row in world.store.load().rows:
        places[f"row {row.kind} {row.id.hex()}"] = row.body + b"|" + row.sealed + b"|" + row.nonce
        seen(places, f"row {row.kind}", row)
    recorded = [record for n in range(1, 9) for _, record in world.store.outbox(f"keyd{n}")]
    assert len(recorded) > 20
    for number, record in enumerate(recorded):
        places[f"event {number}"] = record + repr(msgspec.msgpack.decode(record)).encode()
    with world.path.open("rb") as file:
        places["the database's file"] = file.read()
    assert not found_in(places, secrets)
    printed = [encode_share(share).encode() for share in [*world.founded.shares, *shares]]
    assert not [name for name, text in places.items() for share in printed if share[13:40] in text]


def test_every_event_is_one_that_the_journal_can_keep(world: World) -> None:
    """Text, numbers, bytes, and lists of them; with its domain, so that each domain has its own view."""
    test_no_known_key_is_seen_anywhere(world)
    records = [record for n in range(1, 9) for _, record in world.store.outbox(f"keyd{n}")]
    for record in records:
        event = msgspec.msgpack.decode(record)
        assert Domain(event["domain"])
        assert event["at"] == world.clock.now
        for value in event.values():
            parts = value if isinstance(value, list) else [value]
            assert all(isinstance(part, str | int | bool) for part in parts), event
