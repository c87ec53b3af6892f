"""r‖s and C1, C3, C2 to and from DER, as libcrypto speaks it. Strict: one spelling, or an error.

    signature   SEQUENCE { r INTEGER, s INTEGER }                                          (GM/T 0009 §7.3)
    ciphertext  SEQUENCE { x INTEGER, y INTEGER, C3 OCTET STRING, C2 OCTET STRING }        (GM/T 0009 §7.2)

The peer never sends DER: it is spoken between keyd and libcrypto only. A `ValueError` here is therefore a
bug on one of those two sides.
"""

from __future__ import annotations

from typing import Final

from keyd.crypto.sm2.backend import Ciphertext
from keyd.crypto.sm2.curve import SCALAR_BYTES, UNCOMPRESSED
from keyd.crypto.sm3 import DIGEST_BYTES

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
SEQUENCE: Final = 0x30

# SEQUENCE and INTEGER headers take 2 bytes each at these lengths; an integer may need a zero byte before it.
MAX_SIGNATURE_BYTES: Final = 2 + 2 * (2 + 1 + SCALAR_BYTES)


def signature_to_der(signature: bytes) -> bytes:
    """Encode r‖s of 64 bytes."""
    r, s = signature[:SCALAR_BYTES], signature[SCALAR_BYTES:]
    return _element(SEQUENCE, _integer(r) + _integer(s))


def signature_from_der(der: bytes) -> bytes:
    """Decode to r‖s of 64 bytes.

    Raises:
        ValueError: not the one DER spelling of two numbers below 2^256.
    """
    (body,) = _elements(der, SEQUENCE)
    r, s = _elements(body, INTEGER, INTEGER)
    return _scalar(r) + _scalar(s)


def ciphertext_to_der(ciphertext: Ciphertext) -> bytes:
    """Encode the three parts."""
    x, y = ciphertext.c1[1:33], ciphertext.c1[33:]
    return _element(
        SEQUENCE,
        _integer(x)
        + _integer(y)
        + _element(OCTET_STRING, ciphertext.c3)
        + _element(OCTET_STRING, ciphertext.c2),
    )


def ciphertext_from_der(der: bytes) -> Ciphertext:
    """Decode the three parts: C1 of 65 bytes, C3 of 32.

    Raises:
        ValueError: not the one DER spelling of such a ciphertext.
    """
    (body,) = _elements(der, SEQUENCE)
    x, y, c3, c2 = _elements(body, INTEGER, INTEGER, OCTET_STRING, OCTET_STRING)
    if len(c3) != DIGEST_BYTES:
        raise ValueError(f"C3 has {DIGEST_BYTES} bytes")
    return Ciphertext(c1=bytes([UNCOMPRESSED]) + _scalar(x) + _scalar(y), c2=c2, c3=c3)


def max_ciphertext_bytes(plaintext_bytes: int) -> int:
    """Return how long the DER of a ciphertext can be, for a plaintext of so many bytes."""
    longest = Ciphertext(c1=b"\x04" + b"\xff" * 64, c2=bytes(plaintext_bytes), c3=bytes(32))
    return len(ciphertext_to_der(longest))


def _element(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _length(len(content)) + content


def _length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def _integer(number: bytes) -> bytes:
    digits = number.lstrip(b"\0")
    # DER integers are signed: without a zero byte before it, a high first bit would mean a negative number.
    if not digits or digits[0] & 0x80:
        digits = b"\0" + digits
    return _element(INTEGER, digits)


def _scalar(content: bytes) -> bytes:
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


def _elements(der: bytes, *tags: int) -> list[bytes]:
    """Split DER into exactly these elements, and nothing after them; return their contents."""
    contents = []
    at = 0
    for tag in tags:
        if der[at : at + 1] != bytes([tag]):
            raise ValueError(f"there is no element with tag {tag:02X} at byte {at}")
        length, start = _read_length(der, at + 1)
        at = start + length
        if at > len(der):
            raise ValueError("the element is longer than the bytes there are")
        contents.append(der[start:at])
    if at != len(der):
        raise ValueError("bytes follow the last element")
    return contents


def _read_length(der: bytes, at: int) -> tuple[int, int]:
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
