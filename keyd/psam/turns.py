"""Turns on one chip that several sessions use: when a turn is over, and what has to be replayed in the next.

    turns = Turns(profile, is_shared=True)         # one for each session
    sw = turns.refuses(command)                    # answered without a chip, or None
    for earlier in turns.replay(): ...             # before the first command of a turn, if others were there
    turns.took(command, response)                  # True: the turn goes on
    turns.lost()                                   # it ran out in the midst of something

A session finds the chip as it left it: what it had selected is selected again. What cannot be brought back that way
keeps its turn: data that wait for GET RESPONSE, a delivered key, a purchase between its two commands, a challenge, a
proved key, and whatever keyd does not know. Where it is not sure that something has ended, the turn goes on: too long a
turn costs others time, too short a one would end what was begun.

This knows commands by their bytes and a profile, no keys, and neither the pool nor the chip.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu
from keyd.iso7816.sw import more_data, right_le, tries_left
from keyd.psam.files import BY_FILE_ID, BY_FILE_ID_UNDER_DF, BY_NAME, SHORT_FILE_ID
from keyd.psam.session_keys import ENDS_KEY

if TYPE_CHECKING:
    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.psam.profile import PsamProfile

# CLA and INS.
SELECT, READ_BINARY = (0x00, 0xA4), (0x00, 0xB0)
GET_CHALLENGE, EXTERNAL_AUTHENTICATE = (0x00, 0x84), (0x00, 0x82)
GET_RESPONSE, MANAGE_CHANNEL = (0x00, 0xC0), (0x00, 0x70)
INITIALIZE_ENVIRONMENT = (0xBF, 0xEC)
CIPHER_DATA, INITIALIZE_PURCHASE, CREDIT = (0x80, 0xFA), (0x80, 0x70), (0x80, 0x72)
LOAD_KEY = (0x84, 0xD4)

# A wrong proof counts against a key that all who share the PSAM need: three of them would block it for everybody.
PROVE_OWN_KEYS: Final = frozenset({EXTERNAL_AUTHENTICATE, LOAD_KEY})

# The chip did not look at the command further than its form: what it has begun may well go on.
FORM: Final = frozenset(
    {
        SW.WRONG_LENGTH,
        SW.WRONG_P1_P2,
        SW.LOGICAL_CHANNEL_NOT_SUPPORTED,
        SW.SECURE_MESSAGING_NOT_SUPPORTED,
        SW.INS_NOT_SUPPORTED,
        SW.CLA_NOT_SUPPORTED,
    }
)

# Answers to a proof after which the challenge is used up. After others it may be there still.
CHALLENGE_USED: Final = frozenset(
    {SW.WARNING_VERIFICATION_FAILED, SW.SECURE_MESSAGING_INCORRECT, SW.NO_CHALLENGE}
)

# ISO 7816-4: 62xx and 63xx are warnings; the former says that the command was done.
WARNING: Final = 0x62

# ISO 7816-4, 5.4.1: classes whose low bits, all of them or two, are a logical channel.
FURTHER_INTERINDUSTRY: Final = range(0x40, 0x80)
FIRST_INTERINDUSTRY: Final = range(0x20)
CHANNEL_BITS, MESSAGING_BITS = 0x03, 0x0C


class Begun(enum.Enum):
    """Why a turn goes on."""

    RESPONSE = "data wait for GET RESPONSE"
    KEY = "a key is delivered"
    PURCHASE = "a purchase waits for CREDIT SAM"
    CHALLENGE = "a challenge is there to be used"
    RIGHTS = "an own key was proved"
    UNKNOWN = "something was done or selected that keyd does not know"


class Folder(enum.Enum):
    """What of a selection is replayed. In the order in which it was done; later ones take the place of earlier."""

    ENVIRONMENT = "SELECT of an environment"
    PROVINCE = "INITIALIZE ENVIRONMENT"
    APPLICATION = "SELECT of the application"


class Turns:
    """What one session has selected and begun on a chip.

    `is_shared`: other terminals' sessions have the same PSAM. Then its own keys cannot be proved, nor keys loaded, and
    commands that the profile does not have are answered without it. `wakes_in` is the environment after a reset, if
    that is known; then fewer resets are needed.
    """

    def __init__(
        self, profile: PsamProfile, *, is_shared: bool, wakes_in: CardAlgorithm | None = None
    ) -> None:
        self._profile = profile
        self._is_shared = is_shared
        delivery = bytes.fromhex(profile.delivery.command)
        self._deliver = (delivery[0], delivery[1])
        self._known = frozenset(
            {SELECT, READ_BINARY, GET_CHALLENGE, EXTERNAL_AUTHENTICATE, GET_RESPONSE}
            | {MANAGE_CHANNEL, INITIALIZE_ENVIRONMENT, CIPHER_DATA, INITIALIZE_PURCHASE, CREDIT}
            | {LOAD_KEY, self._deliver}
        )
        self._begun: set[Begun] = set()
        self._environment = wakes_in
        self._folders: dict[Folder, bytes] = {}
        if wakes_in is not None:
            aid = profile.environments[wakes_in].aid
            self._folders[Folder.ENVIRONMENT] = bytes(CommandApdu(*SELECT, BY_NAME, 0, aid))
        self._file: bytes | None = None
        # The delivery of a key that stays after its last block.
        self._delivery: bytes | None = None
        self._is_lost = False

    # Before a command.

    def refuses(self, command: bytes) -> int | None:
        """Return the status word with which a command is answered without the chip; None: the chip is to answer.

        6700: it is no short APDU, which is all that T=0 carries. 6881: logical channels are not a session's. Of a
        shared PSAM 6982: it would prove an own key; 6882, 6D00, 6E00: the profile has no such command. GET RESPONSE
        with nothing to fetch never reaches the chip: what waits there would be somebody else's.
        """
        try:
            apdu = CommandApdu.parse_untrusted(command)
        except RemoteProtocolError:
            return SW.WRONG_LENGTH
        if apdu.extended:
            return SW.WRONG_LENGTH
        name = (apdu.cla, apdu.ins)
        if name == MANAGE_CHANNEL or self._is_channel(apdu):
            return SW.LOGICAL_CHANNEL_NOT_SUPPORTED
        if name not in self._known:
            return self._unknown(apdu) if self._is_shared else None
        if name in PROVE_OWN_KEYS and self._is_shared:
            return SW.SECURITY_STATUS_NOT_SATISFIED
        if name == GET_RESPONSE and Begun.RESPONSE not in self._begun:
            if apdu.p1 or apdu.p2:
                return SW.WRONG_P1_P2
            return SW.WRONG_LENGTH if apdu.data or not apdu.le else SW.CONDITIONS_NOT_SATISFIED
        return None

    @property
    def needs_reset(self) -> bool:
        """Whether a chip that others have used has to be reset before the replay, since nothing that this session
        selected says in which environment it is, or whether in the application."""
        return Folder.ENVIRONMENT not in self._folders and not (
            Folder.APPLICATION in self._folders and Folder.PROVINCE in self._folders
        )

    def replay(self) -> list[bytes]:
        """Return the commands that bring a chip to where this session was, to be sent before the first command of a
        turn if somebody else used the slot, or it was reset. Each has to satisfy `is_replayed`."""
        commands = list(self._folders.values())
        commands += [command for command in (self._file, self._delivery) if command is not None]
        return commands

    @staticmethod
    def is_replayed(response: bytes) -> bool:
        """Whether a replayed command did what it had done. A READ BINARY may say again that Le or offset is wrong: it
        stands for the file that it selected. If not, the session cannot go on."""
        return _is_done(sw := _sw(response)) or _selects_though_refused(sw)

    # After it.

    def took(self, command: bytes, response: bytes) -> bool:
        """Take note of a command and the chip's response, data and status word. True: the turn goes on.

        The command is one that was not refused; replayed ones are not told.
        """
        apdu, sw = CommandApdu.parse_untrusted(command), _sw(response)
        name = (apdu.cla, apdu.ins)
        if name == self._deliver:
            self._delivery = None
        if sw in FORM:
            return self.goes_on
        self._waits(name, sw)
        if name not in (GET_RESPONSE, INITIALIZE_PURCHASE):
            self._begun.discard(Begun.PURCHASE)
        elif name == INITIALIZE_PURCHASE:
            self._set(Begun.PURCHASE, is_begun=_is_done(sw))
        if name == self._deliver:
            self._delivered(command, sw)
        elif name == CIPHER_DATA:
            self._ciphered(apdu, sw)
        elif name in PROVE_OWN_KEYS:
            self._proved(name, sw)
        elif name == READ_BINARY:
            if apdu.p1 & SHORT_FILE_ID and (_is_done(sw) or _selects_though_refused(sw)):
                self._file = command
        elif _is_done(sw):
            self._did(name, apdu, command)
        return self.goes_on

    @property
    def goes_on(self) -> bool:
        """Whether the turn goes on: something was begun that only this chip can end."""
        return bool(self._begun)

    @property
    def is_clean(self) -> bool:
        """Whether the chip can be given to others without a reset, now that the turn is over: nothing of this session
        is left on it but what is selected."""
        return not self._begun and self._delivery is None

    # If it is no more.

    def lost(self) -> None:
        """Take note that the turn was taken away: what was begun is lost, what was selected is not."""
        self._is_lost = True
        self._begun.clear()
        self._delivery = None

    def take_loss(self) -> bool:
        """Whether a turn was lost that nobody was told of yet: then the next command is refused, once, whatever it is,
        since whoever sends it believes that the chip still has what was begun."""
        is_lost, self._is_lost = self._is_lost, False
        return is_lost

    # Within.

    def _is_channel(self, apdu: CommandApdu) -> bool:
        if any((apdu.cla ^ n, apdu.ins) in self._known for n in range(1, CHANNEL_BITS + 1)):
            return True
        if self._is_shared or (apdu.cla, apdu.ins) in self._known:
            return False
        # A command that keyd does not know, for the owner of the PSAM: the classes that ISO gives channels.
        is_first = apdu.cla in FIRST_INTERINDUSTRY and apdu.cla & CHANNEL_BITS
        return bool(is_first) or apdu.cla in FURTHER_INTERINDUSTRY

    def _unknown(self, apdu: CommandApdu) -> int:
        """Return what the applet says of a command that it does not have."""
        numbers = range(CHANNEL_BITS + 1)
        if any((apdu.cla & ~MESSAGING_BITS ^ n, apdu.ins) in self._known for n in numbers):
            return SW.SECURE_MESSAGING_NOT_SUPPORTED
        is_class = any(apdu.cla ^ n == cla for cla, _ in self._known for n in numbers)
        if is_class and all(apdu.ins != ins for _, ins in self._known):
            return SW.INS_NOT_SUPPORTED
        return SW.CLA_NOT_SUPPORTED

    def _set(self, what: Begun, *, is_begun: bool) -> None:
        if is_begun:
            self._begun.add(what)
        else:
            self._begun.discard(what)

    def _waits(self, name: tuple[int, int], sw: int) -> None:
        if name == GET_RESPONSE and not (
            _is_done(sw) or sw in (SW.CONDITIONS_NOT_SATISFIED, SW.COMMAND_NOT_ACCEPTED)
        ):
            return  # 6Cxx for one: the data wait still.
        self._set(Begun.RESPONSE, is_begun=more_data(sw) is not None)

    def _delivered(self, command: bytes, sw: int) -> None:
        self._set(Begun.KEY, is_begun=_is_done(sw))
        if _is_done(sw) and not self._profile.delivery.ends_with_last_block:
            self._delivery = command

    def _ciphered(self, apdu: CommandApdu, sw: int) -> None:
        if sw == SW.COMMAND_NOT_ACCEPTED:
            self._delivery = None
            self._begun.discard(Begun.KEY)
        elif _is_done(sw):
            # Where the key stays, its delivery is replayed; the MAC that was begun cannot be.
            self._set(Begun.KEY, is_begun=apdu.p1 not in ENDS_KEY)

    def _proved(self, name: tuple[int, int], sw: int) -> None:
        if _is_done(sw) or sw in CHALLENGE_USED or tries_left(sw) is not None:
            self._begun.discard(Begun.CHALLENGE)
        if name == EXTERNAL_AUTHENTICATE and _is_done(sw):
            self._begun.add(Begun.RIGHTS)

    def _did(self, name: tuple[int, int], apdu: CommandApdu, command: bytes) -> None:
        """A command was done that selects, begins something otherwise, or is not known."""
        if name == SELECT:
            self._selected(apdu, command)
        elif name == INITIALIZE_ENVIRONMENT and apdu.data:
            environment = self._profile.environment_of(apdu.data[0])
            algorithm = None if environment is None else environment.algorithm
            self._entered(Folder.PROVINCE, algorithm, command)
        elif name == GET_CHALLENGE and not self._is_shared:
            # Of a shared PSAM it is a random number like any other: nobody may prove anything with it.
            self._begun.add(Begun.CHALLENGE)
        elif name not in self._known:
            self._begun.add(Begun.UNKNOWN)

    def _selected(self, apdu: CommandApdu, command: bytes) -> None:
        profile, by = self._profile, apdu.p1
        file_id = int.from_bytes(apdu.data, "big") if len(apdu.data) == 2 else None
        for environment in profile.environments.values():
            if (by, file_id) == (BY_FILE_ID, environment.file_id) or (
                (by, apdu.data) == (BY_NAME, environment.aid)
            ):
                self._begun.discard(Begun.UNKNOWN)
                self._folders.clear()
                self._entered(Folder.ENVIRONMENT, environment.algorithm, command)
                return
        if (by, file_id) == (BY_FILE_ID, profile.application_id) or (
            (by, apdu.data) == (BY_NAME, profile.application_aid)
        ):
            self._entered(Folder.APPLICATION, self._environment, command)
        elif by == BY_FILE_ID_UNDER_DF or (by == BY_FILE_ID and file_id in profile.files):
            self._file = command
        else:
            self._begun.add(Begun.UNKNOWN)

    def _entered(self, folder: Folder, environment: CardAlgorithm | None, command: bytes) -> None:
        if self._environment is not None and environment not in (None, self._environment):
            self._begun -= {Begun.CHALLENGE, Begun.RIGHTS}
        self._environment = environment
        self._begun.discard(Begun.KEY)
        self._delivery = self._file = None
        # Behind the others: it was done after them.
        self._folders.pop(folder, None)
        self._folders[folder] = command


def _sw(response: bytes) -> int:
    return int.from_bytes(response[-2:], "big")


def _is_done(sw: int) -> bool:
    return sw == SW.OK or more_data(sw) is not None or sw >> 8 == WARNING


def _selects_though_refused(sw: int) -> bool:
    """Whether a READ BINARY with these words has selected its file all the same."""
    return right_le(sw) is not None or sw == SW.WRONG_OFFSET
