"""Invariant: a process that has forbidden dumps leaves none and lets no other of its user look into it; and what
could still bring its memory to a disk is said, each thing once, and nothing else.

Root is not kept out, and no test says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.hardening import swap_warnings

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY: Final = Path(__file__).parent.parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own: what is forbidden here stays forbidden until it ends."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# A real process. ---------------------------------------------------------------------------------------------

# As an ordinary user without any capability, a parent looks into its child: what the strictest usual setting of
# Yama still allows. The child forbids it when it is told to.
LOOKING: Final = """
import ctypes, os, signal, sys
from keyd import hardening

if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
libc = ctypes.CDLL(None, use_errno=True)
# Changing the user has made it undumpable, which would prove nothing.
hardening._prctl(hardening._PR_SET_DUMPABLE, 1)

told, tell = os.pipe()
done, say = os.pipe()
child = os.fork()
if child == 0:
    os.read(told, 1)
    hardening.forbid_dumps()
    os.write(say, b"1")
    os.read(told, 1)
    os._exit(0)

def looks():
    seen = []
    try:
        os.close(os.open(f"/proc/{child}/mem", os.O_RDONLY))
        seen.append("mem")
    except PermissionError:
        pass
    if libc.ptrace(16, child, None, None) == 0:  # PTRACE_ATTACH
        os.waitpid(child, 0)
        libc.ptrace(17, child, None, None)  # PTRACE_DETACH
        seen.append("ptrace")
    return " ".join(seen) or "nothing"

print("before:", looks())
os.write(tell, b"1")
os.read(done, 1)
print("after:", looks())
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_no_other_process_of_the_same_user_looks_in() -> None:
    done = run(LOOKING)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    if before == "before: nothing":
        pytest.skip("this machine cannot run it: nobody may look into any process here")
    assert before == "before: mem ptrace"
    assert after == "after: nothing"


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    done = run(
        "import os, resource, sys\n"
        "from keyd import hardening\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "assert hardening.is_dumpable()\n"
        "hardening.forbid_dumps()\n"
        "print(hardening.is_dumpable(), *resource.getrlimit(resource.RLIMIT_CORE), flush=True)\n"
        "os.chdir(sys.argv[1])\n"
        "child = os.fork() or os.abort()\n"
        "status = os.waitpid(child, 0)[1]\n"
        "print(os.WTERMSIG(status), os.WCOREDUMP(status))\n",
        str(tmp_path),
    )
    assert done.stdout.splitlines() == ["False 0 0", f"{signal.SIGABRT:d} False"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_may_be_forbidden_twice_and_where_the_limit_cannot_be_set() -> None:
    """As under a system call filter: then the other way still holds."""
    done = run(
        "import resource\n"
        "from keyd import hardening\n"
        "def refuse(*_): raise PermissionError\n"
        "resource.setrlimit = refuse\n"
        "hardening.forbid_dumps()\n"
        "hardening.forbid_dumps()\n"
        "print(hardening.is_dumpable())\n"
    )
    assert done.stdout == "False\n", done.stderr


def test_a_limit_that_is_set_is_not_set_again() -> None:
    """Under the unit the limit is there, and the call that sets one is filtered."""
    done = run(
        "import resource\n"
        "from keyd import hardening\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "def refuse(*_): raise AssertionError\n"
        "resource.setrlimit = refuse\n"
        "hardening.forbid_dumps()\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "is_dumpable"),
    [
        # It ends because there is no such file: what it would read next has not been read.
        (["--config", "/nonexistent/keyd.toml"], os.EX_CONFIG, False),
        # Public keys are no secret, and who develops keyd wants to look into it.
        (["--dev", "--log-level", "none"], os.EX_CONFIG, True),
    ],
)
def test_the_daemon_forbids_dumps_before_it_reads_anything(
    arguments: list[str], status: int, is_dumpable: bool
) -> None:
    done = run(
        "import sys\n"
        "from keyd import daemon, hardening\n"
        "assert hardening.is_dumpable()\n"
        "print(daemon.main(sys.argv[1:]), hardening.is_dumpable())\n",
        *arguments,
    )
    assert done.stdout == f"{status} {is_dumpable}\n", done.stderr


# What is said. -----------------------------------------------------------------------------------------------

NO_SWAP: Final = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAP: Final = (
    NO_SWAP + "/dev/sda2                               partition\t8388604\t\t0\t\t-2\n"
    "/swapfile                               file\t\t2097148\t\t0\t\t-3\n"
)
LIMITS: Final = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max data size             unlimited            unlimited            bytes     \n"
    "Max core file size        {core:<20} unlimited            bytes     \n"
)


