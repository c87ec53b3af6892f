"""The card's tables: algorithms, generations, keys and files. Everything in which cards differ is data here.

Card key ids and logical addresses are the specification's. Where it is not public which key guards a file of
an application, or under which id the DSK is kept, the row is this simulator's own reading and says so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from keyd.crypto.algorithms import Algorithm
from keyd.iso7816 import Aid


@dataclass(frozen=True)
class CardAlgorithm:
    """What an algorithm id of the card means."""

    id: int
    cipher: Algorithm
    # The STK is a single-length key under DES, and with it everything that secure messaging does.
    messaging_cipher: Algorithm
    # GET CHALLENGE's Le: a 16-byte session factor has no meaning for an 8-byte block.
    challenge_bytes: frozenset[int]
    # Lc of PIN RELOAD: one encrypted block and the MAC.
    pin_reload_bytes: int


ALGORITHMS: Final = {
    row.id: row
    for row in (
        CardAlgorithm(0x01, Algorithm.TDES, Algorithm.DES, frozenset({4, 8}), 0x0C),
        CardAlgorithm(0x02, Algorithm.SSF33, Algorithm.SSF33, frozenset({4, 8, 16}), 0x14),
        CardAlgorithm(0x03, Algorithm.SM4, Algorithm.SM4, frozenset({4, 8, 16}), 0x14),
    )
}


class Use(enum.Enum):
    """What a key of the card is for."""

    INTERNAL = "internal authentication"
    PERMISSION = "external authentication"
    MESSAGING = "secure messaging"


@dataclass(frozen=True)
class KeyRow:
    """One key of the card; `addresses` has a logical address for each version, from version 1."""

    application: Aid
    key_id: int
    name: str
    use: Use
    addresses: tuple[int, ...]


# Card key ids with the high bit are an application's own (ISO 7816-4, 10.3.1); the others are the DDF's.
LOCAL_KEY: Final = 0x80

IRK, STK_DDF, UKSSSE, BK, PUK, RKSSSE = 0x00, 0x02, 0x04, 0x05, 0x06, 0x0A
STK_ADF, LK = 0x82, 0x83

# Our reading: the specification's table of card key ids, as far as it is public, has none for the DSK.
DSK: Final = 0x87


def _sets(first: int) -> tuple[int, ...]:
    # Keys of three sets stand at three consecutive addresses.
    return (first, first + 1, first + 2)


_SSSE, _DF01, _DF02, _DF03, _DF04, _DF07 = (
    Aid.SSSE,
    Aid.DF01,
    Aid.DF02,
    Aid.DF03,
    Aid.DF04,
    Aid.DF07,
)

KEYS: Final = {
    (row.application, row.key_id): row
    for row in (
        KeyRow(_SSSE, IRK, "IRK", Use.INTERNAL, _sets(0x0170)),
        KeyRow(_SSSE, STK_DDF, "STKSSSE", Use.MESSAGING, (0x0173,)),
        KeyRow(_SSSE, UKSSSE, "UKSSSE", Use.PERMISSION, _sets(0x0094)),
        KeyRow(_SSSE, BK, "BK", Use.PERMISSION, (0x0091,)),
        KeyRow(_SSSE, PUK, "PUK", Use.PERMISSION, (0x0090,)),
        KeyRow(_SSSE, RKSSSE, "RKSSSE", Use.PERMISSION, _sets(0x004C)),
        KeyRow(_DF01, STK_ADF, "STKDF01", Use.MESSAGING, (0x0174,)),
        KeyRow(_DF01, 0x83, "UK1DF01", Use.PERMISSION, _sets(0x0097)),
        KeyRow(_DF01, 0x84, "UK2DF01", Use.PERMISSION, _sets(0x009A)),
        KeyRow(_DF01, 0x85, "UK3DF01", Use.PERMISSION, _sets(0x0176)),
        KeyRow(_DF01, 0x86, "UK4DF01", Use.PERMISSION, _sets(0x0179)),
        KeyRow(_DF01, 0x87, "UK5DF01", Use.PERMISSION, _sets(0x009D)),
        KeyRow(_DF02, STK_ADF, "STKDF02", Use.MESSAGING, (0x0185,)),
        KeyRow(_DF02, 0x83, "UK1DF02", Use.PERMISSION, _sets(0x0187)),
        KeyRow(_DF02, 0x84, "UK2DF02", Use.PERMISSION, _sets(0x00A0)),
        KeyRow(_DF02, 0x85, "UK3DF02", Use.PERMISSION, _sets(0x00A3)),
        KeyRow(_DF02, 0x86, "UK4DF02", Use.PERMISSION, _sets(0x018A)),
        KeyRow(_DF02, 0x87, "UK5DF02", Use.PERMISSION, _sets(0x018D)),
        KeyRow(_DF03, STK_ADF, "STKDF03", Use.MESSAGING, (0x0186,)),
        KeyRow(_DF03, LK, "LKDF03", Use.PERMISSION, (0x0092,)),
        KeyRow(_DF03, 0x84, "RK1DF03", Use.PERMISSION, _sets(0x0193)),
        KeyRow(_DF03, 0x85, "RK2DF03", Use.PERMISSION, _sets(0x0196)),
        KeyRow(_DF03, 0x86, "UK1DF03", Use.PERMISSION, _sets(0x00A6)),
        KeyRow(_DF03, 0x87, "UK2DF03", Use.PERMISSION, _sets(0x0190)),
        KeyRow(_DF03, 0x88, "UK3DF03", Use.PERMISSION, _sets(0x00A9)),
        KeyRow(_DF04, STK_ADF, "STKDF04", Use.MESSAGING, (0x0175,)),
        KeyRow(_DF04, LK, "LKDF04", Use.PERMISSION, (0x0093,)),
        KeyRow(_DF04, 0x84, "RK1DF04", Use.PERMISSION, _sets(0x0182)),
        KeyRow(_DF04, 0x85, "UK1DF04", Use.PERMISSION, _sets(0x00AC)),
        KeyRow(_DF04, 0x86, "UK2DF04", Use.PERMISSION, _sets(0x017C)),
        KeyRow(_DF04, DSK, "DSK", Use.PERMISSION, _sets(0x00AF)),
        KeyRow(_DF07, STK_ADF, "STKDF07", Use.MESSAGING, (0x0079,)),
    )
}

# The key that must have been proved before APPLICATION BLOCK. The other applications have no LK.
BLOCKING_KEYS: Final = {_DF03: LK, _DF04: LK}

# The medical keys go by a key index of their own, in DF04. Version 1 of each is the one in force.
DEBIT_KEYS: Final = {1: 0x017F, 2: 0x0199, 3: 0x019C}
LOAD_KEYS: Final = {1: 0x00B2}
TAC_KEY: Final = 0x00B5
MEDICAL_APPLICATION: Final = Aid.DF04
MEDICAL_KEY_VERSION: Final = 1

# 交易类型: the one byte that distinguishes transactions in MACs and in GET TRANSACTION PROOF.
DEBIT_TYPE: Final = 0x01
LOAD_TYPE: Final = 0x02

MESSAGING_ADDRESSES: Final = frozenset(
    address for row in KEYS.values() if row.use is Use.MESSAGING for address in row.addresses
)

# A guess at a key or a PIN costs a try; the specification leaves the number to the issuer.
KEY_TRIES: Final = 5
PIN_TRIES: Final = 6


class Structure(enum.Enum):
    """How a file is laid out."""

    RECORDS = "tag|len|value records"
    BINARY = "plain bytes"


class Messaging(enum.Enum):
    """What an update of a file must look like. Where the MAC is optional, stripping it is allowed too."""

    OPTIONAL = "plain, or with a MAC"
    MAC = "with a MAC"
    ENCRYPTED = "encrypted and with a MAC"


@dataclass(frozen=True)
class FileRow:
    """One elementary file. `read` is the key id that must have been proved first, None if reading is free."""

    application: Aid
    file_id: int
    structure: Structure
    read: int | None
    write: int
    messaging: Messaging = Messaging.OPTIONAL


@dataclass(frozen=True)
class Generation:
    """What a version of the card specification changes."""

    # EF05 tag 03.
    version: str
    # Who may read the holder's data in EF06.
    read_holder: int | None


GENERATIONS: Final = {
    "1.0": Generation("1.00", None),
    "2.0": Generation("2.00", None),
    "3.0": Generation("3.00", RKSSSE),
}


def file_rows(generation: Generation) -> dict[tuple[Aid, int], FileRow]:
    """Return the files of a card. The layout inside DF01 to DF04 is ours, for the sake of its rights."""
    records, binary = Structure.RECORDS, Structure.BINARY
    rows = (
        FileRow(_SSSE, 0xEF05, records, None, UKSSSE),
        FileRow(_SSSE, 0xEF06, records, generation.read_holder, UKSSSE),
        FileRow(_SSSE, 0xEF07, binary, RKSSSE, UKSSSE, Messaging.ENCRYPTED),
        FileRow(_SSSE, 0xEF08, binary, RKSSSE, UKSSSE),
        FileRow(_DF01, 0xEF05, binary, None, 0x83),
        FileRow(_DF01, 0xEF06, binary, None, 0x84),
        FileRow(_DF01, 0xEF07, binary, None, 0x85),
        FileRow(_DF01, 0xEF08, binary, None, 0x86),
        FileRow(_DF01, 0xEF09, binary, None, 0x87),
        FileRow(_DF02, 0xEF05, binary, None, 0x83),
        FileRow(_DF02, 0xEF06, binary, None, 0x84),
        FileRow(_DF02, 0xEF07, binary, None, 0x85),
        FileRow(_DF02, 0xEF08, binary, None, 0x86),
        FileRow(_DF02, 0xEF09, binary, None, 0x87),
        FileRow(_DF03, 0xEF05, binary, 0x84, 0x86, Messaging.MAC),
        FileRow(_DF03, 0xEF06, binary, 0x85, 0x87, Messaging.MAC),
        FileRow(_DF03, 0xEF07, binary, None, 0x88),
        FileRow(_DF04, 0xEF05, binary, 0x84, 0x85, Messaging.MAC),
        FileRow(_DF04, 0xEF06, binary, None, 0x86, Messaging.ENCRYPTED),
    )
    return {(row.application, row.file_id): row for row in rows}


def key_row(application: Aid | None, key_id: int) -> KeyRow | None:
    """Find a key by the id that a command gives in P2, from inside an application."""
    if application is None:
        return None
    return KEYS.get((application if key_id & LOCAL_KEY else Aid.SSSE, key_id))
