"""The gate: whether a terminal may have a request answered, before any key is used for it.

Roles first, then rates, then what is watched of the card, then the ceiling of PIN resets: whoever may not ask at all
takes nothing from anybody. Every decision is made on the tick, without I/O, from what was read before. The gate knows
neither connections nor answers; `keyd.dispatch` asks it for each request, and the short cuts for what they may answer
unasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyd.policy import Limiter, Quotas, Watch
from keyd.policy.watch import DailyCeiling, SeenCards, region_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.needs import Needs
    from keyd.policy import Asker, PolicyFile, Strange
    from keyd.policy.watch import Seen
    from keyd.protocol.fields import Request
    from keyd.terminals import KnownTerminal, Moment

# Sets of roles that short cuts tell apart, of the 2**16 that they could. A province has a dozen.
MAX_ROLE_SETS: Final = 4096

# What a short cut may answer before the rates are looked at again. To look, what has just arrived goes the long way, a
# hundred times slower: whoever has no rate is not looked at.
MAX_ALLOWANCE: Final = 4096
UNLIMITED: Final = 0xFFFF_FFFF

SECRET_BYTES: Final = 16


class Gate:
    """One keyd's policy in force. `strange` is told what is strange about a card, for metrics and the log."""

    def __init__(
        self,
        file: PolicyFile,
        needs: Needs,
        secret: bytes,
        strange: Callable[[Strange, str], None],
        make_seen: Callable[[], Seen] = SeenCards,
    ) -> None:
        """Take 16 random bytes as the secret of the ceiling's counters. `make_seen` makes what a short cut shares."""
        self._needs = needs
        self._secret = secret
        self._strange = strange
        self._make_seen = make_seen
        # Where cards were seen last.
        self.seen = make_seen()
        self._role_sets: dict[frozenset[str], int] = {}
        self.quotas = Quotas(file.limits.connections)
        self._ceiling = DailyCeiling(
            file.limits.cards.pin_resets_per_day, secret, file.policy.utc_offset_minutes
        )
        self._take(file)

    def take_over(self, file: PolicyFile) -> None:
        """Let another policy be in force. Who is connected stays counted, and so are today's PIN resets."""
        self.quotas.limits = file.limits.connections
        if file.policy.utc_offset_minutes != self._policy.utc_offset_minutes:
            self._ceiling = DailyCeiling(0, self._secret, file.policy.utc_offset_minutes)
        self._ceiling.most = file.limits.cards.pin_resets_per_day
        if file.limits.cards.region_digits != self.limits.cards.region_digits:
            # Regions of so many digits cannot be compared with those of more or fewer.
            self.seen = self._make_seen()
        self._take(file)

    def _take(self, file: PolicyFile) -> None:
        self._policy = file.policy
        self.limits = file.limits
        self._limiter = Limiter(file.limits.rates)
        self._watch = Watch(file.limits.cards, self.seen)
        self._resets_pin = frozenset(
            method for method, shape in file.policy.catalogue.methods.items() if shape.resets_pin
        )

    @property
    def forgotten(self) -> int:
        """Cards that were forgotten while they still mattered."""
        return self._watch.forgotten

    def require_method(self, terminal: KnownTerminal, method: str) -> None:
        """Refuse a method of which no rule of the terminal's roles speaks, before its parameters are even read.

        Raises:
            NotAllowed: so it is.
        """
        self._policy.require_method(terminal.roles, method)

    def admit(
        self, terminal: KnownTerminal, method: str, request: Request[Any], moment: Moment
    ) -> int:
        """Let a request pass; return until when its like passes by the same rule (seconds since 1970).

        Raises:
            NotAllowed: no rule allows it.
            RateLimited: there were too many.
            CardLimit: the card is strange, and that is denied; or its PIN was reset often enough today.
            BadParameter: a string of the terminal library cannot be read that far.
        """
        needs = self._needs
        need = needs.of(request)
        allowed = self._policy.may_all(
            terminal.roles, method, need.addresses, need.algorithm, need.region, moment.unix
        )
        keys = [(address, need.algorithm) for address in need.addresses]
        self._limiter.admit(terminal.asker, method, keys, _nanoseconds(moment.monotonic))
        if need.commands > 1:
            self.charge(terminal.asker, moment.monotonic, need.commands - 1)
        card = needs.card_name(need)
        if card is not None:
            strange = self._watch.notice(card, terminal.region, int(moment.monotonic))
            if strange is not None:
                self._strange(strange, terminal.code)
            if method in self._resets_pin:
                self._ceiling.count(card, moment.unix)
        return allowed.until

    def require_still(
        self, terminal: KnownTerminal, method: str, request: Request[Any], moment: Moment
    ) -> None:
        """Refuse what goes on by a request that was let pass earlier, if it would not be now. It takes nothing.

        Raises:
            NotAllowed: no rule allows the request any more.
        """
        need = self._needs.of(request)
        self._policy.may_all(
            terminal.roles, method, need.addresses, need.algorithm, need.region, moment.unix
        )

    def notice_failure(
        self, terminal: KnownTerminal, request: Request[Any], moment: Moment
    ) -> None:
        """Take note that something did not verify with the request's card."""
        card = self._needs.card_name(self._needs.of(request))
        if card is not None:
            strange = self._watch.notice_failure(card, int(moment.monotonic))
            if strange is not None:
                self._strange(strange, terminal.code)

    # For short cuts -------------------------------------------------------------------------------------

    def may_short_cut(self, method: str) -> bool:
        """Whether good requests of this method may be answered unasked, within an allowance."""
        # A key's or a method's count is everybody's, and a card that failed often is denied by the long way alone.
        cards = self.limits.cards
        return not (self._limiter.counts_by_key_or(method) or cards.deny_failures)

    def role_set(self, terminal: KnownTerminal) -> int:
        """Return the number of the terminal's set of roles; 0, for which nothing is learnt, if there are too many."""
        number = self._role_sets.get(terminal.roles, 0)
        if not number and len(self._role_sets) < MAX_ROLE_SETS:
            number = self._role_sets[terminal.roles] = len(self._role_sets) + 1
        return number

    def region(self, terminal: KnownTerminal) -> int:
        """Return where a terminal stands, as the watch compares it; 0 if it stands nowhere."""
        return region_number(terminal.region, self.limits.cards.region_digits)

    @property
    def window_seconds(self) -> int:
        """How long a card must have been away from one region before another is nothing strange."""
        return self.limits.cards.region_minutes * 60

    def allowance(self, asker: Asker, monotonic: float) -> int:
        """Return how many requests of an asker may be answered before its rates are to be looked at again."""
        if not self._limiter.counts_by_asker:
            return UNLIMITED
        return self._limiter.room(asker, _nanoseconds(monotonic), MAX_ALLOWANCE)

    def charge(self, asker: Asker, monotonic: float, answered: int) -> None:
        """Count what was answered out of an allowance."""
        if answered:
            self._limiter.charge(asker, _nanoseconds(monotonic), answered)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
