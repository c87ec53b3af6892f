"""What a terminal asks of a PSAM that it has open, in any shape: commands, scripts, openings; to the real handlers.

The PSAM was opened for one key and one province. Whatever is sent, it looks for no key but those that were asked for
when something was opened, each request has one answer, and when the line ends nothing is open any more. In a request,
the handle 1 stands for the PSAM that is open.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec
import trio
from structlog.testing import capture_logs

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.dispatch import Slow
from keyd.errors import RemoteProtocolError, Status
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import Ask, ClientConnection, ServerConnection
from keyd.protocol.messages.psam import MAX_OPEN, AskOpen, RunOnce
from keyd.psam import Counters, Psam, TransientMemory
from tests.fuzz.mutators import mutate_bytes, mutate_message
from tests.fuzz.target import Target
from tests.psam.desk import AppletDesk, made
from tests.test_dispatch import CARD, CHALLENGE, FACTOR, Keyd

if TYPE_CHECKING:
    from random import Random

    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.crypto.secret import SecretKey
    from keyd.psam import KeyAttributes, PsamKeys
    from keyd.psam.keys import PsamKey

# Of one input; as many as one connection may have under way, twice.
MAX_ASKS: Final = 16

RKSSSE: Final = 0x004C
ASKED: Final = "psam."

FACTORS: Final = bytes.fromhex("8649510130000BEE") + b"510100sx" + b"510000sh"


class NotingKeys:
    """The keys of a PSAM, and a note of every one that it has looked for."""

    def __init__(self, keys: PsamKeys) -> None:
        self._keys = keys
        self.looked_for: set[tuple[int, int, CardAlgorithm]] = set()

    def find(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> PsamKey | None:
        self.looked_for.add((kind, key_id, algorithm))
        return self._keys.find(kind, key_id, algorithm)

    def levels(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> int | None:
        return self._keys.levels(kind, key_id, algorithm)

    def attributes(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> KeyAttributes | None:
        return self._keys.attributes(kind, key_id, algorithm)

    def put(self, attributes: KeyAttributes, algorithm: CardAlgorithm, key: SecretKey) -> None:
        self._keys.put(attributes, algorithm, key)


@functools.cache
def _keyd() -> Keyd:
    return Keyd(sample_every=1)


@functools.cache
def _psam() -> Psam:
    return made()


@functools.cache
def _place_of() -> dict[int, tuple[int, int]]:
    keys = newest(load_profiles()).keys
    return {address: (key.psam_type, key.psam_id) for address, key in keys.items()}


def one_input(data: bytes) -> None:
    keyd, psam = _keyd(), _psam()
    keys = NotingKeys(psam.keys)
    counters = Counters(TransientMemory(), psam.profile.purchase.numbers_reserved)
    desk = AppletDesk(psam=Psam(psam.profile, psam.identity, keys, counters, bytes))
    keyd.services.psams = desk
    with capture_logs() as log:
        session = keyd.terminal()
        (opened,) = _answers(keyd, session, [Ask(0, "psam.open", [[RKSSSE], 3, "any", "51"])])
        handle = opened.result[0]
        asks = [_with_handle(ask, handle) for ask in _asks(data)]
        answers = _answers(keyd, session, asks)
        assert len(session.psams) <= MAX_OPEN
        session.end()
    assert not desk.open_ones
    allowed = {(*_place_of()[RKSSSE], 3)}
    for ask, answer in zip(asks, answers, strict=True):
        assert answer.msgid == ask.msgid
        if answer.refusal is not None:
            assert answer.refusal.status is not Status.INTERNAL, ask
        allowed |= _asked_for(ask)
    assert keys.looked_for <= allowed, keys.looked_for - allowed
    for line in log:
        assert line["log_level"] != "error", line
    said = repr(log).lower()
    assert FACTORS[:8].hex() not in said
    assert CHALLENGE.hex() not in said


def _asked_for(ask: Ask) -> set[tuple[int, int, int]]:
    """Return what PSAMs call the keys that a request was to open one for."""
    command = TABLE.get(ask.method)
    if command is None or command.request not in (AskOpen, RunOnce):
        return set()
    try:
        request: Any = msgspec.convert(ask.params, command.request, builtin_types=(bytes,))
    except msgspec.ValidationError:
        return set()
    places = _place_of()
    return {(*places[a], int(request.algorithm)) for a in request.keys if a in places}


def _answers(keyd: Keyd, session: Any, asks: list[Ask]) -> list[Any]:
    """Let all arrive in one tick, and finish what left it side by side."""
    begun = keyd.tick(*((session, ask) for ask in asks))
    octets: dict[int, bytes] = {}

    async def finish(place: int, slow: Slow) -> None:
        octets[place] = await keyd.slow(slow)

    async def finish_all() -> None:
        async with trio.open_nursery() as nursery:
            for place, answer in enumerate(begun):
                if isinstance(answer, Slow):
                    nursery.start_soon(finish, place, answer)
                else:
                    octets[place] = answer

    trio.run(finish_all)
    return [_heard(octets[place]) for place in range(len(asks))]


def _heard(octets: bytes) -> Any:
    (answer,) = ClientConnection().receive_data_untrusted(octets)
    return answer


def _asks(stream: bytes) -> list[Ask]:
    connection = ServerConnection()
    try:
        connection.receive_data_untrusted(stream)
        asks = connection.next_asks_untrusted(MAX_ASKS)
    except RemoteProtocolError:
        return []
    # The others have a target of their own, and some of them end the session.
    return [ask for ask in asks if ask.method.startswith(ASKED)]


def _with_handle(ask: Ask, handle: int) -> Ask:
    if type(ask.params) is list and ask.params[:1] == [1]:
        return Ask(ask.msgid, ask.method, [handle, *ask.params[1:]])
    return ask


def mutate(data: bytes, random: Random) -> bytes:
    return mutate_bytes(data, random) if random.random() < 0.05 else mutate_message(data, random)


_SELECT: Final = bytes.fromhex("00A4040006D15600000590")
_DELIVER: Final = bytes.fromhex("BFDE670A28") + FACTORS + FACTOR + bytes(8)
_CIPHER: Final = bytes.fromhex("80FA000010") + CHALLENGE + bytes(8) + b"\x10"
_PURCHASE: Final = bytes.fromhex("8070010034") + bytes(26) + b"\1\3" + FACTORS + b"\x08"
_SCRIPT: Final[list[Any]] = [
    [_SELECT[:4], _SELECT[5:]],
    [b"\0\x84\0\0", b"", [], 8],
    [_DELIVER[:4], _DELIVER[5:], [[24, 1, 0, 8]]],
    [_CIPHER[:4], _CIPHER[5:-1], [[0, 1, 0, 8, True]], 16, [0x9000, 0x6985]],
]
_RESULTS: Final = [[3, 0, 16, True], [1]]

GOOD: Final[list[tuple[str, list[Any]]]] = [
    ("psam.transmit", [1, _SELECT]),
    ("psam.transmit", [1, _DELIVER]),
    ("psam.transmit", [1, _CIPHER]),
    ("psam.transmit_many", [1, [_DELIVER, _CIPHER, bytes.fromhex("BFEC00000151"), _SELECT], True]),
    ("psam.transmit_many", [1, [bytes.fromhex("00A4000002DDF2"), _PURCHASE], True]),
    ("psam.run", [1, _SCRIPT, _RESULTS]),
    ("psam.run_once", [[RKSSSE], _SCRIPT, _RESULTS, 3, "any", "51"]),
    ("psam.open", [[0x017F, RKSSSE], 1, "510100000001", "5101"]),
    ("psam.internal_authenticate", [CARD, FACTOR, CHALLENGE]),
    (
        "psam.make_purchase",
        [1, CARD, [bytes(4), b"\0\5", 0, 100, 1, 1, bytes.fromhex("20240102030405"), 1, 3]],
    ),
    ("psam.confirm_purchase", [1, bytes(4)]),
    ("psam.close", [1]),
]


def seeds() -> list[bytes]:
    packed = [
        msgpack.packb([0, number, method, params]) for number, (method, params) in enumerate(GOOD)
    ]
    return [*packed, b"".join(packed), b"".join(packed[:3]) * 4]


TARGET = Target(one_input, seeds, mutate)
