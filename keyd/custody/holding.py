"""What one keyd holds of its store: nothing while it is sealed, and otherwise what the store says.

One thread works at a time, in its turn. It commits all of an outcome or nothing, and then holds what the store says,
read anew. Whoever drops everything waits for no turn, and what a thread that hung meanwhile would bring back is not
held any more. Leases of uses are taken and handed back here, for they change with what is held.

What is decided, and who may, is not known here: that is the vault's.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from keyd.custody.bodies import SealBody, StoreAltered, StoreNotOurs, decode
from keyd.custody.ceilings import Leases
from keyd.custody.contents import Contents, open_contents
from keyd.custody.seal import OpenSeal, open_seal
from keyd.errors import ChangedMeanwhile, Refusal, Sealed, StoreUnavailable
from keyd.store.database import OutcomeUnknown
from keyd.store.rows import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyd.crypto.secret import SecretKey
    from keyd.custody.ceilings import LeasedQuota
    from keyd.custody.work import Event, Outcome
    from keyd.store.database import Store
    from keyd.store.rows import Snapshot

T = TypeVar("T")

# Another keyd at the same store may win a race for a row; a third time in a row is not a race any more.
_TRIES: Final = 3

_RACE: Final = "other keyds keep changing the store: trying again later"


class Holding:
    """What one keyd holds of one store. `now` is seconds since 1970; what is written is written in a turn.

    `want_lease` is called from the tick when a quota runs low.
    """

    def __init__(
        self,
        store: Store,
        instance: str,
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        want_lease: Callable[[], None],
    ) -> None:
        self.instance = instance
        self._store = store
        self._now = now
        self._random_bytes = random_bytes
        self._lock = threading.RLock()
        # Grows when everything is dropped: a turn that began before must not bring anything back.
        self._epoch = 0
        self._turn_epoch = 0
        self._turns = 0
        self._contents: Contents | None = None
        self._leases = Leases(want_lease)
        self._seal_body = self.read_seal()

    @property
    def contents(self) -> Contents | None:
        """Everything that is held, or None while sealed."""
        return self._contents

    def require_contents(self) -> Contents:
        """Return everything that is held.

        Raises:
            Sealed: nothing is.
        """
        contents = self._contents
        if contents is None:
            raise Sealed
        return contents

    @property
    def seal_body(self) -> SealBody:
        """The seal, as it was last read: as far as it may be known while it is closed."""
        return self._seal_body

    @property
    def quotas(self) -> dict[bytes, LeasedQuota]:
        """The leases of keys with a ceiling, by key id."""
        return self._leases.quotas

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let one thread work at a time; turns may be nested."""
        with self._lock:
            if not self._turns:
                self._turn_epoch = self._epoch
            self._turns += 1
            try:
                yield
            finally:
                self._turns -= 1

    # Opening and letting go -----------------------------------------------------------------------------

    def read_seal(self) -> SealBody:
        """Read the seal that the store has now, closed.

        Raises:
            StoreUnavailable: it cannot be read, or is none.
        """
        rows = [row for row in self._store.load().rows if row.kind is Kind.SEAL]
        if len(rows) != 1:
            raise StoreUnavailable("the store has no seal: keyd init founds one")
        self._seal_body = _opened(lambda: decode(rows[0], SealBody))
        return self._seal_body

    def open(self, seal_key: SecretKey) -> None:
        """Hold everything that the store has.

        Raises:
            ShareRefused: it is not the seal's key.
            StoreUnavailable: the store cannot be read, or somebody has altered it.
        """
        snapshot = self._store.load()
        seal = _opened(lambda: open_seal(seal_key, snapshot.rows))
        self._seal_body = seal.body
        self._hold(_opened(lambda: open_contents(snapshot, seal)))

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._contents = None
        self._leases.forget()

    def drop(self) -> None:
        """Hold nothing any more, at once; a turn that has begun will not hold anything again."""
        self._epoch += 1
        self.let_go()

    def _hold(self, contents: Contents) -> None:
        if self._turn_epoch != self._epoch:
            raise Sealed("keyd was sealed meanwhile")
        self._contents = contents
        self._leases.keep_to(contents)

    # Writing and reading anew ---------------------------------------------------------------------------

    def commit(self, outcome: Outcome, seal: OpenSeal | None = None) -> None:
        """Write all of it or nothing, and hold what the store then says. `seal` is the new one, if there is one.

        Raises:
            ChangedMeanwhile, StoreUnavailable: nothing was written.
            OutcomeUnknown: it may have been.
        """
        contents = self.require_contents()
        try:
            self._store.commit(
                outcome.changes,
                [self._encoded(event) for event in outcome.events],
                self.instance,
                expected_number=contents.number,
            )
        except ChangedMeanwhile:
            self.reload()
            raise
        except OutcomeUnknown:
            with contextlib.suppress(Refusal):
                self.reload()
            raise
        try:
            snapshot = self._store.load()
        except StoreUnavailable as error:
            raise OutcomeUnknown(
                f"{error.detail} since; what was asked for was done before that: look before asking again"
            ) from None
        if seal is not None:
            self._seal_body = seal.body
            self._hold(_opened(lambda: open_contents(snapshot, seal)))
        else:
            self._hold(_reopened(contents, snapshot))

    def decide_on_the_newest(self, decide: Callable[[Contents], tuple[Outcome, T]]) -> T:
        """Decide, and decide again if another keyd was quicker: nobody has to come back for that."""
        for _ in range(_TRIES):
            outcome, answer = decide(self.require_contents())
            try:
                self.commit(outcome)
            except ChangedMeanwhile:
                continue  # what is held is the newest by now
            return answer
        raise StoreUnavailable(_RACE)

    def record(self, event: Event) -> None:
        """Put a record into the journal's outbox, and nothing else into the store."""
        self._store.commit([], [self._encoded(event)], self.instance)
        if self._contents is not None:
            # Nothing but the number has changed, unless another keyd was quicker: then it is read anew.
            self.reload()

    def reload(self) -> bool:
        """Hold what the store says, if it has changed since. Returns whether it had.

        Raises:
            StoreUnavailable: it cannot be read.
            StoreNotOurs: it was altered, or has another seal now.
        """
        contents = self._contents
        if contents is None or self._store.change_number() == contents.number:
            return False
        self._hold(_reopened(contents, self._store.load()))
        return True

    def _encoded(self, event: Event) -> bytes:
        return msgspec.msgpack.encode({**event, "at": int(self._now())})

    # Leases ---------------------------------------------------------------------------------------------

    def renew_quotas(self) -> None:
        """Take another lease for every key with a ceiling whose quota is low, and write it before it is used.

        Raises:
            StoreUnavailable: the store cannot be written; what was leased before may still be used.
        """
        with self.turn():
            for _ in range(_TRIES):
                try:
                    self._renew_quotas()
                except ChangedMeanwhile:
                    continue  # what is held is the newest by now
                else:
                    return
            raise StoreUnavailable(_RACE)

    def renew_quotas_if_possible(self) -> None:
        """Renew them, after something else that was asked for."""
        # That is done whatever becomes of the leases: they are tried again when they are needed.
        with contextlib.suppress(Refusal):
            self.renew_quotas()

    def commit_leases_back(self, key_id: bytes | None = None) -> Contents:
        """Hand back what is left of one key's lease, or of all; return what is held then."""
        for _ in range(_TRIES):
            try:
                self._give_leases_back(key_id)
            except ChangedMeanwhile:
                continue  # what is held is the newest by now
            return self.require_contents()
        raise StoreUnavailable(_RACE)

    def _renew_quotas(self) -> None:
        outcome, leases = self._leases.renewed(self.require_contents(), self._random_bytes)
        if outcome.changes:
            self.commit(outcome)
        for lease in leases:
            lease.begin()

    def _give_leases_back(self, key_id: bytes | None) -> None:
        outcome, leases = self._leases.returned(self.require_contents(), key_id, self._random_bytes)
        if not outcome.changes:
            return
        try:
            self.commit(outcome)
        except (OutcomeUnknown, StoreNotOurs):
            # They may be back already, for another keyd to use: whoever keeps them as well exceeds the ceiling.
            raise
        except Refusal:
            for lease in leases:
                lease.begin()
            raise


def _opened(opening: Callable[[], T]) -> T:
    try:
        return opening()
    except StoreAltered as error:
        # Fail closed: what somebody has changed is not served, and says so until an operator looks.
        raise StoreNotOurs(f"the store was altered: {error}") from None


def _reopened(contents: Contents, snapshot: Snapshot) -> Contents:
    seal_rows = [row for row in snapshot.rows if row.kind is Kind.SEAL]
    if len(seal_rows) == 1:
        body = _opened(lambda: decode(seal_rows[0], SealBody))
        if body.generation != contents.seal.body.generation:
            raise StoreNotOurs("the store has a new seal: unseal with the new shares")
    return _opened(lambda: open_contents(snapshot, contents.seal, contents))
