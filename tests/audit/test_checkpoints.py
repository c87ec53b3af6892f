"""A checkpoint is believed only with its signature, and a journal cut behind one is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyd.audit.checkpoints import (
    CheckpointNotAuthentic,
    append_checkpoint,
    decode_checkpoint,
    encode_checkpoint,
    load_public_key,
    read_checkpoints,
)
from keyd.audit.records import Head
from keyd.audit.verify import verify
from keyd.crypto.sm2 import Sm2PrivateKey

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.audit.journal import Journal

HEAD = Head("keyd-1", 3, 12345, bytes(range(32)), 1_772_323_200_000_000_000)


@pytest.fixture(scope="module")
def key() -> Sm2PrivateKey:
    return Sm2PrivateKey.load((7).to_bytes(32, "big"))


def test_checkpoints_come_back_in_order(tmp_path: Path, key: Sm2PrivateKey) -> None:
    path = tmp_path / "checkpoints"
    heads = [Head("keyd-1", 1, n, bytes([n]) * 32, n) for n in range(1, 5)]
    for head in heads:
        append_checkpoint(path, head, key)
    assert read_checkpoints(path, key.public) == heads


def test_every_changed_byte_is_found(key: Sm2PrivateKey) -> None:
    signed = encode_checkpoint(HEAD, key)
    assert decode_checkpoint(signed, key.public) == HEAD
    for offset in range(len(signed)):
        changed = bytearray(signed)
        changed[offset] ^= 1
        with pytest.raises(CheckpointNotAuthentic):
            decode_checkpoint(bytes(changed), key.public)


def test_what_is_signed_but_no_checkpoint_is_refused(key: Sm2PrivateKey) -> None:
    for body in (b"", b"\x80", b"\xc1"):
        with pytest.raises(CheckpointNotAuthentic):
            decode_checkpoint(body + key.sign(body), key.public)


def test_a_line_of_another_key_is_named(tmp_path: Path, key: Sm2PrivateKey) -> None:
    path = tmp_path / "checkpoints"
    append_checkpoint(path, HEAD, key)
    append_checkpoint(path, HEAD, Sm2PrivateKey.generate())
    with pytest.raises(CheckpointNotAuthentic, match="line 2"):
        read_checkpoints(path, key.public)


def test_a_torn_line_is_dropped_by_the_next(tmp_path: Path, key: Sm2PrivateKey) -> None:
    path = tmp_path / "checkpoints"
    append_checkpoint(path, HEAD, key)
    with path.open("ab") as file:
        file.write(b"abc")
    assert read_checkpoints(path, key.public) == [HEAD]
    append_checkpoint(path, HEAD, key)
    assert read_checkpoints(path, key.public) == [HEAD, HEAD]


def test_a_journal_cut_at_a_frame_shows_against_its_checkpoint(
    journal: Journal, folder: Path, tmp_path: Path, key: Sm2PrivateKey
) -> None:
    path = tmp_path / "checkpoints"
    segment = folder / "00000001.keyd-journal"
    before = segment.read_bytes()
    journal.append(bytes(32))
    append_checkpoint(path, journal.head(), key)
    anchors = [head.anchor for head in read_checkpoints(path, key.public)]
    assert verify(folder, expected=anchors).is_good
    segment.write_bytes(before)
    assert verify(folder).is_good
    report = verify(folder, expected=anchors)
    assert report.bad is not None
    assert "went on" in report.bad.why


def test_a_public_key_is_hex_or_pem(key: Sm2PrivateKey) -> None:
    assert load_public_key(key.public.encode().hex()) == key.public
    # `openssl pkey -pubin` reads this one: d = 7.
    pem = (
        "-----BEGIN PUBLIC KEY-----\n"
        + _base64(
            "3059301306072a8648ce3d020106082a811ccf5501822d034200" + key.public.encode().hex()
        )
        + "\n-----END PUBLIC KEY-----\n"
    )
    assert load_public_key(pem) == key.public
    for text in (
        "",
        "04",
        pem.replace("PUBLIC", "PRIVATE"),
        pem.replace("MFkw", "MFkx"),
        "04" * 65 + "0",
    ):
        with pytest.raises(ValueError, match="130 hex digits"):
            load_public_key(text)


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(text)).decode()
