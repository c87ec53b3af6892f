"""The sealed key file: key blocks under a passphrase, for as long as there is no key store with custody.

    "keyd sealed keys 1\\n" ‖ MessagePack [salt 16, [key block, …]] ‖ HMAC-SM3 32 over all before it

The passphrase gives, through scrypt, the key that wraps the blocks and the one that authenticates the file as
a whole, so that a block can neither be altered nor taken out or added. Files are written whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from hmac import compare_digest
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.passphrase import SALT_BYTES, keys_from_passphrase
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.crypto.sm3 import DIGEST_BYTES, hmac_sm3
from keyd.errors import KeyFileUnusable
from keyd.keys.block import NONCE_BYTES, KeyBlock, KeyHeader, make_block, open_block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MAGIC: Final = b"keyd sealed keys 1\n"

# 155 addresses with two algorithms make some 40 KiB; more is not a key file.
MAX_FILE_BYTES: Final = 1024 * 1024


class _Body(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    blocks: tuple[KeyBlock, ...]


def seal(
    keys: Sequence[tuple[KeyHeader, SecretKey]],
    passphrase: bytes,
    random_bytes: Callable[[int], bytes],
) -> bytes:
    """Return the bytes of a sealed key file."""
    salt = random_bytes(SALT_BYTES)
    kek, mac_key = keys_from_passphrase(passphrase, salt)
    blocks = tuple(make_block(kek, header, key, random_bytes(NONCE_BYTES)) for header, key in keys)
    body = MAGIC + msgspec.msgpack.encode(_Body(salt, blocks))
    return body + hmac_sm3(mac_key, body)


def unseal(data: bytes, passphrase: bytes) -> list[tuple[KeyHeader, SecretKey]]:
    """Open a sealed key file.

    Raises:
        KeyFileUnusable: it is no such file, was altered or cut, or the passphrase is another.
    """
    body, mac = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not body.startswith(MAGIC) or len(data) > MAX_FILE_BYTES:
        raise KeyFileUnusable("it is no sealed key file of this version")
    try:
        content = msgspec.msgpack.decode(body[len(MAGIC) :], type=_Body)
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise KeyFileUnusable("the sealed key file is damaged") from None
    kek, mac_key = keys_from_passphrase(passphrase, content.salt)
    if not compare_digest(hmac_sm3(mac_key, body), mac):
        raise KeyFileUnusable("the passphrase is wrong, or the sealed key file was altered")
    try:
        return [open_block(kek, block) for block in content.blocks]
    except KeyNotAuthentic as error:
        raise KeyFileUnusable(str(error)) from None


def write_new(path: Path, data: bytes) -> None:
    """Write a file that was not there, whole and on disk, readable by its owner only.

    Raises:
        KeyFileUnusable: it is there already, or cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # A link, unlike a rename, never replaces what is there. The temporary file's mode is 0600.
            os.link(file.name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise KeyFileUnusable(f"{path} is there already, and keys are never overwritten") from None
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be written: {error.strerror}") from None


def read(path: Path) -> bytes:
    """Read a sealed key file.

    Raises:
        KeyFileUnusable: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be read: {error.strerror}") from None
