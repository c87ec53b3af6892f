"""国密 TLS as RFC 8998 writes it, checked without the library that speaks it. Invariant: with the handshake's
keys, SM4, SM3 and SM2 of elsewhere open the server's flight and find its signature good under the RFC's identifier.

No second implementation of RFC 8998 is at hand, so the recorded bytes are the witness: were suite, key schedule or
signature another's, none of this would open.
"""

from __future__ import annotations

from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyd.crypto.sm2 import SignatureNotAuthentic, Sm2PublicKey
from keyd.crypto.sm2.der import signature_from_der
from keyd.crypto.sm3 import sm3
from keyd.tls import TlsKind
from keyd.tls.pki import public_key_of
from tests.tls.lines import NOW, SERVER_NAME, client_context, pki, server_context

KIND: Final = TlsKind.GUOMI

# RFC 8998 §2, §3.2.1; the groups' numbers are in IANA's registry of supported groups.
TLS_SM4_GCM_SM3: Final = 0x00C6
SM2SIG_SM3: Final = 0x0708
CURVE_SM2: Final = 41
IDENTIFIER: Final = b"TLSv1.3+GM+Cipher+Suite"

# RFC 8446 §4.
SERVER_HELLO: Final = 2
CERTIFICATE: Final = 11
CERTIFICATE_VERIFY: Final = 15

TAG_BYTES: Final = 16


def records(stream: bytes) -> list[tuple[int, bytes, bytes]]:
    """Cut a stream: type, header, body."""
    found = []
    while stream:
        end = 5 + int.from_bytes(stream[3:5], "big")
        found.append((stream[0], stream[:5], stream[5:end]))
        stream = stream[end:]
    return found


def expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """Compute HKDF-Expand-Label (RFC 8446 §7.1) with SM3, for no more than one block."""
    label = b"tls13 " + label
    mac = hmac.HMAC(secret, hashes.SM3())
    mac.update(length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0\x01")
    return mac.finalize()[:length]


def opened(secret: bytes, number: int, header: bytes, body: bytes) -> bytes:
    """Open a record of this number with SM4-GCM; return its content without the type."""
    key = expand_label(secret, b"key", 16)
    iv = int.from_bytes(expand_label(secret, b"iv", 12), "big") ^ number
    mode = modes.GCM(iv.to_bytes(12, "big"), body[-TAG_BYTES:])
    decryptor = Cipher(algorithms.SM4(key), mode).decryptor()
    decryptor.authenticate_additional_data(header)
    plaintext = decryptor.update(body[:-TAG_BYTES]) + decryptor.finalize()
    return plaintext.rstrip(b"\0")[:-1]


def messages(stream: bytes) -> list[bytes]:
    """Cut a stream of handshake messages, each with its header."""
    found = []
    while stream:
        end = 4 + int.from_bytes(stream[1:4], "big")
        found.append(stream[:end])
        stream = stream[end:]
    return found


def test_the_servers_flight_is_what_rfc_8998_says() -> None:
    keylog: list[bytes] = []
    context = client_context(KIND, groups=["curveSM2"])
    context._context.set_keylog_callback(lambda _, line: keylog.append(line))
    client = context.connect(SERVER_NAME, NOW)
    server = server_context(KIND).accept(NOW)
    hello = client.data_to_send()
    server.receive_data_untrusted(hello)
    flight = server.data_to_send()
    client.receive_data_untrusted(flight)

    (line,) = (each for each in keylog if each.startswith(b"SERVER_HANDSHAKE_TRAFFIC_SECRET"))
    secret = bytes.fromhex(line.split()[2].decode())
    transcript = b"".join(body for kind, _, body in records(hello) if kind == 0x16)
    (server_hello,) = (body for kind, _, body in records(flight) if kind == 0x16)
    encrypted = [(header, body) for kind, header, body in records(flight) if kind == 0x17]
    plain = b"".join(opened(secret, at, *record) for at, record in enumerate(encrypted))

    # Type, length, version, random, and an echo of the session id; then the suite.
    at = 4 + 2 + 32
    at += 1 + server_hello[at]
    assert server_hello[0] == SERVER_HELLO
    assert int.from_bytes(server_hello[at : at + 2], "big") == TLS_SM4_GCM_SM3
    # key_share: extension 51, of the group and a point of 65 bytes.
    share = b"\x00\x33" + (69).to_bytes(2, "big") + CURVE_SM2.to_bytes(2, "big") + b"\x00\x41\x04"
    assert share in server_hello

    transcript += server_hello
    for message in messages(plain):
        if message[0] == CERTIFICATE_VERIFY:
            break
        transcript += message
        certificate = message if message[0] == CERTIFICATE else b""
    else:
        raise AssertionError("the server proved nothing")

    leaf = x509.load_pem_x509_certificate(pki(KIND).server.certificate)
    assert certificate[0] == CERTIFICATE
    algorithm, signature = int.from_bytes(message[4:6], "big"), signature_from_der(message[8:])
    assert algorithm == SM2SIG_SM3
    # RFC 8446 §4.4.3.
    signed = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + sm3(transcript)
    key = Sm2PublicKey.load(public_key_of(leaf).point)
    key.verify(signed, signature, user_id=IDENTIFIER)
    with pytest.raises(SignatureNotAuthentic):
        key.verify(signed, signature)
