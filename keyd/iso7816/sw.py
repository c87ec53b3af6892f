"""The status words that a social security card answers with, by name.

ISO 7816-4 gives the 6xxx words; the 9xxx ones are the medical application's own (社会保障卡规范, 第 3 部分).
"""

from __future__ import annotations

import enum
from typing import Final


class SW(enum.IntEnum):
    """A status word with one fixed value. 61xx, 63Cx and 6Cxx carry a number: see the functions below."""

    OK = 0x9000
    WARNING_VERIFICATION_FAILED = 0x6300
    MEMORY_FAILURE = 0x6581
    WRONG_LENGTH = 0x6700
    LOGICAL_CHANNEL_NOT_SUPPORTED = 0x6881
    SECURE_MESSAGING_NOT_SUPPORTED = 0x6882
    COMMAND_NOT_ACCEPTED = 0x6901
    FILE_STRUCTURE_INCOMPATIBLE = 0x6981
    SECURITY_STATUS_NOT_SATISFIED = 0x6982
    AUTHENTICATION_BLOCKED = 0x6983
    NO_CHALLENGE = 0x6984
    CONDITIONS_NOT_SATISFIED = 0x6985
    NO_CURRENT_FILE = 0x6986
    SECURE_MESSAGING_MISSING = 0x6987
    SECURE_MESSAGING_INCORRECT = 0x6988
    WRONG_DATA = 0x6A80
    FUNCTION_NOT_SUPPORTED = 0x6A81
    FILE_NOT_FOUND = 0x6A82
    RECORD_NOT_FOUND = 0x6A83
    NOT_ENOUGH_MEMORY = 0x6A84
    WRONG_P1_P2 = 0x6A86
    KEY_NOT_FOUND = 0x6A88
    WRONG_OFFSET = 0x6B00
    INS_NOT_SUPPORTED = 0x6D00
    CLA_NOT_SUPPORTED = 0x6E00
    NO_PRECISE_DIAGNOSIS = 0x6F00
    MAC_INVALID = 0x9302
    APPLICATION_BLOCKED_FOR_GOOD = 0x9303
    INSUFFICIENT_FUNDS = 0x9401
    KEY_INDEX_NOT_FOUND = 0x9403
    PROOF_NOT_AVAILABLE = 0x9406


# The numbered families: SW1 says which, SW2 (for 63Cx its low half) is the number.
MORE_DATA: Final = 0x6100
TRIES_LEFT: Final = 0x63C0
WRONG_LE: Final = 0x6C00


def tries_left(sw: int) -> int | None:
    """Return x of 63Cx, or None for any other status word."""
    return sw & 0x000F if sw & 0xFFF0 == TRIES_LEFT else None


def more_data(sw: int) -> int | None:
    """Return how many bytes wait for GET RESPONSE (xx of 61xx, 00 meaning 256), or None."""
    return (sw & 0xFF or 0x100) if sw & 0xFF00 == MORE_DATA else None


def right_le(sw: int) -> int | None:
    """Return the Le that the chip asks for instead (xx of 6Cxx, 00 meaning 256), or None."""
    return (sw & 0xFF or 0x100) if sw & 0xFF00 == WRONG_LE else None


def status_word_name(sw: int) -> str:
    """Name any status word, for a sentence: `63C2 (2 tries left)`."""
    if (tries := tries_left(sw)) is not None:
        meaning = f"{tries} {'try' if tries == 1 else 'tries'} left"
    elif (waiting := more_data(sw)) is not None:
        meaning = f"{waiting} bytes more"
    elif (le := right_le(sw)) is not None:
        meaning = f"wrong Le, {le} is right"
    else:
        try:
            meaning = SW(sw).name.lower().replace("_", " ")
        except ValueError:
            meaning = "unknown"
    return f"{sw:04X} ({meaning})"
