"""Every number of the worked examples comes out of the typed levels, and no level does another's work."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import IN_SOFTWARE, KEY_BYTES, Algorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import BadParameter, TooLarge
from keyd.keys.hierarchy import (
    CARD_DIVERSIFIERS,
    MAX_PROTECTED_DATA,
    CardKey,
    CipherKey,
    CityKey,
    NationalKey,
    ProvincialKey,
    Region,
    SessionKey,
    card_diversifier,
    card_diversifier_old,
    city_diversifier,
    city_key,
    province_diversifier,
    region_from_card_id,
    region_from_digits,
    root_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY: Final = Path(__file__).parent.parent.parent
WORKED: Final = cast(
    "dict[str, Any]",
    json.loads((REPOSITORY / "tests" / "vectors" / "worked_examples.json").read_text()),
)
EXAMPLES: Final = cast("list[dict[str, Any]]", WORKED["examples"])
SINGLE: Final = cast("dict[str, str]", WORKED["single_length_stk"])

# What this file checks of an example. A field that is added to the vectors turns a test red until it is checked.
FIELDS: Final = frozenset(
    str.split("""algorithm root levels region historical diversifiers card_key session_factor challenge session_key
    cryptogram reply external_authenticate pin_unblock pin pin_reload update_binary application_block
    card_block debit load""")
)
DEBIT_FIELDS: Final = frozenset(
    str.split("""pseudo_random purchase_number terminal_transaction_number amounts type terminal time session_key
    mac1 mac2 tac""")
)
LOAD_FIELDS: Final = frozenset(
    str.split(
        """pseudo_random load_number balance amount type terminal time session_key mac1 mac2 tac"""
    )
)
SINGLE_FIELDS: Final = frozenset(
    str.split(
        """note root region historical card_key session_factor session_key pin pin_reload pin_unblock"""
    )
)

unhex: Final = bytes.fromhex

every_example = pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda e: f"{e['algorithm']}-{e['levels']}-{e['region']}"
)
software = pytest.mark.parametrize("algorithm", sorted(IN_SOFTWARE, key=str), ids=lambda a: a.value)


def upper(octets: bytes) -> str:
    return octets.hex().upper()


def card_of(example: dict[str, Any]) -> CardKey:
    root = root_key(
        SecretKey.load(Algorithm(example["algorithm"]), unhex(example["root"])), example["levels"]
    )
    city = city_key(root, region_from_digits(example["region"]))
    return city.diversify(card_diversifier(unhex(example["historical"])))


def session_of(example: dict[str, Any]) -> SessionKey:
    return card_of(example).derive(unhex(example["session_factor"]))


def require_same_key(level: CardKey | SessionKey, algorithm: Algorithm, material: str) -> None:
    """Fail unless the level's key is this one: by its check value and by what it makes of three blocks."""
    expected = SecretKey.load(algorithm, unhex(material))
    assert level.algorithm is algorithm
    assert level.kcv() == expected.kcv()
    probes = bytes(range(3 * expected.block_bytes))
    assert level._key.encrypt(probes) == expected.encrypt(probes)


def session_algorithm(algorithm: Algorithm) -> Algorithm:
    """Sessions of 8-byte blocks have single-length keys."""
    return Algorithm.SM4 if algorithm is Algorithm.SM4 else Algorithm.DES


# --- the worked examples


def test_every_field_of_the_vectors_is_known_here() -> None:
    assert len(EXAMPLES) == 12
    assert all(set(example) == FIELDS for example in EXAMPLES)
    assert all(set(example["debit"]) == DEBIT_FIELDS for example in EXAMPLES)
    assert all(set(example["load"]) == LOAD_FIELDS for example in EXAMPLES)
    assert set(SINGLE) == SINGLE_FIELDS
    assert set(WORKED) == {"source", "kcv", "examples", "single_length_stk", "psam_key_loading"}


@pytest.mark.parametrize("algorithm", ["SM4", "3DES"])
def test_the_check_values_are_the_worked_ones(algorithm: str) -> None:
    root = root_key(SecretKey.load(Algorithm(algorithm), unhex(WORKED["kcv"]["key"])), 3)
    assert upper(root.kcv()) == WORKED["kcv"][algorithm]


