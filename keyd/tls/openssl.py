"""OpenSSL, as far as a line needs it: contexts, and the few calls that pyOpenSSL has no method for.

The OpenSSL is the one that `cryptography` bundles, not the system's. Settings that it does not know are an error
here, with a sentence for the operator: a line is never quietly less than what was configured.
"""

from __future__ import annotations

import datetime
import re
import threading
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

from keyd.tls.kinds import TlsKind
from keyd.tls.pki import public_key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# The binding that pyOpenSSL itself stands on.
_binding: Final = Binding()
_ffi: Final[Any] = _binding.ffi
_lib: Final[Any] = _binding.lib

# A peer's certificate, the intermediates and the root of a province's CA. More is somebody else's tree.
MAX_CHAIN: Final = 4

# How long a ticket may resume: an hour spares almost every handshake, and is as long as a certificate that is
# revoked elsewhere can live on. A new context ends it at once.
TICKET_SECONDS: Final = 3600

# SSL_MODE_NO_AUTO_CHAIN: otherwise OpenSSL sends along what it finds among the authorities of the *peer*.
_NO_AUTO_CHAIN: Final = 0x8

# X509_V_ERR_APPLICATION_VERIFICATION: its alert is handshake_failure, as for most other things that can be wrong.
_ERROR_WITHOUT_DETAIL: Final = 50

# Sessions are bound to a use, and OpenSSL does not resume where clients are verified and none is named.
_SESSION_CONTEXT: Final = b"keyd"

# Where BIO_get_mem_data puts what nobody asks for: only its result, the length, is used.
_unused_pointer: Final[Any] = _ffi.new("char **")

# What OpenSSL says of a certificate, until whoever handshakes in this thread takes it.
_verification: Final = threading.local()


class TlsUnusable(Exception):  # noqa: N818 - says what happened
    """The line cannot be made as configured; the sentence says why. For start-up and reload, never for a peer."""


def version() -> str:
    """Return the version of the bundled OpenSSL."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()


def require_support(kind: TlsKind, groups: Sequence[str] | None = None) -> None:
    """Refuse what the bundled OpenSSL cannot do.

    Raises:
        TlsUnusable: a suite, a group or a signature algorithm of the kind is missing, or a group is not of the kind.
    """
    _restrict(SSL.Context(SSL.TLS_METHOD), kind, groups)


def make_context(
    method: int,
    kind: TlsKind,
    *,
    authorities: bytes | None,
    certificate: bytes | None,
    private_key: bytes | None,
    revoked: bytes | None,
    groups: Sequence[str] | None,
) -> SSL.Context:
    """Make a context of TLS 1.3 of one kind. Everything is PEM.

    `certificate` may be followed by its intermediates; `revoked` may hold several lists, and if there is one then
    every CA of a chain must have one. With authorities, the peer must have a certificate; without, none is asked for.
    Without a certificate, this side has none to present.

    Raises:
        TlsUnusable: OpenSSL lacks something, or the files do not fit together.
    """
    context = SSL.Context(method)
    _restrict(context, kind, groups)
    if certificate is not None and private_key is not None:
        _present(context, kind, certificate, private_key)
    if authorities is not None:
        _trust(context, kind, authorities, revoked)
        context.set_verify_depth(MAX_CHAIN)
        mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        _lib.SSL_CTX_set_verify(context._context, mode, _note_verification)
    # Idle connections give their record buffers back: 34 KiB each.
    context.set_mode(_lib.SSL_MODE_RELEASE_BUFFERS | _NO_AUTO_CHAIN)
    # Tickets hold the session themselves, so nothing is kept here and nothing has to be bounded.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(_SESSION_CONTEXT)
    context.set_timeout(TICKET_SECONDS)
    return context


def set_moment(connection: SSL.Connection, unix_seconds: int) -> None:
    """Say at what time certificates and revocation lists are looked at, instead of the system's clock."""
    _lib.X509_VERIFY_PARAM_set_time(_lib.SSL_get0_param(connection._ssl), unix_seconds)


