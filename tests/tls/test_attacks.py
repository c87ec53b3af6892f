"""Bytes that no good peer sends. Invariant: whatever arrives, in whatever pieces, a line gives out the plaintext that
its peer encrypted, in order and whole, or it is over with a `TlsFault`; and it never holds more than its bounds.
"""

from __future__ import annotations

import contextlib
import hmac
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from keyd.tls import MAX_CHUNK, TlsClientConnection, TlsConnection, TlsFault, TlsKind, TlsState
from keyd.tls.connection import MAX_HANDSHAKE, MAX_IDLE_READS
from tests.tls.lines import (
    CODE,
    KINDS,
    NOW,
    SERVER_NAME,
    client_context,
    open_line,
    pki,
    server_context,
    stranger_pki,
)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)

# Contexts are made once; lines are made by the thousand.
SERVERS = {kind: server_context(kind) for kind in KINDS}
CLIENTS = {kind: client_context(kind) for kind in KINDS}

HANDSHAKE_RECORD = b"\x16\x03\x01"
APPLICATION_RECORD = b"\x17\x03\x03"

# RFC 8446 §5.2: the most that a record may have after its header.
MAX_CIPHERTEXT = 16 * 1024 + 256

HTTP = b"GET /healthz HTTP/1.1\r\nHost: keyd\r\n\r\n"


def half_open(kind: TlsKind) -> tuple[TlsClientConnection, TlsConnection, bytes]:
    """A server that has answered the client's hello, and the client's last flight, which it has not seen."""
    client = CLIENTS[kind].connect(SERVER_NAME, NOW)
    server = SERVERS[kind].accept(NOW)
    server.receive_data_untrusted(client.data_to_send())
    client.receive_data_untrusted(server.data_to_send())
    return client, server, client.data_to_send()


def fresh(kind: TlsKind) -> tuple[TlsClientConnection, TlsConnection]:
    return open_line(kind, SERVERS[kind], CLIENTS[kind])


@every_kind
def test_a_handshake_in_single_bytes_opens_at_its_last_byte(kind: TlsKind) -> None:
    client = CLIENTS[kind].connect(SERVER_NAME, NOW)
    server = SERVERS[kind].accept(NOW)
    hello = client.data_to_send()
    for at in range(len(hello)):
        assert server.data_to_send() == b""
        assert server.receive_data_untrusted(hello[at : at + 1]) == b""
    for byte in server.data_to_send():
        client.receive_data_untrusted(bytes([byte]))
    flight = client.data_to_send()
    for at in range(len(flight)):
        assert server.state is TlsState.HANDSHAKING
        assert server.peer_certificate is None
        server.receive_data_untrusted(flight[at : at + 1])
    assert server.state is TlsState.OPEN


@every_kind
def test_a_hello_that_ends_at_any_byte_is_a_fault(kind: TlsKind) -> None:
    hello = CLIENTS[kind].connect(SERVER_NAME, NOW).data_to_send()
    for end in range(len(hello) + 1):
        server = SERVERS[kind].accept(NOW)
        server.receive_data_untrusted(hello[:end])
        with pytest.raises(TlsFault, match="not good TLS"):
            server.receive_eof_untrusted()
        assert server.is_broken


@every_kind
def test_a_last_flight_that_ends_early_is_a_fault(kind: TlsKind) -> None:
    *_, flight = half_open(kind)
    for end in (*range(0, len(flight), 97), len(flight) - 1):
        _, server, flight = half_open(kind)
        assert server.receive_data_untrusted(flight[:end]) == b""
        with pytest.raises(TlsFault) as ended:
            server.receive_eof_untrusted()
        assert ended.value.cause == "the stream ended without close_notify"


def test_a_record_that_ends_at_any_byte_gives_out_nothing_and_is_a_fault() -> None:
    kind = TlsKind.STANDARD
    length = len(fresh(kind)[0].send(b"four"))
    for end in range(length):
        client, server = fresh(kind)
        assert server.receive_data_untrusted(client.send(b"good")) == b"good"
        assert server.receive_data_untrusted(client.send(b"four")[:end]) == b""
        with pytest.raises(TlsFault):
            server.receive_eof_untrusted()


