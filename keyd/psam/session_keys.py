"""DELIVERY of a key and CIPHER DATA under it: what a terminal reads, writes and maintains cards with.

A delivered key stays in locked memory until its last block, another delivery, a SELECT or a reset. What a MAC needs
between two commands is its chaining value, which is no secret of the key's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW
from keyd.keys.hierarchy import DIVERSIFIER_BYTES, card_key, levels_of, short_mac
from keyd.psam.keys import KeyName
from keyd.psam.own import OwnKey
from keyd.psam.state import Declined, Working

if TYPE_CHECKING:
    from keyd.iso7816 import CommandApdu
    from keyd.keys.hierarchy import CardKey
    from keyd.psam.state import Channel, Psam

# P1 of CIPHER DATA.
ENCRYPT_LAST, ENCRYPT_MORE = 0x00, 0x02
MAC_LAST, MAC_NEXT, MAC_ONLY, MAC_FIRST = 0x01, 0x03, 0x05, 0x07

ENCRYPTS: Final = frozenset({ENCRYPT_LAST, ENCRYPT_MORE})
CIPHER_P1: Final = ENCRYPTS | {MAC_LAST, MAC_NEXT, MAC_ONLY, MAC_FIRST}

# With these the first block is the IV.
BEGINS_MAC: Final = frozenset({MAC_ONLY, MAC_FIRST})
ENDS_KEY: Final = frozenset({ENCRYPT_LAST, MAC_LAST, MAC_ONLY})


def deliver(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """DELIVERY SESSION KEY, or DELIVERY KEY where no session key is derived.

    P1 is 用途, P2 标识; the data are the diversifiers, the card's first, and the session factor of one block.
    """
    # Whatever comes of this one, the key before it must not answer for it.
    channel.working = None
    psam.require_unlocked()
    wanted = KeyName(apdu.p1, apdu.p2)
    row = psam.profile.kinds.get(wanted.kind)
    if row is None:
        raise Declined(SW.KEY_NOT_FOUND)
    if not row.operations:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    derives = psam.profile.delivery.derives_session_key
    factor_bytes = channel.environment.block_bytes if derives else 0
    split_at = wanted.levels * DIVERSIFIER_BYTES
    if len(apdu.data) != split_at + factor_bytes:
        raise Declined(SW.WRONG_LENGTH)
    card = diversified(psam, channel, wanted, apdu.data[:split_at])
    key = card.derive(apdu.data[split_at:]).cipher() if derives else card.cipher()
    channel.working = Working(key, row.operations)
    return b""


def diversified(
    psam: Psam,
    channel: Channel,
    wanted: KeyName,
    factors: bytes,
    missing: int = SW.KEY_NOT_FOUND,
) -> CardKey:
    """Find a root and diversify it by factors of 8 bytes each, the card's first."""
    root = psam.key(channel, wanted.kind, wanted.key_id, missing)
    if isinstance(root, OwnKey) or levels_of(root) != wanted.levels:
        raise Declined(SW.WRONG_DATA)
    starts = range(0, len(factors), DIVERSIFIER_BYTES)
    lowest_first = [factors[at : at + DIVERSIFIER_BYTES] for at in starts]
    return card_key(root, lowest_first[::-1])


def cipher_data(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """CIPHER DATA: encrypt blocks (P1 00, 02), or a MAC over them in one (05) or more (07, 03, 01) commands."""
    working = channel.working
    if working is None:
        raise Declined(SW.COMMAND_NOT_ACCEPTED)
    if ("encrypt" if apdu.p1 in ENCRYPTS else "mac") not in working.operations:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    _require_blocks(psam, working, apdu)
    if apdu.p1 in ENCRYPTS:
        working.chain = None
        answer = working.key.encrypt(apdu.data)
    else:
        answer = _mac(psam, working, apdu)
    if apdu.p1 in ENDS_KEY and psam.profile.delivery.ends_with_last_block:
        channel.working = None
    return answer


def _require_blocks(psam: Psam, working: Working, apdu: CommandApdu) -> None:
    limits, size = psam.profile.cipher, working.key.block_bytes
    most = limits.most_bytes_8 if size == 8 else limits.most_bytes_16
    least = 2 * size if apdu.p1 in BEGINS_MAC else size
    if not least <= len(apdu.data) <= most or len(apdu.data) % size:
        raise Declined(SW.WRONG_LENGTH)


def _mac(psam: Psam, working: Working, apdu: CommandApdu) -> bytes:
    key, size = working.key, working.key.block_bytes
    chain, working.chain = working.chain, None
    blocks = apdu.data
    if apdu.p1 in BEGINS_MAC:
        chain, blocks = blocks[:size], blocks[size:]
    if chain is None:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    if apdu.p1 in (MAC_FIRST, MAC_NEXT):
        working.chain = key.chain(blocks, chain)
        return b""
    last = key.finish(blocks, chain)
    return last if psam.profile.cipher.mac == "block" else short_mac(last)
