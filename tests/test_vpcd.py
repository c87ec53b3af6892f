"""A chip is in its slot whenever the driver is there, however the stream is cut and whoever is started anew.

The driver here is a small one of our own; `tests/psam/test_pcscd.py` has the real one.
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from keyd.errors import RemoteProtocolError
from keyd.iso7816.chip_line import GET_ATR, POWER_OFF, POWER_ON, RESET, Messages, framed
from keyd.simulator import issue_card
from keyd.vpcd import serve
from tests.psam.bench import make_applet
from tests.psam.commands import apdu, deliver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyd.iso7816.chip_line import Chip

SELECT: Final = bytes.fromhex("00A4040006D15600000590")
SECONDS: Final = 10


class Driver:
    """One slot's connection, from the driver's side."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.messages = Messages()

    async def control(self, octet: int) -> None:
        await self.stream.send_all(framed(bytes((octet,))))

    async def ask(self, message: bytes) -> bytes:
        await self.stream.send_all(framed(message))
        while True:
            answers = self.messages.receive_data_untrusted(await self.stream.receive_some(1000))
            if answers:
                (answer,) = answers
                return answer

    async def atr(self) -> bytes:
        return await self.ask(bytes((GET_ATR,)))


class Reader:
    """The driver: a listener for each slot, which can be closed and opened again."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.port = 0
        self.listeners: list[trio.SocketListener] = []
        self.drivers: list[Driver] = []

    async def open(self) -> None:
        for _ in range(50):
            try:
                (first,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
                port = first.socket.getsockname()[1]
                self.listeners = [first]
                for slot in range(1, self.slots):
                    self.listeners += await trio.open_tcp_listeners(port + slot, host="127.0.0.1")
            except OSError:
                await self.close()  # the next port is somebody's
            else:
                self.port = port
                return
        pytest.fail("there are no ports in a row")

    async def close(self) -> None:
        for listener in self.listeners:
            await listener.aclose()
        for driver in self.drivers:
            await driver.stream.aclose()
        self.listeners, self.drivers = [], []

    async def slot(self, number: int) -> Driver:
        self.drivers.append(Driver(await self.listeners[number].accept()))
        return self.drivers[-1]


@asynccontextmanager
async def reader_with(*chips: Chip) -> AsyncIterator[tuple[Reader, list[tuple[int, bool]]]]:
    reader, told = Reader(len(chips)), list[tuple[int, bool]]()
    await reader.open()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                serve, chips, "127.0.0.1", reader.port, lambda *what: told.append(what)
            )
            yield reader, told
            await reader.close()
            nursery.cancel_scope.cancel()


async def test_a_psam_and_a_card_are_in_two_slots() -> None:
    card, psam = issue_card(serial=1), make_applet()
    async with reader_with(psam, card) as (reader, told):
        first, second = await reader.slot(0), await reader.slot(1)
        assert await first.atr() == psam.atr
        assert await second.atr() == card.atr
        assert (await first.ask(SELECT))[:1] == b"\x61"
        assert (await second.ask(SELECT)).hex() == "6a82"
        assert sorted(told) == [(0, True), (1, True)]


@pytest.mark.parametrize("control", [POWER_OFF, POWER_ON, RESET])
async def test_power_takes_away_what_was_begun(control: int) -> None:
    async with reader_with(make_applet()) as (reader, _):
        driver = await reader.slot(0)
        await driver.control(POWER_ON)
        await driver.ask(SELECT)
        assert await driver.ask(deliver("social-security", "SM4", 0x67, 0x08)) == b"\x90\x00"
        await driver.control(control)
        assert (await driver.ask(apdu("80FA0000", bytes(16), 16))).hex() == "6901"


async def test_the_chip_comes_back_when_the_driver_does() -> None:
    async with reader_with(make_applet()) as (reader, told):
        for times in range(1, 4):
            driver = await reader.slot(0)
            # What was begun before belongs to nobody any more.
            assert (await driver.ask(apdu("80FA0000", bytes(16), 16))).hex() == "6901"
            await driver.ask(SELECT)
            await driver.ask(deliver("social-security", "SM4", 0x67, 0x08))
            await reader.close()
            await trio.sleep(0.05 * times)
            await reader.open()
        assert told[:5] == [(0, True), (0, False)] * 2 + [(0, True)]


async def test_the_chip_waits_for_a_driver_that_is_not_there_yet() -> None:
    reader = Reader(1)
    await reader.open()
    await reader.close()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [make_applet()], "127.0.0.1", reader.port)
            await trio.sleep(0.5)
            await reader.open()
            assert await (await reader.slot(0)).atr() == make_applet().atr
            await reader.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("nonsense", [b"\0\0", b"\0", b"\xff\xff\x01"])
async def test_after_nonsense_the_next_connection_is_a_good_one(nonsense: bytes) -> None:
    async with reader_with(make_applet()) as (reader, _):
        driver = await reader.slot(0)
        await driver.stream.send_all(nonsense)
        await driver.stream.aclose()
        assert await (await reader.slot(0)).atr() == make_applet().atr


async def test_controls_that_are_not_known_are_passed_over() -> None:
    async with reader_with(make_applet()) as (reader, _):
        driver = await reader.slot(0)
        for octet in (3, 5, 255):
            await driver.control(octet)
        assert await driver.atr() == make_applet().atr


messages = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


@given(messages=messages, cuts=st.lists(st.integers(0, 2000), max_size=10))
def test_messages_survive_any_cutting(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framed(message) for message in messages)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader, seen = Messages(), []
    for start, end in itertools.pairwise(places):
        seen += reader.receive_data_untrusted(stream[start:end])
    assert seen == messages


@given(length=st.integers(1, 0xFFFF), longest=st.integers(1, 0xFFFF))
def test_a_message_that_announces_too_much_is_not_waited_for(length: int, longest: int) -> None:
    messages = Messages(longest)
    announced = length.to_bytes(2, "big")
    if length <= longest:
        assert messages.receive_data_untrusted(announced) == []
        assert not messages.is_between
    else:
        with pytest.raises(RemoteProtocolError):
            messages.receive_data_untrusted(announced)


@given(data=st.binary(max_size=100))
def test_any_bytes_are_messages_or_one_error(data: bytes) -> None:
    try:
        seen = Messages().receive_data_untrusted(data)
    except RemoteProtocolError:
        return
    assert b"".join(framed(message) for message in seen) == data[: sum(len(m) + 2 for m in seen)]
