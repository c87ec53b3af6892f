"""A sealed key file opens whole and unaltered under its passphrase, or is refused without a word of its keys."""

from __future__ import annotations

import functools
import stat
import traceback
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.passphrase import SALT_BYTES, keys_from_passphrase
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import hmac_sm3, sm3
from keyd.errors import KeyFileUnusable
from keyd.keys import sealed
from keyd.keys.block import KeyHeader
from keyd.keys.sealed import MAGIC, MAX_FILE_BYTES, read, seal, unseal, write_new

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSPHRASE: Final = b"correct horse battery staple"

# These bytes must be nowhere but in the keys.
CANARIES: Final = (
    bytes.fromhex("F1E2D3C4B5A697887766554433221100"),
    bytes.fromhex("C0DEC0FFEE15BADC0DEDBEEFFACEFEED"),
    bytes.fromhex("A5A4A3A2A1A0AFAE"),
)
ALGORITHMS: Final = (Algorithm.SM4, Algorithm.TDES, Algorithm.DES)


def some_keys() -> list[tuple[KeyHeader, SecretKey]]:
    keys = []
    for number, (algorithm, material) in enumerate(zip(ALGORITHMS, CANARIES, strict=True), 1):
        key = SecretKey.load(algorithm, material)
        keys.append((KeyHeader(0x0170 + number, "IRK", number, algorithm, 3, key.kcv()), key))
    return keys


def counted() -> Callable[[int], bytes]:
    """Return a source of bytes that never repeats and is the same in every run."""
    count = iter(range(10**6))
    return lambda size: sm3(next(count).to_bytes(8, "big"))[:size]


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    # scrypt is slow on purpose, and thousands of attempts here share one salt: the real function, remembered.
    monkeypatch.setattr(sealed, "keys_from_passphrase", _remembered)


_remembered: Final = functools.cache(keys_from_passphrase)


@pytest.fixture(scope="module")
def file() -> bytes:
    return seal(some_keys(), PASSPHRASE, counted())


def in_clear(octets: bytes) -> list[bytes]:
    """Return every piece of a canary that can be read."""
    pieces = [c[at : at + 4] for c in CANARIES for at in range(len(c) - 3)]
    return [piece for piece in pieces if piece in octets]


def require_silent(error: BaseException) -> None:
    text = "".join(traceback.format_exception(error)) + repr(error)
    for piece in (c[at : at + 4] for c in CANARIES for at in range(len(c) - 3)):
        assert piece.hex() not in text.lower()
        assert repr(piece)[2:-1] not in text
    assert PASSPHRASE.decode() not in text


def refused(data: bytes, passphrase: bytes = PASSPHRASE) -> str:
    with pytest.raises(KeyFileUnusable) as refusal:
        unseal(data, passphrase)
    require_silent(refusal.value)
    return str(refusal.value)


def test_what_is_sealed_opens_to_the_same_keys(file: bytes) -> None:
    opened = unseal(file, PASSPHRASE)
    probe = bytes(range(32))
    assert [header for header, _ in opened] == [header for header, _ in some_keys()]
    for (_, was), (_, now) in zip(some_keys(), opened, strict=True):
        assert now.algorithm is was.algorithm
        assert now.encrypt(probe) == was.encrypt(probe)


def test_a_file_of_no_keys_is_a_file() -> None:
    assert unseal(seal([], PASSPHRASE, counted()), PASSPHRASE) == []


def test_the_format_is_the_documented_one(file: bytes) -> None:
    assert MAGIC == b"keyd sealed keys 1\n"
    assert file.startswith(MAGIC)
    salt, blocks = msgspec.msgpack.decode(file[len(MAGIC) : -32])
    assert len(salt) == SALT_BYTES
    assert [len(nonce) for _, nonce, _ in blocks] == [12, 12, 12]
    for (_, _, wrapped), algorithm in zip(blocks, ALGORITHMS, strict=True):
        assert len(wrapped) == KEY_BYTES[algorithm] + 16
    _, mac_key = _remembered(PASSPHRASE, salt)
    assert file[-32:] == hmac_sm3(mac_key, file[:-32])


def test_no_nonce_serves_twice(file: bytes) -> None:
    _, blocks = msgspec.msgpack.decode(file[len(MAGIC) : -32])
    assert len({nonce for _, nonce, _ in blocks}) == len(blocks)


# --- altered


def flips(octets: bytes, places: range, bits: range) -> Iterator[bytes]:
    for at in places:
        for bit in bits:
            yield octets[:at] + bytes([octets[at] ^ 1 << bit]) + octets[at + 1 :]


def salt_places(file: bytes) -> range:
    salt = msgspec.msgpack.decode(file[len(MAGIC) : -32])[0]
    start = file.index(salt)
    return range(start, start + SALT_BYTES)


