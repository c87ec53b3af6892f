"""SM3 and HMAC-SM3 give the standards' answers over either library, and agree with gmssl elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from gmssl.sm3 import sm3_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.crypto import sm3 as sm3_module
from keyd.crypto.sm3 import hmac_sm3, sm3

if TYPE_CHECKING:
    from collections.abc import Iterator

SM3_BLOCK_BYTES = 64


@pytest.fixture(params=["hashlib", "cryptography"])
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the two libraries in turn."""
    if request.param == "hashlib" and "sm3" not in hashlib.algorithms_available:
        pytest.skip("this Python's hashlib was built without SM3")
    with using(request.param):
        yield request.param


@contextlib.contextmanager
def using(library: str) -> Iterator[None]:
    """Compute with the named library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sm3_module, "_IN_HASHLIB", library == "hashlib")
        yield


def gmssl_sm3(message: bytes) -> bytes:
    # A fresh list: gmssl pads the list that it is given.
    return bytes.fromhex(sm3_hash(list(message)))


def gmssl_hmac(key: bytes, message: bytes) -> bytes:
    """HMAC from its definition (RFC 2104), over gmssl's SM3."""
    if len(key) > SM3_BLOCK_BYTES:
        key = gmssl_sm3(key)
    key = key.ljust(SM3_BLOCK_BYTES, b"\0")
    inner = gmssl_sm3(bytes(octet ^ 0x36 for octet in key) + message)
    return gmssl_sm3(bytes(octet ^ 0x5C for octet in key) + inner)


@pytest.mark.usefixtures("library")
def test_the_standards_digests_hold(gm: dict[str, Any]) -> None:
    for vector in gm["sm3"]:
        assert sm3(bytes.fromhex(vector["message"])).hex().upper() == vector["digest"]


@pytest.mark.usefixtures("library")
def test_the_standards_macs_hold(gm: dict[str, Any]) -> None:
    for vector in gm["hmac_sm3"]:
        mac = hmac_sm3(bytes.fromhex(vector["key"]), bytes.fromhex(vector["message"]))
        assert mac.hex().upper() == vector["mac"]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000])
def test_every_padding_agrees_with_gmssl(length: int) -> None:
    message = bytes(i % 251 for i in range(length))
    assert sm3(message) == gmssl_sm3(message)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("length", [0, 1, 16, 32, 63, 64, 65, 200])
def test_an_hmac_key_of_any_length_agrees_with_the_definition(length: int) -> None:
    key = bytes(i % 251 for i in range(length))
    assert hmac_sm3(key, b"message") == gmssl_hmac(key, b"message")


@settings(max_examples=40, deadline=None)
@given(key=st.binary(max_size=100), message=st.binary(max_size=200))
def test_both_libraries_and_gmssl_agree(key: bytes, message: bytes) -> None:
    digest, mac = gmssl_sm3(message), gmssl_hmac(key, message)
    libraries = ["cryptography"]
    if "sm3" in hashlib.algorithms_available:
        libraries.append("hashlib")
    for library in libraries:
        with using(library):
            assert sm3(message) == digest
            assert hmac_sm3(key, message) == mac
