"""What people bring in files or type: officers' keys, shares, checkpoints, public keys. Read, or refused in a sentence.

The first byte says which, and whether what is inside was encrypted or signed again after it was changed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from keyd.audit.checkpoints import (
    CheckpointNotAuthentic,
    encode_checkpoint,
    load_public_key,
    read_checkpoints,
)
from keyd.audit.records import Head
from keyd.crypto.shares import Share, decode_share, encode_share
from keyd.crypto.sm2 import PointNotOnCurve, Sm2PrivateKey, files
from keyd.crypto.sm2.der import (
    INTEGER,
    OCTET_STRING,
    SEQUENCE,
    element,
    signature_from_der,
    signature_to_der,
)
from keyd.crypto.sm2.files import KeyFileUnreadable, read_private_key, write_public_key
from keyd.errors import ShareRefused
from tests.fuzz.mutators import mutate_bytes, mutate_der, mutate_message
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from random import Random

KEY_FILE, KEY_INSIDE, PUBLIC_KEY, SHARE, CHECKPOINTS, CHECKPOINT_INSIDE, SIGNATURE = range(7)

# Synthetic, as the key is.
PASSPHRASE: Final = b"correct horse"
_SALT: Final = bytes(8)
_IV: Final = bytes(16)

# A file may make an officer wait for a minute, and a fuzzer may not.
files._MAX_ITERATIONS = 1000  # type: ignore[misc]
files._MAX_SCRYPT_BYTES = 1 << 20  # type: ignore[misc]
files._MAX_SCRYPT_P = 1  # type: ignore[misc]

_folder: Final = tempfile.TemporaryDirectory(prefix="keyd-fuzz-")
_PATH: Final = Path(_folder.name) / "checkpoints"


@functools.cache
def _key() -> Sm2PrivateKey:
    return Sm2PrivateKey.generate()


def one_input(data: bytes) -> None:
    if not data:
        return
    what, content = data[0] % 7, data[1:]
    match what:
        case 0:
            _read_key(_pem("ENCRYPTED PRIVATE KEY", content))
            _read_key(content)
        case 1:
            _read_key(_pem("ENCRYPTED PRIVATE KEY", _encrypted(content)))
        case 2:
            _read_public_key(content)
        case 3:
            _read_share(content)
        case 4:
            _read_checkpoints(content)
        case 5:
            _read_checkpoints((content + _key().sign(content)).hex().encode() + b"\n")
        case _:
            _read_signature(content)


def _read_key(pem: bytes) -> None:
    try:
        key = read_private_key(pem, PASSPHRASE)
    except KeyFileUnreadable as unreadable:
        assert str(unreadable)
        return
    assert len(key.public.encode()) == 65


def _read_public_key(content: bytes) -> None:
    for pem in (content, _pem("PUBLIC KEY", content)):
        try:
            key = files.read_public_key(pem)
        except KeyFileUnreadable as unreadable:
            assert str(unreadable)
        else:
            assert files.read_public_key(write_public_key(key)).encode() == key.encode()
        try:
            load_public_key(pem.decode("latin-1"))
        except (ValueError, PointNotOnCurve) as error:
            assert str(error)


def _read_share(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    try:
        share = decode_share(text)
    except ShareRefused as refused:
        # It quotes nothing, for what is almost a share is almost a secret.
        assert len(text) < 20 or text not in str(refused)
        return
    assert decode_share(encode_share(share)).value == share.value


def _read_checkpoints(content: bytes) -> None:
    _PATH.write_bytes(content)
    try:
        heads = read_checkpoints(_PATH, _key().public)
    except CheckpointNotAuthentic as error:
        assert str(error)
        return
    assert len(heads) <= content.count(b"\n")


def _read_signature(content: bytes) -> None:
    try:
        signature = signature_from_der(content)
    except ValueError:
        return
    assert signature_to_der(signature) == content


def _encrypted(info: bytes) -> bytes:
    """Put PrivateKeyInfo under the passphrase, with as little work as can be."""
    padding = 16 - len(info) % 16
    derived = PBKDF2HMAC(SHA256(), 32, _SALT, 1).derive(PASSPHRASE)
    encryptor = Cipher(algorithms.AES256(derived), modes.CBC(_IV)).encryptor()
    encrypted = encryptor.update(info + bytes([padding]) * padding)
    hashed = element(SEQUENCE, files._HMAC_SHA256 + element(0x05, b""))
    numbers = element(OCTET_STRING, _SALT) + element(INTEGER, b"\1") + hashed
    derivation = element(SEQUENCE, files._PBKDF2 + element(SEQUENCE, numbers))
    cipher = element(SEQUENCE, files._AES_256_CBC + element(OCTET_STRING, _IV))
    scheme = element(SEQUENCE, files._PBES2 + element(SEQUENCE, derivation + cipher))
    return element(SEQUENCE, scheme + element(OCTET_STRING, encrypted))


def _info() -> bytes:
    """PrivateKeyInfo of the synthetic key, in the clear."""
    with _key().lent_secret() as d:
        ec_key = element(SEQUENCE, element(INTEGER, b"\1") + element(OCTET_STRING, bytes(d)))
    algorithm = element(SEQUENCE, files._EC_PUBLIC_KEY + files._SM2)
    return element(SEQUENCE, element(INTEGER, b"\0") + algorithm + element(OCTET_STRING, ec_key))


def _pem(label: str, content: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (
        label.encode(),
        base64.encodebytes(content),
        label.encode(),
    )


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    match data[0] % 7:
        case 0 | 1 | 2 | 6:
            return data[:1] + mutate_der(data[1:], random)
        case 5:
            return data[:1] + mutate_message(data[1:], random)
        case _:
            return data[:1] + mutate_bytes(data[1:], random)


def seeds() -> list[bytes]:
    head = Head("keyd-1", 3, 1234, bytes(range(32)), 10**18)
    checkpoint = encode_checkpoint(head, _key())
    share = Share(b"KEYD", 1, 2, 3, bytes(range(16)))
    public = write_public_key(_key().public)
    spki = binascii.a2b_base64(b"".join(public.split(b"\n")[1:-2]))
    return [
        bytes([KEY_FILE]) + _encrypted(_info()),
        bytes([KEY_INSIDE]) + _info(),
        bytes([PUBLIC_KEY]) + spki,
        bytes([PUBLIC_KEY]) + _key().public.encode().hex().encode(),
        bytes([SHARE]) + encode_share(share).encode(),
        bytes([CHECKPOINTS]) + checkpoint.hex().encode() + b"\n",
        bytes([CHECKPOINT_INSIDE]) + checkpoint[:-64],
        bytes([SIGNATURE]) + signature_to_der(_key().sign(b"x")),
    ]


TARGET = Target(one_input, seeds, mutate)
