"""`keyd vpcd` says in a sentence what it cannot do; what it does is tested with the driver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from keyd.psam import FileMemory

REPOSITORY: Final = Path(__file__).parents[2]
SECONDS: Final = 30


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", "from keyd.cli import main; main()", "vpcd", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["psam"], "public synthetic keys only"),
        (["--dev", "door"], "'door' is no chip"),
        (["--dev", "psam:nothing"], "'psam:nothing' is no chip"),
        (["--dev", "card:pboc"], "'card:pboc' is no chip"),
        (["--dev", "--environment", "SSF33", "psam"], "SSF33 is neither"),
        (["--dev", "--terminal", "5101", "psam"], "12 digits"),
        (["--dev", "--connect", "unix:/run/vpcd", "psam"], "HOST:PORT"),
        (["--dev", "--connect", "nowhere", "psam"], "no address"),
        (["--dev", *["card"] * 17], "at most 16 slots"),
        (["--dev", "--state", "/proc/nowhere", "psam"], "/proc/nowhere cannot be made"),
    ],
)
def test_what_it_cannot_do_is_a_sentence(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.startswith("keyd: ")
    assert done.stderr.count("\n") == 1


def test_a_psam_that_another_process_has_is_a_sentence(tmp_path: Path) -> None:
    memory = FileMemory(tmp_path / "social-security-510100000001.json")
    done = run("--dev", "--state", str(tmp_path), "psam")
    memory.close()
    assert (done.returncode, "another process uses the PSAM" in done.stderr) == (1, True)


def test_it_tells_when_a_chip_is_in_its_slot(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as driver:
        address = f"127.0.0.1:{driver.getsockname()[1]}"
        with subprocess.Popen(
            command("--dev", "--connect", address, "--state", str(tmp_path / "new"), "psam:pboc"),
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            connection, _ = driver.accept()
            with connection:
                connection.sendall(b"\0\1\4")
                answer = connection.recv(100)
                assert answer == bytes.fromhex("000C3B6800004B45594450424F43")
                assert process.stderr.readline() == "slot 0, psam:pboc: in\n"
            assert process.stderr.readline() == "slot 0, psam:pboc: out\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pboc-510100000001.json.lock"]
