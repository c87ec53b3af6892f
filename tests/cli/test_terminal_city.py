"""Terminals from the command line against a real daemon: what two officers decide is in the store, and stays there."""

from __future__ import annotations

import csv
import io
import re
import stat
from typing import TYPE_CHECKING, Any

from keyd.tls.inspection import read_pem_untrusted

if TYPE_CHECKING:
    from tests.cli.conftest import City

HERE = ["--organisation", "东城社保所", "--region", "110101", "--role", "counter"]


def decided(city: City, *arguments: str) -> Any:
    return city.decided(*arguments, by="li", approved_by="wang")


def shown(city: City, code: str) -> Any:
    return city.answer("terminal", "show", code, who="li")


def test_a_terminals_life(city: City) -> None:
    enrol = ["terminal", "enrol", "LIFE-1", *HERE, "--proof", "key-by-code"]
    assert "DOMAIN_CROSSED" in city.refused(*enrol, who="qian")
    proposal = city.answer(*enrol, who="li")["proposal_id"]
    assert "OWN_PROPOSAL" in city.refused("approve", proposal, who="li")
    assert "东城社保所" in city.said("proposal", "show", proposal, who="wang")
    city.said("approve", proposal, who="wang")
    assert (shown(city, "LIFE-1")["state"], shown(city, "LIFE-1")["last_seen"]) == ("enrolled", 0)
    decided(city, "terminal", "activate", "LIFE-1")
    city.said("terminal", "stop", "LIFE-1", "lost", "--reason", "柜台失窃", who="wang")
    assert (shown(city, "LIFE-1")["state"], shown(city, "LIFE-1")["reason"]) == ("lost", "柜台失窃")
    assert "TERMINAL_STATE" in city.refused(
        "terminal", "stop", "LIFE-1", "suspended", "--reason", "x", who="wang"
    )
    decided(city, "terminal", "activate", "LIFE-1")
    # Described anew, it keeps its state.
    decided(city, *enrol, "--role", "hospital")
    assert (shown(city, "LIFE-1")["state"], shown(city, "LIFE-1")["roles"]) == (
        "active",
        ["counter", "hospital"],
    )
    city.said("terminal", "stop", "LIFE-1", "retired", "--reason", "scrapped", who="li")
    assert "TERMINAL_STATE" in city.refused(*enrol, who="li")
    assert "TERMINAL_NOT_FOUND" in city.refused("terminal", "show", "NOBODY", who="li")


def test_a_list_of_hundreds_comes_in_and_goes_out_again(city: City) -> None:
    rows = [f"MANY-{n:04},第{n}社保所,110101,counter,key-by-code" for n in range(250)]
    text = "\n".join(["code,organisation,region,roles,proofs", *rows])
    (city.folder / "list.csv").write_text(text)
    proposals = city.answer("terminal", "import", "list.csv", "--activate", who="li")["proposals"]
    assert len(proposals) > 2
    city.said("approve", *proposals, who="wang")
    city.said("terminal", "export", "--search", "MANY-", "--to", "out.csv", who="li")
    out = (city.folder / "out.csv").read_text("utf-8-sig")
    listed = list(csv.DictReader(io.StringIO(out)))
    assert [row["code"] for row in listed] == [f"MANY-{n:04}" for n in range(250)]
    assert {(row["state"], row["enrolled_by"]) for row in listed} == {("active", "li+wang")}
    again = city.answer("terminal", "import", "out.csv", "--dry-run", who="li")
    assert (again["good"], again["refused"]) == (250, [])
    found = city.answer("terminal", "list", "--search", "第17社保所", "--state", "active", who="li")
    assert [one["code"] for one in found] == ["MANY-0017"]


def test_codes_and_keys_reach_their_officer_and_nobody_else(city: City) -> None:
    for code in ("GIVE-1", "GIVE-2"):
        proofs = ["--proof", "key-by-code", "--proof", "signature"]
        decided(city, "terminal", "enrol", code, *HERE, *proofs)
    given = decided(city, "terminal", "codes", "GIVE-1", "GIVE-2", "--for", "wang")
    take = ["terminal", "take", given["proposal_id"]]
    assert "COMPONENT_REFUSED" in city.refused(*take, "--to", "codes-li", who="li")
    city.said(*take, "--folder", "codes", who="wang")
    code = (city.folder / "codes" / "GIVE-1.code").read_text().strip()
    assert re.fullmatch(r"([0-9A-Z]{4}-){4}[0-9A-Z]", code)
    assert stat.S_IMODE((city.folder / "codes" / "GIVE-1.code").stat().st_mode) == 0o600
    # What everybody may read of the proposal and of the terminal says nothing of it.
    for arguments in (["proposal", "show", given["proposal_id"]], ["terminal", "show", "GIVE-1"]):
        assert code not in city.said(*arguments, who="li")
        assert code not in city.said(*arguments, "--json", who="li")
    assert "enrolment code" in city.said("terminal", "show", "GIVE-1", who="li")

    spec = ["--use", "terminal", "--algorithm", "SM4", "--tier", "city", "--export", "child"]
    master = ["propose", "generate", "--name", "TMK", "--address", "FE00", *spec]
    decided(city, "propose", "activate", decided(city, *master)["result"]["key_id"])
    keys = decided(city, "terminal", "keys", "GIVE-1", "GIVE-2", "--for", "wang")["proposal_id"]
    city.said("terminal", "take", keys, "--folder", "keys", who="wang")
    digits = [(city.folder / "keys" / f"GIVE-{n}.key").read_text() for n in (1, 2)]
    assert all(re.fullmatch(r"[0-9A-F]{32}\n", key) for key in digits)
    assert digits[0] != digits[1]


def test_keyds_own_ca_is_made_by_two_and_its_lists_are_written(city: City) -> None:
    for kind in ("guomi", "standard"):
        name = ["--name", f"某市终端 CA {kind}", "--years", "2", "--kind", kind]
        decided(city, "cert", "make-authority", *name)
    (city.folder / "trust").mkdir()
    said = city.said("cert", "authorities", "--to", "trust", who="li")
    assert "某市终端 CA guomi" in said
    for kind in ("guomi", "standard"):
        for ending, what in ((".crt", "certificate"), (".crl", "revocation list")):
            pem = (city.folder / "trust" / f"ca-{kind}{ending}").read_bytes()
            (one,) = read_pem_untrusted(pem)
            assert (one.what, one.kind, one.issuer) == (what, kind, f"某市终端 CA {kind}")
