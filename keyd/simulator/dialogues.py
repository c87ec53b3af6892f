"""The terminal's conversations with a card, as scripts: a command or a few, with no back end in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import Aid, CommandApdu, Dialogue, Fci, Record, transmit
from keyd.simulator import fields
from keyd.simulator.fields import decode_field_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

CHALLENGE_BYTES: Final = 8

# A card from before the FCI named its algorithm: Beijing's (11) used SSF33 and everybody else DES.
BEIJING: Final = "11"
DES_ID, SSF33_ID = 0x01, 0x02

EF05: Final = 0xEF05


class OpenedCard(NamedTuple):
    """What a terminal knows of a card after selecting its environment and reading two free fields."""

    region: str
    algorithm: int
    identifier: str
    generation: str


def open_card() -> Dialogue[OpenedCard]:
    """Select the environment and read from EF05 what kind of card this is."""
    fci = Fci.parse_untrusted((yield from select(Aid.SSSE)))
    yield from select_file(EF05)
    identifier, version = yield from read_fields([fields.IDENTIFIER, fields.VERSION])
    region = identifier[:6]
    algorithm = fci.algorithm_id
    if algorithm is None:
        algorithm = SSF33_ID if region.startswith(BEIJING) else DES_ID
    # A blank version is a 1.0 card.
    return OpenedCard(region, algorithm, identifier, version[:3].strip() or "1.0")


def select(application: Aid) -> Dialogue[bytes]:
    """SELECT an application; returns its FCI."""
    return (yield from transmit(CommandApdu(0x00, 0xA4, 0x04, 0x00, bytes(application))))


def select_file(file_id: int) -> Dialogue[bytes]:
    """SELECT an elementary file of the current application."""
    return (yield from transmit(CommandApdu(0x00, 0xA4, 0x02, 0x00, file_id.to_bytes(2, "big"))))


def read_fields(tags: Sequence[int]) -> Dialogue[list[str]]:
    """READ RECORD for each tag of the current file."""
    values = []
    for tag in tags:
        data = yield from transmit(CommandApdu(0x00, 0xB2, tag, 0x00, le=256))
        record = Record.parse_untrusted(data)
        if record.tag != tag:
            raise RemoteProtocolError(f"the card gave record {record.tag:02X} for {tag:02X}")
        values.append(decode_field_untrusted(tag, record.value))
    return values


def read_binary() -> Dialogue[bytes]:
    """READ BINARY of the current file, as much as one answer holds."""
    return (yield from transmit(CommandApdu(0x00, 0xB0, 0x00, 0x00, le=256)))


def update_record(tag: int, value: bytes) -> Dialogue[bytes]:
    """UPDATE RECORD in the current file, plainly."""
    return (yield from transmit(CommandApdu(0x00, 0xDC, tag, 0x00, bytes(Record(tag, value)))))


def update_binary(data: bytes) -> Dialogue[bytes]:
    """UPDATE BINARY from the beginning of the current file, plainly."""
    return (yield from transmit(CommandApdu(0x00, 0xD6, 0x00, 0x00, data)))


def get_challenge() -> Dialogue[bytes]:
    """GET CHALLENGE: 8 bytes."""
    challenge = yield from transmit(CommandApdu(0x00, 0x84, 0x00, 0x00, le=CHALLENGE_BYTES))
    if len(challenge) != CHALLENGE_BYTES:
        raise RemoteProtocolError("the card gave a challenge of another length")
    return challenge


def get_two_challenges() -> Dialogue[tuple[bytes, bytes]]:
    """Draw 过程因子 and 原信息 for external authentication, returned in that order.

    The card answers for its *last* challenge only, so the one drawn second is the session factor.
    """
    challenge = yield from get_challenge()
    session_factor = yield from get_challenge()
    return session_factor, challenge


def internal_authenticate(session_factor: bytes, challenge: bytes) -> Dialogue[bytes]:
    """INTERNAL AUTHENTICATE under the IRK: the card's cryptogram, 8 bytes."""
    return (
        yield from transmit(CommandApdu(0x00, 0x88, 0x00, 0x00, session_factor + challenge, le=8))
    )


def external_authenticate(key_id: int, proof: bytes) -> Dialogue[bytes]:
    """EXTERNAL AUTHENTICATE with 鉴别数据 ‖ 原信息."""
    return (yield from transmit(CommandApdu(0x00, 0x82, 0x00, key_id, proof)))
