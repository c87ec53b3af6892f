"""Killed at any moment, a journal opens, verifies and has everything that was acknowledged."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

ROUNDS = 300


def test_everything_acknowledged_survives_a_kill(folder: Path) -> None:
    seed = secrets.randbelow(1_000_000)
    program = Path(__file__).with_name("crash_rounds.py")
    done = subprocess.run(
        [sys.executable, program, folder, str(ROUNDS), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    rounds, acknowledged, with_some = map(int, done.stdout.split())
    assert rounds == ROUNDS
    # Else the kills came too early to show anything.
    assert with_some > ROUNDS // 4
    assert acknowledged > ROUNDS
