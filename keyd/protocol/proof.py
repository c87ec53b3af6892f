"""The proofs of terminal authentication, as both sides compute them.

Our own design: HMAC-SM3 under the 16-byte terminal key over

    label of the side 16 ‖ terminal challenge 16 ‖ keyd challenge 16 ‖ terminal code in ASCII

where the label is `keyd-terminal-v1` in the terminal's proof and `keyd-daemon---v1` in keyd's.

The label names the side, so a proof sent back is not a proof; both challenges are in it, so neither side can
choose the whole input; everything before the code has a fixed length, so no two inputs read the same.
"""

from __future__ import annotations

from typing import Final

from keyd.crypto.sm3 import hmac_sm3

TERMINAL_KEY_BYTES: Final = 16
CHALLENGE_BYTES: Final = 16

_TERMINAL: Final = b"keyd-terminal-v1"
_KEYD: Final = b"keyd-daemon---v1"


def terminal_proof(
    key: bytes, code: str, terminal_challenge: bytes, keyd_challenge: bytes
) -> bytes:
    """Return the 32 bytes with which a terminal proves itself."""
    return hmac_sm3(key, _TERMINAL + terminal_challenge + keyd_challenge + code.encode())


def keyd_proof(key: bytes, code: str, terminal_challenge: bytes, keyd_challenge: bytes) -> bytes:
    """Return the 32 bytes with which keyd proves itself."""
    return hmac_sm3(key, _KEYD + terminal_challenge + keyd_challenge + code.encode())
