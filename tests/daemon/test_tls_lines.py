"""Invariant: over an encrypted line keyd answers what it answers over a plain one, byte for byte, to those whose
certificate says who they are, and as long as it does. Whoever has no good certificate hears no word of the protocol.

All against the real daemon process, over real sockets.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest

from keyd.client import AsyncClient, Client, ConnectionLost, Enrolment, LineRefused
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import TABLE, Role
from keyd.protocol.connection import MAX_MESSAGE
from keyd.protocol.messages.daemon import AskRandom
from keyd.tls import TlsFault, TlsKind
from keyd.tls.pki import Validity, generate_key, issue_terminal, load_key, random_serial
from tests.daemon.conftest import RawPeer, write_private
from tests.daemon.encrypted import (
    CODES,
    SERVER_NAME,
    TODAY,
    Keyd,
    TlsPeer,
    client_context,
    entry,
    pki,
    revocation_list,
    stranger_pki,
    write_pki,
)
from tests.daemon.test_operations import eventually, samples
from tests.tls.tongsuo import TongsuoContext, connected, needs_tongsuo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import WriteConfig

    Connect = Callable[[str], RawPeer]
    Start = Callable[..., Keyd]

KINDS: Final = list(TlsKind)
OTHER: Final = {TlsKind.GUOMI: TlsKind.STANDARD, TlsKind.STANDARD: TlsKind.GUOMI}
RANDOM: Final = ("daemon.random", 8)

# The command, as it is installed beside this Python.
KEYD: Final = str(Path(sys.executable).with_name("keyd"))

GOLDEN: Final = Path(__file__).parents[1] / "protocol" / "golden.json"

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)


@pytest.fixture
def start(start_daemon: StartDaemon, write_config: WriteConfig, tmp_path: Path) -> Iterator[Start]:
    """Start a daemon with encrypted lines, whose peers are closed after the test."""
    with contextlib.ExitStack() as started:

        def start_keyd(kind: TlsKind = TlsKind.GUOMI, *limits: str, **more: Any) -> Keyd:
            keyd = Keyd(start_daemon, write_config, tmp_path, kind, *limits, **more)
            started.callback(keyd.close)
            return keyd

        yield start_keyd


@pytest.fixture(params=KINDS, ids=lambda kind: kind.value)
def keyd(request: pytest.FixtureRequest, start: Start) -> Keyd:
    """A daemon with encrypted lines, of each kind."""
    return start(request.param)


def reload(keyd: Keyd) -> None:
    """Have the daemon read its files again, and wait until it has."""
    before = count_events(keyd, "reloaded")
    keyd.daemon.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: count_events(keyd, "reloaded") > before)


def count_events(keyd: Keyd, event: str) -> int:
    return sum(line["event"] == event for line in keyd.daemon.log_lines())


def faults(keyd: Keyd) -> list[str]:
    """Return the causes that the daemon has logged."""
    return [line["cause"] for line in keyd.daemon.log_lines() if line["event"] == "tls_fault"]


def counted(daemon: RunningDaemon, family: str) -> dict[str, float]:
    """Return a counter by its label beside the kind."""
    return {
        value: count
        for labels, count in samples(daemon, family).items()
        for name, value in labels
        if name != "kind"
    }


def is_gone(peer: TlsPeer) -> bool:
    """Whether the line has ended, without an answer."""
    try:
        return list(peer.answers()) == []
    except TimeoutError:
        return False
    except (OSError, TlsFault):
        return True


# The same answers. -------------------------------------------------------------------------------------------


def golden_requests() -> Iterator[tuple[str, list[Any]]]:
    """Yield an example of every command, with its parameters as they are on the wire."""
    for method, example in json.loads(GOLDEN.read_text())["messages"].items():
        if method in TABLE:
            wire = bytes.fromhex(example["request"]["wire"])
            yield method, msgpack.unpackb(wire)


# What differs from one time to the next: random numbers, counts, and slow work that comes when it is done.
VARYING: Final = {"daemon.status", "daemon.selftest", "daemon.random", "terminal.challenge"}


def test_every_command_is_answered_with_the_same_bytes(keyd: Keyd, raw: Connect) -> None:
    plain, encrypted = raw(keyd.daemon.address), keyd.peer()
    plain.authenticate()
    encrypted.authenticate()
    compared = 0
    for method, params in golden_requests():
        request = RawPeer.encode(method, *params)
        answers = [ask_bytes(peer, request) for peer in (plain, encrypted)]
        if method in VARYING:
            errors = [msgpack.unpackb(answer)[2] for answer in answers]
            assert errors[0] == errors[1], method
        else:
            assert answers[0] == answers[1], method
            compared += 1
        if method == "terminal.authenticate":
            # It has failed, as an example does, and whoever was there is there no more.
            plain.authenticate()
            encrypted.authenticate()
    assert compared > 20


def ask_bytes(peer: RawPeer, request: bytes) -> bytes:
    """Send a request and return the bytes of its whole answer."""
    peer.sock.sendall(request)
    unpacker, answer = msgpack.Unpacker(), b""
    while True:
        data = peer.sock.recv(65536)
        assert data
        answer += data
        unpacker.feed(data)
        with contextlib.suppress(msgpack.OutOfData):
            unpacker.unpack()
            return answer


def test_thousands_of_pipelined_requests_are_answered_with_the_same_bytes(
    keyd: Keyd, raw: Connect
) -> None:
    method, params = next(
        (method, params)
        for method, params in golden_requests()
        if method == "card.internal_cryptogram"
    )
    count = 3000
    data = b"".join(RawPeer.encode(method, *params, msgid=n) for n in range(count))
    heard = []
    for peer in (raw(keyd.daemon.address), keyd.peer()):
        peer.authenticate()
        peer.sock.sendall(data)
        unpacker, answers, seen = msgpack.Unpacker(), b"", 0
        while seen < count:
            part = peer.sock.recv(65536)
            assert part
            answers += part
            unpacker.feed(part)
            seen += sum(1 for _ in unpacker)
        heard.append(answers)
    assert heard[0] == heard[1]


def test_a_request_in_single_bytes_of_ciphertext_is_answered_once(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    for byte in peer.line.send(peer.encode(*RANDOM, msgid=7)):
        peer.plain.sendall(bytes([byte]))
        time.sleep(0.001)
    assert peer.answer()[:3] == [1, 7, None]


def test_a_message_of_64_kib_arrives_in_records_and_pieces(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    # As long as a message may be, and no method of ours.
    request = peer.encode("no.such_method", bytes(MAX_MESSAGE - 40), msgid=9)
    assert MAX_MESSAGE - 64 < len(request) <= MAX_MESSAGE
    for part in (request, request + request):
        peer.sock.sendall(part)
        for _ in range(len(part) // len(request)):
            assert peer.answer()[2][1] == "METHOD_UNKNOWN"
    peer.sock.sendall(peer.encode("no.such_method", bytes(MAX_MESSAGE), msgid=9))
    assert [answer[2][1] for answer in peer.answers()] == ["MALFORMED"]


def test_a_record_that_was_not_whole_and_all_that_follows_come_at_once(keyd: Keyd) -> None:
    """More plaintext than one read of ciphertext has: OpenSSL held the beginning."""
    peer = keyd.peer()
    peer.authenticate()
    request = peer.encode("no.such_method", bytes(900))
    count = 81_000 // len(request)
    plaintext = request * count
    # Four whole records and a shorter one, of which all but the first, and its last byte, are less than 64 KiB.
    first, rest = peer.line.send(plaintext[:16_384]), peer.line.send(plaintext[16_384:])
    assert len(rest) < 65_535
    peer.plain.sendall(first[:-1])
    time.sleep(0.3)
    keyd.daemon.process.send_signal(signal.SIGSTOP)
    peer.plain.sendall(first[-1:] + rest)
    keyd.daemon.process.send_signal(signal.SIGCONT)
    answers = peer.answers()
    assert {next(answers)[2][1] for _ in range(count)} == {"METHOD_UNKNOWN"}


def test_what_comes_with_the_end_of_the_handshake_is_answered(keyd: Keyd) -> None:
    """The last flight and the first question may be one write."""
    line = keyd.context().connect("127.0.0.1", int(time.time()))
    host, _, port = keyd.address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(line.data_to_send())
        while line.is_handshaking:
            line.receive_data_untrusted(sock.recv(65536))
        sock.sendall(line.data_to_send() + line.send(RawPeer.encode(*RANDOM, msgid=3)))
        heard = b""
        while not heard:
            heard = line.receive_data_untrusted(sock.recv(65536))
    assert msgpack.unpackb(heard)[2][1] == "NOT_AUTHENTICATED"


def test_malformed_bytes_get_one_error_and_the_end_of_the_line(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.sock.sendall(b"\xc1")
    (answer,) = peer.answers()
    assert answer[2][1] == "MALFORMED"


# The client. -------------------------------------------------------------------------------------------------


def test_both_flavours_ask_and_resume(keyd: Keyd) -> None:
    with keyd.client() as client:
        assert len(client.ask(AskRandom(8)).random) == 8
        client.close()
        assert len(client.ask(AskRandom(8)).random) == 8
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {"full": 1, "resumed": 1}
    assert eventually(
        lambda: samples(keyd.daemon, "keyd_tls_lines") == {(("kind", keyd.kind.value),): 0}
    )
    assert faults(keyd) == []


def test_an_idle_line_is_told_and_the_client_comes_back(start: Start) -> None:
    keyd = start(TlsKind.STANDARD, "idle_seconds = 1.0")
    idle = keyd.peer()
    idle.authenticate()
    with keyd.client("DEV-0002") as client:
        client.ask(AskRandom(8))
        (answer,) = idle.answers()
        assert answer[2][1] == "TIMED_OUT"
        time.sleep(1.0)
        client.ask(AskRandom(8))
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {"full": 2, "resumed": 1}


async def test_the_trio_client_asks_and_resumes(start: Start) -> None:
    keyd = start()
    enrolment = Enrolment("DEV-0001", synthetic_terminal_key("DEV-0001"))
    async with AsyncClient(keyd.address, enrolment, tls=keyd.context()) as client:
        assert len((await client.ask(AskRandom(8))).random) == 8
        await client.aclose()
        assert len((await client.ask(AskRandom(8))).random) == 8
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {"full": 1, "resumed": 1}
    assert faults(keyd) == []


def test_a_client_never_falls_back(keyd: Keyd) -> None:
    """On a plain port an encrypted line is not made, and nothing is said in its place."""
    enrolment = Enrolment("DEV-0001", synthetic_terminal_key("DEV-0001"))
    with (
        Client(keyd.daemon.address, enrolment, tls=keyd.context()) as client,
        pytest.raises(ConnectionLost),
    ):
        client.connect()
    assert count_events(keyd, "refused") == 0


def test_a_client_does_not_speak_to_a_keyd_of_another_name(keyd: Keyd) -> None:
    with (
        Client(keyd.address, None, tls=keyd.context(), server_name="keyd.example") as client,
        pytest.raises(LineRefused, match="mismatch"),
    ):
        client.connect()


def test_a_client_does_not_speak_to_a_keyd_of_another_ca(keyd: Keyd) -> None:
    authority = stranger_pki(keyd.kind).authority.certificate
    context = keyd.context(server_authorities=authority)
    with keyd.client(context=context) as client, pytest.raises(LineRefused, match="certificate"):
        client.connect()
    assert eventually(lambda: counted(keyd.daemon, "keyd_tls_faults") == {"alert": 1})


def test_the_command_line_calls_over_an_encrypted_line(keyd: Keyd) -> None:
    folder, kind = keyd.folder, keyd.kind
    certificate, private_key = pki(kind).terminals["DEV-0001"]
    (folder / "terminal.pem").write_bytes(certificate)
    write_private(folder / "terminal.key", private_key.decode())
    write_private(folder / "key", synthetic_terminal_key("DEV-0001").hex())
    call = [
        *(KEYD, "call", "daemon.random", "length=4"),
        *("--connect", keyd.address, "--terminal", "DEV-0001"),
        *("--terminal-key-file", str(folder / "key"), "--tls", kind.value),
        *("--tls-authorities", str(folder / f"{kind.value}-ca.pem")),
        *("--tls-certificate", str(folder / "terminal.pem")),
    ]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*call, *more], capture_output=True, text=True, check=False)

    done = run("--tls-key", str(folder / "terminal.key"))
    assert (done.returncode, len(done.stdout.strip())) == (0, len("random=") + 8), done.stderr
    refused = run("--tls-key", str(folder / "terminal.key"), "--tls-name", "keyd.example")
    assert "mismatch" in refused.stderr
    (sentence,) = run().stderr.strip().splitlines()
    assert "--tls needs" in sentence


# Who gets no line. -------------------------------------------------------------------------------------------


def test_who_has_no_good_certificate_gets_no_line(keyd: Keyd) -> None:
    made, stranger = pki(keyd.kind), stranger_pki(keyd.kind)
    bad = {
        "a stranger's": stranger.terminals["DEV-0001"],
        "the server's own": made.server,
    }
    for what, (certificate, private_key) in bad.items():
        context = keyd.context(certificate=certificate, private_key=private_key)
        with keyd.client(context=context) as client, pytest.raises(LineRefused):
            client.ask(AskRandom(8))
        assert eventually(lambda: bool(faults(keyd))), what
    bare = keyd.context(certificate=None, private_key=None)
    with keyd.client(context=bare) as client, pytest.raises(LineRefused):
        client.ask(AskRandom(8))
    assert eventually(lambda: len(faults(keyd)) == 3)
    assert counted(keyd.daemon, "keyd_tls_faults") == {"certificate": 3}
    # The peer learns that it was refused, the log learns why.
    assert "peer did not return a certificate" in faults(keyd)[2]
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {}


def test_a_line_of_the_other_kind_is_none(keyd: Keyd) -> None:
    context = client_context(OTHER[keyd.kind])
    with keyd.client(context=context) as client, pytest.raises(LineRefused):
        client.connect()
    assert eventually(lambda: counted(keyd.daemon, "keyd_tls_faults") == {"protocol": 1})


@pytest.mark.parametrize(
    "junk",
    [RawPeer.encode(*RANDOM), b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"\x16\x03\x01\xff\xff"],
)
def test_who_speaks_no_tls_hears_no_word_of_the_protocol(start: Start, junk: bytes) -> None:
    keyd = start(TlsKind.GUOMI, "handshake_seconds = 0.5")
    host, _, port = keyd.address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        heard = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(junk)
            while part := sock.recv(65536):
                heard += part
    # An alert of seven bytes, if anything.
    assert heard in (b"", heard[:7])
    assert heard[:1] in (b"", b"\x15")
    with keyd.client() as client:
        client.connect()


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the other program is openssl, and there is none"
)


@pytest.fixture
def terminal_files(tmp_path: Path) -> list[str]:
    """What another program presents, as its options."""
    certificate, private_key = pki(TlsKind.STANDARD).terminals["DEV-0001"]
    (tmp_path / "terminal.pem").write_bytes(certificate)
    write_private(tmp_path / "terminal.key", private_key.decode())
    return ["-cert", str(tmp_path / "terminal.pem"), "-key", str(tmp_path / "terminal.key")]


def s_client(keyd: Keyd, request: bytes, *options: str) -> bytes:
    """Have the system's TLS client send a request; return what it wrote until an answer or the end."""
    command = [
        *("openssl", "s_client", "-connect", keyd.address, "-quiet", "-no_ign_eof"),
        *("-CAfile", str(keyd.folder / "standard-ca.pem"), "-verify_return_error", *options),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        while b"NOT_AUTHENTICATED" not in said:
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                break
            said += part
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(20)
    return said


@needs_openssl
def test_another_programs_client_is_answered(start: Start, terminal_files: list[str]) -> None:
    keyd = start(TlsKind.STANDARD)
    said = s_client(keyd, RawPeer.encode(*RANDOM, msgid=77), *terminal_files)
    answer = said[said.index(b"\x94\x01") :]
    unpacker = msgpack.Unpacker()
    unpacker.feed(answer)
    assert unpacker.unpack()[:2] == [1, 77]


@needs_tongsuo
def test_another_programs_guomi_client_is_answered(start: Start) -> None:
    keyd = start(TlsKind.GUOMI)
    made = pki(TlsKind.GUOMI)
    context = TongsuoContext(made.authority.certificate, made.terminals["DEV-0001"])
    host, _, port = keyd.address.rpartition(":")
    with connected(context, (host, int(port)), name=SERVER_NAME) as line:
        line.send(RawPeer.encode(*RANDOM, msgid=77))
        unpacker = msgpack.Unpacker()
        unpacker.feed(line.receive())
        assert unpacker.unpack()[:2] == [1, 77]
        assert line.suite == "TLS_SM4_GCM_SM3"


@needs_openssl
@pytest.mark.parametrize("option", ["-tls1_2", "-no_tls1_3"])
def test_another_version_is_none(start: Start, terminal_files: list[str], option: str) -> None:
    keyd = start(TlsKind.STANDARD)
    said = s_client(keyd, RawPeer.encode(*RANDOM), *terminal_files, option)
    assert b"NOT_AUTHENTICATED" not in said
    assert b"alert" in said
    assert eventually(lambda: "unsupported protocol" in str(faults(keyd)))


# Ends. -------------------------------------------------------------------------------------------------------


def test_an_end_that_was_not_said_answers_nothing(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    whole = peer.encode(*RANDOM)
    peer.sock.sendall(whole[:-1])
    peer.plain.shutdown(socket.SHUT_WR)
    assert is_gone(peer)
    assert eventually(lambda: counted(keyd.daemon, "keyd_tls_faults") == {"truncated": 1})


def test_an_end_that_was_said_leaves_every_answer(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    count = 500
    messages = [peer.encode(*RANDOM, msgid=n) for n in range(count)]
    messages.append(peer.encode("daemon.selftest", msgid=count))
    peer.sock.sendall(b"".join(messages))
    peer.plain.sendall(peer.line.close())
    assert sorted(answer[1] for answer in peer.answers()) == list(range(count + 1))
    assert faults(keyd) == []


def test_an_end_within_a_message_is_told(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.sock.sendall(peer.encode(*RANDOM)[:-1])
    peer.plain.sendall(peer.line.close())
    (answer,) = peer.answers()
    assert "within a message" in answer[2][2]


def test_a_damaged_record_ends_the_line_and_nothing_before_it_is_half_done(keyd: Keyd) -> None:
    peer, bystander = keyd.peer(), keyd.peer("DEV-0002")
    peer.authenticate()
    bystander.authenticate("DEV-0002")
    good = peer.line.send(peer.encode(*RANDOM))
    damaged = bytearray(peer.line.send(peer.encode(*RANDOM)))
    damaged[-1] ^= 1
    peer.plain.sendall(good + damaged)
    assert is_gone(peer)
    # No answer could leave, so nothing was done.
    assert not any(
        "daemon.random" in str(labels) for labels in samples(keyd.daemon, "keyd_requests")
    )
    assert eventually(lambda: counted(keyd.daemon, "keyd_tls_faults") == {"protocol": 1})
    assert bystander.ask(*RANDOM)[2] is None


def test_a_draining_keyd_says_goodbye(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    host, _, port = keyd.address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as half_open:
        assert eventually(lambda: count_events(keyd, "connection_opened") == 2)
        keyd.daemon.process.send_signal(signal.SIGTERM)
        # `answers` ends at close_notify; an end that was not said would be a fault.
        assert list(peer.answers()) == []
        peer.plain.sendall(peer.line.close())
        peer.close()
        assert half_open.recv(1) == b""
    assert keyd.daemon.process.wait(20) == 0


# Reloading. --------------------------------------------------------------------------------------------------


def test_a_reload_that_changes_nothing_disturbs_nobody(keyd: Keyd) -> None:
    peer, client = keyd.peer(), keyd.client("DEV-0002")
    peer.authenticate()
    with client:
        client.ask(AskRandom(8))
        client.close()
        reload(keyd)
        # Not even a ticket.
        client.ask(AskRandom(8))
    assert peer.ask(*RANDOM)[2] is None
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {"full": 2, "resumed": 1}


def test_a_revoked_certificate_loses_its_line_at_a_reload_and_gets_no_other(keyd: Keyd) -> None:
    stopped, other = keyd.peer("DEV-0001"), keyd.peer("DEV-0002")
    stopped.authenticate()
    other.authenticate("DEV-0002")
    with keyd.client("DEV-0001") as client:
        client.ask(AskRandom(8))
        # It has a ticket, and its line is closed.
        client.close()
        revoked = revocation_list(keyd.kind, "DEV-0001", number=2)
        (keyd.folder / f"{keyd.kind.value}-revoked.pem").write_bytes(revoked)
        reload(keyd)
        assert is_gone(stopped)
        assert other.ask(*RANDOM)[2] is None
        with pytest.raises(LineRefused):
            client.ask(AskRandom(8))
    assert any("revoked" in cause for cause in faults(keyd))
    with keyd.client("DEV-0002") as client:
        client.ask(AskRandom(8))


def test_lines_of_a_ca_that_is_gone_are_closed(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    kind = keyd.kind.value
    stranger = stranger_pki(keyd.kind)
    (keyd.folder / f"{kind}-ca.pem").write_bytes(stranger.authority.certificate)
    config = keyd.folder / "keyd.toml"
    lists = f'revoked = "{keyd.folder / f"{kind}-revoked.pem"}"'
    config.write_text(config.read_text().replace(lists, ""))
    reload(keyd)
    assert is_gone(peer)
    certificate, private_key = stranger.terminals["DEV-0001"]
    with keyd.client(context=keyd.context(certificate=certificate, private_key=private_key)) as new:
        new.ask(AskRandom(8))


def test_a_server_certificate_is_renewed_while_lines_live(keyd: Keyd) -> None:
    peer = keyd.peer()
    peer.authenticate()
    kind = keyd.kind.value
    renewed = stranger_pki(keyd.kind)
    (keyd.folder / f"{kind}-server.pem").write_bytes(renewed.server.certificate)
    write_private(keyd.folder / f"{kind}-server.key", renewed.server.private_key.decode())
    reload(keyd)
    assert peer.ask(*RANDOM)[2] is None
    with keyd.client() as old, pytest.raises(LineRefused):
        old.connect()
    context = keyd.context(server_authorities=renewed.authority.certificate)
    with keyd.client(context=context) as new:
        new.ask(AskRandom(8))
    assert peer.ask(*RANDOM)[2] is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("server.pem", b"nothing", "there is no certificate in PEM"),
        ("server.key", b"nothing", "the private key is no unencrypted PEM"),
        ("ca.pem", b"", "the authorities: there is no certificate in PEM"),
        ("revoked.pem", b"", "there is no revocation list in PEM"),
        ("server.pem", None, "cannot be read: No such file"),
    ],
)
def test_a_wrong_file_keeps_the_old_and_says_so(
    start: Start, name: str, content: bytes | None, says: str
) -> None:
    keyd = start(TlsKind.STANDARD)
    peer = keyd.peer()
    peer.authenticate()
    path = keyd.folder / f"standard-{name}"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    keyd.daemon.process.send_signal(signal.SIGHUP)
    refused = keyd.daemon.wait_for("reload_refused")
    assert says in refused["detail"]
    assert refused["detail"].startswith("listen.tls 127.0.0.1:0: ")
    assert peer.ask(*RANDOM)[2] is None
    with keyd.client() as client:
        client.ask(AskRandom(8))


def test_an_address_changes_only_with_a_restart(start: Start) -> None:
    keyd = start()
    config = keyd.folder / "keyd.toml"
    config.write_text(
        config.read_text().replace('address = "127.0.0.1:0"', 'address = "127.0.0.2:0"')
    )
    peer = keyd.peer()
    peer.authenticate()
    reload(keyd)
    assert keyd.daemon.wait_for("reload_partial")
    assert peer.ask(*RANDOM)[2] is None
    with keyd.client() as client:
        client.ask(AskRandom(8))


def test_a_line_ends_when_its_certificate_does(keyd: Keyd) -> None:
    made = pki(keyd.kind)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    private_key = generate_key(keyd.kind)
    certificate = issue_terminal(
        made.authority,
        "DEV-0001",
        load_key(private_key).public,
        Validity(TODAY - datetime.timedelta(hours=1), now + datetime.timedelta(seconds=3)),
        random_serial(),
    )
    peer = keyd.peer(context=keyd.context(certificate=certificate, private_key=private_key))
    peer.authenticate()
    assert peer.ask(*RANDOM)[2] is None
    assert list(peer.answers()) == []  # close_notify, in good order
    assert datetime.datetime.now(datetime.UTC) > now + datetime.timedelta(seconds=3)
    closed = keyd.daemon.wait_for("connection_closed")
    assert closed["reason"] == "certificate_expired"


# Enrolment lines. --------------------------------------------------------------------------------------------


def test_on_an_enrolment_line_nothing_else_is_answered(keyd: Keyd) -> None:
    bare = keyd.context(certificate=None, private_key=None)
    for context in (bare, keyd.context()):
        peer = keyd.peer_at(keyd.enrolment_address, context)
        for method, params in golden_requests():
            error = peer.ask(method, *params)[2]
            is_for_enrolment = TABLE[method].role is Role.ENROLMENT
            assert (error is None or error[1] != "ROLE_MISSING") is is_for_enrolment, method


def test_what_is_asked_on_an_enrolment_line_is_asked_nowhere_else(keyd: Keyd, raw: Connect) -> None:
    plain, encrypted = raw(keyd.daemon.address), keyd.peer()
    for peer in (plain, encrypted):
        peer.authenticate()
        for method, params in golden_requests():
            if TABLE[method].role is Role.ENROLMENT:
                assert peer.ask(method, *params)[2][1] == "ROLE_MISSING", method


# What cannot start. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("ca.pem", "nothing.pem"), "cannot be read: No such file"),
        (("server.key", "ca.pem"), "holds secrets but others may read it"),
        (("server.pem", "ca.pem"), "the private key is not the certificate's"),
        (
            ('kind = "guomi"', 'kind = "standard"'),
            "the certificate is guomi, and the line is standard",
        ),
        (("enrolment", "enrollment"), "unknown field `enrollment`"),
        (("client_authorities", "revoked"), "is no TOML"),
        (
            ('kind = "guomi"', 'kind = "guomi"\ngroups = ["x25519"]'),
            "the groups of a guomi line are",
        ),
        (('kind = "guomi"', 'kind = "tlcp"'), "Invalid enum value 'tlcp'"),
        (('kind = "guomi"', 'kind = "guomi"\nenrolment = true'), "an enrolment line asks for no"),
        (('address = "127.0.0.1:0"', 'address = "here"'), "'here' is no address"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_at_the_start(
    write_config: WriteConfig, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    write_pki(tmp_path, TlsKind.GUOMI)
    lines = "\n".join(entry(tmp_path, TlsKind.GUOMI)).replace(*change)
    if change[0] == "enrolment":
        lines += "\nenrollment = true"
    arguments = write_config(lines)
    done = subprocess.run(
        [sys.executable, "-m", "keyd.daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, os.EX_CONFIG), done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("keyd: ")
    assert says in sentence
    assert "PRIVATE KEY" not in sentence


def test_a_tls_address_needs_no_plain_one_and_no_permission(
    start_daemon: StartDaemon, write_config: WriteConfig, tmp_path: Path
) -> None:
    kind = TlsKind.STANDARD
    write_pki(tmp_path, kind)
    arguments = write_config(*entry(tmp_path, kind), terminals=CODES)
    config = tmp_path / "keyd.toml"
    text = config.read_text().replace('tcp = ["127.0.0.1:0"]', "tcp = []")
    unix = f'unix = "{tmp_path / "keyd.sock"}"'
    text = text.replace(unix, "").replace('address = "127.0.0.1:0"', 'address = "0.0.0.0:0"')
    config.write_text(text)
    daemon = start_daemon(*arguments)
    assert daemon.ready["listen"] == []
    port = daemon.ready["encrypted"][0].rpartition(":")[2]
    enrolment = Enrolment("DEV-0001", synthetic_terminal_key("DEV-0001"))
    with Client(f"127.0.0.1:{port}", enrolment, tls=client_context(kind)) as client:
        client.ask(AskRandom(8))
