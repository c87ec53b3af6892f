"""A machine proves itself with its own PSAM: the proof comes out of it over APDUs, and keyd's is checked by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keyd.client import Client
from keyd.client.enrolment import PsamEnrolment
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import TerminalNotAuthentic
from keyd.keys.synthetic import synthetic_psam_key
from keyd.protocol.messages.daemon import AskRandom
from keyd.psam import (
    Applet,
    Counters,
    KeyAttributes,
    KeySet,
    Psam,
    PsamIdentity,
    TransientMemory,
)
from tests.psam.bench import PROFILES, SERIAL, random_source
from tests.psam.commands import apdu

if TYPE_CHECKING:
    from tests.conftest import RunningDaemon

# The first terminal of a development keyd, and what its PSAM is called.
CODE: Final = "DEV-0001"
NUMBER: Final = bytes.fromhex("510100000001")

# A key to encrypt with (type 7) that is diversified once more, in a city's place.
USAGE, KEY_ID = 0x27, 0x1A


class TerminalsPsam:
    """The PSAM in a machine's slot. Only APDUs go in and out."""

    def __init__(self, key: bytes) -> None:
        keys = KeySet()
        attributes = KeyAttributes(USAGE, KEY_ID, Algorithm.SM4)
        keys.put(attributes, CardAlgorithm.SM4, SecretKey.load(Algorithm.SM4, key))
        identity = PsamIdentity(SERIAL, NUMBER, environment=CardAlgorithm.SM4)
        psam = Psam(
            PROFILES["social-security"],
            identity,
            keys,
            Counters(TransientMemory(), 1),
            random_source(),
        )
        self._applet = Applet(psam)
        self.number = self._send(apdu("00B09600", le=6))
        self._send(apdu("00A40400", bytes.fromhex("D15600000590")))

    def _send(self, command: bytes) -> bytes:
        answer = self._applet.transmit(command)
        if answer[0] == 0x61:
            answer = self._applet.transmit(bytes((0x00, 0xC0, 0x00, 0x00, answer[1])))
        assert answer[-2:] == b"\x90\x00", answer.hex()
        return answer[:-2]

    def prove(self, side: bytes, challenge: bytes, own: bytes) -> bytes:
        """DELIVERY SESSION KEY with the side as the factor, CIPHER DATA over one's own challenge; XOR the halves."""
        self._send(apdu(f"BFDE{USAGE:02X}{KEY_ID:02X}", side + challenge))
        block = self._send(apdu("80FA0000", own, 16))
        return bytes(left ^ right for left, right in zip(block[:8], block[8:], strict=True))


def test_the_cryptogram_comes_out_of_the_machines_own_psam(daemon: RunningDaemon) -> None:
    psam = TerminalsPsam(synthetic_psam_key(NUMBER))
    assert psam.number == NUMBER
    with Client(daemon.address, PsamEnrolment(CODE, psam.prove)) as client:
        client.ask(AskRandom(8))


def test_another_machines_psam_proves_nothing(daemon: RunningDaemon) -> None:
    other = TerminalsPsam(synthetic_psam_key(bytes.fromhex("510100000002")))
    with (
        pytest.raises(TerminalNotAuthentic),
        Client(daemon.address, PsamEnrolment(CODE, other.prove)) as client,
    ):
        client.connect()
