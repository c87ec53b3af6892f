"""One-time enrolment codes: 80 random bits that a person can read out, type, and find a slip in.

Crockford's Base32, in groups of four, with its check character (the number modulo 37): a mistyped or swapped character
is told apart from a wrong code, without a try. keyd keeps a digest that is bound to the terminal's code. Nobody counts
wrong tries: 80 bits are not guessed over a network, and whoever could use up a terminal's tries could keep it out.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from keyd.crypto.sm3 import sm3
from keyd.errors import BadParameter

if TYPE_CHECKING:
    from collections.abc import Callable

CODE_BYTES: Final = 10

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Five more, for the remainders 32 to 36.
_CHECK: Final = _ALPHABET + "*~$=U"
_CHARACTERS: Final = 16
_GROUP: Final = 4
_LOOKALIKES: Final = str.maketrans({"O": "0", "I": "1", "L": "1", "-": "", " ": ""})
_LABEL: Final = b"keyd enrolment code 1\n"


def make_code(random_bytes: Callable[[int], bytes]) -> str:
    """Return a new enrolment code, e.g. "7Q2M-XK0D-31RT-H9VA-C"."""
    number = int.from_bytes(random_bytes(CODE_BYTES), "big")
    characters = "".join(
        _ALPHABET[number >> shift & 31] for shift in range(5 * (_CHARACTERS - 1), -1, -5)
    )
    groups = [characters[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP)]
    return "-".join([*groups, _CHECK[number % 37]])


def read_code(text: str) -> bytes:
    """Return the 10 bytes of an enrolment code as somebody typed it: in any case, with or without its dashes.

    Raises:
        BadParameter: it was mistyped.
    """
    typed = text.upper().translate(_LOOKALIKES)
    body, check = typed[:_CHARACTERS], typed[_CHARACTERS:]
    number = 0
    for character in body:
        number = number << 5 | max(0, _ALPHABET.find(character))
    is_whole = len(body) == _CHARACTERS and all(character in _ALPHABET for character in body)
    if not is_whole or check != _CHECK[number % 37]:
        raise BadParameter("the enrolment code was mistyped: look at it again")
    return number.to_bytes(CODE_BYTES, "big")


def digest_of(terminal_code: str, enrolment_code: bytes) -> bytes:
    """Return what is kept of an enrolment code, 32 bytes."""
    return sm3(_LABEL + terminal_code.encode() + b"\n" + enrolment_code)


def is_code_of(digest: bytes, terminal_code: str, enrolment_code: bytes) -> bool:
    """Whether it is the enrolment code of which this is kept."""
    return compare_digest(digest, digest_of(terminal_code, enrolment_code))
