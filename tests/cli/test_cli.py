"""Every command does what its help says, prints what a person can read, and fails with one sentence."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyd.keys import sealed
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import TABLE

if TYPE_CHECKING:
    from tests.conftest import RunningDaemon, StartDaemon

KEYD = Path(sys.executable).with_name("keyd")

CARD = [
    "card.card_id=510100D15600000530000BEE00000000",
    "card.historical=00814A44468649510130000BEE",
]


def keyd(*arguments: str, text: str = "", status: int = 0) -> str:
    """Run keyd; return what it printed, or on failure what it said."""
    ended = subprocess.run(
        [KEYD, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
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


@pytest.mark.parametrize("command", ["demo", "status", "call", "init", "selftest", "serve"])
def test_every_command_has_help(command: str) -> None:
    assert len(keyd(command, "--help")) > 200


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


# status ---------------------------------------------------------------------------------------------------------


def test_status_shows_keys_by_check_value(daemon: RunningDaemon) -> None:
    shown = keyd("status", "--dev", "--connect", daemon.address)
    assert "public synthetic keys" in shown
    assert "RKSSSE" in shown
    state = json.loads(keyd("status", "--dev", "--connect", daemon.address, "--json"))
    assert {len(key["kcv"]) for key in state["keys"]} == {6}


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


# init -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    """Return a private file with a synthetic passphrase."""
    file = tmp_path / "passphrase"
    file.write_text("a synthetic passphrase\n")
    file.chmod(0o600)
    return file


def test_init_makes_random_roots_and_shows_check_values_only(
    tmp_path: Path, passphrase_file: Path
) -> None:
    made = []
    for name in ("one", "two"):
        out = tmp_path / name
        arguments = ["--out", str(out), "--passphrase-file", str(passphrase_file), "--json"]
        shown = json.loads(keyd("init", *arguments, "--algorithm", "sm4", "--levels", "2"))
        keys = sealed.unseal(out.read_bytes(), b"a synthetic passphrase")
        assert [header.kcv.hex().upper() for header, _ in keys] == [row["kcv"] for row in shown]
        assert {header.levels for header, _ in keys} == {2}
        assert len(keys) == 155
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        made.append({row["kcv"] for row in shown})
    assert not made[0] & made[1]


def test_init_never_overwrites(tmp_path: Path, passphrase_file: Path) -> None:
    out = tmp_path / "roots"
    out.write_text("precious")
    said = sentence("init", "--out", str(out), "--passphrase-file", str(passphrase_file))
    assert "never overwritten" in said
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passphrase", "roots"]


def test_init_wants_a_long_private_passphrase(tmp_path: Path, passphrase_file: Path) -> None:
    arguments = ["init", "--out", str(tmp_path / "x"), "--passphrase-file", str(passphrase_file)]
    passphrase_file.write_text("short")
    assert "less than 12 bytes" in sentence(*arguments)
    passphrase_file.write_text("")
    assert "is empty" in sentence(*arguments)
    passphrase_file.chmod(0o640)
    assert "chmod 600" in sentence(*arguments)
    assert not (tmp_path / "x").exists()


def test_init_asks_for_the_passphrase_without_echo(tmp_path: Path) -> None:
    out = tmp_path / "roots"
    assert "differ" in typed(out, "a synthetic passphrase", "another passphrase")
    assert not out.exists()
    shown = typed(out, "a synthetic passphrase", "a synthetic passphrase")
    assert "synthetic" not in shown.replace(str(out), "")
    assert len(sealed.unseal(out.read_bytes(), b"a synthetic passphrase")) == 310


def typed(out: Path, *answers: str) -> str:
    """Run keyd init on a terminal of its own and type; return everything that stood on the screen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(KEYD, [str(KEYD), "init", "--out", str(out)])
    screen = b""
    waiting = list(answers)
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        screen += data
        if data.rstrip().endswith(b":") and waiting:
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    os.waitpid(pid, 0)
    os.close(terminal)
    return screen.decode()


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
