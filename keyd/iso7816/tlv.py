"""Data objects: BER-TLV for what SELECT returns, one-byte tag|len|value for the card's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyd.errors import LocalProtocolError, RemoteProtocolError

# No card needs a tag above two bytes or a value that an extended response could not hold.
MAX_TAG: Final = 0xFFFF
MAX_VALUE_BYTES: Final = 0xFFFF

# The tags of the file control information (ISO 7816-4, 7.4; FCI of the DDF in 社会保障卡规范).
FCI_TEMPLATE: Final = 0x6F
DF_NAME: Final = 0x84
FCI_PROPRIETARY: Final = 0xA5
SFI_OF_DIRECTORY: Final = 0x88
FCI_ISSUER_DATA: Final = 0x9F0C
ALGORITHM: Final = 0x86


@dataclass(frozen=True)
class Tlv:
    """One BER-TLV data object with a tag of one or two bytes."""

    tag: int
    value: bytes

    def __bytes__(self) -> bytes:
        tag = self.tag.to_bytes(2 if self.tag > 0xFF else 1, "big")
        if _tag_bytes(tag) != len(tag):
            raise LocalProtocolError(f"{self.tag:X} is not a BER tag of one or two bytes")
        return tag + _length(len(self.value)) + self.value

    @classmethod
    def parse_untrusted(cls, data: bytes) -> tuple[Tlv, ...]:
        """Read data objects until the data end.

        A length may be in a longer form than it needs, as BER allows; `bytes()` writes the shortest.

        Raises:
            RemoteProtocolError: a tag, length or value is cut off or longer than keyd takes.
        """
        found, at = [], 0
        while at < len(data):
            width = _tag_bytes(data[at : at + 2])
            if not width:
                raise RemoteProtocolError("a tag is cut off or longer than two bytes")
            tag = int.from_bytes(data[at : at + width], "big")
            start, length = _length_untrusted(data, at + width)
            at = start + length
            if at > len(data):
                raise RemoteProtocolError("a value is cut off")
            found.append(cls(tag, bytes(data[start:at])))
        return tuple(found)

    def __repr__(self) -> str:
        return f"<Tlv {self.tag:02X}, {len(self.value)} bytes>"


def _tag_bytes(head: bytes) -> int:
    """Return how many bytes the tag at the head takes, or 0 if it is not one of one or two whole bytes."""
    if head[0] & 0x1F != 0x1F:
        return 1
    # The high bit of the second byte announces a third, which no card of ours sends.
    return 2 if len(head) > 1 and not head[1] & 0x80 else 0


def _length(length: int) -> bytes:
    if length > MAX_VALUE_BYTES:
        raise LocalProtocolError(f"a value holds {MAX_VALUE_BYTES} bytes at most")
    if length < 0x80:
        return bytes((length,))
    return bytes((0x81, length)) if length <= 0xFF else b"\x82" + length.to_bytes(2, "big")


def _length_untrusted(data: bytes, at: int) -> tuple[int, int]:
    """Return where the value begins and how long it is."""
    if at >= len(data):
        raise RemoteProtocolError("a length is cut off")
    first = data[at]
    if first < 0x80:
        return at + 1, first
    width = first & 0x7F
    # 80 is BER's indefinite form, which ISO 7816 forbids.
    if width not in (1, 2) or at + 1 + width > len(data):
        raise RemoteProtocolError("a length is cut off or not definite")
    return at + 1 + width, int.from_bytes(data[at + 1 : at + 1 + width], "big")


@dataclass(frozen=True)
class Record:
    """One tag|len|value record of the card's files: tag and length are always one byte, whatever BER says."""

    tag: int
    value: bytes

    def __bytes__(self) -> bytes:
        if not 0 <= self.tag <= 0xFF or len(self.value) > 0xFF:
            raise LocalProtocolError("the tag and the length of a record are one byte each")
        return bytes((self.tag, len(self.value))) + self.value

    @classmethod
    def parse_untrusted(cls, data: bytes) -> Record:
        """Read the one record that READ RECORD returned.

        Raises:
            RemoteProtocolError: the length is not that of the value.
        """
        if len(data) < 2 or data[1] != len(data) - 2:
            raise RemoteProtocolError("the length of the record is not that of its value")
        return cls(data[0], bytes(data[2:]))

    def __repr__(self) -> str:
        return f"<Record {self.tag:02X}, {len(self.value)} bytes>"


@dataclass(frozen=True)
class Fci:
    """What SELECT of the DDF returns: its name, the SFI of its directory and the algorithm of its keys.

    `algorithm_id` is None where the card does not say: cards from before the tag existed.
    """

    name: bytes
    sfi: int | None = None
    algorithm_id: int | None = None

    def __bytes__(self) -> bytes:
        proprietary = b""
        if self.sfi is not None:
            proprietary += bytes(Tlv(SFI_OF_DIRECTORY, bytes((self.sfi,))))
        if self.algorithm_id is not None:
            issuer_data = bytes(Tlv(ALGORITHM, bytes((self.algorithm_id,))))
            proprietary += bytes(Tlv(FCI_ISSUER_DATA, issuer_data))
        return bytes(
            Tlv(
                FCI_TEMPLATE,
                bytes(Tlv(DF_NAME, self.name)) + bytes(Tlv(FCI_PROPRIETARY, proprietary)),
            )
        )

    @classmethod
    def parse_untrusted(cls, data: bytes) -> Fci:
        """Read the FCI, passing over objects that keyd has no use for.

        Raises:
            RemoteProtocolError: it is not one FCI template with a name.
        """
        template = _value_untrusted(data, FCI_TEMPLATE)
        name = _value_untrusted(template, DF_NAME) if template is not None else None
        if template is None or not name:
            raise RemoteProtocolError("this is not file control information with a name")
        proprietary = _value_untrusted(template, FCI_PROPRIETARY) or b""
        issuer_data = _value_untrusted(proprietary, FCI_ISSUER_DATA) or b""
        return cls(
            name,
            _byte_untrusted(_value_untrusted(proprietary, SFI_OF_DIRECTORY)),
            _byte_untrusted(_value_untrusted(issuer_data, ALGORITHM)),
        )


def _value_untrusted(data: bytes, tag: int) -> bytes | None:
    return next((tlv.value for tlv in Tlv.parse_untrusted(data) if tlv.tag == tag), None)


def _byte_untrusted(value: bytes | None) -> int | None:
    if value is None:
        return None
    if len(value) != 1:
        raise RemoteProtocolError("a one-byte data object has another length")
    return value[0]
