"""The line: TLS 1.3 with both sides' certificates, without a socket, a clock or trio.

It stands between whoever moves bytes and the protocol: ciphertext in, plaintext out, and back. Two kinds of line
exist, 国密 (RFC 8998: SM2, SM3, SM4) and standard (ECDSA, AES), and a server speaks exactly one of them on a port:
nothing falls back from the one to the other.

    kinds.py       what the two kinds consist of: suites, groups, signatures, curves
    der.py         as much DER as certificates need
    pki.py         keyd's built-in CA: certificates, requests, revocation lists; pure functions
    inspection.py  what is in a certificate, a request or a revocation list, for people
    openssl.py     contexts, and the calls of OpenSSL that pyOpenSSL has no method for
    connection.py  both sides of one line
"""

from __future__ import annotations

from keyd.tls.connection import (
    MAX_CHUNK,
    MAX_SEND,
    CertificateChain,
    ClientJudge,
    ClientSession,
    PeerCertificate,
    TlsClientConnection,
    TlsClientContext,
    TlsConnection,
    TlsFault,
    TlsServerContext,
    TlsState,
)
from keyd.tls.kinds import TlsKind
from keyd.tls.openssl import TlsUnusable, require_support, version

__all__ = [
    "MAX_CHUNK",
    "MAX_SEND",
    "CertificateChain",
    "ClientJudge",
    "ClientSession",
    "PeerCertificate",
    "TlsClientConnection",
    "TlsClientContext",
    "TlsConnection",
    "TlsFault",
    "TlsKind",
    "TlsServerContext",
    "TlsState",
    "TlsUnusable",
    "require_support",
    "version",
]
