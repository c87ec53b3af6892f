"""What keyd writes OpenSSL reads, and the other way round; nothing else is read, and every no is a sentence."""

from __future__ import annotations

import base64
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from keyd.crypto.sm2 import Sm2PrivateKey, Sm2PublicKey, files
from keyd.crypto.sm2.curve import G, N, scalar
from keyd.crypto.sm2.der import (
    BIT_STRING,
    INTEGER,
    OCTET_STRING,
    SEQUENCE,
    element,
    signature_from_der,
)
from keyd.crypto.sm2.files import (
    KeyFileUnreadable,
    PassphraseWrong,
    fingerprint,
    read_private_key,
    read_public_key,
    write_private_key,
    write_public_key,
)
from keyd.crypto.sm3 import sm3

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.crypto.sm2.backend import Backend

PASSPHRASE: Final = "口令 correct horse".encode()

# GB/T 32918.5 A.2
D: Final = bytes.fromhex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")


def knows_sm2() -> bool:
    if shutil.which("openssl") is None:
        return False
    return b"SM2" in openssl("ecparam", "-list_curves")


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


openssl_knows_sm2 = pytest.mark.skipif(not knows_sm2(), reason="there is no openssl that knows SM2")


@pytest.fixture(scope="module")
def key() -> Sm2PrivateKey:
    return Sm2PrivateKey.load(D)


@pytest.fixture(scope="module")
def pem(key: Sm2PrivateKey) -> bytes:
    return write_private_key(key, PASSPHRASE)


@pytest.fixture
def passphrase_file(tmp_path: Path) -> str:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE)
    return f"file:{file}"


# --- there and back


def test_a_private_key_reads_back_on_every_backend(pem: bytes, backend: Backend) -> None:
    read = read_private_key(pem, PASSPHRASE, backend=backend)
    with read.lent_secret() as d:
        assert d == D
    written = write_private_key(read, PASSPHRASE)
    assert read_private_key(written, PASSPHRASE).public == read.public


@pytest.mark.parametrize("d", [1, 0x80, 1 << 240, N - 2])
def test_numbers_of_every_length_keep_their_zeros(d: int) -> None:
    written = write_private_key(Sm2PrivateKey.load(scalar(d)), b"x")
    with read_private_key(written, b"x").lent_secret() as read:
        assert read == scalar(d)


def test_two_files_of_one_key_have_nothing_in_common(key: Sm2PrivateKey, pem: bytes) -> None:
    lines, others = pem.splitlines(), write_private_key(key, PASSPHRASE).splitlines()
    # The labels and the algorithm's name at the beginning; then salt, iv and everything else are new.
    assert lines[0] == others[0]
    assert not set(lines[2:-1]) & set(others[2:-1])
    body = base64.b64decode(b"".join(lines[1:-1]))
    assert D not in body
    assert key.public.encode() not in body


def test_a_public_key_reads_back(key: Sm2PrivateKey, backend: Backend) -> None:
    assert read_public_key(write_public_key(key.public), backend=backend) == key.public


@pytest.mark.parametrize("around", [b"%s", b"\n\n%s\n", b"  %s"])
def test_white_space_around_does_not_matter(key: Sm2PrivateKey, around: bytes) -> None:
    written = write_public_key(key.public)
    assert read_public_key(around % written) == key.public
    assert read_public_key(around % written.replace(b"\n", b"\r\n")) == key.public


# --- OpenSSL


@openssl_knows_sm2
def test_openssl_reads_a_private_key(
    key: Sm2PrivateKey, pem: bytes, tmp_path: Path, passphrase_file: str
) -> None:
    text = openssl("pkey", "-passin", passphrase_file, "-text", "-noout", stdin=pem).decode()
    assert "SM2" in text
    assert D.hex() in text.replace(" ", "").replace(":", "").replace("\n", "")
    public = openssl("pkey", "-passin", passphrase_file, "-pubout", stdin=pem)
    assert public == write_public_key(key.public)
    assert read_public_key(public) == key.public


@openssl_knows_sm2
def test_openssl_signs_with_a_key_that_keyd_wrote(
    key: Sm2PrivateKey, pem: bytes, tmp_path: Path, passphrase_file: str
) -> None:
    file, message = tmp_path / "key.pem", tmp_path / "message"
    file.write_bytes(pem)
    message.write_bytes(b"message")
    own = ["-pkeyopt", "distid:1234567812345678", "-rawin", "-digest", "sm3"]
    der = openssl(
        *("pkeyutl", "-sign", *own),
        *("-inkey", str(file), "-passin", passphrase_file, "-in", str(message)),
    )
    key.public.verify(b"message", signature_from_der(der))


