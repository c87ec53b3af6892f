"""The hinge: a `Sam` holds card keys and computes with them. The domain knows nothing else of keys.

A software key ring is one; a pool of PSAMs or a hardware module can be. Work is handed over in batches, since
whoever computes gains by seeing all of a tick at once. The domain writes its services as `Steps`: generators
that yield the tasks they need next, receive the results and return their answer, so that one driver can run
every service of a tick side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.block import Use
from keyd.keys.hierarchy import TERMINAL_MASTER_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from keyd.errors import Refusal
    from keyd.keys.hierarchy import Region, Side

T = TypeVar("T")


_USES: Final = tuple(Use)
_USE_NUMBERS: Final = {use: number for number, use in enumerate(_USES)}


class Purpose(NamedTuple):
    """What a key is wanted for: its use, whether only to verify, and which version (0: the current one)."""

    use: Use
    is_verifying: bool
    version: int


def purpose(use: Use, *, is_verifying: bool = False, version: int = 0) -> int:
    """Put a purpose into one number below 2**24."""
    return version << 8 | _USE_NUMBERS[use] << 1 | is_verifying


def purpose_of(number: int) -> Purpose:
    """Read the number that `purpose` made."""
    return Purpose(_USES[number >> 1 & 0x7F], bool(number & 1), number >> 8)


class CardKeyRef(Struct, frozen=True, gc=False):
    """A card's key: whose root (logical address, algorithm), for which card (region, L3 diversifier), for what.

    `purpose` is one number, made by `purpose`, because the hot path compares and caches by it.
    """

    address: int
    algorithm: CardAlgorithm
    region: Region
    diversifier: bytes
    purpose: int

    def __repr__(self) -> str:
        return f"<CardKeyRef {self.address:04X} {self.algorithm.name} {self.region}>"


class _Task(Struct, frozen=True, gc=False):
    key: CardKeyRef

    def __repr__(self) -> str:
        # Its data may be a PIN on its way to a card.
        return f"<{type(self).__name__} {self.key!r}>"


class CryptogramTask(_Task, frozen=True, gc=False):
    """Derive a session key and make the cryptogram over a challenge: 8 bytes."""

    session_factor: bytes
    challenge: bytes


class ProtectTask(_Task, frozen=True, gc=False):
    """Derive a session key and put a command under secure messaging: the ready APDU."""

    session_factor: bytes
    header: bytes
    plaintext: bytes
    encrypt: bool


class MacTask(_Task, frozen=True, gc=False):
    """Derive a session key and make a transaction MAC: 4 bytes."""

    session_factor: bytes
    data: bytes


class TacTask(_Task, frozen=True, gc=False):
    """Make a transaction authentication code under the card key itself: 4 bytes."""

    data: bytes


SamTask = CryptogramTask | ProtectTask | MacTask | TacTask


class TerminalKeyRef(Struct, frozen=True, gc=False):
    """A terminal's key: which (the diversifier, 8 bytes), whose side of it, and for what.

    It names no address: there is one terminal master key, and no way to a card's key from here.
    """

    address: ClassVar[int] = TERMINAL_MASTER_ADDRESS
    algorithm: ClassVar[CardAlgorithm] = CardAlgorithm.SM4

    factor: bytes
    side: Side
    is_verifying: bool

    @property
    def purpose(self) -> int:
        """What it is wanted for, as `purpose` writes it."""
        return purpose(Use.TERMINAL, is_verifying=self.is_verifying)

    def __repr__(self) -> str:
        return f"<TerminalKeyRef {self.side.name}>"


class ProofTask(Struct, frozen=True, gc=False):
    """Make the proof of one side over the other side's challenge and its own, 16 bytes each: 8 bytes."""

    key: TerminalKeyRef
    challenge: bytes
    own: bytes

    def __repr__(self) -> str:
        return f"<ProofTask {self.key!r}>"


class Sam(Protocol):
    """Something that holds card keys and computes with them; and the terminal master key."""

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """Compute a batch. Each result stands where its task stood; one refusal spoils no other."""

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        """Make proofs between terminals and keyd. Each result stands where its task stood."""


if TYPE_CHECKING:
    Steps = Generator[tuple[SamTask, ...], list[bytes], T]
