"""The configuration: read, checked as a whole, and never half applied.

`conf/keyd.toml` explains every line. Unknown names are errors, so that a misspelt limit is not silently the
default. Secrets are never in it: keys are in the store, wrapped.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from keyd.policy import PolicyError, read_policy
from keyd.routing import RouteRow
from keyd.tls.chains import Anchor, Anchors

if TYPE_CHECKING:
    from keyd.policy import PolicyFile
    from keyd.policy.catalogue import Catalogue

Seconds = Annotated[float, Meta(gt=0, le=86400)]


class ConfigError(Exception):
    """The configuration cannot be used; the sentence says where and why."""


class ListenTls(Struct, frozen=True, forbid_unknown_fields=True):
    """One address of encrypted lines: TLS 1.3 of one kind, and what both sides are judged by."""

    address: str
    kind: Literal["guomi", "standard"]
    certificate: Annotated[str, Meta(min_length=1)]
    private_key: Annotated[str, Meta(min_length=1)]
    client_authorities: str | None = None
    revoked: str | None = None
    groups: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    enrolment: bool = False

    def __post_init__(self) -> None:
        """Refuse a line for everybody, and one for nobody."""
        if self.enrolment and (self.client_authorities or self.revoked):
            raise ValueError("an enrolment line asks for no certificate: it has no authorities")
        if not self.enrolment and not self.client_authorities:
            raise ValueError("client_authorities is missing: without, anybody could connect")


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    """Where keyd listens."""

    tcp: tuple[str, ...] = ("127.0.0.1:7170",)
    unix: str | None = None
    operations: str | None = "127.0.0.1:9170"
    allow_plain_tcp: bool = False
    tls: tuple[ListenTls, ...] = ()


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where keys, officers and proposals are kept."""

    url: Annotated[str, Meta(min_length=1)]


class CustodyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where officers connect."""

    socket: str = "/run/keyd/admin.sock"


class Terminals(Struct, frozen=True, forbid_unknown_fields=True):
    """How terminals prove themselves, and for how long that counts."""

    session_seconds: Annotated[int, Meta(ge=60, le=604_800)] = 28_800
    challenge_seconds: Annotated[int, Meta(ge=1, le=300)] = 30
    authorities: str | None = None
    revoked: str | None = None

    def __post_init__(self) -> None:
        """Refuse revocation lists of nobody."""
        if self.revoked is not None and self.authorities is None:
            raise ValueError("revoked goes with authorities")


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where it is said who may ask for what."""

    # Empty where a development keyd has none; a file that does not say it is refused.
    file: str


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what peers may cost."""

    connections: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    first_message_seconds: Seconds = 10.0
    idle_seconds: Seconds = 300.0
    write_seconds: Seconds = 10.0
    drain_seconds: Seconds = 10.0
    handshakes: Annotated[int, Meta(ge=1, le=100_000)] = 256
    handshake_seconds: Seconds = 5.0


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    sample_every: Annotated[int, Meta(ge=0)] = 0


class Audit(Struct, frozen=True, forbid_unknown_fields=True):
    """Where every use of a key is recorded, and when an answer may leave."""

    folder: Annotated[str, Meta(min_length=1)]
    instance: Annotated[str, Meta(min_length=1, max_length=64)] = "keyd"
    durability: Literal["written", "fsync"] = "written"
    card_ids: Literal["whole", "masked", "none"] = "masked"
    segment_bytes: Annotated[int, Meta(ge=1024 * 1024, le=1024 * 1024 * 1024)] = 64 * 1024 * 1024
    retain_segments: Annotated[int, Meta(ge=1)] | None = None
    wait_seconds: Annotated[float, Meta(gt=0, le=60)] = 2.0
    checkpoints: str | None = None


class Cards(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the card profiles come from."""

    profiles: str | None = None


class PsamsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which PSAMs are lent, and how."""

    issued: bool = True
    readers: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    racks: tuple[str, ...] = ()
    profile: str = "social-security"
    profiles: str | None = None
    strategy: Literal["least-used", "key-set", "affinity"] = "least-used"
    waiting: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    wait_seconds: Annotated[float, Meta(gt=0, le=60)] = 2.0
    answer_seconds: Annotated[float, Meta(gt=0, le=60)] = 3.0
    turn_seconds: Annotated[float, Meta(gt=0, le=600)] = 10.0
    idle_seconds: Annotated[float, Meta(gt=0, le=600)] = 3.0
    open_seconds: Seconds = 300.0
    route: tuple[RouteRow, ...] = ()


class Pkcs11Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The token that can open the seal."""

    module: str | None = None
    # PKCS#11 has 32 bytes for a token's label.
    token: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    key: Annotated[str, Meta(min_length=1, max_length=64)] = "keyd-seal"
    pin_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse half a token: it would be noticed only when nobody is there to open the seal."""
        if len({setting is None for setting in (self.module, self.token, self.pin_file)}) > 1:
            raise ValueError("module, token and pin_file go together")


class SealConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What other than people's shares can open the seal."""

    credential: str | None = None
    pkcs11: Pkcs11Config = field(default_factory=Pkcs11Config)


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """One daemon's configuration."""

    store: StoreConfig
    audit: Audit
    policy: PolicyConfig
    terminals: Terminals = field(default_factory=Terminals)
    custody: CustodyConfig = field(default_factory=CustodyConfig)
    listen: Listen = field(default_factory=Listen)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    log: Log = field(default_factory=Log)
    cards: Cards = field(default_factory=Cards)
    seal: SealConfig = field(default_factory=SealConfig)
    psams: PsamsConfig = field(default_factory=PsamsConfig)


def read_policy_file(path: Path, known: Catalogue) -> PolicyFile:
    """Read and check a policy file as a whole.

    Raises:
        ConfigError: it cannot be read, or anything in it is wrong; a line for each fault.
    """
    try:
        return read_policy(path.read_bytes(), known)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except PolicyError as error:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in error.faults)) from None


def load_config(path: Path) -> Config:
    """Read and check keyd.toml.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a wrong, missing or unknown entry.
    """
    try:
        return msgspec.convert(_read_toml(path), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_anchors(terminals: Terminals) -> Anchors:
    """Read the authorities of terminals' certificates, and their revocation lists.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate or no list in PEM.
    """
    if terminals.authorities is None:
        return Anchors()
    authorities = _read_bytes(expand(terminals.authorities))
    revoked = None if terminals.revoked is None else _read_bytes(expand(terminals.revoked))
    try:
        return Anchors([Anchor(authorities, revoked)])
    except ValueError:
        names = " and ".join(filter(None, (terminals.authorities, terminals.revoked)))
        raise ConfigError(
            f"{names}: there is no certificate or no revocation list in PEM, or one is damaged"
        ) from None


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase or a PIN, without the newline at its end.

    Raises:
        ConfigError: it is empty or cannot be read, or others than its owner may read it.
    """
    require_private(path)
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not passphrase:
        raise ConfigError(f"{path} is empty")
    return passphrase


def require_private(path: Path) -> None:
    """Refuse a file that anybody but its owner may read.

    Raises:
        ConfigError: it cannot be looked at, or its mode is not 0600 or stricter.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o077 and not _is_systemd_credential(path):
        raise ConfigError(f"{path} holds secrets but others may read it: chmod 600 {path}")


def expand(path: str) -> Path:
    """Return a configured path, with $CREDENTIALS_DIRECTORY and its like put in."""
    return Path(os.path.expandvars(path))


def _is_systemd_credential(path: Path) -> bool:
    # systemd keeps credentials in memory, mode 0440 with an ACL for the service's user alone.
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return folder is not None and path.parent == Path(folder)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # No TOML, no UTF-8, a number with thousands of digits, or brackets in brackets in brackets.
        raise ConfigError(f"{path} is no TOML: {error}") from None
