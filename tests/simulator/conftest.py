"""A card on the test bench: the card, and the keys that its issuer has, each got from the roots anew."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import pytest

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.iso7816 import SW, Aid
from keyd.keys.synthetic import synthetic_root
from keyd.simulator import SimulatedCard, arithmetic, issue_card

if TYPE_CHECKING:
    from collections.abc import Callable

REGION = "510100"

CIPHERS = {0x01: (Algorithm.TDES, Algorithm.DES), 0x03: (Algorithm.SM4, Algorithm.SM4)}
STK_ADDRESSES = (0x0173, 0x0174, 0x0175, 0x0185, 0x0186)


def counted_random() -> Callable[[int], bytes]:
    """Return a source of bytes that never repeats and is the same in every run."""
    count = itertools.count()
    return lambda size: sm3(next(count).to_bytes(8, "big"))[:size]


class Bench:
    """A card and what its issuer knows."""

    def __init__(self, card: SimulatedCard, algorithm: int) -> None:
        self.card = card
        self.algorithm = algorithm

    def say(self, command: str | bytes) -> tuple[str, int]:
        """Send a command; return the data in hex and the status word."""
        message = bytes.fromhex(command) if isinstance(command, str) else command
        answer = self.card.transmit(message)
        return answer[:-2].hex().upper(), int.from_bytes(answer[-2:], "big")

    def ok(self, command: str | bytes) -> str:
        """Send a command that must succeed; return the data in hex."""
        data, sw = self.say(command)
        assert sw == SW.OK, f"{sw:04X}"
        return data

    def sw(self, command: str | bytes) -> str:
        """Send a command; return the status word in hex, insisting that a refusal brings no data."""
        data, sw = self.say(command)
        assert sw == SW.OK or not data
        return f"{sw:04X}"

    def select(self, application: Aid = Aid.SSSE) -> str:
        return self.ok(f"00A40400{len(application):02X}{application.hex()}")

    def challenge(self) -> bytes:
        return bytes.fromhex(self.ok("0084000008"))

    def key(self, address: int) -> SecretKey:
        cipher, messaging = CIPHERS[self.algorithm]
        algorithm = messaging if address in STK_ADDRESSES else cipher
        root = SecretKey.load(algorithm, synthetic_root(address, algorithm))
        return arithmetic.card_key(root, REGION, self.card.atr[4:], 3)

    def proof(self, address: int, session_factor: bytes) -> bytes:
        """Make 鉴别数据 ‖ 原信息 under the key of an address."""
        challenge = b"\x11\x12\x13\x14\x15\x16\x17\x18"
        session = arithmetic.session_key(self.key(address), session_factor)
        return arithmetic.cryptogram(session, challenge) + challenge

    def prove(self, key_id: int, address: int, version: str = "") -> str:
        """Prove a key to the card; return the status word."""
        proof = self.proof(address, self.challenge()).hex() + version
        return self.sw(f"008200{key_id:02X}{len(proof) // 2:02X}{proof}")

    def secured(
        self, header: str, payload: bytes = b"", *, stk: int = 0x0173, encrypt: bool = False
    ) -> bytes:
        """Draw a challenge and make the command that goes with it."""
        session = arithmetic.session_key(self.key(stk), self.challenge())
        if encrypt:
            payload = arithmetic.encrypt_payload(session, payload)
        head = bytes.fromhex(header)
        mac = arithmetic.command_mac(session, head, payload)
        return head + bytes((len(payload) + 4,)) + payload + mac


class Issue(Protocol):
    def __call__(
        self, *, generation: str = "3.0", algorithm: int = 0x03, balance: int = 0
    ) -> Bench: ...


@pytest.fixture
def issue() -> Issue:
    def issue_bench(*, generation: str = "3.0", algorithm: int = 0x03, balance: int = 0) -> Bench:
        card = issue_card(
            region=REGION,
            serial=428,
            generation=generation,
            algorithm=algorithm,
            balance=balance,
            random_bytes=counted_random(),
        )
        return Bench(card, algorithm)

    return issue_bench


@pytest.fixture(params=[0x01, 0x03], ids=["DES", "SM4"])
def bench(request: pytest.FixtureRequest, issue: Issue) -> Bench:
    """A 3.0 card with its environment selected, of each algorithm that software has."""
    made = issue(algorithm=request.param, balance=10_000)
    made.select()
    return made
