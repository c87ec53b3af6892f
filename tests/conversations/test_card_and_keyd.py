"""The simulated card, which has its own arithmetic, accepts what keyd computes and nothing that differs in a bit.

keyd's whole pipeline runs here in process: wire bytes in, wire bytes out.
"""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import Callable, Generator
from typing import Any

import msgpack
import msgspec
import pytest
import trio

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.selftest import run_selftest
from keyd.dispatch import Dispatch, Slow
from keyd.errors import Refusal, refusal_from_wire
from keyd.handlers.services import Services
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import ClientConnection, ServerConnection
from keyd.protocol.fields import CardIdentity, Request
from keyd.protocol.messages.library import (
    DoDebit1,
    DoDebit2,
    LibraryReply,
    ReadCard,
    ReadCardBas,
    ReloadPin1,
    ReloadPin2,
    UnblockPin1,
    UnblockPin2,
    WriteCard,
)
from keyd.registry.synthetic import synthetic_terminal
from keyd.routing import Routing
from keyd.simulator import (
    Asking,
    CardMakingMachine,
    CardNotGenuine,
    CardRefused,
    SimulatedCard,
    TerminalLibrary,
    forge_card,
    issue_card,
)
from keyd.telemetry import Events, Meter
from keyd.terminals import KnownTerminal, Session, Terminals
from tests.psam.sams import ROUTES, OnePool, PsamSam

Ask = Callable[[Request[Any]], Any]

# Every kind of card that keyd computes for in software.
KINDS = [("1.0", 1), ("2.0", 1), ("3.0", 1), ("3.0", 3)]
kinds = pytest.mark.parametrize(("generation", "algorithm"), KINDS)
regions = pytest.mark.parametrize("region", ["510100", "330102", "639900"])


