"""What a card remembers, and the few questions that its commands ask of that.

`CardState` is what survives power off; `Session` what does not. A command that cannot go on raises
`Declined`, which `SimulatedCard.transmit` turns into a bare status word.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyd.iso7816 import SW, Aid, Atr, CommandApdu
from keyd.simulator import arithmetic
from keyd.simulator.profile import (
    KEY_TRIES,
    LOCAL_KEY,
    PIN_TRIES,
    STK_ADF,
    STK_DDF,
    CardAlgorithm,
    FileRow,
    KeyRow,
    Use,
    key_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.crypto.secret import SecretKey


class Declined(Exception):  # noqa: N818 - the card's ordinary "no", not an error of the simulator
    """The card answers with this status word and no data."""

    def __init__(self, sw: int) -> None:
        super().__init__(f"{sw:04X}")
        self.sw = sw


@dataclass
class ElementaryFile:
    """A file: who may do what, and its contents (records by tag, or bytes)."""

    row: FileRow
    records: dict[int, bytes] = field(default_factory=dict)
    binary: bytes = b""


@dataclass(frozen=True)
class Proof:
    """What GET TRANSACTION PROOF gives again when the card was pulled before the terminal had it."""

    number: bytes
    mac: bytes
    tac: bytes


@dataclass
class MedicalAccount:
    """The medical application's money, in fen, and its counters."""

    balance: int = 0  # 个人帐户
    own_paid: int = 0  # 个人自付, paid this year
    pooled_paid: int = 0  # 统筹基金, paid this year
    year: int = 0
    starting_day: bytes = bytes.fromhex("0101")
    purchase_number: int = 1
    load_number: int = 1
    proofs: dict[int, Proof] = field(default_factory=dict)


@dataclass(frozen=True)
class Transaction:
    """A debit or a load that was initialised and waits for the command that completes it."""

    kind: int
    key: SecretKey
    pseudo_random: bytes
    number: bytes
    amounts: bytes
    terminal: bytes


@dataclass
class Session:
    """What power off, and some of it SELECT, takes away."""

    application: Aid | None = None
    file: ElementaryFile | None = None
    challenge: bytes | None = None
    rights: set[tuple[Aid, int]] = field(default_factory=set)
    transaction: Transaction | None = None


@dataclass
class CardState:
    """All of a card. Keys are by logical address: a key id and a version lead to one of them."""

    atr: Atr
    algorithm: CardAlgorithm
    fci_algorithm_id: int | None
    files: dict[tuple[Aid, int], ElementaryFile]
    keys: Callable[[int], SecretKey]
    pin: str
    random_bytes: Callable[[int], bytes]
    medical: MedicalAccount = field(default_factory=MedicalAccount)
    pin_tries: int = PIN_TRIES
    key_tries: dict[tuple[Aid, int], int] = field(default_factory=dict)
    blocked: set[Aid] = field(default_factory=set)
    is_blocked: bool = False
    session: Session = field(default_factory=Session)

    def key_row(self, key_id: int, use: Use) -> KeyRow:
        """Find a key of the current application, or of the DDF around it, for a use."""
        row = key_row(self.session.application, key_id)
        if row is None or row.use is not use:
            raise Declined(SW.KEY_NOT_FOUND)
        return row

    def key(self, row: KeyRow, version: int) -> SecretKey:
        """Return the key of this version; versions count from 1."""
        if not 1 <= version <= len(row.addresses):
            raise Declined(SW.KEY_NOT_FOUND)
        return self.keys(row.addresses[version - 1])

    def tries(self, row: KeyRow) -> int:
        """Return how many wrong proofs a key still bears."""
        return self.key_tries.get((row.application, row.key_id), KEY_TRIES)

    def set_tries(self, row: KeyRow, tries: int) -> None:
        """Remember how many wrong proofs a key still bears."""
        self.key_tries[row.application, row.key_id] = tries

    def require_right(self, key_id: int | None) -> None:
        """Insist that the key has been proved since the application was selected; None asks for nothing."""
        if key_id is None:
            return
        row = self.key_row(key_id, Use.PERMISSION)
        if (row.application, key_id) not in self.session.rights:
            raise Declined(SW.SECURITY_STATUS_NOT_SATISFIED)

    def take_challenge(self) -> bytes:
        """Take the last challenge as session factor. Taking it uses it up, whatever comes of it."""
        challenge, self.session.challenge = self.session.challenge, None
        if challenge is None:
            raise Declined(SW.NO_CHALLENGE)
        return challenge

    def open_message(self, apdu: CommandApdu, key_id: int) -> tuple[bytes, SecretKey]:
        """Check the MAC at the end of a command under an STK; return what precedes it and the session key."""
        row = self.key_row(key_id, Use.MESSAGING)
        if len(apdu.data) < arithmetic.MAC_BYTES:
            raise Declined(SW.WRONG_LENGTH)
        session = arithmetic.session_key(self.key(row, 1), self.take_challenge())
        payload, mac = apdu.data[: -arithmetic.MAC_BYTES], apdu.data[-arithmetic.MAC_BYTES :]
        require_equal(
            mac,
            arithmetic.command_mac(session, apdu.header, payload),
            SW.SECURE_MESSAGING_INCORRECT,
        )
        return payload, session

    def decrypt(self, session: SecretKey, ciphertext: bytes) -> bytes:
        """Decrypt the payload of a secure message."""
        try:
            return arithmetic.decrypt_payload(session, ciphertext)
        except ValueError:
            raise Declined(SW.SECURE_MESSAGING_INCORRECT) from None

    @property
    def messaging_key(self) -> int:
        """The key id of the STK that maintains the current application."""
        return STK_DDF if self.session.application is Aid.SSSE else STK_ADF

    def enter(self, application: Aid | None) -> None:
        """Make an application the current one.

        The DDF's rights last while its applications come and go; an application's own end with it, and
        selecting the DDF afresh ends all. The challenge survives: it belongs to the card.
        """
        rights = {
            right
            for right in self.session.rights
            if not right[1] & LOCAL_KEY and application not in (None, Aid.SSSE)
        }
        self.session = Session(application, challenge=self.session.challenge, rights=rights)


def require_equal(given: bytes, right: bytes, otherwise: int) -> None:
    """Compare in constant time; a difference is answered with the status word `otherwise`."""
    if not hmac.compare_digest(given, right):
        raise Declined(otherwise)
