"""What a terminal and keyd sign when they prove themselves to each other with SM2.

    label 16 ‖ terminal challenge 16 ‖ keyd challenge 16 ‖ channel binding 32 ‖ time 8 ‖ terminal code in ASCII

The label is `keyd-terminal-v2` in what the terminal signs and `keyd-daemon---v2` in what keyd signs. The channel
binding is what only the two ends of an encrypted line know (TLS exporter), and 32 zero bytes on a plain one. The time
is the terminal's, in seconds since 1970, big-endian; keyd signs the same time.

The label names the side, so a signature sent back is none; both challenges are in it, so neither side chooses the
whole input; everything before the code has a fixed length, so no two inputs read the same.
"""

from __future__ import annotations

from typing import Final

CHALLENGE_BYTES: Final = 16
BINDING_BYTES: Final = 32
NO_BINDING: Final = bytes(BINDING_BYTES)

TERMINAL_LABEL: Final = b"keyd-terminal-v2"
KEYD_LABEL: Final = b"keyd-daemon---v2"

_TIME_BYTES: Final = 8


def signed_by_terminal(
    code: str, terminal_challenge: bytes, keyd_challenge: bytes, binding: bytes, time: int
) -> bytes:
    """Return what a terminal signs.

    Raises:
        ValueError: a challenge has not 16 bytes, the binding not 32, or the time does not fit into 8.
    """
    return TERMINAL_LABEL + _signed(code, terminal_challenge, keyd_challenge, binding, time)


def signed_by_keyd(
    code: str, terminal_challenge: bytes, keyd_challenge: bytes, binding: bytes, time: int
) -> bytes:
    """Return what keyd signs in turn.

    Raises:
        ValueError: as `signed_by_terminal`.
    """
    return KEYD_LABEL + _signed(code, terminal_challenge, keyd_challenge, binding, time)


def _signed(
    code: str, terminal_challenge: bytes, keyd_challenge: bytes, binding: bytes, time: int
) -> bytes:
    if not len(terminal_challenge) == len(keyd_challenge) == CHALLENGE_BYTES:
        raise ValueError(f"a challenge has {CHALLENGE_BYTES} bytes")
    if len(binding) != BINDING_BYTES or not 0 <= time < 1 << 8 * _TIME_BYTES:
        raise ValueError(f"a channel binding has {BINDING_BYTES} bytes, and a time fits into 8")
    fixed = terminal_challenge + keyd_challenge + binding + time.to_bytes(_TIME_BYTES, "big")
    return fixed + code.encode("ascii")
