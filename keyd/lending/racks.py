"""PSAMs in racks: one line of TCP for each, as docs/psam.md has it; keyd connects.

Nothing on the line says which command an answer belongs to. So there is one command at a time, and a line on which
anything went otherwise (no answer in time, one too many, a byte too many, a user who went away) is closed and never
used again: an answer that comes late finds nobody. `reset` opens the next line.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from keyd.errors import RemoteProtocolError
from keyd.iso7816.chip_line import GET_ATR, POWER_ON, RESET, Messages, control, framed
from keyd.lending.answers import (
    MAX_ANSWER_BYTES,
    NO_COMMAND,
    check_answer_untrusted,
    check_atr_untrusted,
    maybe_command,
)
from keyd.lending.member import MemberFailed, MemberKind
from keyd.lending.promptly import receive_promptly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyd.lending.member import Member
    from keyd.psam.level_index import Place
    from keyd.psam.profile import PsamProfile

# A PSAM takes tens of milliseconds; a chip that asks for more time (ISO 7816-3) may take a second or two.
COMMAND_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 3.0

# Between attempts: soon at first, since a rack may just be starting, and then without hurry.
FIRST_WAIT_SECONDS: Final = 0.25
LONGEST_WAIT_SECONDS: Final = 15.0

# A rack whose power went says nothing any more; the kernel asks it, and the line ends within 50 s.
KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 20),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
)

CHUNK_BYTES: Final = 512


class RackSource:
    """The PSAMs of racks at (host, port), a member for each address that is connected and has given an ATR."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        profile: PsamProfile,
        command_seconds: float = COMMAND_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        self._addresses = addresses
        self._profile = profile
        self._command_seconds = command_seconds
        self._connect_seconds = connect_seconds
        self._longest_wait_seconds = longest_wait_seconds

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """Connect to every address, again whenever its line was lost. Does not end by itself."""
        async with trio.open_nursery() as nursery:
            for address in self._addresses:
                nursery.start_soon(self._attend, address, joined, parted)

    async def _attend(
        self,
        address: tuple[str, int],
        joined: Callable[[Member], None],
        parted: Callable[[Member], None],
    ) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            async with trio.open_nursery() as nursery:
                member = RackMember(
                    address, self._profile, nursery, self._command_seconds, self._connect_seconds
                )
                with suppress(MemberFailed):
                    await member.reset(0)
                    joined(member)
                    try:
                        await member.gone.wait()
                    finally:
                        member.gone.set()
                        parted(member)
                nursery.cancel_scope.cancel()
            # A rack that takes connections and drops them is one that is not there.
            wait = FIRST_WAIT_SECONDS if member.was_used else wait
            await trio.sleep(wait)
            wait = min(2 * wait, self._longest_wait_seconds)


