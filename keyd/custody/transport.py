"""How a key travels between two custodies: under a key-transport key (KEK), with its header bound to it.

    keyd-block  MessagePack [header, nonce 12, SM4-GCM(key) ‖ tag 16], the header being the associated data
    ecb-mac     MessagePack [header, ECB(key), CBC-MAC], for 3DES transport keys and equipment without GCM

For `ecb-mac`, two keys are diversified from the transport key, one to encrypt and one for the MAC, so that neither
is an oracle for the other. The MAC is over the header's length (4 bytes), the header and the ciphertext, padded
with 80 00…; a 16-byte block is kept whole, and so is an 8-byte one. docs/key-blocks.md has an example of each.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.custody.actions import MAX_WRAPPED_BYTES, TransportFormat
from keyd.errors import BadParameter, KeyBlockRefused
from keyd.keys.block import (
    MAX_HEADER_BYTES,
    NONCE_BYTES,
    KeyBlock,
    KeyHeader,
    make_block,
    open_block,
    read_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_ENCRYPTION: Final = b"KEYD ENC"
_MAC: Final = b"KEYD MAC"


class _EcbMac(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    header: Annotated[bytes, Meta(max_length=MAX_HEADER_BYTES)]
    encrypted: Annotated[bytes, Meta(min_length=8, max_length=16)]
    mac: Annotated[bytes, Meta(min_length=8, max_length=16)]


def wrap_for_transport(
    transport: SecretKey,
    transport_format: TransportFormat,
    header: KeyHeader,
    key: SecretKey,
    random_bytes: Callable[[int], bytes],
) -> bytes:
    """Wrap a key for its journey.

    Raises:
        BadParameter: the transport key's algorithm does not serve this format or this key.
    """
    if transport_format is TransportFormat.BLOCK:
        if transport.algorithm is not Algorithm.SM4:
            raise BadParameter("keyd-block needs an SM4 transport key")
        return msgspec.msgpack.encode(make_block(transport, header, key, random_bytes(NONCE_BYTES)))
    encoded = msgspec.msgpack.encode(header)
    try:
        encrypted = _branch(transport, _ENCRYPTION).wrap_ecb(key)
    except ValueError as error:
        raise BadParameter(str(error)) from None
    mac = _mac(transport, encoded, encrypted)
    return msgspec.msgpack.encode(_EcbMac(encoded, encrypted, mac))


def unwrap_from_transport(
    transport: SecretKey, transport_format: TransportFormat, wrapped: bytes, algorithm: Algorithm
) -> tuple[KeyHeader | None, SecretKey]:
    """Unwrap a key that has arrived; its header is None if it came from where there are none.

    Raises:
        KeyBlockRefused: it was altered, is under another key, or is nothing of this format.
    """
    if len(wrapped) > MAX_WRAPPED_BYTES:
        raise KeyBlockRefused("nothing of this length is a wrapped key")
    try:
        if transport_format is TransportFormat.BLOCK:
            if transport.algorithm is not Algorithm.SM4:
                raise KeyBlockRefused("keyd-block needs an SM4 transport key")
            block = msgspec.msgpack.decode(wrapped, type=KeyBlock)
            return open_block(transport, block)
        arrived = msgspec.msgpack.decode(wrapped, type=_EcbMac)
        # The MAC first: what is not authentic is not decrypted.
        if not compare_digest(_mac(transport, arrived.header, arrived.encrypted), arrived.mac):
            raise KeyBlockRefused("the MAC is not the transport key's")
        header = read_header(arrived.header) if arrived.header else None
        key = _branch(transport, _ENCRYPTION).unwrap_ecb(arrived.encrypted, algorithm)
    except KeyNotAuthentic as error:
        raise KeyBlockRefused(str(error)) from None
    except (msgspec.MsgspecError, ValueError):
        raise KeyBlockRefused("it is no wrapped key of this format") from None
    if header is not None and header.kcv != key.kcv():
        raise KeyBlockRefused("the key does not have its header's check value")
    return header, key


def _branch(transport: SecretKey, label: bytes) -> SecretKey:
    # E(f ‖ ~f), as keys are diversified: see keyd.keys.hierarchy.
    return transport.encrypt_to_key(
        label + bytes(byte ^ 0xFF for byte in label), transport.algorithm
    )


def _mac(transport: SecretKey, header: bytes, encrypted: bytes) -> bytes:
    # The length first: no header ending in ciphertext passes for a shorter one.
    data = len(header).to_bytes(4, "big") + header + encrypted + b"\x80"
    data += bytes(-len(data) % transport.block_bytes)
    return _branch(transport, _MAC).cbc_mac(data, bytes(transport.block_bytes))
