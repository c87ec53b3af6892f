"""The parts of custody's commands: what is typed is read exactly, what is printed is read back, words say it all."""

from __future__ import annotations

import csv
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.cli.files import public_key, read_hidden, write_new
from keyd.cli.key_spec import (
    find_in_profile,
    header_of_wrapped,
    key_spec,
    load_table,
    read_time,
    spec_of_header,
)
from keyd.cli.keyboard import Hidden
from keyd.cli.papers import (
    Sheet,
    component_sheet,
    share_envelope,
    share_line,
    sheet_kcv,
    sheet_value,
)
from keyd.cli.words import describe, plain_action
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import Share, decode_share, encode_share
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody import actions as act
from keyd.custody.officers import OfficerRole
from keyd.custody.transport import wrap_for_transport
from keyd.errors import BadParameter, KeyFileUnusable
from keyd.keys.block import Domain, Export, KeyPlace, Mode, Tier, Use
from keyd.keys.roots import active_root
from keyd.registry.psam import PsamAct, PsamSpec
from keyd.registry.terminal import Form, Proof, TerminalSpec

if TYPE_CHECKING:
    from keyd.keys.block import KeyHeader

TABLE: Final = Path(__file__).parents[1] / "vectors" / "key_addresses.csv"

ID: Final = bytes(range(16))
TRANSPORT: Final = bytes(range(16, 32))
POINT: Final = Sm2PrivateKey.generate().public.encode()


def hidden(data: bytes) -> Hidden:
    """Return something as if it had been typed."""
    return Hidden(bytearray(data), 0, len(data))


# What is typed --------------------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.data())
def test_hex_is_read_however_it_is_grouped(key: bytes, data: st.DataObject) -> None:
    digits = key.hex() if data.draw(st.booleans()) else key.hex().upper()
    typed = "".join(data.draw(st.sampled_from(["", " ", "-", "\t"])) + digit for digit in digits)
    assert hidden(typed.encode()).key(16, "it") == key


@given(st.text(max_size=40))
def test_nothing_but_hex_of_that_length_is_a_key(text: str) -> None:
    typed = text.encode(errors="replace")
    digits = bytes(octet for octet in typed if octet not in b" -\t")
    if len(digits) == 16 and all(octet in b"0123456789abcdefABCDEF" for octet in digits):
        assert hidden(typed).key(8, "it").hex() == digits.decode().lower()
        return
    with pytest.raises(BadParameter) as refusal:
        hidden(typed).key(8, "it")
    # The sentence is always the same: it repeats nothing of what was typed.
    assert str(refusal.value) == "it is not 16 hex digits"


def test_what_was_typed_is_wiped() -> None:
    octets = bytearray(b"secret")
    with Hidden(octets, 0, 6) as typed:
        assert typed.text() == "secret"
        assert "secret" not in repr(typed)
    assert octets == bytes(6)


# What is printed ------------------------------------------------------------------------------------------


def test_a_share_is_read_back_from_its_envelope() -> None:
    share = Share(b"\1\2\3\4", 7, 2, 3, secrets.token_bytes(16))
    paper = share_envelope(share, 5, secrets.token_bytes(16), "LOCAL/wang")
    assert share_line(paper) == encode_share(share)
    assert decode_share(share_line(paper)).value == share.value
    # Who wrote down nothing but the share need not write an envelope.
    assert share_line(f"\n{encode_share(share)}\n") == encode_share(share)
    for words in ("2 / 5", "any 3 of 5", "封印 seal            7", "LOCAL/wang"):
        assert words in paper
    assert max(map(len, paper.splitlines())) <= 100


