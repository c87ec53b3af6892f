"""A card is proved, read and debited with a PSAM of keyd's: whichever way that is reached, the same bytes go by.

The ways: the applet itself, keyd's wire to a real daemon, a reader of the real pcscd that keyd's own member drives, and
a rack. What the key ring computes for the same card and the same transaction number is the same once more.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keyd.client import Client, Enrolment
from keyd.client.psam import Psam
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.sm3 import sm3
from keyd.handlers.desk import Wanted
from keyd.iso7816 import converse, transmit
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, MacTask, SamTask, purpose
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.lending.conversation import converse as converse_slowly
from keyd.lending.rack_server import serve_rack
from keyd.lending.racks import RackSource
from keyd.lending.readers import ReaderSource
from keyd.psam import Applet
from keyd.simulator import issue_card
from tests.conversations.test_card_and_psam import command
from tests.lending.members import ALGORITHMS, CARDS, PROFILE, lender_of, psam, until_ready
from tests.pcscd import Pcscd, needs_pcscd, socket_of_this_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from keyd.iso7816 import Dialogue
    from keyd.lending.member import Source
    from tests.conftest import StartDaemon

REPOSITORY: Final = Path(__file__).parents[2]

# The first synthetic PSAM, of a development keyd and of `keyd vpcd`.
NUMBER: Final = 510100000001
TERMINAL: Final = bytes.fromhex(f"{NUMBER:012}")
TIME: Final = bytes.fromhex("20261124093000")
REGION: Final = Region("510100")
IRK, RKSSSE, DPK = 0x0170, 0x004C, 0x017F

Transcript = list[tuple[bytes, bytes]]


def random_source() -> Callable[[int], bytes]:
    """Random numbers that are the same for every way."""
    count = 0

    def random_bytes(length: int) -> bytes:
        nonlocal count
        count += 1
        return sm3(f"card {count}".encode())[:length]

    return random_bytes


def conversation() -> Dialogue[int]:
    """Prove a card and ourselves to it, read it, and buy with it; return what is left on it, in fen.

    Commands that are yielded are the PSAM's. The card is here.
    """
    card = issue_card(serial=428, balance=100_000, random_bytes=random_source())
    ring = KeyRing(synthetic(CARDS.key_places(ALGORITHMS)))
    diversifier = card.atr[-8:]
    factors = diversifier + city_diversifier(REGION) + province_diversifier(REGION)

    def ask_card(header: str, data: bytes = b"", le: int | None = None) -> bytes:
        return converse(transmit(command(header, data, le)), card.transmit)

    def ask(header: str, data: bytes = b"", le: int | None = None) -> Dialogue[bytes]:
        return transmit(command(header, data, le))

    def compute(task: SamTask) -> bytes:
        (result,) = ring.compute([task])
        assert isinstance(result, bytes)
        return result

    def key(address: int, use: Use) -> CardKeyRef:
        return CardKeyRef(address, CardAlgorithm.SM4, REGION, diversifier, purpose(use))

    def cryptogram(key_id: int, factor: bytes, challenge: bytes) -> Dialogue[bytes]:
        yield from ask(f"BFDE67{key_id:02X}", factors + factor + bytes(8))
        whole = yield from ask("80FA0000", challenge + bytes(8), 16)
        return bytes(a ^ b for a, b in zip(whole[:8], whole[8:], strict=True))

    ask_card("00A40400", bytes.fromhex("7378312E73682EC9E7BBE1B1A3D5CF"), 256)
    yield from ask("00A40000", bytes.fromhex("DDF2"))
    assert (yield from ask("00B09600", le=6)) == TERMINAL
    yield from ask("00A40400", bytes.fromhex("D15600000590"))
    # The card proves itself.
    factor, challenge = bytes(range(8)), bytes(range(8, 16))
    proof = ask_card("00880000", factor + challenge, 8)
    assert (yield from cryptogram(0x08, factor, challenge)) == proof
    assert compute(CryptogramTask(key(IRK, Use.INTERNAL), factor, challenge)) == proof
    # We prove ourselves, and read the holder's name.
    challenge, factor = (ask_card("00840000", le=8) for _ in range(2))
    ours = yield from cryptogram(0x0A, factor, challenge)
    assert compute(CryptogramTask(key(RKSSSE, Use.EXTERNAL), factor, challenge)) == ours
    ask_card("0082000A", ours + challenge)
    ask_card("00A40200", bytes.fromhex("EF06"))
    assert ask_card("00B20900", le=256)
    # And buy.
    ask_card("00A40400", bytes.fromhex("D15600000503"), 256)
    amounts = (2500).to_bytes(4, "big") + bytes(8)
    begun = ask_card("B0280101", b"\x01" + amounts + TERMINAL, 22)
    number, version, pseudo_random = begun[14:16], begun[16:18], begun[18:22]
    terms = pseudo_random + number + amounts + b"\x01" + TIME + version
    made = yield from ask("80700100", terms + factors, 8)
    transaction, mac1 = made[:4], made[4:]
    data = amounts + b"\x01" + TERMINAL + TIME
    factor = pseudo_random + number + transaction[2:]
    assert compute(MacTask(key(DPK, Use.DEBIT), factor, data)) == mac1
    mac2 = ask_card("B02C0100", transaction + TIME + mac1, 8)[4:]
    yield from ask("80720000", mac2)
    return int.from_bytes(ask_card("B0260001", le=4), "big")


def recorded(transcript: Transcript, dialogue: Dialogue[int]) -> Dialogue[int]:
    """The same dialogue, with every command and answer of the PSAM's written down."""
    response = None
    while True:
        try:
            asked = next(dialogue) if response is None else dialogue.send(response)
        except StopIteration as finished:
            left: int = finished.value
            return left
        response = yield asked
        transcript.append((bytes(asked), bytes(response)))


