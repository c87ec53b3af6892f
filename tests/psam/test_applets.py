"""Several applets of one PSAM: each has begun what it has begun, and no key outlives the last of them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

import pytest

from keyd.crypto.native._core import arena_info
from keyd.psam import Applet, PsamIdentity, TransientMemory, load_psam_profiles, synthetic_psam
from tests.psam.commands import apdu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.psam.state import Psam

SELECT: Final = apdu("00A40000", bytes.fromhex("DDF2"))
OPEN_CHANNEL: Final = apdu("00700000", le=1)
DELIVER: Final = apdu("BFDE670A", bytes.fromhex("3230303531303130") * 3 + bytes(16))
ENCRYPT: Final = apdu("80FA0000", bytes(16))
OK, NO_KEY, NO_CHANNEL = "9000", "6901", "6881"


def new_psam() -> Psam:
    identity = PsamIdentity(bytes(10), bytes.fromhex("510100000001"))
    return synthetic_psam(load_psam_profiles()["social-security"], identity, TransientMemory())


def say(applet: Applet, command: bytes) -> str:
    return applet.transmit(command)[-2:].hex()


def test_what_one_has_begun_no_other_has() -> None:
    psam = new_psam()
    one, other = Applet(psam), Applet(psam)
    for applet in (one, other):
        say(applet, SELECT)
    assert say(one, DELIVER) == OK
    assert say(other, ENCRYPT) == NO_KEY
    other.reset()
    assert say(one, ENCRYPT)[:2] == "61"
    assert say(one, OPEN_CHANNEL) == OK
    in_channel = bytes((SELECT[0] | 1,)) + SELECT[1:]
    assert say(one, in_channel)[:2] == "61"
    assert say(other, in_channel) == NO_CHANNEL


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_no_key_outlives_its_applets() -> None:
    before = arena_info().used
    applet = Applet(new_psam())
    for command in (SELECT, OPEN_CHANNEL, DELIVER, ENCRYPT):
        applet.transmit(command)
    assert arena_info().used > before
    del applet
    assert arena_info().used == before
