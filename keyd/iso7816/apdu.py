"""The two messages of ISO 7816-4: a command to the chip and its response.

Whatever parses marshals back to the same bytes, so an APDU that arrived in the extended form although the
short form would have held it remembers that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.iso7816.sw import SW, status_word_name

HEADER_BYTES: Final = 4

# Lc is one byte in the short form, two in the extended one; 0 means "no data" in neither.
MAX_SHORT_DATA: Final = 0xFF
MAX_EXTENDED_DATA: Final = 0xFFFF

# Le counts one further than Lc: an Le of all zeros asks for 256, or 65,536, bytes.
MAX_SHORT_LE: Final = 0x100
MAX_EXTENDED_LE: Final = 0x10000


@dataclass(frozen=True)
class CommandApdu:
    """A command: header, data, and how many bytes of response are wanted at most (`le`).

    `le=None` asks for no data (cases 1 and 3); 256, or 65,536 in the extended form, for all there is.
    The data do not appear in the repr: they may be a PIN or a key block.
    """

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes = field(default=b"", repr=False)
    le: int | None = None
    extended: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= byte <= 0xFF for byte in (self.cla, self.ins, self.p1, self.p2)):
            raise LocalProtocolError("CLA, INS, P1 and P2 are bytes")
        if len(self.data) > MAX_EXTENDED_DATA:
            raise LocalProtocolError(
                f"a command APDU holds {MAX_EXTENDED_DATA} bytes of data at most"
            )
        if self.le is not None and not 1 <= self.le <= MAX_EXTENDED_LE:
            raise LocalProtocolError(f"Le is between 1 and {MAX_EXTENDED_LE}")
        if len(self.data) > MAX_SHORT_DATA or (self.le or 0) > MAX_SHORT_LE:
            object.__setattr__(self, "extended", True)
        if self.extended and not self.data and self.le is None:
            raise LocalProtocolError("a bare header has no extended form")

    @property
    def header(self) -> bytes:
        """CLA INS P1 P2."""
        return bytes((self.cla, self.ins, self.p1, self.p2))

    def __bytes__(self) -> bytes:
        if self.extended:
            lc = len(self.data).to_bytes(3, "big") if self.data else b""
            # Without data the 00 that announces the extended form stands before Le instead.
            le_bytes = 2 if self.data else 3
            le = b"" if self.le is None else (self.le % MAX_EXTENDED_LE).to_bytes(le_bytes, "big")
        else:
            lc = bytes((len(self.data),)) if self.data else b""
            le = b"" if self.le is None else bytes((self.le % MAX_SHORT_LE,))
        return self.header + lc + self.data + le

    @classmethod
    def parse_untrusted(cls, message: bytes) -> CommandApdu:
        """Read a command in any of the seven forms of ISO 7816-3, 12.1.3.

        Raises:
            RemoteProtocolError: the lengths do not add up.
        """
        if len(message) < HEADER_BYTES:
            raise RemoteProtocolError("a command APDU has at least 4 bytes")
        cla, ins, p1, p2 = message[:HEADER_BYTES]
        body = bytes(message[HEADER_BYTES:])
        if len(body) > 1 and body[0] == 0:
            data, le = _extended_body_untrusted(body)
            return cls(cla, ins, p1, p2, data, le, extended=True)
        data, le = _short_body_untrusted(body)
        return cls(cla, ins, p1, p2, data, le)

    def __repr__(self) -> str:
        return f"<CommandApdu {self.header.hex().upper()} Lc={len(self.data)} Le={self.le}>"


def _short_body_untrusted(body: bytes) -> tuple[bytes, int | None]:
    if not body:
        return b"", None
    if len(body) == 1:
        return b"", body[0] or MAX_SHORT_LE
    lc = body[0]
    data, rest = body[1 : 1 + lc], body[1 + lc :]
    if len(data) == lc and len(rest) <= 1:
        return data, (rest[0] or MAX_SHORT_LE) if rest else None
    raise RemoteProtocolError("Lc does not agree with the length of the command")


def _extended_body_untrusted(body: bytes) -> tuple[bytes, int | None]:
    first = int.from_bytes(body[1:3], "big")
    if len(body) == 3:
        return b"", first or MAX_EXTENDED_LE
    data, rest = body[3 : 3 + first], body[3 + first :]
    if first and len(data) == first and len(rest) in (0, 2):
        return data, (int.from_bytes(rest, "big") or MAX_EXTENDED_LE) if rest else None
    raise RemoteProtocolError("the extended Lc does not agree with the length of the command")


@dataclass(frozen=True)
class ResponseApdu:
    """A response: data, which the repr does not show, and the status word."""

    data: bytes = field(repr=False)
    sw: int

    def __post_init__(self) -> None:
        if not 0 <= self.sw <= 0xFFFF:
            raise LocalProtocolError("a status word has two bytes")

    @property
    def is_ok(self) -> bool:
        """Whether the status word is 9000."""
        return self.sw == SW.OK

    def __bytes__(self) -> bytes:
        return self.data + self.sw.to_bytes(2, "big")

    @classmethod
    def parse_untrusted(cls, message: bytes) -> ResponseApdu:
        """Read a response: data, then SW1 and SW2.

        Raises:
            RemoteProtocolError: no status word, or more data than any Le can ask for.
        """
        if not 2 <= len(message) <= MAX_EXTENDED_LE + 2:
            raise RemoteProtocolError("a response APDU has 2 to 65,538 bytes")
        return cls(bytes(message[:-2]), int.from_bytes(message[-2:], "big"))

    def __repr__(self) -> str:
        return f"<ResponseApdu {len(self.data)} bytes, {status_word_name(self.sw)}>"
