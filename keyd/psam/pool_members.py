"""The pool's members by name, and which of them serves whom: what is refused, and what the strategy prefers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from keyd.errors import LocalProtocolError, NotAllowed, PsamNotFound
from keyd.psam.pool_member import PooledMember
from keyd.psam.pool_terms import MemberState, Strategy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from keyd.psam.level_index import Place


class Members:
    """All members. `remembered` is of how many askers it is known which member they had last."""

    def __init__(self, strategy: Strategy, remembered: int) -> None:
        self._strategy = strategy
        self._remembered = remembered
        self._by_name: dict[str, PooledMember] = {}
        self._last: OrderedDict[str, str] = OrderedDict()

    def __iter__(self) -> Iterator[PooledMember]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> PooledMember:
        try:
            return self._by_name[name]
        except KeyError:
            raise LocalProtocolError(f"there is no member {name}") from None

    def get(self, name: str) -> PooledMember | None:
        """Return a member; None if there is none of this name."""
        return self._by_name.get(name)

    def add(self, member: PooledMember) -> None:
        """Take a member in, whose name nobody has."""
        if member.name in self._by_name or member.slots < 1:
            raise LocalProtocolError(f"member {member.name} is there already, or has no slot")
        self._by_name[member.name] = member

    def remove(self, name: str) -> PooledMember:
        """Let go of a member, and return it."""
        member = self[name]
        del self._by_name[name]
        return member

    def suitable(
        self, asker: str, number: str = "", places: AbstractSet[Place] = frozenset()
    ) -> list[PooledMember]:
        """Return the members that are known to be what an asker wants, whether they serve now or not. Empty: there is
        none yet, but one that is being read for the first time may turn out to be.

        Raises:
            NotAllowed: the number, 终端机编号, is that of another's.
            PsamNotFound: there is none.
        """
        there = [member for member in self if number in ("", member.terminal_number)]
        members = [member for member in there if member.serves(asker, places)]
        if members:
            return members
        if number and there and not any(member.may_serve(asker) for member in there):
            raise NotAllowed(f"PSAM {number} is another terminal's")
        if self.has_unread(asker):
            return []
        if number and not there:
            raise PsamNotFound(f"the pool has no PSAM {number}")
        raise PsamNotFound("the pool has no PSAM with these keys")

    def has_unread(self, asker: str) -> bool:
        """Whether a member that may serve an asker is being read for the first time."""
        return any(m.state is MemberState.READING and m.may_serve(asker) for m in self)

    def best(self, members: Iterable[PooledMember], asker: str) -> PooledMember:
        """Choose one of some members by strategy, and remember that this asker had it."""
        member = min(members, key=lambda member: self._rank(member, asker))
        self._last[asker] = member.name
        self._last.move_to_end(asker)
        if len(self._last) > self._remembered:
            self._last.popitem(last=False)
        return member

    def _rank(self, member: PooledMember, asker: str) -> tuple[bool, int, float, int]:
        """Return how well a member suits an asker: the lowest comes first."""
        preference = 0
        if self._strategy is Strategy.KEY_SET:
            preference = member.keys
        elif self._strategy is Strategy.AFFINITY:
            preference = self._last.get(asker) != member.name
        return (member.owner == "", preference, member.load, member.turns)
