"""A key block opens to the key that was wrapped, with the header it was wrapped with, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import IN_SOFTWARE, KEY_BYTES, Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.errors import Refusal
from keyd.keys.block import KeyBlock, KeyHeader, make_block, open_block

if TYPE_CHECKING:
    from collections.abc import Iterator

KEK: Final = SecretKey.load(Algorithm.SM4, bytes(range(16)))
OTHER_KEK: Final = SecretKey.load(Algorithm.SM4, bytes(16))
NONCE: Final = bytes(range(12))

# These bytes must be in no text and, in clear, in no block.
CANARY: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")

software = pytest.mark.parametrize("algorithm", sorted(IN_SOFTWARE, key=str), ids=lambda a: a.value)


def a_key(algorithm: Algorithm = Algorithm.SM4) -> SecretKey:
    return SecretKey.load(algorithm, CANARY[: KEY_BYTES[algorithm]])


def header_of(key: SecretKey, **changes: Any) -> KeyHeader:
    header = KeyHeader(0x0170, "IRK", 1, key.algorithm, 3, key.kcv())
    return msgspec.structs.replace(header, **changes)


def flips(octets: bytes) -> Iterator[bytes]:
    whole = int.from_bytes(octets, "big")
    for bit in range(8 * len(octets)):
        yield (whole ^ 1 << bit).to_bytes(len(octets), "big")


@software
@given(
    material=st.binary(min_size=16, max_size=16),
    nonce=st.binary(min_size=12, max_size=12),
    address=st.integers(0, 0xFFFF),
    name=st.text(min_size=1, max_size=32),
    number=st.integers(1, 3),
    levels=st.integers(1, 3),
)
def test_what_is_wrapped_opens_to_the_same(
    algorithm: Algorithm,
    material: bytes,
    nonce: bytes,
    address: int,
    name: str,
    number: int,
    levels: int,
) -> None:
    key = SecretKey.load(algorithm, material[: KEY_BYTES[algorithm]])
    header = KeyHeader(address, name, number, algorithm, levels, key.kcv())
    opened_header, opened = open_block(KEK, make_block(KEK, header, key, nonce))
    assert opened_header == header
    assert opened.algorithm is algorithm
    probe = bytes(range(32))
    assert opened.encrypt(probe) == key.encrypt(probe)


@software
def test_any_flipped_bit_closes_the_block(algorithm: Algorithm) -> None:
    key = a_key(algorithm)
    block = make_block(KEK, header_of(key), key, NONCE)
    for field in ("header", "nonce", "wrapped"):
        for altered in flips(getattr(block, field)):
            with pytest.raises(KeyNotAuthentic):
                open_block(KEK, msgspec.structs.replace(block, **{field: altered}))


def test_a_longer_or_shorter_part_closes_the_block() -> None:
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    for field in ("header", "wrapped"):
        whole = getattr(block, field)
        for altered in (*(whole[:n] for n in range(len(whole))), whole + b"\0", b"\0" + whole):
            with pytest.raises(KeyNotAuthentic):
                open_block(KEK, msgspec.structs.replace(block, **{field: altered}))


@pytest.mark.parametrize(
    "changes",
    [
        {"address": 0x0171},
        {"name": "IRL"},
        {"set": 2},
        {"levels": 2},
        {"algorithm": Algorithm.TDES},
        {"kcv": bytes(3)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_header_of_another_use_does_not_open_it(changes: dict[str, Any]) -> None:
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    other = msgspec.msgpack.encode(header_of(key, **changes))
    with pytest.raises(KeyNotAuthentic):
        open_block(KEK, msgspec.structs.replace(block, header=other))


def test_the_header_is_authenticated_as_it_was_written() -> None:
    # The same header in other bytes (an integer in a longer form) is not what was authenticated.
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    longer = block.header.replace(b"\xcd\x01\x70", b"\xce\x00\x00\x01\x70", 1)
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(block.header)
    with pytest.raises(KeyNotAuthentic):
        open_block(KEK, msgspec.structs.replace(block, header=longer))


def test_halves_of_two_blocks_do_not_make_a_third() -> None:
    key = a_key()
    one = make_block(KEK, header_of(key), key, NONCE)
    two = make_block(KEK, header_of(key, address=0x0171), key, NONCE[::-1])
    with pytest.raises(KeyNotAuthentic):
        open_block(KEK, KeyBlock(one.header, two.nonce, two.wrapped))


def test_another_wrapping_key_does_not_open_it() -> None:
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    with pytest.raises(KeyNotAuthentic):
        open_block(OTHER_KEK, block)


def test_a_header_that_does_not_fit_the_key_is_our_bug() -> None:
    key = a_key()
    for header in (
        header_of(key, kcv=bytes(3)),
        header_of(key, algorithm=Algorithm.TDES),
        header_of(a_key(Algorithm.TDES)),
    ):
        with pytest.raises(ValueError, match="another key's"):
            make_block(KEK, header, key, NONCE)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x96\x01",
        msgspec.msgpack.encode([0x10000, "IRK", 1, "SM4", 3, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "", 1, "SM4", 3, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "I" * 33, 1, "SM4", 3, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "IRK", 0, "SM4", 3, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "IRK", 1, "AES", 3, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "IRK", 1, "SM4", 4, bytes(3)]),
        msgspec.msgpack.encode([0x0170, "IRK", 1, "SM4", 3, bytes(2)]),
        msgspec.msgpack.encode([0x0170, "IRK", 1, "SM4", 3, bytes(3), 0]),
    ],
)
def test_even_an_authentic_header_must_be_a_header(header: bytes) -> None:
    # Whoever has the wrapping key, an older keyd say, can bind anything to a key.
    wrapped = KEK.wrap(a_key(), NONCE, header)
    with pytest.raises(KeyNotAuthentic):
        open_block(KEK, KeyBlock(header, NONCE, wrapped))


def test_an_authentic_header_with_another_check_value_is_refused() -> None:
    header = msgspec.msgpack.encode(header_of(a_key(), kcv=bytes(3)))
    wrapped = KEK.wrap(a_key(), NONCE, header)
    with pytest.raises(KeyNotAuthentic, match="check value"):
        open_block(KEK, KeyBlock(header, NONCE, wrapped))


@pytest.mark.parametrize("algorithm", [Algorithm.SSF33, Algorithm.SM1])
def test_an_authentic_key_of_an_algorithm_that_is_not_here_is_refused(algorithm: Algorithm) -> None:
    header = msgspec.msgpack.encode(header_of(a_key(), algorithm=algorithm))
    wrapped = KEK.wrap(a_key(), NONCE, header)
    with pytest.raises((KeyNotAuthentic, Refusal)):
        open_block(KEK, KeyBlock(header, NONCE, wrapped))


@software
def test_no_text_and_no_field_has_the_key(algorithm: Algorithm) -> None:
    key = a_key(algorithm)
    block = make_block(KEK, header_of(key), key, NONCE)
    material = CANARY[: KEY_BYTES[algorithm]]
    for octets in (block.header, block.wrapped, msgspec.msgpack.encode(block)):
        assert not any(material[at : at + 4] in octets for at in range(len(material) - 3))
    with pytest.raises(KeyNotAuthentic) as refused:
        open_block(OTHER_KEK, block)
    for text in (repr(block), repr(header_of(key)), str(refused.value), repr(refused.value)):
        assert material[:4].hex() not in text.lower()
        assert repr(material[:4])[2:-1] not in text
