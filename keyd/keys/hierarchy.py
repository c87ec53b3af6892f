"""The key hierarchy: national → province → city → card by `diversify`, card → session by `derive`.

Beside it stands the one of terminals: terminal master key → terminal → side. It ends in proofs, and no card's key is
ever below it.

Each level is a type with only its own verbs, so that computing a cryptogram under a city key does not
type-check. One arithmetic serves SM4 (16-byte blocks) and 3DES and DES (8-byte blocks): where they differ,
the block length decides, as the card specification has it. (GB/T 32907 for SM4; LD/T 32 for the rules; their
reading is in docs/architecture.md.)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NewType

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.errors import BadParameter, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.crypto.native._core import KeyHandle

# Six decimal digits, e.g. "510100". Made by `region_from_digits` or `region_from_card_id`.
Region = NewType("Region", str)

DIVERSIFIER_BYTES: Final = 8
HISTORICAL_BYTES: Final = 13
MAC_BYTES: Final = 4

# Lc is one byte and counts the MAC; keyd speaks short APDUs, which is all that the cards know.
MAX_PROTECTED_DATA: Final = 255 - MAC_BYTES

# Where the terminal master key answers: far above what the card specification gives out.
TERMINAL_MASTER_ADDRESS: Final = 0xFE00

# Terminal master key → terminal key → key of one side.
TERMINAL_LEVELS: Final = 2

TERMINAL_CHALLENGE_BYTES: Final = 16
TERMINAL_PROOF_BYTES: Final = 8

_BY_CODE: Final = b"keyd terminal key by code"
_PSAM_NUMBER_BYTES: Final = 6

_ZHEJIANG: Final = "33"

# bytes.translate with this table is ~x for every byte.
_COMPLEMENT: Final = bytes(0xFF - byte for byte in range(256))


def region_from_digits(digits: str) -> Region:
    """Return the region of six ASCII digits.

    Raises:
        BadParameter: anything else.
    """
    # str.isdigit alone would let other scripts' digits through.
    if len(digits) != 6 or not digits.isascii() or not digits.isdigit():
        raise BadParameter("a region is six decimal digits")
    return Region(digits)


def region_from_card_id(card_id: bytes) -> Region:
    """Return the region in the first 3 bytes (BCD) of the 16-byte card identifier.

    Raises:
        BadParameter: they are not decimal digits.
    """
    digits = card_id[:3].hex()
    if len(digits) != 6 or not digits.isdigit():
        raise BadParameter("the card identifier does not begin with six decimal digits")
    return Region(digits)


def province_diversifier(region: Region) -> bytes:
    """Return L1, 8 bytes: the province's two digits ‖ "0000" ‖ "sh"."""
    return f"{region[:2]}0000sh".encode()


def city_diversifier(region: Region) -> bytes:
    """Return L2, 8 bytes: the region's six digits ‖ "sx"."""
    if region.startswith(_ZHEJIANG):
        # Zhejiang issues by city and blanks the county digits.
        return f"{region[:4]}00sx".encode()
    return f"{region}sx".encode()


def card_diversifier(historical: bytes) -> bytes:
    """Return L3, 8 bytes: historical bytes 6 to 13, which are the last 8 of the ATR."""
    return historical[-DIVERSIFIER_BYTES:]


def card_diversifier_old(historical: bytes) -> bytes:
    """Return the older L3, 8 bytes: T8 to TD ‖ 0000. One web source only: our reading."""
    return historical[7:13] + bytes(2)


# Level-3 rules by the name that a card profile gives.
CARD_DIVERSIFIERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "historical-6-13": card_diversifier,
    "historical-8-13-zero": card_diversifier_old,
}