def test_a_component_is_read_back_from_its_sheet(tmp_path: Path) -> None:
    component = secrets.token_bytes(16)
    sheet = Sheet("KTK-1", Algorithm.SM4, 1, 2, "SOCIAL/chen", b"\x0a\x0b\x0c", "0011223344556677")
    paper = component_sheet(sheet, component)
    write_new(tmp_path / "sheet", paper.encode())
    with read_hidden(tmp_path / "sheet") as read:
        assert sheet_value(read, 16) == component
        assert sheet_kcv(read) == b"\x0a\x0b\x0c"
        with pytest.raises(BadParameter, match="16 hex digits"):
            sheet_value(read, 8)
    with pytest.raises(BadParameter, match="no line"):
        sheet_value(hidden(b"something else"), 16)
    assert max(map(len, paper.splitlines())) <= 100


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    write_new(tmp_path / "file", b"precious")
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        write_new(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_public_key_is_hex_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(POINT.hex() + "\n")
    assert public_key(POINT.hex()).encode() == POINT
    assert public_key("key.pub", tmp_path).encode() == POINT
    (tmp_path / "key.pub").write_text("nonsense")
    with pytest.raises(KeyFileUnusable, match="PEM"):
        public_key(str(tmp_path / "key.pub"))
    for wrong in ("", "04" * 65, "nowhere.pub"):
        with pytest.raises((BadParameter, KeyFileUnusable)):
            public_key(wrong, tmp_path)


# What a key is to be --------------------------------------------------------------------------------------


def test_the_profile_fills_in_what_the_table_says() -> None:
    with TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    specs = {spec.addresses[0]: spec for spec in key_spec(tier=Tier.NATIONAL).all_specs()}
    assert len(specs) == len(rows)
    for row in rows:
        spec = specs[int(row["address_hex"], 16)]
        assert (spec.name, spec.set) == (row["name"], int(row["set"]))
        assert spec.psam_type == int(row["psam_type_hex"], 16)
        assert spec.psam_id == int(row["psam_id_or_version_hex"], 16)
        assert (spec.levels, spec.tier, spec.algorithm) == (3, Tier.NATIONAL, Algorithm.SM4)


def test_a_key_of_the_profile_is_named_by_name_set_or_address() -> None:
    profile, _psams = load_table(None)
    assert find_in_profile(profile, "IRK").address == 0x0170
    assert find_in_profile(profile, "irk:3").address == 0x0172
    assert find_in_profile(profile, "0199").name == "DPK"
    for wrong, sentence in {
        "DPK": "017F, 0199, 019C",
        "IRK:4": "a set is 1, 2 or 3",
        "NONE": "no key NONE",
        "FFFF": "no key address FFFF",
    }.items():
        with pytest.raises(BadParameter, match=sentence):
            find_in_profile(profile, wrong)


def test_options_that_contradict_or_miss_something_are_usage() -> None:
    for options in (
        key_spec(),
        key_spec(from_profile="IRK"),
        key_spec(from_profile="IRK", tier=Tier.CITY, name="other"),
        key_spec(name="KTK-1", tier=Tier.CITY),
    ):
        with pytest.raises(typer.BadParameter):
            options.spec()
    with pytest.raises(typer.BadParameter, match="four hex digits"):
        key_spec(address=["170"])


def a_header() -> KeyHeader:
    """Return a root's header with rights that are narrower than the widest."""
    place = KeyPlace(0x0170, "IRK", 1, Algorithm.SM4, Use.INTERNAL)
    key = SecretKey.generate(Algorithm.SM4)
    header = active_root(place, 2, key, ID, "test")
    return msgspec.structs.replace(
        header, modes=(Mode.VERIFY,), valid_until=2_000_000_000, export=Export.CHILD
    )


@pytest.mark.parametrize("wrapped_as", act.TransportFormat)
def test_a_wrapped_key_says_what_it_is(wrapped_as: act.TransportFormat) -> None:
    transport = SecretKey.generate(Algorithm.SM4)
    key = SecretKey.generate(Algorithm.SM4)
    header = msgspec.structs.replace(a_header(), kcv=key.kcv())
    wrapped = wrap_for_transport(transport, wrapped_as, header, key, secrets.token_bytes)
    read = header_of_wrapped(wrapped)
    assert read == header
    spec = spec_of_header(read, key_spec())
    assert (spec.addresses, spec.levels, spec.modes) == ((0x0170,), 2, (Mode.VERIFY,))
    assert (spec.valid_until, spec.export) == (2_000_000_000, Export.CHILD)
    narrower = spec_of_header(read, key_spec(export=Export.NEVER, ceiling=5))
    assert (narrower.export, narrower.ceiling) == (Export.NEVER, 5)


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_wrapped_key_by_accident(data: bytes) -> None:
    # A header of ours has some twenty fields that fit each other; nothing this random has.
    with pytest.raises(BadParameter, match="no wrapped key"):
        header_of_wrapped(data)


def test_times_are_utc_unless_they_say_otherwise() -> None:
    assert read_time("2027-01-01", "--x") == 1_798_761_600
    assert read_time("2027-01-01T08:00+08:00", "--x") == 1_798_761_600
    for wrong in ("tomorrow", "1969-12-31"):
        with pytest.raises(typer.BadParameter):
            read_time(wrong, "--x")


# In words -------------------------------------------------------------------------------------------------

SPEC: Final = act.KeySpec(
    tier=Tier.PROVINCIAL,
    name="N" * 32,
    algorithm=Algorithm.SM4,
    use=Use.STARTING_DAY,
    addresses=tuple(range(0xFFF0, 0x10000)),
    levels=2,
    set=3,
    modes=(Mode.VERIFY,),
    psam_type=7,
    psam_id=0x4C,
    valid_from=1,
    valid_until=2_000_000_000,
    ceiling=10**9,
    warn_at=10**8,
    export=Export.CHILD,
)
TERMINAL: Final = TerminalSpec(
    *(
        "DESK-1",
        "第一社保所" + "长" * 59,
        "110101",
        ("counter", *(f"r{n}" + "x" * 29 for n in range(7))),
    ),
    (Proof.KEY_BY_PSAM,),
    Form.SELF_SERVICE,
    vendor="商" * 64,
    model="HD-100",
    psam_number=bytes.fromhex("110101000001"),
    generations=(3,),
    networks=tuple(f"10.1.{n}.0/24" for n in range(16)),
    hours=("Mon-Fri 08:00-17:30",),
    valid_until=2_000_000_000,
    public_key=POINT,
)
PSAM: Final = PsamSpec(
    bytes.fromhex("510100000428"),
    bytes.fromhex("51010020260000000428"),
    "social-security",
    CardAlgorithm.DES,
    tuple(f"K{n}*" for n in range(32)),
    valid_until=2_000_000_000,
)
KCV: Final = b"\x12\x34\x56"
BLOCK: Final = act.TransportFormat.BLOCK

# Of each action one, and what must be said of it before anybody approves.
ACTIONS: Final[dict[act.Action, tuple[str, ...]]] = {
    act.GenerateKey(SPEC): (
        "at random",
        "FFFF",
        "set 3",
        "1000000000 times",
        "07, id 4C",
        "verify only",
    ),
    act.ImportKey(SPEC, 3, KCV): ("3 components", "123456", "only as what is diversified"),
    act.ImportKey(SPEC, 3): ("not announced",),
    act.GiveComponents(SPEC, ("chen", "zhou")): ("chen, zhou",),
    act.ImportWrapped(SPEC, TRANSPORT, BLOCK, b"x" * 100, KCV): (
        "keyd-block",
        "123456",
        TRANSPORT.hex(),
    ),
    act.ImportEnvelope(SPEC, b"x" * 113, KCV): ("envelope", "123456"),
    act.ExportKey(ID, TRANSPORT, BLOCK): ("Give a key out", ID.hex(), TRANSPORT.hex()),
    act.ExportChild(ID, "510100", TRANSPORT, BLOCK): ("region 510100", ID.hex()),
    act.Activate(ID): ("Activate", ID.hex()),
    act.Deactivate(ID): ("Deactivate", ID.hex()),
    act.Compromise(ID): ("no way back", ID.hex()),
    act.Destroy(ID, 30): ("30 days", ID.hex()),
    act.Destroy(ID, 0): ("CANNOT BE BROUGHT BACK",),
    act.Restore(ID): ("back", ID.hex()),
    act.Permit(ID, valid_until=0, ceiling=9, export=Export.WRAPPED): (
        "ceiling",
        "9",
        "wrapped",
        "-",
    ),
    act.EnrolOfficer("wu", "吴", (OfficerRole.AUDITOR,), POINT): ("wu", "auditor", "fingerprint"),
    act.RetireOfficer("wu"): ("wu", "any more"),
    act.Rekey(2, ("wang", "zhao")): ("2, of which any 2", "wang, zhao"),
    act.EnrolTerminals((TERMINAL,)): (
        *("DESK-1", "第一社保所", "110101", "counter", "key-by-psam", "self-service", "HD-100"),
        *("110101000001", "3.0", "10.1.2.0/24", "Mon-Fri 08:00-17:30", "2033-05-18", "fingerprint"),
        "wait to be activated",
    ),
    act.EnrolTerminals((TERMINAL,), activate=True): ("at once",),
    act.ActivateTerminals(("DESK-1", "DESK-2")): ("2 terminals", "DESK-1, DESK-2"),
    act.GiveEnrolmentCodes(("DESK-1",), "wang", 7): ("DESK-1", "wang", "7 days"),
    act.GiveTerminalKeys(("DESK-1",), "wang"): ("DESK-1", "wang", "can pass for it"),
    act.MakeAuthority("guomi", "某市 CA", 10): ("guomi", "某市 CA", "10 years"),
    act.IssuePsams((PSAM, replace(PSAM, number=b"\x51\x01\x00\x00\x04\x29"))): (
        *("2 PSAMs", "发卡", "510100000428", "51010020260000000428", "510100000429", "K31*"),
        *("social-security", "DES", "2033-05-18", "before it is assigned"),
    ),
    act.ChangePsams(("510100000428",), PsamAct.ASSIGN, "DESK-1"): (
        *("领用", "510100000428", "terminal DESK-1 alone"),
    ),
    act.ChangePsams(("510100000428",), PsamAct.ASSIGN): ("领用", "the shared set"),
    act.ChangePsams(("510100000428",), PsamAct.RETURN, reason="柜台"): ("退回", "柜台"),
    act.ChangePsams(("510100000428",), PsamAct.RETIRE): ("注销", "no way back"),
    act.ChangePsams(("510100000428",), PsamAct.LOSE): ("挂失",),
}


def test_every_action_is_said_in_words() -> None:
    assert {type(action) for action in ACTIONS} == set(get_args(act.Action))
    for action, words in ACTIONS.items():
        lines = describe(action)
        text = "\n".join(lines)
        assert max(map(len, lines)) <= 100, text
        for word in words:
            assert word in text, (word, text)


def test_words_know_a_key_by_its_label_and_what_it_was_before() -> None:
    header = {
        "domain": Domain.SOCIAL.value,
        "addresses": "0170",
        "algorithm": "SM4",
        "version": "2",
        "name": "IRK",
        "ceiling": "7",
    }
    text = "\n".join(describe(act.Permit(ID, ceiling=9), {ID: header}))
    assert "SOCIAL/0170/SM4/v2/00010203, IRK" in text
    assert "9 (now 7)" in text


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
def test_an_action_is_json_with_hex(action: act.Action) -> None:
    plain: dict[str, Any] = plain_action(action)
    text = msgspec.json.encode(plain).decode()
    for psam in plain.get("psams", ()):
        assert (psam["serial"], psam["environment"]) == ("51010020260000000428", "DES")
    for terminal in plain.get("terminals", ()):
        assert (terminal["psam_number"], terminal["public_key"]) == (
            "110101000001",
            POINT.hex().upper(),
        )
    for value in (ID.hex(), TRANSPORT.hex(), KCV.hex()):
        is_in_it = bytes.fromhex(value) in [
            getattr(action, name) for name in type(action).__struct_fields__
        ]
        assert (value in text) is is_in_it
    key = plain.get("key")
    assert key is None or key["addresses"][-1] == "FFFF"
