"""A second interpreter of the policy file: no compilation, no bitsets, calendar days from the standard library.

It reads the same TOML as plain dictionaries and walks through all rules for every question. It shares nothing with
`keyd.policy` but the file.
"""

from __future__ import annotations

import fnmatch
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


class Naive:
    """One file, asked by brute force. `names` says which key is at which address."""

    def __init__(self, text: str, names: dict[int, str]) -> None:
        self.content: dict[str, Any] = tomllib.loads(text)
        self.names = names
        # The n-th header of a role is its n-th rule; the generator writes nothing that looks like one elsewhere.
        self.lines: dict[tuple[str, int], int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("[[roles."):
                role = line.split(".")[1]
                count = sum(1 for known, _ in self.lines if known == role)
                self.lines[role, count] = number

    def allows(
        self,
        roles: set[str],
        method: str,
        address: int | None,
        algorithm: str,
        region: str,
        at: int,
    ) -> int:
        """Return the line of the first rule that allows, or 0."""
        lines = [
            self.lines[role, i]
            for role in roles
            for i, rule in enumerate(self.content["roles"].get(role, {"rules": []})["rules"])
            if self._matches(rule, method, address, algorithm, region, at)
        ]
        return min(lines, default=0)

    def _matches(
        self,
        rule: dict[str, Any],
        method: str,
        address: int | None,
        algorithm: str,
        region: str,
        at: int,
    ) -> bool:
        if not any(fnmatch.fnmatchcase(method, pattern) for pattern in rule["methods"]):
            return False
        if (address is None) != ("keys" not in rule):
            return False
        if address is not None:
            if not any(self._names(entry, address) for entry in rule["keys"]):
                return False
            if algorithm not in rule.get("algorithms", [algorithm]):
                return False
            if not any(region[: len(one)] == one for one in rule.get("regions", [""])):
                return False
        return any(self._is_open(hours, at) for hours in rule.get("hours", ["00:00-24:00"]))

    def _names(self, entry: str, address: int) -> bool:
        name = self.names.get(address)
        if name is None:
            return False
        hexed = f"{address:04X}"
        if "-" in entry:
            first, last = entry.split("-")
            return first <= hexed <= last
        return entry == hexed or fnmatch.fnmatchcase(name, entry)

    def _is_open(self, hours: str, at: int) -> bool:
        local = datetime.fromtimestamp(at, UTC) + self._offset()
        days, _, clock = hours.rpartition(" ")
        start, end = clock.split("-")
        # Today's opening, or yesterday's that runs past midnight.
        return any(
            self._day_is_named(days, begun)
            and self._at(begun, start) <= local < self._end(begun, start, end)
            for begun in (local, local - timedelta(days=1))
        )

    def _offset(self) -> timedelta:
        text = self.content.get("utc_offset", "+08:00")
        size = timedelta(hours=int(text[1:3]), minutes=int(text[4:]))
        return -size if text[0] == "-" else size

    def _end(self, begun: datetime, start: str, end: str) -> datetime:
        over = timedelta(days=1) if end < start else timedelta(0)
        return self._at(begun, end) + over

    @staticmethod
    def _at(day: datetime, clock: str) -> datetime:
        midnight = day.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight + timedelta(hours=int(clock[:2]), minutes=int(clock[3:]))

    @staticmethod
    def _day_is_named(days: str, day: datetime) -> bool:
        if not days:
            return True
        today = day.weekday()
        for part in days.split(","):
            first, _, last = part.partition("-")
            if DAYS.index(first) <= today <= DAYS.index(last or first):
                return True
        return False
