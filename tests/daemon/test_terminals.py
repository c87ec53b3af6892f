"""Terminals prove themselves to a real keyd, in every way, over real sockets; and the clients trust no other keyd."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.audit.query import query
from keyd.client import (
    AsyncClient,
    Client,
    Enrolled,
    Enrolment,
    PsamEnrolment,
    SignatureEnrolment,
)
from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.errors import NotAuthenticated, TerminalNotAuthentic
from keyd.keys.roots import synthetic_identity_key, synthetic_signer
from keyd.keys.synthetic import synthetic_psam_key, synthetic_terminal_key
from keyd.protocol.messages.daemon import AskRandom
from keyd.simulator import arithmetic, issue_card
from tests.daemon.test_operations import ask as ask_operations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer

CODE: Final = "DEV-0003"
PSAM: Final = bytes.fromhex("510100000003")


def psam(key: bytes) -> PsamEnrolment:
    """Return a terminal whose PSAM makes the proofs: here the simulator's arithmetic."""
    loaded = SecretKey.load(Algorithm.SM4, key)
    return PsamEnrolment(
        CODE, lambda side, challenge, own: arithmetic.terminal_proof(loaded, side, challenge, own)
    )


def signing(key: Sm2PrivateKey, keyd: Sm2PrivateKey | None = None) -> SignatureEnrolment:
    public = (keyd or synthetic_identity_key()).public.encode()
    return SignatureEnrolment(CODE, key, public)


WAYS: Final[dict[str, Callable[[], Enrolled]]] = {
    "key by code": lambda: Enrolment(CODE, synthetic_terminal_key(CODE)),
    "key by PSAM": lambda: Enrolment(CODE, synthetic_psam_key(PSAM)),
    "PSAM": lambda: psam(synthetic_psam_key(PSAM)),
    "signature": lambda: signing(synthetic_signer(CODE)),
}
WRONG: Final[dict[str, Callable[[], Enrolled]]] = {
    "another's key": lambda: Enrolment(CODE, synthetic_terminal_key("DEV-0001")),
    "another PSAM's key": lambda: psam(synthetic_psam_key(bytes(6))),
    "another's signature": lambda: signing(synthetic_signer("DEV-0001")),
    "nobody": lambda: Enrolment("NOBODY", synthetic_terminal_key("NOBODY")),
}


def test_every_way_in_leads_in_with_both_clients(daemon: RunningDaemon) -> None:
    for way in WAYS.values():
        with Client(daemon.address, way()) as client:
            assert len(client.ask(AskRandom(8)).random) == 8
    for way in WRONG.values():
        with Client(daemon.address, way()) as client, pytest.raises(TerminalNotAuthentic):
            client.ask(AskRandom(8))


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_in_leads_in_asynchronously(daemon: RunningDaemon, way: str) -> None:
    async with AsyncClient(daemon.address, WAYS[way]()) as client:
        assert len((await client.ask(AskRandom(8))).random) == 8


def test_a_client_trusts_no_keyd_with_another_key(daemon: RunningDaemon) -> None:
    impostor = signing(synthetic_signer(CODE), Sm2PrivateKey.generate())
    with (
        Client(daemon.address, impostor) as client,
        pytest.raises(TerminalNotAuthentic, match="did not prove"),
    ):
        client.ask(AskRandom(8))


def test_every_refusal_is_the_same_bytes_on_the_wire(
    daemon: RunningDaemon, raw: Callable[[str], RawPeer]
) -> None:
    answers = set()
    for code in ("DEV-0001", "NOBODY"):
        for method, params in (
            ("terminal.authenticate", [bytes(8)]),
            ("terminal.authenticate_signature", [bytes(64), int(time.time())]),
            ("terminal.authenticate_signature", [bytes(64), 0]),
            ("terminal.authenticate_signature", [bytes(64), int(time.time()), b"no chain"]),
        ):
            peer = raw(daemon.address)
            challenge = peer.ask("terminal.challenge", code, bytes(16))[3]
            assert [len(challenge[0]), challenge[1]] == [16, 30]
            answers.add(repr(peer.ask(method, *params)))
    assert len(answers) == 1
    assert "TERMINAL_NOT_AUTHENTIC" in answers.pop()