def expect_host(connection: SSL.Connection, name: str) -> None:
    """Insist that the peer's certificate is for this DNS name."""
    param = _lib.SSL_get0_param(connection._ssl)
    _lib.X509_VERIFY_PARAM_set_hostflags(param, _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT)
    encoded = name.encode("ascii")
    if _lib.X509_VERIFY_PARAM_set1_host(param, encoded, len(encoded)) != 1:
        raise ValueError("the server's name cannot be one")


def expect_address(connection: SSL.Connection, packed: bytes) -> None:
    """Insist that the peer's certificate is for this IP address of 4 or 16 bytes."""
    param = _lib.SSL_get0_param(connection._ssl)
    if _lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed)) != 1:
        raise ValueError("the server's address cannot be one")


def is_resumed(connection: SSL.Connection) -> bool:
    """Whether the handshake was a ticket's."""
    return bool(_lib.SSL_session_reused(connection._ssl))


def make_store(
    kind: TlsKind, authorities: bytes, revoked: bytes | None, unix_seconds: int
) -> crypto.X509Store:
    """Make a store that judges certificates at this one time, apart from any line."""
    # Beware: one that is taken from a context dies with it, though Python still holds it.
    store = crypto.X509Store()
    _fill(store, kind, authorities, revoked)
    # And it takes a time only once, which then goes before that of a connection.
    store.set_time(datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC))
    return store


def require_trusted(store: crypto.X509Store, certificates: Sequence[x509.Certificate]) -> None:
    """Judge a certificate, with the chain that came after it.

    Raises:
        ValueError: it is not trusted; the text is OpenSSL's.
    """
    own, *chain = map(crypto.X509.from_cryptography, certificates)
    try:
        crypto.X509StoreContext(store, own, chain).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise ValueError(f"certificate: {error}") from None


def return_after_each_record(connection: SSL.Connection) -> None:
    """Let a read end after a record without data, instead of going on silently for as many as the peer has sent."""
    _lib.SSL_clear_mode(connection._ssl, _lib.SSL_MODE_AUTO_RETRY)


def has_unread(connection: SSL.Connection) -> bool:
    """Whether there are bytes that OpenSSL has not looked at yet. A part of a record that it has does not count."""
    return bool(_lib.BIO_get_mem_data(connection._into_ssl, _unused_pointer) > 0)


def has_unsent(connection: SSL.Connection) -> bool:
    """Whether there are bytes to be written. Asking for them when there are none costs an exception, 2 µs."""
    return bool(_lib.BIO_get_mem_data(connection._from_ssl, _unused_pointer) > 0)


def forget_verification() -> None:
    """Before a step of a handshake in this thread: clear what an earlier one noted."""
    _verification.error = None
    # Another user of this library, in this thread, may have left errors that are not ours.
    _lib.ERR_clear_error()


def cause_of(error: SSL.Error) -> str:
    """Put an error into OpenSSL's own fixed words: no byte of the peer's is in them."""
    noted: int | None = getattr(_verification, "error", None)
    if noted is not None:
        text = _ffi.string(_lib.X509_verify_cert_error_string(noted)).decode()
        return f"certificate: {text}"
    details = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [detail[2] for detail in details if detail[2]]
    return str(reasons[-1]) if reasons else type(error).__name__


@_ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]
def _note_verification(is_good: int, store: Any) -> int:
    # Beware: what this returns decides whether a certificate is accepted. It returns what it was given, and
    # cffi returns 0 in its place should it raise.
    if not is_good:
        _verification.error = _lib.X509_STORE_CTX_get_error(store)
        # The log learns which check it was; the peer learns that it failed.
        _lib.X509_STORE_CTX_set_error(store, _ERROR_WITHOUT_DETAIL)
    return is_good


