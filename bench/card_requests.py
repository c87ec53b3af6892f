"""Internal authentication called from Python, in batches: by keyd's key ring, and by `cryptography` one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bench.errors import BenchError
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.keys.block import KeyPlace, Use
from keyd.keys.hierarchy import city_diversifier, province_diversifier, region_from_digits
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from keyd.keys.synthetic import synthetic_root

if TYPE_CHECKING:
    from keyd.keys.sam import SamTask

BATCH: Final = 64

_ADDRESS: Final = 1
_REGION: Final = region_from_digits("510100")
_PURPOSE: Final = purpose(Use.INTERNAL)
_COMPLEMENT: Final = bytes(0xFF - byte for byte in range(256))
_HALF: Final = 0xFFFF_FFFF_FFFF_FFFF


class CardRequests:
    """A batch of requests for as many cards of one city, and two ways to answer it."""

    def __init__(self) -> None:
        place = KeyPlace(_ADDRESS, "bench", 1, Algorithm.SM4, Use.INTERNAL)
        self._ring = KeyRing(synthetic([place]))
        self._tasks: list[SamTask] = [
            CryptogramTask(
                CardKeyRef(_ADDRESS, CardAlgorithm.SM4, _REGION, _eight_bytes(3 * i), _PURPOSE),
                _eight_bytes(3 * i + 1),
                _eight_bytes(3 * i + 2),
            )
            for i in range(BATCH)
        ]
        # keyd keeps a city's key, so the other may as well.
        key = synthetic_root(_ADDRESS, Algorithm.SM4)
        for f in (province_diversifier(_REGION), city_diversifier(_REGION)):
            key = _encrypt(key, _both(f))
        self._city_key = key
        if self.by_keyd() != self.by_cryptography():
            raise BenchError("keyd and cryptography make different cryptograms")

    def by_keyd(self) -> list[bytes]:
        """Answer all in one call."""
        return self._ring.compute(self._tasks)  # type: ignore[return-value]  # the first batch was compared

    def by_cryptography(self) -> list[bytes]:
        """Answer one after the other, with a Cipher for every key."""
        return [
            _cryptogram(self._city_key, task.key.diversifier, task.session_factor, task.challenge)
            for task in self._tasks
            if isinstance(task, CryptogramTask)
        ]


def _cryptogram(city_key: bytes, diversifier: bytes, factor: bytes, challenge: bytes) -> bytes:
    card_key = _encrypt(city_key, _both(diversifier))
    session_key = _encrypt(card_key, factor + bytes(8))
    block = int.from_bytes(_encrypt(session_key, challenge + bytes(8)), "big")
    return (block >> 64 ^ block & _HALF).to_bytes(8, "big")


def _encrypt(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.SM4(key), modes.ECB()).encryptor().update(block)  # noqa: S305 -- one block.


def _both(diversifier: bytes) -> bytes:
    return diversifier + diversifier.translate(_COMPLEMENT)


def _eight_bytes(number: int) -> bytes:
    # Any bytes are as good as random ones here, and the same in every run.
    return ((number + 1) * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big")
