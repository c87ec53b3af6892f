"""The policy as shipped, the catalogue that it is read against, and small policies for single tests."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from keyd.cards.profile_files import load_profiles
from keyd.needs import catalogue
from keyd.policy import Catalogue, Policy, PolicyFile, read_policy

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "conf" / "policy.toml"

# What every policy file has to have.
LIMITS: Final = """
[limits.connections]
per_terminal = 2
per_organisation = 3
[limits.cards]
pin_resets_per_day = 3
region_minutes = 10
region_digits = 4
failures = 3
failure_minutes = 10
"""

CATALOGUE: Final = catalogue(load_profiles())


def policy_of(text: str, known: Catalogue = CATALOGUE) -> Policy:
    """Return the policy of a file that has these roles."""
    return read_policy((text + LIMITS).encode(), known).policy


@pytest.fixture(scope="session")
def shipped() -> PolicyFile:
    """The file as shipped."""
    return read_policy(SHIPPED.read_bytes(), CATALOGUE)
