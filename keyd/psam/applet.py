"""The applet: the table of a PSAM's commands and the one path that every command takes through it.

Class and instruction, logical channel, P1 and P2, length, then the command itself: checked in that order. What a
command does is in `files`, `environment`, `session_keys`, `transactions` and `key_loading`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, ResponseApdu
from keyd.iso7816.sw import MORE_DATA, WRONG_LE
from keyd.psam import environment, files, key_loading, session_keys, transactions
from keyd.psam.state import Channel, Declined, Psam

if TYPE_CHECKING:
    from keyd.psam.profile import PsamProfile

Handler = Callable[[Psam, Channel, CommandApdu], bytes]

ANY: Final = range(0x100)

# The low bits of CLA that say the logical channel. Of the classes that have them set, BF for instance, channel n is
# the class with those bits turned over: our reading, since nobody says how a PSAM with channels names them.
CHANNELS: Final = range(4)

# The bits of CLA that announce secure messaging.
MESSAGING_BITS: Final = 0x0C

# P1 of MANAGE CHANNEL.
OPEN_CHANNEL, CLOSE_CHANNEL = 0x00, 0x80

# An Le of 00 asks for all there is.
ALL: Final = 256


@dataclass(frozen=True)
class Command:
    """One command and what its header and the length of its data may be.

    Only MANAGE CHANNEL has no handler: what it concerns is more than its own channel, and so the applet's. A command
    that `keeps_transaction` may come between INIT SAM FOR PURCHASE and CREDIT SAM, or be the latter.
    """

    handler: Handler | None
    p1: Container[int]
    p2: Container[int]
    lc: Container[int]
    keeps_transaction: bool = False


# What may wait for the memory: INIT SAM FOR PURCHASE, CREDIT SAM, EXTERNAL AUTHENTICATE, CREATE and CHANGE KEY.
_REMEMBERED: Final = frozenset({0x70, 0x72, 0x82, 0xD4})


def may_wait(command: bytes) -> bool:
    """Whether `Applet.transmit` may wait for the PSAM's memory with this command: a disk, or a database."""
    return len(command) > 1 and command[1] in _REMEMBERED


