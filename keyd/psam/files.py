"""SELECT and READ BINARY: the environments, the application and the few files that a terminal reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW, Fci, Tlv
from keyd.iso7816.sw import WRONG_LE
from keyd.psam.profile import NUMBER_BYTES
from keyd.psam.state import Declined

if TYPE_CHECKING:
    from keyd.iso7816 import CommandApdu
    from keyd.psam.profile import FileRow
    from keyd.psam.state import Channel, Psam

BY_FILE_ID, BY_FILE_ID_UNDER_DF, BY_NAME = 0x00, 0x02, 0x04

# ISO 7816-4: the high bits of P1 make its low five a short file identifier.
SHORT_FILE_ID, SHORT_FILE_ID_BITS, SHORT_FILE_ID_MASK = 0x80, 0x1F, 0xE0

# ISO 7816-4, 8.2.1.1: an application template with the application's identifier.
APPLICATION_TEMPLATE, APPLICATION_ID = 0x61, 0x4F

# An Le of 00 asks for all there is.
ALL: Final = 256


def select(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """SELECT an environment, the application under the current one, or an elementary file of where it is."""
    if apdu.p1 == BY_NAME:
        return _select_name(psam, channel, apdu.data)
    if len(apdu.data) != 2:
        raise Declined(SW.WRONG_LENGTH)
    file_id = int.from_bytes(apdu.data, "big")
    if apdu.p1 == BY_FILE_ID:
        for environment in psam.profile.environments.values():
            if file_id == environment.file_id:
                return _select_name(psam, channel, environment.aid)
        if file_id == psam.profile.application_id:
            return _select_name(psam, channel, psam.profile.application_aid)
    _file(psam, channel, file_id)
    channel.file = file_id
    return b""


def _select_name(psam: Psam, channel: Channel, name: bytes) -> bytes:
    if name == psam.profile.application_aid:
        channel.enter(channel.environment, in_application=True)
        return bytes(Fci(name))
    for environment in psam.profile.environments.values():
        if name == environment.aid:
            channel.enter(environment, in_application=False)
            return bytes(Fci(name, algorithm_id=environment.algorithm))
    raise Declined(SW.FILE_NOT_FOUND)


def read_binary(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """READ BINARY of the current file from the offset P1 P2, or of the file whose short identifier is in P1."""
    if apdu.le is None:
        raise Declined(SW.WRONG_LENGTH)
    file_id, offset = channel.file, apdu.p1 << 8 | apdu.p2
    if apdu.p1 & SHORT_FILE_ID:
        if apdu.p1 & SHORT_FILE_ID_MASK != SHORT_FILE_ID:
            raise Declined(SW.WRONG_P1_P2)
        file_id, offset = apdu.p1 & SHORT_FILE_ID_BITS, apdu.p2
    if file_id is None:
        raise Declined(SW.NO_CURRENT_FILE)
    row = _file(psam, channel, file_id)
    channel.file = file_id
    rest = _content(psam, row)[offset:]
    if not rest:
        raise Declined(SW.WRONG_OFFSET)
    if apdu.le != ALL and apdu.le > len(rest):
        raise Declined(WRONG_LE | len(rest))
    return rest[: apdu.le]


def _file(psam: Psam, channel: Channel, file_id: int) -> FileRow:
    row = psam.profile.files.get(file_id)
    if row is None or (row.under == "application") is not channel.is_in_application:
        raise Declined(SW.FILE_NOT_FOUND)
    return row


def _content(psam: Psam, row: FileRow) -> bytes:
    identity = psam.identity
    if row.content == "directory":
        entry = bytes(Tlv(APPLICATION_ID, psam.profile.application_aid))
        return bytes(Tlv(APPLICATION_TEMPLATE, entry))
    if row.content == "number":
        return psam.counters.next_number.to_bytes(NUMBER_BYTES, "big")
    by_name = {
        "public": identity.public,
        "terminal": identity.terminal,
        "national": identity.national,
        "provincial": identity.provincial,
        "city": identity.city,
    }
    return by_name[row.content].ljust(row.bytes, b"\0")