class _Level:
    __slots__ = ("_key",)

    def __init__(self, key: SecretKey) -> None:
        self._key = key

    @property
    def algorithm(self) -> Algorithm:
        """The block cipher of this level's key."""
        return self._key.algorithm

    def kcv(self) -> bytes:
        """Return the key check value, 3 bytes. It may be shown."""
        return self._key.kcv()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key.algorithm.value}>"

    def _diversified(self, diversifier: bytes) -> SecretKey:
        key = self._key
        if len(diversifier) != DIVERSIFIER_BYTES:
            raise BadParameter("a diversifier has 8 bytes")
        if key.algorithm is Algorithm.DES:
            return key.encrypt_to_key(diversifier, Algorithm.DES)
        # 3DES makes two blocks of this, E(f) ‖ E(~f), and SM4 one, E(f ‖ ~f): the specification's two
        # rules are one expression.
        blocks = diversifier + diversifier.translate(_COMPLEMENT)
        return key.encrypt_to_key(blocks, key.algorithm)


class CipherKey(_Level):
    """The key under which a PSAM ciphers whole blocks for its terminal (CIPHER DATA)."""

    __slots__ = ()

    @property
    def block_bytes(self) -> int:
        """16, or 8 for DES and 3DES."""
        return self._key.block_bytes

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, each on its own."""
        return self._key.encrypt(blocks)

    def chain(self, blocks: bytes, iv: bytes) -> bytes:
        """Take whole blocks of a MAC that are not its last, and return the chaining value, one block."""
        key = self._key
        if key.algorithm is Algorithm.TDES:
            return key.retail_chain(blocks, iv)
        return key.cbc_mac(blocks, iv)

    def finish(self, blocks: bytes, iv: bytes) -> bytes:
        """Take the last whole blocks of a MAC and return it, one block: a retail MAC under 3DES, CBC otherwise."""
        key = self._key
        return (
            key.retail_mac(blocks, iv)
            if key.algorithm is Algorithm.TDES
            else key.cbc_mac(blocks, iv)
        )


class SessionKey(_Level):
    """One exchange's key (过程密钥)."""

    __slots__ = ()

    def cipher(self) -> CipherKey:
        """Return this key for a PSAM's CIPHER DATA."""
        return CipherKey(self._key)

    def cryptogram(self, challenge: bytes) -> bytes:
        """Return the cryptogram (鉴别数据), 8 bytes, over an 8-byte challenge (原信息)."""
        if len(challenge) != 8:
            raise BadParameter("a challenge has 8 bytes")
        if self._key.block_bytes == 8:
            return self._key.encrypt(challenge)
        return fold(self._key.encrypt(challenge + bytes(8)))

    def mac(self, data: bytes) -> bytes:
        """Return the MAC, 4 bytes: zero IV, always padded with 80 00…"""
        return _mac(self._key, data)

    def encipher(self, plaintext: bytes) -> bytes:
        """Encrypt a command's data: LD ‖ plaintext, padded with 80 00… only if not whole blocks."""
        data = bytes([len(plaintext)]) + plaintext
        if len(data) % self._key.block_bytes:
            data = pad(data, self._key.block_bytes)
        return self._key.encrypt(data)

    def protect(self, header: bytes, plaintext: bytes, *, encrypt: bool) -> bytes:
        """Return the ready command APDU: header (CLA INS P1 P2) ‖ Lc ‖ data ‖ MAC.

        Lc counts the MAC already when the MAC is made.

        Raises:
            TooLarge: data and MAC do not fit into 255 bytes.
        """
        if len(header) != 4:
            raise BadParameter("a header is CLA INS P1 P2, 4 bytes")
        if len(plaintext) > MAX_PROTECTED_DATA:
            raise TooLarge(f"a command carries at most {MAX_PROTECTED_DATA} bytes beside its MAC")
        data = self.encipher(plaintext) if encrypt else plaintext
        if len(data) > MAX_PROTECTED_DATA:
            raise TooLarge(f"encrypted, the data have {len(data)} bytes and do not fit")
        command = header + bytes([len(data) + MAC_BYTES]) + data
        return command + self.mac(command)


