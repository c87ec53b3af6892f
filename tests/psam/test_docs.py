"""docs/psam.md is true: its conversation is what the PSAM says, and its numbers are the profile's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from keyd.crypto.algorithms import CardAlgorithm
from keyd.psam import Applet, PsamIdentity, TransientMemory, synthetic_psam
from tests.psam.bench import PROFILES, TERMINAL

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "psam.md").read_text(encoding="utf-8")


def test_the_conversation_is_what_the_psam_says() -> None:
    identity = PsamIdentity(bytes(10), TERMINAL, environment=CardAlgorithm.SM4)
    psam = synthetic_psam(PROFILES["social-security"], identity, TransientMemory())
    applet = Applet(psam)
    told = re.findall(r"^→ ([0-9A-F]+)\n← ([0-9A-F]+)$", DOCUMENT, re.MULTILINE)
    assert len(told) == 8
    for command, answer in told:
        assert applet.transmit(bytes.fromhex(command)).hex().upper() == answer


def test_its_numbers_are_the_profiles() -> None:
    profile = PROFILES["social-security"]
    assert f"After {profile.purchase.mac2_tries} wrong ones" in DOCUMENT
    assert f"reserved {profile.purchase.numbers_reserved} at a time" in DOCUMENT
    assert profile.loading.key_tries == 3
    assert "Three wrong MACs" in DOCUMENT
    assert profile.purchase.no_such_key in DOCUMENT
    assert profile.purchase.wrong_mac2 in DOCUMENT
    for name in PROFILES:
        assert f"- `{name}`:" in DOCUMENT
