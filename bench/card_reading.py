"""What PSAMs are asked in the psam suite: the commands of a card reading, and the one answer that each has.

The keys are the public synthetic ones wherever the PSAM is, so its answers are the same everywhere; the first that
differs ends the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from bench.errors import BenchError
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.pooling import FIRST_SYNTHETIC
from keyd.psam import (
    Applet,
    Counters,
    KeySet,
    Psam,
    PsamIdentity,
    RingKeys,
    TransientMemory,
    load_psam_profiles,
)
from keyd.psam.profile import SERIAL_BYTES, TERMINAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

PROFILE: Final = load_psam_profiles()["social-security"]
CARDS: Final = newest(load_profiles())
ALGORITHMS: Final = (CardAlgorithm.DES, CardAlgorithm.SM4)

# Logical addresses of the keys that a third-generation card is read with.
IRK: Final = 0x0170
RKSSSE: Final = 0x004C

# What the PSAM diversifies by, the card's first: region 510100.
FACTORS: Final = bytes.fromhex("8649519930000BEE35313031303073783531303030307368")
SESSION_FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")

# Whoever begins says in which environment: SM4's.
SELECT_SM4: Final = bytes.fromhex("00A4000002DDF2")
SELECT_APPLICATION: Final = bytes.fromhex("00A4040006D15600000590")
READ_NUMBER: Final = bytes.fromhex("00B0960006")


def _deliver(usage: int, key_id: int) -> bytes:
    data = FACTORS + SESSION_FACTOR + bytes(8)
    return bytes((0xBF, 0xDE, usage, key_id, len(data))) + data


DELIVER_IRK: Final = _deliver(0x67, 0x08)
DELIVER_RKSSSE: Final = _deliver(0x67, 0x0A)
CIPHER: Final = bytes.fromhex("80FA000010") + CHALLENGE + bytes(8) + b"\x10"


class Exchange(NamedTuple):
    """Commands that are said again and again, in the environment of SM4, and the answer to each."""

    name: str
    commands: tuple[bytes, ...]
    answers: tuple[bytes, ...]


def make_psam(number: int = FIRST_SYNTHETIC) -> Psam:
    """Return a PSAM whose keys are those of a synthetic key ring, as keyd plays one."""
    terminal = bytes.fromhex(f"{number:0{2 * TERMINAL_BYTES}}")
    return Psam(
        PROFILE,
        PsamIdentity(terminal.rjust(SERIAL_BYTES, b"\0"), terminal),
        RingKeys(make_ring(), CARDS.keys.values(), KeySet()),
        Counters(TransientMemory(), PROFILE.purchase.numbers_reserved),
        lambda length: bytes(length),
    )


def make_ring() -> KeyRing:
    """Return the synthetic key ring."""
    return KeyRing(synthetic(CARDS.key_places(ALGORITHMS)))


def exchanges() -> tuple[Exchange, Exchange, Exchange]:
    """Return what is measured: a pair with a key delivered, a read without any key, and all of a card reading.

    A reading is what the PSAM has to do with one: internal authentication with IRK and external with RKSSSE.
    """
    return (
        _answered("DELIVERY + CIPHER DATA", DELIVER_IRK, CIPHER),
        _answered("READ BINARY", READ_NUMBER),
        _answered("card reading", SELECT_APPLICATION, DELIVER_IRK, CIPHER, DELIVER_RKSSSE, CIPHER),
    )


def _answered(name: str, *commands: bytes) -> Exchange:
    applet = Applet(make_psam())
    applet.transmit(SELECT_SM4)
    answers = tuple(map(applet.transmit, commands))
    require(answers, [answer for answer in answers if answer[-2] in (0x90, 0x61)])
    return Exchange(name, commands, answers)


def require(answers: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """End the run if an answer is not the one that it must be."""
    if list(answers) != list(expected):
        raise BenchError("a PSAM gave a wrong answer")
