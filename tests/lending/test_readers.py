"""A PSAM in a reader answers through PC/SC as it does without, and whatever goes away mid-command is said so.

pcscd, its driver, libpcsclite and pyscard are the real ones; keyd's PSAM is the chip. `Slot.pull` takes it out while it
computes, `Pcscd.kill` and `plug_in` do the same to the daemon and the reader.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keyd.lending.member import MemberFailed, MemberKind
from keyd.lending.rack_server import play
from keyd.lending.readers import MAX_STUCK, ReaderMember, ReaderSource
from tests.lending.bench import CIPHER, DELIVER, OK, SECONDS, SELECT, Pool, Slow, begun, failing
from tests.lending.members import PROFILE
from tests.pcscd import Pcscd, needs_pcscd, socket_of_this_process
from tests.psam.bench import make_applet
from tests.psam.commands import apdu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from keyd.iso7816.chip_line import Chip
    from keyd.lending.member import Member

REPOSITORY: Final = Path(__file__).parents[2]

pytest.importorskip(
    "smartcard",
    reason="pyscard is not here: pip install 'keyd[pcsc]', with libpcsclite-dev and swig",
)
pytestmark = needs_pcscd

# Where a PSAM is to be given up, and another beside it is not.
SHORT_SECONDS: Final = 3.0

FIRST: Final = "reader:Virtual PCD 00 00"
SECOND: Final = "reader:Virtual PCD 00 01"
GONE: Final = "the chip or its reader was taken away"


@pytest.fixture
def pcscd(tmp_path: Path) -> Iterator[Pcscd]:
    made = Pcscd(tmp_path, socket_of_this_process())
    yield made
    made.kill()


class Slot:
    """One slot of the reader: a chip can be put in, and pulled whatever it does."""

    def __init__(self, nursery: trio.Nursery, port: int) -> None:
        self._nursery = nursery
        self._port = port
        self._stream: trio.SocketStream | None = None

    async def put(self, chip: Chip) -> None:
        while self._stream is None:
            try:
                self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
            except OSError:
                await trio.sleep(0.05)
        self._nursery.start_soon(_play, chip, self._stream)

    def pull(self) -> None:
        assert self._stream is not None
        self._stream.socket.shutdown(socket.SHUT_RDWR)
        self._stream = None


async def _play(chip: Chip, stream: trio.SocketStream) -> None:
    # It was pulled: nothing can be said any more.
    with suppress(trio.ClosedResourceError):
        async with stream:
            await play(chip, stream)


@asynccontextmanager
async def readers(
    pcscd: Pcscd, *patterns: str, seconds: float = SECONDS
) -> AsyncIterator[tuple[Pool, list[Slot]]]:
    pool = Pool()
    source = ReaderSource(patterns or ["Virtual *"], PROFILE, command_seconds=seconds)
    with trio.fail_after(2 * SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, pool.joined, pool.parted)
            yield pool, [Slot(nursery, pcscd.port + slot) for slot in range(2)]
            nursery.cancel_scope.cancel()
    assert not pool.there


async def test_psams_in_two_slots_answer_as_they_do_without_a_reader(pcscd: Pcscd) -> None:
    pcscd.start()
    async with readers(pcscd) as (pool, slots):
        for slot in slots:
            await slot.put(make_applet())
        members = await pool.until(2)
        assert sorted(member.name for member in members) == [FIRST, SECOND]
        for member in members:
            assert (member.kind, member.slots) == (MemberKind.READER, 1)
            bare = make_applet()
            assert await member.reset(0) == bare.atr
            commands = [
                *(SELECT, apdu("00C00000", le=0x48), SELECT + b"\0", SELECT + b"\x05"),
                *(apdu("00C00000", le=0x43), bytes.fromhex("00B0960006"), DELIVER, CIPHER),
                *(CIPHER, bytes.fromhex("00B0960007"), apdu("80700100", bytes(0x34), 8)),
                *(b"", b"\x02", b"\x00\xb0", bytes.fromhex("00A40400000000"), b"\0" * 70_000),
            ]
            for command in commands:
                assert await member.transmit(0, command) == bare.transmit(command), command[:5]


async def test_reset_leaves_nothing_of_who_was_there_before(pcscd: Pcscd) -> None:
    pcscd.start()
    async with readers(pcscd) as (pool, (slot, _)):
        await slot.put(make_applet())
        (member,) = await pool.until(1)
        assert "not reset yet" in await failing(member.transmit(0, SELECT))
        await member.reset(0)
        await member.transmit(0, SELECT)
        assert await member.transmit(0, DELIVER) == OK
        await member.reset(0)
        assert (await member.transmit(0, CIPHER)).hex() == "6901"


class Heard(Slow):
    """A PSAM with one of two ATRs, that remembers what arrived."""

    def __init__(self, atr: str) -> None:
        super().__init__()
        self._atr = bytes.fromhex(atr)
        self.heard: list[str] = []

    @property
    def atr(self) -> bytes:
        return self._atr

    def transmit(self, command: bytes) -> bytes:
        self.heard.append(command.hex())
        return super().transmit(command)


# T=0 alone; and T=1, with the check character that belongs to it.
@pytest.mark.parametrize(("atr", "is_t0"), [("3B00", True), ("3B800181", False)])
async def test_data_and_le_go_as_the_protocol_has_them(pcscd: Pcscd, atr: str, is_t0: bool) -> None:
    pcscd.start()
    chip = Heard(atr)
    async with readers(pcscd) as (pool, (slot, _)):
        await slot.put(chip)
        (member,) = await pool.until(1)
        assert (await member.reset(0)).hex().upper() == atr
        answer = await member.transmit(0, SELECT + b"\x03")
        assert answer == make_applet().transmit(SELECT + b"\x03")
        whole = SELECT.hex() + "03"
        assert chip.heard == ([SELECT.hex(), "00c0000003"] if is_t0 else [whole])


async def test_only_readers_that_are_named_are_used(pcscd: Pcscd) -> None:
    pcscd.start()
    async with readers(pcscd, "No such *", "* 01") as (pool, slots):
        for slot in slots:
            await slot.put(make_applet())
        (member,) = await pool.until(1)
        assert member.name == SECOND
        # The other is nobody's: this one could not be had if we had it.
        read = "00B0960006"
        assert await trio.to_thread.run_sync(pcscd.send, 0, read) == ["9000510100000001"]
        await member.reset(0)
        assert await trio.to_thread.run_sync(pcscd.send, 1, read) == []


async def test_a_chip_that_is_pulled_mid_command_and_put_back(pcscd: Pcscd) -> None:
    pcscd.start()
    slow = Slow()
    async with readers(pcscd) as (pool, (slot, other)):
        await other.put(make_applet())
        await slot.put(slow)
        await pool.until(2)
        member = pool.there[FIRST]
        await member.reset(0)
        await member.transmit(0, SELECT)
        slow.is_slow = True
        failures = []

        async def deliver() -> None:
            failures.append(await failing(member.transmit(0, DELIVER)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            await begun(slow)
            slot.pull()
        assert failures[0].startswith(f"{FIRST}: ")
        (left,) = await pool.until(1)
        assert left.name == SECOND
        assert GONE in await failing(member.reset(0))
        assert GONE in await failing(member.transmit(0, SELECT))
        slow.is_slow = False
        slow.let_go.set()
        await slot.put(make_applet())
        await pool.until(2)
        again = pool.there[FIRST]
        assert again is not member
        await again.reset(0)
        assert (await again.transmit(0, SELECT))[:1] == b"\x61"
        assert pool.told == ["joined", "joined", "parted", "joined"]


async def test_pcscd_dies_mid_command_and_is_started_again(pcscd: Pcscd) -> None:
    slow = Slow()
    async with readers(pcscd) as (pool, (slot, _)):
        # It is not there yet, and joins when it is.
        await trio.sleep(0.2)
        assert pool.told == []
        pcscd.start()
        await slot.put(slow)
        (member,) = await pool.until(1)
        await member.reset(0)
        slow.is_slow = True
        failures = []

        async def select() -> None:
            failures.append(await failing(member.transmit(0, SELECT)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(select)
            await begun(slow)
            pcscd.kill()
        # Whoever is first: the watching thread, or the one that had the command.
        assert failures[0] == f"{FIRST}: {GONE}" or failures[0].startswith(
            f"{FIRST}: SCardTransmit: "
        )
        await pool.until(0)
        slow.is_slow = False
        slow.let_go.set()
        slot.pull()
        pcscd.start()
        await slot.put(make_applet())
        (member,) = await pool.until(1)
        await member.reset(0)
        assert (await member.transmit(0, SELECT))[:1] == b"\x61"


async def test_a_reader_comes_and_goes(pcscd: Pcscd) -> None:
    pcscd.take_out()
    pcscd.start()
    async with readers(pcscd) as (pool, (slot, _)):
        await trio.sleep(0.2)
        pcscd.kill()
        pcscd.plug_in()
        pcscd.start()
        await slot.put(make_applet())
        (member,) = await pool.until(1)
        await member.reset(0)
        assert (await member.transmit(0, SELECT))[:1] == b"\x61"
        pcscd.take_out()
        pcscd.kill()
        pcscd.start()
        await pool.until(0)
        assert GONE in await failing(member.transmit(0, SELECT))
        assert pool.told == ["joined", "parted"]


async def test_a_chip_that_never_answers_does_not_hold_up_another_reader(pcscd: Pcscd) -> None:
    pcscd.start()
    slow = Slow()
    async with readers(pcscd, seconds=SHORT_SECONDS) as (pool, slots):
        await slots[0].put(slow)
        await slots[1].put(make_applet())
        await pool.until(2)
        stuck, other = pool.there[FIRST], pool.there[SECOND]
        assert isinstance(stuck, ReaderMember)
        await stuck.reset(0)
        await other.reset(0)
        slow.is_slow = True
        answers = 0

        async def work() -> None:
            nonlocal answers
            while True:
                assert (await other.transmit(0, SELECT))[:1] == b"\x61"
                answers += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            assert "no answer within 3 s" in await failing(stuck.transmit(0, SELECT))
            nursery.cancel_scope.cancel()
        assert answers > 3
        assert "no answer within 3 s" in await failing(stuck.transmit(0, SELECT))
        threads = threading.active_count()
        # The reader is still with the command that does not end: a thread more, and not one for each attempt.
        for _ in range(5):
            await failing(stuck.reset(0))
            assert 1 <= stuck.stuck <= MAX_STUCK
            assert threading.active_count() <= threads + MAX_STUCK
        slow.is_slow = False
        slow.let_go.set()
        # The late answer was nobody's; the chip is as good as new.
        while True:
            with suppress(MemberFailed):
                await stuck.reset(0)
                break
        assert (await stuck.transmit(0, CIPHER)).hex() == "6901"
        assert stuck.stuck == 0


async def test_a_cancelled_command_takes_its_answer_with_it(pcscd: Pcscd) -> None:
    pcscd.start()
    slow = Slow()
    async with readers(pcscd) as (pool, (slot, _)):
        await slot.put(slow)
        (member,) = await pool.until(1)
        assert isinstance(member, ReaderMember)
        await member.reset(0)
        slow.is_slow = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.transmit, 0, SELECT)
            await begun(slow)
            nursery.cancel_scope.cancel()
        assert "given up" in await failing(member.transmit(0, DELIVER))
        slow.is_slow = False
        slow.let_go.set()
        # The thread had only to finish: no other was needed.
        await member.reset(0)
        assert member.stuck == 0
        assert (await member.transmit(0, CIPHER)).hex() == "6901"
        assert pool.told == ["joined"]


async def test_a_command_in_flight_fails_when_its_source_ends(pcscd: Pcscd) -> None:
    pcscd.start()
    slow, pool = Slow(), Pool()
    async with readers(pcscd, "none") as (_, (slot, _other)), trio.open_nursery() as nursery:
        source = ReaderSource(["*"], PROFILE, command_seconds=10 * SECONDS)
        nursery.start_soon(source.run, pool.joined, pool.parted)
        await slot.put(slow)
        (member,) = await pool.until(1)
        await member.reset(0)
        slow.is_slow = True
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as asking:
                asking.start_soon(fail_as_gone, member)
                await begun(slow)
                nursery.cancel_scope.cancel()
        slow.let_go.set()
    assert pool.told == ["joined", "parted"]


async def fail_as_gone(member: Member) -> None:
    assert GONE in await failing(member.transmit(0, SELECT))


async def test_no_more_than_two_threads_are_stuck_in_a_reader(pcscd: Pcscd) -> None:
    pcscd.start()
    slow = Slow()
    async with readers(pcscd, seconds=0.5) as (pool, (slot, _)):
        await slot.put(slow)
        (member,) = await pool.until(1)
        assert isinstance(member, ReaderMember)
        # pcscd asks for the ATR now and then, to see that the chip is there. It has the reader then.
        slow.is_slow_to_start = True
        await begun(slow)
        sentences = [await failing(member.reset(0)) for _ in range(MAX_STUCK + 2)]
        assert sentences[:MAX_STUCK] == [f"{FIRST}: no answer within 0.5 s"] * MAX_STUCK
        assert (
            sentences[MAX_STUCK:] == [f"{FIRST}: {MAX_STUCK} commands are stuck in the reader"] * 2
        )
        slow.let_go.set()


def test_a_chip_that_was_exchanged_between_two_looks_is_another_member() -> None:
    source, pool = ReaderSource(["*"], PROFILE), Pool()
    for seen in ({"A": 1}, {"A": 1, "B": 1}, {"A": 3, "B": 1}, {"A": 3}):
        source._take(seen, pool.joined, pool.parted)
    assert pool.told == ["joined", "joined", "parted", "joined", "parted"]


class Wrong(Slow):
    """A chip that answers what no chip answers."""

    answer = b""

    def transmit(self, command: bytes) -> bytes:
        del command
        return self.answer


@pytest.mark.parametrize("answer", [b"\x90", b"\x12\x34\x56", b"\0" * 257 + OK])
async def test_what_is_no_answer_of_a_chip_is_none(pcscd: Pcscd, answer: bytes) -> None:
    pcscd.start()
    wrong = Wrong()
    wrong.answer = answer
    async with readers(pcscd) as (pool, (slot, _)):
        await slot.put(wrong)
        (member,) = await pool.until(1)
        await member.reset(0)
        assert "answer" in await failing(member.transmit(0, SELECT))
        wrong.answer = b"\x6a\x82"
        assert "answer" in await failing(member.transmit(0, SELECT))
        await member.reset(0)
        assert (await member.transmit(0, SELECT)).hex() == "6a82"


def test_without_pyscard_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['smartcard'] = None\n"
        "from keyd.lending.pcsc import PcscUnavailable\n"
        "from keyd.lending.readers import ReaderSource\n"
        "try: ReaderSource(['*'], None)\n"
        "except PcscUnavailable as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert 'install keyd with its extra, "keyd[pcsc]"' in done.stdout