class Applet:
    """A PSAM that answers commands as bytes. One at a time: it is its caller's to see to that.

    Several may share a `Psam`; what is selected and begun is each one's own. Nothing that an applet refers to refers to
    it: keys are wiped as the last reference goes, not when Python looks for cycles.
    """

    def __init__(self, psam: Psam) -> None:
        self._psam = psam
        self._commands = _commands(psam.profile)
        self._instructions = frozenset(ins for _, ins in self._commands)
        self._channels = {0: psam.new_channel()}

    @property
    def atr(self) -> bytes:
        """The answer to reset."""
        return self._psam.profile.atr

    @property
    def next_number(self) -> int:
        """The terminal transaction number that the next purchase gets."""
        return self._psam.counters.next_number

    def reset(self) -> bytes:
        """Power the PSAM off and on again. Keys of its own and counters stay; everything that was begun does not."""
        self._channels = {0: self._psam.new_channel()}
        return self.atr

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU with data and status word, whatever the bytes.

        An answer that no Le asks for waits for GET RESPONSE, and so does what is longer than Le.
        """
        try:
            return bytes(self._answer(command))
        except Declined as no:
            return bytes(ResponseApdu(b"", no.sw))

    def _answer(self, message: bytes) -> ResponseApdu:
        try:
            apdu = CommandApdu.parse_untrusted(message)
        except RemoteProtocolError:
            raise Declined(SW.WRONG_LENGTH) from None
        command, channel = self._find(apdu)
        if not command.keeps_transaction:
            channel.transaction = None
        if command.handler is session_keys.deliver:
            # A delivery that is refused for its form must not leave the key before it, either.
            channel.working = None
        waiting, channel.waiting = channel.waiting, b""
        if apdu.p1 not in command.p1 or apdu.p2 not in command.p2:
            raise Declined(SW.WRONG_P1_P2)
        if apdu.extended or len(apdu.data) not in command.lc:
            raise Declined(SW.WRONG_LENGTH)
        if command.handler is _get_response:
            channel.waiting = waiting
        do = command.handler
        data = do(self._psam, channel, apdu) if do else self._manage_channel(apdu)
        le = apdu.le or 0
        if len(data) > le:
            channel.waiting = data[le:]
        if channel.waiting:
            return ResponseApdu(data[:le], MORE_DATA | len(channel.waiting))
        return ResponseApdu(data, SW.OK)

    def _find(self, apdu: CommandApdu) -> tuple[Command, Channel]:
        for number in CHANNELS:
            command = self._commands.get((apdu.cla ^ number, apdu.ins))
            if command is None:
                continue
            channel = self._channels.get(number)
            if channel is None:
                raise Declined(SW.LOGICAL_CHANNEL_NOT_SUPPORTED)
            return command, channel
        classes = {cla ^ number for cla, _ in self._commands for number in CHANNELS}
        if any((apdu.cla & ~MESSAGING_BITS ^ n, apdu.ins) in self._commands for n in CHANNELS):
            raise Declined(SW.SECURE_MESSAGING_NOT_SUPPORTED)
        if apdu.cla in classes and apdu.ins not in self._instructions:
            raise Declined(SW.INS_NOT_SUPPORTED)
        raise Declined(SW.CLA_NOT_SUPPORTED)

    def _manage_channel(self, apdu: CommandApdu) -> bytes:
        if apdu.p1 == CLOSE_CHANNEL:
            # The basic channel is always there.
            if apdu.p2 == 0 or self._channels.pop(apdu.p2, None) is None:
                raise Declined(SW.WRONG_P1_P2)
            return b""
        if apdu.p2:
            raise Declined(SW.WRONG_P1_P2)
        if apdu.le is None:
            raise Declined(SW.WRONG_LENGTH)
        for number in range(1, self._psam.profile.channels):
            if number not in self._channels:
                self._channels[number] = self._psam.new_channel()
                return bytes((number,))
        raise Declined(SW.FUNCTION_NOT_SUPPORTED)


def _get_response(_psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """GET RESPONSE: as much of what waits as Le asks for."""
    if apdu.le is None:
        raise Declined(SW.WRONG_LENGTH)
    if not channel.waiting:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    if apdu.le != ALL and apdu.le > len(channel.waiting):
        raise Declined(WRONG_LE | len(channel.waiting))
    data, channel.waiting = channel.waiting[: apdu.le], channel.waiting[apdu.le :]
    return data


def _commands(profile: PsamProfile) -> dict[tuple[int, int], Command]:
    delivery = bytes.fromhex(profile.delivery.command)
    purchase_p1 = {int(profile.purchase.p1, 16)}
    return {
        (0x00, 0xA4): Command(files.select, {0x00, 0x02, 0x04}, {0x00}, range(1, 17)),
        (0x00, 0xB0): Command(files.read_binary, ANY, ANY, {0}),
        (0x00, 0x84): Command(environment.get_challenge, {0x00}, {0x00}, {0}),
        (0xBF, 0xEC): Command(environment.initialize_environment, {0x00}, {0x00}, {1}),
        (0x00, 0x70): Command(None, {OPEN_CHANNEL, CLOSE_CHANNEL}, CHANNELS, {0}),
        (0x00, 0xC0): Command(_get_response, {0x00}, {0x00}, {0}, keeps_transaction=True),
        (0x00, 0x82): Command(environment.external_authenticate, {0x00}, ANY, {16, 17}),
        (delivery[0], delivery[1]): Command(session_keys.deliver, ANY, ANY, range(1, 256)),
        (0x80, 0xFA): Command(
            session_keys.cipher_data, session_keys.CIPHER_P1, {0x00}, range(1, 256)
        ),
        (0x80, 0x70): Command(transactions.initialize_purchase, purchase_p1, {0x00}, range(1, 256)),
        (0x80, 0x72): Command(transactions.credit, {0x00}, {0x00}, {4}, keeps_transaction=True),
        (0x84, 0xD4): Command(key_loading.load_key, {0x00, 0x01}, profile.key_files, range(5, 256)),
    }
