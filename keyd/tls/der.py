"""As much DER as certificates need: a writer of elements and a strict reader of them.

keyd writes certificates itself because no library of the Python world signs them with SM2. Names and extensions,
where the variety is, come from such a library all the same; here are only the boxes around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import datetime

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
CONTEXT_0: Final = 0xA0
CONTEXT_1: Final = 0xA1
CONTEXT_3: Final = 0xA3

# Certificates are well below this; a length that needs more octets is refused before anything is computed.
_MAX_LENGTH_OCTETS: Final = 4

# RFC 5280 §4.1.2.5: years from here on are written with four digits.
_GENERALIZED_FROM: Final = 2050


class Element(NamedTuple):
    """One element: its tag, its content, and the whole of its bytes."""

    tag: int
    content: bytes
    der: bytes


def element(tag: int, *contents: bytes) -> bytes:
    """Write one element around its contents."""
    content = b"".join(contents)
    return bytes([tag]) + _length(len(content)) + content


def sequence(*contents: bytes) -> bytes:
    """Write a SEQUENCE."""
    return element(SEQUENCE, *contents)


def integer(number: int) -> bytes:
    """Write a number that is not negative."""
    # One bit more than it has, since the first bit of an INTEGER is its sign.
    return element(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def bit_string(content: bytes) -> bytes:
    """Write whole bytes as a BIT STRING."""
    return element(BIT_STRING, b"\0", content)


def time(moment: datetime.datetime) -> bytes:
    """Write a moment to the second, in the form that RFC 5280 §4.1.2.5 prescribes for its year.

    Raises:
        ValueError: it is not in UTC.
    """
    offset = moment.utcoffset()
    if offset is None or offset:
        raise ValueError("moments in certificates are in UTC")
    if moment.year < _GENERALIZED_FROM:
        return element(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return element(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def read_elements(der: bytes) -> list[Element]:
    """Split bytes into elements, whole and nothing after them.

    Raises:
        ValueError: they are not that.
    """
    elements = []
    at = 0
    while at < len(der):
        length, content = _read_length(der, at + 1)
        end = content + length
        if end > len(der):
            raise ValueError("an element is longer than the bytes there are")
        elements.append(Element(der[at], der[content:end], der[at:end]))
        at = end
    return elements


def read_one(der: bytes, tag: int) -> list[Element]:
    """Open one constructed element that is all of the bytes.

    Raises:
        ValueError: it is not that.
    """
    outer = read_elements(der)
    if len(outer) != 1 or outer[0].tag != tag:
        raise ValueError("there is not the one element that was expected")
    return read_elements(outer[0].content)


def _length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def _read_length(der: bytes, at: int) -> tuple[int, int]:
    if at >= len(der):
        raise ValueError("a length is missing")
    first = der[at]
    if first < 0x80:
        return first, at + 1
    count = first & 0x7F
    end = at + 1 + count
    if count > _MAX_LENGTH_OCTETS:
        raise ValueError("a length is larger than any certificate")
    length = int.from_bytes(der[at + 1 : end], "big")
    # Writing it again is the whole of the shortest-form rule, and of the truncation rule.
    if _length(length) != der[at:end]:
        raise ValueError("a length is not written the shortest way")
    return length, end