@every_kind
def test_a_last_flight_that_was_altered_opens_nothing(kind: TlsKind) -> None:
    *_, flight = half_open(kind)
    for at in range(0, len(flight), 61):
        _, server, flight = half_open(kind)
        altered = bytearray(flight)
        altered[at] ^= 0x10
        is_waiting = False
        try:
            assert server.receive_data_untrusted(altered) == b""
            # A length that grew: it waits for bytes that never come.
            is_waiting = server.state is TlsState.HANDSHAKING
        except TlsFault:
            assert server.is_broken
        assert is_waiting or server.is_broken
        assert server.peer_certificate is None


@every_kind
def test_a_record_that_was_altered_anywhere_gives_out_nothing(kind: TlsKind) -> None:
    length = len(fresh(kind)[0].send(b"plain"))
    # Bytes 3 and 4 are the length: one that grew waits, and that is the truncation test's.
    for at in [0, 1, *range(5, length)]:
        client, server = fresh(kind)
        altered = bytearray(client.send(b"plain"))
        altered[at] ^= 0x10
        with pytest.raises(TlsFault):
            server.receive_data_untrusted(altered)


@every_kind
def test_replayed_reordered_and_reflected_records_are_faults(kind: TlsKind) -> None:
    client, server = fresh(kind)
    record = client.send(b"once")
    assert server.receive_data_untrusted(record) == b"once"
    with pytest.raises(TlsFault):
        server.receive_data_untrusted(record)
    client, server = fresh(kind)
    client.send(b"lost")
    with pytest.raises(TlsFault):
        server.receive_data_untrusted(client.send(b"second"))
    client, server = fresh(kind)
    with pytest.raises(TlsFault):
        client.receive_data_untrusted(client.send(b"mirror"))
    _, other = fresh(kind)
    client, _ = fresh(kind)
    with pytest.raises(TlsFault):
        other.receive_data_untrusted(client.send(b"for another line"))


@every_kind
def test_good_plaintext_before_a_fault_is_given_out_first(kind: TlsKind) -> None:
    client, server = fresh(kind)
    assert server.receive_data_untrusted(client.send(b"good") + HTTP) == b"good"
    assert server.is_broken
    with pytest.raises(TlsFault):
        server.receive_data_untrusted(b"")


@every_kind
def test_plaintext_http_is_a_fault_in_every_state(kind: TlsKind) -> None:
    for server in (SERVERS[kind].accept(NOW), half_open(kind)[1], fresh(kind)[1]):
        with pytest.raises(TlsFault):
            server.receive_data_untrusted(HTTP)
        assert server.is_broken


@every_kind
@settings(max_examples=30, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=400), is_framed=st.booleans())
def test_garbage_in_every_state_waits_or_is_a_fault(
    kind: TlsKind, garbage: bytes, is_framed: bool
) -> None:
    if is_framed:
        garbage = APPLICATION_RECORD + len(garbage).to_bytes(2, "big") + garbage
    for server in (SERVERS[kind].accept(NOW), half_open(kind)[1], fresh(kind)[1]):
        try:
            assert server.receive_data_untrusted(garbage) == b""
        except TlsFault as fault:
            assert str(fault) == "the line is not good TLS"  # noqa: PT017 - either way is right
        assert server.is_broken == (server.state is TlsState.BROKEN)
        with pytest.raises(TlsFault):
            server.receive_eof_untrusted()


@every_kind
def test_a_second_handshake_on_an_open_line_is_a_fault(kind: TlsKind) -> None:
    _, server = fresh(kind)
    again = CLIENTS[kind].connect(SERVER_NAME, NOW).data_to_send()
    with pytest.raises(TlsFault):
        server.receive_data_untrusted(again)
    # OpenSSL's own client cannot even ask for one.
    client, server = fresh(kind)
    with pytest.raises(SSL.Error, match="wrong ssl version"):
        client._ssl.renegotiate()


@every_kind
def test_a_record_that_is_too_long_is_a_fault_at_its_header(kind: TlsKind) -> None:
    for length in (MAX_CIPHERTEXT + 1, 0xFFFF):
        _, server = fresh(kind)
        with pytest.raises(TlsFault):
            server.receive_data_untrusted(APPLICATION_RECORD + length.to_bytes(2, "big"))
        first = SERVERS[kind].accept(NOW)
        with pytest.raises(TlsFault):
            first.receive_data_untrusted(
                HANDSHAKE_RECORD + length.to_bytes(2, "big") + b"\x01" + bytes(100)
            )


