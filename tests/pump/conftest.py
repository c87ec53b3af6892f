"""What the pump's tests share: hot requests as bytes, and a pump beside the Python that it is a short cut through.

A `Stand` has the production's own parts: ring, profiles, dispatch and routes; only terminals and the clock are made up.
What it says of bytes is the one law of these tests: what the pump answers, and what Python answers to what the pump
hands up, are together what Python answers to everything.
"""

from __future__ import annotations

import functools
import itertools
import select
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.dispatch import Dispatch
from keyd.errors import RemoteProtocolError, Status
from keyd.handlers.services import Services
from keyd.keys.block import Use
from keyd.keys.hierarchy import card_diversifier, region_from_digits
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic, synthetic_terminals_master
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from keyd.protocol.connection import ServerConnection
from keyd.pump import METHODS
from keyd.pump._pump import Pump
from keyd.registry.synthetic import synthetic_terminal, synthetic_terminals
from keyd.routes import Routes
from keyd.telemetry import Events, Meter
from keyd.terminals import KnownTerminal, Session, Terminals
from tests.daemon.conftest import write_config  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keyd.dispatch import ShortCut
    from keyd.pump import Rest

INTERNAL_AUTHENTICATE, INTERNAL_CRYPTOGRAM, EXTERNAL_AUTHENTICATE = METHODS

DES, SSF33, SM4 = 1, 2, 3
IRK: Final = 0x0170
RKSSSE: Final = 0x004C

ATR_PREFIX: Final = bytes.fromhex("3B6D0000")

# Sichuan, Beijing, and Zhejiang, which issues by city: two of its counties have one city key.
REGIONS: Final = ("510100", "110000", "330100", "330106", "999999")

FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")


class HolderCard(NamedTuple):
    """A card as its terminal knows it."""

    region: str = "510100"
    serial: bytes = b"\x12\x34\x56\x78"
    has_own_region: bool = True

    @property
    def card_id(self) -> bytes:
        return bytes.fromhex(self.region + "D156000005") + self.serial + b"\xa1\xa2\xa3\xa4"

    @property
    def historical(self) -> bytes:
        region = bytes.fromhex(self.region)[:2] if self.has_own_region else b"\x15\x99"
        return bytes.fromhex("00814C86A0") + b"\x31\x32" + region + self.serial

    @property
    def atr(self) -> bytes:
        return ATR_PREFIX + self.historical


CARD: Final = HolderCard()


def packed(message: Any) -> bytes:
    encoded: bytes = msgpack.packb(message)
    return encoded


@functools.cache
def ring() -> KeyRing:
    """The keys of a development keyd."""
    places = newest(load_profiles()).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    return KeyRing([*synthetic(places), synthetic_terminals_master()])


def label(address: int = IRK, use: Use = Use.INTERNAL) -> str:
    """What the journal calls the SM4 key at an address."""
    header = ring().header_of(address, CardAlgorithm.SM4, purpose(use))
    assert header is not None
    return header.label


def cryptogram(
    card: HolderCard = CARD, address: int = IRK, algorithm: int = SM4, challenge: bytes = CHALLENGE
) -> bytes:
    """What a genuine card answers."""
    ref = CardKeyRef(
        address,
        CardAlgorithm(algorithm),
        region_from_digits(card.region),
        card_diversifier(card.historical),
        purpose(Use.INTERNAL),
    )
    (result,) = ring().compute([CryptogramTask(ref, FACTOR, challenge)])
    assert isinstance(result, bytes)
    return result


def identity(card: HolderCard = CARD, *optional: int, is_atr: bool = False) -> list[Any]:
    return [card.card_id, card.atr if is_atr else card.historical, *optional]


def hot(
    method: str,
    msgid: int = 1,
    card: HolderCard = CARD,
    optional: tuple[int, ...] = (),
    address: int | None = None,
    *,
    is_atr: bool = False,
) -> bytes:
    """One hot request that deserves a good answer."""
    who = identity(card, *optional, is_atr=is_atr)
    algorithm = optional[0] if optional else SM4
    if method == EXTERNAL_AUTHENTICATE:
        named = RKSSSE if address is None else address
        return packed([0, msgid, method, [who, named, FACTOR, CHALLENGE]])
    params = [who, FACTOR, CHALLENGE]
    if method == INTERNAL_AUTHENTICATE:
        params.append(cryptogram(card, IRK if address is None else address, algorithm))
    return packed([0, msgid, method, [*params, *(() if address is None else (address,))]])


def forged(msgid: int = 1, card: HolderCard = CARD) -> bytes:
    """An internal authentication that is of the hot shape, and is to be refused."""
    wrong = bytes(byte ^ 1 for byte in cryptogram(card))
    return packed([0, msgid, INTERNAL_AUTHENTICATE, [identity(card), FACTOR, CHALLENGE, wrong]])


def cold(msgid: int = 1) -> bytes:
    """A request that is never the pump's, and whose answer is always the same."""
    return packed([0, msgid, "card.pin_unblock", [identity(), FACTOR]])


