"""Peers that are not keyd's: TLS of the Tongsuo project, whose RFC 8998 is its own, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.tls.pki import Credentials

_lib: Any
_ffi: Any
try:
    from tongsuopy.backends.tongsuo.binding import Binding
except ImportError:
    _lib = _ffi = None
else:
    _lib, _ffi = Binding.lib, Binding.ffi

needs_tongsuo = pytest.mark.skipif(
    _lib is None, reason="the other program is Tongsuo: pip install tongsuopy"
)

SECONDS: Final = 30

# RFC 9266.
EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"


class TongsuoFault(Exception):  # noqa: N818 - says what happened
    """Tongsuo says no; the text is its own."""


class TongsuoContext:
    """What a client or a server says and believes. It judges certificates at a moment of its own."""

    def __init__(
        self,
        authority: bytes,
        own: Credentials | None,
        now: int | None = None,
        *,
        is_server: bool = False,
        suites: str = "TLS_SM4_GCM_SM3",
        signatures: str = "sm2sig_sm3",
    ) -> None:
        """Take PEM; the suites and signatures are RFC 8998's unless others are named."""
        self.is_server = is_server
        method = _lib.TLS_server_method() if is_server else _lib.TLS_client_method()
        self.native: Any = _ffi.gc(_lib.SSL_CTX_new(method), _lib.SSL_CTX_free)
        _require(_lib.SSL_CTX_set_min_proto_version(self.native, _lib.TLS1_3_VERSION))
        _require(_lib.SSL_CTX_set_ciphersuites(self.native, suites.encode()))
        _require(_lib.SSL_CTX_set1_sigalgs_list(self.native, signatures.encode()))
        mode = _lib.SSL_VERIFY_PEER
        if is_server:
            mode |= _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        _lib.SSL_CTX_set_verify(self.native, mode, _ffi.NULL)
        if now is not None:
            _lib.X509_VERIFY_PARAM_set_time(_lib.SSL_CTX_get0_param(self.native), now)
        # Its functions read files.
        with tempfile.TemporaryDirectory() as folder:
            name = _written(folder, authority)
            _require(_lib.SSL_CTX_load_verify_locations(self.native, name, _ffi.NULL))
            if own is not None:
                name = _written(folder, own.certificate)
                _require(_lib.SSL_CTX_use_certificate_chain_file(self.native, name))
                name = _written(folder, own.private_key)
                pem = _lib.SSL_FILETYPE_PEM
                _require(_lib.SSL_CTX_use_PrivateKey_file(self.native, name, pem))


class TongsuoLine:
    """One line over a socket that blocks."""

    def __init__(
        self,
        context: TongsuoContext,
        sock: socket.socket,
        *,
        name: str = "",
        session: object = None,
    ) -> None:
        """Shake hands. A client says which name its server has to have, and may resume a session.

        Raises:
            TongsuoFault: one of the two ends does not want the other.
        """
        # It reads and writes the socket itself, and waits no longer than the kernel lets it.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
        self._sock = sock
        self._native: Any = _ffi.gc(_lib.SSL_new(context.native), _lib.SSL_free)
        if name:
            param = _lib.SSL_get0_param(self._native)
            _require(_lib.X509_VERIFY_PARAM_set1_host(param, name.encode(), 0))
        if session is not None:
            _require(_lib.SSL_set_session(self._native, session))
        _require(_lib.SSL_set_fd(self._native, sock.fileno()))
        if context.is_server:
            _lib.SSL_set_accept_state(self._native)
        else:
            _lib.SSL_set_connect_state(self._native)
        _require(_lib.SSL_do_handshake(self._native))

    @property
    def suite(self) -> str:
        cipher = _lib.SSL_get_current_cipher(self._native)
        return bytes(_ffi.string(_lib.SSL_CIPHER_get_name(cipher))).decode()

    @property
    def is_resumed(self) -> bool:
        return bool(_lib.SSL_session_reused(self._native))

    @property
    def session(self) -> object:
        return _ffi.gc(_lib.SSL_get1_session(self._native), _lib.SSL_SESSION_free)

    @property
    def channel_binding(self) -> bytes:
        out = _ffi.new("unsigned char[]", 32)
        label = EXPORTER_LABEL
        _require(
            _lib.SSL_export_keying_material(self._native, out, 32, label, len(label), b"", 0, 1)
        )
        return bytes(_ffi.buffer(out))

    def send(self, data: bytes) -> None:
        _require(_lib.SSL_write(self._native, data, len(data)))

    def receive(self) -> bytes:
        """Return some bytes; none at the end."""
        buffer = _ffi.new("char[]", 65536)
        length = _lib.SSL_read(self._native, buffer, len(buffer))
        if length <= 0 and _lib.SSL_get_error(self._native, length) == _lib.SSL_ERROR_ZERO_RETURN:
            return b""
        _require(length)
        return bytes(_ffi.buffer(buffer, length))

    def close(self) -> None:
        """Say that no more comes."""
        _lib.SSL_shutdown(self._native)
        _lib.ERR_clear_error()


@contextlib.contextmanager
def connected(
    context: TongsuoContext, address: tuple[str, int], *, name: str = "", session: object = None
) -> Iterator[TongsuoLine]:
    """Connect as a client."""
    with socket.create_connection(address, timeout=SECONDS) as sock:
        line = TongsuoLine(context, sock, name=name, session=session)
        yield line
        line.close()


def _written(folder: str, content: bytes) -> bytes:
    path = Path(folder) / "file.pem"
    path.touch(0o600)
    path.write_bytes(content)
    return str(path).encode()


def _require(result: int) -> None:
    if result > 0:
        return
    said = []
    while code := _lib.ERR_get_error():
        text = _ffi.new("char[]", 256)
        _lib.ERR_error_string_n(code, text, 256)
        said.append(bytes(_ffi.string(text)).decode())
    raise TongsuoFault("; ".join(said) or "the line was cut")
