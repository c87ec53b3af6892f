"""Over a real line, through the hub: a card is read and debited with a PSAM that is keyd's, by both flavours of client.

What the simulated card takes is right: it shares no arithmetic with keyd. The desk lends real applets.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keyd.client import AsyncClient, AsyncPsam, Client, Enrolment, Psam, step_of
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import MacNotAuthentic, PsamNotOpen, Refusal
from keyd.hub import Limits
from keyd.hub.hub import Hub
from keyd.iso7816 import CommandApdu, converse, transmit
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.keys.sam import CardKeyRef, ProtectTask, purpose
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.psam import (
    PsamConfirmPurchase,
    PsamMakePurchase,
    PurchaseTerms,
    RunOnce,
    RunScript,
    ScriptReference,
    ScriptResult,
    Transmit,
)
from keyd.simulator import issue_card
from keyd.telemetry import Events
from tests.psam.desk import NUMBER, AppletDesk
from tests.test_dispatch import CODE, Keyd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyd.iso7816 import Dialogue

IRK, RKSSSE, DPK, STKDF01 = 0x0170, 0x004C, 0x017F, 0x0174
TIME: Final = bytes.fromhex("20261123120000")
REGION: Final = "510100"
DDF: Final = bytes.fromhex("7378312E73682EC9E7BBE1B1A3D5CF")
DF04: Final = bytes.fromhex("D15600000503")
DF01_OF_PSAM: Final = bytes.fromhex("D15600000590")

kinds = pytest.mark.parametrize("algorithm", [CardAlgorithm.SM4, CardAlgorithm.DES])


class Line:
    """A keyd with a hub on a TCP port of its own, and a desk."""

    def __init__(self) -> None:
        self.keyd = Keyd()
        self.desk = self.keyd.services.psams = AppletDesk()
        self.address = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Line]:
        keyd = self.keyd
        keyd.services.clock = time.monotonic
        events = Events(time.monotonic)
        hub = Hub(keyd.dispatch, keyd.meter, events, Limits(), time.monotonic)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*listener.getsockname())
        hub.listen([listener])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            yield self
            hub.drain()

    def client(self) -> AsyncClient:
        return AsyncClient(self.address, Enrolment(CODE, synthetic_terminal_key(CODE)))


class Holder:
    """A simulated card in the terminal's other slot."""

    def __init__(self, algorithm: CardAlgorithm, region: str = REGION) -> None:
        self.algorithm = algorithm
        self.card = issue_card(region=region, serial=428, algorithm=algorithm, balance=100_000)
        self.block = 8 if algorithm is CardAlgorithm.DES else 16
        where = Region(region)
        self.factors = self.card.atr[-8:] + city_diversifier(where) + province_diversifier(where)
        self.ask("00A40400", DDF, 256)

    def ask(self, header: str, data: bytes = b"", le: int | None = None) -> bytes:
        cla, ins, p1, p2 = bytes.fromhex(header)
        return converse(transmit(CommandApdu(cla, ins, p1, p2, data, le)), self.card.transmit)

    def identity(self) -> CardIdentity:
        self.ask("00A40200", bytes.fromhex("EF05"))
        card_id = self.ask("00B20100", le=256)[2:]
        return CardIdentity(card_id, self.card.atr[-13:], self.algorithm)

    def deliver(self, usage: int, key_id: int, factor: bytes) -> CommandApdu:
        data = self.factors + factor.ljust(self.block, b"\0")
        return CommandApdu(0xBF, 0xDE, usage, key_id, data)

    def cipher(self, challenge: bytes) -> CommandApdu:
        return CommandApdu(0x80, 0xFA, 0, 0, challenge.ljust(self.block, b"\0"), self.block)

    def proof_of(self, answer: bytes) -> bytes:
        if len(answer) == 8:
            return answer
        return bytes(a ^ b for a, b in zip(answer[:8], answer[8:], strict=True))


def select_application() -> CommandApdu:
    return CommandApdu(0x00, 0xA4, 0x04, 0x00, DF01_OF_PSAM)


def opening(
    holder: Holder, internal: tuple[bytes, bytes], external: tuple[bytes, bytes]
) -> Dialogue[tuple[bytes, bytes]]:
    """What a terminal asks its PSAM to open a 3.0 card: both halves, command by command."""
    yield from transmit(select_application())
    yield from transmit(holder.deliver(0x67, 0x08, internal[0]))
    ours = yield from transmit(holder.cipher(internal[1]))
    yield from transmit(holder.deliver(0x67, 0x0A, external[0]))
    theirs = yield from transmit(holder.cipher(external[1]))
    return holder.proof_of(ours), holder.proof_of(theirs)


