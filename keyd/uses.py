"""What the journal is told of one use: 32 bytes, written by dispatch and by the pump in the same way.

Names become numbers once, here: a method, a terminal and a key are looked up at their first use and kept. This
module knows neither how the journal keeps what it is told nor what it does when it cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from keyd.audit.records import CARD_ID_BYTES, USE
from keyd.protocol.commands import TABLE
from keyd.protocol.messages.psam import (
    AskOpen,
    PsamExternalAuthenticate,
    PsamInternalAuthenticate,
    RunOnce,
)

if TYPE_CHECKING:
    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.keys.block import KeyHeader
    from keyd.protocol.fields import Request
    from keyd.terminals import KnownTerminal, Session

__all__ = ["CONNECTION_MASK", "USE", "HasHeaders", "HasNumbers", "Numbers"]

# A connection's number has 4 bytes in a record. After four thousand million of them it begins again.
CONNECTION_MASK: Final = 0xFFFF_FFFF

# How much of a card's identifier is recorded, by the setting `card_ids`. Three bytes are its region.
SHOWN_BYTES: Final = {"none": 0, "masked": 3, "whole": CARD_ID_BYTES}

_NO_CARD: Final = bytes(CARD_ID_BYTES)

_HAS_CARD: Final = frozenset(
    row.request for row in TABLE.values() if "card" in row.request.__struct_fields__
)


class HasNumbers(Protocol):
    """What gives names their numbers: the journal."""

    def number_of(self, kind: str, name: str) -> int:
        """Return the number of a name, the same for as long as the journal is open.

        Raises:
            AuditUnavailable: there is none left.
        """


class HasHeaders(Protocol):
    """What says which key answers: the ring."""

    epoch: int

    def header_of(self, address: int, algorithm: CardAlgorithm, purpose: int) -> KeyHeader | None:
        """Return the header of the key that answers at a place. It is another only in another epoch."""


class Numbers:
    """The numbers of methods, terminals and keys. 0 stands for none.

    Whatever has none yet, when none is left, is an AuditUnavailable: it cannot be recorded.
    """

    def __init__(
        self,
        journal: HasNumbers,
        ring: HasHeaders,
        card_ids: str,
    ) -> None:
        self._journal = journal
        self._ring = ring
        self._epoch = -1
        self.card_id_bytes = SHOWN_BYTES[card_ids]
        self._padding = bytes(CARD_ID_BYTES - self.card_id_bytes)
        self._terminals: dict[str, int] = {}
        self._keys: dict[tuple[int, CardAlgorithm, int], int] = {}
        self._pooled_keys: dict[tuple[int, CardAlgorithm], int] = {}
        # Only what has a number leaves a record.
        self.methods = {
            row.method: journal.number_of("method", row.method)
            for row in TABLE.values()
            if row.audited
        }

    def terminal(self, session: Session) -> int:
        """Return the number of the terminal that is authenticated on a connection."""
        terminal = session.terminal
        if terminal is not session.numbered:
            session.terminal_number = 0 if terminal is None else self._terminal(terminal)
            session.numbered = terminal
        return session.terminal_number

    def key(self, address: int, algorithm: CardAlgorithm, purpose: int) -> int:
        """Return the number of the loaded key that answers to an address, a card's algorithm and a purpose."""
        if self._ring.epoch != self._epoch:
            # Another key may answer now.
            self._epoch = self._ring.epoch
            self._keys.clear()
        place = (address, algorithm, purpose)
        number = self._keys.get(place)
        if number is None:
            header = self._ring.header_of(address, algorithm, purpose)
            if header is None:
                return 0
            number = self._keys[place] = self._journal.number_of("key", header.label)
        return number

    def pooled_key(self, address: int, algorithm: CardAlgorithm) -> int:
        """Return the number of a key that is in the pool: by its address, since nobody sees a PSAM's version of it."""
        place = (address, algorithm)
        number = self._pooled_keys.get(place)
        if number is None:
            label = f"pool/{address:04X}/{algorithm.name}"
            number = self._pooled_keys[place] = self._journal.number_of("key", label)
        return number

    def lent_keys(self, request: Request[Any]) -> list[int]:
        """Return the numbers of the keys that a request has lent to it, or computed with, by PSAMs; [0] for none."""
        if isinstance(request, AskOpen | RunOnce):
            return [self.pooled_key(address, request.algorithm) for address in request.keys]
        if isinstance(request, PsamInternalAuthenticate | PsamExternalAuthenticate):
            return [self.pooled_key(request.address, request.card.algorithm)]
        return [0]

    def card_id(self, request: Request[Any] | None) -> bytes:
        """Return as much of the identifier of a request's card as is to be recorded, with zeros after it."""
        if type(request) not in _HAS_CARD:
            return _NO_CARD
        card_id: bytes = request.card.card_id  # type: ignore[union-attr]  # it has one
        return card_id[: self.card_id_bytes] + self._padding

    def _terminal(self, terminal: KnownTerminal) -> int:
        number = self._terminals.get(terminal.code)
        if number is None:
            number = self._journal.number_of("terminal", terminal.code)
            self._terminals[terminal.code] = number
        return number
