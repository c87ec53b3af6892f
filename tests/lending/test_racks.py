"""An answer from a rack is that of the command asked, or there is none: whatever the rack does.

The good rack is `serve_rack` over real sockets with keyd's PSAMs in it. The others are a few lines each.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keyd.iso7816.chip_line import GET_ATR, POWER_ON, RESET, Messages, control, framed
from keyd.lending.member import MemberKind
from keyd.lending.rack_server import serve_rack
from keyd.lending.racks import RackSource
from tests.lending.bench import CIPHER, DELIVER, OK, SECONDS, SELECT, Pool, Slow, begun, failing
from tests.lending.members import PROFILE
from tests.psam.bench import make_applet
from tests.psam.commands import apdu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyd.iso7816.chip_line import Chip

# Where the rack is to be given up; elsewhere nothing depends on how fast it is.
SHORT_SECONDS: Final = 1.0

ATR: Final = bytes.fromhex("3B6800004B45594450534151")


async def listeners(count: int) -> list[trio.SocketListener]:
    return [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(count)]


def port_of(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


@asynccontextmanager
async def members_at(*ports: int, seconds: float = SECONDS) -> AsyncIterator[Pool]:
    pool = Pool()
    source = RackSource(
        [("127.0.0.1", port) for port in ports],
        PROFILE,
        command_seconds=seconds,
        longest_wait_seconds=0.5,
    )
    with trio.fail_after(2 * SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, pool.joined, pool.parted)
            yield pool
            nursery.cancel_scope.cancel()
    # Whoever was there has parted.
    assert not pool.there


@asynccontextmanager
async def rack_of(*chips: Chip, seconds: float = SECONDS) -> AsyncIterator[Pool]:
    held = await listeners(len(chips))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_rack, chips, held)
        async with members_at(*map(port_of, held), seconds=seconds) as pool:
            yield pool
        nursery.cancel_scope.cancel()


Play = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def hostile(play: Play) -> AsyncIterator[Pool]:
    """A rack that gives its ATR, and to a command does whatever `play` does."""

    async def attend(stream: trio.SocketStream) -> None:
        messages = Messages()
        try:
            async for data in stream:
                for message in messages.receive_data_untrusted(bytes(data)):
                    if len(message) > 1:
                        await play(stream, message)
                    elif message[0] == GET_ATR:
                        await stream.send_all(framed(ATR))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    (listener,) = await listeners(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, attend, [listener])
        async with members_at(port_of(listener), seconds=SHORT_SECONDS) as pool:
            yield pool
        nursery.cancel_scope.cancel()


async def test_two_psams_of_a_rack_answer_as_they_do_without_one() -> None:
    async with rack_of(make_applet(), make_applet()) as pool:
        members = await pool.until(2)
        for member in members:
            assert (member.kind, member.slots) == (MemberKind.RACK, 1)
            assert member.name.startswith("rack:127.0.0.1:")
            bare = make_applet()
            assert await member.reset(0) == bare.atr
            for command in (
                SELECT,
                apdu("00C00000", le=0x48),
                DELIVER,
                CIPHER,
                b"\x00\xb0\x96\x00\x06",
            ):
                assert await member.transmit(0, command) == bare.transmit(command)


async def test_reset_leaves_nothing_of_who_was_there_before() -> None:
    async with rack_of(make_applet()) as pool:
        (member,) = await pool.until(1)
        await member.transmit(0, SELECT)
        assert await member.transmit(0, DELIVER) == OK
        await member.reset(0)
        assert (await member.transmit(0, CIPHER)).hex() == "6901"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 6, 65_536])
async def test_what_is_no_command_is_answered_without_the_chip(length: int) -> None:
    async with rack_of(make_applet()) as pool:
        (member,) = await pool.until(1)
        await member.transmit(0, SELECT)
        await member.transmit(0, DELIVER)
        # Of one byte it would be a control: the PSAM would be off.
        message = (
            bytes((RESET,))
            if length == 1
            else bytes.fromhex("00A404000699").ljust(length, b"\0")[:length]
        )
        assert (await member.transmit(0, message)).hex() == "6700"
        assert (await member.transmit(0, CIPHER))[-2:] == OK


async def silent(stream: trio.SocketStream, command: bytes) -> None:
    pass


async def trickling(stream: trio.SocketStream, command: bytes) -> None:
    for octet in framed(bytes(256) + OK):
        await stream.send_all(bytes((octet,)))
        await trio.sleep(SHORT_SECONDS / 10)


def saying(*parts: bytes) -> Play:
    async def say(stream: trio.SocketStream, command: bytes) -> None:
        for part in parts:
            await stream.send_all(part)

    return say


HOSTILE: Final = {
    "silent": (silent, "no answer within 1 s"),
    "trickling": (trickling, "no answer within 1 s"),
    "half": (saying(framed(OK)[:-1]), "no answer within 1 s"),
    "empty": (saying(b"\0\0"), "a message on the line has no byte"),
    "one byte": (saying(framed(b"\x90")), "an answer of 1 bytes"),
    "no status word": (saying(framed(b"\x12\x34\x56")), "an answer without a status word"),
    "null byte": (saying(framed(b"\x60\x00")), "an answer without a status word"),
    "too long": (saying(b"\x01\x03"), "a message on the line has 259 bytes"),
    "far too long": (saying(b"\xff\xff" + bytes(70_000)), "a message on the line has 65535 bytes"),
    "two answers": (saying(framed(OK) + framed(OK)), "an answer that nobody asked for"),
    "one byte too many": (saying(framed(OK) + b"\0"), "bytes that nobody asked for"),
}


@pytest.mark.parametrize("play", HOSTILE.values(), ids=HOSTILE)
async def test_a_wrong_answer_is_none_and_reset_opens_another_line(play: tuple[Play, str]) -> None:
    is_bad = True

    async def now_and_then(stream: trio.SocketStream, command: bytes) -> None:
        await (play[0] if is_bad else saying(framed(b"\x6a\x82")))(stream, command)

    async with hostile(now_and_then) as pool:
        (member,) = await pool.until(1)
        assert await failing(member.transmit(0, SELECT)) == f"{member.name}: {play[1]}"
        # It stays so until the reset, and the member stays.
        assert play[1] in await failing(member.transmit(0, SELECT))
        is_bad = False
        assert await member.reset(0) == ATR
        assert (await member.transmit(0, SELECT)).hex() == "6a82"
        assert pool.told == ["joined"]


async def test_the_second_of_two_answers_is_not_that_of_the_next_command() -> None:
    racks: list[trio.SocketStream] = []

    async def answer(stream: trio.SocketStream, command: bytes) -> None:
        # Once for each connection, so that it would be the other answer that is taken.
        if stream not in racks:
            racks.append(stream)
            await stream.send_all(framed(OK))

    async with hostile(answer) as pool:
        (member,) = await pool.until(1)
        assert await member.transmit(0, SELECT) == OK
        # Not through trio, which would let the line be read before the next command: it is in the socket, unread.
        unasked = framed(b"\x6a\x82")
        assert os.write(racks[0].socket.fileno(), unasked) == len(unasked)
        assert "nobody asked for" in await failing(member.transmit(0, SELECT))
        await member.reset(0)
        assert await member.transmit(0, SELECT) == OK


async def test_a_late_answer_finds_nobody() -> None:
    slow = Slow()
    async with rack_of(slow, seconds=SHORT_SECONDS) as pool:
        (member,) = await pool.until(1)
        await member.transmit(0, SELECT)
        slow.is_slow = True
        assert "no answer within" in await failing(member.transmit(0, DELIVER))
        slow.is_slow = False
        slow.let_go.set()
        await member.reset(0)
        # The DELIVERY was done, late, and the reset came after it.
        assert (await member.transmit(0, CIPHER)).hex() == "6901"


async def test_a_cancelled_command_takes_its_answer_with_it() -> None:
    slow = Slow()
    async with rack_of(slow) as pool:
        (member,) = await pool.until(1)
        slow.is_slow = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.transmit, 0, SELECT)
            await begun(slow)
            nursery.cancel_scope.cancel()
        slow.is_slow = False
        assert "a command was given up" in await failing(member.transmit(0, DELIVER))
        slow.let_go.set()
        await member.reset(0)
        assert (await member.transmit(0, CIPHER)).hex() == "6901"
        assert pool.told == ["joined"]


@pytest.mark.parametrize("said", [b"", b"\0", framed(OK)[:-1]])
async def test_a_rack_that_ends_the_line_in_an_answer_has_parted(said: bytes) -> None:
    async def end(stream: trio.SocketStream, command: bytes) -> None:
        await stream.send_all(said)
        await stream.aclose()

    async with hostile(end) as pool:
        (member,) = await pool.until(1)
        assert "ended the line" in await failing(member.transmit(0, SELECT))
        await pool.until_told(3)
        assert pool.told == ["joined", "parted", "joined"]
        assert "gone" in await failing(member.reset(0))
        assert "no line" in await failing(member.transmit(0, SELECT))
        (other,) = await pool.until(1)
        assert other is not member
        assert other.name == member.name


async def test_a_rack_may_be_started_anew_and_the_other_goes_on() -> None:
    held = await listeners(2)
    ports = [port_of(listener) for listener in held]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_rack, [make_applet()], held[:1])
        async with members_at(*ports) as pool:
            for round_ in range(1, 4):
                async with trio.open_nursery() as second:
                    second.start_soon(serve_rack, [make_applet()], held[1:])
                    members = await pool.until(2)
                    for member in members:
                        assert (await member.transmit(0, SELECT))[:1] == b"\x61"
                    second.cancel_scope.cancel()
                # Found without a command: the line ended.
                (first,) = await pool.until(1)
                assert first.name == f"rack:127.0.0.1:{ports[0]}"
                assert (await first.transmit(0, SELECT))[:1] == b"\x61"
                assert pool.told.count("parted") == round_
                if round_ < 3:
                    held[1:] = await trio.open_tcp_listeners(ports[1], host="127.0.0.1")
        nursery.cancel_scope.cancel()


async def test_a_rack_that_takes_connections_and_gives_no_atr_never_joins() -> None:
    connections = 0

    async def attend(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.send_all(framed(b"\x00\x00"))

    (listener,) = await listeners(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, attend, [listener])
        async with members_at(port_of(listener)) as pool:
            while connections < 3:  # noqa: ASYNC110
                await trio.sleep(0.05)
            assert pool.told == []
        nursery.cancel_scope.cancel()


async def test_the_newest_connection_has_the_chip() -> None:
    (listener,) = await listeners(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_rack, [make_applet()], [listener])
        with trio.fail_after(SECONDS):
            async with await trio.open_tcp_stream("127.0.0.1", port_of(listener)) as old:
                await old.send_all(framed(SELECT) + framed(DELIVER))
                said = b""
                while not said.endswith(framed(OK)):
                    said += await old.receive_some(100)
                async with members_at(port_of(listener)) as pool:
                    (member,) = await pool.until(1)
                    assert (await member.transmit(0, CIPHER)).hex() == "6901"
                    assert await old.receive_some(100) == b""
        nursery.cancel_scope.cancel()


async def test_a_chip_that_still_computes_is_not_asked_by_the_next_connection() -> None:
    (listener,) = await listeners(1)
    slow = Slow()
    slow.is_slow = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_rack, [slow], [listener])
        with trio.fail_after(SECONDS):
            port = port_of(listener)
            async with await trio.open_tcp_stream("127.0.0.1", port) as old:
                await old.send_all(framed(SELECT))
                await begun(slow)
                async with await trio.open_tcp_stream("127.0.0.1", port) as new:
                    await new.send_all(control(GET_ATR))
                    # Time for the connection to be taken; a slow machine would only make it too easy.
                    await trio.sleep(0.1)
                    slow.let_go.set()
                    assert await new.receive_some(100) == framed(slow.atr)
        assert slow.overlaps == 0
        nursery.cancel_scope.cancel()


async def test_the_line_is_what_the_manual_says() -> None:
    said = bytearray()

    async def attend(stream: trio.SocketStream) -> None:
        async for data in stream:
            said.extend(data)
            if said.endswith(bytes((0, 1, GET_ATR))):
                await stream.send_all(b"\x00\x0c" + ATR)
            elif said.endswith(SELECT):
                await stream.send_all(b"\x00\x02\x90\x00")

    (listener,) = await listeners(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, attend, [listener])
        async with members_at(port_of(listener)) as pool:
            (member,) = await pool.until(1)
            assert await member.transmit(0, SELECT) == OK
            await member.reset(0)
        nursery.cancel_scope.cancel()
    atr = bytes((0, 1, GET_ATR))
    assert said == bytes((0, 1, POWER_ON)) + atr + b"\x00\x0b" + SELECT + bytes((0, 1, RESET)) + atr
