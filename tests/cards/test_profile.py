"""A profile says what a generation's cards have and allow; a wrong profile is a sentence and never a wrong answer."""

from __future__ import annotations

import csv
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.errors import BadParameter, CommandNotAllowed, KeyNotFound, KeyUsageRefused
from keyd.keys.block import Use
from keyd.keys.hierarchy import card_diversifier, card_diversifier_old

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.cards.profile import Profile
    from tests.cards.conftest import Bench

TABLE: Final = Path(__file__).parent.parent / "vectors" / "key_addresses.csv"


def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS: Final = rows()

# What a key may do, read off its name as the specification composes it; written here a second time so that the
# profile's data cannot be wrong alone.
USE_BY_PREFIX: Final = {
    "IRK": Use.INTERNAL,
    "RK": Use.EXTERNAL,
    "UK": Use.EXTERNAL,
    "LK": Use.EXTERNAL,
    "BK": Use.EXTERNAL,
    "PUK": Use.EXTERNAL,
    "STK": Use.MESSAGING,
    "DPK": Use.DEBIT,
    "DLK": Use.LOAD,
    "DTK": Use.TAC,
    "DSK": Use.STARTING_DAY,
}

# Card key ids that the specification gives (P2 of EXTERNAL AUTHENTICATE).
KEY_IDS: Final = {
    "IRK": 0x00,
    "STKSSSE": 0x02,
    "UKSSSE": 0x04,
    "BK": 0x05,
    "PUK": 0x06,
    "RKSSSE": 0x0A,
    **{f"STKDF0{n}": 0x82 for n in (1, 2, 3, 4)},
    "LKDF03": 0x83,
    "LKDF04": 0x83,
    **{f"UK{n}DF01": 0x82 + n for n in range(1, 6)},
    **{f"UK{n}DF02": 0x82 + n for n in range(1, 6)},
    "RK1DF03": 0x84,
    "RK2DF03": 0x85,
    "UK1DF03": 0x86,
    "UK2DF03": 0x87,
    "UK3DF03": 0x88,
    "RK1DF04": 0x84,
    "UK1DF04": 0x85,
    "UK2DF04": 0x86,
}


def use_of(name: str) -> Use:
    (use,) = (use for prefix, use in USE_BY_PREFIX.items() if name.startswith(prefix))
    return use


# --- the 155 addresses


def test_there_are_155_addresses() -> None:
    assert len(ROWS) == 155
    assert len({row["address_hex"] for row in ROWS}) == 155


def test_keyd_carries_the_table_itself() -> None:
    carried = resources.files("keyd.cards") / "profiles" / "key_addresses.csv"
    assert carried.read_text(encoding="utf-8") == TABLE.read_text(encoding="utf-8")


def test_generation_3_has_every_address(bench: Bench) -> None:
    assert {f"{address:04X}" for address in bench.profile().keys} == {
        row["address_hex"] for row in ROWS
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['address_hex']}-{row['name']}")
def test_a_key_is_what_its_row_and_its_name_say(bench: Bench, row: dict[str, str]) -> None:
    profile, address = bench.profile(), int(row["address_hex"], 16)
    use = use_of(row["name"])
    key = profile.key(address, use)
    assert (key.address, key.name, key.set) == (address, row["name"], int(row["set"]))
    assert key.use is use
    assert key.des_bytes == int(row["len_dec"])
    assert key.card_key_id == KEY_IDS.get(key.name)
    # DF05's AID is not public; its keys are used without it.
    assert key.application in {*profile.applications, "DF05"}
    assert key.name.endswith(key.application) or key.application in {"SSSE", "DF04"}
    # An STK is single-length under DES (DOMAIN 1.5), and nothing else is.
    single = key.name.startswith("STK")
    assert key.algorithm(CardAlgorithm.DES) is (Algorithm.DES if single else Algorithm.TDES)
    assert key.algorithm(CardAlgorithm.SM4) is Algorithm.SM4
    assert key.algorithm(CardAlgorithm.SSF33) is Algorithm.SSF33
    for other in Use:
        if other is not use:
            with pytest.raises(KeyUsageRefused, match=f"{key.name} at {address:04X} is for {use}"):
                profile.key(address, other)


