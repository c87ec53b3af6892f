"""A PSAM of keyd's pool as a chip in a slot of this machine, for software that knows readers and not keyd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.client.conversation import ConnectionLost
from keyd.client.psam import Psam
from keyd.errors import BadParameter, NotAllowed, Refusal
from keyd.iso7816 import SW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.client.blocking import Client
    from keyd.crypto.algorithms import CardAlgorithm

# While none is open: direct convention, no interface and no historical bytes.
NO_ATR: Final = b"\x3b\x00"

# ISO 7816-4: no precise diagnosis. What keyd refuses otherwise has no status word of a PSAM's.
NO_DIAGNOSIS: Final = 0x6F00


class LentChip:
    """A PSAM that is opened when the slot is powered, and opened anew when it was lost.

    Whatever keyd's pool refuses, the slot answers with a status word: 6982 where the policy or the opening does not
    allow it, 6700 where it is no command, and 6F00 otherwise: the PSAM is gone then, and what was begun is lost.
    """

    def __init__(
        self, client: Client, keys: Sequence[int], algorithm: CardAlgorithm, number: str = "any"
    ) -> None:
        self._psam = Psam(client, keys, algorithm, number=number)
        self._is_open = False

    @property
    def atr(self) -> bytes:
        """The answer to reset of the PSAM that is open."""
        try:
            self._open()
        except (Refusal, ConnectionLost):
            return NO_ATR
        return self._psam.opened.atr or NO_ATR

    def reset(self) -> bytes:
        """Give the PSAM back and open one anew."""
        self.close()
        return self.atr

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU, whatever the bytes."""
        try:
            self._open()
            return self._psam.transmit(command)
        except NotAllowed:
            return SW.SECURITY_STATUS_NOT_SATISFIED.to_bytes(2, "big")
        except BadParameter:
            return SW.WRONG_LENGTH.to_bytes(2, "big")
        except (Refusal, ConnectionLost):
            self.close()
            return NO_DIAGNOSIS.to_bytes(2, "big")

    def close(self) -> None:
        """Give the PSAM back. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            self._psam.__exit__(None, None, None)

    def _open(self) -> None:
        if not self._is_open:
            self._psam.__enter__()
            self._is_open = True
