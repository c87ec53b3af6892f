"""PSAMs in readers of this machine, through PC/SC: who is there, and one thread for each to speak to it.

A thread that waits for a chip cannot be stopped. So whoever asks waits no longer than the timeout and leaves the thread
behind, with its answer if there ever is one: each command has a letter box of its own, which nobody opens again. The
next `reset` takes another thread; when too many of them are stuck in one reader, there is none.
"""

from __future__ import annotations

import fnmatch
import math
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from keyd.errors import RemoteProtocolError
from keyd.lending.answers import (
    NO_COMMAND,
    check_answer_untrusted,
    check_atr_untrusted,
    maybe_command,
)
from keyd.lending.member import MemberFailed, MemberKind
from keyd.lending.pcsc import PcscFailed, ReaderChip, Watch, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyd.lending.member import Member
    from keyd.psam.level_index import Place
    from keyd.psam.profile import PsamProfile

# A PSAM takes tens of milliseconds; a chip that asks for more time (ISO 7816-3) may take a second or two.
COMMAND_SECONDS: Final = 5.0

# A thread costs little, but a reader in which two are stuck does not come to life by a third.
MAX_STUCK: Final = 2

# How long the watching thread looks before it asks whether it is still wanted.
WATCH_MILLISECONDS: Final = 1000

# Between attempts to find pcscd: to ask is one connection to a socket.
PCSCD_WAIT_SECONDS: Final = 0.5


class ReaderSource:
    """The PSAMs in the readers whose names match a shell pattern: `*`, `?`, and `[[]` for a bracket."""

    def __init__(
        self,
        patterns: Sequence[str],
        profile: PsamProfile,
        command_seconds: float = COMMAND_SECONDS,
    ) -> None:
        """Look for nothing yet.

        Raises:
            PcscUnavailable: pyscard is not installed.
        """
        load()
        self._patterns = patterns
        self._profile = profile
        self._command_seconds = command_seconds
        self._there: dict[str, tuple[int, ReaderMember]] = {}
        # By reader, since what is stuck in one is so whatever chip is in it now.
        self._left: dict[str, list[_Worker]] = {}

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """Watch the readers. pcscd need not be there, and may be started anew. Does not end by itself."""
        send, receive = trio.open_memory_channel[dict[str, int] | Exception](math.inf)
        token = trio.lowlevel.current_trio_token()
        is_over = threading.Event()

        def put(seen: dict[str, int] | Exception) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                send.send_nowait(seen)

        def tell(seen: dict[str, int] | Exception) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(put, seen)

        threading.Thread(target=_watch, args=(tell, is_over), name="readers", daemon=True).start()
        try:
            with send, receive:
                async for seen in receive:
                    if isinstance(seen, Exception):
                        raise seen
                    self._take(seen, joined, parted)
        finally:
            # The thread ends by itself, at the latest when it has looked once more.
            is_over.set()
            self._take({}, joined, parted)

    def _take(
        self,
        chips: dict[str, int],
        joined: Callable[[Member], None],
        parted: Callable[[Member], None],
    ) -> None:
        for reader, (count, member) in list(self._there.items()):
            if chips.get(reader) != count:
                del self._there[reader]
                member.part()
                parted(member)
        for reader, count in chips.items():
            if reader not in self._there and self._is_wanted(reader):
                left = self._left.setdefault(reader, [])
                member = ReaderMember(reader, self._profile, self._command_seconds, left)
                self._there[reader] = count, member
                joined(member)

    def _is_wanted(self, reader: str) -> bool:
        return any(fnmatch.fnmatchcase(reader, pattern) for pattern in self._patterns)


def _watch(tell: Callable[[dict[str, int] | Exception], None], is_over: threading.Event) -> None:
    """Tell which readers have a chip, whenever that changes. None has one while pcscd is not there."""
    try:
        _look(tell, is_over)
    except Exception as error:  # noqa: BLE001 - a bug; raised in trio's thread, where it is seen
        tell(error)


def _look(tell: Callable[[dict[str, int]], None], is_over: threading.Event) -> None:
    told: dict[str, int] = {}
    watch = None
    while not is_over.is_set():
        try:
            watch = watch or Watch()
            chips = watch.wait(WATCH_MILLISECONDS)
        except PcscFailed:
            if watch is not None:
                watch.close()
            watch, chips = None, {}
        if chips != told:
            tell(chips)
            told = chips
        if watch is None:
            is_over.wait(PCSCD_WAIT_SECONDS)
    if watch is not None:
        watch.close()