@kinds
@pytest.mark.parametrize("region", [REGION, "330102"])
async def test_a_card_is_read_in_one_exchange_as_in_nine(
    algorithm: CardAlgorithm, region: str
) -> None:
    async with Line().serve() as line, line.client() as client:
        holder = Holder(algorithm, region)
        internal = secrets.token_bytes(8), secrets.token_bytes(8)
        by_card = holder.ask("00880000", b"".join(internal), 8)
        challenge, factor = (holder.ask("00840000", le=8) for _ in range(2))
        fold = algorithm is not CardAlgorithm.DES
        steps = (
            step_of(select_application()),
            step_of(holder.deliver(0x67, 0x08, internal[0])),
            step_of(holder.cipher(internal[1])),
            step_of(holder.deliver(0x67, 0x0A, factor)),
            step_of(holder.cipher(challenge)),
        )
        results = tuple(ScriptResult(n, 0, holder.block, fold) for n in (2, 4))
        keys = (IRK, RKSSSE)
        ask = RunOnce(keys, steps, results, algorithm, NUMBER.hex(), region[:4])
        proof, ours = (await client.ask(ask)).results
        assert proof == by_card
        async with AsyncPsam(client, keys, algorithm, region=region[:4]) as psam:
            assert psam.opened.number == NUMBER
            assert await psam.run(steps, results) == (proof, ours)
            by_dialogue = await psam.converse(opening(holder, internal, (factor, challenge)))
            assert by_dialogue == (proof, ours)
        assert not line.desk.open_ones
        holder.ask("0082000A", ours + challenge)
        holder.ask("00A40200", bytes.fromhex("EF06"))
        assert holder.ask("00B20800", le=256).startswith(b"\x08\x12" + region.encode())


@kinds
async def test_a_purchase_by_script_and_one_by_helpers(algorithm: CardAlgorithm) -> None:
    async with Line().serve() as line, line.client() as client:
        holder = Holder(algorithm)
        identity = holder.identity()
        holder.ask("00A40400", DF04, 256)
        async with AsyncPsam(client, (DPK,), algorithm, region="51") as psam:
            # By script: the terminal transaction number and MAC1 are results of the second step.
            begun, made = begin(holder, 1000)
            number, mac1 = await psam.run(
                (step_of(select_application()), step_of(made)),
                (ScriptResult(1, 0, 4), ScriptResult(1, 4, 4)),
            )
            proof = holder.ask("B02C0100", number + TIME + mac1, 8)
            await psam.run([step_of(CommandApdu(0x80, 0x72, 0, 0, proof[4:]))])
            # By helpers.
            begun, _ = begin(holder, 2000)
            terms = PurchaseTerms(
                begun[18:22], begun[14:16], 2000, 0, 0, 1, TIME, begun[16], begun[17]
            )
            handle = psam.opened.handle
            answer = await client.ask(PsamMakePurchase(handle, identity, terms))
            assert answer.number == NUMBER
            following = answer.terminal_transaction_number
            assert int.from_bytes(following, "big") == int.from_bytes(number, "big") + 1
            proof = holder.ask("B02C0100", following + TIME + answer.mac1, 8)
            await client.ask(PsamConfirmPurchase(handle, proof[4:]))
            # A wrong MAC2 is no debit.
            await client.ask(PsamMakePurchase(handle, identity, terms))
            with pytest.raises(MacNotAuthentic):
                await client.ask(PsamConfirmPurchase(handle, bytes(4)))
        assert holder.ask("B0260001", le=4) == (100_000 - 3000).to_bytes(4, "big")
        assert not line.desk.open_ones


def begin(holder: Holder, amount: int) -> tuple[bytes, CommandApdu]:
    """Begin a purchase on the card; return what it answered, and INIT SAM FOR PURCHASE for it."""
    amounts = amount.to_bytes(4, "big") + bytes(8)
    begun = holder.ask("B0280101", b"\1" + amounts + NUMBER, 22)
    terms = begun[18:22] + begun[14:16] + amounts + b"\1" + TIME + begun[16:18]
    return begun, CommandApdu(0x80, 0x70, 0x01, 0x00, terms + holder.factors, 8)


