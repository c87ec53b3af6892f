"""What a card and a terminal compute, written a second time and from the standard alone.

The daemon has its own arithmetic and this is deliberately not it: where the two disagree, one of them has
misread 《社会保障（个人）卡规范》, and the demo says so. Plain functions over `SecretKey`, bytes to bytes.
The block length of the key decides between the standard's two branches: 8 bytes (DES, 3DES) and 16 bytes
(SSF33, and SM4 in its place).
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.sm3 import sm3

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey

MAC_BYTES: Final = 4
CRYPTOGRAM_BYTES: Final = 8

PROVINCE, CITY, CARD = 3, 2, 1

ZHEJIANG: Final = "33"


def diversifiers(region: str, historical: bytes, levels: int) -> tuple[bytes, ...]:
    """Return the diversifiers from the highest level that is left down to the card, 8 bytes each.

    `region` is six digits; `historical` the 13 historical bytes; `levels` 3 from a national root, 2 from a
    provincial one, 1 from a city's.
    """
    # Zhejiang issues by city and blanks the county digits.
    city = region[:4] + "00" if region.startswith(ZHEJIANG) else region
    by_level = {
        PROVINCE: f"{region[:2]}0000sh".encode(),
        CITY: f"{city}sx".encode(),
        CARD: historical[5:13],
    }
    return tuple(by_level[level] for level in range(levels, 0, -1))


def diversify(key: SecretKey, diversifier: bytes) -> SecretKey:
    """Take one step down the hierarchy. An 8-byte key stays one, a 16-byte key likewise."""
    if key.algorithm is Algorithm.DES:
        return key.encrypt_to_key(diversifier, Algorithm.DES)
    # Two 8-byte blocks, or the one 16-byte block: the sentence of the standard differs, the bytes do not.
    complement = bytes(byte ^ 0xFF for byte in diversifier)
    return key.encrypt_to_key(diversifier + complement, key.algorithm)


def card_key(root: SecretKey, region: str, historical: bytes, levels: int) -> SecretKey:
    """Diversify a root all the way down to one card."""
    return functools.reduce(diversify, diversifiers(region, historical, levels), root)


def session_key(key: SecretKey, session_factor: bytes) -> SecretKey:
    """Open a session with a factor of 4 or 8 bytes, or 16 for a 16-byte block.

    The session key of 3DES is a single DES key.
    """
    block = session_factor.ljust(key.block_bytes, b"\x00")
    algorithm = Algorithm.DES if key.block_bytes == 8 else key.algorithm
    return key.encrypt_to_key(block, algorithm)


def cryptogram(session: SecretKey, challenge: bytes) -> bytes:
    """Answer an 8-byte challenge with 8 bytes, in internal and in external authentication alike."""
    encrypted = session.encrypt(challenge.ljust(session.block_bytes, b"\x00"))
    return _fold(encrypted, CRYPTOGRAM_BYTES)


def mac(session: SecretKey, data: bytes) -> bytes:
    """MAC data, which get padded with 80 00… even if they fill their blocks, from a zero IV: 4 bytes."""
    size = session.block_bytes
    last = session.cbc_mac(_pad(data, size), bytes(size))
    # DES keeps the left half; a 16-byte block is folded: the four words are XORed.
    return last[:MAC_BYTES] if size == 8 else _fold(last, MAC_BYTES)


def command_mac(session: SecretKey, header: bytes, payload: bytes) -> bytes:
    """MAC a command: CLA INS P1 P2, an Lc that already counts the MAC, and the payload."""
    return mac(session, header + bytes((len(payload) + MAC_BYTES,)) + payload)


def tac(key: SecretKey, data: bytes) -> bytes:
    """Make the TAC under the card's DTK itself, without a session: 4 bytes."""
    return mac(key.xor_halves() if key.algorithm is Algorithm.TDES else key, data)


def encrypt_payload(session: SecretKey, plain: bytes) -> bytes:
    """Encrypt LD ‖ plain, padded only if that is not whole blocks already."""
    framed = bytes((len(plain),)) + plain
    if len(framed) % session.block_bytes:
        framed = _pad(framed, session.block_bytes)
    return session.encrypt(framed)


