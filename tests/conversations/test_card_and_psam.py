"""A terminal with a PSAM that keyd plays reads a card, maintains it and buys with it; the ring computes the same.

Three sides agree here that share no arithmetic: the simulated card, the PSAM's commands, and the ring's own tasks.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Final

import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.iso7816 import CommandApdu, converse, transmit
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, ProtectTask, SamTask, purpose
from keyd.psam import (
    Applet,
    PsamIdentity,
    TransientMemory,
    load_psam_profiles,
    synthetic_psam,
)
from keyd.simulator import SimulatedCard, issue_card

TERMINAL: Final = bytes.fromhex("510100000001")
TIME: Final = bytes.fromhex("20261123120000")

kinds = pytest.mark.parametrize("algorithm", [CardAlgorithm.SM4, CardAlgorithm.DES])
regions = pytest.mark.parametrize("region", ["510100", "330102"])
# With Le and, as T=0 has it, without: then what is answered is fetched.
le_or_not = pytest.mark.parametrize("names_le", [True, False], ids=["Le", "GET RESPONSE"])


def command(header: str, data: bytes, le: int | None) -> CommandApdu:
    cla, ins, p1, p2 = bytes.fromhex(header)
    return CommandApdu(cla, ins, p1, p2, data, le)


class Terminal:
    """A card in one slot, a PSAM in the other, and the ring to compare with."""

    def __init__(self, algorithm: CardAlgorithm, region: str, *, names_le: bool) -> None:
        self.algorithm = algorithm
        self.names_le = names_le
        self.region = Region(region)
        self.card: SimulatedCard = issue_card(
            region=region, serial=428, algorithm=algorithm, balance=100_000
        )
        self.diversifier = self.card.atr[-8:]
        profile = load_psam_profiles()["social-security"]
        identity = PsamIdentity(bytes(10), TERMINAL)
        self.psam = Applet(synthetic_psam(profile, identity, TransientMemory()))
        places = newest(load_profiles()).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
        self.ring = KeyRing(synthetic(places))
        self.block = 8 if algorithm is CardAlgorithm.DES else 16
        # The PSAM wakes up with 3DES.
        environment = "3F00" if algorithm is CardAlgorithm.DES else "DDF2"
        self.ask_psam("00A40000", bytes.fromhex(environment))
        self.ask_psam("00A40400", bytes.fromhex("D15600000590"))

    @property
    def factors(self) -> bytes:
        return self.diversifier + city_diversifier(self.region) + province_diversifier(self.region)

    def ask_card(self, header: str, data: bytes = b"", le: int | None = None) -> bytes:
        return converse(transmit(command(header, data, le)), self.card.transmit)

    def ask_psam(self, header: str, data: bytes = b"", le: int | None = None) -> bytes:
        wanted = le if self.names_le or not data else None
        return converse(transmit(command(header, data, wanted)), self.psam.transmit)

    def deliver(self, usage: int, key_id: int, factor: bytes) -> None:
        data = self.factors + factor.ljust(self.block, b"\0")
        self.ask_psam(f"BFDE{usage:02X}{key_id:02X}", data)

    def cryptogram(self, usage: int, key_id: int, factor: bytes, challenge: bytes) -> bytes:
        self.deliver(usage, key_id, factor)
        whole = self.ask_psam("80FA0000", challenge.ljust(self.block, b"\0"), self.block)
        if len(whole) == 8:
            return whole
        return bytes(a ^ b for a, b in zip(whole[:8], whole[8:], strict=True))

    def protected(self, usage: int, key_id: int, factor: bytes, header: str, plain: bytes) -> bytes:
        """A command under secure messaging, enciphered and with a MAC."""
        framed = bytes((len(plain),)) + plain
        if len(framed) % self.block:
            framed = self.padded(framed)
        self.deliver(usage, key_id, factor)
        data = self.ask_psam("80FA0000", framed, len(framed))
        message = bytes.fromhex(header) + bytes((len(data) + 4,)) + data
        self.deliver(usage, key_id, factor)
        mac = self.ask_psam("80FA0500", bytes(self.block) + self.padded(message), 4)
        return message + mac

    def padded(self, data: bytes) -> bytes:
        data += b"\x80"
        return data + bytes(-len(data) % self.block)

    def ref(self, address: int, use: Use) -> CardKeyRef:
        return CardKeyRef(address, self.algorithm, self.region, self.diversifier, purpose(use))

    def compute(self, task: SamTask) -> bytes:
        (result,) = self.ring.compute([task])
        assert isinstance(result, bytes)
        return result


@pytest.fixture
def terminal(algorithm: CardAlgorithm, region: str, names_le: bool) -> Terminal:
    made = Terminal(algorithm, region, names_le=names_le)
    made.ask_card("00A40400", bytes.fromhex("7378312E73682EC9E7BBE1B1A3D5CF"), 256)
    return made


@kinds
@regions
@le_or_not
def test_a_card_is_proved_and_read(terminal: Terminal) -> None:
    # The card proves itself (IRK).
    factor, challenge = secrets.token_bytes(8), secrets.token_bytes(8)
    proof = terminal.ask_card("00880000", factor + challenge, 8)
    assert terminal.cryptogram(0x67, 0x08, factor, challenge) == proof
    ref = terminal.ref(0x0170, Use.INTERNAL)
    assert terminal.compute(CryptogramTask(ref, factor, challenge)) == proof
    # And we prove ourselves to it (RKSSSE): its first random is the challenge, its last the session factor.
    challenge, factor = (terminal.ask_card("00840000", le=8) for _ in range(2))
    ours = terminal.cryptogram(0x67, 0x0A, factor, challenge)
    ref = terminal.ref(0x004C, Use.EXTERNAL)
    assert terminal.compute(CryptogramTask(ref, factor, challenge)) == ours
    terminal.ask_card("0082000A", ours + challenge)
    terminal.ask_card("00A40200", bytes.fromhex("EF06"))
    assert terminal.ask_card("00B20800", le=256).startswith(b"\x08\x12" + terminal.region.encode())


@kinds
@regions
@le_or_not
def test_a_record_is_written_and_a_pin_set(terminal: Terminal) -> None:
    for key_id, address, p2 in ((0x12, 0x0094, 0x04), (0x10, 0x0090, 0x06)):
        challenge, factor = (terminal.ask_card("00840000", le=8) for _ in range(2))
        ours = terminal.cryptogram(0x68, key_id, factor, challenge)
        ref = terminal.ref(address, Use.EXTERNAL)
        assert terminal.compute(CryptogramTask(ref, factor, challenge)) == ours
        terminal.ask_card(f"008200{p2:02X}", ours + challenge)
    factor = terminal.ask_card("00840000", le=8)
    plain = bytes.fromhex("031A2B3C")
    made = terminal.protected(0x68, 0x09, factor, "84240001", plain)
    header = bytes.fromhex("84240001")
    ref = terminal.ref(0x0173, Use.MESSAGING)
    assert terminal.compute(ProtectTask(ref, factor, header, plain, True)) == made
    # A PIN that the card takes.
    factor = terminal.ask_card("00840000", le=8)
    made = terminal.protected(0x68, 0x09, factor, "84240001", bytes.fromhex("271828"))
    assert terminal.card.transmit(made).hex() == "9000"
    terminal.ask_card("00200000", bytes.fromhex("271828"))


@kinds
@regions
@le_or_not
def test_three_purchases(terminal: Terminal) -> None:
    terminal.ask_card("00A40400", bytes.fromhex("D15600000503"), 256)
    for count, version in itertools.product(range(1, 4), [1]):
        amounts = (1000 * count).to_bytes(4, "big") + bytes(8)
        begun = terminal.ask_card("B0280101", bytes((version,)) + amounts + TERMINAL, 22)
        number, key, pseudo_random = begun[14:16], begun[16:18], begun[18:22]
        terms = pseudo_random + number + amounts + b"\x01" + TIME + key
        made = terminal.ask_psam("80700100", terms + terminal.factors, 8)
        transaction, mac1 = made[:4], made[4:]
        assert int.from_bytes(transaction, "big") == count
        ref = terminal.ref(0x017F, Use.DEBIT)
        task = MacTask(
            ref, pseudo_random + number + transaction[2:], amounts + b"\x01" + TERMINAL + TIME
        )
        assert terminal.compute(task) == mac1
        proof = terminal.ask_card("B02C0100", transaction + TIME + mac1, 8)
        terminal.ask_psam("80720000", proof[4:])
    assert terminal.ask_card("B0260001", le=4) == (100_000 - 6000).to_bytes(4, "big")
