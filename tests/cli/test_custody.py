"""Custody from the command line, against a real daemon: two people or nothing, and no secret where nobody asked."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Final

import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.shares import decode_share
from tests.cli.conftest import INIT, City, found

KTK: Final = ("--use", "transport", "--algorithm", "SM4", "--tier", "city")
COMPONENT: Final = "00112233445566778899AABBCCDDEEFF"


def ktk(city: City, name: str, components: int = 2) -> str:
    """Propose a key-transport key of components; return the proposal."""
    return str(
        city.answer(
            "propose", "import-components", "--name", name, *KTK,
            "--components", str(components), who="qian",
        )["proposal_id"]
    )  # fmt: skip


def component(city: City, number: int, file: str) -> str:
    """Draw a component; return its check value."""
    return str(
        city.answer(
            "component", "new", "--algorithm", "SM4", "--number", str(number), "--of", "2",
            "--name", "KTK", "--to", file,
        )["kcv"]
    )  # fmt: skip


# Two people -----------------------------------------------------------------------------------------------


def test_one_proposes_and_another_approves(city: City) -> None:
    proposal = city.answer(
        "propose", "generate", "--from-profile", "IRK:2", "--tier", "city", who="qian"
    )["proposal_id"]
    assert "OWN_PROPOSAL" in city.refused("approve", proposal, who="qian")
    assert "ROLE_MISSING" in city.refused("approve", proposal, who="chen")
    assert "PROPOSAL_NOT_FOUND" in city.refused("approve", proposal, who="li")
    done = city.answer("approve", proposal, who="sun")
    assert (done["state"], done["decided_by"]) == ("done", "sun")
    assert "PROPOSAL_CLOSED" in city.refused("approve", proposal, who="sun")
    (key,) = [k for k in city.answer("key", "list", who="chen") if k["name"] == "IRK"]
    assert key["key_id"] == done["result"]["key_id"]
    assert (key["addresses"], key["set"], key["state"]) == ("0171", "2", "pre-active")
    assert key["label"] in city.said("key", "show", key["key_id"][:8], who="sun")


def test_a_proposal_is_named_whole(city: City) -> None:
    proposal = ktk(city, "KTK-9")
    status, _output, error = city.run("approve", proposal[:8], who="sun")
    assert status == 2
    assert "16 hex digits" in error
    assert city.answer("reject", proposal, who="sun")["state"] == "rejected"


def test_the_approver_reads_first_and_says_yes(city: City) -> None:
    proposal = ktk(city, "KTK-8")
    passphrase = ("key: ", "a synthetic passphrase")
    status, screen = city.typed(["approve", proposal], [passphrase, ("yes: ", "no")], "sun")
    assert status == 1
    assert "Take in a key as 2 components" in screen
    assert "synthetic" not in screen
    assert city.answer("proposal", "show", proposal, who="sun")["state"] == "open"


def test_every_key_of_the_profile_is_proposed(city: City) -> None:
    made = city.answer("propose", "generate", "--all-from-profile", "--tier", "city", who="qian")
    keys = newest(load_profiles()).keys
    proposed = [proposal["action"]["key"] for proposal in made]
    assert [key["addresses"] for key in proposed] == [[f"{a:04X}"] for a in sorted(keys)]
    assert {key["levels"] for key in proposed} == {1}
    rejected = city.answer("reject", *(proposal["proposal_id"] for proposal in made), who="qian")
    assert {proposal["state"] for proposal in rejected} == {"rejected"}


def test_an_officer_is_enrolled_by_two(city: City) -> None:
    city.said("officer", "new", "wu.key", "--passphrase-file", "passphrase")
    enrol = ["officer", "enrol", "wu", "--name", "吴", "--role", "auditor", "--public-key"]
    assert "BAD_PARAMETER" in city.refused(*enrol, "li.key.pub", who="qian")
    city.decided(*enrol, "wu.key.pub")
    listed = {officer["code"]: officer for officer in city.answer("officer", "list", who="qian")}
    shown = city.answer("officer", "show", "wu.key.pub")
    assert listed["wu"]["fingerprint"] == shown["fingerprint"]
    city.decided("officer", "retire", "wu")
    assert "RETIRED" in city.said("officer", "list", who="qian")


# Components -----------------------------------------------------------------------------------------------


def test_a_key_enters_in_components_and_wraps_another(city: City) -> None:
    component(city, 1, "c1")
    component(city, 2, "c2")
    proposal = ktk(city, "KTK-1")
    city.said("component", "enter", proposal, "1", "--sheet", "c1", who="chen")
    assert "COMPONENT_REFUSED" in city.refused(
        "component", "enter", proposal, "2", "--sheet", "c2", who="chen"
    )
    assert "still missing" in city.refused("approve", proposal, who="sun")
    entered = city.answer("component", "enter", proposal, "2", "--sheet", "c2", who="zhou")
    assert entered["components"] == {"1": "chen", "2": "zhou"}
    transport = city.answer("approve", proposal, who="sun")["result"]["key_id"]
    city.decided("propose", "activate", transport)

    spec = ["--from-profile", "RKSSSE", "--tier", "city", "--export", "wrapped"]
    made = city.decided("propose", "generate", *spec)["result"]
    export = city.answer(
        "propose", "export", made["key_id"], "--transport-key", transport[:8], who="qian"
    )["proposal_id"]
    city.said("approve", export, "--to", "wrapped", who="sun")
    # Approved once, it can be written again.
    city.said("proposal", "show", export, "--to", "again", who="qian")
    assert (city.folder / "again").read_bytes() == (city.folder / "wrapped").read_bytes()
    imported = city.answer(
        "propose", "import-wrapped", "wrapped", "--transport-key", transport, who="qian"
    )
    assert imported["action"]["key"]["addresses"] == ["004C"]
    assert imported["action"]["kcv"] == made["kcv"]
    assert "same key" in city.refused("approve", imported["proposal_id"], who="sun")
    city.answer("reject", imported["proposal_id"], who="sun")


def test_a_sheet_that_was_changed_is_not_sent(city: City) -> None:
    component(city, 1, "c3")
    sheet = (city.folder / "c3").read_text()
    value = re.search(r"分量值 value +(\S)", sheet)
    assert value is not None
    at = value.start(1)
    (city.folder / "c3").write_text(
        sheet[:at] + ("0" if sheet[at] != "0" else "1") + sheet[at + 1 :]
    )
    proposal = ktk(city, "KTK-2")
    assert "check value on its sheet" in city.refused(
        "component", "enter", proposal, "1", "--sheet", "c3", who="chen"
    )
    (city.folder / "c3").chmod(0o644)
    assert "chmod 600" in city.refused(
        "component", "enter", proposal, "1", "--sheet", "c3", who="chen"
    )
    assert city.answer("proposal", "show", proposal, who="sun")["components"] == {}


def test_a_component_is_typed_twice_and_never_shown(city: City) -> None:
    proposal = ktk(city, "KTK-3")
    start = [("key: ", "a synthetic passphrase"), ("digits: ", COMPONENT)]
    enter = ["component", "enter", proposal, "1"]
    status, screen = city.typed(enter, [*start, ("more: ", COMPONENT[:-1] + "E")], "chen")
    assert (status, "differs" in screen) == (1, True)
    status, screen = city.typed(enter, [*start, ("more: ", COMPONENT), ("yes: ", "no")], "chen")
    assert status == 1
    assert city.answer("proposal", "show", proposal, who="sun")["components"] == {}
    grouped = " ".join(COMPONENT[at : at + 4] for at in range(0, 32, 4)).lower()
    status, screen = city.typed(enter, [*start, ("more: ", grouped), ("yes: ", "yes")], "chen")
    assert status == 0
    assert COMPONENT not in screen
    assert grouped not in screen
    assert city.answer("proposal", "show", proposal, who="sun")["components"] == {"1": "chen"}


def test_components_go_to_a_private_file_or_the_alternate_screen_only(city: City) -> None:
    custodians = ["--custodian", "chen", "--custodian", "zhou"]
    given = city.decided("propose", "give-components", "--name", "KTK-4", *KTK, *custodians)
    take = ["component", "take", given["proposal_id"]]
    for arguments in (take, [*take, "--json"]):
        status, output, error = city.run(*arguments, who="chen")
        assert (status, output) == (2, "")
        assert "--to FILE" in error
    city.said(*take, "--to", "g1", who="chen")
    assert stat.S_IMODE((city.folder / "g1").stat().st_mode) == 0o600
    assert "never overwritten" in city.refused(*take, "--to", "g1", who="chen")
    passphrase = ("key: ", "a synthetic passphrase")
    status, screen = city.typed(take, [passphrase, ("cleared. ", "")], "chen")
    assert status == 0
    (value,) = re.findall(r"分量值 value +([0-9A-F ]{39})", (city.folder / "g1").read_text())
    before, _, rest = screen.partition("\x1b[?1049h")
    shown, _, after = rest.partition("\x1b[?1049l")
    assert value in shown
    assert value not in before + after
    assert shown.endswith("\x1b[2J\x1b[3J\x1b[H")
    assert "nothing for sun" in city.refused(*take, "--to", "g9", who="sun")


# Shares and backups ---------------------------------------------------------------------------------------


def test_founding_overwrites_nothing(city: City, tmp_path: Path) -> None:
    init = [
        *("init", "--config", "keyd.toml", "--tier", "city", "--officers", "officers.toml"),
        *("--threshold", "2", "--shares", "3"),
    ]
    assert "STORE_UNAVAILABLE" in city.refused(*init, "--shares-to", str(tmp_path / "s"))
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())
    status, _output, error = city.run(*init)
    assert status == 2
    assert "--shares-to" in error
    share = city.folder / "shares" / "share-1.txt"
    assert stat.S_IMODE(share.stat().st_mode) == 0o600


def test_a_backup_is_whole_or_not_there(city: City) -> None:
    assert "DOMAIN_CROSSED" in city.refused("backup", "b0", who="qian")
    assert not (city.folder / "b0").exists()
    made = city.answer("backup", "b1", who="li")
    assert stat.S_IMODE((city.folder / "b1").stat().st_mode) == 0o600
    assert "never overwritten" in city.refused("backup", "b1", who="li")
    own = made["public_key"]
    assert city.answer("verify-backup", "b1", "--public-key", own)["keys"] == made["keys"]
    assert "another keyd's" in city.refused("verify-backup", "b1", "--public-key", "li.key.pub")
    data = (city.folder / "b1").read_bytes()
    (city.folder / "b2").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "KEY_FILE_UNUSABLE" in city.refused("verify-backup", "b2")
    assert "STORE_UNAVAILABLE" in city.refused("restore", "b1", "--config", "keyd.toml")


def test_new_shares_take_effect_when_all_are_confirmed(city: City) -> None:
    proposal = city.answer(
        "rekey", "--threshold", "2", "--custodian", "wang", "--custodian", "zhao", who="li"
    )["proposal_id"]
    assert city.answer("approve", proposal, who="wang")["state"] == "staged"
    for who in ("wang", "zhao"):
        city.said("share", "take", proposal, "--to", f"new-{who}", who=who)
    confirm = ["share", "confirm", proposal, "--share-file"]
    assert "SHARE_REFUSED" in city.refused(*confirm, "new-wang", who="zhao")
    assert city.answer(*confirm, "new-wang", who="wang")["waiting_for"] == ["zhao"]
    assert city.answer(*confirm, "new-zhao", who="zhao")["state"] == "done"

    assert city.answer("seal", "--reason", "drill", who="li") == {"sealed": True}
    assert "SEALED" in city.refused("key", "list", who="qian")
    old = city.refused("unseal", "--share-file", "shares/share-1.txt")
    assert old.startswith("SHARE_REFUSED: shares/share-1.txt: the share is of seal 1")
    new = [
        found[0]
        for who in ("wang", "zhao")
        if (found := re.search(r"KEYD-SHARE-1-\S+", (city.folder / f"new-{who}").read_text()))
    ]
    prompts = [
        (r"ends\): ", answer) for answer in ("nonsense", new[0], new[1].lower().replace("-", " "))
    ]
    status, screen = city.typed(["unseal"], prompts)
    assert status == 0
    assert "keyd: SHARE_REFUSED: the prefix" in screen
    assert "1 of 2 shares are in" in screen
    assert "keyd is unsealed." in screen
    assert not any(share[13:] in screen for share in new)
    assert "NOT_SEALED" in city.refused("unseal")


@pytest.mark.parametrize("arguments", [("propose", "activate", "zz"), ("key", "show", "ab")])
def test_a_key_that_is_none_is_a_sentence(city: City, arguments: tuple[str, ...]) -> None:
    assert "BAD_PARAMETER" in city.refused(*arguments, who="qian")


def test_shares_are_shown_one_after_another_and_nothing_is_founded_before(tmp_path: Path) -> None:
    city = found(tmp_path)
    init = [word for word in INIT if word not in ("--shares-to", "shares")]
    turn = (r"Enter\. ", "")
    shown = ("cleared. ", "")
    # Broken off after the first share: the next founding begins with an empty store.
    status, screen = city.typed(init, [turn, shown, (r"Enter\. ", "\x03")])
    assert status != 0
    assert "Traceback" not in screen
    status, screen = city.typed(init, [turn, shown] * 3)
    assert status == 0
    shares = re.findall(r"KEYD-SHARE-1-\S+", screen)
    assert len({decode_share(share).number for share in shares}) == 3
    parts = re.split(r"\x1b\[\?1049[hl]", screen)
    assert not any("KEYD-SHARE" in outside for outside in parts[::2])
    # A store is founded once.
    assert "STORE_UNAVAILABLE" in city.refused(*INIT)
