"""libcrypto's C interface: finding the library, declaring its functions, checking what they return.

Every function is declared once, with its result, its arguments and the check of its result. The check runs
inside ctypes on every call, so no caller can forget it; what failed leaves as `LibcryptoError`, with
libcrypto's own words, and the thread's error queue is left empty.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulong, c_void_p
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# By soname: these name an interface. The bare name is a developer's link and may be anything, hence last,
# and hence the version check. `ctypes.util.find_library` would run a compiler to answer the same question.
_SONAMES: Final = ("libcrypto.so.3", "libcrypto.so.4", "libcrypto.so")

# 3.0.0 brought EVP_PKEY_fromdata and SM2 keys as a type of their own. 0xMNN00PP0: OPENSSL_VERSION_NUMBER(3).
_OLDEST_VERSION: Final = 0x30000000

# ERR_error_string_n(3) wants at least this much to write every message whole.
_ERROR_TEXT_BYTES: Final = 256


class LibcryptoUnusable(Exception):  # noqa: N818 - says what happened
    """There is no libcrypto on this system that computes SM2."""


class LibcryptoError(Exception):
    """libcrypto failed at something that it has no reason to refuse: a bug, or no memory."""


class Param(ctypes.Structure):
    """OSSL_PARAM(3): one named parameter. An array of them ends with one that is all zero."""

    _fields_: ClassVar = [
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_void_p),
        ("data_size", c_size_t),
        ("return_size", c_size_t),
    ]


# What a function promises. NOTHING returns void and cannot fail; SUCCESS returns 1; SOMETHING a pointer or
# a length that is not zero; VERDICT says yes (1), no (0) or fails (below 0): yes and no are for the caller.
_NOTHING: Final = "nothing"
_SUCCESS: Final = "success"
_SOMETHING: Final = "something"
_VERDICT: Final = "verdict"

_IN: Final = c_char_p
_OUT: Final = c_void_p
_LENGTH: Final = POINTER(c_size_t)

# name: (promise, result, arguments), as in openssl/{evp,ec,bn,crypto}.h.
_FUNCTIONS: Final[dict[str, tuple[str, Any, list[Any]]]] = {
    "EVP_PKEY_CTX_new_from_name": (_SOMETHING, c_void_p, [c_void_p, c_char_p, c_char_p]),
    "EVP_PKEY_CTX_new_from_pkey": (_SOMETHING, c_void_p, [c_void_p, c_void_p, c_char_p]),
    "EVP_PKEY_CTX_free": (_NOTHING, None, [c_void_p]),
    "EVP_PKEY_CTX_set1_id": (_SUCCESS, c_int, [c_void_p, _IN, c_int]),
    "EVP_PKEY_fromdata_init": (_SUCCESS, c_int, [c_void_p]),
    "EVP_PKEY_fromdata": (
        _SUCCESS,
        c_int,
        [c_void_p, POINTER(c_void_p), c_int, POINTER(Param)],
    ),
    "EVP_PKEY_get_bn_param": (_SUCCESS, c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "EVP_PKEY_free": (_NOTHING, None, [c_void_p]),
    "EVP_MD_CTX_new": (_SOMETHING, c_void_p, []),
    "EVP_MD_CTX_free": (_NOTHING, None, [c_void_p]),
    "EVP_DigestSignInit_ex": (
        _SUCCESS,
        c_int,
        [c_void_p, POINTER(c_void_p), c_char_p, c_void_p, c_char_p, c_void_p, c_void_p],
    ),
    "EVP_DigestSign": (_SUCCESS, c_int, [c_void_p, _OUT, _LENGTH, _IN, c_size_t]),
    "EVP_DigestVerifyInit_ex": (
        _SUCCESS,
        c_int,
        [c_void_p, POINTER(c_void_p), c_char_p, c_void_p, c_char_p, c_void_p, c_void_p],
    ),
    "EVP_DigestVerify": (_VERDICT, c_int, [c_void_p, _IN, c_size_t, _IN, c_size_t]),
    "EVP_PKEY_encrypt_init": (_SUCCESS, c_int, [c_void_p]),
    "EVP_PKEY_encrypt": (_SUCCESS, c_int, [c_void_p, _OUT, _LENGTH, _IN, c_size_t]),
    "EVP_PKEY_decrypt_init": (_SUCCESS, c_int, [c_void_p]),
    "EVP_PKEY_decrypt": (_VERDICT, c_int, [c_void_p, _OUT, _LENGTH, _IN, c_size_t]),
    "EC_GROUP_new_by_curve_name": (_SOMETHING, c_void_p, [c_int]),
    "EC_GROUP_free": (_NOTHING, None, [c_void_p]),
    "EC_POINT_new": (_SOMETHING, c_void_p, [c_void_p]),
    "EC_POINT_free": (_NOTHING, None, [c_void_p]),
    "EC_POINT_mul": (
        _SUCCESS,
        c_int,
        [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
    "EC_POINT_point2oct": (
        _SOMETHING,
        c_size_t,
        [c_void_p, c_void_p, c_int, _OUT, c_size_t, c_void_p],
    ),
    "BN_bin2bn": (_SOMETHING, c_void_p, [_IN, c_int, c_void_p]),
    "BN_bn2binpad": (_SOMETHING, c_int, [c_void_p, _OUT, c_int]),
    "BN_clear_free": (_NOTHING, None, [c_void_p]),
    "OPENSSL_cleanse": (_NOTHING, None, [c_void_p, c_size_t]),
}


class Libcrypto:
    """The functions of libcrypto that SM2 needs, each under its C name, declared and checked.

    The verdicts (`EVP_DigestVerify`, `EVP_PKEY_decrypt`) return True or False; everything else returns only
    on success.
    """

    def __init__(self) -> None:
        """Find the library and declare its functions.

        Raises:
            LibcryptoUnusable: there is none, it is older than OpenSSL 3, or it lacks a function.
        """
        library = _load()
        self._get_error = library.ERR_get_error
        self._get_error.restype, self._get_error.argtypes = c_ulong, []
        self._error_string = library.ERR_error_string_n
        self._error_string.restype, self._error_string.argtypes = None, [c_ulong, _OUT, c_size_t]

        checks: dict[str, Callable[..., Any]] = {
            _SUCCESS: self._require_success,
            _SOMETHING: self._require_something,
            _VERDICT: self._require_verdict,
        }
        for name, (promise, restype, argtypes) in _FUNCTIONS.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise LibcryptoUnusable(f"this libcrypto has no {name}") from None
            function.restype, function.argtypes = restype, argtypes
            if promise != _NOTHING:
                function.errcheck = checks[promise]
            setattr(self, name, function)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def _require_success(self, result: int, function: Any, _arguments: object) -> int:
        if result != 1:
            raise self._failure(function)
        return result

    def _require_something(self, result: int | None, function: Any, _arguments: object) -> int:
        if not result:
            raise self._failure(function)
        return result

    def _require_verdict(self, result: int, function: Any, _arguments: object) -> bool:
        if result < 0:
            raise self._failure(function)
        if result != 1:
            # A no leaves its reasons in the queue, where Python's ssl would find them after its next call
            # in this thread and take them for its own.
            self._take_errors()
        return result == 1

    def _failure(self, function: Any) -> LibcryptoError:
        reasons = "; ".join(self._take_errors()) or "no reason given"
        return LibcryptoError(f"{function.__name__} failed: {reasons}")

    def _take_errors(self) -> list[str]:
        """Empty the thread's error queue and return what was in it."""
        texts = []
        while number := self._get_error():
            text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
            self._error_string(number, text, len(text))
            texts.append(text.value.decode("ascii", "replace"))
        return texts


def _load() -> ctypes.CDLL:
    for soname in _SONAMES:
        try:
            library = ctypes.CDLL(soname)
            version = library.OpenSSL_version_num
        except (OSError, AttributeError):
            continue
        version.restype, version.argtypes = c_ulong, []
        if version() >= _OLDEST_VERSION:
            return library
    raise LibcryptoUnusable("this system has no libcrypto of OpenSSL 3 or later")
