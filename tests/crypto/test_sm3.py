"""SM3 gives the standard's answers over either library, and agrees with gmssl elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from gmssl.sm3 import sm3_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.crypto import sm3 as sm3_module
from keyd.crypto.sm3 import sm3

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.mark.usefixtures("library")
def test_the_standards_digests_hold(gm: dict[str, Any]) -> None:
    for vector in gm["sm3"]:
        assert sm3(bytes.fromhex(vector["message"])).hex().upper() == vector["digest"]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000])
def test_every_padding_agrees_with_gmssl(length: int) -> None:
    message = bytes(i % 251 for i in range(length))
    assert sm3(message) == gmssl_sm3(message)


@settings(max_examples=40, deadline=None)
@given(message=st.binary(max_size=200))
def test_both_libraries_and_gmssl_agree(message: bytes) -> None:
    digest = gmssl_sm3(message)
    libraries = ["cryptography"]
    if "sm3" in hashlib.algorithms_available:
        libraries.append("hashlib")
    for library in libraries:
        with using(library):
            assert sm3(message) == digest
