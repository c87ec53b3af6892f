"""What a PSAM is and has, as whoever takes it into a pool finds out: its numbers, and its keys by level.

A PSAM names a key by type, id and environment, and diversifies it three times, twice or once: that belongs to the
key, and no file says it. So each key is delivered with diversifiers of zeros until the PSAM takes as many as were
sent; what is worked out so is of no card. A dialogue like any other: it does not know where the PSAM is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord, transmit
from keyd.keys.hierarchy import DIVERSIFIER_BYTES
from keyd.psam.keys import SET
from keyd.psam.profile import SERIAL_BYTES, TERMINAL_BYTES
from keyd.psam.transactions import AFTER_BYTES, AMOUNT_BYTES, BEFORE_BYTES, LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyd.cards.profile import ProfileKey
    from keyd.iso7816 import Dialogue
    from keyd.psam.profile import Content, Environment, PsamProfile

# Where the serial number stands in file 0015: after the issuer's byte.
_SERIAL: Final = slice(1, 1 + SERIAL_BYTES)

# The chip has no such environment, or not the algorithm for it. That is no fault of its.
_NO_ENVIRONMENT: Final = frozenset({SW.FILE_NOT_FOUND, SW.FUNCTION_NOT_SUPPORTED})

# There is no such key, or it is of no use to a terminal: it is not delivered, must not be used now, or the chip
# cannot compute with it. 9403 is what bank PSAMs say of a key index that they do not have. [I]
_NO_KEY: Final = frozenset(
    {
        SW.KEY_NOT_FOUND,
        SW.KEY_INDEX_NOT_FOUND,
        SW.CONDITIONS_NOT_SATISFIED,
        SW.SECURITY_STATUS_NOT_SATISFIED,
        SW.FUNCTION_NOT_SUPPORTED,
    }
)

# For INIT SAM FOR PURCHASE, which a PSAM may look at before it looks for the key: 1 January 2000, 00:00:00.
_SOME_DATE_AND_TIME: Final = bytes.fromhex("20000101000000")


class Place(NamedTuple):
    """What a PSAM calls a key: its type, its id or, of a purchase key, its version, and whose environment it is in."""

    kind: int
    key_id: int
    algorithm: CardAlgorithm


class MemberFacts(Struct, frozen=True):
    """What is known of a PSAM: serial number (10 bytes), 终端机编号 (6 bytes), ATR, and its keys.

    `levels` is the level index: how often the PSAM diversifies each key that it has and lets be used, 1 to 3.
    """

    serial: bytes
    terminal: bytes
    atr: bytes
    levels: dict[Place, int]

    @property
    def number(self) -> str:
        """The 终端机编号, 12 digits, by which a PSAM is asked for."""
        return self.terminal.hex()


def place_of_key(key: ProfileKey, algorithm: CardAlgorithm) -> Place | None:
    """Return what a PSAM calls a key of the cards; None if PSAMs do not have it: it is of another set."""
    return Place(key.psam_type, key.psam_id, algorithm) if key.set == SET else None


def every_place(keys: Iterable[ProfileKey], algorithms: Iterable[CardAlgorithm]) -> list[Place]:
    """Return all that a PSAM may have of the cards' keys, for `identify_and_probe`."""
    keys = list(keys)
    found = (place_of_key(key, algorithm) for algorithm in algorithms for key in keys)
    return [place for place in found if place is not None]


def identify_and_probe(
    places: Iterable[Place], profile: PsamProfile, atr: bytes = b""
) -> Dialogue[MemberFacts]:
    """Read who a PSAM is, and find out which of these keys it has and at which level.

    It begins after a reset, whose ATR is the caller's to give, and leaves a key delivered: reset the PSAM after it.

    Raises:
        UnexpectedStatusWord, RemoteProtocolError: this is no PSAM of such a profile, or it misbehaves.
    """
    by_algorithm: dict[CardAlgorithm, list[Place]] = {}
    for place in places:
        by_algorithm.setdefault(place.algorithm, []).append(place)
    numbers: tuple[bytes, bytes] | None = None
    levels: dict[Place, int] = {}
    missing = None
    for environment in profile.environments.values():
        missing = yield from _maybe_missing(select_environment(environment))
        if missing is not None:
            continue
        if numbers is None:
            # They stand in each environment: who it is does not depend on the algorithm.
            numbers = yield from _read_numbers(profile)
        wanted = by_algorithm.get(environment.algorithm)
        if not wanted or (yield from _maybe_missing(select_application(profile))) is not None:
            continue
        levels |= yield from _probe(profile, environment, wanted)
    if numbers is None:
        raise missing or RemoteProtocolError("the PSAM has no environment")
    serial, terminal = numbers
    return MemberFacts(serial, terminal, atr, levels)


# Steps that tasks take as well ------------------------------------------------------------------------------------


def select_environment(environment: Environment) -> Dialogue[bytes]:
    """SELECT an environment by its name, which is found from wherever the PSAM is."""
    return transmit(CommandApdu(0x00, 0xA4, 0x04, 0x00, environment.aid, le=256))


def select_application(profile: PsamProfile) -> Dialogue[bytes]:
    """SELECT the application of the environment."""
    return transmit(CommandApdu(0x00, 0xA4, 0x04, 0x00, profile.application_aid, le=256))


