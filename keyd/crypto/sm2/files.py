"""Key files: an officer's private key under a passphrase, and public keys, in the formats that every tool reads.

    private   PEM of PKCS #8 EncryptedPrivateKeyInfo (RFC 5958) with PBES2 (RFC 8018): scrypt or PBKDF2-HMAC-SHA256,
              then AES-256-CBC or SM4-CBC
    public    PEM of SubjectPublicKeyInfo (RFC 5480)

The curve has the name 1.2.156.10197.1.301. `openssl pkey` reads what is written here, and what `openssl pkcs8 -topk8`
writes is read. `cryptography` does not know the curve, so the shell is encoded here; deriving and encrypting are its.

The key's bytes pass through bytearrays that are wiped. The passphrase and what is derived of it are Python objects.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from keyd.crypto.native import _core
from keyd.crypto.sm2.curve import SCALAR_BYTES, PointNotOnCurve
from keyd.crypto.sm2.der import (
    BIT_STRING,
    INTEGER,
    NULL,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    element,
    elements,
    integer,
    parts,
    scalar_from,
)
from keyd.crypto.sm2.keys import Sm2PrivateKey, Sm2PublicKey
from keyd.crypto.sm3 import sm3

if TYPE_CHECKING:
    from keyd.crypto.sm2.backend import Backend

# A private key's file has some 500 bytes, with whatever attributes below 2000.
MAX_FILE_BYTES: Final = 8192

# OpenSSL's tools read no longer ones.
MAX_PASSPHRASE_BYTES: Final = 1024

FINGERPRINT_BYTES: Final = 16

# 16 MiB, five times over: about 0.2 s. OpenSSL refuses to read what takes 32 MiB.
_N: Final = 1 << 14
_R: Final = 8
_P: Final = 5
_SALT_BYTES: Final = 16

# What a file may make us compute: a minute or so, and 256 MiB. Its author need not mean well.
_MAX_ITERATIONS: Final = 50_000_000
_MAX_SCRYPT_BYTES: Final = 256 << 20
_MAX_SCRYPT_P: Final = 64

_BLOCK: Final = 16
_NO_UNUSED_BITS: Final = b"\0"

_ATTRIBUTES: Final = 0xA0
_CURVE: Final = 0xA0
_PUBLIC: Final = 0xA1


def _oid(content: str) -> bytes:
    return element(OBJECT_IDENTIFIER, bytes.fromhex(content))


_EC_PUBLIC_KEY: Final = _oid("2A8648CE3D0201")  # 1.2.840.10045.2.1
_SM2: Final = _oid("2A811CCF5501822D")  # 1.2.156.10197.1.301
_PBES2: Final = _oid("2A864886F70D01050D")  # 1.2.840.113549.1.5.13
_PBKDF2: Final = _oid("2A864886F70D01050C")  # 1.2.840.113549.1.5.12
_HMAC_SHA256: Final = _oid("2A864886F70D0209")  # 1.2.840.113549.2.9
_SCRYPT: Final = _oid("2B06010401DA47040B")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC: Final = _oid("60864801650304012A")  # 2.16.840.1.101.3.4.1.42
_SM4_CBC: Final = _oid("2A811CCF55016802")  # 1.2.156.10197.1.104.2

_ALGORITHM: Final = element(SEQUENCE, _EC_PUBLIC_KEY + _SM2)
_PRIVATE_LABEL: Final = "ENCRYPTED PRIVATE KEY"
_PUBLIC_LABEL: Final = "PUBLIC KEY"

_PEM: Final = re.compile(
    rb"\A\s*-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*)-----END \1-----\s*\Z"
)


class KeyFileUnreadable(Exception):  # noqa: N818 - says what happened
    """The file is none that keyd reads. The sentence says what is wrong with it."""


class PassphraseWrong(KeyFileUnreadable):
    """The passphrase is not the file's, or the file was altered: CBC cannot tell these apart."""


def write_private_key(key: Sm2PrivateKey, passphrase: bytes) -> bytes:
    """Return the key as PEM under a passphrase of 1 to 1024 bytes, none of them zero: scrypt and AES-256-CBC.

    Raises:
        ValueError: the passphrase is empty or too long, or has a zero byte.
    """
    if not _is_passphrase(passphrase):
        raise ValueError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes, and none is zero")
    salt, iv = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_BLOCK)
    derived = Scrypt(salt=salt, length=32, n=_N, r=_R, p=_P).derive(passphrase)
    encryptor = Cipher(algorithms.AES256(derived), modes.CBC(iv)).encryptor()

    public = element(BIT_STRING, _NO_UNUSED_BITS + key.public.encode())
    tail = element(_PUBLIC, public)
    ec_key = element(SEQUENCE, _number(1) + element(OCTET_STRING, bytes(SCALAR_BYTES)) + tail)
    info = element(SEQUENCE, _number(0) + _ALGORITHM + element(OCTET_STRING, ec_key))
    padding = _BLOCK - len(info) % _BLOCK
    # Everything but d first, so that d is written to its place and never moves.
    plain = bytearray(info + bytes([padding]) * padding)
    at = len(info) - len(tail) - SCALAR_BYTES
    encrypted = bytearray(len(plain) + _BLOCK)
    try:
        with key.lent_secret() as d:
            plain[at : at + SCALAR_BYTES] = d
        length = encryptor.update_into(plain, encrypted)
    finally:
        _core.wipe(plain)
    encryptor.finalize()

    derivation = element(
        SEQUENCE,
        element(OCTET_STRING, salt) + b"".join(_number(number) for number in (_N, _R, _P)),
    )
    scheme = element(
        SEQUENCE,
        element(SEQUENCE, _SCRYPT + derivation)
        + element(SEQUENCE, _AES_256_CBC + element(OCTET_STRING, iv)),
    )
    outer = element(SEQUENCE, _PBES2 + scheme)
    body = element(OCTET_STRING, bytes(encrypted[:length]))
    return _armoured(_PRIVATE_LABEL, element(SEQUENCE, outer + body))


