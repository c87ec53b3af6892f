"""A card task as a conversation with a PSAM: what the key ring computes in memory, a PSAM does in five commands or so.

Each dialogue is whole in itself: it selects environment and application, has the key delivered, and leaves nothing
behind that the next one would need. So it may run on whichever PSAM has the key, within one turn. Its result is the
ring's, byte for byte.

A PSAM does less than the ring. It makes MAC1 with a transaction number of its own and never with another's, delivers
no key for a TAC, and has one set and one version of a key. That is refused before any PSAM is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.errors import (
    AlgorithmNotSupported,
    BadParameter,
    KeyNotFound,
    KeyStateRefused,
    KeyUsageRefused,
    KeyVersionRefused,
    PsamDeclined,
    RemoteProtocolError,
    TooLarge,
)
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord, transmit
from keyd.keys.hierarchy import (
    DIVERSIFIER_BYTES,
    MAC_BYTES,
    MAX_PROTECTED_DATA,
    city_diversifier,
    fold,
    pad,
    province_diversifier,
    short_mac,
)
from keyd.keys.sam import CryptogramTask, MacTask, ProtectTask, TacTask, purpose_of
from keyd.psam.level_index import deliver, place_of_key, select_application, select_environment
from keyd.psam.session_keys import (
    ENCRYPT_LAST,
    ENCRYPT_MORE,
    MAC_FIRST,
    MAC_LAST,
    MAC_NEXT,
    MAC_ONLY,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyd.cards.profile import ProfileKey
    from keyd.errors import Refusal
    from keyd.iso7816 import Dialogue
    from keyd.keys.sam import CardKeyRef, SamTask
    from keyd.psam.level_index import Place
    from keyd.psam.profile import Environment, Operation, PsamProfile

# What of the ring's tasks a PSAM does.
PsamTask = CryptogramTask | ProtectTask | MacTask

CHALLENGE_BYTES: Final = 8
HEADER_BYTES: Final = 4

# What a refused SELECT or DELIVERY says, in the words that the ring would refuse with.
_REFUSALS: Final[Mapping[int, type[Refusal]]] = {
    SW.KEY_NOT_FOUND: KeyNotFound,
    SW.KEY_INDEX_NOT_FOUND: KeyNotFound,
    SW.FILE_NOT_FOUND: AlgorithmNotSupported,
    SW.FUNCTION_NOT_SUPPORTED: AlgorithmNotSupported,
    SW.CONDITIONS_NOT_SATISFIED: KeyStateRefused,
}


def place_of_task(task: SamTask, keys: Mapping[int, ProfileKey]) -> Place | None:
    """Return what a PSAM calls the key of a task, by the table of logical addresses; None if PSAMs have no such key.

    Raises:
        KeyUsageRefused: the key at this address is for another use.
    """
    ref = task.key
    key = keys.get(ref.address)
    if key is None:
        return None
    wanted = purpose_of(ref.purpose).use
    if key.use is not wanted:
        raise KeyUsageRefused(f"{key.name} at {ref.address:04X} is for {key.use}, not {wanted}")
    return place_of_key(key, ref.algorithm)


def require_possible(task: SamTask, place: Place, profile: PsamProfile) -> PsamTask:
    """Return a task that PSAMs of a profile can do, if they have the key, and that is well formed as the ring wants it.

    Raises:
        AlgorithmNotSupported: the profile has no environment for the card's algorithm.
        KeyUsageRefused: PSAMs do not do this with a key of this type.
        KeyVersionRefused: a certain version of the key is wanted.
        BadParameter, TooLarge: a length is wrong.
    """
    ref = task.key
    environment = profile.environments.get(place.algorithm)
    if environment is None:
        name = place.algorithm.name
        raise AlgorithmNotSupported(f"PSAMs of profile {profile.name} have no {name}")
    if purpose_of(ref.purpose).version:
        raise KeyVersionRefused("a PSAM has one version of a key and does not say which")
    if isinstance(task, TacTask):
        raise KeyUsageRefused("a PSAM delivers session keys, and a TAC is made without one")
    if not profile.delivery.derives_session_key:
        raise KeyUsageRefused(f"PSAMs of profile {profile.name} derive no session key")
    row = profile.kinds.get(place.kind)
    if row is not None and row.is_by_version:
        raise KeyUsageRefused(
            "a PSAM makes MAC1 with a transaction number of its own: open one for the purchase"
        )
    for operation in _operations(task):
        if row is None or operation not in row.operations:
            raise KeyUsageRefused(f"a PSAM does not {operation} with keys of type {place.kind:02X}")
    if len(ref.diversifier) != DIVERSIFIER_BYTES:
        raise BadParameter("a diversifier has 8 bytes")
    _require_lengths(task, environment.block_bytes)
    return task


def dialogue_of(task: SamTask, place: Place, levels: int, profile: PsamProfile) -> Dialogue[bytes]:
    """Return the conversation whose result is that of the task. The PSAM diversifies the key `levels` times, 1 to 3.

    Raises:
        Refusal: as `require_possible`, before there is a conversation.

    The conversation raises:
        KeyNotFound, AlgorithmNotSupported, KeyStateRefused: the PSAM does not have the key, or does not give it.
        PsamDeclined: it said another no. The sentence has the status word.
        RemoteProtocolError: an answer has not the length that it must have.
    """
    return _dialogue(require_possible(task, place, profile), place, levels, profile)


def _dialogue(task: PsamTask, place: Place, levels: int, profile: PsamProfile) -> Dialogue[bytes]:
    working = _Working(profile, profile.environments[place.algorithm])
    try:
        yield from _begin(task, place, levels, working)
    except UnexpectedStatusWord as no:
        refusal = _REFUSALS.get(no.sw, PsamDeclined)
        raise refusal(f"the PSAM does not give the key {task.key.address:04X}: {no}") from None
    try:
        if isinstance(task, CryptogramTask):
            return (yield from working.cryptogram(task.challenge))
        if isinstance(task, MacTask):
            return (yield from working.mac(task.data))
        return (yield from _protect(task, working))
    except UnexpectedStatusWord as no:
        raise PsamDeclined(f"the PSAM does not compute: {no}") from None


def _begin(task: PsamTask, place: Place, levels: int, working: _Working) -> Dialogue[None]:
    yield from select_environment(working.environment)
    yield from select_application(working.profile)
    factors = _lowest_first(task.key)[:levels]
    yield from deliver(working.profile, working.environment, place, factors, task.session_factor)


def _protect(task: ProtectTask, working: _Working) -> Dialogue[bytes]:
    data = task.plaintext
    if task.encrypt:
        data = yield from working.encrypt(_framed(data, working.block_bytes))
    command = task.header + bytes((len(data) + MAC_BYTES,)) + data
    return command + (yield from working.mac(command))


def _lowest_first(ref: CardKeyRef) -> tuple[bytes, bytes, bytes]:
    """Return the card's, the city's and the province's diversifier: a key of fewer levels takes the first ones."""
    return ref.diversifier, city_diversifier(ref.region), province_diversifier(ref.region)