def messages(data: bytes) -> list[bytes]:
    """Cut answers apart, each as it came."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    cuts = [0]
    with suppress(msgpack.OutOfData):
        while True:
            unpacker.skip()
            cuts.append(unpacker.tell())
    assert cuts[-1] == len(data), "the answers end within one"
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def msgid_of(answer: bytes) -> Any:
    return msgpack.unpackb(answer)[1]


class Verdict(NamedTuple):
    """What Python says to bytes: its answers, in order, how they end, and what it counted."""

    answers: list[bytes]
    end: str
    counts: Counter[tuple[str, Status]]


class _Counting(Meter):
    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[tuple[str, Status]] = Counter()

    def count(self, counts: Any) -> None:
        self.counted.update(counts)


class _Quiet(Events):
    """A log that only bugs reach, and they end the test."""

    def peer(self, event: str, **_nouns: Any) -> None:
        pass

    def bug(self, event: str, error: BaseException, **_nouns: Any) -> None:
        raise AssertionError(event) from error


def make_services(keys: KeyRing | None = None) -> Services:
    """The domain of a development keyd, or of one with other keys."""
    keys = keys or ring()
    return Services(
        sam=keys,
        key_headers=keys.headers,
        has_synthetic_keys=True,
        profiles=load_profiles(),
        terminals=Terminals(synthetic_terminals(["DEV-0001"]), bytes),
        selftest=(),
        run_selftest=lambda: (),
        clock=time.monotonic,
        now=time.time,
        random_bytes=bytes,
    )


class Stand:
    """A pump on a real epoll, and Python beside it."""

    def __init__(self, keys: KeyRing | None = None) -> None:
        self._opened = ExitStack()
        self.epoll = select.epoll()
        self._opened.callback(self.epoll.close)
        self.pump = Pump(self.epoll.fileno())
        self.services = make_services(keys)
        self._meter = _Counting()
        self._dispatch = Dispatch(self.services, self._meter, _Quiet(time.monotonic))
        self.routes = Routes(self.pump, keys or ring(), self.services)
        self._session = Session(1)
        self._session.enter(KnownTerminal(synthetic_terminal("DEV-0001")))

    def close(self) -> None:
        self._opened.close()

    def open(self, *, is_admitted: bool = True) -> tuple[socket.socket, socket.socket]:
        """Return the peer's end of a new connection, and ours."""
        theirs, ours = socket.socketpair()
        for sock in (theirs, ours):
            self._opened.callback(sock.close)
            sock.setblocking(False)
        self.epoll.register(ours.fileno(), select.EPOLLIN)
        if is_admitted:
            self.pump.admit(ours.fileno())
        return theirs, ours

    def python(self, data: bytes, short_cut: ShortCut | None = None) -> Verdict:
        """Let Python alone decide."""
        self._dispatch.short_cut = short_cut
        self._meter.counted.clear()
        connection = ServerConnection()
        answers: list[bytes] = []
        end = ""
        try:
            for at in range(0, len(data), 32 * 1024):
                connection.receive_data_untrusted(data[at : at + 32 * 1024])
                while asks := connection.next_asks_untrusted(64):
                    for answer in self._dispatch.run(
                        [(self._session, ask) for ask in asks]
                    ).answers:
                        assert isinstance(answer, bytes)
                        answers.append(answer)
            connection.receive_eof_untrusted()
        except RemoteProtocolError as error:
            end = str(error)
        return Verdict(answers, end, Counter(self._meter.counted))

    def teach(self, *requests: bytes) -> None:
        """Let the pump learn as it does in the daemon: from what Python answered well."""
        for request in requests:
            self.python(request, self.routes)

    def tick(self) -> tuple[list[Rest], int]:
        """Let the pump have a tick; return what it left, and how many it answered."""
        rests, counts = self.pump.tick()
        return rests, sum(counts)


def require_one_semantics(stand: Stand, data: bytes) -> tuple[int, bytes]:
    """Send bytes through the pump and Python, and through Python alone: answers, end and counts are the same.

    Returns how many requests the pump answered and what it handed up.
    """
    expected = stand.python(data)
    theirs, ours = stand.open()
    theirs.sendall(data)
    rests, counts = stand.pump.tick()
    stand.epoll.unregister(ours.fileno())
    stand.pump.dismiss(ours.fileno())
    handed = b"".join(rest[3] for rest in rests)
    for fd, mask, is_reset, _data, unsent in rests:
        assert (fd, mask, is_reset, unsent) == (ours.fileno(), 0, False, b"")
    answered = messages(theirs.recv(1 << 20)) if sum(counts) else []
    assert len(answered) == sum(counts)
    rest = stand.python(handed)
    assert sorted(answered + rest.answers) == sorted(expected.answers)
    assert rest.end == expected.end
    pumped: Counter[tuple[str, Status]] = Counter(
        {(method, Status.OK): count for method, count in zip(METHODS, counts, strict=True) if count}
    )
    assert pumped + rest.counts == expected.counts
    theirs.close()
    ours.close()
    return sum(counts), handed


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A pump that has learnt what `hot` asks by default."""
    made = Stand()
    made.teach(*(hot(method) for method in METHODS))
    yield made
    made.close()


def numbered(requests: Iterable[bytes]) -> bytes:
    """Join requests that were made with msgid 1, giving each a number of its own."""
    joined = b""
    for number, request in enumerate(requests):
        assert request[2:3] == b"\x01"
        joined += request[:2] + packed(number) + request[3:]
    return joined
