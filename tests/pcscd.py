"""The real pcscd with the driver of vsmartcard-vpcd, in a mount namespace of its own, with its own socket and port.

So none that runs already is touched. Only who may mount, as root may, can give it that.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER: Final = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
TOOLS: Final = ("pcscd", "opensc-tool", "unshare", "mount")
SECONDS: Final = 20

HEX_DUMP: Final = re.compile(r"([0-9A-F]{2} ){1,16}")

needs_pcscd: Final = pytest.mark.skipif(
    not DRIVER.exists() or not all(map(shutil.which, TOOLS)),
    reason="install the Debian packages pcscd, vsmartcard-vpcd and opensc",
)

# A tmpfs hides the socket of a pcscd that runs already; its own is reached through the process.
NAMESPACE: Final = (
    "mkdir -p /run/pcscd && mount -t tmpfs none /run/pcscd && exec pcscd --foreground --config {}"
)

CONFIG: Final = """FRIENDLYNAME "Virtual PCD"
DEVICENAME   /dev/null:0x{port:04X}
LIBPATH      {driver}
CHANNELID    0x{port:04X}
"""


class Pcscd:
    """A pcscd of our own, with a reader of two slots."""

    def __init__(self, folder: Path, link: Path | None = None) -> None:
        """`link` leads to its socket, wherever the process is; a folder of its own is for the rest."""
        self.port = free_ports()
        self.folder = folder / "reader.conf.d"
        self.folder.mkdir()
        self.socket = link or folder / "pcscd.comm"
        self.process: subprocess.Popen[bytes] | None = None
        self.plug_in()

    def plug_in(self) -> None:
        """Have the reader from the next start on. One that runs does not look again at readers that are not USB."""
        (self.folder / "vpcd").write_text(CONFIG.format(port=self.port, driver=DRIVER))

    def take_out(self) -> None:
        """Have no reader from the next start on."""
        (self.folder / "vpcd").unlink()

    def start(self) -> None:
        if subprocess.run(
            ["unshare", "--mount", "true"], capture_output=True, check=False
        ).returncode:
            pytest.skip("this machine cannot run a pcscd in a mount namespace of its own")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", NAMESPACE.format(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.socket.unlink(missing_ok=True)
        self.socket.symlink_to(f"/proc/{self.process.pid}/root/run/pcscd/pcscd.comm")
        wait_until(self.socket.exists)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(SECONDS)
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(SECONDS)
            self.process = None

    def opensc(self, *arguments: str) -> str:
        done = subprocess.run(
            ["opensc-tool", "--card-driver", "default", *arguments],
            env=os.environ | {"PCSCLITE_CSOCK_NAME": str(self.socket)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    def has_card(self, reader: int) -> bool:
        lines = [line.split() for line in self.opensc("--list-readers").splitlines()]
        return any(line[:2] == [str(reader), "Yes"] for line in lines)

    def send(self, reader: int, *commands: str) -> list[str]:
        """Answers as status word and data."""
        arguments = [part for command in commands for part in ("--send-apdu", command)]
        text = self.opensc("--reader", str(reader), *arguments)
        answers = []
        for part in text.split("Received (SW1=0x")[1:]:
            first, *lines = part.splitlines()
            # Sixteen bytes a line, then the same as text.
            octets = [match[0] for line in lines if (match := HEX_DUMP.match(line))]
            data = "".join(octets).replace(" ", "")
            answers.append(first[:2] + first[first.index("SW2=0x") + 6 :][:2] + data)
        return answers


@functools.cache
def socket_of_this_process() -> Path:
    """Where libpcsclite in this process looks for pcscd: it asks the environment once, for all tests."""
    path = Path(tempfile.mkdtemp(prefix="keyd-pcscd-")) / "pcscd.comm"
    atexit.register(shutil.rmtree, path.parent)
    os.environ["PCSCLITE_CSOCK_NAME"] = str(path)
    return path


def free_ports() -> int:
    """Two ports in a row that nobody has, below those that are given out by themselves."""
    # Not the same for two test runs side by side: between this look and the driver's, the other would look too.
    start = os.getpid() % 5000
    for number in range(5000):
        port = 20000 + 2 * ((start + number) % 5000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("0.0.0.0", port))  # noqa: S104 - as the driver does
                second.bind(("0.0.0.0", port + 1))  # noqa: S104
            except OSError:
                continue
            return port
    pytest.fail("there are no free ports")


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