def read_private_key(
    pem: bytes, passphrase: bytes, *, backend: Backend | None = None
) -> Sm2PrivateKey:
    """Read a private key under a passphrase: what `write_private_key` or `openssl pkcs8 -topk8` wrote.

    Raises:
        PassphraseWrong: the passphrase is another, or the file was altered.
        KeyFileUnreadable: the file is not PEM of such a key, is not encrypted, is for another curve, or is encrypted
            in a way that keyd does not read.
    """
    der = _unarmoured(_PRIVATE_LABEL, pem)
    if not _is_passphrase(passphrase):
        raise PassphraseWrong("the passphrase is none that a file can be under")
    try:
        (body,) = elements(der, SEQUENCE)
        outer, encrypted = elements(body, SEQUENCE, OCTET_STRING)
        decrypted = _decrypted(outer, encrypted, passphrase)
    except ValueError:
        raise KeyFileUnreadable("the file is no encrypted private key in PKCS #8") from None
    try:
        return _private_key(memoryview(decrypted)[:-_BLOCK], backend)
    finally:
        _core.wipe(decrypted)


def write_public_key(key: Sm2PublicKey) -> bytes:
    """Return a public key as PEM."""
    bits = element(BIT_STRING, _NO_UNUSED_BITS + key.encode())
    return _armoured(_PUBLIC_LABEL, element(SEQUENCE, _ALGORITHM + bits))


def read_public_key(pem: bytes, *, backend: Backend | None = None) -> Sm2PublicKey:
    """Read a public key: what `write_public_key` or `openssl pkey -pubout` wrote.

    Raises:
        KeyFileUnreadable: the file is not PEM of such a key, or its key is no point on SM2's curve.
    """
    der = _unarmoured(_PUBLIC_LABEL, pem)
    try:
        (body,) = elements(der, SEQUENCE)
        algorithm, bits = elements(body, SEQUENCE, BIT_STRING)
    except ValueError:
        raise KeyFileUnreadable("the file is no public key in SubjectPublicKeyInfo") from None
    if element(SEQUENCE, algorithm) != _ALGORITHM:
        raise KeyFileUnreadable("the key in the file is not one for SM2")
    if bits[:1] != _NO_UNUSED_BITS:
        raise KeyFileUnreadable("the public key in the file is not in whole bytes")
    try:
        return Sm2PublicKey.load(bits[1:], backend=backend)
    except PointNotOnCurve as reason:
        raise KeyFileUnreadable(f"the public key in the file is wrong: {reason}") from None


def fingerprint(public: Sm2PublicKey) -> str:
    """Return what people compare: the first 16 bytes of SM3 over 04‖x‖y, as 8 groups of 4 hexadecimal digits."""
    digits = sm3(public.encode())[:FINGERPRINT_BYTES].hex().upper()
    return "-".join(digits[at : at + 4] for at in range(0, len(digits), 4))


# --- inside


def _is_passphrase(passphrase: bytes) -> bool:
    # HMAC, and so every derivation here, pads with zeros: "word" and "word\0" open the same file.
    return 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES and b"\0" not in passphrase


def _decrypted(outer: bytes, encrypted: bytes, passphrase: bytes) -> bytearray:
    """Decrypt; padding and one more block follow. A ValueError says that this is no PBES2."""
    scheme, inner = _algorithm(outer, SEQUENCE)
    if scheme != _PBES2:
        raise KeyFileUnreadable("the file is encrypted with an older scheme than PBES2")
    derivation, cipher = elements(inner, SEQUENCE, SEQUENCE)
    name, iv = _algorithm(cipher, OCTET_STRING)
    if name not in {_AES_256_CBC, _SM4_CBC}:
        raise KeyFileUnreadable("the file is not encrypted with AES-256-CBC or SM4-CBC")
    _require(len(iv) == _BLOCK and bool(encrypted) and not len(encrypted) % _BLOCK, "no CBC")
    is_aes = name == _AES_256_CBC
    derived = _derived(derivation, passphrase, 32 if is_aes else 16)
    algorithm = algorithms.AES256(derived) if is_aes else algorithms.SM4(derived)
    decryptor = Cipher(algorithm, modes.CBC(iv)).decryptor()
    # One block more is what update_into asks for. Cutting it off might move the rest.
    plain = bytearray(len(encrypted) + _BLOCK)
    decryptor.update_into(encrypted, plain)
    return plain


