"""The client gives back what keyd said, as types; a lost line is mended or named, never silently wrong."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from keyd.client import MAX_PIPELINED, AsyncClient, Backoff, Client, ConnectionLost, Enrolment
from keyd.errors import (
    BadParameter,
    CardNotAuthentic,
    LocalProtocolError,
    NotAuthenticated,
    Refusal,
    RemoteProtocolError,
    TerminalNotAuthentic,
)
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import (
    CardAuthentic,
    InternalAuthenticate,
    InternalCryptogram,
    InternalReply,
    SecureMessage,
)
from keyd.protocol.messages.daemon import AskRandom, AskStatus, RandomBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningDaemon, StartDaemon

HISTORICAL = bytes.fromhex("00814A44468649510130000BEE")
CARD = CardIdentity(bytes.fromhex("510100D156000005") + HISTORICAL[9:] + bytes(4), HISTORICAL)
FACTOR, CHALLENGE = b"factor..", b"challeng"
ENROLMENT = Enrolment("DEV-0001", synthetic_terminal_key("DEV-0001"))


def cryptogram(challenge: bytes = CHALLENGE) -> InternalCryptogram:
    """Return a request that every genuine card has an answer to."""
    return InternalCryptogram(CARD, FACTOR, challenge)


# What is asked and what comes back --------------------------------------------------------------------------


def test_answers_come_as_types_and_refusals_as_the_class_that_keyd_raised(
    dev_client: Client,
) -> None:
    reply = dev_client.ask(cryptogram())
    assert type(reply) is InternalReply
    genuine = InternalAuthenticate(CARD, FACTOR, CHALLENGE, reply.reply[:8])
    assert dev_client.ask(genuine) == CardAuthentic()
    with pytest.raises(CardNotAuthentic):
        dev_client.ask(InternalAuthenticate(CARD, FACTOR, CHALLENGE, bytes(8)))


def test_pipelined_answers_stand_where_their_questions_stood(dev_client: Client) -> None:
    lengths = [n % 250 + 1 for n in range(MAX_PIPELINED * 5)]
    answers = dev_client.ask_all([AskRandom(length) for length in lengths])
    assert [len(answer.random) for answer in answers if isinstance(answer, RandomBytes)] == lengths


def test_a_refusal_among_many_spoils_no_other(dev_client: Client) -> None:
    answers = dev_client.ask_all([AskRandom(1), AskRandom(0), AskRandom(2)])
    assert [type(answer) for answer in answers] == [RandomBytes, BadParameter, RandomBytes]


def test_a_batch_answers_each_item_like_the_single_command(dev_client: Client) -> None:
    requests = [cryptogram(secrets.token_bytes(8)) for _ in range(256)]
    requests[7] = InternalCryptogram(CARD, FACTOR, CHALLENGE, address=0x0173)
    batch = dev_client.ask_batch(requests)
    singles = dev_client.ask_all(requests)
    assert [str(answer) for answer in batch] == [str(answer) for answer in singles]
    assert isinstance(batch[7], Refusal)
    assert [reply.reply for reply in batch if isinstance(reply, InternalReply)] == [
        reply.reply for reply in singles if isinstance(reply, InternalReply)
    ]


@pytest.mark.parametrize(
    "requests", [[], [cryptogram()] * 257, [AskRandom(1)], [cryptogram(), AskRandom(1)]]
)
def test_a_batch_that_keyd_would_not_take_is_our_own_error(
    dev_client: Client, requests: list[InternalCryptogram]
) -> None:
    with pytest.raises(LocalProtocolError):
        dev_client.ask_batch(requests)


def test_a_request_that_is_too_large_is_our_own_error(dev_client: Client) -> None:
    with pytest.raises(LocalProtocolError):
        dev_client.ask(SecureMessage(CARD, 0x0173, FACTOR, b"\x04\xd6\0\0", bytes(70_000)))
    assert dev_client.ask(AskRandom(3))


def test_without_a_terminal_there_are_no_keys(daemon: RunningDaemon) -> None:
    with Client(daemon.address) as client, pytest.raises(NotAuthenticated):
        client.ask(cryptogram())


def test_a_wrong_terminal_key_is_refused(daemon: RunningDaemon) -> None:
    with Client(daemon.address, Enrolment("DEV-0001", bytes(16))) as client:
        with pytest.raises(TerminalNotAuthentic):
            client.ask(AskRandom(1))
        with pytest.raises(TerminalNotAuthentic):
            client.connect()


def test_both_flavours_work_over_a_unix_socket(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon("--unix", str(tmp_path / "keyd.sock"))
    with Client(daemon.unix) as client:
        assert client.ask(AskStatus()).state == "serving"

    async def ask() -> str:
        async with AsyncClient(daemon.unix) as client:
            return (await client.ask(AskStatus())).state

    assert trio.run(ask) == "serving"


# A line that breaks -----------------------------------------------------------------------------------------


def test_nobody_there_is_named(unused_port: int) -> None:
    with (
        Client(f"127.0.0.1:{unused_port}", backoff=Backoff(0.01, 0.01, 3)) as client,
        pytest.raises(ConnectionLost, match="cannot connect"),
    ):
        client.ask(AskRandom(1))


def test_the_client_comes_back_after_a_restart(start_daemon: StartDaemon, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/keyd.sock"
    first = start_daemon("--unix", path.removeprefix("unix:"))
    with Client(path, ENROLMENT) as client:
        client.ask(AskRandom(1))
        assert first.terminate(signal.SIGTERM) == 0
        start_daemon("--unix", path.removeprefix("unix:"))
        assert client.ask(AskRandom(1))


async def test_the_trio_client_comes_back_after_a_restart(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    path = f"unix:{tmp_path}/keyd.sock"
    first = start_daemon("--unix", path.removeprefix("unix:"))
    async with AsyncClient(path, ENROLMENT) as client:
        await client.ask(AskRandom(1))
        assert first.terminate(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(ConnectionLost):
            await client.ask(AskRandom(1))
        start_daemon("--unix", path.removeprefix("unix:"))
        assert await client.ask(AskRandom(1))


def test_growing_pauses_end(unused_port: int) -> None:
    pauses = list(Backoff(1.0, 4.0, 5).pauses())
    assert len(pauses) == 4
    for pause, ideal in zip(pauses, (1.0, 2.0, 4.0, 4.0), strict=True):
        assert ideal * 0.5 <= pause <= ideal * 1.5


# A keyd that is none ----------------------------------------------------------------------------------------


@pytest.fixture
def impostor() -> Iterator[Callable[..., str]]:
    """Serve one connection: fixed bytes for each thing asked, whatever it is; return the address."""
    servers: list[socket.socket] = []

    def serve(*answers: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    connection.recv(1000)
                    connection.sendall(answer)
                connection.recv(1000)

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield serve
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"\xc1",
        b"HTTP/1.1 400 Bad Request\r\n",
        bytes.fromhex("940163c090"),  # an answer to msgid 99
        bytes.fromhex("940100c0c0"),  # nil where a response should be
        bytes.fromhex("94010001c0"),  # an error that is none
        bytes.fromhex("94000 0a0 90".replace(" ", "")),  # a request
    ],
)
def test_answers_that_do_not_fit_raise_the_one_protocol_error(
    impostor: Callable[..., str], answer: bytes
) -> None:
    with Client(impostor(answer), timeout=5) as client, pytest.raises(RemoteProtocolError):
        client.ask(AskRandom(1))


def test_a_keyd_that_cannot_prove_itself_is_not_trusted(impostor: Callable[..., str]) -> None:
    # It knows the dance but not the key.
    challenge = bytes.fromhex("940100c092c410") + bytes(16) + b"\x1e"
    address = impostor(challenge, bytes.fromhex("940101c091c408") + bytes(8))
    with (
        Client(address, ENROLMENT, timeout=5) as client,
        pytest.raises(TerminalNotAuthentic, match="did not prove"),
    ):
        client.ask(AskRandom(1))


def test_a_silent_keyd_is_given_up(impostor: Callable[..., str]) -> None:
    with (
        Client(impostor(b""), timeout=0.3, backoff=Backoff(attempts=1)) as client,
        pytest.raises(ConnectionLost),
    ):
        client.ask(AskRandom(1))


# Sharing ----------------------------------------------------------------------------------------------------


async def test_trio_tasks_may_share_a_client(daemon: RunningDaemon) -> None:
    lengths: list[tuple[int, int]] = []

    async def ask(client: AsyncClient, length: int) -> None:
        lengths.append((length, len((await client.ask(AskRandom(length))).random)))

    async with AsyncClient(daemon.address, ENROLMENT) as client, trio.open_nursery() as nursery:
        for length in range(1, 50):
            nursery.start_soon(ask, client, length)
    assert len(lengths) == 49
    assert all(asked == got for asked, got in lengths)


async def test_a_cancelled_question_does_not_answer_the_next(daemon: RunningDaemon) -> None:
    async with AsyncClient(daemon.address, ENROLMENT) as client:
        await client.connect()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.ask(AskRandom(100))
        assert len((await client.ask(AskRandom(3))).random) == 3


def test_an_enrolment_never_shows_its_key() -> None:
    key = synthetic_terminal_key("DEV-0001")
    assert key.hex() not in repr(ENROLMENT) + str(vars(ENROLMENT.__class__))


@pytest.fixture
def unused_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