@every_example
def test_the_diversifiers_are_the_worked_ones(example: dict[str, Any]) -> None:
    region = region_from_digits(example["region"])
    all_three = [
        upper(province_diversifier(region)),
        upper(city_diversifier(region)),
        upper(card_diversifier(unhex(example["historical"]))),
    ]
    assert all_three[-example["levels"] :] == example["diversifiers"]


@every_example
def test_the_card_key_and_the_session_key_are_the_worked_ones(example: dict[str, Any]) -> None:
    algorithm = Algorithm(example["algorithm"])
    require_same_key(card_of(example), algorithm, example["card_key"])
    require_same_key(session_of(example), session_algorithm(algorithm), example["session_key"])


@every_example
def test_the_typed_chain_gives_what_city_key_gives(example: dict[str, Any]) -> None:
    region = region_from_digits(example["region"])
    key = SecretKey.load(Algorithm(example["algorithm"]), unhex(example["root"]))
    third = card_diversifier(unhex(example["historical"]))
    match example["levels"]:
        case 3:
            card = NationalKey(key).diversify(region).diversify(region).diversify(third)
        case 2:
            card = ProvincialKey(key).diversify(region).diversify(third)
        case _:
            card = CityKey(key).diversify(third)
    assert card.kcv() == card_of(example).kcv()


@every_example
def test_the_cryptogram_and_what_carries_it_are_the_worked_ones(example: dict[str, Any]) -> None:
    challenge = unhex(example["challenge"])
    cryptogram = session_of(example).cryptogram(challenge)
    assert upper(cryptogram) == example["cryptogram"]
    assert upper(cryptogram + challenge) == example["reply"]
    # EXTERNAL AUTHENTICATE with RKSSSE, card key id 0A. tests/cards has it from the service that makes it.
    assert upper(unhex("0082000A10") + cryptogram + challenge) == (example["external_authenticate"])


@every_example
def test_the_secure_messages_are_the_worked_ones(example: dict[str, Any]) -> None:
    session = session_of(example)

    def protected(header: str, plaintext: str = "", *, encrypt: bool = False) -> str:
        return upper(session.protect(unhex(header), unhex(plaintext), encrypt=encrypt))

    assert protected("84240000") == example["pin_unblock"]
    assert protected("84240001", example["pin"], encrypt=True) == example["pin_reload"]
    assert protected("04D60000", "A1A2A3A4") == example["update_binary"]
    assert protected("841E0001") == example["application_block"]
    assert protected("84160000") == example["card_block"]


@every_example
def test_the_purchase_is_the_worked_one(example: dict[str, Any]) -> None:
    card, debit = card_of(example), {name: unhex(value) for name, value in example["debit"].items()}
    number = debit["terminal_transaction_number"]
    session = card.derive(debit["pseudo_random"] + debit["purchase_number"] + number[2:])
    require_same_key(
        session,
        session_algorithm(Algorithm(example["algorithm"])),
        example["debit"]["session_key"],
    )
    terminal_and_type = debit["type"] + debit["terminal"]
    assert session.mac(debit["amounts"] + terminal_and_type + debit["time"]) == debit["mac1"]
    assert session.mac(debit["amounts"]) == debit["mac2"]
    proof = card.tac(debit["amounts"] + terminal_and_type + number + debit["time"])
    assert proof == debit["tac"]


@every_example
def test_the_load_is_the_worked_one(example: dict[str, Any]) -> None:
    card, load = card_of(example), {name: unhex(value) for name, value in example["load"].items()}
    session = card.derive(load["pseudo_random"] + load["load_number"] + unhex("8000"))
    require_same_key(
        session,
        session_algorithm(Algorithm(example["algorithm"])),
        example["load"]["session_key"],
    )
    head = load["amount"] + load["type"] + load["terminal"]
    assert session.mac(load["balance"] + head) == load["mac1"]
    assert session.mac(head + load["time"]) == load["mac2"]
    assert card.tac(load["balance"] + load["load_number"] + head + load["time"]) == load["tac"]


