"""The warden: lets officers' slow work run beside the tick, and gives the tick what comes of it.

The vault is synchronous and belongs on a worker thread. The warden runs it there, one call after another, moves the
records of what was done from the store's outbox into the journal, and loads the ring whenever the vault holds
something else. Sealing waits a second at most for the store, and then for nothing: every key is wiped in one go.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
import trio

from keyd.audit.checkpoints import append_checkpoint
from keyd.crypto.native import _core
from keyd.custody.backup import JournalHead, make_backup
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.psam_memory import StoreMemory
from keyd.custody.psam_rows import HeldPsam
from keyd.errors import AuditUnavailable, ChangedMeanwhile, Refusal, Sealed, StoreUnavailable
from keyd.registry.activity import SeenTerminals
from keyd.store.rows import Activity, Anchor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from keyd.audit.journal import Journal
    from keyd.crypto.secret import SecretKey
    from keyd.custody.ceilings import LeasedQuota
    from keyd.custody.contents import Contents
    from keyd.custody.founding import Keeper
    from keyd.custody.officers import Officer
    from keyd.custody.vault import Vault
    from keyd.keys.block import KeyHeader
    from keyd.psam.counters import PsamRecord
    from keyd.registry.psam import KeptPsam
    from keyd.store.database import Store

T = TypeVar("T")

# How often to ask the store whether another keyd has changed it, and to look at the clock: a key that was stopped
# there works for so long.
POLL_SECONDS: Final = 1.0

# Keys whose waiting period is over can wait for this.
SWEEP_SECONDS: Final = 60.0

# How long sealing waits for a store that should take leases back.
SEAL_SECONDS: Final = 1.0

# What is cut off the journal within this time after it was written shows only against the checkpoints.
ANCHOR_SECONDS: Final = 60.0

# What was seen of terminals is written down so often; a keyd that is killed loses as much of it.
ACTIVITY_SECONDS: Final = 30.0

# How long the journal's disk may keep what was done from taking effect, and the end of keyd from coming.
SETTLE_SECONDS: Final = 2.0

# Shares that were given and not completed are forgotten after this: nobody leaves half a seal lying about.
UNSEALING_SECONDS: Final = 900.0


class Ring(Protocol):
    """What is asked of the key ring. Its epoch grows whenever something else may be decided than before."""

    epoch: int

    def load(
        self,
        keys: Iterable[tuple[KeyHeader, SecretKey]],
        quotas: Mapping[bytes, LeasedQuota] | None = None,
    ) -> None:
        """Replace all keys."""

    def refresh_at(self) -> float | None:
        """Return when next a key begins or ceases to be valid."""

    def look_at_clock(self) -> None:
        """Decide for this moment; if something is decided otherwise than before, it is another epoch."""


class Warden:
    """Runs one vault.

    `adopted` is called when the ring holds something else: short cuts must forget, and the state is another. `say`
    takes an event's name and a sentence, for the log.
    """

    def __init__(
        self,
        vault: Vault,
        store: Store,
        ring: Ring,
        journal: Journal,
        instance: str,
        say: Callable[[str, str], None],
        adopted: Callable[[], None],
        checkpoints: Path | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.vault = vault
        self._store = store
        self._ring = ring
        self._journal = journal
        self._instance = instance
        self._say = say
        self._adopted = adopted
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._loaded: Contents | None = None
        # What the ring's keys may, as it was loaded.
        self._allowed: list[KeyHeader] | None = None
        self._wants_lease = trio.Event()
        self._shares_since = math.inf
        self._checkpoints = checkpoints
        # The ring's clock: seconds since 1970.
        self._now = now
        self._anchored = 0
        self._is_outbox_kept = False
        # The last backup, while an officer takes it in parts.
        self._backups: dict[str, bytes] = {}
        # What this keyd has seen of terminals and not written down yet.
        self.seen = SeenTerminals()
        # Called when the vault holds other contents, after the ring was loaded: terminals may be others now.
        self.registry_changed: Callable[[], None] = _nothing
        # Why the store does not serve, or None.
        self.unavailable_because: str | None = None

    async def activity(self) -> dict[str, Activity]:
        """Return what all keyds of this store have seen of each terminal, as far as they have written it down.

        Raises:
            StoreUnavailable: nobody can say.
        """
        return await trio.to_thread.run_sync(self._store.activity, abandon_on_cancel=True)

    async def psam_record(self, kept: KeptPsam) -> PsamRecord:
        """Return what a PSAM that keyd plays remembers.

        Raises:
            Sealed: nobody can open it.
            StoreUnavailable: it cannot be read, or was altered.
        """
        contents = self.vault.contents
        if contents is None:
            raise Sealed
        held = HeldPsam(kept, contents.psam_keys[kept.number])
        memory = StoreMemory(self._store, held, secrets.token_bytes)
        return await trio.to_thread.run_sync(memory.load, abandon_on_cancel=True)

    def want_lease(self) -> None:
        """Note that a quota runs low. Called from the tick."""
        self._wants_lease.set()

    async def do(self, work: Callable[[], T]) -> T:
        """Run one piece of the vault's work on a thread, and take over what came of it.

        Raises:
            Refusal: the work's own.
        """
        async with self._lock:
            is_ending = False
            try:
                return await trio.to_thread.run_sync(
                    work, limiter=self._limiter, abandon_on_cancel=True
                )
            except trio.Cancelled:
                # keyd ends, and waits for no thread that hangs in a disk.
                is_ending = True
                raise
            finally:
                if not is_ending:
                    await self._settle()

    async def give_share(self, work: Callable[[], T]) -> T:
        """As `do`, for a share: what is not completed in time is forgotten."""
        if not self.vault.progress.given:
            self._shares_since = trio.current_time()
        return await self.do(work)

    async def seal(self, reason: str) -> None:
        """Seal: no key is left in memory when this returns, whatever the store and the disk do."""
        is_told = False
        # Leases go back first, if the store answers soon.
        with trio.move_on_after(SEAL_SECONDS, shield=True):
            async with self._lock:
                is_told = await trio.to_thread.run_sync(
                    lambda: self.vault.seal(reason), limiter=self._limiter, abandon_on_cancel=True
                )
        # Then, in one go, everything. A thread that still hangs somewhere hangs without keys.
        self.vault.drop()
        self.wipe()
        if not is_told:
            with contextlib.suppress(AuditUnavailable):
                self._journal.append(
                    events=[{"event": "sealed", "domain": "LOCAL", "reason": reason}]
                )
            return
        async with self._lock:
            await self._settle()

    def wipe(self) -> None:
        """Wipe every key in memory, now."""
        self._ring.load(())
        self._loaded = self._allowed = None
        self._adopted()
        _core.wipe_all()

    async def run(self) -> None:
        """Keep the store, the ring and the journal together until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll_forever)
            nursery.start_soon(self._lease_forever)
            nursery.start_soon(self._sweep_forever)
            nursery.start_soon(self._look_at_clock_forever)
            nursery.start_soon(self._anchor_forever)
            nursery.start_soon(self._note_activity_forever)

    async def backup(self, officer: Officer, *, is_first: bool) -> bytes:
        """Return a backup: a new one, or the one that an officer has begun to take in parts.

        Raises:
            ChangedMeanwhile: another officer has begun one since.
            Sealed: nothing can be signed.
            StoreUnavailable: the store cannot be read.
        """
        if is_first:
            self._backups = {officer.title: await self.do(lambda: self._make_backup(officer))}
        whole = self._backups.get(officer.title)
        if whole is None:
            raise ChangedMeanwhile("somebody else has begun a backup meanwhile: begin again")
        return whole

    def _make_backup(self, officer: Officer) -> bytes:
        self.vault.record(officer, "backup.made")
        self._empty_outbox()
        contents = self.vault.contents
        if contents is None:
            raise Sealed
        head = self._journal.head()
        journal = JournalHead(self._instance, head.segment, head.number, head.link, head.time_ns)
        snapshot = self._store.load(with_counters=True)
        return make_backup(contents, snapshot, journal, int(self._now()), officer.title)

    async def close(self) -> None:
        """Hand leases back and put the last records into the journal."""
        with trio.move_on_after(SETTLE_SECONDS, shield=True), contextlib.suppress(Refusal):
            await self.do(self.vault.close)
            await self.do(self._note_activity)
            with contextlib.suppress(OSError):
                await self.do(self.anchor)

    async def unseal_by(self, keeper: Keeper) -> None:
        """Unseal with what the configuration names.

        Raises:
            ShareRefused, StoreUnavailable: it does not open the store.
        """
        await self.do(lambda: self.vault.unseal_by_keeper(keeper))

    # ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        is_done = False
        # The records are on disk, in the store: a journal that hangs must not keep a suspended key at work. The thread
        # goes on, and holds the one place for threads until it is done, so that nothing is journaled twice.
        with trio.move_on_after(SETTLE_SECONDS, shield=True):
            try:
                await trio.to_thread.run_sync(
                    self._empty_outbox, limiter=self._limiter, abandon_on_cancel=True
                )
                is_done = True
            except Refusal as refusal:
                # The records stay in the outbox: nothing is lost, and the next turn tries again.
                self._keep_outbox(refusal.detail)
        if is_done:
            self._is_outbox_kept = False
        elif not self._is_outbox_kept:
            self._keep_outbox("the journal's disk, or the store, does not answer")
        self._adopt()

    def _keep_outbox(self, why: str) -> None:
        if not self._is_outbox_kept:
            # Once, and not every second.
            self._say("outbox_kept", why)
        self._is_outbox_kept = True

    def _empty_outbox(self) -> None:
        waiting = self._store.outbox(self._instance)
        if not waiting:
            return
        events: list[dict[str, Any]] = []
        for number, record in waiting:
            event = msgspec.msgpack.decode(record, type=dict[str, Any])
            events.append({**event, "outbox": number})
        self._journal.append(events=events)
        self._journal.sync()
        self._store.sent([number for number, _record in waiting])

    def _adopt(self) -> None:
        """Let the ring hold what the vault holds."""
        contents = self.vault.contents
        if contents is self._loaded:
            return
        if contents is None:
            self.wipe()
            return
        self._loaded = contents
        keys = contents.loaded_keys
        allowed = [_without_counts(header) for header, _key in keys]
        # Otherwise it is a lease, a proposal: nothing that short cuts would have to forget.
        if allowed != self._allowed:
            self._ring.load(keys, self.vault.quotas)
            self._allowed = allowed
            self._adopted()
        self.registry_changed()

    async def _poll_forever(self) -> None:
        while True:
            await trio.sleep(POLL_SECONDS)
            if trio.current_time() - self._shares_since > UNSEALING_SECONDS:
                self._shares_since = math.inf
                await self.do(self.vault.forget_shares)
            try:
                await self.do(self.vault.reload)
            except StoreNotOurs as refusal:
                self._lost(refusal)
                await self.seal(refusal.detail)
            except StoreUnavailable as refusal:
                self._lost(refusal)
            else:
                if self.unavailable_because is not None:
                    self._say("store_back", "")
                self.unavailable_because = None

    async def _lease_forever(self) -> None:
        while True:
            await self._wants_lease.wait()
            self._wants_lease = trio.Event()
            try:
                await self.do(self.vault.renew_quotas)
            except Refusal:
                await trio.sleep(POLL_SECONDS)

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            with contextlib.suppress(Refusal):
                await self.do(self.vault.sweep)

    async def _note_activity_forever(self) -> None:
        while True:
            await trio.sleep(ACTIVITY_SECONDS)
            with contextlib.suppress(Refusal):
                await self.do(self._note_activity)

    def _note_activity(self) -> None:
        seen = self.seen.take()
        try:
            self._store.add_activity(
                self._instance, [Activity(code, *one) for code, one in sorted(seen.items())]
            )
        except Refusal:
            self.seen.put_back(seen)
            raise

    async def _anchor_forever(self) -> None:
        while True:
            await trio.sleep(ANCHOR_SECONDS)
            try:
                await self.do(self.anchor)
            except Refusal as refusal:
                self._say("anchor_missed", refusal.detail)
            except OSError as error:
                self._say("checkpoint_missed", error.strerror or str(error))

    def anchor(self) -> None:
        """Write down elsewhere how far the journal is: in the store, and signed in the checkpoints' file.

        Raises:
            AuditUnavailable, StoreUnavailable: one of them cannot be written.
            OSError: the checkpoints' file cannot.
        """
        if self._journal.position == self._anchored:
            return
        # On disk first: an anchor that is ahead of a journal after a power cut would cry wolf.
        self._journal.sync()
        head = self._journal.head()
        self._store.put_anchor(
            Anchor(self._instance, head.segment, head.number, head.link, head.time_ns)
        )
        contents = self.vault.contents
        if self._checkpoints is not None and contents is not None:
            append_checkpoint(self._checkpoints, head, contents.identity)
        self._anchored = head.number

    async def _look_at_clock_forever(self) -> None:
        while True:
            moment, epoch = self._ring.refresh_at(), self._ring.epoch
            # Not only then: a key with less time may come meanwhile, and somebody may set the clock.
            wait = POLL_SECONDS if moment is None else moment - self._now()
            await trio.sleep(min(max(wait, 0.0), POLL_SECONDS))
            self._ring.look_at_clock()
            # A request may have been quicker to notice: then it is another epoch all the same.
            if self._ring.epoch != epoch:
                self._adopted()

    def _lost(self, refusal: StoreUnavailable) -> None:
        if self.unavailable_because is None:
            self._say("store_unavailable", refusal.detail)
        self.unavailable_because = refusal.detail


def _nothing() -> None:
    """Nobody wants to know."""


def _without_counts(header: KeyHeader) -> KeyHeader:
    return msgspec.structs.replace(header, uses=0, revision=1)