@every_kind
def test_a_handshake_that_never_ends_is_over_at_its_bound(kind: TlsKind) -> None:
    # A hello that says that it has 16 MiB, in records of 16 KiB.
    hello = HANDSHAKE_RECORD + b"\x40\x00" + b"\x01\xff\xff\xff".ljust(16 * 1024, b"\0")
    more = HANDSHAKE_RECORD + b"\x40\x00" + bytes(16 * 1024)
    assert bytes_until_fault(SERVERS[kind].accept(NOW), hello, more) <= MAX_HANDSHAKE


@every_kind
def test_a_half_open_line_takes_no_more_than_its_bound_of_any_bytes(kind: TlsKind) -> None:
    # Records of the kind that TLS 1.3 ignores within a handshake.
    ignored = b"\x14\x03\x03\x00\x01\x01"
    assert bytes_until_fault(half_open(kind)[1], ignored, ignored) <= MAX_HANDSHAKE


@every_kind
def test_a_train_of_certificates_is_over_at_the_bound(kind: TlsKind) -> None:
    # OpenSSL itself takes 100 KiB of them.
    made = pki(kind)
    terminal = made.terminals[CODE]
    block = stranger_pki(kind).authority.certificate
    der_bytes = len(block) * 3 // 4 - 40
    client = client_context(
        kind,
        certificate=terminal.certificate + block * (90_000 // der_bytes),
        private_key=terminal.private_key,
    ).connect(SERVER_NAME, NOW)
    server = SERVERS[kind].accept(NOW)
    server.receive_data_untrusted(client.data_to_send())
    client.receive_data_untrusted(server.data_to_send())
    train = client.data_to_send()
    assert MAX_HANDSHAKE < len(train) < 100 * 1024
    server.receive_data_untrusted(train[:MAX_CHUNK])
    with pytest.raises(TlsFault) as refused:
        server.receive_data_untrusted(train[MAX_CHUNK:])
    assert refused.value.cause == "the handshake is longer than the limit"


def bytes_until_fault(server: TlsConnection, first: bytes, then: bytes) -> int:
    """Send one thing and then another over and over; return how many bytes were taken without a fault."""
    taken, data = 0, first
    while not server.is_broken:
        with contextlib.suppress(TlsFault):
            server.receive_data_untrusted(data)
            taken += len(data)
            data = then
    return taken


class KeyUpdater:
    """A client that a test has taken the keys of, and that updates them at will (RFC 8446 §4.6.3, §7.2)."""

    def __init__(self) -> None:
        kind = TlsKind.STANDARD
        lines: list[bytes] = []
        context = client_context(kind)
        context._context.set_keylog_callback(lambda _, line: lines.append(line))
        self.client, self.server = open_line(kind, SERVERS[kind], context)
        (secret,) = (line.split()[2] for line in lines if b"CLIENT_TRAFFIC_SECRET_0" in line)
        self._secret = bytes.fromhex(secret.decode())

    def update(self) -> bytes:
        """Return one record: a key update that asks for the other side's."""
        plaintext = b"\x18\x00\x00\x01\x01" + b"\x16"
        header = APPLICATION_RECORD + (len(plaintext) + 16).to_bytes(2, "big")
        key, iv = self._expand(b"key", 16), self._expand(b"iv", 12)
        self._secret = self._expand(b"traffic upd", 32)
        # The first of a key, so the record's number, 0, leaves the IV as it is.
        return header + AESGCM(key).encrypt(iv, plaintext, header)

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(self._secret, info + b"\x01", "sha256")[:length]


def test_some_key_updates_are_answered_and_a_flood_of_them_is_a_fault() -> None:
    peer = KeyUpdater()
    some = b"".join(peer.update() for _ in range(MAX_IDLE_READS // 2))
    assert peer.server.receive_data_untrusted(some) == b""
    assert peer.server.state is TlsState.OPEN
    answers = peer.server.data_to_send()
    assert answers
    peer.client.receive_data_untrusted(answers)
    assert peer.client.receive_data_untrusted(peer.server.send(b"new keys")) == b"new keys"
    flood = b"".join(peer.update() for _ in range(MAX_IDLE_READS + 2))
    with pytest.raises(TlsFault) as refused:
        peer.server.receive_data_untrusted(flood)
    assert refused.value.cause == "too many records without data"


@every_kind
@settings(max_examples=25, deadline=None)
@given(
    messages=st.lists(st.binary(max_size=40_000), max_size=5),
    cuts=st.lists(st.integers(min_value=1, max_value=20_000), min_size=1, max_size=8),
)
def test_any_chunking_delivers_the_same_plaintext(
    kind: TlsKind, messages: list[bytes], cuts: list[int]
) -> None:
    client, server = fresh(kind)
    stream = b"".join(client.send(message) for message in messages) + client.close()
    received, at, turn = b"", 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        received += server.receive_data_untrusted(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert received == b"".join(messages)
    assert server.state is TlsState.PEER_CLOSED


@every_kind
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(min_value=1, max_value=700), min_size=1, max_size=8))
def test_any_chunking_of_the_handshake_opens_the_same_line(kind: TlsKind, cuts: list[int]) -> None:
    client = CLIENTS[kind].connect(SERVER_NAME, NOW)
    server = SERVERS[kind].accept(NOW)
    turn = 0
    for _ in range(3):
        for source, target in ((client, server), (server, client)):
            data = source.data_to_send()
            while data:
                size = cuts[turn % len(cuts)]
                assert target.receive_data_untrusted(data[:size]) == b""
                data, turn = data[size:], turn + 1
    assert client.state is server.state is TlsState.OPEN
    assert client.channel_binding == server.channel_binding


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_long_stream_leaves_nothing_behind() -> None:
    client, server = fresh(TlsKind.STANDARD)
    message = bytes(60_000)
    before = resident_bytes()
    for _ in range(1000):
        assert len(server.receive_data_untrusted(client.send(message))) == len(message)
        assert server.data_to_send() == b""
    # 60 MB went through.
    assert resident_bytes() - before < 8 * 1024 * 1024


def test_what_comes_after_the_end_is_not_kept() -> None:
    client, server = fresh(TlsKind.STANDARD)
    server.receive_data_untrusted(client.close())
    before = resident_bytes()
    for _ in range(1000):
        assert server.receive_data_untrusted(bytes(MAX_CHUNK)) == b""
    assert resident_bytes() - before < 8 * 1024 * 1024


def test_lines_that_wait_cost_little_and_are_given_back() -> None:
    context = SERVERS[TlsKind.STANDARD]
    begun = HANDSHAKE_RECORD + b"\x02\x00\x01"
    before = resident_bytes()
    lines = [context.accept(NOW) for _ in range(500)]
    for line in lines:
        line.receive_data_untrusted(begun)
    # A line whose peer has said a few bytes, without the socket.
    assert (resident_bytes() - before) / len(lines) < 64 * 1024
    del lines, line
    before = resident_bytes()
    for _ in range(2000):
        context.accept(NOW).receive_data_untrusted(begun)
    assert resident_bytes() - before < 16 * 1024 * 1024


# In a process of its own: memory that other tests have given back would hide what lines take.
IDLE = """
from keyd.tls import TlsKind
from tests.tls.test_attacks import fresh, resident_bytes
lines = [fresh(TlsKind.STANDARD)]
before = resident_bytes()
for _ in range(200):
    client, server = fresh(TlsKind.STANDARD)
    server.receive_data_untrusted(client.send(b"ask"))
    client.receive_data_untrusted(server.send(b"answer"))
    lines.append((client, server))
print((resident_bytes() - before) // 200)
"""


def test_open_lines_that_are_idle_give_their_buffers_back() -> None:
    repository = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", IDLE], cwd=repository, capture_output=True, text=True, check=True
    )
    # Both ends of a line: 78 KiB, and 120 if the buffers stay.
    assert int(done.stdout) < 96 * 1024


def test_every_fault_says_what_is_to_be_written_once_and_then_nothing() -> None:
    server = SERVERS[TlsKind.STANDARD].accept(NOW)
    with pytest.raises(TlsFault):
        server.receive_data_untrusted(HANDSHAKE_RECORD + b"\xff\xff" + bytes(20))
    alert = server.data_to_send()
    assert alert[:1] == b"\x15"
    assert server.data_to_send() == server.close() == b""


@every_kind
def test_a_server_that_is_none_is_the_same_fault_for_a_client(kind: TlsKind) -> None:
    client = CLIENTS[kind].connect(SERVER_NAME, NOW)
    with pytest.raises(TlsFault):
        client.receive_data_untrusted(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(TlsFault):
        client.send(b"never")
    assert client.session is None
