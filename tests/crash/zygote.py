"""Forks daemons: a process that has imported keyd already, so that a thousand of them cost minutes and not an hour.

What it forks is the daemon itself, from its `main` on. It reads one JSON object per line and answers with one:
{"arguments", "log", "arm"} starts a daemon and gives its "pid"; {"wait": pid, "hangs": true or false} gives its
"status", or null while it runs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from typing import Any, Final

import keyd.daemon
from keyd.store import engine  # the drivers come with it

_PR_SET_PDEATHSIG: Final = 1


def start(arguments: list[str], log: str, arm: list[Any] | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.close(0)
        if arm is not None:
            folders, at, when, trace = arm
            libc.keyd_crash_arm(folders.encode(), ctypes.c_long(at), when.encode(), trace.encode())
        status = keyd.daemon.main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, *, hangs: bool) -> int | None:
    found, status = os.waitpid(pid, 0 if hangs else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    # The first engine of a kind imports its dialect.
    engine.make_engine(engine.parsed("sqlite:////nowhere")).dispose()
    # A daemon collects at its start; what is frozen here need not be copied for that.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer: dict[str, Any] = {"status": wait(asked["wait"], hangs=asked["hangs"])}
        else:
            answer = {"pid": start(asked["arguments"], asked["log"], asked["arm"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
