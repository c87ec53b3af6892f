"""Where a PSAM's keys are: the protocol by which an applet asks for them, and a set of keys of one PSAM alone.

A PSAM names a key by type (the low five bits of 用途), id (标识) and the environment's algorithm. It is given a root,
which diversifies, or an own key, which does not, and never bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.errors import AlgorithmNotSupported
from keyd.keys.hierarchy import RootKey, root_key
from keyd.psam.own import OwnKey

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey

PsamKey = RootKey | OwnKey

# A PSAM names no set. Which one it means is not public; the first is the one that cards are made with. [I]
SET: Final = 1


class KeyName(Struct, frozen=True):
    """How a command names a key: 用途, which is levels and type, and 标识."""

    usage: int
    key_id: int

    @property
    def kind(self) -> int:
        """The type of the key, 0 to 31."""
        return self.usage & 0x1F

    @property
    def levels(self) -> int:
        """How often it is diversified, 0 to 7; there is none of more than 3."""
        return self.usage >> 5


class KeyAttributes(KeyName, frozen=True):
    """What is said of a key when it is loaded: its name and its own algorithm."""

    algorithm: Algorithm


class PsamKeys(Protocol):
    """Something that holds a PSAM's keys. All methods may refuse: what is refused, the PSAM declines."""

    def find(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> PsamKey | None:
        """Return the key for one use of it; None if there is none.

        Raises:
            AlgorithmNotSupported: software does not have the algorithm.
            Refusal: there is such a key, and it must not be used.
        """

    def levels(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> int | None:
        """Return how often a key diversifies, 0 to 3, without using it; None if `find` would return or give none."""

    def attributes(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> KeyAttributes | None:
        """Return what is said of a key that CHANGE KEY may replace; None if there is none."""

    def put(self, attributes: KeyAttributes, algorithm: CardAlgorithm, key: SecretKey) -> None:
        """Take a key in, in the place of one of the same type, id and algorithm. It is kept when this returns."""


class KeySet:
    """Keys of one PSAM, in locked memory and nowhere else."""

    def __init__(self) -> None:
        self._keys: dict[tuple[int, int, CardAlgorithm], tuple[KeyAttributes, PsamKey]] = {}

    def find(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> PsamKey | None:
        """See `PsamKeys.find`."""
        require_computable(algorithm)
        found = self._keys.get((kind, key_id, algorithm))
        return None if found is None else found[1]

    def levels(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> int | None:
        """See `PsamKeys.levels`."""
        found = self._keys.get((kind, key_id, algorithm))
        return None if found is None or algorithm is CardAlgorithm.SSF33 else found[0].levels

    def attributes(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> KeyAttributes | None:
        """See `PsamKeys.attributes`."""
        found = self._keys.get((kind, key_id, algorithm))
        return None if found is None else found[0]

    def put(self, attributes: KeyAttributes, algorithm: CardAlgorithm, key: SecretKey) -> None:
        """See `PsamKeys.put`; here it is kept as long as this object.

        Raises:
            BadParameter: the attributes say more than three levels.
        """
        made: PsamKey = OwnKey(key)
        if attributes.levels:
            made = root_key(key, attributes.levels)
        self._keys[attributes.kind, attributes.key_id, algorithm] = (attributes, made)


def require_computable(algorithm: CardAlgorithm) -> None:
    """Refuse an environment whose arithmetic only hardware has.

    Raises:
        AlgorithmNotSupported: for SSF33.
    """
    if algorithm is CardAlgorithm.SSF33:
        raise AlgorithmNotSupported("SSF33 is not published; it needs hardware that offers it")
