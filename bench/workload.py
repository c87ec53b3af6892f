"""What is asked: a pool of prepared requests, each with the one answer that is right.

Every frame of a pool has the same length, and so has every answer. The generator sends the pool round and
round and compares every byte that comes back, without knowing any protocol.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.errors import BenchError
from keyd.errors import Refusal
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import ASK, answer_bytes, encode
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import CardAuthentic, InternalAuthenticate, InternalCryptogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.client import Client

# More cards than any cache of the machine's would remember by accident.
CARDS: Final = 4096

# Cities of sixteen provinces: more than one key to open, few enough to stay in keyd's cache of city keys, as
# they would. 330100 is Zhejiang, which has a rule of its own.
CITIES: Final = (
    *("110100", "120100", "210100", "310100", "320100", "330100", "340100", "350100"),
    *("370100", "410100", "420100", "430100", "440100", "500100", "510100", "610100"),
)

# From here on a msgid always takes five bytes on the wire, so that all frames have one length.
FIRST_MSGID: Final = 65_536

_RID: Final = bytes.fromhex("D156000005")
_NO_AUTHENTICATION_CODE: Final = bytes.fromhex("FFFFFFFF")
_HISTORICAL_HEAD: Final = b"\x00\x00SIM\x00\x00"

_METHOD: Final = BY_REQUEST[InternalAuthenticate].method

# As much as one batch may hold.
_BATCH: Final = 256


class Pool(NamedTuple):
    """Requests and their answers, in the same order."""

    requests: tuple[bytes, ...]
    answers: tuple[bytes, ...]


def card_requests(client: Client) -> Pool:
    """Prepare `card.internal_authenticate` for many cards, with the cryptograms that genuine cards give."""
    asks = [_cryptogram_request(number) for number in range(CARDS)]
    requests = []
    for start in range(0, CARDS, _BATCH):
        part = asks[start : start + _BATCH]
        for ask, reply in zip(part, client.ask_batch(part), strict=True):
            if isinstance(reply, Refusal):
                raise BenchError(f"keyd refused to prepare a card: {reply}")
            requests.append(
                InternalAuthenticate(
                    ask.card, ask.session_factor, ask.challenge, reply.reply[:8], ask.address
                )
            )
    msgids = itertools.count(FIRST_MSGID)
    return _pool(
        [
            (encode((ASK, msgid, _METHOD, request)), answer_bytes(msgid, CardAuthentic()))
            for msgid, request in zip(msgids, requests, strict=False)
        ]
    )


def redis_requests() -> Pool:
    """Prepare GET for as many keys as there are cards, each with a value of 16 bytes."""
    return _pool(
        [
            (_command(b"GET", _redis_key(number)), b"$16\r\n%b\r\n" % _redis_value(number))
            for number in range(CARDS)
        ]
    )


def redis_contents() -> bytes:
    """Return the commands that store what `redis_requests` asks for; each is answered with +OK."""
    return b"".join(
        _command(b"SET", _redis_key(number), _redis_value(number)) for number in range(CARDS)
    )


def echoed(pool: Pool) -> Pool:
    """Return the same requests for a server that sends back whatever comes."""
    return Pool(pool.requests, pool.requests)


def _pool(pairs: Sequence[tuple[bytes, bytes]]) -> Pool:
    requests, answers = zip(*pairs, strict=True)
    if len({len(request) for request in requests}) != 1 or len({len(a) for a in answers}) != 1:
        raise BenchError("requests or answers differ in length, and the generator counts on one")
    return Pool(requests, answers)


def _cryptogram_request(number: int) -> InternalCryptogram:
    city = bytes.fromhex(CITIES[number % len(CITIES)])
    serial = number.to_bytes(4, "big")
    card = CardIdentity(
        city + _RID + serial + _NO_AUTHENTICATION_CODE, _HISTORICAL_HEAD + city[:2] + serial
    )
    # Any bytes are as good as random ones here, and the same in every run.
    return InternalCryptogram(
        card,
        session_factor=(number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big"),
        challenge=(number * 0xD1B54A32D192ED03 % 2**64).to_bytes(8, "big"),
    )


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def _redis_key(number: int) -> bytes:
    # As redis-benchmark spells its random keys.
    return b"key:%012d" % number


def _redis_value(number: int) -> bytes:
    return b"value:%010d" % number
