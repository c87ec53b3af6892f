"""The cards of one terminal of the soak: what it asks a PSAM for, with factors and challenges that are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.keys.sam import CardKeyRef, CryptogramTask, ProtectTask, purpose
from tests.lending.members import ALGORITHMS, PROFILE

if TYPE_CHECKING:
    import random

    from keyd.keys.sam import SamTask

REGIONS: Final = (Region("510100"), Region("330102"), Region("110101"))
APPLICATION: Final = bytes.fromhex("00A4040006D15600000590")
GET_TERMINAL: Final = bytes.fromhex("00B0960006")
GET_DATA: Final = bytes.fromhex("00B09A0019")
RESPONSE: Final = bytes.fromhex("00C0000000")


class Cards:
    """Cards that come to a terminal: one card, whose every session is another."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self._region = REGIONS[number % len(REGIONS)]
        self._card = bytes.fromhex(f"8649{number:012}")
        self._chance = chance
        self._algorithm = CardAlgorithm.SM4

    def begin(self, algorithm: CardAlgorithm | None = None) -> list[bytes]:
        """Select an environment, read 终端机编号, and select the application, sometimes by way of GET RESPONSE."""
        self._algorithm = algorithm or self._chance.choice(ALGORITHMS)
        environment = PROFILE.environments[self._algorithm]
        select = bytes.fromhex("00A4000002") + environment.file_id.to_bytes(2, "big")
        responses = [RESPONSE] if self._chance.random() < 0.3 else []
        return [select, GET_TERMINAL, APPLICATION, *responses]

    def cipher(self, algorithm: CardAlgorithm | None = None) -> list[bytes]:
        """DELIVERY of the IRK of a card, and a cryptogram."""
        block = PROFILE.environments[algorithm or self._algorithm].block_bytes
        factor = self._chance.randbytes(8).ljust(block, b"\0")
        challenge = self._chance.randbytes(8).ljust(block, b"\0")
        return [
            bytes.fromhex("BFDE6708") + lv(self.factors() + factor),
            bytes.fromhex("80FA0000") + lv(challenge) + bytes((block,)),
        ]

    def key(self, address: int, use: Use, algorithm: CardAlgorithm) -> CardKeyRef:
        """The key of the card at this address."""
        return CardKeyRef(address, algorithm, self._region, self._card, purpose(use))

    def factors(self) -> bytes:
        """Its diversifiers, lowest first."""
        region = self._region
        return self._card + city_diversifier(region) + province_diversifier(region)

    def task(self) -> SamTask:
        """A cryptogram, or a command under secure messaging."""
        algorithm = self._chance.choice(ALGORITHMS)
        factor, data = self._chance.randbytes(8), self._chance.randbytes(8)

        if self._chance.random() < 0.7:
            return CryptogramTask(self.key(0x0170, Use.INTERNAL, algorithm), factor, data)
        header = bytes.fromhex("84240001")
        return ProtectTask(
            self.key(0x0173, Use.MESSAGING, algorithm), factor, header, data, encrypt=True
        )


def lv(data: bytes) -> bytes:
    """Lc and data."""
    return bytes((len(data),)) + data
