"""SELECT, and reading and updating files: READ/UPDATE RECORD by tag, READ/UPDATE BINARY by offset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, Aid, CommandApdu, Fci, Record
from keyd.iso7816.sw import WRONG_LE
from keyd.simulator.profile import Messaging, Structure
from keyd.simulator.state import CardState, Declined, ElementaryFile

if TYPE_CHECKING:
    from keyd.simulator.profile import FileRow

BY_FILE_ID, BY_FILE_ID_UNDER_DF, BY_NAME = 0x00, 0x02, 0x04

MASTER_FILE: Final = 0x3F00

# The short file identifier of the DDF's directory.
DIRECTORY_SFI: Final = 0x1E

# The bank's environment is a sibling behind a firewall, and the PSAM's application is no card's.
APPLICATIONS: Final = frozenset(Aid) - {Aid.PSE, Aid.PSAM_DF01}

# The bits of CLA that announce secure messaging.
SECURE_MESSAGING: Final = 0x04


def select(card: CardState, apdu: CommandApdu) -> bytes:
    """SELECT the DDF or an application by AID, an elementary file by its id under the current one."""
    if apdu.p1 == BY_NAME:
        return _select_application(card, apdu.data)
    if len(apdu.data) != 2:
        raise Declined(SW.WRONG_LENGTH)
    file_id = int.from_bytes(apdu.data, "big")
    if apdu.p1 == BY_FILE_ID and file_id == MASTER_FILE:
        card.enter(None)
        return b""
    application = card.session.application
    file = card.files.get((application, file_id)) if application else None
    if file is None:
        raise Declined(SW.FILE_NOT_FOUND)
    card.session.file = file
    return b""


def _select_application(card: CardState, name: bytes) -> bytes:
    application = next((aid for aid in APPLICATIONS if aid == name), None)
    if application is None:
        raise Declined(SW.FILE_NOT_FOUND)
    if application in card.blocked:
        raise Declined(SW.APPLICATION_BLOCKED_FOR_GOOD)
    card.enter(application)
    if application is Aid.SSSE:
        return bytes(Fci(name, DIRECTORY_SFI, card.fci_algorithm_id))
    return bytes(Fci(name))


def read_record(card: CardState, apdu: CommandApdu) -> bytes:
    """READ RECORD: the record whose tag is P1, as tag|len|value."""
    file = _current(card, Structure.RECORDS)
    card.require_right(file.row.read)
    if apdu.p1 not in file.records:
        raise Declined(SW.RECORD_NOT_FOUND)
    return bytes(Record(apdu.p1, file.records[apdu.p1]))


def read_binary(card: CardState, apdu: CommandApdu) -> bytes:
    """READ BINARY from the offset P1 P2."""
    file = _current(card, Structure.BINARY)
    card.require_right(file.row.read)
    offset = _offset(apdu)
    if offset >= len(file.binary):
        raise Declined(SW.WRONG_OFFSET)
    if apdu.le == 256:
        return file.binary[offset : offset + 256]
    rest = file.binary[offset:]
    if apdu.le is not None and apdu.le > len(rest):
        raise Declined(WRONG_LE | len(rest))
    return rest[: apdu.le]


def update_record(card: CardState, apdu: CommandApdu) -> bytes:
    """UPDATE RECORD: the whole of tag|len|value again. A record never changes its length."""
    file = _current(card, Structure.RECORDS)
    payload = _opened(card, file.row, apdu)
    if apdu.p1 not in file.records:
        raise Declined(SW.RECORD_NOT_FOUND)
    try:
        record = Record.parse_untrusted(payload)
    except RemoteProtocolError:
        raise Declined(SW.WRONG_DATA) from None
    if record.tag != apdu.p1 or len(record.value) != len(file.records[apdu.p1]):
        raise Declined(SW.WRONG_DATA)
    file.records[apdu.p1] = record.value
    return b""


def update_binary(card: CardState, apdu: CommandApdu) -> bytes:
    """UPDATE BINARY from the offset P1 P2, within the size that the file was made with."""
    file = _current(card, Structure.BINARY)
    payload = _opened(card, file.row, apdu)
    offset = _offset(apdu)
    if offset >= len(file.binary):
        raise Declined(SW.WRONG_OFFSET)
    end = offset + len(payload)
    if end > len(file.binary):
        raise Declined(SW.NOT_ENOUGH_MEMORY)
    file.binary = file.binary[:offset] + payload + file.binary[end:]
    return b""


def _current(card: CardState, structure: Structure) -> ElementaryFile:
    file = card.session.file
    if file is None:
        raise Declined(SW.NO_CURRENT_FILE)
    if file.row.structure is not structure:
        raise Declined(SW.FILE_STRUCTURE_INCOMPATIBLE)
    return file


def _opened(card: CardState, row: FileRow, apdu: CommandApdu) -> bytes:
    """Return the payload of an update that the card may carry out: right, MAC and encryption in order."""
    card.require_right(row.write)
    if not apdu.cla & SECURE_MESSAGING:
        if row.messaging is not Messaging.OPTIONAL:
            raise Declined(SW.SECURE_MESSAGING_MISSING)
        return apdu.data
    payload, session = card.open_message(apdu, card.messaging_key)
    if row.messaging is Messaging.ENCRYPTED:
        payload = card.decrypt(session, payload)
    if not payload:
        raise Declined(SW.WRONG_LENGTH)
    return payload


def _offset(apdu: CommandApdu) -> int:
    # The high bit of P1 would make it a short file identifier; the card's files have none.
    if apdu.p1 & 0x80:
        raise Declined(SW.FILE_NOT_FOUND)
    return apdu.p1 << 8 | apdu.p2