class RackMember:
    """One PSAM of a rack. It is gone when the rack ended its line or takes no connections."""

    kind: Final = MemberKind.RACK
    slots: Final = 1
    owner: Final = ""

    def __init__(
        self,
        address: tuple[str, int],
        profile: PsamProfile,
        nursery: trio.Nursery,
        command_seconds: float,
        connect_seconds: float,
    ) -> None:
        """Its lines are listened to in `nursery`."""
        self._address = address
        self.profile: Final = profile
        self._nursery = nursery
        self._command_seconds = command_seconds
        self._connect_seconds = connect_seconds
        self._line: _Line | None = None
        self.name: Final = "rack:{}:{}".format(*address)
        self.gone: Final = trio.Event()
        self.was_used = False

    def known(self, places: Iterable[Place]) -> None:
        """See `Member.known`: a chip has to be asked."""

    async def reset(self, slot: int) -> bytes:
        """Reset the PSAM, over another line if the one before was closed; return the ATR.

        Raises:
            MemberFailed: there is no line, or no ATR on it.
        """
        del slot
        start = RESET
        if self._line is None or self._line.trouble:
            self._line = await self._connect()
            start = POWER_ON
        return await self._ask(control(start) + control(GET_ATR), check_atr_untrusted)

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """Send one command APDU; return data and status word. 6700 for what is no command, without asking.

        Raises:
            MemberFailed: there is no answer, or not one of a chip.
        """
        del slot
        if maybe_command(command) is None:
            return NO_COMMAND
        answer = await self._ask(framed(command), check_answer_untrusted)
        self.was_used = True
        return answer

    async def _ask(self, sent: bytes, check: Callable[[bytes], bytes]) -> bytes:
        line = self._line
        if line is None or self.gone.is_set():
            raise MemberFailed(f"{self.name}: there is no line")
        answer = await line.ask(sent, self._command_seconds)
        if answer is not None:
            try:
                return check(answer)
            except RemoteProtocolError as error:
                line.close(str(error))
        raise MemberFailed(f"{self.name}: {line.trouble}")

    async def _connect(self) -> _Line:
        if self.gone.is_set():
            raise MemberFailed(f"{self.name}: the member is gone")
        stream = None
        try:
            with trio.move_on_after(self._connect_seconds):
                stream = await trio.open_tcp_stream(*self._address)
        except OSError:
            pass
        if stream is None:
            self.gone.set()
            raise MemberFailed(f"{self.name}: it takes no connection")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        line = _Line(stream, self.gone)
        if self.gone.is_set():
            # While it was connected the source ended: nobody would listen.
            await trio.aclose_forcefully(stream)
            raise MemberFailed(f"{self.name}: the member is gone")
        self._nursery.start_soon(line.listen)
        return line


class _Line:
    """One connection: a question at a time, and closed for good at the first trouble."""

    def __init__(self, stream: trio.SocketStream, lost: trio.Event) -> None:
        """`lost` is set if it was the rack that ended it."""
        self.trouble = ""
        self._stream = stream
        self._lost = lost
        self._scope = trio.CancelScope()
        # None while nothing is asked: whatever comes then is unasked for.
        self._came: trio.Event | None = None
        self._answer: bytes | None = None

    def close(self, why: str) -> None:
        """Never use it again. The first reason counts."""
        if not self.trouble:
            self.trouble = why
            self._scope.cancel()
        if self._came is not None:
            self._came.set()

    async def ask(self, sent: bytes, seconds: float) -> bytes | None:
        """Send, and return the one message that comes; None if it is closed, and `trouble` says why.

        What was cancelled or came too late closes the line.
        """
        # What came before anything was asked is already in the socket, and must be found by `listen` rather than be
        # taken for the answer: at the first checkpoint trio sees it, at the second `listen` has run.
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        if self.trouble:
            return None
        self._came, self._answer = trio.Event(), None
        why = "a command was given up"
        try:
            with trio.move_on_after(seconds):
                await self._stream.send_all(sent)
                await self._came.wait()
            why = f"no answer within {seconds:g} s"
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            why = "the line broke"
            self._lost.set()
        finally:
            self._came = None
            if self._answer is None:
                self.close(why)
        return self._answer

    async def listen(self) -> None:
        """Read until the line ends or is closed."""
        messages = Messages(longest=MAX_ANSWER_BYTES)
        try:
            with self._scope:
                while data := await receive_promptly(self._stream, CHUNK_BYTES):
                    self._take_untrusted(messages, data)
                self._lost.set()
                self.close("the rack ended the line")
        except trio.BrokenResourceError:
            self._lost.set()
            self.close("the line broke")
        except RemoteProtocolError as error:
            # An answer with something after it is none.
            self._answer = None
            self.close(str(error))
        finally:
            self.close("it is given up")
            await trio.aclose_forcefully(self._stream)

    def _take_untrusted(self, messages: Messages, data: bytes) -> None:
        for message in messages.receive_data_untrusted(data):
            if self._came is None or self._came.is_set():
                raise RemoteProtocolError("an answer that nobody asked for")
            self._answer = message
            self._came.set()
        is_asked = self._came is not None and not self._came.is_set()
        if not (is_asked or messages.is_between):
            raise RemoteProtocolError("bytes that nobody asked for")
