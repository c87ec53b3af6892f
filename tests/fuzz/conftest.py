"""What the tests of the fuzz targets share: a process of one's own, since a target may set aside limits of keyd's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.running import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def in_own_process() -> Callable[[str], str]:
    """Run a script that has to succeed; return what it wrote."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
