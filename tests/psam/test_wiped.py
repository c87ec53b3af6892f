"""A PSAM's keys are wiped as the last reference to it goes, not when Python looks for cycles."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from keyd.crypto.native._core import arena_info
from keyd.psam import Applet, PsamIdentity, TransientMemory, load_psam_profiles, synthetic_psam
from tests.psam.commands import apdu

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_no_key_outlives_its_applet() -> None:
    before = arena_info().used
    identity = PsamIdentity(bytes(10), bytes.fromhex("510100000001"))
    profile = load_psam_profiles()["social-security"]
    applet = Applet(synthetic_psam(profile, identity, TransientMemory()))
    factors = bytes.fromhex("3230303531303130") * 3
    for command in (
        apdu("00A40000", bytes.fromhex("DDF2")),
        apdu("00700000", le=1),
        apdu("BFDE670A", factors + bytes(16)),
        apdu("80FA0000", bytes(16)),
    ):
        applet.transmit(command)
    assert arena_info().used > before
    del applet
    assert arena_info().used == before