def _algorithm(octets: bytes, parameter_tag: int) -> tuple[bytes, bytes]:
    """Split an AlgorithmIdentifier into its name, whole, and the content of its parameter."""
    name, parameter = elements(octets, OBJECT_IDENTIFIER, parameter_tag)
    return element(OBJECT_IDENTIFIER, name), parameter


def _derived(derivation: bytes, passphrase: bytes, length: int) -> bytes:
    name, parameters = _algorithm(derivation, SEQUENCE)
    (salt_tag, salt), *rest = parts(parameters)
    _require(salt_tag == OCTET_STRING, "no salt")
    numbers = []
    while rest and rest[0][0] == INTEGER:
        numbers.append(int.from_bytes(scalar_from(rest.pop(0)[1]), "big"))
    costs = 1 if name == _PBKDF2 else 3
    # The length of the key may be said again.
    _require(len(numbers) >= costs and numbers[costs:] in ([], [length]), "other numbers")
    if name == _PBKDF2 and rest == [(SEQUENCE, _HMAC_SHA256 + element(NULL, b""))]:
        if not 1 <= numbers[0] <= _MAX_ITERATIONS:
            raise KeyFileUnreadable("the file asks for more work than keyd does for a passphrase")
        return PBKDF2HMAC(SHA256(), length, salt, numbers[0]).derive(passphrase)
    if name != _SCRYPT or rest:
        raise KeyFileUnreadable("the passphrase is not derived with HMAC-SHA256 or scrypt")
    n, r, p = numbers[:3]
    if not 0 < 128 * n * r <= _MAX_SCRYPT_BYTES or not 1 <= p <= _MAX_SCRYPT_P:
        raise KeyFileUnreadable("the file asks for more work than keyd does for a passphrase")
    return Scrypt(salt=salt, length=length, n=n, r=r, p=p).derive(passphrase)


def _private_key(padded: memoryview, backend: Backend | None) -> Sm2PrivateKey:
    """Read PrivateKeyInfo, in which everything must be as it has to be: nothing else tells a wrong passphrase."""
    try:
        padding = padded[-1]
        _require(1 <= padding <= _BLOCK, "no padding")
        _require(padded[-padding:] == bytes([padding]) * padding, "no padding")
        (info,) = elements(padded[:-padding], SEQUENCE)
        version, algorithm, octets, *rest = parts(info)
        tags = [version[0], algorithm[0], octets[0], *(tag for tag, _ in rest)]
        required = [INTEGER, SEQUENCE, OCTET_STRING]
        _require(tags in (required, [*required, _ATTRIBUTES]), "no PrivateKeyInfo")
        _require(bytes(version[1]) == b"\0", "another version")
    except ValueError:
        raise PassphraseWrong("the passphrase is wrong, or the file was altered") from None
    if element(SEQUENCE, bytes(algorithm[1])) != _ALGORITHM:
        raise KeyFileUnreadable("the key in the file is not one for SM2")
    try:
        return _ec_key(octets[1], backend)
    except ValueError:
        raise KeyFileUnreadable("the file opens, and what is in it is no SM2 key") from None


def _ec_key(octets: memoryview, backend: Backend | None) -> Sm2PrivateKey:
    """Read ECPrivateKey (RFC 5915). A ValueError says that it is none."""
    (body,) = elements(octets, SEQUENCE)
    version, number, *rest = parts(body)
    _require((version[0], number[0]) == (INTEGER, OCTET_STRING), "no ECPrivateKey")
    _require(bytes(version[1]) == b"\1", "another version")
    # The number has as many bytes as the order: load() insists on that, and on its range.
    key = Sm2PrivateKey.load(bytearray(number[1]), backend=backend)
    if rest and rest[0][0] == _CURVE:
        _require(rest.pop(0)[1] == _SM2, "another curve")
    if rest and rest[0][0] == _PUBLIC:
        (bits,) = elements(rest.pop(0)[1], BIT_STRING)
        _require(bits == _NO_UNUSED_BITS + key.public.encode(), "another's public key")
    _require(not rest, "more than a key")
    return key


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _number(number: int) -> bytes:
    return integer(number.to_bytes(8, "big"))


def _armoured(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _unarmoured(label: str, pem: bytes) -> bytes:
    if len(pem) > MAX_FILE_BYTES:
        raise KeyFileUnreadable("the file is too long for a key")
    match = _PEM.match(pem)
    if match is None:
        raise KeyFileUnreadable("the file is not PEM")
    found = match[1].decode()
    if found == "PRIVATE KEY" and label == _PRIVATE_LABEL:
        raise KeyFileUnreadable("the private key in the file is not under a passphrase")
    if found != label:
        raise KeyFileUnreadable(f"the file does not say {label}")
    try:
        return base64.b64decode(b"".join(match[2].split()), validate=True)
    except binascii.Error:
        raise KeyFileUnreadable("the file is not PEM") from None
