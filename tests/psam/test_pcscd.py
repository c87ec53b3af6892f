"""Any reader software finds keyd's PSAMs and cards in "Virtual PCD": the real pcscd with the real driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.pcscd import SECONDS, Pcscd, needs_pcscd, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY: Final = Path(__file__).parents[2]

pytestmark = needs_pcscd


@pytest.fixture
def pcscd(tmp_path: Path) -> Iterator[Pcscd]:
    made = Pcscd(tmp_path)
    made.start()
    yield made
    made.stop()


def start_keyd(pcscd: Pcscd, state: Path, *chips: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-c", "from keyd.cli import main; main()", "vpcd", "--dev"),
            *("--connect", f"127.0.0.1:{pcscd.port}", "--state", str(state), *chips),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def keyd(pcscd: Pcscd, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        running.append(start_keyd(pcscd, tmp_path / "state", "psam", "card"))
        wait_until(lambda: pcscd.has_card(0) and pcscd.has_card(1))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


SELECT: Final = "00A4040006D15600000590"
TERMINAL: Final = "00B0960006"
# 3 levels of RKSSSE, and the challenge 11…: with the synthetic keys always the same.
DELIVER: Final = "BFDE670A28" + "A1" * 8 + "A2" * 8 + "A3" * 8 + "A4" * 8 + "00" * 8
CIPHER: Final = "80FA000010" + "11" * 8 + "00" * 8
RESPONSE: Final = "00C0000010"
NUMBER: Final = "00B0990004"


def test_reader_software_finds_a_psam_and_a_card(
    pcscd: Pcscd, keyd: Callable[[], subprocess.Popen[bytes]]
) -> None:
    keyd()
    assert "3b:68:00:00:4b:45:59:44:50:53:41:4d" in pcscd.opensc("--reader", "0", "--atr")
    assert "3b:6d:00:00" in pcscd.opensc("--reader", "1", "--atr")
    assert pcscd.send(0, TERMINAL) == ["9000510100000001"]
    answers = pcscd.send(0, SELECT, DELIVER, CIPHER, RESPONSE)
    # opensc-tool itself makes 9000 of the 61xx where no Le asked for data.
    assert [answer[:4] for answer in answers] == ["9000"] * 4
    assert len(answers[-1]) == 4 + 32
    card = pcscd.send(1, "00A404000F7378312E73682EC9E7BBE1B1A3D5CF00", "0084000008")
    assert [answer[:4] for answer in card] == ["9000", "9000"]


def test_keyd_and_pcscd_may_be_started_anew(
    pcscd: Pcscd, keyd: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = keyd()
    cryptograms = {pcscd.send(0, SELECT, DELIVER, CIPHER, RESPONSE)[-1]}
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not pcscd.has_card(0))
    keyd()
    cryptograms.add(pcscd.send(0, SELECT, DELIVER, CIPHER, RESPONSE)[-1])
    pcscd.stop()
    pcscd.start()
    wait_until(lambda: pcscd.has_card(0) and pcscd.has_card(1))
    cryptograms.add(pcscd.send(0, SELECT, DELIVER, CIPHER, RESPONSE)[-1])
    (cryptogram,) = cryptograms
    assert len(cryptogram) == 4 + 32


def test_a_purchase_through_the_reader_spends_its_number_for_good(
    pcscd: Pcscd, keyd: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = keyd()
    terms = "C1C2C3C40005" + "10" * 12 + "0120261123120000" + "0103" + DELIVER[10:58]
    buy = "8070010034" + terms
    numbers = []
    for _ in range(2):
        answers = pcscd.send(0, "00A4000002DDF2", SELECT, buy, "00C0000008")
        assert answers[-1][:4] == "9000"
        numbers.append(int(answers[-1][4:12], 16))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not pcscd.has_card(0))
        process = keyd()
    assert numbers[1] > numbers[0]


SYSTEM_PYTHON: Final = "/usr/bin/python3"

PYSCARD: Final = """
import sys
from smartcard.System import readers
from smartcard.util import toBytes, toHexString
connection = readers()[0].createConnection()
connection.connect()
for command in sys.argv[1:]:
    data, sw1, sw2 = connection.transmit(toBytes(command))
    print(toHexString([*data, sw1, sw2]).replace(" ", ""))
"""


def test_pyscard_finds_a_psam(pcscd: Pcscd, keyd: Callable[[], subprocess.Popen[bytes]]) -> None:
    # Debian's, for Debian's Python: PyPI has it as sources only.
    environment = os.environ | {"PCSCLITE_CSOCK_NAME": str(pcscd.socket), "PYTHONPATH": ""}
    if subprocess.run(
        [SYSTEM_PYTHON, "-c", "import smartcard"], capture_output=True, env=environment, check=False
    ).returncode:
        pytest.skip("pyscard is not here: install the Debian package python3-pyscard")
    keyd()
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", PYSCARD, SELECT, DELIVER, CIPHER, RESPONSE, RESPONSE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    *told, cryptogram, late = done.stdout.split()
    assert told == ["610C", "9000", "6110"]
    assert cryptogram[-4:] == "9000"
    assert len(cryptogram) == 2 * 18
    assert late == "6985"
