"""The answer to reset (ISO 7816-3, 8.2) and the historical bytes in it, by which the card's keys differ."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Final

from keyd.errors import LocalProtocolError, RemoteProtocolError

# ISO 7816-3: TS and at most 32 characters after it.
MAX_ATR_BYTES: Final = 33

HISTORICAL_BYTES: Final = 13

# Direct convention; TB1 and TC1 follow and are zero; 13 historical bytes; T=0 alone, so no TCK.
CARD_PREFIX: Final = bytes.fromhex("3B6D0000")


@dataclass(frozen=True)
class Atr:
    """An answer to reset: all its bytes and, among them, the historical ones."""

    raw: bytes
    historical: bytes

    @classmethod
    def of_card(cls, historical: bytes) -> Atr:
        """Make the ATR of a social security card from its 13 historical bytes."""
        if len(historical) != HISTORICAL_BYTES:
            raise LocalProtocolError(f"a card has {HISTORICAL_BYTES} historical bytes")
        return cls(CARD_PREFIX + historical, historical)

    @classmethod
    def parse_untrusted(cls, raw: bytes) -> Atr:
        """Read any ATR, of whichever protocols.

        Raises:
            RemoteProtocolError: the interface characters, the historical bytes or TCK do not add up.
        """
        if not 2 <= len(raw) <= MAX_ATR_BYTES:
            raise RemoteProtocolError(f"an ATR has 2 to {MAX_ATR_BYTES} bytes")
        if raw[0] not in (0x3B, 0x3F):
            raise RemoteProtocolError("an ATR begins with 3B or 3F")
        at, is_t0_alone = _skip_interface_bytes_untrusted(raw)
        end = at + (raw[1] & 0x0F)
        if len(raw) != end + (0 if is_t0_alone else 1):
            raise RemoteProtocolError("the length of the ATR is not the one that it announces")
        # TCK makes the XOR from T0 to itself zero; T=0 alone goes without (ISO 7816-3, 8.2.5).
        if not is_t0_alone and functools.reduce(operator.xor, raw[1:]):
            raise RemoteProtocolError("the check character of the ATR is wrong")
        return cls(bytes(raw), bytes(raw[at:end]))


def _skip_interface_bytes_untrusted(raw: bytes) -> tuple[int, bool]:
    """Return where the historical bytes begin, and whether T=0 is the only protocol offered."""
    at, present, is_t0_alone = 2, raw[1] >> 4, True
    while present:
        # The low three bits announce TA, TB and TC; the high one TD, which announces the next round.
        at += (present & 0b0111).bit_count()
        if not present & 0b1000:
            break
        if at >= len(raw):
            raise RemoteProtocolError("the ATR ends among its interface characters")
        present, protocol = raw[at] >> 4, raw[at] & 0x0F
        is_t0_alone = is_t0_alone and protocol == 0
        at += 1
    return at, is_t0_alone


def historical_bytes(atr_or_historical: bytes) -> bytes:
    """Return the 13 historical bytes from themselves or from a whole ATR: terminals send either.

    Raises:
        RemoteProtocolError: it is neither.
    """
    if len(atr_or_historical) == HISTORICAL_BYTES:
        return bytes(atr_or_historical)
    historical = Atr.parse_untrusted(atr_or_historical).historical
    if len(historical) != HISTORICAL_BYTES:
        raise RemoteProtocolError(f"a social security card has {HISTORICAL_BYTES} historical bytes")
    return historical