def _restrict(context: SSL.Context, kind: TlsKind, groups: Sequence[str] | None) -> None:
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    # TLS 1.3 has neither; said all the same, so that no later default can bring them back.
    context.set_options(SSL.OP_NO_COMPRESSION | _lib.SSL_OP_NO_RENEGOTIATION)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    chosen = tuple(groups) if groups is not None else kind.groups
    if not chosen or not set(chosen) <= set(kind.groups):
        raise TlsUnusable(f"the groups of a {kind.value} line are {', '.join(kind.groups)}")
    _offer(context, kind, "SSL_CTX_set_ciphersuites", kind.suites)
    for group in chosen:
        # One by one first, for the sentence that names the missing one.
        _offer(context, kind, "SSL_CTX_set1_curves_list", group)
    _offer(context, kind, "SSL_CTX_set1_curves_list", ":".join(chosen))
    _offer(context, kind, "SSL_CTX_set1_sigalgs_list", kind.signatures)


def _offer(context: SSL.Context, kind: TlsKind, setter: str, names: str) -> None:
    # Older bindings have not even the function.
    function = getattr(_lib, setter, None)
    if function is None or function(context._context, names.encode()) != 1:
        _lib.ERR_clear_error()
        raise TlsUnusable(
            f"a {kind.value} line needs {names}, and the installed cryptography, with {version()}, does not offer it"
        )


def _present(context: SSL.Context, kind: TlsKind, certificate: bytes, private_key: bytes) -> None:
    own, *intermediates = _certificates(certificate, "the certificate")
    try:
        own_kind = public_key_of(own).kind
    except ValueError as error:
        raise TlsUnusable(f"the certificate: {error}") from None
    if own_kind is not kind:
        raise TlsUnusable(f"the certificate is {own_kind.value}, and the line is {kind.value}")
    try:
        context.use_certificate(own)
        for intermediate in intermediates:
            context.add_extra_chain_cert(intermediate)
    except SSL.Error as error:
        raise TlsUnusable(f"the certificate cannot be used: {cause_of(error)}") from None
    try:
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, private_key, b"")
    except (crypto.Error, ValueError):
        # Without the cause: its words are about the key's bytes.
        raise TlsUnusable("the private key is no unencrypted PEM") from None
    # pyOpenSSL's own method deprecates its key objects in favour of cryptography's, which know no SM2.
    if _lib.SSL_CTX_use_PrivateKey(context._context, key._pkey) != 1:
        _lib.ERR_clear_error()
        raise TlsUnusable("the private key is not the certificate's")
    try:
        context.check_privatekey()
    except SSL.Error:
        raise TlsUnusable("the private key is not the certificate's") from None


def _trust(context: SSL.Context, kind: TlsKind, authorities: bytes, revoked: bytes | None) -> None:
    store = context.get_cert_store()
    if store is None:
        raise TlsUnusable("OpenSSL made no certificate store")
    _fill(store, kind, authorities, revoked)


def _fill(
    store: crypto.X509Store, kind: TlsKind, authorities: bytes, revoked: bytes | None
) -> None:
    try:
        for authority in _certificates(authorities, "the authorities"):
            _require_of_kind(authority, kind)
            store.add_cert(crypto.X509.from_cryptography(authority))
        flags = crypto.X509StoreFlags.X509_STRICT
        if revoked is not None:
            for revocation_list in _revocation_lists(revoked):
                store.add_crl(revocation_list)
            # Of every certificate of the chain, for a revoked intermediate is as bad.
            flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        store.set_flags(flags)
    except crypto.Error:
        raise TlsUnusable("the authorities or the revocation lists cannot be used") from None


def _require_of_kind(authority: x509.Certificate, kind: TlsKind) -> None:
    try:
        its_kind = public_key_of(authority).kind
    except ValueError:
        # A CA on another curve, or with RSA, is as standard as one on P-256; 国密 has no such choice.
        its_kind = TlsKind.STANDARD
    if its_kind is not kind:
        raise TlsUnusable(f"an authority is {its_kind.value}, and the line is {kind.value}")


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise TlsUnusable(f"{what}: there is no certificate in PEM") from None


_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


def _revocation_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    blocks = _CRL.findall(pem)
    if not blocks:
        raise TlsUnusable("there is no revocation list in PEM")
    try:
        return [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError:
        raise TlsUnusable("a revocation list is damaged") from None
