"""Issue simulated cards, and forge them: the card-making machine of the demo.

Every datum of a holder is synthetic and looks it; every key comes from the synthetic roots, which are public.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import secrets
from collections.abc import Callable
from typing import Final

from keyd.crypto.algorithms import Algorithm, require_software
from keyd.crypto.secret import SecretKey
from keyd.iso7816 import Aid, Atr
from keyd.keys.synthetic import SYNTHETIC_LEVELS, synthetic_root
from keyd.simulator import arithmetic, fields
from keyd.simulator.card import SimulatedCard
from keyd.simulator.profile import (
    ALGORITHMS,
    GENERATIONS,
    MESSAGING_ADDRESSES,
    PIN_TRIES,
    CardAlgorithm,
    FileRow,
    Structure,
    file_rows,
)
from keyd.simulator.state import CardState, ElementaryFile, MedicalAccount, Session

Root = Callable[[int, Algorithm], bytes]

# 卡识别码: region 3 ‖ RID 5 ‖ serial 4 ‖ 认证码 4. How the last is computed is not public; FF says "none".
RID: Final = "D156000005"
NO_AUTHENTICATION_CODE: Final = "FFFFFFFF"

# T1-2 chip maker, T3-5 free, T6-7 card maker: no maker has 0000, and "SIM" is for whoever reads the bytes.
HISTORICAL_HEAD: Final = b"\x00\x00SIM\x00\x00"

# 9156000002 ‖ region of issue ‖ region of the institution ‖ sequence.
INSTITUTION_HEAD: Final = "9156000002"

ISSUED, EXPIRES = "20240101", "20340101"

INITIAL_PIN: Final = "123456"

# Room in each of the plain files: a few fields, not a portrait.
BINARY_BYTES: Final = 64

_REGION: Final = re.compile(r"\A\d{6}\Z", re.ASCII)
_PIN: Final = re.compile(r"\A\d{4,16}\Z", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The holder's data of EF06, as text; digits where the file has cn."""

    name: str
    social_security_number: str
    name_extension: str = ""
    sex: str = "9"  # 未说明的性别, not stated
    ethnic_group: str = "01"
    birthplace: str = "000000"
    birth_date: str = "19000101"


def synthetic_holder(region: str, serial: int) -> Holder:
    """Return a holder who cannot exist: born on 1 January 1900 and called 测试."""
    body = f"{region}19000101{serial % 1000:03}"
    return Holder(f"测试{serial}", body + _identity_check(body), birthplace=region)