def test_a_single_length_key_gives_the_worked_secure_messages() -> None:
    example = SINGLE | {"algorithm": "DES", "levels": 3}
    card, session = card_of(example), session_of(example)
    require_same_key(card, Algorithm.DES, SINGLE["card_key"])
    require_same_key(session, Algorithm.DES, SINGLE["session_key"])
    assert upper(session.protect(unhex("84240000"), b"", encrypt=False)) == SINGLE["pin_unblock"]
    assert (
        upper(session.protect(unhex("84240001"), unhex(SINGLE["pin"]), encrypt=True))
        == (SINGLE["pin_reload"])
    )


# --- diversifiers

regions = st.integers(0, 999_999).map(lambda number: Region(f"{number:06}"))


@given(region=regions)
def test_regions_of_a_province_share_its_diversifier(region: Region) -> None:
    assert province_diversifier(region) == region[:2].encode() + b"0000sh"
    assert len(city_diversifier(region)) == 8


@pytest.mark.parametrize("region", ["330102", "330199", "330100"])
def test_zhejiang_issues_by_city(region: str) -> None:
    assert upper(city_diversifier(Region(region))) == "3333303130307378"


@given(region=regions.filter(lambda region: not region.startswith("33")))
def test_elsewhere_the_county_counts(region: Region) -> None:
    assert city_diversifier(region) == region.encode() + b"sx"


def test_the_cards_diversifier_is_the_end_of_its_atr() -> None:
    atr = unhex("3B6D000000814A444686605199000001AC")
    historical = atr[4:]
    assert upper(card_diversifier(historical)) == "86605199000001AC"
    assert card_diversifier(historical) == historical[5:13] == atr[-8:]


def test_the_older_rule_is_t8_to_td_and_zeros() -> None:
    historical = unhex("00814A444686605199000001AC")
    assert upper(card_diversifier_old(historical)) == "5199000001AC0000"
    assert CARD_DIVERSIFIERS["historical-6-13"] is card_diversifier
    assert CARD_DIVERSIFIERS["historical-8-13-zero"] is card_diversifier_old


# --- regions


@given(digits=regions)
def test_six_digits_are_a_region(digits: str) -> None:
    assert region_from_digits(digits) == digits
    assert region_from_card_id(unhex(digits) + bytes(13)) == digits


@pytest.mark.parametrize(
    "digits",
    [
        "",
        "51010",
        "5101000",
        "51010A",
        "51010 ",
        "51010\n",
        "519900\n",
        "+51010",
        "５１０１００",
        "51010²",
    ],
)
def test_anything_else_is_no_region(digits: str) -> None:
    with pytest.raises(BadParameter, match="six decimal digits"):
        region_from_digits(digits)


@given(octets=st.binary(max_size=20))
def test_a_card_identifier_gives_a_whole_region_or_is_refused(octets: bytes) -> None:
    try:
        region = region_from_card_id(octets)
    except BadParameter:
        assert len(octets) < 3 or not octets[:3].hex().isdigit()
    else:
        assert region == octets[:3].hex()
        assert len(region) == 6


# --- wrong lengths


def a_card(algorithm: Algorithm) -> CardKey:
    return CityKey(SecretKey.load(algorithm, bytes(range(KEY_BYTES[algorithm])))).diversify(
        b"8 bytes!"
    )


@software
@pytest.mark.parametrize("length", [0, 1, 7, 9, 13, 16])
def test_a_diversifier_has_eight_bytes(algorithm: Algorithm, length: int) -> None:
    city = CityKey(SecretKey.load(algorithm, bytes(KEY_BYTES[algorithm])))
    with pytest.raises(BadParameter, match="a diversifier has 8 bytes"):
        city.diversify(bytes(length))


