"""A profile says what a PSAM is; a province's variant is a file; a wrong profile is a sentence."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.errors import BadParameter
from keyd.iso7816 import Aid, Atr
from keyd.psam import (
    Applet,
    Counters,
    KeySet,
    Psam,
    PsamIdentity,
    TransientMemory,
    load_psam_profiles,
)
from tests.psam.bench import PROFILES, SERIAL, TERMINAL, key_set, random_source, synthetic_keys
from tests.psam.commands import L1, L2, L3, apdu
from tests.psam.naive import diversify, session

if TYPE_CHECKING:
    from keyd.psam import PsamProfile

SHIPPED: Final = Path(str(resources.files("keyd.psam") / "profiles"))

PROVINCE: Final = """
name = "province"
extends = "social-security.toml"
channels = 1
provinces = { default = "SM4" }

[environments.SM4]
file_id = "DDF3"

[kinds]
0D = { name = "own", operations = ["encrypt"] }

[key_files]
13 = { environment = "18-1F", application = "80-CF" }

[cipher]
mac = "block"

[purchase]
wrong_mac2 = "63CF"
mac2_tries = 1
no_such_key = "6A88"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "profiles"))


@pytest.fixture
def province(folder: Path) -> PsamProfile:
    (folder / "province.toml").write_text(PROVINCE, encoding="utf-8")
    return load_psam_profiles(folder)["province"]


def test_the_profiles_that_keyd_ships() -> None:
    assert PROFILES.keys() == {"social-security", "pboc"}
    for profile in PROFILES.values():
        assert profile.application_aid == Aid.PSAM_DF01
        assert Atr.parse_untrusted(profile.atr).raw == profile.atr
        assert set(profile.environments) == set(CardAlgorithm)
        assert profile.environments[CardAlgorithm.DES].file_id == 0x3F00
        assert profile.environments[CardAlgorithm.DES].aid == Aid.SSSE
        assert profile.environments[CardAlgorithm.DES].key_algorithms == {
            0: Algorithm.TDES,
            1: Algorithm.DES,
        }
        assert profile.environments[CardAlgorithm.SM4].key_algorithms == {3: Algorithm.SM4}
        assert profile.key_files == {0x11, 0x12, 0x13}
        assert profile.files.keys() == {0x01, 0x15, 0x16, 0x19, 0x1A, 0x1B, 0x1C}


@pytest.mark.parametrize("name", ["social-security", "pboc"])
def test_every_key_of_the_address_table_fits_the_profile(name: str) -> None:
    # What a PSAM calls a key is in two files: the table of addresses and the profile.
    profile = PROFILES[name]
    for key in newest(load_profiles()).keys.values():
        files = [f for f in profile.key_files if profile.holds(f, key.psam_type, key.psam_id)]
        assert len(files) == (3 if profile.kinds[key.psam_type].is_by_version else 1), key.name


def applet_of(profile: PsamProfile) -> Applet:
    identity = PsamIdentity(SERIAL, TERMINAL, environment=CardAlgorithm.SM4)
    counters = Counters(TransientMemory(), profile.purchase.numbers_reserved)
    return Applet(Psam(profile, identity, key_set(synthetic_keys()), counters, random_source()))


def test_a_provinces_variant_is_a_file(province: PsamProfile) -> None:
    applet = applet_of(province)

    def ask(command: str) -> str:
        return applet.transmit(bytes.fromhex(command)).hex().upper()

    assert ask("00A4000002DDF3")[:2] == "61"
    assert ask("00A4000002DDF2") == "6A82"
    assert ask("0070000001") == "6A81"
    assert ask("00A4040006D15600000590")[:2] == "61"
    assert ask("BFEC00000151") == "9000"
    # DELIVERY works with SM4 still, and a MAC comes as its whole block.
    factors = (L3 + L2 + L1.ljust(16, b"\0")).hex()
    assert ask("BFDE481220" + factors) == "9000"
    assert len(ask("80FA050020" + "00" * 32 + "00")) == 2 * 18
    terms = "C1C2C3C40005" + "10" * 12 + "0120261123120000"
    assert ask("8070010034" + terms + "0203" + "00" * 24) == "6A88"
    assert ask("8070010034" + terms + "0103" + "00" * 24)[:2] == "61"
    assert ask("807200000400000000") == "63CF"
    assert ask("8070010034" + terms + "0103" + "00" * 24) == "9303"


def test_the_generic_dialect_keeps_the_diversified_key() -> None:
    applet = applet_of(PROFILES["pboc"])
    applet.transmit(bytes.fromhex("00A4040006D15600000590"))
    assert applet.transmit(apdu("801A6708", L3 + L2 + L1)).hex() == "9000"
    key = synthetic_keys()[7, 0x08, "SM4"][1]
    for factor in (L1, L2, L3):
        key = diversify("SM4", key, factor)
    for factor in (L1, L2):
        # The session key that the terminal would derive is a block encrypted.
        derived = applet.transmit(apdu("80FA0000", factor.ljust(16, b"\0"), 16))
        assert derived[-2:] == b"\x90\x00"
        assert derived[:-2] == session("SM4", key, factor)


