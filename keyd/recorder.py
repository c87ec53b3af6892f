"""Between answers and the journal: appends what a tick used, and knows when answers may leave.

With durability "written" an answer may leave as soon as its record is written: it survives the death of this
process. With "fsync" it waits until the disk has it: one worker thread syncs again and again, and what is written
meanwhile gathers for the next time. A journal that cannot be written, or a disk that does not answer, makes keyd
refuse what it would have to record, and nothing else stops.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keyd.audit.records import USE_BYTES
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from keyd.telemetry import Events, Meter
    from keyd.uses import Numbers

# How long until an unavailable journal is tried again: an operator who has made room is not kept waiting.
RECOVER_SECONDS: Final = 0.5

# How often to look whether the journal is still the file that it was. A segment may have been deleted.
CHECK_SECONDS: Final = 1.0

FAULT: Final = "keyd has a fault; its log has the whole of it"


class Journal(Protocol):
    """What is asked of `keyd.audit.journal.Journal`."""

    @property
    def unavailable_because(self) -> str | None:
        """Why it cannot be written, if it cannot."""

    def append(self, uses: bytes, events: Sequence[Any] = ()) -> int:
        """Write a frame and return the position after it."""

    def sync(self) -> int:
        """Wait for the disk; return up to where it has everything. In a worker thread."""

    def recover(self) -> bool:
        """Try to write again; return whether that is possible. In a worker thread."""

    def check(self) -> bool:
        """Look whether the journal is still there, and begin anew if not; return whether it can be written."""

    def close(self) -> None:
        """Say goodbye, sync and let go. In a worker thread."""


class Recorder:
    """Appends to the journal and says up to where answers may leave."""

    def __init__(
        self,
        journal: Journal,
        numbers: Numbers,
        meter: Meter,
        events: Events,
        *,
        waits_for_disk: bool,
        wait_seconds: float,
    ) -> None:
        self.numbers = numbers
        # Why nothing can be recorded now. Whoever would use a key looks here first.
        self.unavailable_because: str | None = None
        # Everything up to here may leave.
        self.durable = 0
        self._journal = journal
        self._meter = meter
        self._events = events
        self._wait_seconds = wait_seconds
        self._append_seconds = meter.journal_append.observe
        self._position = 0
        self._is_hung = False
        self._is_closing = False
        self._has_trouble = trio.Event()
        self._release: Callable[[], None] = _nothing
        self._take_back: Callable[[], None] = _nothing
        # What the hub's thread and the one that syncs tell each other. Each is written by one of them only, but
        # for `has_news`, which is raised by the one and lowered by the other before it looks.
        self.has_news = False
        self._synced = 0
        self._sync_began: float | None = None
        self._failure: Exception | None = None
        self._is_idle = True
        self._work_fd = os.eventfd(0, os.EFD_CLOEXEC) if waits_for_disk else -1
        meter.journal_available.set(1)

    def append(self, uses: bytes, events: Sequence[Any] = ()) -> int:
        """Write use records and events as one frame; return the position that answers wait for, or 0 if for none.

        Raises:
            AuditUnavailable: they are not in the journal, so there must be no answer.
        """
        if self.unavailable_because is not None:
            raise AuditUnavailable
        started = time.perf_counter()
        try:
            position = self._journal.append(uses, events)
        except AuditUnavailable as error:
            self._lose(str(error))
            raise AuditUnavailable from None
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no record
            self._events.bug("journal_failed", error)
            self._lose(FAULT)
            raise AuditUnavailable from None
        meter = self._meter
        self._append_seconds(time.perf_counter() - started)
        meter.journal_records.value += len(uses) // USE_BYTES
        meter.journal_frames.value += 1
        if self._work_fd < 0:
            return 0
        self._position = position
        if self._is_idle:
            self._is_idle = False
            os.eventfd_write(self._work_fd, 1)
        return position

    async def run(
        self,
        wake: Callable[[], None],
        release: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        """Sync, check and recover, until cancelled.

        `wake` is called in another thread when there are news, so that somebody calls `settle`. `release` is called
        when more has become durable, `take_back` when what waits must be refused.
        """
        self._release, self._take_back = release, take_back
        if self._work_fd >= 0:
            # Not trio's: its way into a thread and back costs more than a fast disk does. Nobody joins it, since a
            # disk that hangs must not keep the process.
            name = "keyd-journal-sync"
            threading.Thread(
                target=self._sync_forever, args=(wake,), name=name, daemon=True
            ).start()
        try:
            while True:
                if self.unavailable_because is not None and not self._is_hung:
                    await self._recover()
                else:
                    await self._watch()
        finally:
            self._is_closing = True

    def settle(self) -> None:
        """Draw the conclusions from a sync that has ended."""
        self.has_news = False
        failure, self._failure = self._failure, None
        if failure is None:
            self.durable = self._synced
            if self._is_hung and self._journal.unavailable_because is None:
                self._regain()
            self._release()
        else:
            if not isinstance(failure, AuditUnavailable):
                self._events.bug("journal_failed", failure)
                failure = AuditUnavailable(FAULT)
            self._lose(str(failure))
            self._take_back()
            # Whatever becomes of these records, nobody waits for them any longer.
            self.durable = self._synced = self._position
        self._is_hung = False

    async def close(self) -> None:
        """Close the journal. A disk that does not answer is waited for as long as an answer is, and no longer."""
        self._is_closing = True
        if self._work_fd >= 0:
            os.eventfd_write(self._work_fd, 1)
        with trio.move_on_after(self._wait_seconds, shield=True):
            await trio.to_thread.run_sync(self._journal.close, abandon_on_cancel=True)

    def _sync_forever(self, wake: Callable[[], None]) -> None:
        while not self._is_closing:
            if self._position <= self._synced or self._failure is not None:
                # First idle, then look again: whoever appends between the two is not missed.
                self._is_idle = True
                if self._position <= self._synced or self._failure is not None:
                    os.eventfd_read(self._work_fd)
                self._is_idle = False
                continue
            self._sync_began = began = time.monotonic()
            try:
                self._synced = self._journal.sync()
            except Exception as error:  # noqa: BLE001 - the hub's thread will say what it is
                self._failure = error
            self._sync_began = None
            self._meter.journal_sync.observe(time.monotonic() - began)
            self.has_news = True
            if not self._is_closing:
                wake()

    async def _watch(self) -> None:
        """Wait for trouble: a disk that does not answer, a segment that is gone."""
        self._has_trouble = trio.Event()
        with trio.move_on_after(min(CHECK_SECONDS, self._wait_seconds / 4)):
            await self._has_trouble.wait()
            return
        began = self._sync_began
        if began is not None and not self._is_hung:
            if time.monotonic() - began > self._wait_seconds:
                self._is_hung = True
                self._lose(f"the disk has not answered for {self._wait_seconds:g} s")
                self._take_back()
        elif began is None and self._is_idle:
            # A sync looks by itself.
            self._check()

    def _check(self) -> None:
        try:
            self._journal.check()
        except Exception as error:  # noqa: BLE001 - a journal that cannot be looked at is none
            self._events.bug("journal_failed", error)
            self._lose(FAULT)
        else:
            if self._journal.unavailable_because is not None:
                self._lose(self._journal.unavailable_because)

    async def _recover(self) -> None:
        await trio.sleep(RECOVER_SECONDS)
        try:
            is_back = await trio.to_thread.run_sync(self._journal.recover, abandon_on_cancel=True)
        except Exception as error:  # noqa: BLE001 - it is tried again
            self._events.bug("journal_failed", error)
        else:
            if is_back:
                self._regain()

    def _lose(self, reason: str) -> None:
        if self.unavailable_because is None:
            self._meter.journal_failures.inc()
            self._meter.journal_available.set(0)
            self._events.warning("journal_unavailable", reason=reason)
        self.unavailable_because = reason
        self._has_trouble.set()

    def _regain(self) -> None:
        self.unavailable_because = None
        self._meter.journal_available.set(1)
        self._events.warning("journal_available")


def _nothing() -> None:
    """Nobody waits before `run`."""
