"""The two kinds of line, as data: what is offered, and nothing beside it.

A kind is a whole. An SM2 certificate under AES, or SM4 over X25519, would be neither what RFC 8998 describes nor
what anybody has examined, so no mixture can be configured; only the groups can be chosen, among a kind's own.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

# Object identifiers, by their DER content.
SM2_CURVE: Final = bytes.fromhex("2a811ccf5501822d")  # 1.2.156.10197.1.301
SM2_WITH_SM3: Final = bytes.fromhex("2a811ccf55018375")  # 1.2.156.10197.1.501
P256_CURVE: Final = bytes.fromhex("2a8648ce3d030107")  # 1.2.840.10045.3.1.7
ECDSA_WITH_SHA256: Final = bytes.fromhex("2a8648ce3d040302")  # 1.2.840.10045.4.3.2

# 04‖x‖y, on both curves.
POINT_BYTES: Final = 65


class _Parts(NamedTuple):
    """What a kind consists of, in OpenSSL's names."""

    suites: str
    groups: tuple[str, ...]
    signatures: str
    curve: bytes
    signature_algorithm: bytes


class TlsKind(enum.Enum):
    """Which cryptography a line has."""

    GUOMI = "guomi"
    """国密: RFC 8998, TLS_SM4_GCM_SM3 with SM2."""
    STANDARD = "standard"
    """AES and ECDSA on P-256, for those who have no 国密 stack."""

    @property
    def suites(self) -> str:
        """The cipher suites that are offered and accepted."""
        return _PARTS[self].suites

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that there are, the preferred one first."""
        return _PARTS[self].groups

    @property
    def signatures(self) -> str:
        """The signature algorithms, of handshakes and certificates."""
        return _PARTS[self].signatures

    @property
    def curve(self) -> bytes:
        """The certificates' curve: its object identifier."""
        return _PARTS[self].curve

    @property
    def signature_algorithm(self) -> bytes:
        """What signs certificates: its object identifier."""
        return _PARTS[self].signature_algorithm


_PARTS: Final = {
    TlsKind.GUOMI: _Parts(
        suites="TLS_SM4_GCM_SM3",
        # The hybrid first: what is recorded today may be opened once there are quantum computers. A client that
        # has only curveSM2 gets it.
        groups=("curveSM2MLKEM768", "curveSM2"),
        signatures="sm2sig_sm3",
        curve=SM2_CURVE,
        signature_algorithm=SM2_WITH_SM3,
    ),
    TlsKind.STANDARD: _Parts(
        suites="TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
        groups=("X25519MLKEM768", "x25519", "secp256r1"),
        signatures="ecdsa_secp256r1_sha256",
        curve=P256_CURVE,
        signature_algorithm=ECDSA_WITH_SHA256,
    ),
}
