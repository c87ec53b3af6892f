"""Where and of what the numbers were made: machine, commit, versions. A number without them is gossip."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.backends.openssl.backend import backend

from bench.servers import has_redis

_ROOT: Final = Path(__file__).parent.parent
_PACKAGES: Final = ("keyd", "trio", "msgpack", "msgspec", "cryptography")


class Machine(msgspec.Struct, frozen=True):
    """The machine, and how busy it was before anything was measured."""

    cpu: str
    cpus: int
    kernel: str
    load_average: tuple[float, float, float]


class Source(msgspec.Struct, frozen=True):
    """What was measured. A dirty tree has changes that the commit does not know of."""

    commit: str
    is_dirty: bool

    def __str__(self) -> str:
        return f"{self.commit}, with uncommitted changes" if self.is_dirty else self.commit


def describe_machine() -> Machine:
    """Describe the machine that this runs on."""
    return Machine(
        cpu=_cpu_model(),
        cpus=os.cpu_count() or 1,
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        load_average=os.getloadavg(),
    )


def describe_source() -> Source:
    """Describe the commit that is checked out."""
    commit = _output("git", "rev-parse", "--short", "HEAD") or "uncommitted"
    # Results are written into the tree, and one run's results do not change the next one's source.
    changes = _output("git", "status", "--porcelain", "--", ".", ":!bench/results")
    return Source(commit, bool(changes) or commit == "uncommitted")


def describe_versions() -> dict[str, str]:
    """Return the versions of everything that the numbers depend on."""
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in _PACKAGES}
    versions["openssl (of cryptography)"] = backend.openssl_version_text()
    versions["gcc"] = _output("gcc", "-dumpfullversion") or "none"
    if has_redis():
        words = dict(
            word.split("=", 1)
            for word in _output("redis-server", "--version").split()
            if "=" in word
        )
        versions["redis"] = words["v"]
    return versions


def origin(source: Source, date: str, machine: Machine, versions: dict[str, str]) -> list[str]:
    """Say in a few lines where numbers come from."""
    return [
        f"commit {source}; {date}",
        f"{machine.cpu}, {machine.cpus} CPUs; {machine.kernel}; "
        f"load before: {' '.join(f'{load:.2f}' for load in machine.load_average)}",
        "; ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
