"""r‖s and C1, C3, C2 to and from DER, as libcrypto speaks it. Strict: one spelling, or an error.

    signature   SEQUENCE { r INTEGER, s INTEGER }                                          (GM/T 0009 §7.3)
    ciphertext  SEQUENCE { x INTEGER, y INTEGER, C3 OCTET STRING, C2 OCTET STRING }        (GM/T 0009 §7.2)

No peer sends these two: they are spoken between keyd and libcrypto only. A `ValueError` is then a bug on one of those
sides. `files.py` reads and writes key files with the same elements; there it says that a file is no good.
"""

from __future__ import annotations

from typing import Final, TypeVar

from keyd.crypto.sm2.backend import Ciphertext
from keyd.crypto.sm2.curve import SCALAR_BYTES, UNCOMPRESSED
from keyd.crypto.sm3 import DIGEST_BYTES

INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30

# A view, so that what is secret in it is copied once and by name.
_Octets = TypeVar("_Octets", bytes, memoryview)

# SEQUENCE and INTEGER headers take 2 bytes each at these lengths; an integer may need a zero byte before it.
MAX_SIGNATURE_BYTES: Final = 2 + 2 * (2 + 1 + SCALAR_BYTES)


def signature_to_der(signature: bytes) -> bytes:
    """Encode r‖s of 64 bytes."""
    r, s = signature[:SCALAR_BYTES], signature[SCALAR_BYTES:]
    return element(SEQUENCE, integer(r) + integer(s))


def signature_from_der(der: bytes) -> bytes:
    """Decode to r‖s of 64 bytes.

    Raises:
        ValueError: not the one DER spelling of two numbers below 2^256.
    """
    (body,) = elements(der, SEQUENCE)
    r, s = elements(body, INTEGER, INTEGER)
    return scalar_from(r) + scalar_from(s)


def ciphertext_to_der(ciphertext: Ciphertext) -> bytes:
    """Encode the three parts."""
    x, y = ciphertext.c1[1:33], ciphertext.c1[33:]
    return element(
        SEQUENCE,
        integer(x)
        + integer(y)
        + element(OCTET_STRING, ciphertext.c3)
        + element(OCTET_STRING, ciphertext.c2),
    )


def ciphertext_from_der(der: bytes) -> Ciphertext:
    """Decode the three parts: C1 of 65 bytes, C3 of 32.

    Raises:
        ValueError: not the one DER spelling of such a ciphertext.
    """
    (body,) = elements(der, SEQUENCE)
    x, y, c3, c2 = elements(body, INTEGER, INTEGER, OCTET_STRING, OCTET_STRING)
    if len(c3) != DIGEST_BYTES:
        raise ValueError(f"C3 has {DIGEST_BYTES} bytes")
    return Ciphertext(c1=bytes([UNCOMPRESSED]) + scalar_from(x) + scalar_from(y), c2=c2, c3=c3)


def max_ciphertext_bytes(plaintext_bytes: int) -> int:
    """Return how long the DER of a ciphertext can be, for a plaintext of so many bytes."""
    longest = Ciphertext(c1=b"\x04" + b"\xff" * 64, c2=bytes(plaintext_bytes), c3=bytes(32))
    return len(ciphertext_to_der(longest))


def element(tag: int, content: bytes) -> bytes:
    """Encode one element."""
    return bytes([tag]) + _length(len(content)) + content


def _length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def integer(number: bytes) -> bytes:
    """Encode an integer that is not negative, given big-endian."""
    digits = number.lstrip(b"\0")
    # DER integers are signed: without a zero byte before it, a high first bit would mean a negative number.
    if not digits or digits[0] & 0x80:
        digits = b"\0" + digits
    return element(INTEGER, digits)


def scalar_from(content: bytes) -> bytes:
    """Decode the content of an integer from 0 to 2^256 - 1 to 32 bytes.

    Raises:
        ValueError: it is another number, or not written the shortest way.
    """
    if not content:
        raise ValueError("an integer has at least one byte")
    if content[0] & 0x80:
        raise ValueError("the integer is negative")
    if content[0] == 0 and len(content) > 1 and not content[1] & 0x80:
        raise ValueError("the integer has a zero byte too many")
    digits = content.lstrip(b"\0")
    if len(digits) > SCALAR_BYTES:
        raise ValueError(f"the integer has more than {SCALAR_BYTES} bytes")
    return digits.rjust(SCALAR_BYTES, b"\0")


def elements(der: _Octets, *tags: int) -> list[_Octets]:
    """Split DER into exactly these elements, and nothing after them; return their contents.

    Raises:
        ValueError: these are other elements, or not DER.
    """
    found = parts(der)
    if [tag for tag, _ in found] != list(tags):
        raise ValueError("there are other elements than expected")
    return [content for _, content in found]


def parts(der: _Octets) -> list[tuple[int, _Octets]]:
    """Split DER into its elements, however many; return their tags, of one byte each, and contents.

    Raises:
        ValueError: not DER.
    """
    found = []
    at = 0
    while at < len(der):
        length, start = _read_length(der, at + 1)
        end = start + length
        if end > len(der):
            raise ValueError("the element is longer than the bytes there are")
        found.append((der[at], der[start:end]))
        at = end
    return found


def _read_length(der: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the length that is written at a place, and the place after it."""
    first = der[at : at + 1]
    if not first:
        raise ValueError("the length is missing")
    if first[0] < 0x80:
        return first[0], at + 1
    end = at + 1 + (first[0] & 0x7F)
    length = int.from_bytes(der[at + 1 : end], "big")
    # Writing it again is the whole of the minimal-length rule: long where short would do, leading zeros,
    # the indefinite form and a truncated length all read back as something else.
    if _length(length) != der[at:end]:
        raise ValueError("the length is not written the shortest way")
    return length, end
