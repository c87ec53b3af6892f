"""The files of the command line: written whole or not at all, never over another, secrets for their owner alone."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

import typer

from keyd.cli.keyboard import Hidden, ask_hidden
from keyd.config import ConfigError, read_passphrase, require_private
from keyd.crypto.sm2 import PointNotOnCurve, Sm2PrivateKey, Sm2PublicKey
from keyd.crypto.sm2.files import (
    KeyFileUnreadable,
    read_private_key,
    read_public_key,
    write_private_key,
    write_public_key,
)
from keyd.errors import BadParameter, KeyFileUnusable

# Whoever takes the file can try passphrases at leisure; scrypt makes each one dear, length makes them many.
MIN_PASSPHRASE_BYTES: Final = 12

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644

# Officers' keys, shares, sheets and wrapped keys have some hundred bytes; what is longer is another file.
MAX_SMALL_FILE: Final = 64 * 1024

_POINT_HEX: Final = re.compile(r"\s*(04[0-9A-Fa-f]{128})\s*\Z")


def write_new(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Write a file that was not there, whole and on disk.

    Raises:
        KeyFileUnusable: it is there already, or cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:
            # The temporary file is its owner's alone from the beginning.
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            # A link, unlike a rename, never replaces what is there.
            os.link(file.name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise KeyFileUnusable(f"{path} is there already, and is never overwritten") from None
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be written: {error.strerror}") from None


def write_over(path: Path, data: bytes) -> None:
    """Write a file that is nobody's secret, in the place of an earlier one, whole.

    Raises:
        KeyFileUnusable: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), PUBLIC)
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be written: {error.strerror}") from None


def require_new(*paths: Path) -> None:
    """Refuse before anything is done what `write_new` would refuse when it is too late.

    Raises:
        KeyFileUnusable: a file is there already, or its folder is not.
    """
    for path in paths:
        if path.exists() or path.is_symlink():
            raise KeyFileUnusable(f"{path} is there already, and is never overwritten")
        if not path.parent.is_dir():
            raise KeyFileUnusable(f"{path} cannot be written: there is no folder {path.parent}")


def read_small(path: Path) -> bytes:
    """Read a file that is not secret.

    Raises:
        KeyFileUnusable: it cannot be read, or is no such file by its size.
    """
    return _read_at_most(path, MAX_SMALL_FILE)


def read_large(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes, and one more, by which its reader tells that it is too long.

    Raises:
        KeyFileUnusable: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be read: {error.strerror}") from None


def read_hidden(path: Path) -> Hidden:
    """Read a private file into memory that is wiped.

    Raises:
        ConfigError: others than its owner may read it.
        KeyFileUnusable: it cannot be read, or is too long.
    """
    require_private(path)
    octets = bytearray(MAX_SMALL_FILE)
    try:
        # Unbuffered: a buffer would be a copy.
        with path.open("rb", buffering=0) as file:
            size = file.readinto(octets) or 0
    except OSError as error:
        raise KeyFileUnusable(f"{path} cannot be read: {error.strerror}") from None
    if size == MAX_SMALL_FILE:
        raise KeyFileUnusable(f"{path} is too long for what it should be")
    return Hidden(octets, 0, size)


# Officers' keys -------------------------------------------------------------------------------------------


def new_passphrase(file: Path | None) -> bytes:
    """Return the passphrase of a key that is to be made: from a private file, or typed twice.

    Raises:
        ConfigError: it is too short, the file is not private, or what was typed differs.
    """
    if file is not None:
        passphrase = read_passphrase(file)
    else:
        instead = "say --passphrase-file"
        with (
            ask_hidden("Passphrase for the key file: ", instead) as first,
            ask_hidden("Once more: ", instead) as second,
        ):
            passphrase = first.octets()
            if second.octets() != passphrase:
                raise ConfigError("the two passphrases differ")
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise ConfigError(f"the passphrase has less than {MIN_PASSPHRASE_BYTES} bytes")
    return passphrase


def make_officer_key(path: Path, passphrase: bytes) -> Sm2PublicKey:
    """Make an officer's key: the private one in `path`, the public one in `path`.pub.

    Raises:
        KeyFileUnusable: one of them is there already, or cannot be written.
        ConfigError: the passphrase is none that a key file can have.
    """
    public_path = public_beside(path)
    require_new(path, public_path)
    key = Sm2PrivateKey.generate()
    try:
        private = write_private_key(key, passphrase)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    write_new(path, private)
    try:
        write_new(public_path, write_public_key(key.public), PUBLIC)
    except KeyFileUnusable:
        path.unlink()
        raise
    return key.public


def public_beside(path: Path) -> Path:
    """Return where the public key of a private key's file is written."""
    return path.with_name(path.name + ".pub")


def open_officer_key(path: Path, passphrase_file: Path | None) -> Sm2PrivateKey:
    """Open an officer's private key with the passphrase in a file, or typed.

    Raises:
        ConfigError: the file, or that of the passphrase, is not private.
        KeyFileUnusable: it is no such key, or the passphrase is wrong.
    """
    require_private(path)
    pem = read_small(path)
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    else:
        with ask_hidden(f"Passphrase of {path}: ", "say --passphrase-file") as typed:
            passphrase = typed.octets()
    try:
        return read_private_key(pem, passphrase)
    except KeyFileUnreadable as error:
        raise KeyFileUnusable(f"{path}: {error}") from None


def is_private_key(path: Path) -> bool:
    """Whether a file says of itself that it is a private key."""
    return b"PRIVATE KEY-----" in read_small(path)


def public_key(text: str, beside: Path | None = None) -> Sm2PublicKey:
    """Return the public key that somebody named: 130 hex digits, or a file (PEM, or hex digits in it).

    A relative path is looked for in the folder `beside`, if that is given.

    Raises:
        BadParameter: it is neither.
        KeyFileUnusable: the file cannot be read or holds no such key.
    """
    if _POINT_HEX.match(text):
        return _from_hex(text)
    path = Path(text) if beside is None else beside / text
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise BadParameter(
            "a public key is 130 hex digits beginning with 04, or a file that holds one"
        ) from None
    if not stat.S_ISREG(mode):
        raise KeyFileUnusable(f"{path} is no file")
    octets = read_small(path)
    if octets.isascii() and _POINT_HEX.match(octets.decode("ascii")):
        return _from_hex(octets.decode("ascii"))
    try:
        return read_public_key(octets)
    except KeyFileUnreadable as error:
        raise KeyFileUnusable(f"{path}: {error}") from None


def _from_hex(text: str) -> Sm2PublicKey:
    try:
        return Sm2PublicKey.load(bytes.fromhex(text.strip()))
    except PointNotOnCurve:
        raise BadParameter("the public key is not a point of the SM2 curve") from None


def _read_at_most(path: Path, most: int) -> bytes:
    octets = read_large(path, most)
    if len(octets) > most:
        raise KeyFileUnusable(f"{path} is too long for what it should be")
    return octets


def private_folder(path: Path) -> None:
    """Make a folder for secrets, unless it is there.

    Raises:
        typer.BadParameter: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be made: {error.strerror}") from None
