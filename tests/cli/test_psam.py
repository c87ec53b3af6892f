"""PSAMs from the command line against a real daemon: two officers issue and assign, one reports a loss."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from typer.testing import CliRunner

from keyd.cli.main import app
from keyd.cli.papers import share_line
from keyd.cli.psam import MAX_LIST_BYTES, MAX_ROWS, Kind, read_list
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.shares import decode_share
from keyd.custody.catalogue import shipped_catalogue
from keyd.custody.vault import Vault
from keyd.errors import BadParameter
from keyd.lending.issued import Player, playable
from keyd.psam import Applet
from keyd.store.database import Store
from tests.custody.buyers import BUY, GET_RESPONSE, SELECT, synthetic_ring

if TYPE_CHECKING:
    from tests.cli.conftest import City

KIND: Final = Kind("social-security", CardAlgorithm.SM4, ("*",), 0, 0)
HERE: Final = ["--organisation", "东城社保所", "--region", "110101", "--role", "counter"]


def decided(city: City, *arguments: str) -> Any:
    return city.decided("psam", *arguments, by="li", approved_by="wang")


def issue(city: City, number: str, *more: str) -> Any:
    return decided(city, "issue", number, "--serial", f"51010020{number}", "--may-use", "*", *more)


def shown(city: City, number: str) -> Any:
    return city.answer("psam", "show", number, who="li")


def test_a_psams_life(city: City) -> None:
    number = "510100000428"
    wish = ["psam", "issue", number, "--serial", "51010020260000000428"]
    wish += ["--may-use", "IRK", "--may-use", "RK*", "--valid-until", "2099-01-01"]
    assert "DOMAIN_CROSSED" in city.refused(*wish, who="qian")
    proposal = city.answer(*wish, who="li")["proposal_id"]
    assert "OWN_PROPOSAL" in city.refused("approve", proposal, who="li")
    said = city.said("proposal", "show", proposal, who="wang")
    for part in ("发卡", number, "51010020260000000428", "IRK, RK*", "2099-01-01", "SM4"):
        assert part in said
    assert f"issue-psams {number}" in city.said("proposals", who="wang")
    city.said("approve", proposal, who="wang")
    psam = shown(city, number)
    assert (psam["state"], psam["issued_by"], psam["next_number"]) == ("issued", "li+wang", 1)
    assert (psam["keys"], psam["environment"], psam["terminal"]) == (["IRK", "RK*"], "SM4", "")

    assign = ["psam", "assign", number, "--terminal", "OWNER-1"]
    assert "TERMINAL_NOT_FOUND" in city.refused(*assign, who="li")
    enrol = ["terminal", "enrol", "OWNER-1", *HERE, "--proof", "signature"]
    city.decided(*enrol, by="li", approved_by="wang")
    proposal = city.answer(*assign, who="li")["proposal_id"]
    said = city.said("proposal", "show", proposal, who="wang")
    assert "领用" in said
    assert "terminal OWNER-1 alone" in said
    assert f"assign-psams {number} to OWNER-1" in city.said("proposals", who="wang")
    city.said("approve", proposal, who="wang")
    assert (shown(city, number)["state"], shown(city, number)["terminal"]) == (
        "assigned",
        "OWNER-1",
    )
    assert f"PSAM {number} is lost" in city.said(
        "psam", "lose", number, "--reason", "柜台失窃", who="li"
    )
    assert (shown(city, number)["state"], shown(city, number)["reason"]) == ("lost", "柜台失窃")
    assert "PSAM_STATE" in city.refused("psam", "lose", number, "--reason", "x", who="li")
    assert "PSAM_STATE" in city.refused(*assign, who="li")
    decided(city, "return", number, "--reason", "found again")
    decided(city, "assign", number, "--shared")
    text = city.said("psam", "show", number, who="li")
    for part in ("终端机编号 " + number, "shared", "assigned", "none from 1 on", "li+wang"):
        assert part in text
    assert all(len(line) <= 100 for line in text.splitlines())
    decided(city, "retire", number, "--reason", "worn out")
    assert shown(city, number)["state"] == "retired"
    assert "already" in city.refused(*wish, who="li")
    assert "PSAM_NOT_FOUND" in city.refused("psam", "show", "510100000429", who="li")


def test_lists_are_searched(city: City) -> None:
    for number in ("110100000001", "110100000002"):
        issue(city, number)
    decided(city, "assign", "110100000002", "--shared")

    def listed(*arguments: str) -> list[str]:
        return [psam["number"] for psam in city.answer("psam", "list", *arguments, who="wang")]

    assert listed("--search", "1101000000") == ["110100000001", "110100000002"]
    assert listed("--search", "1101000000", "--state", "issued") == ["110100000001"]
    assert listed("--search", "social 110100000002") == ["110100000002"]
    text = city.said("psam", "list", "--search", "1101000000", who="wang").splitlines()
    assert text[0].split() == ["number", "state", "terminal", "profile", "keys"]
    assert text[2].split() == ["110100000002", "assigned", "shared", "social-security", "*"]
    nobody = city.said("psam", "list", "--search", "nobody", who="wang")
    assert nobody == "there is no PSAM\n"


def test_a_list_of_hundreds_is_issued(city: City) -> None:
    rows = [f"3301{n:08},33010020{n:012}" for n in range(250)]
    (city.folder / "psams.csv").write_text("\n".join(["number,serial", *rows, ",", ""]))
    said = city.answer("psam", "import", "psams.csv", "--may-use", "RK*", who="li")
    assert said["good"] == 250
    assert len(said["proposals"]) > 2
    city.said("approve", *said["proposals"], who="wang")
    found = city.answer("psam", "list", "--search", "330100", who="li")
    assert [psam["number"] for psam in found] == [row[:12] for row in rows]
    numbers = [row[:12] for row in rows[:100]]
    decided(city, "assign", *numbers, "--shared")
    found = city.answer("psam", "list", "--search", "330100", "--state", "assigned", who="li")
    assert [psam["number"] for psam in found] == numbers


def test_a_wrong_row_stops_its_list(city: City) -> None:
    rows = ["330200000001,33020020000000000001", "33020000002,33020020000000000002", "1"]
    (city.folder / "bad.csv").write_text("\n".join(["number,serial", *rows]))
    wish = ["psam", "import", "bad.csv", "--may-use", "RK*"]
    status, output, error = city.run(*wish, who="li")
    assert status == 1
    assert "2 rows of bad.csv cannot be read, and nothing was proposed" in error
    assert "row 3: a 终端机编号 is 12 decimal digits" in output
    assert "row 4: the row has 1 cells" in output
    assert city.answer("psam", "list", "--search", "3302", who="li") == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the first row"),
        (b"number,serial\n", "1 to 10000 PSAMs"),
        (b"serial,number\n1,2\n", "the first row"),
        (b"\xff\xfe", "not UTF-8"),
        (b'number,serial\n"1', "is not CSV"),
        (b" " * (MAX_LIST_BYTES + 1), "at most"),
        (b"number,serial\n" + b"1,2\n" * (MAX_ROWS + 1), "1 to 10000 PSAMs"),
    ],
)
def test_what_is_no_list(data: bytes, why: str) -> None:
    with pytest.raises(BadParameter, match=why):
        read_list(data, KIND)


def test_a_list_names_each_once() -> None:
    row = "330200000001,33020020000000000001"
    for other in ("330200000002,33020020000000000001", "330200000001,33020020000000000002"):
        specs, faults = read_list(f"number,serial\n{row}\n{other}\n".encode(), KIND)
        assert len(specs) == 1
        assert faults == [
            f"row 3: {set(row.split(',')).intersection(other.split(',')).pop()} is there twice"
        ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["issue", "12", "--serial", "1", "--may-use", "*"], "20 decimal digits"),
        (["issue", "12", "--serial", "5" * 20, "--may-use", "*"], "12 decimal digits"),
        (["issue", "5" * 12, "--serial", "5" * 20], "--may-use"),
        (["issue", "5" * 12, "--serial", "5" * 20, "--may-use", "irk"], "no name of a key"),
        (
            ["issue", "5" * 12, "--serial", "5" * 20, "--may-use", "*", "--environment", "AES"],
            "none of",
        ),
        (
            ["issue", "5" * 12, "--serial", "5" * 20, "--may-use", "*", "--valid-from", "soon"],
            "no time",
        ),
        (["assign", "5" * 12], "one of them"),
        (["assign", "5" * 12, "--shared", "--terminal", "T-1"], "one of them"),
        (["assign", "5" * 12, "5" * 12, "--shared"], "named twice"),
        (["assign", "5" * 12, "--terminal", "T 1"], "no terminal's code"),
        (["retire", *(f"{n:012}" for n in range(101))], "at most"),
        (["retire", "5" * 12, "--reason", "a|b"], "none of them |"),
        (["lose", "5" * 12, "--reason", ""], "1 to 64 characters"),
        (["lose", "５" * 12, "--reason", "x"], "12 decimal digits"),
        (["show", "x"], "12 decimal digits"),
    ],
)
def test_nonsense_is_told_before_anybody_is_asked(arguments: list[str], why: str) -> None:
    who = {"KEYD_DOMAIN": "LOCAL", "KEYD_OFFICER": "li", "KEYD_OFFICER_KEY": "nowhere.key"}
    told = CliRunner().invoke(app, ["psam", *arguments], env=who | {"COLUMNS": "200"})
    assert told.exit_code == 2
    assert why in " ".join(told.output.split())


def test_what_was_issued_there_is_played_here(city: City) -> None:
    """Another keyd of the daemon's store, with the same shares, plays what its officers assigned."""
    issue(city, "440100000001")
    decided(city, "assign", "440100000001", "--shared")
    store = Store.open(f"sqlite:///{city.folder}/store.db")
    vault = Vault(store, "player", time.time, secrets.token_bytes, lambda: None)
    for number in (1, 2):
        text = (city.folder / "shares" / f"share-{number}.txt").read_text()
        vault.give_share(decode_share(share_line(text)))
    contents = vault.contents
    assert contents is not None
    kept = playable(contents, int(time.time()))["440100000001"]
    player = Player(store, synthetic_ring(), shipped_catalogue(), secrets.token_bytes)
    applet = Applet(player.play(contents, kept))
    applet.transmit(SELECT)
    applet.transmit(BUY)
    assert applet.transmit(GET_RESPONSE)[:4] == bytes([0, 0, 0, 1])
    # The daemon sees what was reserved there.
    assert shown(city, "440100000001")["next_number"] == 17
    city.said("psam", "lose", "440100000001", "--reason", "gone", who="li")
    vault.reload()
    contents = vault.contents
    assert contents is not None
    assert "440100000001" not in playable(contents, int(time.time()))
    store.close()
