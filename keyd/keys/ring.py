"""The key ring: a `Sam` in software. It holds the roots and computes on the calling thread.

City keys are kept in a small cache, because a city issues millions of cards; card keys never are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.native._core import CardKernel
from keyd.errors import AlgorithmNotSupported, KeyNotFound
from keyd.keys.hierarchy import Region, RootKey, city_key, root_key
from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, ProtectTask, SamTask, TacTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyd.crypto.native._core import KeyHandle
    from keyd.crypto.secret import SecretKey
    from keyd.errors import Refusal
    from keyd.keys.block import KeyHeader

# China has about 400 cities and a key ring some 155 addresses; a machine park asks for few of either.
MAX_CITY_KEYS: Final = 4096

# Which card algorithm a loaded key answers to. A DES card has 3DES keys and single-length ones (STK).
_CARD_ALGORITHM: Final = {
    Algorithm.SM4: CardAlgorithm.SM4,
    Algorithm.TDES: CardAlgorithm.DES,
    Algorithm.DES: CardAlgorithm.DES,
}


class LoadedKey(Struct, frozen=True):
    """A root in the ring and the header that came with it."""

    header: KeyHeader
    root: RootKey


class KeyRing:
    """Roots by logical address and card algorithm."""

    def __init__(self, keys: Iterable[tuple[KeyHeader, SecretKey]]) -> None:
        self._roots: dict[tuple[int, CardAlgorithm], LoadedKey] = {}
        for header, key in keys:
            place = (header.address, _CARD_ALGORITHM[header.algorithm])
            if place in self._roots:
                raise ValueError(f"two keys for address {header.address:04X} and one algorithm")
            self._roots[place] = LoadedKey(header, root_key(key, header.levels))
        self._kernel = CardKernel(
            cryptogram=CryptogramTask,
            mac=MacTask,
            protect=ProtectTask,
            tac=TacTask,
            max_cities=MAX_CITY_KEYS,
        )

    @property
    def headers(self) -> tuple[KeyHeader, ...]:
        """The headers of all loaded keys, by address and algorithm."""
        return tuple(self._roots[place].header for place in sorted(self._roots))

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """Compute a batch; see `keyd.keys.sam.Sam`."""
        return self._kernel.compute(tasks, self._open_city)

    def maybe_city(
        self, address: int, algorithm: CardAlgorithm, region: Region
    ) -> KeyHandle | None:
        """Return a city's key if it is among those kept, for who computes with it beside the ring."""
        return self._kernel.city(address, algorithm, region)

    def _open_city(self, ref: CardKeyRef) -> KeyHandle:
        if ref.algorithm is CardAlgorithm.SSF33:
            raise AlgorithmNotSupported("SSF33 is not published; it needs hardware that offers it")
        loaded = self._roots.get((ref.address, ref.algorithm))
        if loaded is None:
            raise KeyNotFound(
                f"no key is loaded for address {ref.address:04X} and {ref.algorithm.name}"
            )
        return city_key(loaded.root, ref.region).handle
