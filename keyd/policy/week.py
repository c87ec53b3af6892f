"""The hours of a week, as a set of minutes: read from "Mon-Fri 08:00-17:30", and found for a moment.

A week is an integer with a bit for each of its 10,080 minutes, Monday 00:00 first. China has one time zone and
no summer time, so an offset that never changes is all the calendar there is.
"""

from __future__ import annotations

import re
from typing import Final

DAY_MINUTES: Final = 24 * 60
WEEK_MINUTES: Final = 7 * DAY_MINUTES
ALWAYS: Final = (1 << WEEK_MINUTES) - 1

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

# 1970-01-01 was a Thursday.
_EPOCH_MINUTE: Final = 3 * DAY_MINUTES

_DAY: Final = "|".join(DAYS)
# \Z, not $: in Python, $ also matches before a trailing newline.
_HOURS: Final = re.compile(
    rf"\A(?:(?P<days>(?:{_DAY})(?:-(?:{_DAY}))?(?:,(?:{_DAY})(?:-(?:{_DAY}))?)*) )?"
    r"(?P<from>[0-2][0-9]:[0-5][0-9])-(?P<to>[0-2][0-9]:[0-5][0-9])\Z"
)
_OFFSET: Final = re.compile(r"\A([+-])([01][0-9]):([0-5][0-9])\Z")


def week_of(text: str) -> int:
    """Return the minutes of "08:00-17:30" (every day) or "Mon-Fri,Sun 22:00-06:00" (into the next day).

    Raises:
        ValueError: it is neither; the sentence says why.
    """
    match = _HOURS.match(text)
    if match is None:
        raise ValueError(f'{text!r} is no hours: write "08:00-17:30" or "Mon-Fri 08:00-17:30"')
    start, end = _minute(match["from"]), _minute(match["to"])
    if start in (end, DAY_MINUTES):
        raise ValueError(f"{text!r} is no time at all; a whole day is 00:00-24:00")
    length = end - start if end > start else end - start + DAY_MINUTES
    week = 0
    for day in _days(match["days"], text):
        minutes = ((1 << length) - 1) << (day * DAY_MINUTES + start)
        # Sunday night ends on Monday morning.
        week |= (minutes & ALWAYS) | (minutes >> WEEK_MINUTES)
    return week


def offset_of(text: str) -> int:
    """Return the minutes that local time is ahead of UTC by, from "+08:00".

    Raises:
        ValueError: it is no such offset.
    """
    match = _OFFSET.match(text)
    if match is None:
        raise ValueError(f'{text!r} is no offset from UTC: write "+08:00"')
    minutes = int(match[2]) * 60 + int(match[3])
    return -minutes if match[1] == "-" else minutes


def minute_of_week(now: int, offset: int) -> int:
    """Return which minute of the local week a moment (seconds of Unix time) is in."""
    return (now // 60 + offset + _EPOCH_MINUTE) % WEEK_MINUTES


def is_open(week: int, minute: int) -> bool:
    """Whether a minute of the week is one of these."""
    return bool(week >> minute & 1)


def minutes_left(week: int, minute: int) -> int | None:
    """Return for how many minutes from this one on it stays open, 0 if it is closed; None if it never closes."""
    ahead = (week >> minute | week << (WEEK_MINUTES - minute)) & ALWAYS
    closed = ~ahead & ALWAYS
    return (closed & -closed).bit_length() - 1 if closed else None


def edges(week: int) -> set[int]:
    """Return the minutes of the week at which it opens or closes."""
    rotated = (week << 1 | week >> (WEEK_MINUTES - 1)) & ALWAYS
    changed = week ^ rotated
    found = set()
    while changed:
        lowest = changed & -changed
        found.add(lowest.bit_length() - 1)
        changed ^= lowest
    return found


def _minute(clock: str) -> int:
    minute = int(clock[:2]) * 60 + int(clock[3:])
    if minute > DAY_MINUTES:
        raise ValueError(f"{clock} is no time of day")
    return minute


def _days(text: str | None, hours: str) -> set[int]:
    if text is None:
        return set(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = DAYS.index(first), DAYS.index(last or first)
        if end < start:
            raise ValueError(f"{part} in {hours!r} runs backwards; a week begins on Monday")
        named = set(range(start, end + 1))
        if days & named:
            raise ValueError(f"a day is there twice in {hours!r}")
        days |= named
    return days
