"""SM2 with the system's libcrypto (OpenSSL 3 or later), through ctypes.

`abi.py` declares every function that is called here, together with the check of what it returns; a call that
comes back has therefore succeeded. ctypes releases the GIL for each call, and nothing is shared between calls
but keys, which libcrypto only reads: many threads may use one key.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from keyd.crypto.sm2.abi import Libcrypto, LibcryptoError, LibcryptoUnusable, Param
from keyd.crypto.sm2.backend import (
    Ciphertext,
    CiphertextNotAuthentic,
    SignatureNotAuthentic,
)
from keyd.crypto.sm2.curve import DEFAULT_USER_ID, POINT_BYTES, SCALAR_BYTES, G, scalar
from keyd.crypto.sm2.der import (
    MAX_SIGNATURE_BYTES,
    ciphertext_from_der,
    ciphertext_to_der,
    max_ciphertext_bytes,
    signature_from_der,
    signature_to_der,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LibcryptoBackend", "LibcryptoError", "LibcryptoUnusable"]

# openssl/{core,evp,obj_mac,ec}.h
_PARAM_UNSIGNED_INTEGER: Final = 2
_PARAM_UTF8_STRING: Final = 4
_PARAM_OCTET_STRING: Final = 5
_PKEY_PUBLIC_KEY: Final = 0x86
_PKEY_KEYPAIR: Final = 0x87
_NID_SM2: Final = 1172
_POINT_UNCOMPRESSED: Final = 4

_SM2: Final = b"SM2"
_SM3: Final = b"SM3"


# A named parameter: its OSSL_PARAM type, and the buffer that libcrypto reads.
_Buffer: TypeAlias = "ctypes.Array[ctypes.c_char]"
_Params: TypeAlias = dict[bytes, tuple[int, _Buffer]]


class _Key:
    """An EVP_PKEY that is freed, and thereby wiped, with its last user."""

    def __init__(self, lib: Libcrypto, selection: int, params: _Params) -> None:
        """Make the key. libcrypto copies the parameters."""
        self._lib = lib
        key = ctypes.c_void_p()
        with _freed(lib.EVP_PKEY_CTX_new_from_name(None, _SM2, None), lib.EVP_PKEY_CTX_free) as ctx:
            lib.EVP_PKEY_fromdata_init(ctx)
            # One longer than filled: the list ends with an empty one.
            array = (Param * (len(params) + 1))()
            # The addresses are plain numbers; `params` is what keeps the buffers alive during the call.
            for param, (name, (data_type, buffer)) in zip(array, params.items(), strict=False):
                param.key, param.data_type = name, data_type
                param.data, param.data_size = ctypes.addressof(buffer), len(buffer)
            lib.EVP_PKEY_fromdata(ctx, ctypes.byref(key), selection, array)
        self._key = key
        # Not at exit: other threads may still be computing then, and the memory goes with the process.
        weakref.finalize(self, lib.EVP_PKEY_free, key).atexit = False

    @contextlib.contextmanager
    def _digesting(self, init: Callable[..., Any], user_id: bytes) -> Iterator[int]:
        """Set up SM3 over Z and a message, and give the context."""
        lib = self._lib
        with _freed(lib.EVP_MD_CTX_new(), lib.EVP_MD_CTX_free) as ctx:
            # The key's context belongs to the digest's, and is freed with it.
            key_ctx = ctypes.c_void_p()
            init(ctx, ctypes.byref(key_ctx), _SM3, None, None, self._key, None)
            # After init, since OpenSSL 3.0 refuses an identifier among init's own parameters; before the
            # first byte, since that is when Z is computed.
            lib.EVP_PKEY_CTX_set1_id(key_ctx, user_id, len(user_id))
            yield ctx


class _PublicKey(_Key):
    def __init__(self, lib: Libcrypto, point: bytes) -> None:
        super().__init__(lib, _PKEY_PUBLIC_KEY, _public_params(point))

    def verify(self, message: bytes, signature: bytes, user_id: bytes) -> None:
        lib = self._lib
        der = signature_to_der(signature)
        with self._digesting(lib.EVP_DigestVerifyInit_ex, user_id) as ctx:
            if not lib.EVP_DigestVerify(ctx, der, len(der), message, len(message)):
                raise SignatureNotAuthentic("the signature does not verify")

    def encrypt(self, plaintext: bytes | bytearray) -> Ciphertext:
        lib = self._lib
        # A bytearray is read where it is: no copy of a secret is made that nobody could wipe.
        source = _borrowed(plaintext) if isinstance(plaintext, bytearray) else plaintext
        with _freed(
            lib.EVP_PKEY_CTX_new_from_pkey(None, self._key, None), lib.EVP_PKEY_CTX_free
        ) as ctx:
            lib.EVP_PKEY_encrypt_init(ctx)
            out = ctypes.create_string_buffer(max_ciphertext_bytes(len(plaintext)))
            length = ctypes.c_size_t(len(out))
            lib.EVP_PKEY_encrypt(ctx, out, ctypes.byref(length), source, len(plaintext))
        return ciphertext_from_der(out.raw[: length.value])


class _PrivateKey(_Key):
    def __init__(self, lib: Libcrypto, d: bytearray, point: bytes) -> None:
        # OSSL_PARAM numbers are in the machine's byte order.
        native = bytearray(d)
        if sys.byteorder == "little":
            native.reverse()
        with _wiped(lib, _borrowed(native)) as buffer:
            params = _public_params(point)
            params[b"priv"] = (_PARAM_UNSIGNED_INTEGER, buffer)
            super().__init__(lib, _PKEY_KEYPAIR, params)

    def sign(self, message: bytes, user_id: bytes) -> bytes:
        lib = self._lib
        with self._digesting(lib.EVP_DigestSignInit_ex, user_id) as ctx:
            out = ctypes.create_string_buffer(MAX_SIGNATURE_BYTES)
            length = ctypes.c_size_t(len(out))
            lib.EVP_DigestSign(ctx, out, ctypes.byref(length), message, len(message))
        return signature_from_der(out.raw[: length.value])

    def decrypt(self, ciphertext: Ciphertext) -> bytearray:
        """Decrypt into a bytearray: the plaintext is nowhere else in Python.

        libcrypto frees its key stream without wiping it, as far as OpenSSL 3 goes.
        """
        lib = self._lib
        der = ciphertext_to_der(ciphertext)
        plaintext = bytearray(len(ciphertext.c2))
        out = _borrowed(plaintext)
        with _freed(
            lib.EVP_PKEY_CTX_new_from_pkey(None, self._key, None), lib.EVP_PKEY_CTX_free
        ) as ctx:
            lib.EVP_PKEY_decrypt_init(ctx)
            length = ctypes.c_size_t(len(out))
            if lib.EVP_PKEY_decrypt(ctx, out, ctypes.byref(length), der, len(der)):
                if length.value == len(out):
                    return plaintext
                raise LibcryptoError("EVP_PKEY_decrypt gave another length than C2 has")
        # It may have decrypted before it compared.
        lib.OPENSSL_cleanse(out, len(out))
        raise CiphertextNotAuthentic("the ciphertext does not open under this key")

    def copy_secret(self) -> bytearray:
        lib = self._lib
        d = bytearray(SCALAR_BYTES)
        number = ctypes.c_void_p()
        lib.EVP_PKEY_get_bn_param(self._key, b"priv", ctypes.byref(number))
        with _freed(number, lib.BN_clear_free):
            lib.BN_bn2binpad(number, _borrowed(d), SCALAR_BYTES)
        return d


class LibcryptoBackend:
    """The system's libcrypto."""

    name: Final = "libcrypto"

    def __init__(self) -> None:
        """Load the library and try SM2 once.

        Raises:
            LibcryptoUnusable: there is no libcrypto, it is older than OpenSSL 3, or it was built without SM2.
        """
        self._lib = lib = Libcrypto()
        try:
            self._group = lib.EC_GROUP_new_by_curve_name(_NID_SM2)
            weakref.finalize(self, lib.EC_GROUP_free, self._group).atexit = False
            # A distribution may build the functions and leave the algorithms out; only trying tells.
            self.private_key(bytearray(scalar(1)), G).sign(b"", DEFAULT_USER_ID)
            self.public_key(G).encrypt(b"\0")
        except LibcryptoError as reason:
            raise LibcryptoUnusable(f"this libcrypto does not compute SM2: {reason}") from None

    def public_point(self, d: bytearray) -> bytes:
        """Return [d]G, 65 bytes."""
        lib = self._lib
        with (
            _freed(lib.EC_POINT_new(self._group), lib.EC_POINT_free) as point,
            _freed(lib.BN_bin2bn(_borrowed(d), len(d), None), lib.BN_clear_free) as number,
        ):
            # A multiple of G alone takes the constant-time ladder.
            lib.EC_POINT_mul(self._group, point, number, None, None, None)
            out = ctypes.create_string_buffer(POINT_BYTES)
            lib.EC_POINT_point2oct(self._group, point, _POINT_UNCOMPRESSED, out, len(out), None)
        return out.raw

    def private_key(self, d: bytearray, point: bytes) -> _PrivateKey:
        """Take a private key."""
        return _PrivateKey(self._lib, d, point)

    def public_key(self, point: bytes) -> _PublicKey:
        """Take a public key."""
        return _PublicKey(self._lib, point)


def _borrowed(octets: bytearray) -> _Buffer:
    """Return the bytearray's own memory as C sees it. Until that is dropped, the bytearray keeps its length."""
    return (ctypes.c_char * len(octets)).from_buffer(octets)


@contextlib.contextmanager
def _freed(thing: Any, free: Callable[..., Any]) -> Iterator[Any]:
    try:
        yield thing
    finally:
        free(thing)


@contextlib.contextmanager
def _wiped(lib: Libcrypto, buffer: _Buffer) -> Iterator[_Buffer]:
    try:
        yield buffer
    finally:
        lib.OPENSSL_cleanse(buffer, len(buffer))


def _public_params(point: bytes) -> _Params:
    return {
        b"group": (_PARAM_UTF8_STRING, ctypes.create_string_buffer(_SM2, len(_SM2))),
        b"pub": (_PARAM_OCTET_STRING, ctypes.create_string_buffer(point, len(point))),
    }
