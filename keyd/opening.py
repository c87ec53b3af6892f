"""What a keyd opens at its start besides sockets: its journal, and the custody of its keys.

Whatever is wrong with either is found here, before the first connection, in one sentence.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Final

import trio

from keyd.audit.journal import Journal
from keyd.audit.records import FIRST_RECORD, Anchor
from keyd.audit.verify import verify
from keyd.config import ConfigError, expand
from keyd.custody.vault import Vault
from keyd.errors import AuditUnavailable, Refusal, StoreUnavailable
from keyd.keepers import keepers_of, usable_keepers
from keyd.listening import CannotStart
from keyd.store.database import Store
from keyd.warden import Warden

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.config import Audit, Config
    from keyd.custody.catalogue import Catalogue
    from keyd.custody.founding import Keeper
    from keyd.keepers import KeeperSource
    from keyd.keys.ring import KeyRing


# By then everything is committed: nothing is lost with a store that cannot be closed in time.
_CLOSE_SECONDS: Final = 1.0


class Custody:
    """An open store, the warden of its vault, and what can open its seal without people."""

    def __init__(
        self,
        store: Store,
        warden: Warden,
        sources: Sequence[KeeperSource],
        say: Callable[[str, str], None],
    ) -> None:
        self.warden = warden
        self.store = store
        self._sources = sources
        self._say = say

    async def unseal_by_keepers(self) -> None:
        """Unseal with the first of the configured keepers that can; without any, people have to."""
        known = self.warden.vault.seal_body.keepers
        keepers = usable_keepers(self._sources, known)
        while self.warden.vault.is_sealed:
            keeper = await trio.to_thread.run_sync(next, keepers, None)
            if keeper is None:
                return
            if isinstance(keeper, ConfigError):
                self._say("keeper_unusable", str(keeper))
                continue
            try:
                await self.warden.unseal_by(keeper)
            except Refusal as refusal:
                self._say("unsealing_refused", refusal.detail)

    async def close(self) -> None:
        """Hand back what was leased, write the last records, and let go of the store; wait for no disk that hangs."""
        await self.warden.close()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            # SQLite writes and syncs at its end.
            await trio.to_thread.run_sync(self.store.close, abandon_on_cancel=True)


def open_journal(audit: Audit) -> Journal:
    """Open the journal, and recover it if it was left in the middle of a record.

    Raises:
        CannotStart: there is no room, another keyd has it, or somebody has altered it.
    """
    try:
        return Journal(
            expand(audit.folder),
            audit.instance,
            clock_ns=time.time_ns,
            segment_bytes=audit.segment_bytes,
            retain_segments=audit.retain_segments,
        )
    except AuditUnavailable as error:
        # Another try may work: there may be room then, or the other process may have ended.
        raise CannotStart(str(error)) from None


def open_custody(
    config: Config,
    journal: Journal,
    ring: KeyRing,
    say: Callable[[str, str], None],
    adopted: Callable[[], None],
    catalogue: Catalogue,
) -> Custody:
    """Open the store, sealed, and say if the journal ends before what the store knows of it.

    Raises:
        CannotStart: the store cannot be opened, or was never founded.
        ConfigError: a keeper's settings are wrong.
    """
    instance = config.audit.instance
    warden: Warden

    def want_lease() -> None:
        warden.want_lease()

    def new_keepers() -> list[Keeper]:
        made = []
        for source in sources:
            try:
                made.append(source.new())
            except ConfigError as error:
                say("keeper_left_out", str(error))
        return made

    sources = keepers_of(config)
    try:
        store = Store.open(expand_url(config.store.url))
        _compare(journal, store, instance, say)
        vault = Vault(
            store, instance, time.time, secrets.token_bytes, want_lease, new_keepers, catalogue
        )
    except StoreUnavailable as error:
        raise CannotStart(str(error)) from None
    checkpoints = config.audit.checkpoints
    warden = Warden(
        vault,
        store,
        ring,
        journal,
        instance,
        say,
        adopted,
        expand(checkpoints) if checkpoints else None,
    )
    return Custody(store, warden, sources, say)


def expand_url(url: str) -> str:
    """Return the store's URL, with environment variables put in."""
    # Not `expand`: a path has no two slashes in a row, and a URL has.
    return os.path.expandvars(url)


def _compare(
    journal: Journal, store: Store, instance: str, say: Callable[[str, str], None]
) -> None:
    """Tell loudly of a journal that has lost its end. It goes on: a record that says so is better than none."""
    anchors = store.anchors(instance, limit=1)
    if not anchors:
        return
    anchored = anchors[0]
    # Its length would say little: opening has written records already, and others than before may stand there. The
    # journal has to go through the very link. Only segments from there on are read.
    report = verify(
        journal.folder,
        from_number=max(anchored.sequence - 1, FIRST_RECORD),
        expected=[Anchor(anchored.sequence, anchored.link)],
    )
    if not report.is_good:
        detail = (
            f"the journal does not go through record {anchored.sequence} as the store has it on record: "
            "it was cut, begun anew, or altered"
        )
        journal.append(
            events=[
                {
                    "event": "journal.cut",
                    "anchored_number": anchored.sequence,
                    "anchored_link": anchored.link,
                    "anchored_segment": anchored.segment,
                }
            ]
        )
        say("journal_cut", detail)