class ReaderMember:
    """The PSAM in one reader, until it or its reader is taken away. It has to be reset before its first command."""

    kind: Final = MemberKind.READER
    slots: Final = 1
    owner: Final = ""

    def __init__(
        self, reader: str, profile: PsamProfile, command_seconds: float, left: list[_Worker]
    ) -> None:
        """Ask nothing of the reader yet. `left` has the threads that were left behind in it, and gets more."""
        self.name: Final = f"reader:{reader}"
        self.profile: Final = profile
        self._reader = reader
        self._seconds = command_seconds
        self._trouble = "it was not reset yet"
        self._is_gone = False
        self._worker: _Worker | None = None
        # What the worker was asked last; if that is not done, it may be stuck.
        self._asked: _Asked | None = None
        self._left = left

    @property
    def stuck(self) -> int:
        """How many threads were left in a command that did not end."""
        self._left[:] = [worker for worker in self._left if worker.is_alive]
        return len(self._left)

    def known(self, places: Iterable[Place]) -> None:
        """See `Member.known`: a chip has to be asked."""

    async def reset(self, slot: int) -> bytes:
        """Connect if need be, and reset the PSAM; return the ATR. Takes at most two timeouts.

        Raises:
            MemberFailed: it could not be, or a command before still has the reader.
        """
        del slot
        self._trouble = self._trouble or "a reset was given up"
        if self._asked is not None:
            # The command that was given up may be about to end, and then its thread is as good as new.
            with trio.move_on_after(self._seconds):
                await self._asked.done.wait()
        if self._is_busy:
            self._leave()
        if self._is_gone:
            raise MemberFailed(f"{self.name}: the chip or its reader was taken away")
        if self._worker is None:
            if self.stuck >= MAX_STUCK:
                raise MemberFailed(f"{self.name}: {MAX_STUCK} commands are stuck in the reader")
            self._worker = _Worker(self._reader)
        return await self._ask(self._worker, self._worker.reset)

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """Send one command APDU; return data and status word. 6700 for what is no short command, without asking.

        Raises:
            MemberFailed: there is no answer, or not one of a chip; nothing more is sent before the next reset.
        """
        del slot
        if self._trouble or self._worker is None:
            raise MemberFailed(f"{self.name}: {self._trouble}")
        if maybe_command(command) is None:
            return NO_COMMAND
        worker = self._worker
        return await self._ask(worker, lambda: worker.transmit(command))

    def part(self) -> None:
        """Fail what is asked now and whatever is asked later: the chip is not there."""
        self._is_gone = True
        self._trouble = "the chip or its reader was taken away"
        self._leave()
        if self._asked is not None:
            self._asked.finish(None, self._trouble)

    @property
    def _is_busy(self) -> bool:
        return self._asked is not None and not self._asked.is_over

    def _leave(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.leave()
            if self._is_busy:
                self._left.append(worker)

    async def _ask(self, worker: _Worker, do: Callable[[], bytes]) -> bytes:
        self._trouble = "a command was given up"
        asked = self._asked = _Asked(do)
        worker.put(asked)
        with trio.move_on_after(self._seconds):
            await asked.done.wait()
        if self._is_gone:
            self._trouble = "the chip or its reader was taken away"
        elif not asked.done.is_set():
            self._trouble = f"no answer within {self._seconds:g} s"
        else:
            self._trouble = asked.trouble
        if self._trouble or asked.answer is None:
            raise MemberFailed(f"{self.name}: {self._trouble}")
        return asked.answer


class _Asked:
    """One thing asked of a worker, and the letter box for its answer."""

    def __init__(self, do: Callable[[], bytes]) -> None:
        self.done: Final = trio.Event()
        self.answer: bytes | None = None
        self.trouble = ""
        # Whether the thread has done with it; `done` may come before, when nobody waits for it any more.
        self.is_over = False
        self._do = do
        self._token = trio.lowlevel.current_trio_token()

    def run(self) -> None:
        """Do it, in the worker's thread."""
        answer, trouble = None, ""
        try:
            answer = self._do()
        except (PcscFailed, RemoteProtocolError) as error:
            trouble = str(error)
        self.is_over = True
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.finish, answer, trouble)

    def finish(self, answer: bytes | None, trouble: str) -> None:
        """Put in what came of it, in trio's thread. Only the first is kept."""
        if not self.done.is_set():
            self.answer, self.trouble = answer, trouble
            self.done.set()


class _Worker:
    """A thread for one reader, and its connection. Its methods but `put` and `leave` are the thread's own."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._chip: ReaderChip | None = None
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        # A daemon: one that is stuck does not keep the process.
        self._thread = threading.Thread(target=self._work, name=reader, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def put(self, asked: _Asked) -> None:
        """Have something done."""
        self._queue.put(asked)

    def leave(self) -> None:
        """Let it end when it can."""
        self._queue.put(None)

    def reset(self) -> bytes:
        """Reset the chip over the connection there is, or else over another one."""
        if self._chip is not None:
            with suppress(PcscFailed):
                return check_atr_untrusted(self._chip.reset())
            self._close()
        self._chip = ReaderChip(self._reader)
        return check_atr_untrusted(self._chip.reset())

    def transmit(self, command: bytes) -> bytes:
        """Send one command APDU."""
        if self._chip is None:
            raise RemoteProtocolError("there is no connection")
        return check_answer_untrusted(self._chip.transmit(command))

    def _work(self) -> None:
        while (asked := self._queue.get()) is not None:
            asked.run()
        self._close()

    def _close(self) -> None:
        chip, self._chip = self._chip, None
        if chip is not None:
            chip.close()
