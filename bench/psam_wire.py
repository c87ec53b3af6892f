"""The psam suite's ways over keyd's wire: the same card reading in one exchange for each command, and in one for all.

The client is one epoll loop with prepared frames on the other CPU. Each connection has one PSAM open and one request
outstanding; what comes back is compared byte for byte with what came the first time, which was decoded and compared
with the applet's answers.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from bench.card_reading import (
    CHALLENGE,
    IRK,
    RKSSSE,
    SESSION_FACTOR,
    exchanges,
    require,
)
from bench.cpus import LEAST_CPU_SECONDS, cpu_seconds
from bench.errors import BenchError
from bench.servers import connections
from keyd.client.psam import step_of
from keyd.crypto.algorithms import CardAlgorithm
from keyd.iso7816 import CommandApdu
from keyd.keys.hierarchy import fold
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import ClientConnection
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalCryptogram
from keyd.protocol.messages.psam import (
    AskOpen,
    ListMembers,
    PsamInternalAuthenticate,
    PsamMember,
    RunOnce,
    RunScript,
    ScriptResult,
    Transmit,
    TransmitMany,
)

if TYPE_CHECKING:
    import socket

    from bench.servers import Server
    from keyd.protocol.fields import Request

SINGLE: Final = "psam.transmit one by one"
MANY: Final = "psam.transmit_many"
SCRIPT: Final = "psam.run"
ONCE: Final = "psam.run_once"
SERVICE: Final = "psam.internal_authenticate"
RING_SERVICE: Final = "card.internal_cryptogram"

# What reads a whole card; the other two are the services beside it.
READINGS: Final = (SINGLE, MANY, SCRIPT, ONCE)
SERVICES: Final = (SERVICE, RING_SERVICE)

READING: Final = exchanges()[-1]

_STEPS: Final = tuple(step_of(CommandApdu.parse_untrusted(said)) for said in READING.commands)
# What a terminal wants of it: two cryptograms, of the answers to CIPHER DATA.
_CIPHERED: Final = (2, 4)
_RESULTS: Final = tuple(ScriptResult(step, length=16, fold=True) for step in _CIPHERED)
_KEYS: Final = (IRK, RKSSSE)

_CARD: Final = CardIdentity(
    bytes.fromhex("510100D15600000530000BEEFFFFFFFF"), bytes.fromhex("00814A44468649519930000BEE")
)

_IO_SECONDS: Final = 30.0
_READ_BYTES: Final = 65_536


class Frame(NamedTuple):
    """A request as it is sent, and the answer as it must come."""

    sent: bytes
    answer: bytes


class Load(NamedTuple):
    """What came of it: readings or services done, seconds, and the CPU seconds of keyd's process."""

    done: int
    elapsed: float
    server_cpu: float


class _Line:
    """One connection: its frames are sent in turn, and each answer is the one that came the first time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(_IO_SECONDS)
        self.frames: list[Frame] = []
        self._connection = ClientConnection()
        self._at = 0
        self._came = b""

    def ask(self, request: Request[Any]) -> tuple[Frame, Any]:
        """Ask once; return the frame and the result."""
        _msgid, sent = self._connection.ask(BY_REQUEST[type(request)].method, request)
        self.sock.sendall(sent)
        came = b""
        while True:
            data = self._read()
            came += data
            for answer in self._connection.receive_data_untrusted(data):
                if answer.refusal is not None:
                    raise BenchError(f"keyd refused: {answer.refusal}")
                return Frame(sent, came), answer.result

    def send(self) -> None:
        """Send what is next."""
        self.sock.sendall(self.frames[self._at].sent)

    def receive(self) -> bool:
        """Read once, and send what is next if the answer is whole; return whether all frames were answered with it."""
        self._came += self._read()
        expected = self.frames[self._at].answer
        if len(self._came) < len(expected):
            return False
        if self._came != expected:
            raise BenchError("keyd gave a wrong answer")
        self._came = b""
        self._at = (self._at + 1) % len(self.frames)
        self.send()
        return self._at == 0

    def _read(self) -> bytes:
        data = self.sock.recv(_READ_BYTES)
        if not data:
            raise BenchError("keyd hung up")
        return data


def wait_for_pool(server: Server) -> None:
    """Wait until every PSAM of keyd's pool was read and serves."""
    deadline = time.monotonic() + _IO_SECONDS
    with connections(server, 1) as (sock,):
        line = _Line(sock)
        while time.monotonic() < deadline:
            _frame, (members,) = line.ask(ListMembers())
            states = [msgspec.convert(member, PsamMember).state for member in members]
            if states and all(state == "ready" for state in states):
                return
            time.sleep(0.05)
    raise BenchError("keyd's PSAMs did not become ready")


def measure(server: Server, how: str, count: int, seconds: float) -> Load:
    """Have each of so many connections read a card, or ask a service, again and again."""
    with connections(server, count) as socks, select.epoll() as poll:
        lines = {sock.fileno(): _Line(sock) for sock in socks}
        for number, line in lines.items():
            line.frames = _frames(line, how)
            poll.register(number, select.EPOLLIN)
        done = 0
        before, began = cpu_seconds(server.pid), time.monotonic()
        last = began
        for line in lines.values():
            line.send()
        # To the end of what was begun last: on a slow line a part of it would count.
        while last < began + seconds:
            for number, _mask in poll.poll(_IO_SECONDS):
                if lines[number].receive():
                    done, last = done + 1, time.monotonic()
        used = max(cpu_seconds(server.pid) - before, LEAST_CPU_SECONDS)
        return Load(done, last - began, used)


def _frames(line: _Line, how: str) -> list[Frame]:
    """Ask everything once, check it, and return it for asking again."""
    if how == SERVICE:
        frame, (reply, *_) = line.ask(PsamInternalAuthenticate(_CARD, SESSION_FACTOR, CHALLENGE))
        require((reply[:8],), _cryptograms()[:1])
        return [frame]
    if how == RING_SERVICE:
        frame, (reply, *_) = line.ask(InternalCryptogram(_CARD, SESSION_FACTOR, CHALLENGE))
        require((reply[:8],), _cryptograms()[:1])
        return [frame]
    if how == ONCE:
        frame, (results,) = line.ask(RunOnce(_KEYS, _STEPS, _RESULTS, CardAlgorithm.SM4))
        require(results, _cryptograms())
        return [frame]
    _frame, (handle, *_) = line.ask(AskOpen(_KEYS, CardAlgorithm.SM4))
    if how == SCRIPT:
        frame, (results,) = line.ask(RunScript(handle, _STEPS, _RESULTS))
        require(results, _cryptograms())
        return [frame]
    if how == MANY:
        frame, (answers,) = line.ask(TransmitMany(handle, READING.commands))
        require(answers, READING.answers)
        return [frame]
    frames, answers = [], []
    for command in READING.commands:
        frame, (answer,) = line.ask(Transmit(handle, command))
        frames.append(frame)
        answers.append(answer)
    require(answers, READING.answers)
    return frames


def _cryptograms() -> list[bytes]:
    """Return what IRK and RKSSSE make of the challenge: the halves of a block, XORed."""
    return [fold(READING.answers[at][:16]) for at in _CIPHERED]
