"""PSAM profiles: which files, keys, algorithms and dialect a PSAM has; and an identity, what one PSAM alone has.

This is where PSAMs differ; the applet has no branch for any of them. The files are read by
`keyd.psam.profile_files`, which also checks what one value cannot say alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

from keyd.crypto.algorithms import Algorithm, CardAlgorithm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What a file is written and read in: numbers as hex, since that is how every specification has them.
HexByte = Annotated[str, Meta(pattern=r"\A[0-9A-F]{2}\Z")]
HexWord = Annotated[str, Meta(pattern=r"\A[0-9A-F]{4}\Z")]
HexName = Annotated[str, Meta(pattern=r"\A([0-9A-F]{2}){1,16}\Z")]
HexRange = Annotated[str, Meta(pattern=r"\A[0-9A-F]{2}-[0-9A-F]{2}\Z")]

EnvironmentName = Literal["DES", "SSF33", "SM4"]
Operation = Literal["encrypt", "mac"]
Content = Literal["directory", "public", "terminal", "number", "national", "provincial", "city"]

SERIAL_BYTES: Final = 10
TERMINAL_BYTES: Final = 6
NUMBER_BYTES: Final = 4


class EnvironmentRow(Struct, frozen=True, forbid_unknown_fields=True):
    """An environment: its DDF, and the bytes by which its algorithm is named."""

    file_id: HexWord
    aid: HexName
    key_algorithms: dict[HexByte, str]
    purchase_algorithms: tuple[HexByte, ...]


class ApplicationRow(Struct, frozen=True, forbid_unknown_fields=True):
    """The application under every environment."""

    file_id: HexWord
    aid: HexName


class FileRow(Struct, frozen=True, forbid_unknown_fields=True):
    """An elementary file: where it is, what is in it and how many bytes; 0 is as many as there are."""

    under: Literal["environment", "application"]
    content: Content
    bytes: Annotated[int, Meta(ge=0, le=255)] = 0


class KindRow(Struct, frozen=True, forbid_unknown_fields=True):
    """A type of keys. An own key serves the PSAM itself; of others a version stands for the id."""

    name: str
    operations: tuple[Operation, ...] = ()
    is_own: bool = False
    is_by_version: bool = False


class KeyFileRow(Struct, frozen=True, forbid_unknown_fields=True):
    """The ids that a key file holds, from the first to the last; "" is none."""

    environment: HexRange
    application: HexRange
    own: HexRange | Literal[""] = ""


class DeliveryRow(Struct, frozen=True, forbid_unknown_fields=True):
    """The command (CLA INS) that delivers a key, and what that is."""

    command: HexWord
    derives_session_key: bool
    ends_with_last_block: bool


class CipherRow(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of CIPHER DATA in bytes, and whether a MAC comes as 4 bytes or as its whole last block."""

    most_bytes_8: Annotated[int, Meta(ge=16, le=255)]
    most_bytes_16: Annotated[int, Meta(ge=32, le=255)]
    mac: Literal["4 bytes", "block"]


class PurchaseRow(Struct, frozen=True, forbid_unknown_fields=True):
    """The two commands of a purchase: where dialects differ, limits and status words."""

    p1: HexByte
    amounts: Annotated[int, Meta(ge=1, le=3)]
    no_such_key: HexWord
    wrong_mac2: HexWord
    mac2_tries: Annotated[int, Meta(ge=1, le=255)]
    numbers_reserved: Annotated[int, Meta(ge=1, le=65536)]


class LoadingRow(Struct, frozen=True, forbid_unknown_fields=True):
    """How often an own key may be proved wrongly, and which one has to be proved before keys are loaded."""

    key_tries: Annotated[int, Meta(ge=1, le=15)]
    permission: HexByte | None = None


class PsamProfileFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as its file has it, extended files merged."""

    name: Annotated[str, Meta(min_length=1, max_length=32)]
    atr: Annotated[str, Meta(pattern=r"\A([0-9A-F]{2}){2,33}\Z")]
    channels: Annotated[int, Meta(ge=1, le=4)]
    environments: dict[EnvironmentName, EnvironmentRow]
    provinces: dict[str, EnvironmentName]
    application: ApplicationRow
    files: dict[HexWord, FileRow]
    kinds: dict[HexByte, KindRow]
    key_files: dict[HexByte, KeyFileRow]
    delivery: DeliveryRow
    cipher: CipherRow
    purchase: PurchaseRow
    loading: LoadingRow


class PsamIdentity(Struct, frozen=True):
    """What one PSAM alone has: the data in its files, and the environment that it wakes up in.

    `serial` has 10 bytes and `terminal`, the 终端机编号, 6, both BCD; `issuer`, `version` and `card_type` are bytes,
    `fci` has 2; the data of nation, province and city have at most what their files have and are filled up with zeros.
    """

    serial: bytes
    terminal: bytes
    issuer: int = 0
    version: int = 1
    card_type: int = 1
    fci: bytes = bytes(2)
    national: bytes = b""
    provincial: bytes = b""
    city: bytes = b""
    environment: CardAlgorithm = CardAlgorithm.DES

    def __post_init__(self) -> None:
        if len(self.serial) != SERIAL_BYTES or not self.serial.hex().isdecimal():
            raise ValueError("a PSAM's serial number is 20 digits")
        if len(self.terminal) != TERMINAL_BYTES or not self.terminal.hex().isdecimal():
            raise ValueError("a terminal's number (终端机编号) is 12 digits")
        if not all(0 <= octet <= 0xFF for octet in (self.issuer, self.version, self.card_type)):
            raise ValueError("issuer, version and type of card are one byte each")
        if len(self.fci) != 2:
            raise ValueError("the FCI data of a PSAM's public file have 2 bytes")

    @property
    def public(self) -> bytes:
        """What file 0015 holds, 15 bytes."""
        return (
            bytes((self.issuer,)) + self.serial + bytes((self.version, self.card_type)) + self.fci
        )


class Environment(Struct, frozen=True):
    """An environment of a profile, its numbers read."""

    algorithm: CardAlgorithm
    file_id: int
    aid: bytes
    key_algorithms: Mapping[int, Algorithm]
    purchase_algorithms: frozenset[int]

    @property
    def block_bytes(self) -> int:
        """8 or 16."""
        return 8 if self.algorithm is CardAlgorithm.DES else 16


class PsamProfile:
    """A kind of PSAM."""

    def __init__(self, file: PsamProfileFile) -> None:
        self.name: Final = file.name
        self.atr: Final = bytes.fromhex(file.atr)
        self.channels: Final = file.channels
        self.environments: Final = {
            CardAlgorithm[name]: Environment(
                CardAlgorithm[name],
                int(row.file_id, 16),
                bytes.fromhex(row.aid),
                {int(byte, 16): Algorithm(cipher) for byte, cipher in row.key_algorithms.items()},
                frozenset(int(byte, 16) for byte in row.purchase_algorithms),
            )
            for name, row in file.environments.items()
        }
        self._provinces: Final = {
            province: CardAlgorithm[name] for province, name in file.provinces.items()
        }
        self.application_id: Final = int(file.application.file_id, 16)
        self.application_aid: Final = bytes.fromhex(file.application.aid)
        self.files: Final = {int(file_id, 16): row for file_id, row in file.files.items()}
        self.kinds: Final = {int(kind, 16): row for kind, row in file.kinds.items()}
        self._environment_ids: Final = _ids(row.environment for row in file.key_files.values())
        self._file_ids: Final = {
            int(file_id, 16): _ids((row.own, row.environment, row.application))
            for file_id, row in file.key_files.items()
        }
        self.delivery: Final = file.delivery
        self.cipher: Final = file.cipher
        self.purchase: Final = file.purchase
        self.loading: Final = file.loading

    def environment_of(self, province: int) -> Environment | None:
        """Return what INITIALIZE ENVIRONMENT selects for the first byte of a card's identifier, if the PSAM has it."""
        name = self._provinces.get(f"{province:02X}", self._provinces["default"])
        return self.environments.get(name)

    def is_seen(self, kind: int, key_id: int, *, in_application: bool) -> bool:
        """Whether a key can be used where the PSAM is: the application's are seen in it alone."""
        row = self.kinds.get(kind)
        if row is None:
            return False
        return in_application or row.is_own or key_id in self._environment_ids

    def holds(self, file_id: int, kind: int, key_id: int) -> bool:
        """Whether a key may be in a key file. Versions are no ids and may be in any."""
        row = self.kinds.get(kind)
        if row is None or file_id not in self._file_ids:
            return False
        return row.is_by_version or key_id in self._file_ids[file_id]

    @property
    def key_files(self) -> frozenset[int]:
        """The key files, as P2 of CREATE KEY and CHANGE KEY names them."""
        return frozenset(self._file_ids)


def _ids(ranges: Iterable[str]) -> frozenset[int]:
    bounds = [text.split("-") for text in ranges if text]
    return frozenset(i for low, high in bounds for i in range(int(low, 16), int(high, 16) + 1))
