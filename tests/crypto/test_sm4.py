"""SM4 under a SecretKey gives the standard's answers, and elsewhere agrees with gmssl."""

from __future__ import annotations

from typing import Any

import pytest
from gmssl.sm4 import SM4_DECRYPT, SM4_ENCRYPT, CryptSM4
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey

keys = st.binary(min_size=16, max_size=16)
blocks = st.integers(1, 6).flatmap(lambda n: st.binary(min_size=16 * n, max_size=16 * n))


def sm4(material: bytes) -> SecretKey:
    return SecretKey.load(Algorithm.SM4, material)


def their_blocks(material: bytes, mode: int, octets: bytes) -> bytes:
    """Compute block by block: gmssl's own ECB and CBC pad whether asked to or not."""
    theirs = CryptSM4()
    theirs.set_key(material, mode)
    return b"".join(
        bytes(theirs.one_round(theirs.sk, list(octets[at : at + 16])))
        for at in range(0, len(octets), 16)
    )


@pytest.mark.parametrize("case", [0, 1], ids=["one round", "a million rounds"])
def test_the_standards_vectors_hold(gm: dict[str, Any], case: int) -> None:
    vector = gm["sm4"][case]
    key = sm4(bytes.fromhex(vector["key"]))
    block = bytes.fromhex(vector["plaintext"])
    for _ in range(vector["rounds"]):
        block = key.encrypt(block)
    assert block.hex().upper() == vector["ciphertext"]


def test_decrypting_undoes_the_standards_vector(gm: dict[str, Any]) -> None:
    vector = gm["sm4"][0]
    key = sm4(bytes.fromhex(vector["key"]))
    assert key.decrypt(bytes.fromhex(vector["ciphertext"])).hex().upper() == vector["plaintext"]


def test_the_check_value_is_the_worked_one(kcv: dict[str, str]) -> None:
    assert sm4(bytes.fromhex(kcv["key"])).kcv().hex().upper() == kcv["SM4"]


@settings(max_examples=60, deadline=None)
@given(material=keys, octets=blocks)
def test_encrypting_agrees_with_gmssl(material: bytes, octets: bytes) -> None:
    assert sm4(material).encrypt(octets) == their_blocks(material, SM4_ENCRYPT, octets)


@settings(max_examples=60, deadline=None)
@given(material=keys, octets=blocks)
def test_decrypting_agrees_with_gmssl(material: bytes, octets: bytes) -> None:
    assert sm4(material).decrypt(octets) == their_blocks(material, SM4_DECRYPT, octets)


@settings(max_examples=60, deadline=None)
@given(material=keys, octets=blocks, iv=keys)
def test_the_cbc_mac_chains_as_gmssls_blocks_do(material: bytes, octets: bytes, iv: bytes) -> None:
    chained = iv
    for at in range(0, len(octets), 16):
        block = bytes(a ^ b for a, b in zip(chained, octets[at : at + 16], strict=True))
        chained = their_blocks(material, SM4_ENCRYPT, block)
    assert sm4(material).cbc_mac(octets, iv) == chained


@given(material=keys, octets=blocks)
def test_one_key_answers_the_same_however_the_blocks_arrive(material: bytes, octets: bytes) -> None:
    # A SecretKey keeps its context between calls: nothing of one call may show in the next.
    key = sm4(material)
    one_by_one = [key.encrypt(octets[at : at + 16]) for at in range(0, len(octets), 16)]
    assert key.encrypt(octets) == b"".join(one_by_one)


@given(material=keys, octets=blocks)
def test_a_key_made_by_encrypting_is_the_ciphertext(material: bytes, octets: bytes) -> None:
    key = sm4(material)
    made = key.encrypt_to_key(octets[:16], Algorithm.SM4)
    same = SecretKey.load(Algorithm.SM4, key.encrypt(octets[:16]))
    assert made.encrypt(bytes(range(16))) == same.encrypt(bytes(range(16)))