def decrypt_payload(session: SecretKey, ciphertext: bytes) -> bytes:
    """Undo `encrypt_payload`.

    Raises:
        ValueError: not whole blocks, or LD and padding are not as the standard writes them.
    """
    framed = session.decrypt(ciphertext)
    plain = framed[1 : 1 + framed[0]]
    if encrypt_payload(session, plain) != ciphertext:
        raise ValueError("the payload does not decrypt to LD, data and padding")
    return plain


def debit_session_factor(pseudo_random: bytes, number: bytes, terminal_number: bytes) -> bytes:
    """Card's random 4 ‖ purchase number 2 ‖ right 2 bytes of the terminal's transaction number 4."""
    return pseudo_random + number + terminal_number[-2:]


def load_session_factor(pseudo_random: bytes, number: bytes) -> bytes:
    """Card's random 4 ‖ load number 2 ‖ 8000."""
    return pseudo_random + number + b"\x80\x00"


# Terminal authentication: the same arithmetic once more, between a terminal and keyd.

TERMINAL_SIDE: Final = b"TERMINAL"
KEYD_SIDE: Final = b"KEYD----"


def terminal_key_by_code(master: SecretKey, code: str) -> SecretKey:
    """Diversify the terminal master key by a terminal's code."""
    return diversify(master, sm3(b"keyd terminal key by code" + code.encode("ascii"))[:8])


def terminal_key_by_psam(master: SecretKey, number: bytes) -> SecretKey:
    """Diversify the terminal master key by a PSAM's 终端机编号 of 6 bytes."""
    return diversify(master, b"\x00\x00" + number)


def terminal_proof(key: SecretKey, side: bytes, challenge: bytes, own: bytes) -> bytes:
    """Prove one side of a terminal key: over the other side's challenge and its own, 16 bytes each. 8 bytes."""
    session = session_key(diversify(key, side), challenge)
    return _fold(session.encrypt(own), CRYPTOGRAM_BYTES)


# The six MACs of a medical transaction. Amounts have 4 bytes, and `amounts` is three of them:
# 个人帐户 ‖ 个人自付 ‖ 统筹基金. The type has 1 byte, the terminal 6, the time 7 (YYYYMMDDhhmmss), the
# terminal's transaction number 4.


def debit_mac1(
    session: SecretKey, amounts: bytes, kind: bytes, terminal: bytes, time: bytes
) -> bytes:
    """The terminal's MAC: the card lets itself be debited."""
    return mac(session, amounts + kind + terminal + time)


def debit_mac2(session: SecretKey, amounts: bytes) -> bytes:
    """The card's MAC: it has been debited."""
    return mac(session, amounts)


def debit_tac(
    dtk: SecretKey,
    amounts: bytes,
    kind: bytes,
    terminal: bytes,
    terminal_number: bytes,
    time: bytes,
) -> bytes:
    """The card's proof of a debit for the settlement that follows."""
    return tac(dtk, amounts + kind + terminal + terminal_number + time)


def load_mac1(
    session: SecretKey, balance: bytes, amount: bytes, kind: bytes, terminal: bytes
) -> bytes:
    """The card's MAC: it asks for this much."""
    return mac(session, balance + amount + kind + terminal)


def load_mac2(
    session: SecretKey, amount: bytes, kind: bytes, terminal: bytes, time: bytes
) -> bytes:
    """The issuer's MAC: the card may add it."""
    return mac(session, amount + kind + terminal + time)


def load_tac(
    dtk: SecretKey,
    balance: bytes,
    number: bytes,
    amount: bytes,
    kind: bytes,
    terminal: bytes,
    time: bytes,
) -> bytes:
    """The card's proof of a load; `number` is the load number before it was incremented."""
    return tac(dtk, balance + number + amount + kind + terminal + time)


def _pad(data: bytes, size: int) -> bytes:
    return data + b"\x80" + bytes(-(len(data) + 1) % size)


def _fold(block: bytes, size: int) -> bytes:
    """XOR the parts of `size` bytes. One part alone is its own fold, which is DES's case."""
    parts = [block[at : at + size] for at in range(0, len(block), size)]
    return functools.reduce(lambda left, right: bytes(map(operator.xor, left, right)), parts)
