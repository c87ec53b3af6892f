"""DES and two-key 3DES give the published answers, and agree with an independent implementation elsewhere.

The independent one is pycryptodomex, which gmssl brings along.
"""

from __future__ import annotations

import pytest
from Cryptodome.Cipher import DES, DES3
from hypothesis import assume, given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey

halves = st.binary(min_size=8, max_size=8)
blocks = st.integers(1, 6).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n))


def without_parity(half: bytes) -> bytes:
    """DES ignores the lowest bit of each key byte."""
    return bytes(octet & 0xFE for octet in half)


@pytest.mark.parametrize(
    ("algorithm", "material", "plaintext", "ciphertext"),
    [
        # Grabbe, "The DES Algorithm Illustrated"
        (Algorithm.DES, "133457799BBCDFF1", "0123456789ABCDEF", "85E813540F0AB405"),
        # NIST SP 800-17 B.1: the first variable plaintext
        (Algorithm.DES, "0101010101010101", "8000000000000000", "95F8A5E5DD31D900"),
        # NIST SP 800-17 B.2: the first variable key
        (Algorithm.DES, "8001010101010101", "0000000000000000", "95A8D72813DAA94D"),
        # NIST SP 800-20 A.1: 3DES with equal halves is DES
        (
            Algorithm.TDES,
            "01010101010101010101010101010101",
            "8000000000000000",
            "95F8A5E5DD31D900",
        ),
        # Botan des.vec: two-key 3DES
        (
            Algorithm.TDES,
            "0123456789ABCDEFFEDCBA9876543210",
            "0123456789ABCDE7",
            "7F1D0A77826B8AFF",
        ),
    ],
)
def test_the_published_vectors_hold(
    algorithm: Algorithm, material: str, plaintext: str, ciphertext: str
) -> None:
    key = SecretKey.load(algorithm, bytes.fromhex(material))
    assert key.encrypt(bytes.fromhex(plaintext)).hex().upper() == ciphertext
    assert key.decrypt(bytes.fromhex(ciphertext)).hex().upper() == plaintext


def test_the_check_value_is_the_worked_one(kcv: dict[str, str]) -> None:
    key = SecretKey.load(Algorithm.TDES, bytes.fromhex(kcv["key"]))
    assert key.kcv().hex().upper() == kcv["3DES"]


@given(material=halves, octets=blocks)
def test_des_agrees_with_pycryptodomex(material: bytes, octets: bytes) -> None:
    key = SecretKey.load(Algorithm.DES, material)
    theirs = DES.new(material, DES.MODE_ECB)  # noqa: S304 - single DES is what is tested
    assert key.encrypt(octets) == theirs.encrypt(octets)
    assert key.decrypt(octets) == theirs.decrypt(octets)


@given(left=halves, right=halves, octets=blocks, iv=halves)
def test_3des_agrees_with_pycryptodomex(
    left: bytes, right: bytes, octets: bytes, iv: bytes
) -> None:
    # pycryptodomex refuses what is single DES in disguise; the test below has those.
    assume(without_parity(left) != without_parity(right))
    key = SecretKey.load(Algorithm.TDES, left + right)
    theirs = DES3.new(left + right, DES3.MODE_ECB)
    assert key.encrypt(octets) == theirs.encrypt(octets)
    assert key.decrypt(octets) == theirs.decrypt(octets)
    chained = DES3.new(left + right, DES3.MODE_CBC, iv=iv).encrypt(octets)
    assert key.cbc_mac(octets, iv) == chained[-8:]


@given(half=halves, octets=blocks)
def test_3des_with_equal_halves_is_des(half: bytes, octets: bytes) -> None:
    tdes = SecretKey.load(Algorithm.TDES, half + half)
    assert tdes.encrypt(octets) == SecretKey.load(Algorithm.DES, half).encrypt(octets)


@given(left=halves, right=halves)
def test_the_tac_key_is_left_xor_right(left: bytes, right: bytes) -> None:
    folded = SecretKey.load(Algorithm.TDES, left + right).xor_halves()
    assert folded.algorithm is Algorithm.DES
    halves = bytes(a ^ b for a, b in zip(left, right, strict=True))
    same = SecretKey.load(Algorithm.DES, halves)
    assert folded.encrypt(bytes(range(8))) == same.encrypt(bytes(range(8)))


@pytest.mark.parametrize(("algorithm", "length"), [(Algorithm.SM4, 16), (Algorithm.DES, 8)])
def test_only_3des_keys_have_halves(algorithm: Algorithm, length: int) -> None:
    key = SecretKey.load(algorithm, bytes(length))
    with pytest.raises(ValueError, match="only a 3DES key"):
        key.xor_halves()
    with pytest.raises(ValueError, match="only a 3DES key"):
        key.retail_mac(bytes(16), bytes(8))
    with pytest.raises(ValueError, match="only a 3DES key"):
        key.retail_chain(bytes(16), bytes(8))


@pytest.mark.parametrize(
    ("data", "mac"),
    [
        (b"Now is the time for all ", "A1C72E74EA3FA9B6"),
        (b"Now is the time for all \x80" + bytes(7), "E9086230CA3BE796"),
        (b"Now is the time for it" + bytes(2), "2E2B1428CC78254F"),
        (b"Now is the time for it\x80\0", "5A692CE64F404145"),
    ],
)
def test_the_retail_macs_of_iso_9797(data: bytes, mac: str) -> None:
    # ISO/IEC 9797-1, algorithm 3, with padding methods 1 and 2.
    key = SecretKey.load(Algorithm.TDES, bytes.fromhex("0123456789ABCDEFFEDCBA9876543210"))
    assert key.retail_mac(data, bytes(8)).hex().upper() == mac


@given(left=halves, right=halves, data=st.lists(blocks, min_size=1, max_size=6), iv=halves)
def test_a_retail_mac_is_cbc_under_the_left_half_and_ede_at_the_end(
    left: bytes, right: bytes, data: list[bytes], iv: bytes
) -> None:
    message = b"".join(data)
    key = SecretKey.load(Algorithm.TDES, left + right)
    one, two = (SecretKey.load(Algorithm.DES, half) for half in (left, right))
    last = one.cbc_mac(message, iv)
    assert key.retail_chain(message, iv) == last
    assert key.retail_mac(message, iv) == one.encrypt(two.decrypt(last))


@pytest.mark.parametrize("length", [0, 1, 7, 9, 15])
def test_a_retail_mac_takes_whole_blocks(length: int) -> None:
    key = SecretKey.load(Algorithm.TDES, bytes(range(16)))
    for mac in (key.retail_mac, key.retail_chain):
        with pytest.raises(ValueError, match="whole blocks"):
            mac(bytes(length), bytes(8))
