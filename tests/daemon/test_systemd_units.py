"""Invariant: systemd accepts the units as they are shipped, and they leave keyd almost nothing to misuse.

The judge is systemd itself, through its own offline tools; no unit is started.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from keyd.config import CustodyConfig, LimitsConfig, Listen, load_config
from keyd.hub import LINGER_SECONDS
from keyd.listening import SPARE_DESCRIPTORS

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"

# In tenths, as systemd-analyze wants it: an exposure of at most 1.5 of 10.
MAX_EXPOSURE = 15


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not here: install the Debian package systemd")
    return path


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        # SYSTEMD_LOG_TARGET: its complaints come to us, not to a journal.
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "SYSTEMD_LOG_TARGET": "console"},
        timeout=60,
    )


class Unit(configparser.RawConfigParser):
    """A unit file, with its names as they are written and the last of repeated settings."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
        self.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way
        self.read(path, encoding="utf-8")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The shipped units, with a program that exists: verify insists on one, and keyd is not installed."""
    for unit in ("keyd.service", "keyd.socket"):
        text = (UNITS / unit).read_text(encoding="utf-8")
        (tmp_path / unit).write_text(text.replace("/opt/keyd/bin/keyd", "/bin/true"))
    return tmp_path


def test_verify_is_silent(units: Path) -> None:
    verified = run("systemd-analyze", "verify", units / "keyd.service", units / "keyd.socket")
    assert verified.returncode == 0
    # What it says of other units on this machine is not about ours.
    assert [line for line in verified.stderr.splitlines() if "keyd" in line] == []


def test_a_misspelt_setting_would_be_noticed(units: Path) -> None:
    service = units / "keyd.service"
    service.write_text(service.read_text().replace("NoNewPrivileges=", "NoNewPriviledges="))
    verified = run("systemd-analyze", "verify", service)
    assert "NoNewPriviledges" in verified.stderr


def test_exposure_is_at_most_1_5(units: Path) -> None:
    scored = run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={MAX_EXPOSURE}",
        units / "keyd.service",
    )
    assert scored.returncode == 0, scored.stdout
    assert "Overall exposure level" in scored.stdout


def test_a_soft_unit_would_be_noticed(units: Path) -> None:
    service = units / "keyd.service"
    service.write_text(service.read_text().replace("PrivateUsers=yes", "PrivateUsers=no"))
    service.write_text(service.read_text().replace("SystemCallFilter=", "#SystemCallFilter="))
    scored = run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={MAX_EXPOSURE}",
        service,
    )
    assert scored.returncode != 0


def test_the_credential_that_opens_the_seal_is_one_line_away(units: Path) -> None:
    """The option stands in the unit as a comment; systemd takes it, and it costs no exposure."""
    service = units / "keyd.service"
    text = service.read_text()
    option = "# LoadCredentialEncrypted="
    assert text.count(option) == 1
    service.write_text(text.replace(option, option.removeprefix("# ")))
    verified = run("systemd-analyze", "verify", service)
    assert [line for line in verified.stderr.splitlines() if "keyd" in line] == []
    exposures = [
        run("systemd-analyze", "security", "--offline=true", unit).stdout.splitlines()[-1]
        for unit in (service, UNITS / "keyd.service")
    ]
    assert exposures[0] == exposures[1]
    # It is handed over under the name that conf/keyd.toml looks for.
    name, _, source = Unit(service)["Service"]["LoadCredentialEncrypted"].partition(":")
    assert f'"$CREDENTIALS_DIRECTORY/{name}"' in (ROOT / "conf" / "keyd.toml").read_text()
    assert source.startswith("/etc/keyd/")


def test_nothing_of_keyd_is_swapped_or_dumped() -> None:
    service = Unit(UNITS / "keyd.service")["Service"]
    assert (service["MemorySwapMax"], service["LimitCORE"]) == ("0", "0")


def test_sysusers_file_is_understood() -> None:
    dry = run("systemd-sysusers", "--dry-run", UNITS / "keyd.sysusers")
    assert dry.returncode == 0, dry.stderr


def test_tmpfiles_file_is_understood(tmp_path: Path) -> None:
    # With a root and a prefix that hold nothing it reads every line and does nothing.
    parsed = run(
        "systemd-tmpfiles",
        "--create",
        f"--root={tmp_path}",
        "--prefix=/nothing",
        UNITS / "keyd.tmpfiles",
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_the_unit_and_the_code_agree() -> None:
    unit = Unit(UNITS / "keyd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["LimitCORE"] == "0"
    # With a hard limit above the soft one, keyd would raise it, and the system call filter forbids that.
    assert int(service["LimitNOFILE"]) >= LimitsConfig().connections + SPARE_DESCRIPTORS
    # systemd must not kill a drain that keyd still allows itself.
    longest_end = LimitsConfig().drain_seconds + LINGER_SECONDS
    assert float(service["TimeoutStopSec"]) > longest_end


def test_the_socket_unit_opens_what_keyd_would() -> None:
    listeners = [
        line.removeprefix("ListenStream=")
        for line in (UNITS / "keyd.socket").read_text(encoding="utf-8").splitlines()
        if line.startswith("ListenStream=")
    ]
    assert listeners == [*Listen().tcp, "/run/keyd/keyd.sock"]


def test_the_units_leave_the_administrations_socket_to_keyd() -> None:
    # A socket that systemd opened would be the public ones' equal: their mode, and no administration.
    socket_path = CustodyConfig().socket
    assert socket_path not in (UNITS / "keyd.socket").read_text(encoding="utf-8")
    service = Unit(UNITS / "keyd.service")["Service"]
    assert socket_path.startswith(f"/run/{service['RuntimeDirectory']}/")
    assert service["RuntimeDirectoryMode"] == "0750"


def test_keyd_is_handed_no_secret_unless_somebody_asks_for_it() -> None:
    # People unseal it. Whoever wants it to unseal itself uncomments a credential that is encrypted.
    service = Unit(UNITS / "keyd.service")["Service"]
    assert not [name for name in service if name.startswith(("LoadCredential", "SetCredential"))]
    text = (UNITS / "keyd.service").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("# LoadCredential")]
    name, _, source = line.removeprefix("# LoadCredentialEncrypted=").partition(":")
    assert source.startswith("/etc/keyd/")
    shipped = (ROOT / "conf" / "keyd.toml").read_text(encoding="utf-8")
    assert f'#   credential = "$CREDENTIALS_DIRECTORY/{name}"' in shipped


def test_the_unit_has_the_folders_that_the_configuration_names() -> None:
    config = load_config(ROOT / "conf" / "keyd.toml")
    service = Unit(UNITS / "keyd.service")["Service"]
    assert config.store.url.startswith(f"sqlite:////var/lib/{service['StateDirectory']}/")
    assert config.audit.folder.startswith(f"/var/lib/{service['StateDirectory']}/")
    assert service["ExecStart"].endswith(" serve --config /etc/keyd/keyd.toml")
