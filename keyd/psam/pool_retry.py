"""When whom the pool could not serve should ask again."""

from __future__ import annotations

from math import ceil, inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.psam.pool_clock import TurnClock
    from keyd.psam.pool_member import PooledMember

# Nobody is told to come back later than this: much may change in a minute.
MOST_MILLISECONDS: Final = 60_000

# When nothing is known, since all members that would do are being read just now.
READING_SECONDS: Final = 1.0


def retry_milliseconds(members: Iterable[PooledMember], clock: TurnClock, now: float) -> int:
    """Return in how many milliseconds it is worth to ask again, at least 1.

    That is when the first of these members has got round to who waits for it now, and not before one of its slots can
    be free; of members that do not serve, when the first is read again.
    """
    members = list(members)
    ready = [_until_free(member, clock, now) for member in members if member.is_ready]
    probes = [member.probe_at - now for member in members if member.probe_at < inf]
    seconds = min(ready or probes, default=READING_SECONDS)
    return min(max(ceil(seconds * 1000), 1), MOST_MILLISECONDS)


def _until_free(member: PooledMember, clock: TurnClock, now: float) -> float:
    queue = (len(member.rotation) + 1) * member.mean_seconds / member.slots
    if member.free:
        return queue
    ends = min((clock.ends(turn) for turn in member.held.values()), default=now)
    return max(queue, ends - now)
