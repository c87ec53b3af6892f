"""One open PSAM: turns on its member are taken and given back as the commands ask for it, and nobody notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.errors import PsamGone, RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, ResponseApdu
from keyd.iso7816.sw import MORE_DATA, WRONG_LE, more_data
from keyd.psam.applet import ALL
from keyd.psam.pool import Found
from keyd.psam.turns import Turns

if TYPE_CHECKING:
    from keyd.lending.lender import Lender
    from keyd.lending.member import Member
    from keyd.psam.level_index import MemberFacts
    from keyd.psam.pool import Session, Turn

# CLA and INS.
GET_RESPONSE: Final = b"\x00\xc0"
INIT_PURCHASE: Final = b"\x80\x70"
CREDIT: Final = b"\x80\x72"

# A short APDU answers no more at a time; a chip that announces data without end has as much once.
MAX_WAITING_BYTES: Final = 255

LOST: Final = "the PSAM was kept too long without a command: what was begun is lost"


class Lent:
    """A PSAM that somebody has open. See `keyd.handlers.desk.OpenPsam`."""

    def __init__(self, lender: Lender, member: Member, session: Session) -> None:
        self.session = session
        self._lender = lender
        self._kind = member.kind.value
        self._turns = Turns(member.profile, is_shared=not member.owner)
        self._is_shared = not member.owner
        self._wrong_mac2 = int(member.profile.purchase.wrong_mac2, 16)
        self._turn: Turn | None = None
        # What waits for GET RESPONSE.
        self._waiting = b""
        # Commands are done one after the other; trio's lock is fair.
        self._order = trio.Lock()

    @property
    def facts(self) -> MemberFacts:
        """Who it is and which keys it has."""
        return self.session.facts

    @property
    def kind(self) -> str:
        """Where it is: virtual, reader or rack."""
        return self._kind

    async def transmit(self, command: bytes) -> bytes:
        """Send one command APDU; return data and status word. Calls are done in the order in which they were made.

        Raises:
            PsamGone: the member, the turn or the session is gone, and what was begun with it.
            PoolExhausted: its turn did not come in time; the command was not sent.
            NotAllowed: no purchase, after too many wrong MAC2s on shared PSAMs.
        """
        async with self._order:
            if self._waiting and command[:2] == GET_RESPONSE:
                return bytes(self._fetch(command))
            refused = self._turns.refuses(command)
            if refused is not None:
                return refused.to_bytes(2, "big")
            self._waiting = b""
            if self._turn is not None and not self._lender.has(self._turn):
                self._turn = None
                self._turns.lost()
            if self._turns.take_loss():
                raise PsamGone(LOST)
            if self._is_shared and command[:2] == INIT_PURCHASE:
                self._lender.wrong_proofs.require_few(self.session.asker, trio.current_time())
            try:
                if self._turn is None:
                    self._turn = await self._begin()
                answer = await self._lender.send(self._turn, command)
                goes_on = self._turns.took(command, answer)
                if more_data(_sw(answer)) is not None:
                    goes_on = await self._take_waiting(self._turn, _sw(answer))
            except BaseException:
                if self._turn is not None:
                    # Cancelled, failed or ended: what the chip has done is not known, and this refusal says so.
                    self._give_back(is_clean=False)
                    self._turns.lost()
                    self._turns.take_loss()
                raise
            if self._is_shared and command[:2] == CREDIT:
                self._note_proof(_sw(answer))
            if not goes_on:
                self._give_back(is_clean=self._turns.is_clean)
            self._lender.used(self)
            return answer

    async def close(self) -> None:
        """Give it back. Safe to call twice, and after `abandon`."""
        self.abandon()
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """Have it given back soon, without waiting. Safe to call at any moment, in the middle of a command too."""
        self._lender.close(self)

    def _note_proof(self, sw: int) -> None:
        if sw in (SW.OK, self._wrong_mac2):
            now = trio.current_time()
            self._lender.wrong_proofs.note(self.session.asker, now, is_right=sw == SW.OK)

    async def _begin(self) -> Turn:
        """Wait for a turn, and bring the chip to where this session was."""
        turn = self._turn = await self._lender.turn_on(self)
        if turn.found is Found.OWN:
            return turn
        if turn.found is Found.USED and self._turns.needs_reset:
            await self._lender.reset(turn)
        for command in self._turns.replay():
            answer = await self._lender.send(turn, command)
            if not self._turns.is_replayed(answer):
                raise PsamGone("the PSAM does not go back to where it was: open it anew")
        return turn

    async def _take_waiting(self, turn: Turn, sw: int) -> bool:
        """Take what waits for GET RESPONSE out of the chip; return whether the turn goes on.

        Terminals often leave the answer to a SELECT where it is, and the chip would be theirs until time ran out.
        """
        waiting = b""
        while (length := more_data(sw)) is not None and len(waiting) < MAX_WAITING_BYTES:
            command = bytes(CommandApdu(0x00, 0xC0, 0x00, 0x00, le=length))
            answer = await self._lender.send(turn, command)
            goes_on = self._turns.took(command, answer)
            waiting, sw = waiting + answer[:-2], _sw(answer)
        self._waiting = waiting
        return goes_on

    def _fetch(self, command: bytes) -> ResponseApdu:
        """Answer GET RESPONSE with what was taken out of the chip, as the applet would."""
        try:
            apdu = CommandApdu.parse_untrusted(command)
        except RemoteProtocolError:
            return ResponseApdu(b"", SW.WRONG_LENGTH)
        waiting, self._waiting = self._waiting, b""
        if apdu.p1 or apdu.p2:
            return ResponseApdu(b"", SW.WRONG_P1_P2)
        if apdu.extended or apdu.data:
            return ResponseApdu(b"", SW.WRONG_LENGTH)
        self._waiting = waiting
        if apdu.le is None:
            return ResponseApdu(b"", SW.WRONG_LENGTH)
        if apdu.le != ALL and apdu.le > len(waiting):
            return ResponseApdu(b"", WRONG_LE | len(waiting))
        data, self._waiting = waiting[: apdu.le], waiting[apdu.le :]
        return ResponseApdu(data, MORE_DATA | len(self._waiting) if self._waiting else SW.OK)

    def _give_back(self, *, is_clean: bool) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._lender.give_back(turn, is_clean=is_clean)


def _sw(answer: bytes) -> int:
    return int.from_bytes(answer[-2:], "big")