def test_one_use_of_several_is_enough(bench: Bench) -> None:
    assert bench.profile().key(0x0170, Use.EXTERNAL, Use.INTERNAL).name == "IRK"
    with pytest.raises(KeyUsageRefused, match="not external or tac"):
        bench.profile().key(0x0170, Use.EXTERNAL, Use.TAC)


@pytest.mark.parametrize("address", [-1, 0, 0x004B, 0x10000])
def test_an_address_that_is_not_there(bench: Bench, address: int) -> None:
    with pytest.raises(KeyNotFound, match=r"specification 3\.0"):
        bench.profile().key(address, Use.INTERNAL)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        *(("IRK", 0x0170), ("RKSSSE", 0x004C), ("PUK", 0x0090), ("STKSSSE", 0x0173)),
        *(("UKSSSE", 0x0094), ("DPK", 0x017F), ("DLK", 0x00B2), ("DTK", 0x00B5)),
    ],
)
def test_a_name_means_the_first_set_at_the_lowest_address(
    bench: Bench, name: str, address: int
) -> None:
    assert bench.profile().address_of(name) == address
    with pytest.raises(KeyNotFound, match="NOSUCH"):
        bench.profile().address_of("NOSUCH")


def test_a_profile_lists_a_place_for_every_key_and_algorithm(bench: Bench) -> None:
    places = bench.profile().key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    assert len(places) == 2 * 155
    assert [place.address for place in places[:155]] == sorted(bench.profile().keys)
    assert {place.algorithm for place in places[:155]} == {Algorithm.DES, Algorithm.TDES}
    assert {place.algorithm for place in places[155:]} == {Algorithm.SM4}


# --- generations


def test_there_are_three_generations(bench: Bench) -> None:
    assert sorted(bench.profiles) == [1, 2, 3]
    assert [bench.profiles[n].specification for n in (1, 2, 3)] == ["1.0", "2.0", "3.0"]
    assert newest(bench.profiles) is bench.profiles[3]


def test_each_generation_has_what_the_one_before_had(bench: Bench) -> None:
    first, second, third = (bench.profile(n) for n in (1, 2, 3))
    assert first.keys.items() < second.keys.items() < third.keys.items()
    added = {key.name for key in second.keys.values()} - {key.name for key in first.keys.values()}
    assert {"RK1DF01", "RK1DF02", "UK6DF01", "UKBDF01", "UK8DF03"} <= added
    assert not any("SSSE" in name for name in added)
    newer = {key.name for key in third.keys.values()} - {key.name for key in second.keys.values()}
    assert newer == {
        *("RKSSSE", "STKDF05", "UK1DF05", "STKDF07", "RK1DF07", "RK2DF07", "RK3DF07"),
        *("UK1DF07", "UK2DF07", "UK3DF07"),
    }


def test_personal_data_are_read_freely_before_3_0(bench: Bench) -> None:
    assert bench.profile(2).files["EF06"].read is None
    assert bench.profile(3).files["EF06"].read == "RKSSSE"
    assert all(bench.profile(n).files["EF05"].read is None for n in (1, 2, 3))


def test_sm4_came_with_the_third_generation(bench: Bench) -> None:
    assert [CardAlgorithm.SM4 in bench.profile(n).algorithms for n in (1, 2, 3)] == [
        False,
        False,
        True,
    ]


def test_the_applications_are_the_specifications(bench: Bench) -> None:
    for profile in bench.profiles.values():
        assert profile.applications["SSSE"] == "sx1.sh.社会保障".encode("gbk")
        assert profile.applications["DF01"].hex().upper() == "D15600000500"
        assert profile.applications["DF04"].hex().upper() == "D15600000503"
        assert profile.card_diversifier is card_diversifier


# --- the rule of the longest prefix


def require(profile: Profile, header: str, address: int = 0x0173, method: str = "m") -> None:
    profile.require_messaging(bytes.fromhex(header), address, method)


def test_the_longest_prefix_decides(bench: Bench) -> None:
    profile = bench.profile()
    # 84240000 has a rule, 8424 another, 84 a third: each header falls under the longest that it begins with.
    require(profile, "84240000", method="card.pin_unblock")
    require(profile, "84240001", method="card.pin_reload")
    for header, method in (
        ("84240000", "card.pin_reload"),
        ("84240001", "card.pin_unblock"),
        ("84240000", "card.secure_message"),
    ):
        with pytest.raises(CommandNotAllowed, match="alone"):
            require(profile, header, method=method)
    with pytest.raises(CommandNotAllowed, match="not protected by STKSSSE"):
        require(profile, "84240002", method="card.pin_unblock")
    require(profile, "84E20000")


