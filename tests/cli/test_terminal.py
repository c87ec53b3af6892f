"""Terminals from the command line: two officers give rights, one takes them away, and no secret goes into a pipe."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from keyd.cli import terminal
from keyd.cli.common import groups_of_4
from keyd.cli.files import public_key
from keyd.cli.main import app, main
from keyd.cli.terminal import batches
from keyd.custody.actions import EnrolTerminals
from keyd.errors import Refusal
from keyd.protocol.messages.custody import OfficerCommand, Propose
from keyd.registry.listing import COLUMNS, KEPT
from keyd.registry.terminal import Proof, Terminal, TerminalSpec, TerminalState
from tests.cli.conftest import City
from tests.cli.registry_office import Office

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL: Final = ("li", "wang", "zhao")

HEADER: Final = "code,organisation,region,roles,proofs"
PROOFS: Final = ["--role", "counter", "--proof", "key-by-code"]
HERE: Final = ["--organisation", "东城社保所", "--region", "110101", *PROOFS]


class Counter(City):
    """Officers of LOCAL, and the keyd that they sit before. Most of their commands run within this process: it is ten
    times as fast. What holds a secret runs in its own, as it ends with it.
    """

    office: Office

    def run(
        self, *arguments: str, who: str = "", has_passphrase: bool = True
    ) -> tuple[int, str, str]:
        if arguments[:2] == ("terminal", "take"):
            return super().run(*arguments, who=who, has_passphrase=has_passphrase)
        output, error = io.BytesIO(), io.BytesIO()
        status = 0
        with (
            pytest.MonkeyPatch.context() as patch,
            Path(os.devnull).open() as nothing,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(io.TextIOWrapper(output, "utf-8", write_through=True)),
            contextlib.redirect_stderr(io.TextIOWrapper(error, "utf-8", write_through=True)),
        ):
            for name, value in self.environment(who, has_passphrase=has_passphrase).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["keyd", *arguments])
            patch.setattr(sys, "stdin", nothing)
            try:
                main()
            except SystemExit as ended:
                status = int(ended.code or 0)
            return status, output.getvalue().decode(), error.getvalue().decode()


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter]:
    """Officers with a keyd that knows terminals."""
    folder = tmp_path_factory.mktemp("counter")
    city = Counter(folder)
    (folder / "passphrase").write_text("a synthetic passphrase\n")
    (folder / "passphrase").chmod(0o600)
    for code in LOCAL:
        city.said("officer", "new", f"{code}.key", "--passphrase-file", "passphrase")
    keys = {code: public_key(str(folder / f"{code}.key.pub")) for code in LOCAL}
    city.office = Office(city.admin, keys)
    try:
        yield city
    finally:
        city.office.close()


def decided(counter: Counter, *arguments: str) -> Any:
    return counter.decided("terminal", *arguments, by="li", approved_by="wang")


def shown(counter: Counter, code: str) -> Any:
    return counter.answer("terminal", "show", code, who="li")


# Two officers, or one -------------------------------------------------------------------------------------


def test_a_terminal_is_enrolled_by_two_and_activated_by_two(counter: Counter) -> None:
    proposal = counter.answer("terminal", "enrol", "DESK-1", *HERE, who="li")["proposal_id"]
    assert "OWN_PROPOSAL" in counter.refused("approve", proposal, who="li")
    counter.said("approve", proposal, who="wang")
    assert shown(counter, "DESK-1")["state"] == "enrolled"
    decided(counter, "activate", "DESK-1")
    assert shown(counter, "DESK-1")["state"] == "active"


def test_one_officer_stops_a_terminal_and_says_why(counter: Counter) -> None:
    decided(counter, "enrol", "LOST-1", *HERE, "--activate")
    said = counter.said("terminal", "stop", "LOST-1", "lost", "--reason", "柜台失窃", who="wang")
    assert "LOST-1 is lost" in said
    assert (shown(counter, "LOST-1")["state"], shown(counter, "LOST-1")["reason"]) == (
        "lost",
        "柜台失窃",
    )
    assert "lost: 柜台失窃" in counter.said("terminal", "show", "LOST-1", who="li")


def test_retiring_is_asked_about_at_a_terminal(counter: Counter) -> None:
    decided(counter, "enrol", "OLD-1", *HERE)
    stop = ["terminal", "stop", "OLD-1", "retired", "--reason", "scrapped"]
    # The question comes first: nobody types a passphrase for what they do not want.
    status, screen = counter.typed(stop, [("yes: ", "no")], "li")
    assert (status, "was not retired" in screen) == (1, True)
    assert shown(counter, "OLD-1")["state"] == "enrolled"
    counter.said(*stop, "--yes", who="li")
    assert shown(counter, "OLD-1")["state"] == "retired"


def test_everything_that_officers_decide_can_be_said(counter: Counter) -> None:
    key = counter.answer("officer", "show", "li.key.pub")["public_key"]
    enrol = [
        *("enrol", "FULL-1", *HERE, "--role", "hospital", "--proof", "key-by-psam"),
        *("--form", "self-service", "--vendor", "华大", "--model", "HD-100", "--serial", "0042"),
        *("--driver-version", "3.1", "--psam-number", "110101000001", "--psam-serial", "0A0B"),
        *("--generation", "3", "--interface", "contact", "--interface", "contactless"),
        *("--network", "10.1.2.0/24", "--open-hours", "Mon-Fri 08:00-17:30"),
        *("--valid-from", "2027-01-01", "--valid-until", "2028-01-01T08:00+08:00"),
        *("--public-key", "li.key.pub"),
    ]
    described = counter.said("terminal", *enrol, who="li")
    decided(counter, *enrol)
    plain = shown(counter, "FULL-1")
    assert {name: plain[name] for name in COLUMNS} == {
        "code": "FULL-1", "organisation": "东城社保所", "region": "110101",
        "roles": ["counter", "hospital"], "proofs": ["key-by-code", "key-by-psam"],
        "form": "self-service", "vendor": "华大", "model": "HD-100", "serial": "0042",
        "psam_number": "110101000001", "psam_serial": "0A0B", "driver_version": "3.1",
        "generations": [3], "interfaces": ["contact", "contactless"], "networks": ["10.1.2.0/24"],
        "hours": ["Mon-Fri 08:00-17:30"], "valid_from": 1_798_761_600, "valid_until": 1_830_297_600,
        "public_key": key,
    }  # fmt: skip
    # Whoever approves reads all of it.
    for text in (described, counter.said("terminal", "show", "FULL-1", who="li")):
        for words in (
            "东城社保所",
            "110101",
            "counter, hospital",
            "key-by-code, key-by-psam",
            "华大",
        ):
            assert words in text
        for words in ("110101000001", "0A0B", "3.0", "10.1.2.0/24", "Mon-Fri", "2027-01-01", "3.1"):
            assert words in text
        assert counter.answer("officer", "show", "li.key.pub")["fingerprint"] in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["enrol", "D", *HERE[:2], "--region", "11", *PROOFS], "region: it is not"),
        (["enrol", "D", *HERE, "--role", "Big"], "roles: it is not"),
        (["enrol", "D", "--organisation", "=1", *HERE[2:]], "a spreadsheet would compute"),
        (["enrol", "D", *HERE, "--proof", "key-by-psam"], "needs the PSAM's"),
        (["enrol", "D", *HERE, "--network", "10.0.0.1/8"], "networks: it is not"),
        (["enrol", "D", *HERE, "--public-key", "nothing"], "a public key is 130 hex digits"),
        (["show", "NOBODY"], "there is no terminal NOBODY"),
        (["stop", "NOBODY", "lost", "--reason", "x"], "there is no terminal NOBODY"),
        (["import", "nothing.csv"], "nothing.csv cannot be read"),
    ],
)
def test_nonsense_is_one_sentence(
    counter: Counter, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(counter.folder)
    ended = CliRunner().invoke(app, ["terminal", *arguments], env=counter.environment("li"))
    assert isinstance(ended.exception, Refusal)
    assert said in str(ended.exception)
    assert "\n" not in str(ended.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["activate", "a b"], "no terminal's code"),
        (["activate", "A", "A"], "named twice"),
        (["activate", *(f"T{n}" for n in range(101))], "100 terminals at most"),
        (["codes", "A", "--for", "-x"], "no officer's code"),
        (["codes", "A", "--for", "wang", "--days", "31"], "--days"),
        (["stop", "A", "dead", "--reason", "x"], "none of suspended, lost"),
        (["stop", "A", "lost", "--reason", ""], "1 to 128"),
        (["take", "00", "--to", "file"], "16 hex digits"),
        (["export", "--format", "xls"], "csv or json"),
        (["list", "--state", "dead"], "--state"),
    ],
)
def test_wrong_usage_is_told(counter: Counter, arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["terminal", *arguments], env=counter.environment("li"))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert said in ended.stderr


# Lists ----------------------------------------------------------------------------------------------------


def rows(count: int, prefix: str) -> list[str]:
    return [f"{prefix}-{n:04},第{n}社保所,110101,counter,key-by-code" for n in range(count)]


def test_a_list_is_proposed_in_parts_and_what_is_wrong_is_written_to_be_mended(
    counter: Counter,
) -> None:
    list_file = counter.folder / "list.csv"
    bad = ["BAD-1,所,11,counter,key-by-code", "BAD-2,=所,110101,counter,key-by-code"]
    list_file.write_text("\n".join([HEADER, *bad, *rows(120, "MANY")]))
    arguments = ["terminal", "import", "list.csv", "--refused", "mend.csv", "--activate"]
    status, output, error = counter.run(*arguments, "--json", who="li")
    assert (status, error) == (3, "")
    told = json.loads(output)
    assert told["good"] == 120
    assert [row["row"] for row in told["refused"]] == [2, 3]
    assert told["refused"][0]["faults"][0]["column"] == "region"
    assert len(told["proposals"]) > 1
    counter.said("approve", *told["proposals"], who="wang")
    listed = counter.answer("terminal", "list", "--search", "MANY-", who="li")
    assert [one["code"] for one in listed] == [f"MANY-{n:04}" for n in range(120)]
    assert {one["state"] for one in listed} == {"active"}
    # Mended in the file of refused rows, they come in by themselves.
    mend = counter.folder / "mend.csv"
    assert stat.S_IMODE(mend.stat().st_mode) == 0o600
    mended = mend.read_text("utf-8-sig").replace(",11,", ",110101,").replace("'=所", "所")
    mend.write_text(mended)
    (proposal,) = counter.answer("terminal", "import", "mend.csv", who="li")["proposals"]
    counter.said("approve", proposal, who="wang")
    assert shown(counter, "BAD-2")["organisation"] == "所"


def test_a_dry_run_proposes_nothing_and_says_what_is_wrong(counter: Counter) -> None:
    (counter.folder / "dry.csv").write_text(
        "\n".join([HEADER, *rows(2, "DRY"), "X,,1,r,signature"])
    )
    before = len(counter.office.proposals)
    status, output, _error = counter.run("terminal", "import", "dry.csv", "--dry-run", who="li")
    assert status == 3
    assert "2 good terminals, 1 refused row" in output
    assert "row 4: organisation: it is missing" in output
    assert "row 4: region: it is not" in output
    assert "nothing was proposed" in output
    assert len(counter.office.proposals) == before


def test_an_export_comes_in_again(counter: Counter) -> None:
    decided(
        counter,
        "enrol",
        "EXP-1",
        *HERE,
        "--interface",
        "contactless",
        "--open-hours",
        "08:00-12:00",
    )
    counter.said("terminal", "export", "--search", "EXP-", "--to", "out.csv", who="li")
    said = counter.said("terminal", "import", "out.csv", "--dry-run", who="li")
    assert "1 good terminal, 0 refused rows" in said
    assert f"not read, because keyd keeps them itself: {', '.join(KEPT)}" in said
    (row,) = csv.DictReader(io.StringIO((counter.folder / "out.csv").read_text("utf-8-sig")))
    assert (row["state"], row["last_source"], row["authentications"]) == (
        "enrolled",
        "10.1.2.3",
        "7",
    )
    # A pipe gets the same bytes, and JSON the same things.
    piped = counter.said("terminal", "export", "--search", "EXP-", who="li")
    assert piped.replace("\r\n", "\n") == (counter.folder / "out.csv").read_text()
    (plain,) = json.loads(
        counter.said("terminal", "export", "--format", "json", "--search", "EXP-", who="li")
    )
    assert (plain["code"], plain["interfaces"], plain["last_seen"]) == (
        "EXP-1",
        ["contactless"],
        1_764_547_200,
    )
    assert "never overwritten" in counter.refused("terminal", "export", "--to", "out.csv", who="li")


def test_what_was_proposed_before_a_refusal_is_told(counter: Counter) -> None:
    (counter.folder / "long.csv").write_text("\n".join([HEADER, *rows(250, "LONG")]))
    counter.office.refuses_after = len(counter.office.proposals) + 2
    try:
        for flags in ([], ["--json"]):
            counter.office.refuses_after = len(counter.office.proposals) + 2
            status, output, error = counter.run("terminal", "import", "long.csv", *flags, who="li")
            assert status == 1
            assert "BAD_PARAMETER: there are as many" in error
            made = [p.hex() for p in list(counter.office.proposals)[-2:]]
            assert all(proposal in output for proposal in made)
    finally:
        counter.office.refuses_after = 1 << 30


def test_a_list_of_terminals_fits_a_line_and_deceives_nobody(counter: Counter) -> None:
    hostile = TerminalSpec("EVIL-1", "a\u202eb\x9b2Jc", "110101", ("counter",), (Proof.SIGNATURE,))
    wide = ["--organisation", "北京市东城区东华门街道社会保障事务所第一服务窗口", *HERE[2:]]
    proposal = decided(counter, "enrol", "WIDE-" + "1" * 27, *wide)
    assert proposal["state"] == "done"
    counter.office.terminals["EVIL-1"] = Terminal(hostile, TerminalState.LOST, "LOCAL/li", 1)
    text = counter.said("terminal", "list", who="li")
    assert max(map(cell_len, text.splitlines())) <= 100
    for said in (text, counter.said("terminal", "show", "EVIL-1", who="li")):
        assert "\u202e" not in said
        assert "\x9b" not in said
    assert "a\ufffdb\ufffd2Jc" in text
    assert (
        counter.said("terminal", "list", "--search", "no such", who="li")
        == "there is no terminal\n"
    )
    active = counter.answer("terminal", "list", "--state", "active", who="li")
    assert {one["state"] for one in active} <= {"active"}
    del counter.office.terminals["EVIL-1"]


def test_a_batch_is_never_larger_than_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "所" * 64
    full = [
        TerminalSpec(
            f"T{n}", words, "110101", tuple(f"r{k}" + "x" * 29 for k in range(8)), (Proof.KEY_BY_CODE,),
            vendor=words, model=words, serial=words, driver_version=words,
            networks=tuple(f"10.{k}.0.0/16" for k in range(16)),
        )
        for n in range(100)
    ]  # fmt: skip
    small = [TerminalSpec(f"S{n}", "所", "110101", ("r",), (Proof.SIGNATURE,)) for n in range(201)]
    for specs in (full, small, full[:1], []):
        made = list(batches(specs))
        assert [spec for batch in made for spec in batch] == specs
        for batch in made:
            encoded = msgspec.msgpack.encode(EnrolTerminals(batch, activate=True))
            command = msgspec.msgpack.encode(["proposal.make", Propose(encoded, "所" * 200, 1)])
            request = OfficerCommand("LOCAL", "li", command, bytes(64))
            msgspec.convert(
                msgspec.to_builtins(Propose(encoded), builtin_types=(bytes,)),
                Propose,
                builtin_types=(bytes,),
            )
            msgspec.convert(
                msgspec.to_builtins(request, builtin_types=(bytes,)),
                OfficerCommand,
                builtin_types=(bytes,),
            )
    # With messages of any length, it is as many as a person reads.
    monkeypatch.setattr(terminal, "_room", lambda: 1 << 30)
    assert [len(batch) for batch in batches(small)] == [100, 100, 1]


# Secrets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "ending"), [("codes", "code"), ("keys", "key")])
def test_secrets_go_to_their_officer_in_private_files_or_on_the_screen_only(
    counter: Counter, command: str, ending: str
) -> None:
    decided(counter, "enrol", "S-1", *HERE)
    decided(counter, "enrol", "S.2", *HERE)
    proposal = decided(counter, command, "S-1", "S.2", "--for", "zhao")["proposal_id"]
    made = counter.office.secrets[bytes.fromhex(proposal)]
    secrets = [value if isinstance(value, str) else value.hex().upper() for value in made.values()]
    take = ["terminal", "take", proposal]
    for arguments in (take, [*take, "--json"]):
        status, output, error = counter.run(*arguments, who="zhao")
        assert (status, output) == (2, "")
        assert "a terminal or a file" in error
    assert "COMPONENT_REFUSED" in counter.refused(*take, "--to", f"{command}-1", who="li")
    # A file for each, which enrol-here and --terminal-key-file read.
    told = counter.answer(*take, "--folder", f"{command}-each", who="zhao")
    assert told["terminals"] == ["S-1", "S.2"]
    for code, secret in zip(["S-1", "S.2"], secrets, strict=True):
        path = counter.folder / f"{command}-each" / f"{code}.{ending}"
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (f"{secret}\n", 0o600)
    # One sheet for all.
    said = counter.said(*take, "--to", f"{command}-sheet", who="zhao")
    paper = (counter.folder / f"{command}-sheet").read_text().replace(" ", "")
    assert all(secret in paper for secret in secrets)
    assert stat.S_IMODE((counter.folder / f"{command}-sheet").stat().st_mode) == 0o600
    assert not any(secret in said for secret in secrets)
    # On the screen, and gone from it.
    typed = [("key: ", "a synthetic passphrase"), ("press Enter.*", "")]
    status, screen = counter.typed(take, typed, "zhao")
    assert status == 0
    parts = re.split(r"\x1b\[\?1049[hl]", screen)
    is_key = command == "keys"
    grouped = [groups_of_4(secret) if is_key else secret for secret in secrets]
    assert all(secret in parts[1] for secret in grouped)
    assert not any(secret in outside for outside in parts[::2] for secret in (*grouped, *secrets))
    # What is approved or shown says nothing of them.
    seen = counter.said("proposal", "show", proposal, who="wang")
    assert not any(secret in seen for secret in secrets)


def test_an_envelope_that_does_not_fit_its_proposal_is_refused(counter: Counter) -> None:
    decided(counter, "enrol", "T-1", *HERE)
    given = decided(counter, "codes", "T-1", "--for", "zhao")["proposal_id"]
    for wrong in ({"T-2": "x"}, {"T-1": b"key"}, {}, {"T-1": "x", "T-2": "y"}):
        counter.office.secrets[bytes.fromhex(given)] = wrong
        said = counter.refused("terminal", "take", given, "--to", "wrong", who="zhao")
        assert "COMPONENT_REFUSED: what keyd gave is not" in said
    keys = decided(counter, "keys", "T-1", "--for", "zhao")["proposal_id"]
    counter.office.secrets[bytes.fromhex(keys)] = {"T-1": bytes(15)}
    assert "COMPONENT_REFUSED" in counter.refused(
        "terminal", "take", keys, "--to", "wrong", who="zhao"
    )
    enrolled = decided(counter, "enrol", "T-1", *HERE)["proposal_id"]
    assert "gives neither" in counter.refused("terminal", "take", enrolled, "--to", "w", who="zhao")
    assert not (counter.folder / "wrong").exists()