def test_any_flipped_bit_is_refused(file: bytes) -> None:
    salt = salt_places(file)
    for places in (range(salt.start), range(salt.stop, len(file))):
        for altered in flips(file, places, range(8)):
            assert refused(altered)


def test_a_flipped_bit_in_any_byte_of_the_salt_is_refused(file: bytes) -> None:
    # One bit of each byte: every other salt costs a scrypt, and all bits of a salt are hashed alike.
    for altered in flips(file, salt_places(file), range(3, 4)):
        assert "passphrase" in refused(altered)


def test_no_part_of_a_file_is_a_file(file: bytes) -> None:
    for length in range(len(file)):
        assert refused(file[:length])
    for start in range(1, len(file)):
        assert refused(file[start:])


@pytest.mark.parametrize("more", [b"\0", b"\n", bytes(32), MAGIC])
def test_nothing_can_be_added(file: bytes, more: bytes) -> None:
    assert refused(file + more)
    assert refused(more + file)
    assert refused(file[:-32] + more + file[-32:])
    assert refused(MAGIC + more + file[len(MAGIC) :])


def test_blocks_can_be_neither_taken_out_nor_put_in_nor_moved(file: bytes) -> None:
    salt, blocks = msgspec.msgpack.decode(file[len(MAGIC) : -32])
    first, second, third = blocks
    for others in (
        [],
        [first, second],
        [second, third],
        [second, first, third],
        [third, second, first],
        [first, second, third, first],
        [first, first, third],
    ):
        body = MAGIC + msgspec.msgpack.encode([salt, others])
        assert "altered" in refused(body + file[-32:])


def test_a_block_of_another_file_is_not_a_block_of_this(file: bytes) -> None:
    salt, blocks = msgspec.msgpack.decode(file[len(MAGIC) : -32])
    source = counted()
    source(1)
    other = seal(some_keys(), PASSPHRASE, source)
    _, theirs = msgspec.msgpack.decode(other[len(MAGIC) : -32])
    body = MAGIC + msgspec.msgpack.encode([salt, [theirs[0], *blocks[1:]]])
    assert refused(body + file[-32:])
    # Not even for somebody who can authenticate the file: the block is under another key.
    _, mac_key = _remembered(PASSPHRASE, salt)
    assert "altered or is under another key" in refused(body + hmac_sm3(mac_key, body))


@pytest.mark.parametrize(
    "passphrase", [b"", PASSPHRASE[:-1], PASSPHRASE + b"\n", PASSPHRASE.upper(), b"x"]
)
def test_another_passphrase_is_refused(file: bytes, passphrase: bytes) -> None:
    assert "the passphrase is wrong" in refused(file, passphrase)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        MAGIC + bytes(32),
        b"keyd sealed keys 2\n" + bytes(100),
        MAGIC.replace(b"\n", b"\r\n") + bytes(100),
        MAGIC + b"\xdd\xff\xff\xff\xff" + bytes(64),
        MAGIC + b"\x91" * 5000 + bytes(32),
        MAGIC + msgspec.msgpack.encode([bytes(15), []]) + bytes(32),
        MAGIC + msgspec.msgpack.encode([bytes(16), [], 0]) + bytes(32),
        MAGIC + msgspec.msgpack.encode({"salt": bytes(16), "blocks": []}) + bytes(32),
    ],
)
def test_what_is_no_key_file_is_refused(data: bytes) -> None:
    assert refused(data)


def test_a_file_too_large_is_refused_unread(file: bytes) -> None:
    assert "no sealed key file" in refused(file + bytes(MAX_FILE_BYTES))


def test_no_key_byte_is_in_the_file(file: bytes) -> None:
    assert in_clear(b"".join(CANARIES))
    assert not in_clear(file)
    assert PASSPHRASE not in file


# --- on disk


def test_a_file_is_written_whole_and_for_its_owner_alone(tmp_path: Path, file: bytes) -> None:
    path = tmp_path / "roots.sealed"
    write_new(path, file)
    assert path.read_bytes() == read(path) == file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Nothing is left beside it.
    assert [entry.name for entry in tmp_path.iterdir()] == ["roots.sealed"]
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "roots.sealed", tmp_path / "other"
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
        if kind == "link":
            other.write_bytes(b"old")
    before = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        write_new(path, b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    if kind in {"file", "link"}:
        assert path.read_bytes() == b"old"
    assert not (kind == "dangling link" and other.exists())


def test_a_place_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(KeyFileUnusable, match="cannot be written"):
        write_new(tmp_path / "nowhere" / "roots.sealed", b"data")
    with pytest.raises(KeyFileUnusable, match="cannot be read"):
        read(tmp_path / "nowhere")
    with pytest.raises(KeyFileUnusable, match="cannot be read"):
        read(tmp_path)


def test_no_more_is_read_than_a_key_file_has(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(10 * MAX_FILE_BYTES)
    data = read(path)
    assert len(data) == MAX_FILE_BYTES + 1
    assert refused(MAGIC + data[len(MAGIC) :])