@openssl_knows_sm2
@pytest.mark.parametrize(
    "options",
    [[], ["-scrypt"], ["-v2", "sm4-cbc"], ["-iter", "10000"], ["-v2", "sm4-cbc", "-scrypt"]],
    ids=lambda options: " ".join(options) or "default",
)
def test_keyd_reads_what_openssl_wrote(options: list[str], passphrase_file: str) -> None:
    made = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2")
    public = openssl("pkey", "-pubout", stdin=made)
    written = openssl("pkcs8", "-topk8", "-passout", passphrase_file, *options, stdin=made)
    read = read_private_key(written, PASSPHRASE)
    assert read.public == read_public_key(public)
    assert write_public_key(read.public) == public
    for wrong in (b"", PASSPHRASE[:-1], PASSPHRASE + b" "):
        with pytest.raises(PassphraseWrong):
            read_private_key(written, wrong)


@openssl_knows_sm2
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-v2", "aes-128-cbc"], "AES-256-CBC or SM4-CBC"),
        (["-v2", "aes256", "-v2prf", "hmacWithSHA1"], "HMAC-SHA256 or scrypt"),
        (["-v1", "PBE-SHA1-3DES"], "older scheme"),
        (["-nocrypt"], "not under a passphrase"),
    ],
    ids=str,
)
def test_what_keyd_does_not_read_it_names(
    options: list[str], sentence: str, passphrase_file: str
) -> None:
    made = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2")
    written = openssl("pkcs8", "-topk8", "-passout", passphrase_file, *options, stdin=made)
    with pytest.raises(KeyFileUnreadable, match=sentence):
        read_private_key(written, PASSPHRASE)


@openssl_knows_sm2
def test_a_key_for_another_curve_is_refused(passphrase_file: str) -> None:
    made = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    written = openssl("pkcs8", "-topk8", "-passout", passphrase_file, stdin=made)
    with pytest.raises(KeyFileUnreadable, match="not one for SM2"):
        read_private_key(written, PASSPHRASE)
    with pytest.raises(KeyFileUnreadable, match="not one for SM2"):
        read_public_key(openssl("pkey", "-pubout", stdin=made))


# --- what is wrong is refused


def test_another_passphrase_is_a_sentence(pem: bytes) -> None:
    for wrong in (b"x", PASSPHRASE[:-1], PASSPHRASE + b" ", PASSPHRASE.upper()):
        with pytest.raises(PassphraseWrong, match="passphrase is wrong, or the file was altered"):
            read_private_key(pem, wrong)


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1025, b"x\0", b"\0x"], ids=len)
def test_what_is_no_passphrase_is_refused(
    key: Sm2PrivateKey, pem: bytes, passphrase: bytes
) -> None:
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        write_private_key(key, passphrase)
    with pytest.raises(PassphraseWrong):
        read_private_key(pem, passphrase)


def armoured(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def unarmoured(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no pem",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----" + b"\n" * 8000,
        b"\n" * 8193,
        armoured("CERTIFICATE", bytes(10)),
        armoured("ENCRYPTED PRIVATE KEY", bytes(10)),
        armoured("ENCRYPTED PRIVATE KEY", b"\x30\x00"),
        armoured("ENCRYPTED PRIVATE KEY", b"\x30\x80"),
    ],
)
def test_what_is_no_key_file_is_refused_by_both(pem: bytes) -> None:
    with pytest.raises(KeyFileUnreadable):
        read_private_key(pem, PASSPHRASE)
    with pytest.raises(KeyFileUnreadable):
        read_public_key(pem)