def deliver(
    profile: PsamProfile,
    environment: Environment,
    place: Place,
    factors: Sequence[bytes],
    session_factor: bytes,
) -> Dialogue[bytes]:
    """DELIVERY of a key: diversifiers of 8 bytes each, the card's first, and a session factor filled up to a block.

    Where the PSAM's dialect derives no session key, the session factor is not sent.
    """
    cla, ins = bytes.fromhex(profile.delivery.command)
    data = b"".join(factors)
    if profile.delivery.derives_session_key:
        data += session_factor.ljust(environment.block_bytes, b"\0")
    usage = len(factors) << 5 | place.kind
    return transmit(CommandApdu(cla, ins, usage, place.key_id, data))


# Reading and probing ----------------------------------------------------------------------------------------------


def _maybe_missing(step: Dialogue[bytes]) -> Dialogue[UnexpectedStatusWord | None]:
    """Take a step that may find nothing there; return what says so."""
    try:
        yield from step
    except UnexpectedStatusWord as no:
        if no.sw not in _NO_ENVIRONMENT:
            raise
        return no
    return None


def _read_numbers(profile: PsamProfile) -> Dialogue[tuple[bytes, bytes]]:
    serial = (yield from _read(profile, "public"))[_SERIAL]
    terminal = (yield from _read(profile, "terminal"))[:TERMINAL_BYTES]
    if len(serial) != SERIAL_BYTES or len(terminal) != TERMINAL_BYTES:
        raise RemoteProtocolError("the PSAM's serial number or 终端机编号 is too short")
    return serial, terminal


def _read(profile: PsamProfile, content: Content) -> Dialogue[bytes]:
    for file_id, row in profile.files.items():
        if row.content == content:
            yield from transmit(CommandApdu(0x00, 0xA4, 0x02, 0x00, file_id.to_bytes(2, "big")))
            return (yield from transmit(CommandApdu(0x00, 0xB0, 0x00, 0x00, le=row.bytes or 256)))
    raise RemoteProtocolError(f"PSAMs of profile {profile.name} have no file of that content")


def _probe(
    profile: PsamProfile, environment: Environment, places: Iterable[Place]
) -> Dialogue[dict[Place, int]]:
    """Find the levels of keys of one environment; the application is selected."""
    levels: dict[Place, int] = {}
    purchases = []
    for place in places:
        row = profile.kinds.get(place.kind)
        if row is None:
            continue
        if row.is_by_version:
            purchases.append(place)
            continue
        found = yield from _level_by_delivery(profile, environment, place, _likely(levels))
        if found is not None:
            levels[place] = found
    likely = _likely(levels)
    for place in purchases:
        found = yield from _level_by_purchase(profile, environment, place, likely)
        if found is not None:
            levels[place] = found
    return levels


def _likely(levels: dict[Place, int]) -> int:
    """Return where most keys stand. It is asked first: one command a key, and not three."""
    found = list(levels.values())
    return max(LEVELS, key=lambda level: (found.count(level), level))


def _level_by_delivery(
    profile: PsamProfile, environment: Environment, place: Place, likely: int
) -> Dialogue[int | None]:
    for count in sorted(LEVELS, key=lambda level: (level != likely, -level)):
        factors = [bytes(DIVERSIFIER_BYTES)] * count
        answer = yield from _answer(deliver(profile, environment, place, factors, b""))
        if answer is not SW.WRONG_DATA:
            return count if answer is SW.OK else None
    return None


def _level_by_purchase(
    profile: PsamProfile, environment: Environment, place: Place, likely: int
) -> Dialogue[int | None]:
    """Find the level of a purchase key, which is not delivered, by INIT SAM FOR PURCHASE at wrong levels.

    At the right level that would spend a terminal transaction number. So the two unlikely ones are tried: if the key
    is there and stands at neither, it stands at the third. That a PSAM looks for key and level before it takes a
    number is our reading [I]; if it does not, or the key does stand at an unlikely level, a number is skipped, as
    after a crash.
    """
    others = [level for level in LEVELS if level != likely]
    for count in others:
        answer = yield from _answer(_purchase(profile, environment, place, count))
        if answer is not SW.WRONG_DATA:
            return count if answer is SW.OK else None
    return likely


def _purchase(
    profile: PsamProfile, environment: Environment, place: Place, count: int
) -> Dialogue[bytes]:
    amounts = profile.purchase.amounts * AMOUNT_BYTES
    before = bytes(BEFORE_BYTES + amounts + AFTER_BYTES - len(_SOME_DATE_AND_TIME))
    key = bytes((place.key_id, min(environment.purchase_algorithms)))
    data = before + _SOME_DATE_AND_TIME + key + bytes(DIVERSIFIER_BYTES * count)
    p1 = int(profile.purchase.p1, 16)
    return transmit(CommandApdu(0x80, 0x70, p1, 0x00, data, le=8))


def _answer(step: Dialogue[bytes]) -> Dialogue[SW]:
    """Take a step and return whether it was OK, another level (6A80), or that there is no such key (6A88)."""
    try:
        yield from step
    except UnexpectedStatusWord as no:
        if no.sw == SW.WRONG_DATA:
            return SW.WRONG_DATA
        if no.sw not in _NO_KEY:
            raise
        return SW.KEY_NOT_FOUND
    return SW.OK
