"""An officer's command counts only if this officer signed exactly it, for this store and this connection."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from keyd.client.officer import COMMAND_LABEL
from keyd.custody import actions as act
from keyd.custody import officers
from keyd.custody.officers import (
    CHALLENGE_BYTES,
    OfficerRole,
    SignedCommand,
    command_message,
    verify_command,
)
from keyd.errors import BadParameter, OfficerNotAuthentic, Refusal, RoleMissing, Sealed
from keyd.keys.block import Domain
from tests.custody.world import PEOPLE, World, contents_of, envelope, kcv_of, private_key, spec

if TYPE_CHECKING:
    from keyd.custody.officers import Officer
    from keyd.custody.vault import Vault

CHALLENGE: Final = secrets.token_bytes(CHALLENGE_BYTES)
COMMAND: Final = b"\x92\xa5seals\x90"


def signed(
    world: World, domain: Domain = Domain.SOCIAL, code: str = "a", **other: Any
) -> SignedCommand:
    """A command that somebody signed; `other` is what they thought that they signed."""
    message = command_message(
        other.get("store_id", world.founded.store_id),
        other.get("challenge", CHALLENGE),
        other.get("who", f"{domain}/{code}"),
        other.get("command", COMMAND),
    )
    signer = other.get("signer", (domain, code))
    return SignedCommand(domain, code, COMMAND, private_key(*signer).sign(message))


def test_the_client_signs_what_keyd_verifies(world: World) -> None:
    """Client and daemon share no code here; their bytes must be the same."""
    assert officers._LABEL == COMMAND_LABEL
    message = COMMAND_LABEL + msgspec.msgpack.encode(
        [world.founded.store_id, CHALLENGE, "SOCIAL/a", COMMAND]
    )
    assert message == command_message(world.founded.store_id, CHALLENGE, "SOCIAL/a", COMMAND)


def test_every_officer_is_recognised(world: World) -> None:
    for domain in Domain:
        for code in PEOPLE:
            officer = world.vault.officer_of(signed(world, domain, code), CHALLENGE)
            assert (officer.domain, officer.code) == (domain, code)


@pytest.mark.parametrize(
    "other",
    [
        {"store_id": bytes(16)},
        {"challenge": bytes(16)},
        {"challenge": CHALLENGE[:-1]},
        {"challenge": b""},
        {"who": "SOCIAL/b"},
        {"who": "FINANCE/a"},
        {"who": "a"},
        {"command": b""},
        {"command": COMMAND + b"\0"},
        {"command": COMMAND[:-1]},
        {"signer": (Domain.SOCIAL, "b")},
        {"signer": (Domain.FINANCE, "a")},
    ],
    ids=str,
)
def test_what_was_signed_for_anything_else_is_refused(world: World, other: dict[str, Any]) -> None:
    with pytest.raises(OfficerNotAuthentic):
        world.vault.officer_of(signed(world, **other), CHALLENGE)


def test_a_command_is_another_connections_on_another_connection(world: World) -> None:
    command = signed(world)
    world.vault.officer_of(command, CHALLENGE)
    for _ in range(8):
        with pytest.raises(OfficerNotAuthentic):
            world.vault.officer_of(command, secrets.token_bytes(CHALLENGE_BYTES))


def test_no_altered_bit_of_command_or_signature_passes(world: World) -> None:
    command = signed(world)
    officer = world.officer(Domain.SOCIAL, "a")

    def refused(altered: SignedCommand) -> None:
        with pytest.raises(OfficerNotAuthentic) as stranger:
            verify_command(officer, altered, world.founded.store_id, CHALLENGE)
        # Whatever was wrong, the sentence is one.
        assert stranger.value.detail == OfficerNotAuthentic().detail

    for i in range(len(COMMAND) * 8):
        octets = bytearray(COMMAND)
        octets[i // 8] ^= 1 << i % 8
        refused(replace(command, command=bytes(octets)))
    for i in range(0, 64 * 8, 3):
        octets = bytearray(command.signature)
        octets[i // 8] ^= 1 << i % 8
        refused(replace(command, signature=bytes(octets)))
    for signature in (
        b"",
        command.signature[:-1],
        command.signature + b"\0",
        bytes(64),
        b"\xff" * 64,
    ):
        refused(replace(command, signature=signature))


def test_strangers_and_the_retired_look_like_a_wrong_signature(world: World) -> None:
    world.decide(Domain.SOCIAL, act.RetireOfficer("d"))
    said = set()
    for code in ("d", "nobody", "", "a/b", "../a"):
        command = replace(signed(world, code="d"), code=code)
        with pytest.raises(OfficerNotAuthentic) as refused:
            world.vault.officer_of(command, CHALLENGE)
        said.add(refused.value.detail)
    with pytest.raises(OfficerNotAuthentic) as refused:
        world.vault.officer_of(replace(signed(world), signature=bytes(64)), CHALLENGE)
    assert said == {refused.value.detail}


def test_a_new_public_key_ends_the_old_one(world: World) -> None:
    key = private_key(Domain.SOCIAL, "the new key of d")
    roles = (OfficerRole.SECURITY_OFFICER,)
    world.decide(Domain.SOCIAL, act.EnrolOfficer("d", "D", roles, key.public.encode()))
    with pytest.raises(OfficerNotAuthentic):
        world.vault.officer_of(signed(world, code="d"), CHALLENGE)
    now = signed(world, code="d", signer=(Domain.SOCIAL, "the new key of d"))
    assert world.vault.officer_of(now, CHALLENGE).code == "d"


def test_sealed_nobody_can_be_told_from_anybody(world: World) -> None:
    command = signed(world)
    with pytest.raises(Sealed):
        world.sealed_vault().officer_of(command, CHALLENGE)


# --- every command looks again at whom it obeys


def commands(world: World, vault: Vault, officer: Officer) -> dict[str, Any]:
    """Every command of an officer, as a call that nobody but this test stops."""
    domain = officer.domain
    opened = world.propose(domain, act.GenerateKey(spec(domain)), by="b", vault=vault)
    wanted = world.propose(domain, act.ImportKey(spec(domain), 2), by="b", vault=vault)
    given = world.decide(domain, act.GiveComponents(spec(domain), ("a", "c")), vault)
    commitment = bytes(16)
    return {
        "propose": lambda: vault.propose(officer, act.GenerateKey(spec(domain))),
        "approve": lambda: vault.approve(officer, opened.proposal_id),
        "reject": lambda: vault.reject(officer, opened.proposal_id),
        "enter_component": lambda: vault.enter_component(
            officer,
            wanted.proposal_id,
            1,
            envelope(bytes(range(16)), vault),
            kcv_of(bytes(range(16))),
        ),
        "take": lambda: vault.take(officer, given.proposal_id),
        "confirm_share": lambda: vault.confirm_share(officer, opened.proposal_id, commitment),
    }


@pytest.mark.parametrize(
    "name", ["propose", "approve", "reject", "enter_component", "take", "confirm_share"]
)
@pytest.mark.parametrize("change", ["retired", "another key", "unknown"])
def test_who_was_signed_in_and_is_an_officer_no_more_is_refused(
    world: World, name: str, change: str
) -> None:
    """Between the signature and the act, others may decide: the act looks at the officer as they are then."""
    vault = world.vault
    roles = PEOPLE["a"]
    fourth = private_key(Domain.SOCIAL, "f").public.encode()
    world.decide(Domain.SOCIAL, act.EnrolOfficer("f", "F", roles, fourth))
    officer = world.officer(Domain.SOCIAL, "a")
    calls = commands(world, vault, officer)
    if change == "retired":
        proposal = world.propose(Domain.SOCIAL, act.RetireOfficer("a"), by="b")
        world.approve(proposal, by="d")
    elif change == "another key":
        new = private_key(Domain.SOCIAL, "a, anew").public.encode()
        proposal = world.propose(Domain.SOCIAL, act.EnrolOfficer("a", "A", roles, new), by="b")
        world.approve(proposal, by="d")
    else:
        officer = replace(officer, code="zz")
        calls = commands(world, vault, officer)
    before = contents_of(vault).number
    with pytest.raises((BadParameter, OfficerNotAuthentic)):
        calls[name]()
    assert contents_of(vault).number == before


def test_a_role_that_the_officer_only_claims_counts_for_nothing(world: World) -> None:
    """The store says what somebody may do, not the value that the caller holds."""
    vault = world.vault
    claimed = replace(world.officer(Domain.SOCIAL, "e"), roles=tuple(OfficerRole)[:4])
    calls = commands(world, vault, claimed)
    for name, call in calls.items():
        with pytest.raises(Refusal) as refused:
            call()
        if name in ("propose", "approve", "reject", "enter_component"):
            assert type(refused.value) is RoleMissing


@pytest.mark.parametrize("code", list(PEOPLE))
def test_roles_decide_who_may_do_what(world: World, code: str) -> None:
    officer = world.officer(Domain.SOCIAL, code)
    is_security = OfficerRole.SECURITY_OFFICER in PEOPLE[code]
    is_custodian = OfficerRole.CUSTODIAN in PEOPLE[code]
    calls = commands(world, world.vault, officer)
    may = {"propose": is_security, "enter_component": is_custodian, "take": code in "ac"}
    for name, is_allowed in may.items():
        if is_allowed:
            calls[name]()
            continue
        with pytest.raises(Refusal):
            calls[name]()