def test_only_the_right_stk_unblocks_a_pin(bench: Bench) -> None:
    for address in (0x0174, 0x0175, 0x0185, 0x0186):
        with pytest.raises(CommandNotAllowed, match="PIN UNBLOCK is not protected by STKDF"):
            require(bench.profile(), "84240000", address, "card.pin_unblock")


def test_every_rule_names_keys_that_the_generation_has(bench: Bench) -> None:
    for profile in bench.profiles.values():
        names = {key.name for key in profile.keys.values()}
        for rule in profile.commands:
            for pattern in rule.messaging + rule.permission:
                prefix = pattern.removesuffix("*")
                assert any(name == pattern or name.startswith(prefix) for name in names)
        assert len({rule.prefix for rule in profile.commands}) == len(profile.commands)


# --- files that are wrong


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with keyd's own profiles, to be spoilt."""
    own = resources.files("keyd.cards") / "profiles"
    with resources.as_file(own) as path:
        shutil.copytree(path, tmp_path / "profiles")
    return tmp_path / "profiles"


def replaced(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")


FIRST: Final = "generation-1.toml"
SECOND: Final = "generation-2.toml"
THIRD: Final = "generation-3.toml"
ADDRESSES: Final = "key_addresses.csv"

# File, what to replace, by what, and what the sentence must say.
WRONG: Final = {
    "no TOML": (FIRST, "generation = 1", "generation =", "line"),
    "generation is text": (FIRST, "generation = 1", 'generation = "1"', "generation"),
    "generation is zero": (FIRST, "generation = 1", "generation = 0", "generation"),
    "generation twice": (SECOND, "generation = 2", "generation = 1", "generation 1 is there twice"),
    "generation missing": (FIRST, "generation = 1\n", "", "generation"),
    "unknown entry": (FIRST, "generation = 1", "generation = 1\nbreed = 2", "breed"),
    "unknown algorithm": (FIRST, '["DES", "SSF33"]', '["DES", "AES"]', "AES"),
    "unknown diversifier": (FIRST, "historical-6-13", "historical-0-7", "historical-0-7"),
    "unknown amount": (FIRST, '"pooled_fund"]', '"pool"]', "pool"),
    "unknown use": (FIRST, 'use = "debit"', 'use = "credit"', "credit"),
    "use of no card": (FIRST, 'use = "debit"', 'use = "transport"', "transport"),
    "key id too large": (FIRST, "card_key_id = 0x82", "card_key_id = 0x182", "card_key_id"),
    "key without use": (FIRST, 'DTK = { use = "tac" }', "DTK = {}", "use"),
    "key without address": (FIRST, "DTK = {", 'XXK = { use = "tac" }\nDTK = {', "XXK"),
    "rule for no key": (FIRST, 'messaging = ["STKSSSE"]', 'messaging = ["STKXX"]', "STKXX"),
    "rule for no pattern": (FIRST, 'messaging = ["STK*"]', 'messaging = ["XTK*"]', "XTK"),
    "permission of no key": (FIRST, 'permission = ["PUK"]', 'permission = ["PUX"]', "PUX"),
    "file of no key": (FIRST, 'write = "UKSSSE"', 'write = "UKSSSX"', "UKSSSX"),
    "prefix too long": (FIRST, '"84240000"', '"8424000004"', "prefix"),
    "prefix in lower case": (FIRST, '"04D6"', '"04d6"', "prefix"),
    "prefix of half a byte": (FIRST, '"04D6"', '"04D"', "prefix"),
    "prefix with a newline": (FIRST, '"04D6"', '"04D6\\n"', "prefix"),
    "AID not hex": (FIRST, '"D15600000500"', '"D1560000050G"', "hex"),
    "no such table": (FIRST, "key_addresses.csv", "addresses.csv", "addresses.csv"),
    "no such base": (SECOND, "generation-1.toml", "generation-0.toml", "generation-0.toml"),
    "base is a number": (SECOND, '"generation-1.toml"', "1", "extends"),
    "extends itself": (SECOND, '"generation-1.toml"', '"generation-2.toml"', "extends"),
    "extend each other": (
        FIRST,
        "generation = 1",
        'generation = 1\nextends = "generation-2.toml"',
        "",
    ),
    "address not hex": (ADDRESSES, "004C,", "00XC,", ""),
    "address twice": (ADDRESSES, "004D,", "004C,", "004C"),
    "address too long": (ADDRESSES, "004C,", "1004C,", ""),
    "length no number": (ADDRESSES, "0A,16,01,RKSSSE", "0A,x,01,RKSSSE", ""),
    "length unknown": (ADDRESSES, "0A,16,01,RKSSSE", "0A,24,01,RKSSSE", ""),
    "set no number": (ADDRESSES, "16,01,RKSSSE", "16,x,RKSSSE", ""),
    "set zero": (ADDRESSES, "16,01,RKSSSE", "16,00,RKSSSE", ""),
    "column missing": (ADDRESSES, "len_dec,", "length,", ""),
    "row too short": (ADDRESSES, "004C,07,0A,16,01,RKSSSE", "004C,07", ""),
    "file of no application": (
        FIRST,
        'application = "SSSE", write',
        'application = "DF99", write',
        "DF99",
    ),
    "two rules for one prefix": (FIRST, 'prefix = "04DC"', 'prefix = "04D6"', "04D6"),
    "key twice": (FIRST, "STKDF02 = {", 'STKDF01 = { use = "messaging" }\nSTKDF02 = {', "STKDF01"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_a_sentence_that_says_which_and_where(folder: Path, name: str) -> None:
    file, old, new, says = WRONG[name]
    replaced(folder, file, old, new)
    with pytest.raises(BadParameter) as refused:
        load_profiles(folder)
    sentence = str(refused.value)
    assert says in sentence
    assert any(profile in sentence for profile in (FIRST, SECOND, THIRD))
    assert "Error" not in sentence


def test_what_is_no_utf_8_is_a_sentence(folder: Path) -> None:
    (folder / FIRST).write_bytes(b"generation = 1 # \xff\n")
    with pytest.raises(BadParameter, match=FIRST):
        load_profiles(folder)


@pytest.mark.parametrize("name", [FIRST, ADDRESSES])
def test_a_file_that_is_missing_is_a_sentence(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadParameter, match=name):
        load_profiles(folder)


def test_a_folder_without_profiles_is_a_sentence(tmp_path: Path) -> None:
    # Without one, every card would be refused at run time as of an unknown generation.
    with pytest.raises(BadParameter, match="profile"):
        load_profiles(tmp_path)
    with pytest.raises(BadParameter, match="nowhere"):
        load_profiles(tmp_path / "nowhere")


# --- a province's variant is another file


def variants() -> Iterator[tuple[str, str, str]]:
    yield "card_diversifier", '"historical-8-13-zero"', "diversifier"
    yield "library_amounts", '["personal_account", "pooled_fund"]', "amounts"


def test_a_variant_says_only_what_differs(folder: Path) -> None:
    (folder / "province.toml").write_text(
        "\n".join(
            [
                "generation = 99",
                'specification = "3.0 of a province"',
                'extends = "generation-3.toml"',
                *(f"{name} = {value}" for name, value, _ in variants()),
                "[keys.SSSE]",
                'BK = { use = "external", card_key_id = 0x15 }',
            ]
        ),
        encoding="utf-8",
    )
    profiles = load_profiles(folder)
    variant = profiles[99]
    assert variant.card_diversifier is card_diversifier_old
    assert variant.library_amounts == ("personal_account", "pooled_fund")
    bk = variant.keys[variant.address_of("BK")]
    assert bk.card_key_id == 0x15
    # The rest is the base's, and the base is as it was.
    assert variant.keys.keys() == profiles[3].keys.keys()
    assert variant.commands == profiles[3].commands
    assert profiles[3].keys[bk.address].card_key_id == 0x05


def test_a_province_extends_the_table_of_addresses(folder: Path) -> None:
    with (folder / ADDRESSES).open("a", encoding="utf-8") as file:
        file.write("01F0,07,80,16,01,UKXDF01\n")
    # A key that no profile names is another generation's.
    assert 0x01F0 not in load_profiles(folder)[3].keys
    replaced(
        folder, THIRD, "[keys.DF05]", '[keys.DF01]\nUKXDF01 = { use = "external" }\n\n[keys.DF05]'
    )
    assert load_profiles(folder)[3].key(0x01F0, Use.EXTERNAL).name == "UKXDF01"
