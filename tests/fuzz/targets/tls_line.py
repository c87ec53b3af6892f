"""Both sides of a line, of both kinds: whatever is done to records between them, nothing but `TlsFault` comes of it.

An input is a script for whoever sits in the middle. Its first byte says which kind of line it is, which side is
attacked, and whether the rest is a script or the raw bytes that this side receives. A script has steps of six bytes:
what to do, in which flight, to which record, where (2 bytes), with which byte. The plaintext that is given out is
always the beginning of what was sent, and a side that opens knows who the other one is.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.errors import RemoteProtocolError
from keyd.tls import MAX_CHUNK, TlsFault, TlsKind, TlsState
from tests.fuzz.mutators import mutate_bytes
from tests.fuzz.target import Target
from tests.tls.lines import CODE, NOW, SERVER_NAME, client_context, server_context

if TYPE_CHECKING:
    from random import Random

    from keyd.tls import TlsClientConnection, TlsClientContext, TlsConnection, TlsServerContext

    Line = TlsConnection | TlsClientConnection

# The bits of the first byte.
GUOMI: Final = 1
AT_CLIENT: Final = 2
RAW: Final = 4
# Whether the attacked side gets single bytes, which is slow.
IN_BITS: Final = 8

STEP: Final = struct.Struct(">BBBHB")
MAX_STEPS: Final = 16

_HEADER_BYTES: Final = 5
_TURNS: Final = 8

# What an open line sends after the handshake, in two records.
SAID: Final = (b"first words", b"last words" * 100)

# Handshake, tickets and alerts that a side owes between two readings.
_MAX_OWED: Final = 64 * 1024


class Step(NamedTuple):
    """One thing that the one in the middle does."""

    act: int
    flight: int
    record: int
    at: int
    byte: int


@functools.cache
def _contexts(kind: TlsKind) -> tuple[TlsServerContext, TlsClientContext]:
    return server_context(kind), client_context(kind)


def one_input(data: bytes) -> None:
    if not data:
        return
    kind = TlsKind.GUOMI if data[0] & GUOMI else TlsKind.STANDARD
    serving, connecting = _contexts(kind)
    server = serving.accept(NOW)
    client = connecting.connect(SERVER_NAME, NOW)
    target, other = (client, server) if data[0] & AT_CLIENT else (server, client)
    given = _Given(target, size=7 if data[0] & IN_BITS else MAX_CHUNK)
    if data[0] & RAW:
        given.take(data[1:])
        given.end()
        return
    steps = [Step(*step) for step in STEP.iter_unpack(_whole(data[1:]))][:MAX_STEPS]
    _Middle(given, other, steps).run()
    given.end()


def _whole(script: bytes) -> bytes:
    return script[: len(script) // STEP.size * STEP.size]


class _Given:
    """The attacked side: what it is given, and what it gives out."""

    def __init__(self, line: Line, size: int) -> None:
        self.line = line
        self.plaintext = b""
        self.fault: TlsFault | None = None
        self._size = size

    def take(self, data: bytes) -> None:
        for at in range(0, len(data), self._size):
            try:
                self.plaintext += self.line.receive_data_untrusted(data[at : at + self._size])
            except RemoteProtocolError as fault:
                self._note(fault)
            self._require_sense()

    def owed(self) -> bytes:
        owed = self.line.data_to_send()
        assert len(owed) <= _MAX_OWED
        return owed

    def end(self) -> None:
        try:
            self.line.receive_eof_untrusted()
        except RemoteProtocolError as fault:
            self._note(fault)
        self._require_sense()
        self.owed()
        assert self.line.close() == b"" or self.fault is None

    def _note(self, fault: RemoteProtocolError) -> None:
        assert type(fault) is TlsFault
        assert self.line.is_broken
        assert self.fault is None or self.fault is fault, "a line broke twice"
        self.fault = fault

    def _require_sense(self) -> None:
        assert b"".join(SAID).startswith(self.plaintext)
        line = self.line
        assert line.is_broken or self.fault is None
        peer = line.peer_certificate
        if line.state in (TlsState.OPEN, TlsState.PEER_CLOSED):
            assert peer is not None
            assert peer.common_name in (CODE, SERVER_NAME)
            assert len(line.channel_binding) == 32
        elif line.is_broken:
            assert peer is None
        assert self.plaintext == b"" or peer is not None or line.is_broken


class _Middle:
    """Carries bytes between the two, and does to those for the attacked side what the script says."""

    def __init__(self, given: _Given, other: Line, steps: list[Step]) -> None:
        self._given = given
        self._other = other
        self._steps = steps
        self._seen: list[bytes] = []
        self._flight = 0

    def run(self) -> None:
        for _ in range(_TURNS):
            moved = self._forth(self._owed_by_other())
            back = self._given.owed()
            if back:
                self._back(back)
            if not moved and not back:
                break
        if self._other.state is not TlsState.OPEN:
            return
        for words in SAID:
            self._forth(self._other.send(words))
        self._forth(self._other.close())

    def _owed_by_other(self) -> bytes:
        return self._other.data_to_send()

    def _back(self, data: bytes) -> None:
        if self._other.is_broken:
            return
        try:
            self._other.receive_data_untrusted(data)
        except RemoteProtocolError as fault:
            # It is told of the attack by the attacked, in an alert.
            assert type(fault) is TlsFault

    def _forth(self, data: bytes) -> bool:
        if not data:
            return False
        records = records_of(data)
        for step in self._steps:
            if step.flight % 8 == self._flight:
                records = _done(step, records, self._seen)
        self._seen += records_of(data)
        self._flight += 1
        self._given.take(b"".join(records))
        return True


def records_of(data: bytes) -> list[bytes]:
    """Cut a stream into records, each with its header; what is no whole record comes last."""
    records = []
    while data:
        length = _HEADER_BYTES + int.from_bytes(data[3:_HEADER_BYTES], "big")
        records.append(data[:length])
        data = data[length:]
    return records


def _done(step: Step, records: list[bytes], seen: list[bytes]) -> list[bytes]:
    """Do one step to the records of a flight."""
    records = [record for record in records if record]
    if not records:
        return records
    place = step.record % len(records)
    record = records[place]
    at = step.at % max(len(record), 1)
    before, after = records[:place], records[place + 1 :]
    header, body = record[:_HEADER_BYTES], record[_HEADER_BYTES:]
    changed: list[bytes]
    match step.act % 12:
        case 0:
            changed = [record[:at] + bytes([record[at] ^ (step.byte or 1)]) + record[at + 1 :]]
        case 1:
            changed = [record[:at] + bytes([step.byte]) + record[at + 1 :]]
        case 2:
            changed = []
        case 3:
            changed = [record, record]
        case 4:
            changed = [*after[:1], record]
            after = after[1:]
        case 5:
            changed = [record[:at]]
        case 6:
            changed = [_record(header[:3], body[:at])]
        case 7:
            changed = [_record(header[:3], body[:at]), _record(header[:3], body[at:])]
        case 8:
            changed = [_record(bytes([step.byte]) + header[1:3], body)]
        case 9:
            changed = [_record(bytes([20 + step.byte % 8]) + b"\3\3", body[:at]), record]
        case 10:
            changed = [*(seen[step.at % len(seen) :][:1] if seen else []), record]
        case _:
            changed = [_record(header[:3], body[:at] + bytes([step.byte]) * (1 + at) + body[at:])]
    return [*before, *changed, *after]


def _record(head: bytes, body: bytes) -> bytes:
    return head + (len(body) & 0xFFFF).to_bytes(2, "big") + body


def mutate(data: bytes, random: Random) -> bytes:
    if len(data) < 1 + STEP.size or data[0] & RAW or random.random() < 0.3:
        return mutate_bytes(data, random)
    step = STEP.pack(
        random.randrange(12),
        random.choice((0, 0, 1, 1, 1, 2, 3, 4)),
        random.randrange(8),
        random.randrange(2000),
        random.randrange(256),
    )
    at = 1 + random.randrange((len(data) - 1) // STEP.size + 1) * STEP.size
    over = STEP.size if random.random() < 0.5 else 0
    return data[:at] + step + data[at + over :]


def seeds() -> list[bytes]:
    untouched = [bytes([flags]) for flags in range(4)]
    steps = [
        bytes([flags]) + STEP.pack(act, flight, 0, 40, 3)
        for flags in range(4)
        for act in range(12)
        for flight in range(2)
    ]
    raw = []
    for kind in TlsKind:
        flags = RAW | (GUOMI if kind is TlsKind.GUOMI else 0)
        serving, connecting = _contexts(kind)
        client, server = connecting.connect(SERVER_NAME, NOW), serving.accept(NOW)
        hello = client.data_to_send()
        server.receive_data_untrusted(hello)
        raw += [bytes([flags]) + hello, bytes([flags | AT_CLIENT]) + server.data_to_send()]
    return [*untouched, *steps, *raw, bytes([RAW]) + b"GET / HTTP/1.1\r\n\r\n"]


TARGET = Target(one_input, seeds, mutate)
