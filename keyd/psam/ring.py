"""The key ring as a PSAM's keys: type and id lead to a logical address, and the ring decides what answers there.

Each time a key is found it counts as one use, and state, validity and ceiling of the key are the ring's to look at.
Keys that were loaded by CREATE KEY, and the PSAM's own, are in a set of its own and come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from keyd.errors import KeyNotFound, Refusal
from keyd.keys.hierarchy import Region
from keyd.keys.sam import CardKeyRef, purpose
from keyd.psam.keys import SET, KeyAttributes, PsamKey, PsamKeys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.cards.profile import ProfileKey
    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.crypto.secret import SecretKey
    from keyd.keys.block import KeyHeader
    from keyd.keys.hierarchy import RootKey

# The ring wants to know for which city and card; of a root that is lent it does not matter.
_NOBODY: Final = Region("000000")


class LendsRoots(Protocol):
    """What is asked of the key ring."""

    def lend(self, ref: CardKeyRef) -> RootKey:
        """See `keyd.keys.ring.KeyRing.lend`."""

    def answering(self, ref: CardKeyRef) -> KeyHeader:
        """See `keyd.keys.ring.KeyRing.answering`."""


class RingKeys:
    """A ring's roots, by what a PSAM calls them, behind the keys of one PSAM."""

    def __init__(self, ring: LendsRoots, places: Iterable[ProfileKey], own: PsamKeys) -> None:
        self._ring = ring
        self._own = own
        self._places: Final = {
            (place.psam_type, place.psam_id): place for place in places if place.set == SET
        }

    def find(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> PsamKey | None:
        """See `PsamKeys.find`.

        Raises:
            AlgorithmNotSupported: for SSF33.
            KeyVersionRefused, KeyStateRefused, KeyNotValidNow, KeyUsageRefused, KeyExhausted: the ring's key must not
                be used.
        """
        own = self._own.find(kind, key_id, algorithm)
        place = self._places.get((kind, key_id))
        if own is not None or place is None:
            return own
        try:
            return self._ring.lend(_ref(place, algorithm))
        except KeyNotFound:
            return None

    def levels(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> int | None:
        """See `PsamKeys.levels`: the key's header says it, and no use is counted."""
        own = self._own.levels(kind, key_id, algorithm)
        place = self._places.get((kind, key_id))
        if own is not None or place is None:
            return own
        try:
            return self._ring.answering(_ref(place, algorithm)).levels
        except Refusal:
            return None

    def attributes(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> KeyAttributes | None:
        """See `PsamKeys.attributes`: the ring's keys are officers' to change, not a command's."""
        return self._own.attributes(kind, key_id, algorithm)

    def put(self, attributes: KeyAttributes, algorithm: CardAlgorithm, key: SecretKey) -> None:
        """See `PsamKeys.put`."""
        self._own.put(attributes, algorithm, key)


def _ref(place: ProfileKey, algorithm: CardAlgorithm) -> CardKeyRef:
    return CardKeyRef(place.address, algorithm, _NOBODY, bytes(8), purpose(place.use))