@pytest.fixture(scope="module")
def expected() -> Transcript:
    """What goes by between a terminal and the applet itself."""
    transcript: Transcript = []
    applet = Applet(psam(NUMBER))
    assert converse(recorded(transcript, conversation()), applet.transmit) == 97_500
    # Nothing of it is hollow: ten commands, and data in the answers.
    assert len(transcript) >= 10
    return transcript


def test_on_keyds_wire(expected: Transcript, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.wait_for("psam_ready", nth=2)
    transcript: Transcript = []
    code = "DEV-0001"
    number = f"{NUMBER:012}"
    with (
        Client(daemon.address, Enrolment(code, synthetic_terminal_key(code))) as client,
        Psam(client, [IRK, RKSSSE, DPK], number=number, region="510100") as lent,
    ):
        assert lent.opened.kind == "virtual"
        assert lent.opened.levels == (3, 3, 3)
        assert lent.converse(recorded(transcript, conversation())) == 97_500
    assert transcript == expected


@asynccontextmanager
async def lent_from(source: Source) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """An open PSAM of a source that keyd's lender has."""
    lender = lender_of(source)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lender.run)
            await until_ready(lender)
            lent = await lender.open("T1", Wanted(f"{NUMBER:012}"))
            yield lent.transmit
            nursery.cancel_scope.cancel()


async def test_in_a_rack(expected: Transcript) -> None:
    transcript: Transcript = []
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(serve_rack, [Applet(psam(NUMBER))], [listener])
        source = RackSource([("127.0.0.1", listener.socket.getsockname()[1])], PROFILE)
        async with lent_from(source) as send:
            assert await converse_slowly(recorded(transcript, conversation()), send) == 97_500
        nursery.cancel_scope.cancel()
    assert transcript == expected


@pytest.fixture
def pcscd(tmp_path: Path) -> Iterator[Pcscd]:
    made = Pcscd(tmp_path, socket_of_this_process())
    made.start()
    yield made
    made.kill()


@contextmanager
def keyd_with(*arguments: str) -> Iterator[None]:
    """A `keyd` that runs as long as this lasts."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from keyd.cli import main; main()", *arguments],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def by_reader() -> Transcript:
    """Have the conversation with the PSAM in the first slot of the reader."""
    pytest.importorskip("smartcard", reason="install pyscard: pip install 'keyd[pcsc]'")
    transcript: Transcript = []
    async with lent_from(ReaderSource(["Virtual PCD 00 00"], PROFILE)) as send:
        assert await converse_slowly(recorded(transcript, conversation()), send) == 97_500
    return transcript


@needs_pcscd
async def test_in_a_reader(expected: Transcript, pcscd: Pcscd, tmp_path: Path) -> None:
    driver = f"127.0.0.1:{pcscd.port}"
    state = str(tmp_path / "state")
    with keyd_with("vpcd", "--dev", "--connect", driver, "--state", state, "psam"):
        assert await by_reader() == expected


@needs_pcscd
async def test_in_a_reader_of_a_machine_that_has_it_from_a_keyd_elsewhere(
    expected: Transcript, pcscd: Pcscd, start_daemon: StartDaemon
) -> None:
    """Two keyds in a row: one lends the PSAM to a machine, whose slot another takes for a real one."""
    daemon = start_daemon("--psams", "1")
    daemon.wait_for("psam_ready")
    driver = ("--driver", f"127.0.0.1:{pcscd.port}")
    keys = ("IRK", "RKSSSE", "017F")
    with keyd_with("slot", "--dev", "--connect", daemon.address, *driver, *keys):
        assert await by_reader() == expected


def test_an_answer_that_is_another_one_would_be_noticed(expected: Transcript) -> None:
    """The comparison bites: a PSAM with another number answers otherwise somewhere."""
    transcript: Transcript = []
    applet = Applet(psam(NUMBER + 1))
    with pytest.raises(AssertionError):
        converse(recorded(transcript, conversation()), applet.transmit)
    assert transcript != expected[: len(transcript)]