@software
def test_a_session_factor_has_four_or_eight_bytes_or_a_block_of_sixteen(
    algorithm: Algorithm,
) -> None:
    card = a_card(algorithm)
    allowed = {4, 8, 16} if algorithm is Algorithm.SM4 else {4, 8}
    for length in range(20):
        if length in allowed:
            assert card.derive(bytes(length)).algorithm is session_algorithm(algorithm)
            continue
        with pytest.raises(BadParameter, match="a session factor has"):
            card.derive(bytes(length))


@software
@given(factor=st.binary(min_size=4, max_size=4))
def test_a_short_session_factor_is_padded_with_zeros(algorithm: Algorithm, factor: bytes) -> None:
    card = a_card(algorithm)
    assert card.derive(factor).kcv() == card.derive(factor + bytes(4)).kcv()


@software
@pytest.mark.parametrize("length", [0, 7, 9, 16])
def test_a_challenge_has_eight_bytes(algorithm: Algorithm, length: int) -> None:
    with pytest.raises(BadParameter, match="a challenge has 8 bytes"):
        a_card(algorithm).derive(bytes(8)).cryptogram(bytes(length))


@pytest.mark.parametrize("levels", [0, 4, -1])
def test_a_root_stands_one_to_three_levels_up(levels: int) -> None:
    with pytest.raises(BadParameter, match="3, 2 or 1 levels"):
        root_key(SecretKey.load(Algorithm.SM4, bytes(16)), levels)


# --- secure messages


@software
@pytest.mark.parametrize("header", [b"", b"\x04\xd6\0", b"\x04\xd6\0\0\0"])
def test_a_header_has_four_bytes(algorithm: Algorithm, header: bytes) -> None:
    with pytest.raises(BadParameter, match="4 bytes"):
        a_card(algorithm).derive(bytes(8)).protect(header, b"", encrypt=False)


