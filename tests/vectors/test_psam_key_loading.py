"""The worked CREATE KEY and CHANGE KEY of a PSAM come out of the crypto floor's primitives, as §3 states them.

Loading keys into a PSAM differs from everything that a card does: the ADF's master key serves directly, the IV is
the challenge padded with 00, and 3DES has a retail MAC. No service makes these commands yet; these tests keep
the vectors passing until one does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

import pytest

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey

VECTORS: Final = Path(__file__).parent / "worked_examples.json"
LOADINGS: Final = cast("list[dict[str, Any]]", json.loads(VECTORS.read_text())["psam_key_loading"])
FIELDS: Final = frozenset(
    str.split("algorithm mk key usage id file challenge create_key change_key")
)

# The PSAM's algorithm byte: 00 is 3DES; 03 for SM4 is proposed, the public text ends at SSF33.
ALGORITHM_BYTE: Final = {"SM4": 0x03, "3DES": 0x00}

unhex: Final = bytes.fromhex

every_loading = pytest.mark.parametrize("loading", LOADINGS, ids=lambda v: v["algorithm"])


def padded(octets: bytes, block: int) -> bytes:
    octets += b"\x80"
    return octets + bytes(-len(octets) % block)


def mac(master: bytes, algorithm: Algorithm, challenge: bytes, data: bytes) -> bytes:
    """Return the 4 bytes of MAC over a whole command: retail for 3DES, words XORed for 16-byte blocks."""
    if algorithm is Algorithm.TDES:
        left, right = (SecretKey.load(Algorithm.DES, half) for half in (master[:8], master[8:]))
        last = left.cbc_mac(padded(data, 8), challenge.ljust(8, b"\0"))
        return left.encrypt(right.decrypt(last))[:4]
    key = SecretKey.load(algorithm, master)
    last = key.cbc_mac(padded(data, 16), challenge.ljust(16, b"\0"))
    words = [int.from_bytes(last[at : at + 4], "big") for at in range(0, 16, 4)]
    return (words[0] ^ words[1] ^ words[2] ^ words[3]).to_bytes(4, "big")


def command(loading: dict[str, Any], p1: int, content: bytes) -> str:
    """Return 84 D4, the enciphered key with its attributes, and the MAC."""
    algorithm, master = Algorithm(loading["algorithm"]), unhex(loading["mk"])
    key = SecretKey.load(algorithm, master)
    data = bytes([len(content)]) + content
    if len(data) % key.block_bytes:
        data = padded(data, key.block_bytes)
    enciphered = key.encrypt(data)
    head = bytes([0x84, 0xD4, p1]) + unhex(loading["file"]) + bytes([len(enciphered) + 4])
    whole = head + enciphered
    return (whole + mac(master, algorithm, unhex(loading["challenge"]), whole)).hex().upper()


def test_every_field_of_the_vectors_is_known_here() -> None:
    assert [loading["algorithm"] for loading in LOADINGS] == ["SM4", "3DES"]
    assert all(set(loading) == FIELDS for loading in LOADINGS)


@every_loading
def test_create_key_is_the_worked_one(loading: dict[str, Any]) -> None:
    # 用途 ‖ 标识 ‖ 00 ‖ algorithm ‖ 00000000 ‖ key
    attributes = unhex(loading["usage"] + loading["id"]) + bytes(
        [0, ALGORITHM_BYTE[loading["algorithm"]]]
    )
    made = command(loading, 0x00, attributes + bytes(4) + unhex(loading["key"]))
    assert made == loading["create_key"]
    assert made[8:10] == "24"


@every_loading
def test_change_key_is_the_worked_one(loading: dict[str, Any]) -> None:
    # 用途 ‖ 标识 ‖ 00 ‖ key
    attributes = unhex(loading["usage"] + loading["id"]) + bytes(1)
    made = command(loading, 0x01, attributes + unhex(loading["key"]))
    assert made == loading["change_key"]
    assert made[8:10] == ("24" if loading["algorithm"] == "SM4" else "1C")
