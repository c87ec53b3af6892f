"""DES and 3DES in native code give the published answers, and agree with `cryptography` on everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.native import _core

if TYPE_CHECKING:
    from tests.crypto.native.conftest import Reference

unhex: Final = bytes.fromhex

both = pytest.mark.parametrize("algorithm", [Algorithm.DES, Algorithm.TDES])
materials = st.binary(min_size=16, max_size=16)
blocks = st.integers(1, 40).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n))


@pytest.mark.parametrize(
    ("number", "material", "plaintext", "ciphertext"),
    [
        # Grabbe, "The DES Algorithm Illustrated"
        (_core.DES, "133457799BBCDFF1", "0123456789ABCDEF", "85E813540F0AB405"),
        # NIST SP 800-17 B.1: the first variable plaintext
        (_core.DES, "0101010101010101", "8000000000000000", "95F8A5E5DD31D900"),
        # NIST SP 800-17 B.2: the first variable key
        (_core.DES, "8001010101010101", "0000000000000000", "95A8D72813DAA94D"),
        # Botan des.vec: two-key 3DES
        (_core.TDES, "0123456789ABCDEFFEDCBA9876543210", "0123456789ABCDE7", "7F1D0A77826B8AFF"),
    ],
)
def test_the_published_vectors_hold(
    number: int, material: str, plaintext: str, ciphertext: str
) -> None:
    key = _core.load(number, unhex(material))
    assert key.encrypt(unhex(plaintext)) == unhex(ciphertext)
    assert key.decrypt(unhex(ciphertext)) == unhex(plaintext)


@both
def test_every_key_bit_and_every_plaintext_bit_counts_as_in_cryptography(
    algorithm: Algorithm, reference: Reference
) -> None:
    size = KEY_BYTES[algorithm]
    for bit in range(8 * size):
        key = reference.key(algorithm, (1 << bit).to_bytes(size, "big"))
        blocks = b"".join((1 << place).to_bytes(8, "big") for place in range(64))
        assert key.handle().encrypt(blocks) == key.encrypt(blocks)


@both
@given(material=materials, octets=blocks, iv=st.binary(min_size=8, max_size=8))
def test_it_agrees_with_cryptography(
    algorithm: Algorithm, reference: Reference, material: bytes, octets: bytes, iv: bytes
) -> None:
    theirs = reference.key(algorithm, material)
    ours = theirs.handle()
    assert ours.encrypt(octets) == theirs.encrypt(octets)
    assert ours.decrypt(octets) == theirs.decrypt(octets)
    assert ours.cbc_mac(octets, iv) == theirs.cbc_mac(octets, iv)


@given(material=materials, octets=blocks)
def test_parity_bits_do_not_count(material: bytes, octets: bytes) -> None:
    other = bytes(octet ^ 1 for octet in material)
    ours = _core.load(_core.TDES, material).encrypt(octets)
    assert ours == _core.load(_core.TDES, other).encrypt(octets)


@given(half=st.binary(min_size=8, max_size=8), octets=blocks)
def test_3des_with_equal_halves_is_des(half: bytes, octets: bytes) -> None:
    tdes = _core.load(_core.TDES, half + half)
    assert tdes.encrypt(octets) == _core.load(_core.DES, half).encrypt(octets)
