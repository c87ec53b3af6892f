"""The fields that messages are made of: type, length and what a log may say of each.

A field that does not say otherwise is hidden. `show` marks what may stand in a log line as it is, and
`mask` what may stand there shortened, so that a new field is silent until somebody has thought about it.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Generic, TypeVar

from msgspec import Meta, Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.protocol.redaction import describe

SHOW: Final = {"log": "show"}
MASK: Final = {"log": "mask"}
HIDE: Final = {"log": "hide"}

ResponseT_co = TypeVar("ResponseT_co", bound="Response", covariant=True)


class Message(Struct, array_like=True, frozen=True):
    """Anything that crosses the wire. Its repr says no more than a log may."""

    def __repr__(self) -> str:
        fields = "".join(f" {name}={value}" for name, value in describe(self).items())
        return f"<{type(self).__name__}{fields}>"


class Response(Message, frozen=True):
    """What a command answers. A client tolerates fields that a newer keyd has appended."""


class Request(Message, Generic[ResponseT_co], frozen=True, forbid_unknown_fields=True):
    """What a command is asked with; the parameter names the response type.

    Fields are positional on the wire: they are only ever appended, and with defaults. keyd refuses fields
    that it does not know, because ignoring one could ignore a restriction that a newer client relies on.
    """


class Generation(enum.IntEnum):
    """The card specification version (EF05, tag 03): 1.0x, 2.0x or 3.0x."""

    FIRST = 1
    SECOND = 2
    THIRD = 3


# Fixed-length blocks.
Block = Annotated[bytes, Meta(min_length=8, max_length=8, extra=HIDE, description="8 bytes")]
Cryptogram = Annotated[
    bytes, Meta(min_length=8, max_length=8, extra=HIDE, description="鉴别数据, 8 bytes")
]
Mac = Annotated[bytes, Meta(min_length=4, max_length=4, extra=HIDE, description="4 bytes")]
Tac = Annotated[bytes, Meta(min_length=4, max_length=4, extra=HIDE, description="4 bytes")]
Reply = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra=HIDE, description="鉴别数据 8 ‖ 原信息 8")
]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32, extra=HIDE, description="32 bytes")]

SessionFactor = Annotated[
    bytes,
    Meta(
        min_length=4,
        max_length=16,
        extra=HIDE,
        description="过程因子: the card's challenge, 4 or 8 bytes (16 as well with a 16-byte block)",
    ),
]

# The card.
CardId = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra=MASK, description="卡识别码, 16 bytes")
]
Historical = Annotated[
    bytes,
    Meta(
        min_length=13,
        max_length=17,
        extra=HIDE,
        description="卡复位信息: the 13 historical bytes, or the full ATR of 17",
    ),
]
Address = Annotated[
    int, Meta(ge=0, le=0xFFFF, extra=SHOW, description="logical key address, e.g. 0x0170")
]
Header = Annotated[
    bytes, Meta(min_length=4, max_length=4, extra=SHOW, description="CLA INS P1 P2, 4 bytes")
]
Plaintext = Annotated[
    bytes, Meta(max_length=251, extra=HIDE, description="the command's data, at most 251 bytes")
]
Pin = Annotated[
    # \Z, not $: in Python, $ also matches before a trailing newline.
    str, Meta(pattern=r"\A[0-9]{4,16}\Z", extra=HIDE, description="4 to 16 decimal digits")
]
Apdu = Annotated[bytes, Meta(extra=HIDE, description="a command APDU, ready to send")]

# Medical transactions.
Amount = Annotated[
    int, Meta(ge=0, le=0xFFFF_FFFF, extra=HIDE, description="amount in 分 (0.01 元)")
]
TransactionType = Annotated[int, Meta(ge=0, le=0xFF, extra=SHOW, description="交易类型, one byte")]
Number2 = Annotated[bytes, Meta(min_length=2, max_length=2, extra=HIDE, description="2 bytes")]
Number4 = Annotated[bytes, Meta(min_length=4, max_length=4, extra=HIDE, description="4 bytes")]
PsamTerminal = Annotated[
    bytes,
    Meta(min_length=6, max_length=6, extra=SHOW, description="终端机编号, cn6: 6 bytes of BCD"),
]
Time = Annotated[
    bytes,
    Meta(min_length=7, max_length=7, extra=SHOW, description="YYYYMMDDhhmmss as 7 bytes of BCD"),
]

# The terminal.
TerminalCode = Annotated[
    str,
    Meta(
        pattern=r"\A[0-9A-Za-z._-]{1,32}\Z",
        extra=SHOW,
        description="terminal code, 1 to 32 of A-Z a-z 0-9 . _ -",
    ),
]
TerminalChallenge = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra=HIDE, description="16 random bytes")
]
TerminalProof = Annotated[
    bytes, Meta(min_length=8, max_length=8, extra=HIDE, description="the proof of a side, 8 bytes")
]
Signature = Annotated[
    bytes, Meta(min_length=64, max_length=64, extra=HIDE, description="SM2 signature r‖s, 64 bytes")
]
UnixTime = Annotated[
    int, Meta(ge=0, le=2**53, extra=SHOW, description="the signer's time, seconds since 1970")
]
CertificateChain = Annotated[
    bytes,
    Meta(
        max_length=16384,
        extra=HIDE,
        description="certificates in PEM, or DER one after the other; at most 16384 bytes",
    ),
]
LibraryText = Annotated[
    str,
    Meta(
        max_length=512,
        extra=HIDE,
        description="the terminal library's string, fields ended by |, hex in upper case",
    ),
]


class CardIdentity(Message, frozen=True, forbid_unknown_fields=True):
    """The card that a command is about."""

    card_id: CardId
    historical: Historical
    algorithm: Annotated[
        CardAlgorithm, Meta(extra=SHOW, description="1 DES/3DES, 2 SSF33, 3 SM4")
    ] = CardAlgorithm.SM4
    generation: Annotated[
        Generation, Meta(extra=SHOW, description="card specification: 1, 2 or 3")
    ] = Generation.THIRD
    key_version: Annotated[
        int,
        Meta(
            ge=0,
            le=0xFFFF,
            extra=SHOW,
            description="version of the master keys that the card was made with; 0: the current one",
        ),
    ] = 0


Card = Annotated[CardIdentity, Meta(extra=SHOW, description="the card")]
Warnings = Annotated[
    tuple[str, ...],
    Meta(extra=SHOW, description="what keyd noticed and let pass: REGION_MISMATCH"),
]
