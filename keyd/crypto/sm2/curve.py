"""The curve of GB/T 32918.5, what counts as a point on it, and the digests Z and e.

Points travel as 65 bytes 04‖x‖y, numbers below the order as 32 bytes, big-endian. Nothing here is secret.
"""

from __future__ import annotations

from typing import Final

from keyd.crypto.sm3 import sm3

# y² = x³ + Ax + B over the integers modulo P; G generates a group of prime order N.
P: Final = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A: Final = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC
B: Final = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N: Final = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G: Final = bytes.fromhex(
    "04"
    "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)

SCALAR_BYTES: Final = 32
POINT_BYTES: Final = 65
UNCOMPRESSED: Final = 0x04

# GM/T 0009 §10: the identifier that both sides assume when they have agreed on none.
DEFAULT_USER_ID: Final = b"1234567812345678"

# Z begins with the identifier's length in *bits*, in two bytes (GB/T 32918.2 §5.5). 8191 bytes would fit, but
# OpenSSL refuses them, and what one backend signs the other must be able to verify.
MAX_USER_ID_BYTES: Final = 0xFFFF // 8 - 1


class PointNotOnCurve(Exception):  # noqa: N818 - says what happened
    """The bytes are not 04‖x‖y of a point on the SM2 curve."""


def scalar(number: int) -> bytes:
    """Write a number below 2^256 as 32 bytes."""
    return number.to_bytes(SCALAR_BYTES, "big")


def require_on_curve(point: bytes) -> None:
    """Refuse everything but 65 bytes 04‖x‖y with x, y < P that satisfy the curve's equation.

    The order is prime and the cofactor 1, so a point on the curve is in the group, and infinity has no such
    encoding. A point elsewhere would make [d]C1 tell about d (GB/T 32918.4 §7.1 B1).

    Raises:
        PointNotOnCurve: for every other byte string.
    """
    if len(point) != POINT_BYTES or point[0] != UNCOMPRESSED:
        raise PointNotOnCurve(f"an SM2 point has {POINT_BYTES} bytes and begins with 04")
    x, y = int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big")
    # Coordinates at or above P are second spellings of other points: libcrypto would take them modulo P.
    if x >= P or y >= P or (y * y - x * x * x - A * x - B) % P:
        raise PointNotOnCurve("the coordinates are not of a point on the SM2 curve")


def require_user_id(user_id: bytes) -> None:
    """Refuse an identifier that Z cannot hold. 1 to 8190 bytes."""
    if not 1 <= len(user_id) <= MAX_USER_ID_BYTES:
        raise ValueError(f"an SM2 user identifier has 1 to {MAX_USER_ID_BYTES} bytes")


def z_value(point: bytes, user_id: bytes) -> bytes:
    """Return the 32-byte digest Z of the signer: identifier, curve and public key (GB/T 32918.2 §5.5)."""
    bits = (len(user_id) * 8).to_bytes(2, "big")
    return sm3(bits + user_id + scalar(A) + scalar(B) + G[1:] + point[1:])


def message_digest(point: bytes, message: bytes, user_id: bytes) -> bytes:
    """Return the 32 bytes e = SM3(Z ‖ message) that SM2 signs (GB/T 32918.2 §6.1 A1, A2)."""
    return sm3(z_value(point, user_id) + message)