class _Working:
    """CIPHER DATA under the key that was delivered."""

    def __init__(self, profile: PsamProfile, environment: Environment) -> None:
        self.profile = profile
        self.environment = environment
        self.block_bytes = size = environment.block_bytes
        limits = profile.cipher
        most = limits.most_bytes_8 if size == 8 else limits.most_bytes_16
        self._most_bytes = most - most % size

    def cryptogram(self, challenge: bytes) -> Dialogue[bytes]:
        """Return the cryptogram, 8 bytes; the key is given up."""
        block = challenge.ljust(self.block_bytes, b"\0")
        answer = yield from self._cipher(ENCRYPT_LAST, block, len(block))
        return answer if self.block_bytes == CHALLENGE_BYTES else fold(answer)

    def encrypt(self, blocks: bytes) -> Dialogue[bytes]:
        """Encrypt whole blocks; the key stays."""
        done = b""
        for part in _parts(blocks, self._most_bytes):
            done += yield from self._cipher(ENCRYPT_MORE, part, len(part))
        return done

    def mac(self, data: bytes) -> Dialogue[bytes]:
        """Return the MAC, 4 bytes: zero IV, padded with 80 00… always; the key is given up."""
        # The IV is the first block of what is sent.
        *parts, last = _parts(
            bytes(self.block_bytes) + pad(data, self.block_bytes), self._most_bytes
        )
        p1 = MAC_FIRST
        for part in parts:
            yield from self._cipher(p1, part, 0)
            p1 = MAC_NEXT
        wanted = MAC_BYTES if self.profile.cipher.mac == "4 bytes" else self.block_bytes
        answer = yield from self._cipher(MAC_LAST if parts else MAC_ONLY, last, wanted)
        return answer if wanted == MAC_BYTES else short_mac(answer)

    def _cipher(self, p1: int, blocks: bytes, wanted: int) -> Dialogue[bytes]:
        answer = yield from transmit(CommandApdu(0x80, 0xFA, p1, 0x00, blocks, wanted or None))
        if len(answer) != wanted:
            raise RemoteProtocolError(f"the PSAM answered {len(answer)} bytes and not {wanted}")
        return answer


def _parts(blocks: bytes, most_bytes: int) -> list[bytes]:
    return [blocks[at : at + most_bytes] for at in range(0, len(blocks), most_bytes)]


# What is well formed ----------------------------------------------------------------------------------------------


def _operations(task: PsamTask) -> tuple[Operation, ...]:
    if isinstance(task, ProtectTask):
        return ("encrypt", "mac") if task.encrypt else ("mac",)
    return ("encrypt",) if isinstance(task, CryptogramTask) else ("mac",)


def _require_lengths(task: PsamTask, block_bytes: int) -> None:
    length = len(task.session_factor)
    if length not in (4, 8) and not (length == block_bytes == 16):
        raise BadParameter(
            "a session factor has 4 or 8 bytes, or 16 where the algorithm's block has 16"
        )
    if isinstance(task, CryptogramTask) and len(task.challenge) != CHALLENGE_BYTES:
        raise BadParameter("a challenge has 8 bytes")
    if not isinstance(task, ProtectTask):
        return
    if len(task.header) != HEADER_BYTES:
        raise BadParameter("a header is CLA INS P1 P2, 4 bytes")
    if len(task.plaintext) > MAX_PROTECTED_DATA:
        raise TooLarge(f"a command carries at most {MAX_PROTECTED_DATA} bytes beside its MAC")
    if task.encrypt:
        length = len(_framed(task.plaintext, block_bytes))
        if length > MAX_PROTECTED_DATA:
            raise TooLarge(f"encrypted, the data have {length} bytes and do not fit")


def _framed(plaintext: bytes, block_bytes: int) -> bytes:
    """Return LD ‖ plaintext, filled up with 80 00… only if these are not whole blocks."""
    data = bytes((len(plaintext),)) + plaintext
    return pad(data, block_bytes) if len(data) % block_bytes else data
