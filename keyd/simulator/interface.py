"""The words of the terminal interface: its strings, its two failures, and what a step leaves for the next.

Fields end with `|`, the last one too; hex is upper case. What does not look exactly so came from a back end
that has to be mended, and is not guessed at.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import status_word_name

if TYPE_CHECKING:
    from keyd.simulator.dialogues import OpenedCard
    from keyd.simulator.profile import FileRow

# `SSSEEF06|08|09|$`: application and file, then the tags of the records; a plain file has none.
FILE_ADDRESS: Final = re.compile(r"\A(SSSE|DF0[12347])(EF[0-9A-F]{2})\|((?:[0-9A-F]{2}\|)*)\$\Z")
PROOF: Final = re.compile(r"\A([0-9A-F]{32})\|?\Z")
BASIC_PROOFS: Final = re.compile(r"\A([0-9A-F]{32})\|([0-9A-F]{32}|)\|\Z")
COMMAND: Final = re.compile(r"\A((?:[0-9A-F]{2})+)\|?\Z")
DEBIT: Final = re.compile(r"\A([0-9A-F]{8})\|(\d{14})\|([0-9A-F]{8})\|\Z", re.ASCII)


class CardRefused(Exception):  # noqa: N818 - it says what happened, as the house's exceptions do
    """The card answered with a status word that ends the function; `code` is what the library returns."""

    def __init__(self, sw: int, ins: int) -> None:
        super().__init__(f"INS {ins:02X}: {status_word_name(sw)}")
        self.sw = sw
        self.code = -sw


class CardNotGenuine(Exception):  # noqa: N818 - likewise
    """The card's cryptogram is not the one that the back end computed."""


@dataclasses.dataclass(frozen=True)
class BasicData:
    """What iReadCardBas reads. Name and number stay out of the repr."""

    region: str
    algorithm: int
    historical: str
    identifier: str
    version: str
    issued: str
    expires: str
    card_number: str
    social_security_number: str = dataclasses.field(repr=False)
    name: str = dataclasses.field(repr=False)


# What a step leaves for the next one of its function.


@dataclasses.dataclass(frozen=True)
class BasicBegun:
    """After iReadCardBas step 1; the external challenge is None if the card asks for no proof."""

    card: OpenedCard
    session_factor: bytes
    challenge: bytes
    external_challenge: bytes | None


@dataclasses.dataclass(frozen=True)
class ReadBegun:
    """After iReadCard step 1; the challenge is None if reading is free."""

    row: FileRow
    tags: tuple[int, ...]
    challenge: bytes | None


@dataclasses.dataclass(frozen=True)
class WriteBegun:
    """After iWriteCard step 1: the records to write, by tag, or the one content of a plain file."""

    row: FileRow
    values: tuple[tuple[int, bytes], ...]
    challenge: bytes


@dataclasses.dataclass(frozen=True)
class PinBegun:
    """After step 1 of iReloadPIN or iUnblockPIN."""

    is_reload: bool
    algorithm: int
    challenge: bytes


@dataclasses.dataclass(frozen=True)
class PinPermitted:
    """After step 2 of either: how the message that is now to come begins, and how long it is."""

    header: str
    total_bytes: int


@dataclasses.dataclass(frozen=True)
class DebitBegun:
    """After iDoDebit step 1: what step 2 repeats, in the words of step 1."""

    algorithm: str
    address: str
    amounts: str
    terminal: str


def joined(*values: str | bytes) -> str:
    """Write fields as the interface does: each ended by `|`, bytes in upper-case hex."""
    return "".join(
        f"{value.hex().upper() if isinstance(value, bytes) else value}|" for value in values
    )


def matched_untrusted(pattern: re.Pattern[str], answer: str) -> tuple[str, ...]:
    """Split the back end's answer into its fields."""
    match = pattern.match(answer)
    if match is None:
        raise RemoteProtocolError("the back end's answer is not of the form that this step takes")
    return match.groups()


def proof_untrusted(hex_digits: str, challenge: bytes) -> bytes:
    """Return 鉴别数据 ‖ 原信息, insisting that the 原信息 is the one that was sent."""
    proof = bytes.fromhex(hex_digits)
    if proof[8:] != challenge:
        raise RemoteProtocolError("the back end answered for another challenge")
    return proof
