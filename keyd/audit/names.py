"""The numbers of names: how a use record can say a method, a terminal, a key or an officer in a few bytes.

A name gets its number at its first use and keeps it. Its definition has to be on file before the first record that
uses it, or in the same frame, and again at the start of each segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyd.audit.records import KINDS, encode_definition
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Names:
    """The names that one journal knows.

    `number_of` belongs to one thread, and goes on there while another writes definitions to a file.
    """

    def __init__(self) -> None:
        # Definitions that are not on file yet. `number_of` adds at the end, and whoever has written some takes
        # those away at the beginning.
        self.undefined: list[bytes] = []
        self._numbers: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        self._last_numbers = dict.fromkeys(KINDS, 0)

    def number_of(self, kind: str, name: str) -> int:
        """Return the number of a name; the first time, give it one.

        Raises:
            KeyError: there is no such kind.
            AuditUnavailable: there are no numbers left, so nothing can be recorded of it.
        """
        numbers = self._numbers[kind]
        number = numbers.get(name)
        if number is None:
            number = self._last_numbers[kind] + 1
            if number > KINDS[kind]:
                raise AuditUnavailable(f"the journal has no number left for a {kind}")
            encoded = encode_definition(kind, number, name)
            # In this order: a segment that another thread begins restates what has a number by then.
            numbers[name] = self._last_numbers[kind] = number
            self.undefined.append(encoded)
        return number

    def learn(self, fields: Mapping[str, Any]) -> None:
        """Take up what is on file, if it is a definition."""
        if "define" in fields:
            kind, number = fields["define"], fields["number"]
            self._numbers[kind][fields["name"]] = number
            self._last_numbers[kind] = max(self._last_numbers[kind], number)

    def definitions(self) -> Iterator[bytes]:
        """Return every definition, encoded, for a new segment."""
        for kind, numbers in self._numbers.items():
            # Copied: `number_of` goes on in another thread.
            for name, number in list(numbers.items()):
                yield encode_definition(kind, number, name)