@software
@given(plaintext=st.binary(max_size=300), encrypt=st.booleans())
def test_a_protected_command_is_one_short_apdu_or_is_refused(
    algorithm: Algorithm, plaintext: bytes, encrypt: bool
) -> None:
    session = a_card(algorithm).derive(bytes(8))
    block = 16 if algorithm is Algorithm.SM4 else 8
    wanted = -(-(1 + len(plaintext)) // block) * block if encrypt else len(plaintext)
    if max(wanted, len(plaintext)) > MAX_PROTECTED_DATA:
        with pytest.raises(TooLarge):
            session.protect(b"\x04\xd6\0\0", plaintext, encrypt=encrypt)
        return
    apdu = session.protect(b"\x04\xd6\0\0", plaintext, encrypt=encrypt)
    assert apdu[:4] == b"\x04\xd6\0\0"
    # Lc is right, and so it was when the MAC was made.
    assert apdu[4] == len(apdu) - 5 == wanted + 4
    assert apdu[-4:] == session.mac(apdu[:-4])
    if not encrypt:
        assert apdu[5:-4] == plaintext


@software
@given(plaintext=st.binary(max_size=60))
def test_enciphered_data_decipher_to_length_plaintext_and_padding(
    algorithm: Algorithm, plaintext: bytes
) -> None:
    session = a_card(algorithm).derive(bytes(8))
    block = 16 if algorithm is Algorithm.SM4 else 8
    clear = session._key.decrypt(session.encipher(plaintext))
    whole = bytes([len(plaintext)]) + plaintext
    # 80 00… only where the data are not whole blocks already.
    padded = whole if len(whole) % block == 0 else (whole + b"\x80").ljust(len(clear), b"\0")
    assert clear == padded
    assert len(clear) - len(whole) < block


@software
@given(data=st.binary(max_size=80), bit=st.integers(min_value=0))
def test_a_mac_covers_every_bit_and_the_length(algorithm: Algorithm, data: bytes, bit: int) -> None:
    session = a_card(algorithm).derive(bytes(8))
    mac = session.mac(data)
    assert len(mac) == 4
    # The padding is always there, so that data ending in it are not the shorter ones.
    assert session.mac(data + b"\x80") != mac
    assert session.mac(data + b"\0") != mac
    if data:
        at = bit % (8 * len(data))
        flipped = (int.from_bytes(data, "big") ^ 1 << at).to_bytes(len(data), "big")
        assert session.mac(flipped) != mac


@software
@given(diversifier=st.binary(min_size=8, max_size=8), challenge=st.binary(min_size=8, max_size=8))
def test_no_text_of_a_level_shows_its_key(
    algorithm: Algorithm, diversifier: bytes, challenge: bytes
) -> None:
    national = NationalKey(SecretKey.load(algorithm, bytes(range(KEY_BYTES[algorithm]))))
    province = national.diversify(Region("510100"))
    city = province.diversify(Region("510100"))
    card = city.diversify(diversifier)
    for level in (national, province, city, card, card.derive(challenge)):
        assert repr(level) == str(level) == f"<{type(level).__name__} {level.algorithm.value}>"


# --- the levels are types

RIGHT: Final = """
def right(root: NationalKey, region: Region) -> tuple[bytes, bytes, bytes]:
    card = root.diversify(region).diversify(region).diversify(b"8 bytes!")
    session = card.derive(b"8 bytes!")
    return session.cryptogram(b"8 bytes!"), session.mac(b""), card.tac(b"")
"""

# Each line must be refused: it takes a verb from another level, or another level's factor.
WRONG: Final = (
    "city.cryptogram(factor)",
    "city.derive(factor)",
    "city.mac(factor)",
    "city.tac(factor)",
    "city.diversify(region)",
    "national.derive(factor)",
    "national.cryptogram(factor)",
    "national.diversify(factor)",
    "national.diversify('510100')",
    "national.diversify(region).derive(factor)",
    "national.diversify(region).diversify(region).derive(factor)",
    "province.diversify(factor)",
    "province.cryptogram(factor)",
    "card.diversify(factor)",
    "card.cryptogram(factor)",
    "card.mac(factor)",
    "card.protect(factor, factor, encrypt=False)",
    "session.diversify(factor)",
    "session.derive(factor)",
    "session.tac(factor)",
)


def test_only_the_right_chain_type_checks(tmp_path: Path) -> None:
    head = textwrap.dedent("""
        from keyd.keys.hierarchy import (
            CardKey, CityKey, NationalKey, ProvincialKey, Region, SessionKey
        )
    """)
    levels = """
def wrong(
    national: NationalKey, province: ProvincialKey, city: CityKey, card: CardKey,
    session: SessionKey, region: Region, factor: bytes,
) -> None:
"""
    program = head + RIGHT + levels + "".join(f"    {line}\n" for line in WRONG)
    snippet = tmp_path / "levels.py"
    snippet.write_text(program)
    checked = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "mypy",
                "--strict",
                "--config-file=",
                "--follow-imports=silent",
            ),
            *("--no-error-summary", "--no-pretty", "--cache-dir", str(tmp_path / "cache")),
            snippet.name,
        ],
        cwd=tmp_path,
        env={"MYPYPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = {int(line.split(":")[1]) for line in checked.stdout.splitlines() if "error:" in line}
    first = program[: program.index(WRONG[0])].count("\n") + 1
    by_line = dict(enumerate(program.splitlines(), 1))
    accepted = [by_line[n] for n in range(first, first + len(WRONG)) if n not in refused]
    assert not accepted, f"these type-check and must not: {accepted}"
    # Nothing else may be wrong: the right chain is right.
    assert refused == set(range(first, first + len(WRONG))), checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("level", "verbs"),
    [
        (NationalKey, {"diversify"}),
        (ProvincialKey, {"diversify"}),
        (CityKey, {"diversify", "handle"}),
        (CardKey, {"derive", "tac", "cipher"}),
        (SessionKey, {"cryptogram", "mac", "encipher", "protect", "cipher"}),
        (CipherKey, {"block_bytes", "encrypt", "chain", "finish"}),
    ],
)
def test_each_level_has_its_own_verbs_at_run_time_too(
    level: Callable[..., object], verbs: set[str]
) -> None:
    public = {name for name in dir(level) if not name.startswith("_")}
    assert public == verbs | {"algorithm", "kcv"}
