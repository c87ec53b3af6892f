"""The card: the table of its commands and the one path that every command takes through it.

Class and instruction, P1 and P2, length, state, right, MAC: checked in that order, so that a wrong command
is told the same thing here as by a chip. What a command does is in `files`, `security` and `medical`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, ResponseApdu
from keyd.iso7816.sw import WRONG_LE
from keyd.simulator import files, medical, security
from keyd.simulator.state import CardState, Declined, Session

Handler = Callable[[CardState, CommandApdu], bytes]

ANY: Final = range(0x100)

# The low bits of CLA: a logical channel, and the announcement of secure messaging.
CHANNEL_BITS: Final = 0x03
MESSAGING_BITS: Final = 0x0C


@dataclass(frozen=True)
class Command:
    """One command of the card and what its header may be.

    `answer_bytes` is set where the answer cannot be asked for twice: a wrong Le is then declined before
    anything has happened.
    """

    cla: int
    ins: int
    handler: Handler
    p1: Container[int]
    p2: Container[int]
    lc: Container[int]
    answer_bytes: int = 0
    completes_transaction: bool = False


COMMANDS: Final = {
    (row.cla, row.ins): row
    for row in (
        Command(0x00, 0xA4, files.select, {0x00, 0x02, 0x04}, {0x00}, range(1, 17)),
        Command(0x00, 0xB2, files.read_record, ANY, {0x00}, {0}),
        Command(0x00, 0xB0, files.read_binary, ANY, ANY, {0}),
        Command(0x00, 0xDC, files.update_record, ANY, {0x00}, range(1, 256)),
        Command(0x04, 0xDC, files.update_record, ANY, {0x00}, range(5, 256)),
        Command(0x00, 0xD6, files.update_binary, ANY, ANY, range(1, 256)),
        Command(0x04, 0xD6, files.update_binary, ANY, ANY, range(5, 256)),
        Command(0x00, 0x84, security.get_challenge, {0x00}, {0x00}, {0}),
        Command(0x00, 0x88, security.internal_authenticate, {0x00}, ANY, {16, 17}),
        Command(0x00, 0x82, security.external_authenticate, {0x00}, ANY, {16, 17}),
        Command(0x00, 0x20, security.verify_pin, {0x00}, {0x00}, range(2, 9)),
        Command(0x80, 0x5E, security.change_pin, {0x01}, {0x00}, range(5, 18)),
        Command(0x84, 0x24, security.restore_pin, {0x00}, {0x00, 0x01}, {0x04, 0x0C, 0x14}),
        Command(0x84, 0x1E, security.block_application, {0x00}, {0x01}, {4}),
        Command(0x84, 0x16, security.block_card, {0x00}, {0x00}, {4}),
        Command(0xB0, 0x28, medical.initialize, {0x00, 0x01}, {0x01}, {11, 19}),
        Command(
            0xB0, 0x2A, medical.credit_load, {0x00}, {0x00}, {11}, 4, completes_transaction=True
        ),
        Command(
            0xB0, 0x2C, medical.debit_purchase, {0x01}, {0x00}, {15}, 8, completes_transaction=True
        ),
        Command(0xB0, 0x26, medical.get_balance, {0x00}, {0x01, 0x02, 0x03}, {0}),
        Command(0xB0, 0x2E, medical.get_transaction_proof, {0x00}, {0x01, 0x02}, {2}),
        Command(0xB0, 0x56, medical.starting_day, {0x00, 0x01}, {0x00}, {0, 2}),
    )
}

CLASSES: Final = frozenset(cla for cla, _ in COMMANDS)
INSTRUCTIONS: Final = frozenset(ins for _, ins in COMMANDS)

# An application that is blocked for good still lets itself be left, and gives challenges.
OBEYED_WHEN_BLOCKED: Final[frozenset[Handler]] = frozenset({files.select, security.get_challenge})


class SimulatedCard:
    """A social security card that answers commands as bytes. Make one with `issue_card`."""

    def __init__(self, state: CardState) -> None:
        # Public, as a test bench's card is: an integrator may want to look behind the interface.
        self.state = state

    @property
    def atr(self) -> bytes:
        """The answer to reset: 17 bytes."""
        return self.state.atr.raw

    def reset(self) -> bytes:
        """Power the card off and on again. Files, counters, tries and blocks stay; rights do not."""
        self.state.session = Session()
        return self.atr

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU with data and status word, whatever the bytes."""
        try:
            data = self._answer(command)
        except Declined as no:
            return bytes(ResponseApdu(b"", no.sw))
        return bytes(ResponseApdu(data, SW.OK))

    def _answer(self, message: bytes) -> bytes:
        card = self.state
        if card.is_blocked:
            raise Declined(SW.FUNCTION_NOT_SUPPORTED)
        transaction, card.session.transaction = card.session.transaction, None
        apdu = _parsed(message)
        command = _command(apdu)
        if command.completes_transaction:
            card.session.transaction = transaction
        if card.session.application in card.blocked and command.handler not in OBEYED_WHEN_BLOCKED:
            raise Declined(SW.APPLICATION_BLOCKED_FOR_GOOD)
        if apdu.p1 not in command.p1 or apdu.p2 not in command.p2:
            raise Declined(SW.WRONG_P1_P2)
        if apdu.extended or len(apdu.data) not in command.lc:
            raise Declined(SW.WRONG_LENGTH)
        if apdu.le is not None and apdu.le < command.answer_bytes:
            raise Declined(WRONG_LE | command.answer_bytes)
        data = command.handler(card, apdu)
        if apdu.le is not None and apdu.le < len(data):
            raise Declined(WRONG_LE | len(data))
        return data


def _parsed(message: bytes) -> CommandApdu:
    try:
        return CommandApdu.parse_untrusted(message)
    except RemoteProtocolError:
        raise Declined(SW.WRONG_LENGTH) from None


def _command(apdu: CommandApdu) -> Command:
    cla, ins = apdu.cla, apdu.ins
    command = COMMANDS.get((cla, ins))
    if command is not None:
        return command
    if (cla & ~CHANNEL_BITS, ins) in COMMANDS:
        raise Declined(SW.LOGICAL_CHANNEL_NOT_SUPPORTED)
    if (cla & ~MESSAGING_BITS, ins) in COMMANDS:
        raise Declined(SW.SECURE_MESSAGING_NOT_SUPPORTED)
    if cla in CLASSES and ins not in INSTRUCTIONS:
        raise Declined(SW.INS_NOT_SUPPORTED)
    raise Declined(SW.CLA_NOT_SUPPORTED)
