"""What the terminal's dynamic library (LD/T 33-2015) does between the card and the back end.

Each step talks to the card and ends where the back end has to be asked: the string that it returns goes to
the back end, and the `pkey` that comes back goes into the next step. The library knows no key: it only
compares and carries.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Final, TypeVar

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.iso7816 import (
    Aid,
    CommandApdu,
    Dialogue,
    UnexpectedStatusWord,
    converse,
    historical_bytes,
    transmit,
)
from keyd.simulator import dialogues, fields
from keyd.simulator.interface import (
    BASIC_PROOFS,
    COMMAND,
    DEBIT,
    FILE_ADDRESS,
    PROOF,
    BasicBegun,
    BasicData,
    CardNotGenuine,
    CardRefused,
    DebitBegun,
    PinBegun,
    PinPermitted,
    ReadBegun,
    WriteBegun,
    joined,
    matched_untrusted,
    proof_untrusted,
)
from keyd.simulator.profile import (
    ALGORITHMS,
    DEBIT_KEYS,
    DEBIT_TYPE,
    GENERATIONS,
    KEYS,
    MEDICAL_APPLICATION,
    PUK,
    RKSSSE,
    STK_DDF,
    FileRow,
    Structure,
    file_rows,
    key_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.simulator.dialogues import OpenedCard

T = TypeVar("T")

RANDOM_BYTES: Final = 8

_APPLICATIONS: Final = {aid.name: aid for aid in Aid if aid.name.startswith(("SSSE", "DF"))}


class TerminalLibrary:
    """The library with one card in its slot. A function's steps follow each other; a first step starts anew.

    Raises, from every step:
        CardRefused: the card said no.
        RemoteProtocolError: the card's or the back end's bytes are not what the interface says.
        LocalProtocolError: the step before this one has not been taken.
    """

    def __init__(
        self,
        card_transmit: Callable[[bytes], bytes],
        atr: bytes,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._transmit = card_transmit
        self._historical = historical_bytes(atr)
        self._random_bytes = random_bytes
        self._begun: object = None

    def read_card_bas_step1(self) -> str:
        """iReadCardBas_HSM_Step1: what it takes to authenticate the card, and the back end to a 3.0 card."""
        card = self._talk(dialogues.open_card())
        session_factor = self._random_bytes(RANDOM_BYTES)
        challenge = self._random_bytes(RANDOM_BYTES)
        external = external_challenge = None
        if card.generation == "3.0":
            external, external_challenge = self._talk(dialogues.get_two_challenges())
        self._begun = BasicBegun(card, session_factor, challenge, external_challenge)
        return joined(
            card.region,
            self._historical,
            f"{card.algorithm:02X}",
            card.identifier,
            session_factor,
            challenge,
            external or b"",
            external_challenge or b"",
        )

    def read_card_bas_step2(self, pkey: str) -> BasicData:
        """iReadCardBas_HSM_Step2: compare the card with the back end's answer, then read it.

        Raises:
            CardNotGenuine: the card's cryptogram is another.
        """
        begun = self._expect(BasicBegun)
        internal, external = matched_untrusted(BASIC_PROOFS, pkey)
        expected = proof_untrusted(internal, begun.challenge)
        cryptogram = self._talk(
            dialogues.internal_authenticate(begun.session_factor, begun.challenge)
        )
        if not hmac.compare_digest(cryptogram, expected[:8]):
            raise CardNotGenuine("the card's cryptogram is not the one that the back end computed")
        if begun.external_challenge is not None:
            proof = proof_untrusted(external, begun.external_challenge)
            self._talk(dialogues.external_authenticate(RKSSSE, proof))
        return self._talk(self._read_basic_data(begun.card))

    def read_card_step1(self, file_address: str) -> str:
        """iReadCard_HSM_Step1 for a file, as `SSSEEF06|08|09|$`; a free one leaves the fields empty."""
        card, row, tags = self._open_file(file_address)
        if row.read is None:
            self._begun = ReadBegun(row, tags, None)
            return joined(f"{card.algorithm:02X}", "", "", "")
        line, challenge = self._ask_permission(card, row.application, row.read)
        self._begun = ReadBegun(row, tags, challenge)
        return line

    def read_card_step2(self, pkey: str = "") -> str:
        """iReadCard_HSM_Step2: prove the right, then read: the values, or the hex of a plain file."""
        begun = self._expect(ReadBegun)
        if begun.challenge is not None and begun.row.read is not None:
            (proof,) = matched_untrusted(PROOF, pkey)
            proof_bytes = proof_untrusted(proof, begun.challenge)
            self._talk(dialogues.external_authenticate(begun.row.read, proof_bytes))
        self._talk(dialogues.select_file(begun.row.file_id))
        if begun.row.structure is Structure.BINARY:
            return joined(self._talk(dialogues.read_binary()))
        return joined(*self._talk(dialogues.read_fields(begun.tags)))

    def write_card_step1(self, file_address: str, values: Sequence[str]) -> str:
        """iWriteCard_HSM_Step1: one value for each tag, or one in hex for a plain file."""
        card, row, tags = self._open_file(file_address)
        if row.structure is Structure.BINARY:
            (content,) = values
            encoded: tuple[tuple[int, bytes], ...] = ((0, bytes.fromhex(content)),)
        else:
            pairs = zip(tags, values, strict=True)
            encoded = tuple((tag, fields.encode_field(tag, value)) for tag, value in pairs)
        line, challenge = self._ask_permission(card, row.application, row.write)
        self._begun = WriteBegun(row, encoded, challenge)
        return line

    def write_card_step2(self, pkey: str) -> None:
        """iWriteCard_HSM_Step2: prove the right, then write plainly."""
        begun = self._expect(WriteBegun)
        (proof,) = matched_untrusted(PROOF, pkey)
        proof_bytes = proof_untrusted(proof, begun.challenge)
        self._talk(dialogues.external_authenticate(begun.row.write, proof_bytes))
        self._talk(dialogues.select_file(begun.row.file_id))
        for tag, value in begun.values:
            if begun.row.structure is Structure.BINARY:
                self._talk(dialogues.update_binary(value))
            else:
                self._talk(dialogues.update_record(tag, value))

    def reload_pin_step1(self) -> str:
        """iReloadPIN_HSM_Step1: ask the back end to prove the PUK."""
        return self._begin_pin(is_reload=True)

    def reload_pin_step2(self, pkey: str, new_pin: str) -> str:
        """iReloadPIN_HSM_Step2: prove the PUK, then ask for the message with `new_pin`, in clear here."""
        return self._permit_pin(pkey, new_pin, is_reload=True)

    def reload_pin_step3(self, pkey: str) -> None:
        """iReloadPIN_HSM_Step3: give the card its message."""
        self._finish_pin(pkey)

    def unblock_pin_step1(self) -> str:
        """iUnblockPIN_HSM_Step1: ask the back end to prove the PUK."""
        return self._begin_pin(is_reload=False)

    def unblock_pin_step2(self, pkey: str) -> str:
        """iUnblockPIN_HSM_Step2: prove the PUK, then ask for the message."""
        return self._permit_pin(pkey, "", is_reload=False)

    def unblock_pin_step3(self, pkey: str) -> None:
        """iUnblockPIN_HSM_Step3: give the card its message."""
        self._finish_pin(pkey)

    def do_debit_step1(
        self,
        *,
        own: int,
        pooled: int,
        terminal: str,
        time: str,
        account: int = 0,
        key_index: int = 1,
    ) -> str:
        """iDoDebit_HSM_Step1. Amounts in fen; `terminal` 12 digits, `time` YYYYMMDDhhmmss.

        The interface carries only 个人自付 and 统筹基金. An `account` (个人帐户) other than 0 is told to the
        card but not to the back end, whose MAC1 must then fail: useful for showing just that.
        """
        amounts = b"".join(amount.to_bytes(4, "big") for amount in (account, own, pooled))
        data = bytes((key_index,)) + amounts + bytes.fromhex(terminal)
        self._talk(dialogues.open_card())
        self._talk(dialogues.select(MEDICAL_APPLICATION))
        answer = self._send(CommandApdu(0xB0, 0x28, 0x01, 0x01, data, le=22))
        if len(answer) != 22 or key_index not in DEBIT_KEYS:
            raise RemoteProtocolError(
                "the card answered INITIALIZE FOR PURCHASE with another length or key"
            )
        number, pseudo_random = answer[14:16], answer[18:22]
        version, algorithm = answer[16], answer[17]
        begun = DebitBegun(
            algorithm=f"{algorithm:02X}",
            address=f"{DEBIT_KEYS[key_index] + version - 1:04X}",
            amounts=amounts[4:].hex().upper(),
            terminal=terminal,
        )
        self._begun = begun
        return joined(
            begun.algorithm,
            begun.address,
            pseudo_random,
            number,
            begun.amounts,
            f"{DEBIT_TYPE:02X}",
            terminal,
            time,
        )

    def do_debit_step2(self, pkey: str) -> str:
        """iDoDebit_HSM_Step2: debit under the back end's MAC1 and numbers; return MAC2 and TAC to check."""
        begun = self._expect(DebitBegun)
        number, time, mac1 = matched_untrusted(DEBIT, pkey)
        data = bytes.fromhex(number + time + mac1)
        answer = self._send(CommandApdu(0xB0, 0x2C, 0x01, 0x00, data, le=8))
        if len(answer) != 8:
            raise RemoteProtocolError("the card answered DEBIT FOR PURCHASE with another length")
        return joined(
            answer[4:],
            begun.algorithm,
            begun.address,
            begun.amounts,
            f"{DEBIT_TYPE:02X}",
            begun.terminal,
            number,
            time,
            answer[:4],
        )

    def verify_pin(self, pin: str) -> None:
        """Select the environment and verify the holder's PIN."""
        self._talk(dialogues.select(Aid.SSSE))
        self._send(CommandApdu(0x00, 0x20, 0x00, 0x00, _pin_bytes(pin)))

    def change_pin(self, old: str, new: str) -> None:
        """Select the environment and change the PIN, knowing the old one."""
        self._talk(dialogues.select(Aid.SSSE))
        self._send(CommandApdu(0x80, 0x5E, 0x01, 0x00, _pin_bytes(old) + b"\xff" + _pin_bytes(new)))

    def _read_basic_data(self, card: OpenedCard) -> Dialogue[BasicData]:
        yield from dialogues.select_file(0xEF05)
        free = (fields.VERSION, fields.ISSUED, fields.EXPIRES, fields.CARD_NUMBER)
        version, issued, expires, card_number = yield from dialogues.read_fields(free)
        yield from dialogues.select_file(0xEF06)
        number, name = yield from dialogues.read_fields(
            (fields.SOCIAL_SECURITY_NUMBER, fields.NAME)
        )
        return BasicData(
            region=card.region,
            algorithm=card.algorithm,
            historical=self._historical.hex().upper(),
            identifier=card.identifier,
            version=version,
            issued=issued,
            expires=expires,
            card_number=card_number,
            social_security_number=number,
            name=name,
        )

    def _open_file(self, file_address: str) -> tuple[OpenedCard, FileRow, tuple[int, ...]]:
        match = FILE_ADDRESS.match(file_address)
        if match is None:
            raise ValueError(f"{file_address!r} is not a file address")
        card = self._talk(dialogues.open_card())
        application = _APPLICATIONS[match[1]]
        generation = GENERATIONS.get(card.generation)
        row = file_rows(generation).get((application, int(match[2], 16))) if generation else None
        if row is None:
            raise ValueError(f"a {card.generation} card has no file {match[1]}{match[2]}")
        tags = tuple(int(tag, 16) for tag in match[3].split("|")[:-1])
        if any(tag not in fields.FIELDS for tag in tags) or bool(tags) is (
            row.structure is Structure.BINARY
        ):
            raise ValueError(f"{file_address!r} names a field that the file does not have")
        if application is not Aid.SSSE:
            self._talk(dialogues.select(application))
        return card, row, tags

    def _ask_permission(self, card: OpenedCard, application: Aid, key_id: int) -> tuple[str, bytes]:
        row = key_row(application, key_id)
        if row is None:
            raise LocalProtocolError(f"{application.name} has no key {key_id:02X}")
        session_factor, challenge = self._talk(dialogues.get_two_challenges())
        line = joined(f"{card.algorithm:02X}", f"{row.addresses[0]:04X}", session_factor, challenge)
        return line, challenge

    def _begin_pin(self, *, is_reload: bool) -> str:
        card = self._talk(dialogues.open_card())
        line, challenge = self._ask_permission(card, Aid.SSSE, PUK)
        self._begun = PinBegun(is_reload, card.algorithm, challenge)
        return line

    def _permit_pin(self, pkey: str, new_pin: str, *, is_reload: bool) -> str:
        begun = self._expect(PinBegun)
        if begun.is_reload is not is_reload:
            raise LocalProtocolError("this step is not of the function that was begun")
        (proof,) = matched_untrusted(PROOF, pkey)
        self._talk(dialogues.external_authenticate(PUK, proof_untrusted(proof, begun.challenge)))
        session_factor = self._talk(dialogues.get_challenge())
        lc = ALGORITHMS[begun.algorithm].pin_reload_bytes if is_reload else 4
        header = f"84240001{lc:02X}" if is_reload else f"84240000{lc:02X}"
        self._begun = PinPermitted(header, 5 + lc)
        address = KEYS[Aid.SSSE, STK_DDF].addresses[0]
        return joined(f"{begun.algorithm:02X}", f"{address:04X}", session_factor, header, new_pin)

    def _finish_pin(self, pkey: str) -> None:
        begun = self._expect(PinPermitted)
        (command,) = matched_untrusted(COMMAND, pkey)
        if not command.startswith(begun.header) or len(command) != 2 * begun.total_bytes:
            raise RemoteProtocolError("the back end's message is not the one that was asked for")
        self._send(CommandApdu.parse_untrusted(bytes.fromhex(command)))

    def _expect(self, kind: type[T]) -> T:
        """Take what the step before left; it serves once."""
        begun, self._begun = self._begun, None
        if not isinstance(begun, kind):
            raise LocalProtocolError("this step comes after one that has not been taken")
        return begun

    def _send(self, apdu: CommandApdu) -> bytes:
        return self._talk(transmit(apdu))

    def _talk(self, dialogue: Dialogue[T]) -> T:
        try:
            return converse(dialogue, self._transmit)
        except UnexpectedStatusWord as no:
            raise CardRefused(no.sw, no.ins) from no


def _pin_bytes(pin: str) -> bytes:
    return bytes.fromhex(pin + "F" * (len(pin) % 2))
