"""Known-answer tests of every algorithm, at start and on command: before keyd computes for others, it
computes what everybody can look up.

Each test says which published answer it reproduces, or which independent implementation it agrees with. A
test that raises has failed; it never stops the others. The keys are the standards' own, yet no key byte and
no text of an exception leaves here, so that the habit cannot harm a test that is added later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gmssl import sm3 as gmssl_sm3
from gmssl import sm4 as gmssl_sm4

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.crypto.sm2 import (
    CiphertextNotAuthentic,
    CiphertextOrder,
    SignatureNotAuthentic,
    Sm2PrivateKey,
    Sm2PublicKey,
)
from keyd.crypto.sm3 import sm3
from keyd.errors import SelftestFailed

if TYPE_CHECKING:
    from collections.abc import Callable

_hex = bytes.fromhex

# GB/T 32907 §A.1: key and plaintext are the same 16 bytes.
_SM4_KEY: Final = _hex("0123456789ABCDEFFEDCBA9876543210")
_SM4_CIPHERTEXT: Final = _hex("681EDF34D206965E86B3E94F536E4246")

# draft-ribose-cfrg-sm4 §A.2.2.1, under the same key: the last block is the CBC-MAC.
_CBC_IV: Final = _hex("000102030405060708090A0B0C0D0E0F")
_CBC_PLAINTEXT: Final = _hex("AAAAAAAABBBBBBBBCCCCCCCCDDDDDDDDEEEEEEEEFFFFFFFFAAAAAAAABBBBBBBB")
_CBC_MAC: Final = _hex("4CB7016951909226979B0D15DC6A8F6D")

# RFC 8998 §A.1, under the same key: the first 16 of its 64 bytes.
_GCM_NONCE: Final = _hex("00001234567800000000ABCD")
_GCM_HEADER: Final = _hex("FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2")
_GCM_PLAINTEXT: Final = _hex("AAAAAAAAAAAAAAAABBBBBBBBBBBBBBBB")
_GCM_CIPHERTEXT: Final = _hex("17F399F08C67D5EE19D0DC9969C4BB7D")

_GCM_DATA: Final = _hex(
    "AAAAAAAAAAAAAAAABBBBBBBBBBBBBBBBCCCCCCCCCCCCCCCCDDDDDDDDDDDDDDDD"
    "EEEEEEEEEEEEEEEEFFFFFFFFFFFFFFFFEEEEEEEEEEEEEEEEAAAAAAAAAAAAAAAA"
)
_GCM_SEALED: Final = _hex(
    "17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735"
    "D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D"
    "83DE3541E4C2B58177E065A9BF7B62EC"
)

# Made by pycryptodome's Shamir.split(3, 5) of the key of GB/T 32907 §A.1: three of the five, in another order.
_SHARES: Final = (
    (5, _hex("52C0B3F22A79EB3C379BB25F38A0B47E")),
    (1, _hex("03291D294DB9574F3916CD35E9C595A3")),
    (3, _hex("9C9D8F1B2CDF44D94ECC1234E4699001")),
)

_SHARED_KCV: Final = _hex("2677F4")

_TDES_KEY: Final = _hex("0123456789ABCDEFFEDCBA9876543210")
_TDES_PLAINTEXT: Final = _hex("0123456789ABCDE7")
_TDES_CIPHERTEXT: Final = _hex("7F1D0A77826B8AFF")

# ISO/IEC 9797-1, algorithm 3, padding method 1, under the same key.
_RETAIL_DATA: Final = b"Now is the time for all "
_RETAIL_MAC: Final = _hex("A1C72E74EA3FA9B6")

_DES_KEY: Final = _hex("133457799BBCDFF1")
_DES_PLAINTEXT: Final = _hex("0123456789ABCDEF")
_DES_CIPHERTEXT: Final = _hex("85E813540F0AB405")

_SM3_ABC: Final = _hex("66C7F0F462EEEDD9D1F2D46BDC10E4E24167C4875CF2F7A2297DA02B8F4BA8E0")
_SM3_ABCD_16: Final = _hex("DEBE9FF92275B8A138604889C18E5A4D6FDB70E5387E5765293DCBA39C0C5732")


# GB/T 32918.5 §A.2 (signature) and §C.2 (encryption), both with this key.
_SM2_D: Final = _hex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")
_SM2_POINT: Final = _hex(
    "04"
    "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020"
    "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
)
_SM2_MESSAGE: Final = b"message digest"
_SM2_SIGNATURE: Final = _hex(
    "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3"
    "B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA"
)
_SM2_PLAINTEXT: Final = b"encryption standard"
_SM2_C1: Final = _hex(
    "04"
    "04EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73"
    "E858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0"
)
_SM2_C2: Final = _hex("21886CA989CA9C7D58087307CA93092D651EFA")
_SM2_C3: Final = _hex("59983C18F809E262923C53AEC295D30383B54E39D609D160AFCB1908D0BD8766")

# For comparing two implementations any message serves; this one has more than one SM3 block and every byte.
_ALL_BYTES: Final = bytes(range(256))


class SelftestResult(NamedTuple):
    """What one self-test found."""

    name: str
    passed: bool
    detail: str
    """What it was compared with, or what went wrong. Never a key."""


def run_selftest() -> tuple[SelftestResult, ...]:
    """Run every test and say what each found, in a fixed order. Takes about 10 ms over libcrypto."""
    return tuple(_run(known) for known in _TESTS)


def require_selftest() -> tuple[SelftestResult, ...]:
    """Run every test and return what each found, which is that all is well.

    Raises:
        SelftestFailed: at least one failed; the detail names each that did.
    """
    results = run_selftest()
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise SelftestFailed(f"self-test failed: {', '.join(failed)}")
    return results


class _WrongAnswer(Exception):  # noqa: N818 - says what happened
    """An answer is not the known one. Its text says which, without the answer."""


class _KnownAnswer(NamedTuple):
    name: str
    source: str
    check: Callable[[], None]


def _run(known: _KnownAnswer) -> SelftestResult:
    try:
        known.check()
    except _WrongAnswer as wrong:
        return SelftestResult(known.name, passed=False, detail=str(wrong))
    except Exception as error:  # noqa: BLE001 - whatever is broken, the operator must hear which test it broke
        # The type only: a library's text may quote what it was given.
        return SelftestResult(known.name, passed=False, detail=f"raised {type(error).__name__}")
    return SelftestResult(known.name, passed=True, detail=known.source)


def _require(right: bool, wrong: str) -> None:
    if not right:
        raise _WrongAnswer(wrong)


def _sm4() -> None:
    key = SecretKey.load(Algorithm.SM4, _SM4_KEY)
    _require(key.encrypt(_SM4_KEY) == _SM4_CIPHERTEXT, "encrypts wrongly")
    _require(key.decrypt(_SM4_CIPHERTEXT) == _SM4_KEY, "decrypts wrongly")


def _sm4_cbc_mac() -> None:
    key = SecretKey.load(Algorithm.SM4, _SM4_KEY)
    _require(key.cbc_mac(_CBC_PLAINTEXT, _CBC_IV) == _CBC_MAC, "makes a wrong mac")


def _sm4_wrap() -> None:
    wrapping = SecretKey.load(Algorithm.SM4, _SM4_KEY)
    key = SecretKey.load(Algorithm.SM4, _GCM_PLAINTEXT)
    wrapped = wrapping.wrap(key, _GCM_NONCE, _GCM_HEADER)
    _require(wrapped.startswith(_GCM_CIPHERTEXT), "wraps wrongly")
    unwrapped = wrapping.unwrap(wrapped, _GCM_NONCE, _GCM_HEADER, Algorithm.SM4)
    _require(unwrapped.kcv() == key.kcv(), "unwraps wrongly")
    try:
        wrapping.unwrap(wrapped, _GCM_NONCE, _altered(_GCM_HEADER), Algorithm.SM4)
    except KeyNotAuthentic:
        return
    raise _WrongAnswer("unwraps under another header")


def _sm4_seal() -> None:
    key = SecretKey.load(Algorithm.SM4, _SM4_KEY)
    _require(key.seal(_GCM_DATA, _GCM_NONCE, _GCM_HEADER) == _GCM_SEALED, "seals wrongly")
    _require(key.open(_GCM_SEALED, _GCM_NONCE, _GCM_HEADER) == _GCM_DATA, "opens wrongly")
    try:
        key.open(_altered(_GCM_SEALED), _GCM_NONCE, _GCM_HEADER)
    except KeyNotAuthentic:
        return
    raise _WrongAnswer("opens altered data")


def _shares() -> None:
    combined = SecretKey.combine(Algorithm.SM4, _SHARES)
    _require(combined.kcv() == _SHARED_KCV, "combines wrongly")
    again = SecretKey.combine(Algorithm.SM4, enumerate(combined.split(2, 2), 1))
    _require(again.kcv() == _SHARED_KCV, "splits wrongly")


def _sm4_against_gmssl() -> None:
    key = SecretKey.load(Algorithm.SM4, _SM4_KEY)
    theirs = gmssl_sm4.CryptSM4()
    theirs.set_key(_SM4_KEY, gmssl_sm4.SM4_ENCRYPT)
    # Block by block: crypt_ecb and crypt_cbc would pad.
    blocks = (_ALL_BYTES[at : at + 16] for at in range(0, len(_ALL_BYTES), 16))
    expected = b"".join(bytes(theirs.one_round(theirs.sk, list(block))) for block in blocks)
    _require(key.encrypt(_ALL_BYTES) == expected, "the two implementations disagree")


def _tdes() -> None:
    key = SecretKey.load(Algorithm.TDES, _TDES_KEY)
    _require(key.encrypt(_TDES_PLAINTEXT) == _TDES_CIPHERTEXT, "encrypts wrongly")
    _require(key.decrypt(_TDES_CIPHERTEXT) == _TDES_PLAINTEXT, "decrypts wrongly")
    _require(key.retail_mac(_RETAIL_DATA, bytes(8)) == _RETAIL_MAC, "makes wrong retail MACs")


def _des() -> None:
    key = SecretKey.load(Algorithm.DES, _DES_KEY)
    _require(key.encrypt(_DES_PLAINTEXT) == _DES_CIPHERTEXT, "encrypts wrongly")
    _require(key.decrypt(_DES_CIPHERTEXT) == _DES_PLAINTEXT, "decrypts wrongly")


def _sm3() -> None:
    _require(sm3(b"abc") == _SM3_ABC, "digests one block wrongly")
    _require(sm3(b"abcd" * 16) == _SM3_ABCD_16, "digests two blocks wrongly")


def _sm3_against_gmssl() -> None:
    # A fresh list: gmssl pads the list that it is given.
    expected = bytes.fromhex(gmssl_sm3.sm3_hash(list(_ALL_BYTES)))
    _require(sm3(_ALL_BYTES) == expected, "the two implementations disagree")


def _sm2_verify() -> None:
    public = Sm2PublicKey.load(_SM2_POINT)
    public.verify(_SM2_MESSAGE, _SM2_SIGNATURE)
    for message, signature in (
        (_altered(_SM2_MESSAGE), _SM2_SIGNATURE),
        (_SM2_MESSAGE, _altered(_SM2_SIGNATURE)),
    ):
        try:
            public.verify(message, signature)
        except SignatureNotAuthentic:
            continue
        raise _WrongAnswer("accepts an altered message or signature")


def _sm2_sign() -> None:
    key = Sm2PrivateKey.load(_SM2_D)
    _require(key.public.encode() == _SM2_POINT, "computes a wrong public key")
    first, second = key.sign(_SM2_MESSAGE), key.sign(_SM2_MESSAGE)
    key.public.verify(_SM2_MESSAGE, first)
    key.public.verify(_SM2_MESSAGE, second)
    # Equal r means equal k, and two signatures with one k give the private key away.
    _require(first[:32] != second[:32], "uses one k twice")


def _sm2_decrypt() -> None:
    key = Sm2PrivateKey.load(_SM2_D)
    new, old = _SM2_C1 + _SM2_C3 + _SM2_C2, _SM2_C1 + _SM2_C2 + _SM2_C3
    _require(key.decrypt(new) == _SM2_PLAINTEXT, "decrypts C1C3C2 wrongly")
    _require(
        key.decrypt(old, order=CiphertextOrder.C1C2C3) == _SM2_PLAINTEXT,
        "decrypts C1C2C3 wrongly",
    )
    try:
        key.decrypt(_altered(new))
    except CiphertextNotAuthentic:
        return
    raise _WrongAnswer("accepts an altered ciphertext")


def _sm2_encrypt() -> None:
    key = Sm2PrivateKey.load(_SM2_D)
    first, second = key.public.encrypt(_SM2_PLAINTEXT), key.public.encrypt(_SM2_PLAINTEXT)
    _require(key.decrypt(first) == _SM2_PLAINTEXT, "does not decrypt what it encrypted")
    _require(first[:65] != second[:65], "uses one k twice")


def _altered(octets: bytes) -> bytes:
    return octets[:-1] + bytes([octets[-1] ^ 1])


_TESTS: Final = (
    _KnownAnswer("SM4", "GB/T 32907 A.1", _sm4),
    _KnownAnswer("SM4 CBC-MAC", "draft-ribose-cfrg-sm4 A.2.2.1", _sm4_cbc_mac),
    _KnownAnswer("SM4 key wrap", "RFC 8998 A.1", _sm4_wrap),
    _KnownAnswer("SM4 seal", "RFC 8998 A.1", _sm4_seal),
    _KnownAnswer("SM4 against gmssl", "gmssl", _sm4_against_gmssl),
    _KnownAnswer("3DES", "Botan des.vec", _tdes),
    _KnownAnswer("DES", "Grabbe, The DES Algorithm Illustrated", _des),
    _KnownAnswer("Key shares", "pycryptodome", _shares),
    _KnownAnswer("SM3", "GB/T 32905 A.1, A.2", _sm3),
    _KnownAnswer("SM3 against gmssl", "gmssl", _sm3_against_gmssl),
    _KnownAnswer("SM2 verify", "GB/T 32918.5 A.2", _sm2_verify),
    _KnownAnswer("SM2 sign", "the key of GB/T 32918.5 A.2", _sm2_sign),
    _KnownAnswer("SM2 decrypt", "GB/T 32918.5 C.2", _sm2_decrypt),
    _KnownAnswer("SM2 encrypt", "the key of GB/T 32918.5 C.2", _sm2_encrypt),
)
