"""The simulator's arithmetic, written from the standard alone, gives every number of the worked examples.

The examples were computed by another implementation: each checks the other's reading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.simulator import arithmetic

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/worked_examples.json").read_text())
EXAMPLES = [
    pytest.param(example, id=f"{example['algorithm']}-{example['region']}-{example['levels']}")
    for example in VECTORS["examples"]
]

FACTOR = bytes.fromhex("0102030405060708")
CHALLENGE = bytes.fromhex("1112131415161718")

Example = dict[str, Any]


def card_key(example: Example) -> SecretKey:
    root = SecretKey.load(Algorithm(example["algorithm"]), bytes.fromhex(example["root"]))
    historical = bytes.fromhex(example["historical"])
    return arithmetic.card_key(root, example["region"], historical, example["levels"])


def is_key(key: SecretKey, material: str) -> bool:
    """Whether a key has these bytes: keys are not compared, so what they compute is."""
    probe = bytes(range(16))
    expected = SecretKey.load(key.algorithm, bytes.fromhex(material))
    return key.encrypt(probe) == expected.encrypt(probe)


def message(session: SecretKey, header: str, payload: bytes = b"") -> str:
    head = bytes.fromhex(header)
    mac = arithmetic.command_mac(session, head, payload)
    return (head + bytes((len(payload) + 4,)) + payload + mac).hex().upper()


@pytest.mark.parametrize("name", ["SM4", "3DES"])
def test_check_values(name: str) -> None:
    key = SecretKey.load(Algorithm(name), bytes.fromhex(VECTORS["kcv"]["key"]))
    assert key.kcv().hex().upper() == VECTORS["kcv"][name]


@pytest.mark.parametrize("example", EXAMPLES)
def test_down_to_the_session(example: Example) -> None:
    historical = bytes.fromhex(example["historical"])
    factors = arithmetic.diversifiers(example["region"], historical, example["levels"])
    assert [factor.hex().upper() for factor in factors] == example["diversifiers"]
    key = card_key(example)
    assert is_key(key, example["card_key"])
    session = arithmetic.session_key(key, bytes.fromhex(example["session_factor"]))
    assert is_key(session, example["session_key"])


@pytest.mark.parametrize("example", EXAMPLES)
def test_authentication(example: Example) -> None:
    session = arithmetic.session_key(card_key(example), FACTOR)
    cryptogram = arithmetic.cryptogram(session, CHALLENGE)
    assert cryptogram.hex().upper() == example["cryptogram"]
    reply = (cryptogram + CHALLENGE).hex().upper()
    assert reply == example["reply"]
    assert f"0082000A10{reply}" == example["external_authenticate"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_secure_messaging(example: Example) -> None:
    session = arithmetic.session_key(card_key(example), FACTOR)
    pin = arithmetic.encrypt_payload(session, bytes.fromhex(example["pin"]))
    assert message(session, "84240000") == example["pin_unblock"]
    assert message(session, "84240001", pin) == example["pin_reload"]
    assert message(session, "04D60000", bytes.fromhex("A1A2A3A4")) == example["update_binary"]
    assert message(session, "841E0001") == example["application_block"]
    assert message(session, "84160000") == example["card_block"]


def test_the_stk_is_single_length_under_des() -> None:
    example = VECTORS["single_length_stk"]
    key = card_key({**example, "algorithm": "DES", "levels": 3})
    assert is_key(key, example["card_key"])
    session = arithmetic.session_key(key, bytes.fromhex(example["session_factor"]))
    assert is_key(session, example["session_key"])
    pin = arithmetic.encrypt_payload(session, bytes.fromhex(example["pin"]))
    assert message(session, "84240001", pin) == example["pin_reload"]
    assert message(session, "84240000") == example["pin_unblock"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_debit(example: Example) -> None:
    key = card_key(example)
    debit = {name: bytes.fromhex(value) for name, value in example["debit"].items()}
    factor = arithmetic.debit_session_factor(
        debit["pseudo_random"], debit["purchase_number"], debit["terminal_transaction_number"]
    )
    session = arithmetic.session_key(key, factor)
    kind, terminal, time = debit["type"], debit["terminal"], debit["time"]
    assert is_key(session, example["debit"]["session_key"])
    assert arithmetic.debit_mac1(session, debit["amounts"], kind, terminal, time) == debit["mac1"]
    assert arithmetic.debit_mac2(session, debit["amounts"]) == debit["mac2"]
    number = debit["terminal_transaction_number"]
    tac = arithmetic.debit_tac(key, debit["amounts"], kind, terminal, number, time)
    assert tac == debit["tac"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_load(example: Example) -> None:
    key = card_key(example)
    load = {name: bytes.fromhex(value) for name, value in example["load"].items()}
    factor = arithmetic.load_session_factor(load["pseudo_random"], load["load_number"])
    session = arithmetic.session_key(key, factor)
    balance, amount, number = load["balance"], load["amount"], load["load_number"]
    kind, terminal, time = load["type"], load["terminal"], load["time"]
    assert is_key(session, example["load"]["session_key"])
    assert arithmetic.load_mac1(session, balance, amount, kind, terminal) == load["mac1"]
    assert arithmetic.load_mac2(session, amount, kind, terminal, time) == load["mac2"]
    tac = arithmetic.load_tac(key, balance, number, amount, kind, terminal, time)
    assert tac == load["tac"]


def test_zhejiang_blanks_the_county() -> None:
    historical = bytes.fromhex("00814A44468649519930000BEE")
    assert arithmetic.diversifiers("330102", historical, 3) == (
        b"330000sh",
        b"330100sx",
        historical[5:],
    )


def test_a_short_session_factor_is_filled_with_zeros() -> None:
    for algorithm in (Algorithm.SM4, Algorithm.TDES):
        key = SecretKey.load(algorithm, bytes(range(16)))
        short = arithmetic.session_key(key, b"\x01\x02\x03\x04")
        full = arithmetic.session_key(key, b"\x01\x02\x03\x04\x00\x00\x00\x00")
        assert short.kcv() == full.kcv()


SESSIONS = [
    SecretKey.load(Algorithm.SM4, bytes(range(16))),
    SecretKey.load(Algorithm.DES, bytes(range(8))),
]


@pytest.mark.parametrize("session", SESSIONS)
@given(plain=st.binary(max_size=240))
def test_what_is_encrypted_is_decrypted(session: SecretKey, plain: bytes) -> None:
    ciphertext = arithmetic.encrypt_payload(session, plain)
    assert arithmetic.decrypt_payload(session, ciphertext) == plain
    # Whole blocks already are not padded: one block more would be another Lc.
    assert len(ciphertext) == -(-(len(plain) + 1) // session.block_bytes) * session.block_bytes


@pytest.mark.parametrize("session", SESSIONS)
@given(ciphertext=st.binary(max_size=64))
def test_any_ciphertext_decrypts_or_is_a_value_error(session: SecretKey, ciphertext: bytes) -> None:
    try:
        plain = arithmetic.decrypt_payload(session, ciphertext)
    except ValueError:
        return
    assert arithmetic.encrypt_payload(session, plain) == ciphertext