def test_a_public_key_off_the_curve_is_refused(key: Sm2PrivateKey) -> None:
    der = unarmoured(write_public_key(key.public))
    for bit in range(len(der) * 8):
        altered = (int.from_bytes(der, "big") ^ 1 << bit).to_bytes(len(der), "big")
        with pytest.raises(KeyFileUnreadable):
            read_public_key(armoured("PUBLIC KEY", altered))
    for altered in (der[:-1], der + b"\0", der[1:]):
        with pytest.raises(KeyFileUnreadable):
            read_public_key(armoured("PUBLIC KEY", altered))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive in no time, for tests that read hundreds of files."""
    monkeypatch.setattr(files, "_N", 2)
    monkeypatch.setattr(files, "_P", 1)
    monkeypatch.setattr(files, "_MAX_SCRYPT_BYTES", 1 << 16)
    monkeypatch.setattr(files, "_MAX_SCRYPT_P", 2)


@pytest.mark.usefixtures("cheap")
def test_no_altered_file_is_another_key_or_a_crash(key: Sm2PrivateKey) -> None:
    der = unarmoured(write_private_key(key, PASSPHRASE))
    for bit in range(len(der) * 8):
        altered = (int.from_bytes(der, "big") ^ 1 << bit).to_bytes(len(der), "big")
        with pytest.raises(KeyFileUnreadable) as refused:
            read_private_key(armoured("ENCRYPTED PRIVATE KEY", altered), PASSPHRASE)
        assert refused.value.__cause__ is None
    for length in range(0, len(der), 7):
        with pytest.raises(KeyFileUnreadable):
            read_private_key(armoured("ENCRYPTED PRIVATE KEY", der[:length]), PASSPHRASE)


@pytest.mark.usefixtures("cheap")
def test_random_files_are_refused() -> None:
    draw = random.Random(3)  # noqa: S311 - bytes of a test
    for _ in range(300):
        der = draw.randbytes(draw.randrange(60))
        for octets in (der, element(SEQUENCE, der), element(SEQUENCE, element(SEQUENCE, der))):
            with pytest.raises(KeyFileUnreadable):
                read_private_key(armoured("ENCRYPTED PRIVATE KEY", octets), PASSPHRASE)
            with pytest.raises(KeyFileUnreadable):
                read_public_key(armoured("PUBLIC KEY", octets))


@pytest.mark.parametrize(
    ("name", "value"), [("_MAX_SCRYPT_BYTES", (16 << 20) - 1), ("_MAX_SCRYPT_P", 4)]
)
def test_a_file_that_asks_for_too_much_work_is_refused_before_any(
    monkeypatch: pytest.MonkeyPatch, pem: bytes, name: str, value: int
) -> None:
    monkeypatch.setattr(files, name, value)
    with pytest.raises(KeyFileUnreadable, match="more work"):
        read_private_key(pem, PASSPHRASE)


def ec_key(d: bytes, *rest: bytes, version: bytes = b"\1") -> bytes:
    """Write PrivateKeyInfo around a number as somebody else might."""
    body = element(INTEGER, version) + element(OCTET_STRING, d) + b"".join(rest)
    inner = element(OCTET_STRING, element(SEQUENCE, body))
    return element(SEQUENCE, element(INTEGER, b"\0") + files._ALGORITHM + inner)


def read_info(info: bytes) -> Sm2PrivateKey:
    padding = 16 - len(info) % 16
    return files._private_key(memoryview(bytearray(info + bytes([padding]) * padding)), None)


def test_the_optional_parts_of_a_private_key_are_read_and_checked(key: Sm2PrivateKey) -> None:
    public = element(0xA1, element(BIT_STRING, b"\0" + key.public.encode()))
    curve = element(0xA0, files._SM2)
    for rest in ([], [public], [curve], [curve, public]):
        assert read_info(ec_key(D, *rest)).public == key.public
    another = element(0xA1, element(BIT_STRING, b"\0" + G))
    other_curve = element(0xA0, files._EC_PUBLIC_KEY)
    for rest in ([another], [other_curve], [public, curve], [public, public], [curve, curve]):
        with pytest.raises(KeyFileUnreadable, match="no SM2 key"):
            read_info(ec_key(D, *rest))
    for d in (b"", D[1:], b"\0" + D, bytes(32), scalar(N - 1), b"\xff" * 32):
        with pytest.raises(KeyFileUnreadable, match="no SM2 key"):
            read_info(ec_key(d))
    with pytest.raises(KeyFileUnreadable, match="no SM2 key"):
        read_info(ec_key(D, version=b"\2"))


def test_what_was_decrypted_is_wiped(
    monkeypatch: pytest.MonkeyPatch, key: Sm2PrivateKey, pem: bytes
) -> None:
    seen: list[bytearray] = []
    decrypted = files._decrypted

    def watched(outer: bytes, encrypted: bytes, passphrase: bytes) -> bytearray:
        plain = decrypted(outer, encrypted, passphrase)
        seen.append(plain)
        if passphrase == PASSPHRASE:
            assert D in plain
        return plain

    monkeypatch.setattr(files, "_decrypted", watched)
    read_private_key(pem, PASSPHRASE)
    with pytest.raises(PassphraseWrong):
        read_private_key(pem, b"another")
    assert [any(plain) for plain in seen] == [False, False]


# --- fingerprints


def test_a_fingerprint_is_the_beginning_of_sm3_in_groups(key: Sm2PrivateKey) -> None:
    text = fingerprint(key.public)
    assert len(text) == 39
    assert text.count("-") == 7
    assert bytes.fromhex(text.replace("-", "")) == sm3(key.public.encode())[:16]
    assert text == text.upper()
    assert fingerprint(Sm2PublicKey.load(G)) != text
