"""A client in another language, written from the manual alone, gets the same bytes as ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyd.keys.synthetic import synthetic_terminal_key
from keyd.simulator import issue_card
from keyd.simulator.arithmetic import cryptogram, session_key

if TYPE_CHECKING:
    from tests.conftest import RunningDaemon

CLIENT = Path(__file__).with_name("client.rb")


def ruby() -> str:
    """Return Ruby with its MessagePack, or skip."""
    found = shutil.which("ruby")
    has_msgpack = (
        found and not subprocess.run([found, "-rmsgpack", "-e", ""], check=False).returncode
    )
    if not found or not has_msgpack:
        pytest.skip("needs Ruby and its MessagePack: apt-get install ruby ruby-msgpack")
    return found


def test_a_ruby_client_holds_a_whole_conversation(daemon: RunningDaemon) -> None:
    host, port = daemon.address.split(":")
    card = issue_card(serial=0x0BEE)
    historical = card.atr[4:]
    card_id = bytes.fromhex("510100D156000005") + historical[9:] + bytes(4)
    key = synthetic_terminal_key("DEV-0007").hex()
    ended = subprocess.run(
        [ruby(), CLIENT, host, port, "DEV-0007", key, card_id.hex(), historical.hex()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    refused, _, proved, replied, genuine, forged, batch, pin, unknown, pipelined = said

    assert refused["error"][1] == "NOT_AUTHENTICATED"
    assert len(proved["result"][0]) == 16
    session = session_key(card.state.keys(0x0170), bytes.fromhex("0102030405060708"))
    expected = cryptogram(session, bytes.fromhex("1112131415161718")).hex()
    assert replied["result"] == [expected + "1112131415161718", []]
    assert genuine["result"] == [[]]
    assert forged["error"][:2] == [400, "CARD_NOT_AUTHENTIC"]
    good, short, empty = batch["result"]
    assert good == [None, replied["result"]]
    assert short[0][1] == empty[0][1] == "BAD_PARAMETER"
    assert pin["result"][0].startswith("8424000114")
    assert unknown["error"][1] == "METHOD_UNKNOWN"
    assert pipelined["result"] == 3