WRONG: Final = {
    'atr = "3B01"': "length of the ATR",
    "channels = 5": "channels",
    "delivery.more = 1": "unknown field",
    'environments.DES.aid = "D15600000590"': "AID D15600000590 is there twice",
    'environments.DES.file_id = "DF01"': "file id DF01 is there twice",
    'environments.DES.key_algorithms = { "03" = "SM4" }': "environment DES",
    'environments.SM4.key_algorithms = { "03" = "AES" }': "environment SM4",
    'environments.AES.aid = "00"': "environments",
    'provinces.1A = "DES"': "'1A' is no province",
    'provinces.default = "AES"': "AES",
    'files.DF01 = { under = "environment", content = "public" }': "content public is there twice",
    'kinds.00 = { name = "x", operations = ["mac"], is_own = true }': "type 00 is the PSAM's own",
    'kinds.20 = { name = "x" }': "five bits",
    'kinds.06 = { name = "x", operations = ["sign"] }': "sign",
    'key_files.11 = { environment = "08", application = "20-3F" }': "environment",
    "purchase.amounts = 0": "amounts",
    'cipher.mac = "8 bytes"': "8 bytes",
    'extends = "nothing.toml"': "No such file",
    'extends = "wrong.toml"': "wrong.toml extends wrong.toml",
    "extends = 1": "extends names a file",
    "name =": "Invalid value",
}


@pytest.mark.parametrize("line", list(WRONG))
def test_a_wrong_profile_is_a_sentence_that_says_where(folder: Path, line: str) -> None:
    head = "" if line.startswith("name") else 'name = "wrong"\n'
    if not line.startswith("extends"):
        head += 'extends = "social-security.toml"\n'
    (folder / "wrong.toml").write_text(head + line + "\n", encoding="utf-8")
    with pytest.raises(BadParameter) as refused:
        load_psam_profiles(folder)
    assert refused.value.detail.startswith("wrong.toml: ")
    assert WRONG[line] in refused.value.detail


def test_provinces_have_a_default(folder: Path) -> None:
    text = (folder / "social-security.toml").read_text(encoding="utf-8")
    (folder / "social-security.toml").write_text(
        text.replace('default = "DES"\n', ""), encoding="utf-8"
    )
    with pytest.raises(BadParameter, match="provinces say no default"):
        load_psam_profiles(folder)


def test_two_profiles_do_not_have_one_name(folder: Path) -> None:
    (folder / "two.toml").write_text('name = "pboc"\nextends = "pboc.toml"\n', encoding="utf-8")
    with pytest.raises(BadParameter, match=r"\Atwo.toml: profile pboc is there twice\Z"):
        load_psam_profiles(folder)


def test_a_folder_without_profiles_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="there is no profile"):
        load_psam_profiles(tmp_path)
    with pytest.raises(BadParameter, match="cannot be read"):
        load_psam_profiles(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"serial": bytes(9)}, "20 digits"),
        ({"serial": b"\xaa" * 10}, "20 digits"),
        ({"terminal": bytes(7)}, "12 digits"),
        ({"terminal": b"\xf1" * 6}, "12 digits"),
        ({"issuer": 256}, "one byte"),
        ({"fci": b""}, "2 bytes"),
    ],
)
def test_an_identity_is_what_its_files_can_hold(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PsamIdentity(**({"serial": SERIAL, "terminal": TERMINAL} | change))  # type: ignore[arg-type]


def test_a_psam_wakes_up_in_an_environment_that_it_has() -> None:
    profile = PROFILES["social-security"]
    narrow = type(profile).__new__(type(profile))
    narrow.__dict__.update(profile.__dict__)
    narrow.__dict__["environments"] = {CardAlgorithm.SM4: profile.environments[CardAlgorithm.SM4]}
    counters = Counters(TransientMemory(), 1)
    with pytest.raises(ValueError, match="has no DES environment"):
        Psam(narrow, PsamIdentity(SERIAL, TERMINAL), KeySet(), counters, random_source())
    identity = PsamIdentity(SERIAL, TERMINAL, environment=CardAlgorithm.SM4)
    applet = Applet(Psam(narrow, identity, KeySet(), counters, random_source()))
    assert applet.transmit(bytes.fromhex("BFEC00000151")).hex() == "6a81"


def test_files_hold_what_the_identity_says() -> None:
    identity = PsamIdentity(
        SERIAL,
        TERMINAL,
        issuer=0x51,
        version=2,
        card_type=3,
        fci=b"\x04\x05",
        national=b"N" * 25,
        provincial=b"P",
        environment=CardAlgorithm.SM4,
    )
    profile = PROFILES["social-security"]
    counters = Counters(TransientMemory(), 1)
    applet = Applet(Psam(profile, identity, KeySet(), counters, random_source()))

    def read(short_id: int) -> str:
        return applet.transmit(bytes((0, 0xB0, 0x80 | short_id, 0, 0))).hex().upper()

    assert read(0x15) == "51" + SERIAL.hex() + "0203" + "0405" + "9000"
    assert read(0x16) == TERMINAL.hex() + "9000"
    assert read(0x01) == "61084F06D156000005909000"
    assert read(0x1A) == "6A82"
    applet.transmit(bytes.fromhex("00A4040006D15600000590"))
    assert read(0x1A) == (b"N" * 25).hex().upper() + "9000"
    assert read(0x1B) == (b"P" + bytes(24)).hex().upper() + "9000"
    assert read(0x1C) == bytes(25).hex().upper() + "9000"
    assert read(0x19) == "000000019000"