@pytest.fixture(scope="module", params=["ring", "pool"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask a keyd with synthetic keys, as an authenticated terminal, through both ends of the protocol.

    The keys are all in its ring, or whatever PSAMs do is done by one.
    """
    profiles = load_profiles()
    both = (CardAlgorithm.DES, CardAlgorithm.SM4)
    ring = KeyRing(synthetic(newest(profiles).key_places(both)))
    services = Services(
        sam=ring,
        key_headers=ring.headers,
        has_synthetic_keys=True,
        profiles=profiles,
        terminals=Terminals({}, secrets.token_bytes),
        selftest=(),
        run_selftest=run_selftest,
        clock=time.monotonic,
        now=time.time,
        random_bytes=secrets.token_bytes,
    )
    has_pool = request.param == "pool"
    if has_pool:
        services.routing = Routing.of(ROUTES, profiles)
        services.psams = OnePool(PsamSam(ring, newest(profiles).keys))
    dispatch = Dispatch(services, Meter(), Events(time.monotonic))
    session = Session(1)
    session.enter(KnownTerminal(synthetic_terminal("DEV-0001")))
    client, server = ClientConnection(), ServerConnection()

    def ask_one(request: Request[Any]) -> Any:
        command = BY_REQUEST[type(request)]
        _msgid, data = client.ask(command.method, request)
        server.receive_data_untrusted(data)
        (asked,) = server.next_asks_untrusted(10)
        (answered,) = dispatch.run([(session, asked)]).answers
        if isinstance(answered, Slow):
            assert has_pool
            (answered,) = trio.run(dispatch.run_slow, answered).answers
        assert isinstance(answered, bytes)
        (answer,) = client.receive_data_untrusted(answered)
        if answer.refusal is not None:
            raise answer.refusal
        return msgspec.convert(answer.result, command.response, builtin_types=(bytes,))

    return ask_one


def machine_for(
    card: SimulatedCard, transmit: Callable[[bytes], bytes] | None = None
) -> CardMakingMachine:
    """Put a card into a machine."""
    return CardMakingMachine(
        transmit or card.transmit,
        card.atr,
        terminal="510100000001",
        time="20261123120000",
        random_bytes=secrets.token_bytes,
    )


def play(script: Generator[Asking, Any, Any], ask: Ask) -> Any:
    """Carry a machine's questions to keyd and the answers back."""
    answer = None
    while True:
        try:
            asking = script.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = ask(asking.request)


# The machine ----------------------------------------------------------------------------------------------------


@regions
@pytest.mark.parametrize("algorithm", [1, 3])
def test_a_third_generation_card_goes_through_everything(
    ask: Ask, region: str, algorithm: int
) -> None:
    card = issue_card(region=region, serial=77, generation="3.0", algorithm=algorithm)
    made = play(machine_for(card).make(name="合成持卡人七七", new_pin="271828"), ask)
    assert made.name == "合成持卡人七七"
    assert made.card_id.startswith(region + "D156000005")


def test_a_forged_card_gets_nothing(ask: Ask) -> None:
    forged = forge_card(issue_card(serial=78))
    with pytest.raises(Refusal) as refused:
        play(machine_for(forged).prove_and_read(), ask)
    assert refused.value.status.name == "CARD_NOT_AUTHENTIC"


def commands_from_keyd() -> dict[str, int]:
    """Which of the machine's steps end in a command whose every byte keyd is responsible for."""
    return {
        "mutual authentication": 0x82,
        "permission to write, UKSSSE": 0x82,
        "record written under MAC": 0xDC,
        "permission for the PIN, PUK": 0x82,
        "PIN reload": 0x24,
    }


@pytest.mark.parametrize("step", commands_from_keyd())
def test_a_command_of_keyds_with_one_bit_flipped_is_declined(ask: Ask, step: str) -> None:
    chooser = random.Random(step)  # noqa: S311 - which bits to try, not a secret
    answer = apdu_of_step(step, issue_card(serial=1), ask)
    # The challenge in EXTERNAL AUTHENTICATE and everything under a MAC is bound to the cryptogram or MAC.
    for bit in chooser.sample(range(5 * 8, len(answer) * 8), 40):
        card = issue_card(serial=79, random_bytes=fixed_random(step))
        script = machine_for(card, flipping(card, step_ins(step), step, bit)).make(
            name="合成持卡人", new_pin="314159"
        )
        with pytest.raises(UnexpectedStatusWord) as declined:
            play(script, ask)
        assert declined.value.ins == step_ins(step)
        assert declined.value.sw != SW.OK


def step_ins(step: str) -> int:
    return commands_from_keyd()[step]


def apdu_of_step(step: str, card: SimulatedCard, ask: Ask) -> bytes:
    """Return the command that keyd makes in a step."""
    script = machine_for(card).make(name="合成持卡人", new_pin="314159")
    answer = None
    while True:
        asking = script.send(answer)
        answer = ask(asking.request)
        if asking.step == step:
            apdu: bytes = answer.apdu
            return apdu


def fixed_random(seed: str) -> Callable[[int], bytes]:
    """Return randomness that a failing case can be repeated with."""
    return random.Random(seed).randbytes  # noqa: S311 - a simulated card's challenges


def flipping(card: SimulatedCard, ins: int, step: str, bit: int) -> Callable[[bytes], bytes]:
    """Carry commands to the card, flipping one bit of the one command that the step ends in."""
    steps = [name for name, other in commands_from_keyd().items() if other == ins]
    counter = itertools.count()

    def transmit(command: bytes) -> bytes:
        if command[1] == ins and command[0] != 0xB0 and next(counter) == steps.index(step):
            flipped = bytearray(command)
            flipped[bit // 8] ^= 1 << bit % 8
            command = bytes(flipped)
        return card.transmit(command)

    return transmit


@pytest.mark.parametrize("ins", [0x2A, 0x2C])
def test_a_transaction_mac_with_one_bit_flipped_is_declined(ask: Ask, ins: int) -> None:
    for bit in range(32):
        card = issue_card(serial=80)

        def transmit(command: bytes, card: SimulatedCard = card, bit: int = bit) -> bytes:
            if command[1] != ins:
                return card.transmit(command)
            apdu = CommandApdu.parse_untrusted(command)
            mac = int.from_bytes(apdu.data[-4:], "big") ^ 1 << bit
            data = apdu.data[:-4] + mac.to_bytes(4, "big")
            return card.transmit(bytes(CommandApdu(0xB0, ins, apdu.p1, apdu.p2, data, apdu.le)))

        with pytest.raises(UnexpectedStatusWord) as declined:
            play(machine_for(card, transmit).make(name="合成", new_pin="314159"), ask)
        assert declined.value.sw == SW.MAC_INVALID


@pytest.mark.parametrize(
    ("ins", "name"),
    [(0x28, "MAC_NOT_AUTHENTIC"), (0x2A, "TAC_NOT_AUTHENTIC"), (0x2C, "MAC_NOT_AUTHENTIC")],
)
def test_a_cards_proof_with_one_bit_flipped_is_refused(ask: Ask, ins: int, name: str) -> None:
    for bit in range(0, 32, 5):
        card = issue_card(serial=81)

        def transmit(command: bytes, card: SimulatedCard = card, bit: int = bit) -> bytes:
            response = bytearray(card.transmit(command))
            # MAC1 of a load, the TAC of a load, MAC2 of a purchase: the 4 bytes before the status word.
            if command[1] == ins and len(response) > 2 and command[2:4] != b"\x01\x01":
                response[-6 + bit // 8] ^= 1 << bit % 8
            return bytes(response)

        with pytest.raises(Refusal) as refused:
            play(machine_for(card, transmit).make(name="合成", new_pin="314159"), ask)
        assert refused.value.status.name == name


# The terminal library's strings ---------------------------------------------------------------------------------


def identity(card: SimulatedCard, text: str, generation: str) -> CardIdentity:
    """Return the card of an iReadCardBas string."""
    _region, historical, algorithm, card_id, *_rest = text.split("|")
    return CardIdentity(
        bytes.fromhex(card_id),
        bytes.fromhex(historical),
        CardAlgorithm(int(algorithm)),
        type(CardIdentity(b"", b"").generation)(int(generation[0])),
    )


def text_of(ask: Ask, request: Request[LibraryReply]) -> str:
    answer: LibraryReply = ask(request)
    return answer.text


@kinds
@regions
def test_a_middleware_forwards_its_librarys_strings(
    ask: Ask, generation: str, algorithm: int, region: str
) -> None:
    card = issue_card(
        region=region, serial=82, generation=generation, algorithm=algorithm, balance=50_000
    )
    library = TerminalLibrary(card.transmit, card.atr)

    step1 = library.read_card_bas_step1()
    basic = library.read_card_bas_step2(text_of(ask, ReadCardBas(step1)))
    assert basic.region == region
    me = identity(card, step1, generation)

    if generation == "3.0":
        asked = library.read_card_step1("SSSEEF06|09|$")
        name = library.read_card_step2(text_of(ask, ReadCard(me, asked)))
        assert name == f"{basic.name}|"

    asked = library.write_card_step1("SSSEEF06|09|$", ["合成持卡人八二"])
    library.write_card_step2(text_of(ask, WriteCard(me, asked)) + "|")

    asked = library.reload_pin_step1()
    asked = library.reload_pin_step2(text_of(ask, ReloadPin1(me, asked)), "161803")
    library.reload_pin_step3(text_of(ask, ReloadPin2(me, asked)))
    library.verify_pin("161803")

    asked = library.unblock_pin_step1()
    asked = library.unblock_pin_step2(text_of(ask, UnblockPin1(me, asked)))
    library.unblock_pin_step3(text_of(ask, UnblockPin2(me, asked)))

    debit = library.do_debit_step1(
        own=1200, pooled=3400, terminal="510100000001", time="20261123120000"
    )
    proof = library.do_debit_step2(text_of(ask, DoDebit1(me, debit, b"\0\0\0\7")))
    assert text_of(ask, DoDebit2(me, debit, proof)) == ""


def test_the_library_finds_a_forged_card_out(ask: Ask) -> None:
    forged = forge_card(issue_card(serial=83))
    library = TerminalLibrary(forged.transmit, forged.atr)
    step1 = library.read_card_bas_step1()
    with pytest.raises((CardNotGenuine, CardRefused)):
        library.read_card_bas_step2(text_of(ask, ReadCardBas(step1)))


def test_every_refusal_crosses_the_wire_as_itself(ask: Ask) -> None:
    card = issue_card(serial=84)
    historical = card.atr[4:]
    wrong_serial = bytes.fromhex("510100D156000005") + bytes(8)
    with pytest.raises(Refusal) as refused:
        ask(WriteCard(CardIdentity(wrong_serial, historical), "03|0094||"))
    same = refusal_from_wire(refused.value.status, refused.value.status.name, refused.value.detail)
    assert type(same) is type(refused.value)
    assert msgpack.packb(int(refused.value.status))
