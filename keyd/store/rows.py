"""What the store holds, as values: rows, changes to rows, a snapshot of all of them, anchors of the journal.

A row is ciphertext or authenticated by the layer above, which alone knows what `body` says and under which key
`sealed` is wrapped. This module refuses to know that, and where and how rows are kept; it knows only how large
they may be.
"""

from __future__ import annotations

import enum
from typing import Final

from msgspec import Struct

# A digest of 32 bytes or a name of a key with its domain, address, algorithm and version fits twice.
MAX_ID_BYTES: Final = 64

# The domains have short names; a column that is indexed stays short.
MAX_DOMAIN_CHARACTERS: Final = 32

# As large as the largest message (keyd.protocol.connection.MAX_MESSAGE): whatever could be proposed can be kept.
MAX_BODY_BYTES: Final = 64 * 1024

# A wrapped key and its tag are under 100 bytes; this leaves room for an SM2 key or for several shares.
MAX_SEALED_BYTES: Final = 4 * 1024

# The nonce of the AEAD that the layer above wraps with.
NONCE_BYTES: Final = 12

# What both databases can count to in one column.
MAX_NUMBER: Final = 2**63 - 1

# Under a new LMK everything is wrapped anew, in one commit: 310 roots in three versions, a province's terminals, and
# room to grow.
MAX_CHANGES: Final = 64 * 1024

# One journal record speaks of one command, whose message was at most as long.
MAX_RECORD_BYTES: Final = 64 * 1024

# A commit answers one command, or the few of one tick; more records than this are a loop gone wrong.
MAX_RECORDS: Final = 1024

# A host name of the longest kind (64 on Linux).
MAX_INSTANCE_CHARACTERS: Final = 64

# An IPv6 address with its zone.
MAX_SOURCE_CHARACTERS: Final = 64

# An SM3 digest.
LINK_BYTES: Final = 32


class Kind(enum.StrEnum):
    """What a row is about. Each kind has a table of its own; its name is part of the schema."""

    SEAL = "seal"
    LMK = "lmk"
    KEY = "key"
    OFFICER = "officer"
    PROPOSAL = "proposal"
    IDENTITY = "identity"
    TERMINAL = "terminal"
    AUTHORITY = "authority"
    PSAM = "psam"


class Row(Struct, frozen=True):
    """One thing that is kept, in one revision. Its repr says which, and nothing of what is in it.

    `id` has 1 to 64 bytes, `domain` at most 32 printable ASCII characters, `body` at most 64 KiB, `nonce` 12 bytes,
    `sealed` at most 4 KiB.

    Raises:
        ValueError: it is larger than a row may be, or otherwise not what a row is.
    """

    kind: Kind
    id: bytes
    domain: str
    revision: int
    body: bytes
    nonce: bytes
    sealed: bytes

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_number("revision", self.revision, 1)
        _check_name("domain", self.domain, 0, MAX_DOMAIN_CHARACTERS)
        _check_length("body", self.body, 0, MAX_BODY_BYTES)
        _check_length("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)
        _check_length("sealed", self.sealed, 0, MAX_SEALED_BYTES)

    def __repr__(self) -> str:
        return f"<Row {self.kind} {self.id.hex()} revision {self.revision}>"


class Put(Struct, frozen=True):
    """Insert a row of revision 1, or let a row of revision n replace exactly revision n - 1."""

    row: Row


class Drop(Struct, frozen=True):
    """Delete exactly this revision of a row."""

    kind: Kind
    id: bytes
    revision: int

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_number("revision", self.revision, 1)


class CounterRow(Struct, frozen=True):
    """What a PSAM that keyd plays has to remember, in one revision; `psam` is the id of its row.

    It changes with every few purchases, which is nothing that any other keyd would have to load everything for: its
    changes do not count. `restored` says how often it came out of a backup since it was written.
    """

    psam: bytes
    revision: int
    nonce: bytes
    sealed: bytes
    restored: int = 0

    def __post_init__(self) -> None:
        _check_id(self.psam)
        _check_number("revision", self.revision, 1)
        _check_length("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)
        _check_length("sealed", self.sealed, 0, MAX_SEALED_BYTES)
        _check_number("restored", self.restored, 0)

    def __repr__(self) -> str:
        return f"<CounterRow {self.psam.hex()} revision {self.revision}>"


class Begin(Struct, frozen=True):
    """Insert the first counters of a PSAM: nobody may have any."""

    row: CounterRow


Change = Put | Drop | Begin


class Snapshot(Struct, frozen=True):
    """All rows at one moment, by kind and then by id, and the number of the last change before it.

    `counters` are those of PSAMs at that moment, if they were asked for: a backup needs them.
    """

    number: int
    rows: tuple[Row, ...]
    counters: tuple[CounterRow, ...] = ()

    def __post_init__(self) -> None:
        _check_number("number", self.number, 0)

    def __repr__(self) -> str:
        return f"<Snapshot {self.number} of {len(self.rows)} rows>"


class Anchor(Struct, frozen=True):
    """How far an instance's journal was at `made_ns`: this link stands at this sequence of this segment."""

    instance: str
    segment: int
    sequence: int
    link: bytes
    made_ns: int

    def __post_init__(self) -> None:
        check_instance(self.instance)
        _check_number("segment", self.segment, 0)
        _check_number("sequence", self.sequence, 0)
        _check_number("made_ns", self.made_ns, 0)
        _check_length("link", self.link, LINK_BYTES, LINK_BYTES)


class Activity(Struct, frozen=True):
    """What was seen of one terminal: when last (Unix seconds) and from where, and how often it proved itself or not.

    Counts, and nothing that anybody relies on.
    """

    code: str
    last_seen: int
    last_source: str
    authentications: int
    failures: int


def check_instance(instance: str) -> None:
    """Check the name of an instance: 1 to 64 printable ASCII characters.

    Raises:
        ValueError: it is none.
    """
    _check_name("instance", instance, 1, MAX_INSTANCE_CHARACTERS)


def _check_id(value: bytes) -> None:
    _check_length("id", value, 1, MAX_ID_BYTES)


def _check_length(name: str, value: bytes, least: int, most: int) -> None:
    if not least <= len(value) <= most:
        raise ValueError(f"{name} has {len(value)} bytes, not {least} to {most}")


def _check_number(name: str, value: int, least: int) -> None:
    if not least <= value <= MAX_NUMBER:
        raise ValueError(f"{name} is not within {least} and 2^63 - 1")


def _check_name(name: str, value: str, least: int, most: int) -> None:
    # PostgreSQL keeps no NUL in a text, and nobody should have to tell two look-alikes apart.
    if not (least <= len(value) <= most and value.isascii() and (value.isprintable() or not value)):
        raise ValueError(f"{name} does not have {least} to {most} printable ASCII characters")
