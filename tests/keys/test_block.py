"""A key block opens to the key that was wrapped, with the header it was wrapped with, or not at all.

The format itself, with its vectors, is tested in `test_block_format.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import IN_SOFTWARE, KEY_BYTES, Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.errors import Refusal
from keyd.keys.block import (
    MAX_HEADER_BYTES,
    Domain,
    Export,
    KeyBlock,
    KeyHeader,
    KeyPlace,
    KeyState,
    Mode,
    Tier,
    Use,
    make_block,
    open_block,
    read_header,
)
from keyd.keys.roots import active_root

if TYPE_CHECKING:
    from collections.abc import Iterator

KEK: Final = SecretKey.load(Algorithm.SM4, bytes(range(16)))
OTHER_KEK: Final = SecretKey.load(Algorithm.SM4, bytes(16))
NONCE: Final = bytes(range(12))
KEY_ID: Final = bytes(range(16, 32))

# These bytes must be in no text and, in clear, in no block.
CANARY: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")

software = pytest.mark.parametrize("algorithm", sorted(IN_SOFTWARE, key=str), ids=lambda a: a.value)


def a_key(algorithm: Algorithm = Algorithm.SM4) -> SecretKey:
    return SecretKey.load(algorithm, CANARY[: KEY_BYTES[algorithm]])


def header_of(key: SecretKey, **changes: Any) -> KeyHeader:
    place = KeyPlace(0x0170, "IRK", 1, key.algorithm, Use.INTERNAL)
    header = active_root(place, 3, key, KEY_ID, "a test")
    return msgspec.structs.replace(header, **changes)


def flips(octets: bytes) -> Iterator[bytes]:
    whole = int.from_bytes(octets, "big")
    for bit in range(8 * len(octets)):
        yield (whole ^ 1 << bit).to_bytes(len(octets), "big")


seconds: Final = st.integers(0, 2**63 - 1)
addresses: Final = st.lists(st.integers(0, 0xFFFF), max_size=16).map(tuple)
versions: Final = st.integers(1, 0xFFFF)
octets: Final = st.integers(0, 0xFF)

# Every field but those that are the key's: its algorithm and its check value.
headers: Final = st.fixed_dictionaries(
    {
        "key_id": st.binary(min_size=16, max_size=16),
        "domain": st.sampled_from(Domain),
        "tier": st.sampled_from(Tier),
        "name": st.text(min_size=1, max_size=32),
        "addresses": addresses,
        "psam_type": octets,
        "psam_id": octets,
        "set": st.integers(1, 3),
        "levels": st.integers(0, 3),
        "use": st.sampled_from(Use),
        "modes": st.lists(st.sampled_from(Mode), min_size=1, max_size=4).map(tuple),
        "version": versions,
        "valid_from": seconds,
        "valid_until": seconds,
        "ceiling": seconds,
        "warn_at": seconds,
        "export": st.sampled_from(Export),
        "created_by": st.text(min_size=1, max_size=64),
        "created_at": seconds,
        "state": st.sampled_from(KeyState),
        "changed_at": seconds,
        "minimum_version": versions,
        "uses": seconds,
        "destroy_after": seconds,
        "was_compromised": st.booleans(),
        "revision": st.integers(1, 2**63 - 1),
    }
)


@software
@given(
    material=st.binary(min_size=16, max_size=16),
    nonce=st.binary(min_size=12, max_size=12),
    fields=headers,
)
def test_what_is_wrapped_opens_to_the_same(
    algorithm: Algorithm, material: bytes, nonce: bytes, fields: dict[str, Any]
) -> None:
    key = SecretKey.load(algorithm, material[: KEY_BYTES[algorithm]])
    header = header_of(key, **fields)
    opened_header, opened = open_block(KEK, make_block(KEK, header, key, nonce))
    assert opened_header == header
    assert opened.algorithm is algorithm
    probe = bytes(range(32))
    assert opened.encrypt(probe) == key.encrypt(probe)


@given(fields=headers)
def test_every_field_of_the_header_is_tried(fields: dict[str, Any]) -> None:
    assert {*fields, "format", "algorithm", "kcv"} == set(KeyHeader.__struct_fields__)


@software
def test_any_flipped_bit_closes_the_block(algorithm: Algorithm) -> None:
    key = a_key(algorithm)
    block = make_block(KEK, header_of(key), key, NONCE)
    still_readable = 0
    for field in ("header", "nonce", "wrapped"):
        for altered in flips(getattr(block, field)):
            with pytest.raises(KeyNotAuthentic):
                open_block(KEK, msgspec.structs.replace(block, **{field: altered}))
            if field == "header":
                still_readable += is_readable(altered)
    # Most of them fail because they are not what was authenticated, not because they cannot be read.
    assert still_readable > 300


def is_readable(encoded: bytes) -> bool:
    try:
        read_header(encoded)
    except KeyNotAuthentic:
        return False
    return True


def test_a_longer_or_shorter_part_closes_the_block() -> None:
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    for field in ("header", "wrapped"):
        whole = getattr(block, field)
        for altered in (*(whole[:n] for n in range(len(whole))), whole + b"\0", b"\0" + whole):
            with pytest.raises(KeyNotAuthentic):
                open_block(KEK, msgspec.structs.replace(block, **{field: altered}))


# One other value for every field; the header stays one that could be.
OTHERWISE: Final[dict[str, Any]] = {
    "key_id": bytes(16),
    "domain": Domain.FINANCE,
    "tier": Tier.CITY,
    "name": "IRL",
    "addresses": (0x0171,),
    "psam_type": 1,
    "psam_id": 1,
    "set": 2,
    "algorithm": Algorithm.TDES,
    "levels": 2,
    "use": Use.EXTERNAL,
    "modes": (Mode.VERIFY, Mode.PRODUCE),
    "version": 2,
    "valid_from": 1,
    "valid_until": 1,
    "ceiling": 1,
    "warn_at": 1,
    "export": Export.WRAPPED,
    "created_by": "another test",
    "created_at": 1,
    "kcv": bytes(3),
    "state": KeyState.DEACTIVATED,
    "changed_at": 1,
    "minimum_version": 2,
    "uses": 1,
    "destroy_after": 1,
    "was_compromised": True,
    "revision": 2,
}


@pytest.mark.parametrize("name", [n for n in KeyHeader.__struct_fields__ if n != "format"])
def test_a_header_of_another_use_does_not_open_it(name: str) -> None:
    key = a_key()
    block = make_block(KEK, header_of(key), key, NONCE)
    other = msgspec.msgpack.encode(header_of(key, **{name: OTHERWISE[name]}))
    assert other != block.header
    assert is_readable(other)
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
    two = make_block(KEK, header_of(key, addresses=(0x0171,)), key, NONCE[::-1])
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


# The field's first and last possible values, and what lies beyond them or is of another type.
EDGES: Final[dict[str, tuple[list[Any], list[Any]]]] = {
    "format": ([1], [0, 2, 1.5, True]),
    "key_id": ([bytes(16)], [b"", bytes(15), bytes(17), "0" * 16]),
    "domain": (list(Domain), ["", "social", "BANK", 0]),
    "tier": (list(Tier), ["", "NATIONAL", "county", 3]),
    "name": (["I", "I" * 32, "卡" * 32], ["", "I" * 33, "卡" * 33, b"IRK"]),
    "addresses": (
        [[], [0], [0xFFFF], list(range(16))],
        [0x0170, [-1], [0x10000], ["0170"], list(range(17))],
    ),
    "psam_type": ([0, 0xFF], [-1, 0x100, "0"]),
    "psam_id": ([0, 0xFF], [-1, 0x100, "0"]),
    "set": ([1, 3], [0, 4, "1"]),
    "algorithm": (list(Algorithm), ["", "sm4", "AES"]),
    "levels": ([0, 3], [-1, 4]),
    "use": (list(Use), ["", "INTERNAL", "signing"]),
    "modes": (
        [["produce"], ["produce", "verify", "wrap", "unwrap"]],
        [[], "produce", ["sign"], ["verify"] * 5],
    ),
    "version": ([1, 0xFFFF], [0, 0x10000]),
    "valid_from": ([0, 2**63 - 1], [-1, 0.5, "0"]),
    "valid_until": ([0, 2**63 - 1], [-1, 0.5, "0"]),
    "ceiling": ([0, 2**63 - 1], [-1, 0.5]),
    "warn_at": ([0, 2**63 - 1], [-1, 0.5]),
    "export": (list(Export), ["", "NEVER", "clear"]),
    "created_by": (["o", "o" * 64, "员" * 64], ["", "o" * 65]),
    "created_at": ([0, 2**63 - 1], [-1, 0.5]),
    "kcv": ([bytes(3)], [b"", bytes(2), bytes(4), "000"]),
    "state": (list(KeyState), ["", "ACTIVE", "asleep"]),
    "changed_at": ([0, 2**63 - 1], [-1, 0.5]),
    "minimum_version": ([1, 0xFFFF], [0, 0x10000]),
    "uses": ([0, 2**63 - 1], [-1, 0.5]),
    "destroy_after": ([0, 2**63 - 1], [-1, 0.5]),
    "was_compromised": ([False, True], [0, 1, "true"]),
    "revision": ([1, 2**63 - 1], [0, -1, 0.5]),
}

every_field = pytest.mark.parametrize("name", KeyHeader.__struct_fields__)


def header_with(name: str, value: Any) -> bytes:
    """Write a header that is good but for one field, past the checks of `make_block`."""
    fields: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(header_of(a_key())))
    fields[KeyHeader.__struct_fields__.index(name)] = value
    return msgspec.msgpack.encode(fields)


@every_field
def test_a_header_within_its_limits_can_be_read(name: str) -> None:
    for value in EDGES[name][0]:
        read = getattr(read_header(header_with(name, value)), name)
        assert (list(read) if isinstance(read, tuple) else read) == value


@every_field
def test_a_header_beyond_its_limits_is_refused_though_it_is_authentic(name: str) -> None:
    # Whoever has the wrapping key, an older keyd say, can bind anything to a key.
    for value in (*EDGES[name][1], None, [[]], {}):
        header = header_with(name, value)
        wrapped = KEK.wrap(a_key(), NONCE, header)
        with pytest.raises(KeyNotAuthentic, match="cannot be read"):
            open_block(KEK, KeyBlock(header, NONCE, wrapped))


# With another algorithm or check value it is another key's header, and refused as that.
@pytest.mark.parametrize("name", sorted(EDGES.keys() - {"algorithm", "kcv"}))
def test_no_block_is_made_whose_header_could_not_be_read_again(name: str) -> None:
    # Its key would be lost, and nobody would notice before the next start.
    key = a_key()
    for value in EDGES[name][1]:
        with pytest.raises(ValueError, match="beyond its limits"):
            make_block(KEK, header_of(key, **{name: value}), key, NONCE)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x96\x01",
        msgspec.msgpack.encode([*msgspec.structs.astuple(header_of(a_key())), 0]),
        msgspec.msgpack.encode(msgspec.structs.astuple(header_of(a_key()))[:21]),
        msgspec.msgpack.encode(msgspec.structs.asdict(header_of(a_key()))),
        msgspec.msgpack.encode(header_of(a_key())) + b"\0",
        msgspec.msgpack.encode(header_of(a_key())).replace(b"\xa3IRK", b"\xa3IR\xff"),
        # As keyd 0.1.0 had it in sealed files.
        msgspec.msgpack.encode([0x0170, "IRK", 1, "SM4", 3, bytes(3)]),
    ],
)
def test_even_an_authentic_header_must_be_a_header(header: bytes) -> None:
    wrapped = KEK.wrap(a_key(), NONCE, header)
    with pytest.raises(KeyNotAuthentic):
        open_block(KEK, KeyBlock(header, NONCE, wrapped))


def test_the_longest_header_fits_and_a_longer_one_is_not_even_read() -> None:
    key = a_key()
    header = header_of(
        key,
        name="𠀀" * 32,
        addresses=tuple(range(0xFFF0, 0x10000)),
        modes=tuple(Mode),
        created_by="𠀀" * 64,
        **dict.fromkeys(
            ("valid_from", "valid_until", "ceiling", "warn_at", "created_at", "changed_at"),
            2**63 - 1,
        ),
    )
    block = make_block(KEK, header, key, NONCE)
    assert open_block(KEK, block)[0] == header
    assert 500 < len(block.header) < MAX_HEADER_BYTES // 2
    with pytest.raises(KeyNotAuthentic, match="too long"):
        read_header(block.header + bytes(MAX_HEADER_BYTES + 1 - len(block.header)))


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