class CardKey(_Level):
    """One card's key for one usage."""

    __slots__ = ()

    def cipher(self) -> CipherKey:
        """Return this key for a PSAM's CIPHER DATA, in the dialect that derives no session key."""
        return CipherKey(self._key)

    def derive(self, session_factor: bytes) -> SessionKey:
        """Derive the session key from a session factor (过程因子) of 4 or 8 bytes, or 16 for 16-byte blocks.

        Raises:
            BadParameter: another length.
        """
        key = self._key
        length = len(session_factor)
        if length not in (4, 8) and not (length == 16 and key.block_bytes == 16):
            raise BadParameter(
                "a session factor has 4 or 8 bytes, or 16 where the algorithm's block has 16"
            )
        block = session_factor.ljust(key.block_bytes, b"\0")
        if key.block_bytes == 8:
            return SessionKey(key.encrypt_to_key(block, Algorithm.DES))
        return SessionKey(key.encrypt_to_key(block, key.algorithm))

    def tac(self, data: bytes) -> bytes:
        """Return the TAC, 4 bytes: the card key itself, or left XOR right half of a 3DES key."""
        key = self._key
        return _mac(key.xor_halves() if key.algorithm is Algorithm.TDES else key, data)


class CityKey(_Level):
    """A city's root: one level above its cards."""

    __slots__ = ()

    @property
    def handle(self) -> KeyHandle:
        """The key in locked memory, for a kernel that computes many cards at once."""
        return self._key.handle

    def diversify(self, diversifier: bytes) -> CardKey:
        """Diversify to a card's key; the diversifier is L3, 8 bytes."""
        return CardKey(self._diversified(diversifier))


class ProvincialKey(_Level):
    """A province's root: two levels above its cards."""

    __slots__ = ()

    def diversify(self, region: Region) -> CityKey:
        """Diversify to the region's city key (L2)."""
        return CityKey(self._diversified(city_diversifier(region)))


class NationalKey(_Level):
    """A national root: three levels above its cards."""

    __slots__ = ()

    def diversify(self, region: Region) -> ProvincialKey:
        """Diversify to the region's provincial key (L1)."""
        return ProvincialKey(self._diversified(province_diversifier(region)))


RootKey = NationalKey | ProvincialKey | CityKey

_ROOT_TYPES: Final[dict[int, type[RootKey]]] = {3: NationalKey, 2: ProvincialKey, 1: CityKey}


def root_key(key: SecretKey, levels: int) -> RootKey:
    """Say how many levels a loaded key stands above its cards: 3, 2 or 1. It is the key's own property.

    Raises:
        BadParameter: another number.
    """
    if levels not in _ROOT_TYPES:
        raise BadParameter("a root stands 3, 2 or 1 levels above its cards")
    return _ROOT_TYPES[levels](key)


def city_key(root: RootKey, region: Region) -> CityKey:
    """Diversify whatever root there is down to the region's city key."""
    if isinstance(root, NationalKey):
        root = root.diversify(region)
    if isinstance(root, ProvincialKey):
        root = root.diversify(region)
    return root


def levels_of(root: RootKey) -> int:
    """Return how many levels a root stands above its cards: 3, 2 or 1."""
    return next(levels for levels, root_type in _ROOT_TYPES.items() if isinstance(root, root_type))


def card_key(root: RootKey, diversifiers: Sequence[bytes]) -> CardKey:
    """Diversify a root to a card's key by diversifiers as a terminal gives them to its PSAM, the highest level first.

    Raises:
        BadParameter: there are not as many as the root has levels, or one has not 8 bytes.
    """
    if len(diversifiers) != levels_of(root):
        raise BadParameter("a root takes one diversifier for each of its levels")
    # No level's own verb: those know which region they diversify for, and a PSAM knows no regions.
    level: _Level = root
    for diversifier in diversifiers:
        level = CardKey(level._diversified(diversifier))  # noqa: SLF001 - the same module
    return CardKey(level._key)  # noqa: SLF001 - the same module


