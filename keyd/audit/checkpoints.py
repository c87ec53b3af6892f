"""Signed checkpoints: where the journal was, said in a second place by someone who cannot be imitated.

A checkpoint is a line of hexadecimal digits: a MessagePack map, and an SM2 signature over exactly its bytes.
The file is append-only, like the journal, and belongs where whoever can write the journal cannot: another
disk, another host, a printer. Verifying needs the public key only.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from keyd.audit.records import LINK_BYTES, Head
from keyd.crypto.sm2 import SignatureNotAuthentic, Sm2PrivateKey, Sm2PublicKey

if TYPE_CHECKING:
    from pathlib import Path

_SIGNATURE_BYTES: Final = 64

# The longest line has an instance's name of 255 bytes and stays below half of this.
_MAX_LINE: Final = 2 * 1024

# SubjectPublicKeyInfo of every SM2 key: id-ecPublicKey, the curve 1.2.156.10197.1.301, 65 bytes of point.
_SPKI: Final = bytes.fromhex("3059301306072A8648CE3D020106082A811CCF5501822D034200")
_PEM: Final = re.compile(
    r"\A\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END PUBLIC KEY-----\s*\Z"
)


class CheckpointNotAuthentic(Exception):  # noqa: N818 - the name says what is wrong
    """A line is no checkpoint, or not one of this key. `str()` is a sentence that names the line."""


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyd_checkpoint: int = msgspec.field(name="keyd checkpoint")
    instance: str
    segment: int
    number: int
    link: bytes
    time_ns: int


def encode_checkpoint(head: Head, key: Sm2PrivateKey) -> bytes:
    """Return a signed checkpoint of a journal's head: the map and the signature, as bytes."""
    body = msgspec.msgpack.encode(
        _Body(1, head.instance, head.segment, head.number, head.link, head.time_ns)
    )
    return body + key.sign(body)


def decode_checkpoint(signed: bytes, key: Sm2PublicKey) -> Head:
    """Return the head that a checkpoint tells of.

    Raises:
        CheckpointNotAuthentic: the key's owner did not sign it.
    """
    body, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
    try:
        key.verify(body, signature)
        read = msgspec.msgpack.decode(body, type=_Body)
    except SignatureNotAuthentic:
        raise CheckpointNotAuthentic("its signature is not one of this key") from None
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise CheckpointNotAuthentic("it is signed, but is no checkpoint") from None
    if read.keyd_checkpoint != 1 or len(read.link) != LINK_BYTES:
        raise CheckpointNotAuthentic("it is signed, but is no checkpoint of version 1")
    return Head(read.instance, read.segment, read.number, read.link, read.time_ns)


def append_checkpoint(path: Path, head: Head, key: Sm2PrivateKey) -> None:
    """Add a checkpoint to a file and make it durable. For a worker thread.

    Raises:
        OSError: it is not there for certain.
    """
    line = encode_checkpoint(head, key).hex().encode() + b"\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        _drop_torn_line(fd, path)
        size = os.fstat(fd).st_size
        if os.write(fd, line) != len(line):
            os.ftruncate(fd, size)
            raise OSError(f"{path}: the checkpoint could not be written whole")
        os.fsync(fd)
    finally:
        os.close(fd)


def _drop_torn_line(fd: int, path: Path) -> None:
    """Cut off what a crash left of a line, so that the next begins on its own."""
    start = max(0, os.fstat(fd).st_size - _MAX_LINE)
    end = os.pread(fd, _MAX_LINE, start)
    kept = end.rfind(b"\n") + 1
    if not kept and start:
        raise OSError(f"{path} is no file of checkpoints")
    if kept != len(end):
        os.ftruncate(fd, start + kept)


def read_checkpoints(path: Path, key: Sm2PublicKey) -> list[Head]:
    """Return the heads in a file of checkpoints, oldest first. A line that was never finished is left out.

    Raises:
        CheckpointNotAuthentic: a line is not one of this key.
        OSError: the file cannot be read.
    """
    heads = []
    lines = path.read_bytes().split(b"\n")
    for count, line in enumerate(lines[:-1], start=1):
        try:
            heads.append(decode_checkpoint(binascii.unhexlify(line), key))
        except binascii.Error:
            raise CheckpointNotAuthentic(
                f"{path}, line {count}: it is not in hexadecimal"
            ) from None
        except CheckpointNotAuthentic as error:
            raise CheckpointNotAuthentic(f"{path}, line {count}: {error}") from None
    return heads


def load_public_key(text: str) -> Sm2PublicKey:
    """Take a public key as 130 hex digits (04‖x‖y), or as PEM.

    Raises:
        ValueError: it is neither.
        PointNotOnCurve: it is no point of the SM2 curve.
    """
    if re.fullmatch(r"\s*[0-9A-Fa-f]{130}\s*", text):
        return Sm2PublicKey.load(bytes.fromhex(text.strip()))
    matched = _PEM.match(text)
    if matched is not None:
        try:
            encoded = base64.b64decode("".join(matched[1].split()), validate=True)
        except binascii.Error:
            encoded = b""
        if encoded.startswith(_SPKI) and len(encoded) == len(_SPKI) + 65:
            return Sm2PublicKey.load(encoded[len(_SPKI) :])
    raise ValueError("an SM2 public key is 130 hex digits (04, x, y), or PEM")