def test_after_three_failures_the_line_is_cut(
    daemon: RunningDaemon, raw: Callable[[str], RawPeer]
) -> None:
    for method, params in (
        ("terminal.authenticate", [bytes(8)]),
        ("terminal.authenticate_signature", [bytes(64), int(time.time())]),
    ):
        peer = raw(daemon.address)
        for _ in range(3):
            peer.ask("terminal.challenge", CODE, bytes(16))
            assert peer.ask(method, *params)[2][1] == "TERMINAL_NOT_AUTHENTIC"
        with pytest.raises(StopIteration):
            peer.answer()


@pytest.mark.parametrize("tick", ["native", "python"])
def test_a_failed_signature_ends_what_was_before_it(
    start_daemon: StartDaemon, raw: Callable[[str], RawPeer], tick: str
) -> None:
    daemon = start_daemon(env={"KEYD_TICK": "python"} if tick == "python" else {})
    peer = raw(daemon.address)
    peer.authenticate("DEV-0001")
    card = issue_card(serial=0x0BEE)
    card_id = bytes.fromhex("510100D156000005") + card.atr[13:] + bytes(4)
    hot = ("card.internal_cryptogram", [card_id, card.atr[4:]], bytes(8), bytes(8))
    for _ in range(3):
        assert peer.ask(*hot)[2] is None
    peer.ask("terminal.challenge", CODE, bytes(16))
    assert peer.ask("terminal.authenticate_signature", bytes(64), int(time.time()))[2][0] == 201
    assert peer.ask(*hot)[2][1] == "NOT_AUTHENTICATED"
    peer.authenticate("DEV-0001")
    assert peer.ask(*hot)[2] is None


def test_the_journal_and_the_metrics_know_why(start_daemon: StartDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    daemon = start_daemon("--journal", str(folder))
    for way in (*WRONG.values(), *WAYS.values()):
        with Client(daemon.address, way()) as client:
            try:
                client.ask(AskRandom(8))
            except TerminalNotAuthentic:
                continue
    text = ask_operations(daemon.operations, "/metrics")[1]
    assert 'keyd_terminal_refusals_total{reason="wrong-proof"} 3.0' in text
    assert 'keyd_terminal_refusals_total{reason="unknown"} 1.0' in text
    assert "keyd_terminal_lockouts 0.0" in text
    assert daemon.terminate() == 0
    records: list[Any] = list(query(folder))
    refused = [
        (record.fields["code"], record.fields["source"], record.fields["reason"])
        for record in records
        if getattr(record, "name", "") == "terminal.refused"
    ]
    assert refused == [
        *[(CODE, "127.0.0.1", "wrong-proof")] * 3,
        ("NOBODY", "127.0.0.1", "unknown"),
    ]
    uses = [
        (record.method, record.status, record.terminal)
        for record in records
        if getattr(record, "method", "").startswith("terminal.auth")
    ]
    methods = ["terminal.authenticate"] * 3 + ["terminal.authenticate_signature"]
    good = [(method, 0, CODE) for method in methods]
    assert uses[4:] == good
    assert {status for _, status, _ in uses[:4]} == {201}


def test_a_lockout_is_told_to_nobody_but_the_operator(
    daemon: RunningDaemon, raw: Callable[[str], RawPeer]
) -> None:
    for _ in range(6):
        peer = raw(daemon.address)
        peer.ask("terminal.challenge", "DEV-0009", bytes(16))
        assert peer.ask("terminal.authenticate", secrets.token_bytes(8))[2][0] == 201
        peer.close()
    with (
        Client(daemon.address, Enrolment("DEV-0009", synthetic_terminal_key("DEV-0009"))) as late,
        pytest.raises(TerminalNotAuthentic),
    ):
        late.connect()
    assert "keyd_terminal_lockouts 1.0" in ask_operations(daemon.operations, "/metrics")[1]
    time.sleep(1.2)
    with Client(daemon.address, Enrolment("DEV-0009", synthetic_terminal_key("DEV-0009"))) as late:
        late.connect()


def test_nobody_asks_without_a_proof(daemon: RunningDaemon) -> None:
    with Client(daemon.address) as client, pytest.raises(NotAuthenticated):
        client.ask(AskRandom(8))