def child_root(root: RootKey, region: Region) -> SecretKey:
    """Diversify a root one level down, for hand-over to whom it belongs (母卡): only a custody asks for this.

    Raises:
        BadParameter: below a city's root there are only cards.
    """
    if isinstance(root, CityKey):
        raise BadParameter("below a city's root there are only cards")
    diversifier = (
        province_diversifier(region) if isinstance(root, NationalKey) else city_diversifier(region)
    )
    return root._diversified(diversifier)  # noqa: SLF001 - the same module


# Terminals ---------------------------------------------------------------------------------------------------


def terminal_factor_by_code(code: str) -> bytes:
    """Return the diversifier, 8 bytes, of the terminal key that belongs to a terminal's code (ASCII)."""
    return sm3(_BY_CODE + code.encode("ascii"))[:DIVERSIFIER_BYTES]


def terminal_factor_by_psam(number: bytes) -> bytes:
    """Return the diversifier, 8 bytes, of the terminal key that belongs to a PSAM's 终端机编号 of 6 bytes.

    Raises:
        BadParameter: the number has another length.
    """
    if len(number) != _PSAM_NUMBER_BYTES:
        raise BadParameter("终端机编号 has 6 bytes")
    return bytes(DIVERSIFIER_BYTES - _PSAM_NUMBER_BYTES) + number


class Side(enum.Enum):
    """Whose proof a key makes; the value is the diversifier, 8 bytes."""

    TERMINAL = b"TERMINAL"
    KEYD = b"KEYD----"


class SideKey(_Level):
    """A terminal's key for the proofs of one side: neither side's proof ever serves as the other's."""

    __slots__ = ()

    def proof(self, challenge: bytes, own: bytes) -> bytes:
        """Return the proof, 8 bytes, over the other side's challenge and one's own, 16 bytes each.

        It is the cryptogram of internal authentication: the other side's challenge is the session factor.
        """
        if not len(challenge) == len(own) == TERMINAL_CHALLENGE_BYTES:
            raise BadParameter("a challenge between a terminal and keyd has 16 bytes")
        return fold(self._key.encrypt_to_key(challenge, self._key.algorithm).encrypt(own))


class TerminalKey(_Level):
    """One terminal's key."""

    __slots__ = ()

    def diversify(self, side: Side) -> SideKey:
        """Diversify to the key of one side."""
        return SideKey(self._diversified(side.value))


class TerminalMasterKey(_Level):
    """The key above all terminals' keys."""

    __slots__ = ()

    def diversify(self, factor: bytes) -> TerminalKey:
        """Diversify to a terminal's key; the factor has 8 bytes."""
        return TerminalKey(self._diversified(factor))

    def hand_over(self, factor: bytes) -> bytes:
        """Return a terminal's key, 16 bytes, for the machine that it belongs to: only a custody asks for this."""
        if len(factor) != DIVERSIFIER_BYTES:
            raise BadParameter("a diversifier has 8 bytes")
        return self._key.encrypt(factor + factor.translate(_COMPLEMENT))


def fold(block: bytes) -> bytes:
    """Return left half XOR right half of a block of 16 bytes."""
    number = int.from_bytes(block, "big")
    return (number >> 64 ^ number & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")


def short_mac(last: bytes) -> bytes:
    """Return the 4 bytes that stand for a MAC's last block: the left ones of 8, the four words of 16 XORed."""
    if len(last) == 8:
        return last[:MAC_BYTES]
    a, b, c, d = (int.from_bytes(last[i : i + 4], "big") for i in (0, 4, 8, 12))
    return (a ^ b ^ c ^ d).to_bytes(4, "big")


def pad(data: bytes, block_bytes: int) -> bytes:
    """Fill data up to whole blocks with 80 00…, always with the 80."""
    data += b"\x80"
    return data + bytes(-len(data) % block_bytes)


def _mac(key: SecretKey, data: bytes) -> bytes:
    return short_mac(key.cbc_mac(pad(data, key.block_bytes), bytes(key.block_bytes)))
