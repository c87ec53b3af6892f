"""What the tests of custody's commands share: a founded city with a real daemon, and a terminal to type at."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.founded import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEYD: Final = Path(sys.executable).with_name("keyd")

# Longer than any command takes; a test that waits for a prompt that never comes ends then.
TYPING_SECONDS: Final = 60.0

OFFICERS: Final = {
    "li": ("LOCAL", '"security-officer", "operator"'),
    "wang": ("LOCAL", '"security-officer", "custodian"'),
    "zhao": ("LOCAL", '"custodian"'),
    "qian": ("SOCIAL", '"security-officer"'),
    "sun": ("SOCIAL", '"security-officer"'),
    "chen": ("SOCIAL", '"custodian"'),
    "zhou": ("SOCIAL", '"custodian"'),
}


class City:
    """A city's keyd: its folder, its officers, and their command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.admin = folder / "admin.sock"

    def run(
        self, *arguments: str, who: str = "", has_passphrase: bool = True
    ) -> tuple[int, str, str]:
        """Run keyd as an officer, or as nobody; return exit status, output and what it said."""
        ended = subprocess.run(
            [KEYD, *arguments],
            capture_output=True,
            text=True,
            timeout=TYPING_SECONDS,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            env=self.environment(who, has_passphrase=has_passphrase),
            start_new_session=True,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    def environment(self, who: str, *, has_passphrase: bool = True) -> dict[str, str]:
        """Return the environment of an officer's shell."""
        env = os.environ | {"COLUMNS": "100", "KEYD_ADMIN": str(self.admin)}
        if who:
            env |= {
                "KEYD_DOMAIN": OFFICERS[who][0],
                "KEYD_OFFICER": who,
                "KEYD_OFFICER_KEY": f"{who}.key",
            }
        if who and has_passphrase:
            env["KEYD_OFFICER_PASSPHRASE_FILE"] = "passphrase"
        return env

    def said(self, *arguments: str, who: str = "") -> str:
        """Run keyd, which succeeds; return what people read."""
        status, output, error = self.run(*arguments, who=who)
        assert status == 0, error
        return output

    def answer(self, *arguments: str, who: str = "") -> Any:
        """Run keyd, which succeeds; return what programs read."""
        return json.loads(self.said(*arguments, "--json", who=who))

    def refused(self, *arguments: str, who: str = "") -> str:
        """Run keyd, which is refused with one sentence."""
        status, output, error = self.run(*arguments, who=who)
        assert status == 1, (status, output, error)
        (line,) = error.splitlines()
        return line.removeprefix("keyd: ")

    def decided(self, *arguments: str, by: str = "qian", approved_by: str = "sun") -> Any:
        """Have one officer propose and another approve; return what came of it."""
        proposal = self.answer(*arguments, who=by)["proposal_id"]
        return self.answer("approve", proposal, who=approved_by)

    def typed(
        self, arguments: Sequence[str], answers: Sequence[tuple[str, str]], who: str = ""
    ) -> tuple[int, str]:
        """Run keyd on a terminal, and type each answer when its prompt stands there; return what was on the screen."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            os.execve(KEYD, [str(KEYD), *arguments], self.environment(who, has_passphrase=False))
        clock = threading.Timer(TYPING_SECONDS, os.kill, (pid, 9))
        clock.start()
        screen, seen = b"", 0
        waiting = list(answers)
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            screen += data
            if waiting and re.search(waiting[0][0].encode() + rb"\Z", screen[seen:]):
                seen = len(screen)
                os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
        _pid, status = os.waitpid(pid, 0)
        clock.cancel()
        os.close(terminal)
        assert not waiting, (waiting, screen)
        return os.waitstatus_to_exitcode(status), screen.decode()


def found(folder: Path) -> City:
    """Make officers' keys, write the configuration and found a store."""
    city = City(folder)
    (folder / "passphrase").write_text("a synthetic passphrase\n")
    (folder / "passphrase").chmod(0o600)
    (folder / "keyd.toml").write_text(
        f'store.url = "sqlite:///{folder}/store.db"\n'
        f'policy.file = "{EVERYTHING}"\n'
        f'audit = {{folder = "{folder}/journal", instance = "city-1"}}\n'
        f'custody.socket = "{city.admin}"\n'
        'listen = {tcp = ["127.0.0.1:0"], operations = "127.0.0.1:0"}\n'
    )
    officers = ""
    for code, (domain, roles) in OFFICERS.items():
        city.said("officer", "new", f"{code}.key", "--passphrase-file", "passphrase")
        officers += f'[[officers]]\ndomain = "{domain}"\ncode = "{code}"\nname = "{code}"\n'
        officers += f'roles = [{roles}]\npublic_key = "{code}.key.pub"\n'
    (folder / "officers.toml").write_text(officers)
    return city


INIT: Final = (
    *("init", "--config", "keyd.toml", "--tier", "city", "--officers", "officers.toml"),
    *("--threshold", "2", "--shares", "3", "--shares-to", "shares"),
)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A founded and unsealed city, for all tests of a module."""
    folder = tmp_path_factory.mktemp("city")
    city = found(folder)
    city.answer(*INIT)
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "keyd.daemon", "--config", str(folder / "keyd.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while not city.admin.exists():
            assert daemon.poll() is None, (folder / "log").read_text()
        shares = [f"--share-file=shares/share-{number}.txt" for number in (1, 3)]
        assert not city.answer("unseal", *shares)["sealed"]
        yield city
    finally:
        daemon.terminate()
        daemon.wait()
    assert "Traceback" not in (folder / "log").read_text()
