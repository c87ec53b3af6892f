"""The fields of EF05 and EF06: how text becomes the value of a record and how it is read again.

`an` is GBK text, padded on the right with 00; `cn` is two digits to a byte, padded on the right with F.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from keyd.errors import RemoteProtocolError


class Field(NamedTuple):
    """A field's form and size in bytes."""

    is_text: bool
    size: int


IDENTIFIER, CATEGORY, VERSION, INSTITUTION = 0x01, 0x02, 0x03, 0x04
ISSUED, EXPIRES, CARD_NUMBER = 0x05, 0x06, 0x07
SOCIAL_SECURITY_NUMBER, NAME, NAME_EXTENSION = 0x08, 0x09, 0x4E
SEX, ETHNIC_GROUP, BIRTHPLACE, BIRTH_DATE = 0x0A, 0x0B, 0x0C, 0x0D

FIELDS: Final = {
    IDENTIFIER: Field(False, 16),
    CATEGORY: Field(True, 1),
    VERSION: Field(True, 4),
    INSTITUTION: Field(False, 12),
    ISSUED: Field(False, 4),
    EXPIRES: Field(False, 4),
    CARD_NUMBER: Field(True, 9),
    SOCIAL_SECURITY_NUMBER: Field(True, 18),
    NAME: Field(True, 30),
    NAME_EXTENSION: Field(True, 20),
    SEX: Field(True, 1),
    ETHNIC_GROUP: Field(False, 1),
    BIRTHPLACE: Field(False, 3),
    BIRTH_DATE: Field(False, 4),
}


def encode_field(tag: int, text: str) -> bytes:
    """Return the value of a record.

    Raises:
        ValueError: the text is too long for the field or not of its form.
    """
    is_text, size = FIELDS[tag]
    encoded = text.encode("gbk") if is_text else bytes.fromhex(text.ljust(2 * size, "F"))
    if len(encoded) > size:
        raise ValueError(f"field {tag:02X} has {size} bytes and cannot hold {len(encoded)}")
    return encoded.ljust(size, b"\x00")


def decode_field_untrusted(tag: int, value: bytes) -> str:
    """Read the value of a record: text, or hex digits in upper case without their padding.

    Raises:
        RemoteProtocolError: the length is not the field's, or the text is not GBK.
    """
    is_text, size = FIELDS[tag]
    if len(value) != size:
        raise RemoteProtocolError(f"field {tag:02X} has {size} bytes, not {len(value)}")
    if not is_text:
        # The identifier may end in FF without that being padding: its digits are kept whole.
        return value.hex().upper() if tag == IDENTIFIER else value.hex().upper().rstrip("F")
    try:
        return value.rstrip(b"\x00").decode("gbk")
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"field {tag:02X} is not GBK text") from None
