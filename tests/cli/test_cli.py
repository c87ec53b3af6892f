"""Every command does what its help says, prints what a person can read, and fails with one sentence."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import typer
from msgspec.structs import replace
from rich.console import Console
from typer.core import TyperGroup

from keyd.cli.main import app
from keyd.cli.status import _key_table
from keyd.crypto.algorithms import IN_SOFTWARE
from keyd.keys.block import Domain, KeyState, Tier, Use
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import TABLE
from keyd.protocol.messages.daemon import KeyReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RunningDaemon, StartDaemon

KEYD = Path(sys.executable).with_name("keyd")

CARD = [
    "card.card_id=510100D15600000530000BEE00000000",
    "card.historical=00814A44468649510130000BEE",
]


def keyd(*arguments: str, text: str = "", status: int = 0, columns: int = 200) -> str:
    """Run keyd; return what it printed, or on failure what it said."""
    ended = subprocess.run(
        [KEYD, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": str(columns), "NO_COLOR": "1"},
    )
    assert ended.returncode == status, ended
    assert "Traceback" not in ended.stderr
    return ended.stdout if status == 0 else ended.stderr


def sentence(*arguments: str, text: str = "") -> str:
    """Run keyd, which must fail with one line."""
    (line,) = keyd(*arguments, text=text, status=1).splitlines()
    assert line.startswith("keyd: ")
    return line


def test_the_version_is_told() -> None:
    assert keyd("--version").startswith("keyd 0.")


def commands_below(group: TyperGroup, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield every command as it is typed."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands_below(command, *path, name)
        else:
            yield *path, name


COMMANDS = list(commands_below(cast("TyperGroup", typer.main.get_command(app))))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    shown = keyd(*command, "--help", columns=100)
    assert len(shown) > 200
    assert max(map(len, shown.splitlines())) <= 100


def test_wrong_usage_has_an_exit_status_of_its_own() -> None:
    assert "--config" in keyd("init", status=2)
    assert "KEYD_OFFICER" in keyd("approve", "00" * 8, "--domain", "SOCIAL", status=2)
    assert "No such command" in keyd("nonsense", status=2)


def test_the_self_test_passes_and_is_shown() -> None:
    assert "ok    SM4: GB/T 32907" in keyd("selftest")
    assert all(result["passed"] for result in json.loads(keyd("selftest", "--json")))


# call -----------------------------------------------------------------------------------------------------------


def test_call_lists_and_explains_every_method() -> None:
    listed = keyd("call")
    for method in TABLE:
        assert method in listed
    explained = keyd("call", "card.pin_reload", "--help")
    assert "card.card_id" in explained
    assert "(default 3)" in explained


def test_call_computes(daemon: RunningDaemon) -> None:
    here = ["--dev", "--connect", daemon.address]
    words = [*CARD, "session_factor=0102030405060708", "challenge=1112131415161718"]
    printed = keyd("call", "card.internal_cryptogram", *words, *here)
    name, _, value = printed.strip().partition("=")
    assert (name, len(value), value[16:]) == ("reply", 32, "1112131415161718")
    as_json = json.loads(keyd("call", "card.internal_cryptogram", *words, *here, "--json"))
    assert as_json == {"reply": value, "warnings": []}


def test_a_pin_need_not_stand_on_the_command_line(daemon: RunningDaemon, tmp_path: Path) -> None:
    here = ["--dev", "--connect", daemon.address, *CARD, "session_factor=0102030405060708"]
    pin = tmp_path / "pin"
    pin.write_text("271828\n")
    from_file = keyd("call", "card.pin_reload", *here, f"pin=@{pin}")
    assert from_file == keyd("call", "card.pin_reload", *here, "pin=@-", text="271828\n")
    assert from_file.startswith("apdu=8424000114")
    assert "cannot be read" in sentence("call", "card.pin_reload", *here, "pin=@/nowhere")


def test_call_runs_a_script_on_a_psam(daemon: RunningDaemon, tmp_path: Path) -> None:
    steps = tmp_path / "steps.json"
    # The environment of SM4, and from file 0016 终端机编号.
    steps.write_text(
        """[
          {"header": "00A40000", "data": "DDF2"},
          {"header": "00B09600", "le": 6}
        ]"""
    )
    here = ["--dev", "--connect", daemon.address, "keys=0x0170,0x004C"]
    printed = keyd("call", "psam.run_once", *here, f"steps=@{steps}", 'results=[{"step": 1}]')
    assert printed.startswith("results=5101000000")
    assert "is not an object" in sentence("call", "psam.run_once", *here, "steps=[1]")
    explained = keyd("call", "psam.run_once", "--help")
    assert "steps[].references[].offset" in explained
    assert "(default 0x9000)" in explained


def test_call_fails_in_sentences(daemon: RunningDaemon) -> None:
    here = ["--dev", "--connect", daemon.address]
    assert "METHOD_UNKNOWN" in sentence("call", "card.nonsense", *here)
    assert "batch" in sentence("call", "card.pin_reload_batch", *here)
    assert "BAD_PARAMETER" in sentence("call", "card.pin_reload", "pin=1", *here)
    assert "NOT_AUTHENTICATED" in sentence("call", "daemon.random", "length=1", *here[1:])
    assert "BAD_PARAMETER" in sentence("call", "daemon.random", "length=1000", *here)
    assert "KEY_USAGE" in sentence(
        "call", "card.external_authenticate", *CARD, "address=0x0170", "session_factor=" + "00" * 8,
        "challenge=" + "00" * 8, *here,
    )  # fmt: skip


# pool -----------------------------------------------------------------------------------------------------------


def test_pool_shows_every_psam_and_how_it_does(
    daemon: RunningDaemon, start_daemon: StartDaemon
) -> None:
    shown = keyd("pool", "--dev", "--connect", daemon.address)
    assert "510100000001" in shown
    assert shown.count("ready") == 2
    state = json.loads(keyd("pool", "--dev", "--connect", daemon.address, "--json"))
    assert [member["kind"] for member in state["members"]] == ["virtual", "virtual"]
    none = start_daemon("--psams", "0")
    assert "no pool" in sentence("pool", "--dev", "--connect", none.address)


# status ---------------------------------------------------------------------------------------------------------


def test_status_shows_keys_by_check_value(daemon: RunningDaemon) -> None:
    shown = keyd("status", "--dev", "--connect", daemon.address)
    assert "public synthetic keys" in shown
    assert "RKSSSE" in shown
    state = json.loads(keyd("status", "--dev", "--connect", daemon.address, "--json"))
    assert {len(key["kcv"]) for key in state["keys"]} == {6}


def a_report(**changes: Any) -> KeyReport:
    report = KeyReport(
        addresses=(0x0170,),
        name="RKSSSE",
        set=1,
        algorithm="SM4",
        levels=3,
        kcv=b"\x12\x34\x56",
        key_id=bytes(range(16)),
        domain="SOCIAL",
        tier="national",
        use="internal",
        version=1,
        state="active",
    )
    return replace(report, **changes)


def test_the_table_of_keys_is_readable_at_100_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    longest = a_report(
        addresses=tuple(range(0xFFF0, 0x10000)),
        name="N" * 32,
        set=3,
        version=0xFFFF,
        algorithm=max((a.value for a in IN_SOFTWARE), key=len),
        domain=max(Domain, key=len),
        tier=max(Tier, key=len),
        use=max(Use, key=len),
        state=max(KeyState, key=len),
    )
    console.print(_key_table([a_report(), longest, a_report(name="[red]x", addresses=())]))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    # What is short stands whole on one line; what is long is all there.
    lines = shown.splitlines()
    assert any(
        " ".join(line.split())
        == "SOCIAL/00010203 0170 RKSSSE 1 1 SM4 national internal active 123456"
        for line in lines
    )
    (line,) = (line for line in lines if longest.state in line)
    for whole in ("FINANCE/00010203", "65535", "3DES", "provincial", "starting-day", "123456"):
        assert whole in line.split()
    assert all(f"{address:04X}" in shown for address in longest.addresses)
    assert shown.count("N") - "FINANCE".count("N") == 32
    assert "[red]x" in shown


def test_status_at_100_columns_cuts_nothing_off(daemon: RunningDaemon) -> None:
    shown = keyd("status", "--dev", "--connect", daemon.address, columns=100)
    assert "…" not in shown
    rows = [line for line in shown.splitlines() if line.lstrip().startswith(("SOCIAL/", "LOCAL/"))]
    state = json.loads(keyd("status", "--dev", "--connect", daemon.address, "--json"))
    # Cards' keys, and the one above all terminals.
    assert len(rows) == len(state["keys"]) == 310 + 1
    for row, key in zip(rows, state["keys"], strict=True):
        assert row.split() == [
            f"{key['domain']}/{key['key_id'][:8].lower()}",
            *(f"{address:04X}" for address in key["addresses"]),
            *(str(key[name]) for name in ("name", "set", "version", "algorithm", "tier", "use")),
            *(key["state"], key["kcv"]),
        ]


def test_status_needs_no_terminal_on_the_unix_socket(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon("--unix", str(tmp_path / "keyd.sock"))
    assert "serving" in keyd("status", "--connect", daemon.unix)


def test_a_terminal_key_comes_from_a_private_file(daemon: RunningDaemon, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(synthetic_terminal_key("DEV-0002").hex())
    me = ["--terminal", "DEV-0002", "--terminal-key-file", str(file), "--connect", daemon.address]
    file.chmod(0o644)
    assert "chmod 600" in sentence("status", *me)
    file.chmod(0o600)
    assert "serving" in keyd("status", *me)
    file.write_text("00" * 16)
    assert "TERMINAL_NOT_AUTHENTIC" in sentence("status", *me)
    file.write_text("nonsense")
    assert "32 hex digits" in sentence("status", *me)
    assert "go together" in sentence("status", "--terminal", "DEV-0002")
    assert "leave out" in sentence("status", "--dev", *me)


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    assert "cannot connect" in sentence("status", "--dev", "--connect", f"unix:{tmp_path}/none")
    assert "no address" in sentence("status", "--dev", "--connect", "nonsense")


# demo -----------------------------------------------------------------------------------------------------------


def test_the_demo_makes_cards_and_refuses_the_forged_one() -> None:
    report = json.loads(keyd("demo", "--cards", "12", "--machines", "3", "--json"))
    assert report["made"] == 12
    assert report["forged_card"] == "CARD_NOT_AUTHENTIC"
    assert report["daemon_exit_status"] == 0
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["PIN reload"]["count"] == 12
    assert steps["forged card"]["refusals"] == 1
    assert sum(step["refusals"] for step in report["steps"]) == 1
    # Nine questions a card, two for each of four terminal authentications, and the forged card's one.
    assert report["metrics"]["requests"] == 12 * 9 + 4 * 2 + 1
    assert report["metrics"]["refusals"] == 1


def test_the_demo_prints_a_table_for_people() -> None:
    shown = keyd("demo", "--cards", "3", "--machines", "1")
    for word in ("3 of 3 cards made", "p99", "mutual authentication", "CARD_NOT_AUTHENTIC"):
        assert word in shown
