"""A PSAM that keyd plays, in the store: a row that officers change, and counters that purchases change.

The row is tagged under LOCAL's wrapping key as all rows are, and holds a key that is this PSAM's alone. Its counters
are sealed under that key, so a new seal moves the row and leaves counters where they are, and whoever counts at that
moment is not disturbed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.custody.bodies import StoreAltered, decode, encode
from keyd.keys.block import NONCE_BYTES, Domain
from keyd.psam.counters import MAX_NUMBER, PsamRecord
from keyd.registry.psam import KeptPsam
from keyd.store.rows import CounterRow, Kind, Row

if TYPE_CHECKING:
    from collections.abc import Callable

# What a backup does not know is what was bought after it was made. So many numbers are skipped then: no PSAM makes
# 16 million purchases between two backups, and 255 restores are left to it.
RESTORED_NUMBERS: Final = 1 << 24

_ROW_LABEL: Final = b"keyd PSAM row 1\n"
_COUNTERS_LABEL: Final = b"keyd PSAM counters 1\n"


class HeldPsam(Struct, frozen=True):
    """A PSAM of the store, and the key that its counters are sealed under."""

    kept: KeptPsam
    key: SecretKey

    def __repr__(self) -> str:
        return f"<HeldPsam {self.kept.number} {self.kept.state}>"


def psam_row(lmk: SecretKey, held: HeldPsam, random_bytes: Callable[[int], bytes]) -> Row:
    """Make a PSAM's row: its counters' key is wrapped, and bound to what its body says.

    Raises:
        ValueError: the body has a field beyond its limits.
    """
    kept = held.kept
    body = encode(kept)
    # A struct checks nothing when it is made, and one row that cannot be read again is a lost store.
    try:
        is_readable = encode(msgspec.msgpack.decode(body, type=KeptPsam)) == body
    except (msgspec.MsgspecError, ValueError):
        is_readable = False
    if not is_readable:
        raise ValueError("a row of psam has a field beyond its limits")
    nonce = random_bytes(NONCE_BYTES)
    wrapped = lmk.wrap(held.key, nonce, _ROW_LABEL + body)
    return Row(Kind.PSAM, kept.spec.number, Domain.LOCAL.value, kept.revision, body, nonce, wrapped)


def open_psam_row(lmk: SecretKey, row: Row) -> HeldPsam:
    """Open a PSAM's row.

    Raises:
        StoreAltered: one bit of it is not as it was written.
    """
    try:
        key = lmk.unwrap(row.sealed, row.nonce, _ROW_LABEL + row.body, Algorithm.SM4)
    except (KeyNotAuthentic, ValueError):
        raise StoreAltered("a row of psam was altered, or is another store's") from None
    kept = decode(row, KeptPsam)
    if kept.revision != row.revision or kept.spec.number != row.id:
        raise StoreAltered("a PSAM is not what its row says")
    return HeldPsam(kept, key)


def seal_counters(
    key: SecretKey,
    psam: bytes,
    revision: int,
    record: PsamRecord,
    random_bytes: Callable[[int], bytes],
) -> CounterRow:
    """Make the counters of a PSAM, 6 bytes of 终端机编号, in one revision."""
    nonce = random_bytes(NONCE_BYTES)
    return CounterRow(
        psam, revision, nonce, key.seal(encode(record), nonce, _bound(psam, revision))
    )


def open_counters(key: SecretKey, row: CounterRow) -> PsamRecord:
    """Open the counters of a PSAM. Restored ones skip what may have been given since the backup.

    Raises:
        StoreAltered: one bit of them is not as it was written, or they are another PSAM's.
    """
    try:
        opened = key.open(row.sealed, row.nonce, _bound(row.psam, row.revision))
        record = msgspec.msgpack.decode(opened, type=PsamRecord)
    except (KeyNotAuthentic, msgspec.MsgspecError, ValueError):
        raise StoreAltered(f"the counters of PSAM {row.psam.hex()} were altered") from None
    number = min(record.number + row.restored * RESTORED_NUMBERS, MAX_NUMBER)
    return msgspec.structs.replace(record, number=number)


def _bound(psam: bytes, revision: int) -> bytes:
    return _COUNTERS_LABEL + msgspec.msgpack.encode((psam, revision))