def issue_card(
    *,
    region: str = "510100",
    serial: int = 1,
    generation: str = "3.0",
    algorithm: int = 0x03,
    names_algorithm: bool = True,
    holder: Holder | None = None,
    pin: str = INITIAL_PIN,
    balance: int = 0,
    root: Root = synthetic_root,
    levels: int = SYNTHETIC_LEVELS,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> SimulatedCard:
    """Issue a card of generation 1.0, 2.0 or 3.0 and algorithm id 01 (DES) or 03 (SM4), `balance` in fen.

    `root` gives the root of a logical address, `levels` how many levels it is above the card.
    `names_algorithm=False` leaves the algorithm out of the FCI, as early cards do.

    Raises:
        AlgorithmNotSupported: for 02, SSF33.
        ValueError: a region, serial, PIN, generation, algorithm id or number of levels that does not exist.
    """
    if not _REGION.match(region) or not _PIN.match(pin):
        raise ValueError("a region is six digits and a PIN 4 to 16")
    if generation not in GENERATIONS or algorithm not in ALGORITHMS or levels not in (1, 2, 3):
        raise ValueError("there is no such generation, algorithm id or number of levels")
    if not 0 <= serial <= 0xFFFF_FFFF or not 0 <= balance <= 0xFFFF_FFFF:
        raise ValueError("a serial and a balance have four bytes")
    row = ALGORITHMS[algorithm]
    require_software(row.cipher)
    historical = HISTORICAL_HEAD + bytes.fromhex(region[:4]) + serial.to_bytes(4, "big")
    records = {
        0xEF05: _card_records(region, serial, GENERATIONS[generation].version),
        0xEF06: _holder_records(holder or synthetic_holder(region, serial)),
    }
    return SimulatedCard(
        CardState(
            atr=Atr.of_card(historical),
            algorithm=row,
            fci_algorithm_id=row.id if names_algorithm else None,
            files={
                where: _file(file_row, records)
                for where, file_row in file_rows(GENERATIONS[generation]).items()
            },
            keys=_card_keys(root, row, region, historical, levels),
            pin=pin,
            random_bytes=random_bytes,
            medical=MedicalAccount(balance=balance),
        )
    )


def forge_card(card: SimulatedCard) -> SimulatedCard:
    """Copy a card's ATR, files and money, but not its keys, which nobody can read out: the perfect fake."""
    state = card.state
    keys = _card_keys(
        _forgers_root, state.algorithm, "000000", state.atr.historical, SYNTHETIC_LEVELS
    )
    return SimulatedCard(
        dataclasses.replace(
            state,
            files=copy.deepcopy(state.files),
            keys=keys,
            medical=copy.deepcopy(state.medical),
            pin_tries=PIN_TRIES,
            key_tries={},
            blocked=set(),
            is_blocked=False,
            session=Session(),
        )
    )


def _forgers_root(address: int, algorithm: Algorithm) -> bytes:
    # No logical address has the high bit, so this is a root of nothing.
    return synthetic_root(address | 0x8000, algorithm)


def _card_keys(
    root: Root, algorithm: CardAlgorithm, region: str, historical: bytes, levels: int
) -> Callable[[int], SecretKey]:
    @functools.cache
    def key(address: int) -> SecretKey:
        # A card has ninety-odd keys and a conversation uses two: each is made when it is first wanted.
        cipher = algorithm.messaging_cipher if address in MESSAGING_ADDRESSES else algorithm.cipher
        material = SecretKey.load(cipher, root(address, cipher))
        return arithmetic.card_key(material, region, historical, levels)

    return key


def _file(row: FileRow, records: dict[int, dict[int, bytes]]) -> ElementaryFile:
    if row.structure is Structure.BINARY:
        return ElementaryFile(row, binary=bytes(BINARY_BYTES))
    return ElementaryFile(
        row, records=dict(records[row.file_id]) if row.application is Aid.SSSE else {}
    )


def _card_records(region: str, serial: int, version: str) -> dict[int, bytes]:
    number = f"{serial % 10**8:08}"
    identifier = f"{region}{RID}{serial:08X}{NO_AUTHENTICATION_CODE}"
    return _encoded(
        {
            fields.IDENTIFIER: identifier,
            fields.CATEGORY: "1",
            fields.VERSION: version,
            fields.INSTITUTION: f"{INSTITUTION_HEAD}{region}{region}01",
            fields.ISSUED: ISSUED,
            fields.EXPIRES: EXPIRES,
            fields.CARD_NUMBER: number + _card_number_check(number),
        }
    )


def _holder_records(holder: Holder) -> dict[int, bytes]:
    return _encoded(
        {
            fields.SOCIAL_SECURITY_NUMBER: holder.social_security_number,
            fields.NAME: holder.name,
            fields.NAME_EXTENSION: holder.name_extension,
            fields.SEX: holder.sex,
            fields.ETHNIC_GROUP: holder.ethnic_group,
            fields.BIRTHPLACE: holder.birthplace,
            fields.BIRTH_DATE: holder.birth_date,
        }
    )


def _encoded(texts: dict[int, str]) -> dict[int, bytes]:
    return {tag: fields.encode_field(tag, text) for tag, text in texts.items()}


def _identity_check(body: str) -> str:
    # GB 11643: ISO 7064 MOD 11-2, the weight of place i from the left (0 to 16) being 2^(17-i).
    total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(body))
    return "10X98765432"[total % 11]


def _card_number_check(number: str) -> str:
    # "8 + check, mod 11": our reading is GB 11714, from which the card number takes its form.
    weights = (3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(number, weights, strict=True))
    return "0123456789X0"[11 - total % 11]