@kinds
async def test_a_record_is_protected_in_one_exchange(algorithm: CardAlgorithm) -> None:
    """Enciphered under STKDF01, and the MAC over what the PSAM has enciphered: an answer goes into a later command."""
    async with Line().serve() as line, line.client() as client:
        holder = Holder(algorithm)
        factor, plain = bytes.fromhex("0102030405060708"), bytes.fromhex("1122334455")
        framed = bytes((len(plain),)) + plain
        framed = (framed + b"\x80").ljust(holder.block, b"\0")
        head = bytes.fromhex("04D60080") + bytes((holder.block + 4,))
        rest = head + bytes(holder.block)
        padded = (rest + b"\x80").ljust(-(-(len(rest) + 1) // holder.block) * holder.block, b"\0")
        at = holder.block + len(head)
        mac = CommandApdu(0x80, 0xFA, 0x05, 0x00, bytes(holder.block) + padded, 4)
        steps = (
            step_of(select_application()),
            step_of(holder.deliver(0x68, 0x20, factor)),
            step_of(CommandApdu(0x80, 0xFA, 0, 0, framed, holder.block)),
            step_of(holder.deliver(0x68, 0x20, factor)),
            step_of(mac, [ScriptReference(at, 2, 0, holder.block)]),
        )
        ask = RunOnce((STKDF01,), steps, (ScriptResult(2), ScriptResult(4)), algorithm)
        enciphered, mac4 = (await client.ask(ask)).results
        by_ring = protected_by_ring(line, holder, factor, head[:4], plain)
        assert head + enciphered + mac4 == by_ring


def protected_by_ring(
    line: Line, holder: Holder, factor: bytes, header: bytes, plain: bytes
) -> bytes:
    ref = CardKeyRef(
        STKDF01, holder.algorithm, Region(REGION), holder.card.atr[-8:], purpose(Use.MESSAGING)
    )
    (made,) = line.keyd.ring.compute([ProtectTask(ref, factor, header, plain, True)])
    assert isinstance(made, bytes)
    return made


async def test_what_is_pipelined_is_done_in_order() -> None:
    async with Line().serve() as line, line.client() as client:
        holder = Holder(CardAlgorithm.SM4)
        challenge = bytes(8)
        for _round in range(20):
            async with AsyncPsam(client, (RKSSSE,)) as psam:
                handle = psam.opened.handle
                factors = [secrets.token_bytes(8) for _ in range(4)]
                asks = [
                    Transmit(handle, bytes(apdu))
                    for factor in factors
                    for apdu in (holder.deliver(0x67, 0x0A, factor), holder.cipher(challenge))
                ]
                answers = await client.ask_all(asks)
            assert not any(isinstance(answer, Refusal) for answer in answers)
            sent = line.desk.lent[-1].sent[-8:]
            assert sent == [ask.command for ask in asks]


async def test_a_lost_line_gives_its_psams_back() -> None:
    async with Line().serve() as line:
        client = line.client()
        psam = AsyncPsam(client, (RKSSSE,))
        await psam.__aenter__()
        assert len(line.desk.open_ones) == 1
        await client.aclose()
        with trio.fail_after(5):
            await line.desk.lent[0].is_back.wait()
        # The client finds another line by itself, on which nothing is open.
        with pytest.raises(PsamNotOpen):
            await psam.transmit(b"\0\x84\0\0\x08")
        await psam.__aexit__(None, None, None)
        await client.aclose()


async def test_the_blocking_client_says_the_same() -> None:
    async with Line().serve() as line:
        holder = Holder(CardAlgorithm.SM4)
        await trio.to_thread.run_sync(functools.partial(blocking_conversation, line, holder))
        assert not line.desk.open_ones


def blocking_conversation(line: Line, holder: Holder) -> None:
    pairs = (bytes(8), bytes(range(8))), (bytes(range(8)), bytes(8))
    enrolment = Enrolment(CODE, synthetic_terminal_key(CODE))
    with Client(line.address, enrolment) as client, Psam(client, (IRK, RKSSSE)) as psam:
        both = psam.converse(opening(holder, *pairs))
        steps = [
            step_of(apdu)
            for apdu in (
                holder.deliver(0x67, 0x08, pairs[0][0]),
                holder.cipher(pairs[0][1]),
                holder.deliver(0x67, 0x0A, pairs[1][0]),
                holder.cipher(pairs[1][1]),
            )
        ]
        results = [ScriptResult(n, 0, 16, True) for n in (1, 3)]
        assert psam.run(steps, results) == both
        commands = [bytes(holder.deliver(0x67, 0x0A, pairs[1][0])), bytes(holder.cipher(bytes(8)))]
        delivered, answer = psam.transmit_many([*commands, commands[1]])[:2]
        assert (delivered, holder.proof_of(answer[:-2])) == (b"\x90\0", both[1])
        with pytest.raises(Refusal):
            client.ask(RunScript(psam.opened.handle, (steps[0],) * 33))
    with pytest.raises(PsamNotOpen):
        psam.transmit(commands[0])
