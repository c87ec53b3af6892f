"""SM2 (GB/T 32918): generate, sign, verify, encrypt, decrypt.

`keys` is what the rest of keyd sees. It decides everything that the standard decides about bytes (lengths,
ranges, orders, points) and hands clean parts to a backend, which knows arithmetic and nothing else:

    curve.py      the standard's constants, the point check, Z and e
    der.py        r‖s and C1, C3, C2 to and from the DER that libcrypto speaks
    backend.py    what a backend must do
    libcrypto.py  the system's OpenSSL; abi.py declares its functions
    guarded.py    the fallback: gmssl's point arithmetic, with the guards that gmssl lacks
    selection.py  which of the two
    keys.py       the key types

SM2 is the one place on the ground floor that draws randomness itself. Elsewhere randomness is an argument so
that a test can repeat it; here a k that can be repeated gives the private key away.
"""

from __future__ import annotations

from keyd.crypto.sm2.backend import CiphertextNotAuthentic, SignatureNotAuthentic
from keyd.crypto.sm2.curve import DEFAULT_USER_ID, PointNotOnCurve
from keyd.crypto.sm2.keys import CiphertextOrder, Sm2PrivateKey, Sm2PublicKey
from keyd.crypto.sm2.selection import backend_name

__all__ = [
    "DEFAULT_USER_ID",
    "CiphertextNotAuthentic",
    "CiphertextOrder",
    "PointNotOnCurve",
    "SignatureNotAuthentic",
    "Sm2PrivateKey",
    "Sm2PublicKey",
    "backend_name",
]
