"""Which backend computes: the system's libcrypto where it can, the guarded one where it cannot."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from keyd.crypto.sm2.libcrypto import LibcryptoBackend, LibcryptoUnusable

if TYPE_CHECKING:
    from keyd.crypto.sm2.backend import Backend


@functools.cache
def default_backend() -> Backend:
    """Return the backend that keys use when nobody names another. It is chosen once per process."""
    try:
        return libcrypto_backend()
    except LibcryptoUnusable:
        return guarded_backend()


@functools.cache
def libcrypto_backend() -> LibcryptoBackend:
    """Return the backend over the system's libcrypto.

    Raises:
        LibcryptoUnusable: there is none, it is older than OpenSSL 3, or it was built without SM2.
    """
    return LibcryptoBackend()


@functools.cache
def guarded_backend() -> Backend:
    """Return the fallback over gmssl."""
    # Imported here: gmssl brings a second cryptographic library along, which most processes never need.
    from keyd.crypto.sm2.guarded import GuardedBackend

    return GuardedBackend()


def backend_name() -> str:
    """Say which backend is in use: `libcrypto` or `guarded`."""
    return default_backend().name