class Machine:
    """What /proc and the control groups say on some machine."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroups"
        self.write(self.proc / "swaps", NO_SWAP)
        self.write(self.proc / "self" / "cgroup", "0::/system.slice/keyd.service\n")
        self.write(self.proc / "self" / "limits", LIMITS.format(core=0))
        self.write(self.proc / "sys" / "kernel" / "core_pattern", "core\n")
        self.limit_swap("system.slice/keyd.service", "max")

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def limit_swap(self, group: str, limit: str) -> None:
        self.write(self.cgroups / group / "memory.swap.max", limit + "\n")

    def said(self, *, dumpable: bool = True) -> Sequence[str]:
        sentences = swap_warnings(self.proc, self.cgroups, dumpable=dumpable)
        assert not any("\n" in sentence for sentence in sentences)
        return sentences


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine of which there is nothing to say."""
    return Machine(tmp_path)


def test_nothing_is_said_without_need(machine: Machine) -> None:
    assert machine.said() == []


def test_swap_is_said_with_its_places(machine: Machine) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    [sentence] = machine.said()
    assert sentence.startswith("this machine swaps to /dev/sda2, /swapfile: ")


@pytest.mark.parametrize("group", ["system.slice/keyd.service", "system.slice", "."])
def test_swap_that_the_unit_or_its_slice_forbids_is_not_said(machine: Machine, group: str) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    machine.limit_swap(group, "0")
    assert machine.said() == []


@pytest.mark.parametrize("limit", ["max", "4096", "00", ""])
def test_less_swap_is_still_swap(machine: Machine, limit: str) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    machine.limit_swap("system.slice/keyd.service", limit)
    assert len(machine.said()) == 1


@pytest.mark.parametrize("line", ["0::/other.slice\n", "0::/../outside\n", "0::/\n", "", "x"])
def test_another_groups_limit_does_not_count(machine: Machine, line: str) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    for group in ("system.slice", "../outside", ".."):
        machine.limit_swap(group, "0")
    machine.write(machine.proc / "self" / "cgroup", line)
    assert len(machine.said()) == 1


def test_version_1_of_control_groups_is_not_taken_for_a_limit(machine: Machine) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    machine.limit_swap("system.slice/keyd.service", "0")
    machine.write(machine.proc / "self" / "cgroup", "4:memory:/system.slice/keyd.service\n")
    assert len(machine.said()) == 1


def test_what_cannot_be_seen_is_said(machine: Machine) -> None:
    (machine.proc / "swaps").unlink()
    [sentence] = machine.said()
    assert "cannot be seen from here" in sentence
    # As under the unit, which hides the file and limits swap.
    machine.limit_swap("system.slice/keyd.service", "0")
    assert machine.said() == []


@pytest.mark.parametrize("core", ["unlimited", "1048576"])
def test_a_core_dump_is_said(machine: Machine, core: str) -> None:
    machine.write(machine.proc / "self" / "limits", LIMITS.format(core=core))
    [sentence] = machine.said()
    assert sentence == (
        f"a crash would write this process's memory into a core dump (limit {core})"
    )
    assert machine.said(dumpable=False) == []


def test_a_core_dump_into_a_program_needs_no_limit(machine: Machine) -> None:
    pattern = "|/usr/lib/systemd/systemd-coredump %P %u\n"
    machine.write(machine.proc / "sys" / "kernel" / "core_pattern", pattern)
    [sentence] = machine.said()
    assert "to /usr/lib/systemd/systemd-coredump: " in sentence
    assert machine.said(dumpable=False) == []


def test_limits_that_cannot_be_read_are_no_limits(machine: Machine) -> None:
    (machine.proc / "self" / "limits").unlink()
    [sentence] = machine.said()
    assert "(limit unknown)" in sentence


def test_every_way_is_said_once(machine: Machine) -> None:
    machine.write(machine.proc / "swaps", SWAP)
    machine.write(machine.proc / "self" / "limits", LIMITS.format(core="unlimited"))
    assert len(machine.said()) == 2


def test_this_machine_can_be_asked() -> None:
    """The real files have the form that is expected of them."""
    done = run(
        "import resource\n"
        "from keyd.hardening import forbid_dumps, swap_warnings, _core_limit, _read, _PROC\n"
        "soft = resource.getrlimit(resource.RLIMIT_CORE)[0]\n"
        "said = _core_limit(_read(_PROC / 'self' / 'limits'))\n"
        "print(said == ('unlimited' if soft == resource.RLIM_INFINITY else str(soft)))\n"
        "forbid_dumps()\n"
        "print(not any('crash' in sentence for sentence in swap_warnings()))\n"
    )
    assert done.stdout == "True\nTrue\n", done.stderr
    assert Path("/proc/swaps").read_text().startswith("Filename")
    assert os.path.exists("/proc/self/cgroup")  # noqa: PTH110 - as the kernel names it
