"""Open PSAMs and card tasks over members that are slow, silent or pulled out: right answers or a clear no."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import (
    KeyNotFound,
    KeyUsageRefused,
    NotAllowed,
    PoolExhausted,
    PsamGone,
    PsamNotFound,
    Refusal,
)
from keyd.handlers.desk import Wanted
from keyd.iso7816 import converse
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask, ProtectTask, TacTask, purpose
from keyd.lending.lender import Times
from keyd.lending.virtual import VirtualMember, VirtualSource
from keyd.psam import Applet
from keyd.psam.level_index import Place, identify_and_probe
from keyd.psam.pool import PoolLimits, Strategy
from tests.lending.members import (
    ALGORITHMS,
    CARDS,
    PLACES,
    PROFILE,
    Chip,
    Fixed,
    lender_of,
    psam,
    until_ready,
)

if TYPE_CHECKING:
    from keyd.handlers.desk import OpenPsam
    from keyd.keys.sam import SamTask

REGION: Final = Region("510100")
DIVERSIFIER: Final = bytes.fromhex("8649519930000BEE")
FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")
IRK: Final = Place(0x07, 0x08, CardAlgorithm.SM4)

SM4_ENVIRONMENT: Final = bytes.fromhex("00A4000002DDF2")
APPLICATION: Final = bytes.fromhex("00A4040006D15600000590")
GET_TERMINAL: Final = bytes.fromhex("00B0960006")
DELIVER: Final = (
    bytes.fromhex("BFDE670828")
    + DIVERSIFIER
    + city_diversifier(REGION)
    + province_diversifier(REGION)
    + FACTOR
    + bytes(8)
)
CIPHER: Final = bytes.fromhex("80FA000010") + CHALLENGE + bytes(8) + b"\x10"
PURCHASE: Final = bytes.fromhex(
    "8070010034010203040005000027100000000000000000012024010203040501038649519930000BEE35313031303073783531303030307368"
)


def ring() -> KeyRing:
    return KeyRing(synthetic(CARDS.key_places(ALGORITHMS)))


def key(address: int, use: Use, algorithm: CardAlgorithm = CardAlgorithm.SM4) -> CardKeyRef:
    return CardKeyRef(address, algorithm, REGION, DIVERSIFIER, purpose(use))


def cryptogram(algorithm: CardAlgorithm = CardAlgorithm.SM4) -> CryptogramTask:
    return CryptogramTask(key(0x0170, Use.INTERNAL, algorithm), FACTOR, CHALLENGE)


def alone(*commands: bytes) -> list[bytes]:
    """Return what a PSAM answers that nobody else has."""
    applet = Applet(psam(1))
    return [applet.transmit(command) for command in commands]


async def answers(lent: OpenPsam, *commands: bytes) -> list[bytes]:
    return [await lent.transmit(command) for command in commands]


# Open PSAMs ------------------------------------------------------------------------------------------------------


async def test_an_open_psam_answers_as_one_in_the_slot(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    lent = await lender.open("T1", Wanted())
    assert lent.facts.number == "000000000001"
    script = [SM4_ENVIRONMENT, APPLICATION, GET_TERMINAL, DELIVER, CIPHER, CIPHER]
    assert await answers(lent, *script) == alone(*script)
    await lent.close()
    await lent.close()
    with pytest.raises(PsamGone):
        await lent.transmit(SM4_ENVIRONMENT)


async def test_sessions_of_one_chip_do_not_notice_each_other(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    lender = lender_of(Fixed([chip]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    first, second = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    script = [
        SM4_ENVIRONMENT,
        APPLICATION,
        DELIVER,
        CIPHER,
        bytes.fromhex("80FA000010") + bytes(16),
    ]
    results: dict[str, list[bytes]] = {}

    async def run(name: str, lent: OpenPsam) -> None:
        results[name] = await answers(lent, *script, *script[1:])

    async with trio.open_nursery() as both:
        both.start_soon(run, "first", first)
        both.start_soon(run, "second", second)
    assert results["first"] == results["second"] == alone(*script, *script[1:])
    # Twice to be read; then once, since the second had selected nothing yet that would say where it is.
    assert chip.resets == 3


async def test_nobody_gets_a_chip_between_delivery_and_the_last_cipher(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]), PoolLimits(wait_seconds=1.0, idle_seconds=5.0))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder, other = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    with pytest.raises(PoolExhausted) as exhausted:
        await other.transmit(CIPHER)
    assert 1 <= exhausted.value.retry_milliseconds <= 10_000
    (refused,) = await lender.compute([cryptogram()], "T3")
    assert isinstance(refused, PoolExhausted)
    assert await holder.transmit(CIPHER) == alone(SM4_ENVIRONMENT, APPLICATION, DELIVER, CIPHER)[-1]
    # There is no key of the holder's for whoever comes next.
    assert await other.transmit(CIPHER) == bytes.fromhex("6901")


async def test_who_keeps_a_chip_too_long_loses_what_was_begun_and_is_told_once(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    lender = lender_of(Fixed([chip]), PoolLimits(wait_seconds=20.0, idle_seconds=5.0))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder, other = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    resets = chip.resets
    assert await other.transmit(CIPHER) == bytes.fromhex("6901")
    assert chip.resets == resets + 1
    with pytest.raises(PsamGone, match="lost"):
        await holder.transmit(CIPHER)
    # What was selected is there still, and all can be begun anew.
    expected = alone(SM4_ENVIRONMENT, APPLICATION, DELIVER, CIPHER)[2:]
    assert await answers(holder, DELIVER, CIPHER) == expected


async def test_an_open_psam_that_nobody_uses_is_closed(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]), times=Times(open_seconds=60.0))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    used, unused = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    for _ in range(10):
        await trio.sleep(20)
        await used.transmit(SM4_ENVIRONMENT)
    assert [report.sessions for report in lender.members()] == [1]
    with pytest.raises(PsamGone):
        await unused.transmit(SM4_ENVIRONMENT)


async def test_an_open_psam_whose_command_waits_is_not_closed(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    limits = PoolLimits(wait_seconds=5.0, idle_seconds=60.0, turn_seconds=60.0)
    lender = lender_of(Fixed([Chip(1)]), limits, Times(open_seconds=10.0))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder, other = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await trio.sleep(8)
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    async with trio.open_nursery() as inner:
        inner.start_soon(other.transmit, SM4_ENVIRONMENT)
        await trio.sleep(4)
        await holder.transmit(CIPHER)


async def test_abandoned_in_the_middle_of_a_command_the_chip_is_reset_before_anybody_has_it(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    lender = lender_of(Fixed([chip]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    lent = await lender.open("T1", Wanted())
    await answers(lent, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    resets = chip.resets

    async def in_the_middle() -> None:
        with pytest.raises(PsamGone):
            await lent.transmit(CIPHER)

    async with trio.open_nursery() as inner:
        inner.start_soon(in_the_middle)
        await trio.sleep(chip.round_trip / 2)
        lent.abandon()
        other = await lender.open("T2", Wanted())
        assert await other.transmit(CIPHER) == bytes.fromhex("6901")
    assert chip.resets == resets + 1
    await lent.close()


async def test_whoever_is_cancelled_while_waiting_leaves_no_trace(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder, other = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    with trio.move_on_after(0.5) as gave_up:
        await other.transmit(SM4_ENVIRONMENT)
    assert gave_up.cancelled_caught
    assert [report.waiting for report in lender.members()] == [0]
    await holder.transmit(CIPHER)
    assert await other.transmit(SM4_ENVIRONMENT) == alone(SM4_ENVIRONMENT)[0]


async def test_closed_while_a_command_waits_for_its_turn_the_command_is_refused(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]), PoolLimits(wait_seconds=5.0, idle_seconds=60.0))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder, other = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)

    async def waits() -> None:
        with pytest.raises(PsamGone):
            await other.transmit(SM4_ENVIRONMENT)

    with trio.fail_after(1):
        async with trio.open_nursery() as inner:
            inner.start_soon(waits)
            await trio.sleep(0.5)
            other.abandon()
    assert [report.waiting for report in lender.members()] == [0]


async def test_a_turn_that_came_too_late_leaves_the_chip_as_another_left_it(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    lender = lender_of(Fixed([chip]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    first, second = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(second, SM4_ENVIRONMENT)
    # In the application there is no such file.
    for steps in range(10):
        await answers(first, SM4_ENVIRONMENT, APPLICATION)
        async with trio.open_nursery() as inner:
            inner.start_soon(second.transmit, GET_TERMINAL)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            inner.cancel_scope.cancel()
        expected = alone(SM4_ENVIRONMENT, GET_TERMINAL)[1]
        assert await second.transmit(GET_TERMINAL) == expected, steps


async def test_a_terminal_that_is_wrong_again_and_again_locks_no_shared_psam(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    lender = lender_of(Fixed([chip]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    wrong, right = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())

    async def buy(lent: OpenPsam) -> None:
        await answers(lent, SM4_ENVIRONMENT, APPLICATION, PURCHASE)
        assert await lent.transmit(bytes.fromhex("807200000400000000")) == bytes.fromhex("9302")

    for _ in range(3):
        await buy(wrong)
    for lent in (wrong, await lender.open("T1", Wanted())):
        with pytest.raises(NotAllowed, match="3 times in a row"):
            await lent.transmit(PURCHASE)
    # What it reads with is not concerned, and nobody else is.
    assert (await answers(wrong, DELIVER, CIPHER))[0] == b"\x90\x00"
    await buy(right)
    await trio.sleep(601)
    await buy(await lender.open("T1", Wanted()))


# Which PSAM ------------------------------------------------------------------------------------------------------


async def test_a_psam_is_asked_for_by_number_or_by_keys(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1), Chip(2)]))
    nursery.start_soon(lender.run)
    await until_ready(lender, 2)
    assert (await lender.open("T1", Wanted("000000000002"))).facts.number == "000000000002"
    assert (await lender.open("T1", Wanted(places=frozenset({IRK})))).facts.levels[IRK] == 3
    for wanted in (
        Wanted("000000000003"),
        Wanted(places=frozenset({Place(0x07, 0x08, CardAlgorithm.SSF33)})),
    ):
        with pytest.raises(PsamNotFound):
            await lender.open("T1", wanted)


async def test_who_comes_while_psams_are_read_for_the_first_time_waits_a_little(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    source = Fixed([Chip(1, lambda _command: "failed")])
    lender = lender_of(source, PoolLimits(wait_seconds=100))
    nursery.start_soon(lender.run)
    await trio.testing.wait_all_tasks_blocked()
    # The first cannot be read. It is not waited for any longer.
    began = trio.current_time()
    with pytest.raises(PsamNotFound):
        await lender.open("T1", Wanted())
    assert trio.current_time() - began < 1
    # The second can, and takes its time.
    source.joined(Chip(2))
    lent = await lender.open("T1", Wanted())
    assert lent.facts.number == "000000000002"
    # Whoever does not want to wait for so long leaves nothing behind.
    source.joined(own := Chip(3))
    with trio.move_on_after(0.01):
        await lender.open("T1", Wanted("000000000003"))
    assert [report.sessions for report in lender.members()] == [0, 1, 0]
    source.parted(own)
    with pytest.raises(PsamNotFound):
        await lender.open("T1", Wanted("000000000003"))


async def test_nobody_waits_for_a_psam_longer_than_for_a_turn(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1, round_trip=0.5)]), PoolLimits(wait_seconds=2))
    nursery.start_soon(lender.run)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    with pytest.raises(PoolExhausted) as caught:
        await lender.open("T1", Wanted())
    assert trio.current_time() - began == pytest.approx(2)
    assert caught.value.retry_milliseconds > 0


async def test_a_psam_of_one_terminal_is_lent_to_nobody_else(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    own = VirtualMember("virtual 1", psam(1), owner="T1")
    lender = lender_of(Fixed([own, Chip(2)]))
    nursery.start_soon(lender.run)
    await until_ready(lender, 2)
    assert (await lender.open("T1", Wanted())).facts.number == "000000000001"
    assert (await lender.open("T2", Wanted())).facts.number == "000000000002"
    with pytest.raises(NotAllowed):
        await lender.open("T2", Wanted("000000000001"))


@pytest.mark.parametrize("strategy", Strategy)
async def test_every_strategy_serves_everybody(
    nursery: trio.Nursery, autojump_clock: object, strategy: Strategy
) -> None:
    lender = lender_of(Fixed([Chip(1), Chip(2)]), strategy=strategy)
    nursery.start_soon(lender.run)
    await until_ready(lender, 2)
    for _ in range(3):
        lents = [await lender.open(f"T{number}", Wanted()) for number in range(4)]
        for lent in lents:
            assert await lent.transmit(SM4_ENVIRONMENT) == alone(SM4_ENVIRONMENT)[0]
            await lent.close()
    if strategy is not Strategy.KEY_SET:
        assert all(report.turns for report in lender.members())


# Members that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["silent", "failed", "nothing", "lost answer"])
async def test_a_member_that_fails_is_quarantined_and_comes_back(
    nursery: trio.Nursery, autojump_clock: object, trouble: str
) -> None:
    is_broken = False
    said: list[tuple[str, str]] = []
    chip = Chip(1, lambda _command: trouble if is_broken else None)
    lender = lender_of(Fixed([chip]), say=lambda event, detail: said.append((event, detail)))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    lent = await lender.open("T1", Wanted())
    await answers(lent, SM4_ENVIRONMENT, APPLICATION)
    is_broken = True
    with pytest.raises(PsamGone):
        await lent.transmit(DELIVER)
    assert [(report.state, report.sessions) for report in lender.members()] == [("quarantined", 0)]
    with pytest.raises(PsamGone):
        await lent.transmit(SM4_ENVIRONMENT)
    with pytest.raises(PoolExhausted):
        await lender.open("T1", Wanted())
    commands = chip.commands
    await trio.sleep(600)
    # It is asked again and again, and less and less often.
    assert 5 <= chip.commands - commands <= 20
    is_broken = False
    await trio.sleep(400)
    again = await lender.open("T1", Wanted())
    script = [SM4_ENVIRONMENT, APPLICATION, DELIVER, CIPHER]
    assert await answers(again, *script) == alone(*script)
    assert {event for event, _ in said} == {"psam_joined", "psam_ready", "psam_failed"}
    assert not any(CHALLENGE.hex() in detail.lower() for _, detail in said)


async def test_a_reader_that_is_taken_away_in_the_middle_and_given_back(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    source = Fixed([chip])
    lender = lender_of(source)
    nursery.start_soon(lender.run)
    await until_ready(lender)
    lent, waiting = await lender.open("T1", Wanted()), await lender.open("T2", Wanted())
    await answers(lent, SM4_ENVIRONMENT, APPLICATION, DELIVER)

    async def refused(lent: OpenPsam) -> None:
        with pytest.raises(PsamGone):
            await lent.transmit(CIPHER)

    async with trio.open_nursery() as inner:
        inner.start_soon(refused, lent)
        inner.start_soon(refused, waiting)
        await trio.sleep(chip.round_trip / 2)
        source.parted(chip)
        assert lender.members() == []
    with pytest.raises(PsamNotFound):
        await lender.open("T1", Wanted())
    source.joined(Chip(1))
    await until_ready(lender)
    assert await (await lender.open("T1", Wanted())).transmit(CIPHER) == bytes.fromhex("6901")


async def test_what_is_no_psam_never_serves(nursery: trio.Nursery, autojump_clock: object) -> None:
    said: list[str] = []
    chip = Chip(1)
    chip.applet.transmit = lambda _command: bytes.fromhex("6D00")  # type: ignore[method-assign,assignment]
    lender = lender_of(Fixed([chip]), say=lambda event, detail: said.append(f"{event} {detail}"))
    nursery.start_soon(lender.run)
    await trio.sleep(60)
    assert [report.state for report in lender.members()] == ["quarantined"]
    assert any("psam_failed reader 1: INS A4 was answered" in sentence for sentence in said)


# Card tasks ------------------------------------------------------------------------------------------------------


async def test_card_tasks_are_the_rings_to_the_byte(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1), Chip(2), VirtualMember("virtual 3", psam(3))]))
    nursery.start_soon(lender.run)
    await until_ready(lender, 3)
    tasks: list[SamTask] = [
        cryptogram(CardAlgorithm.SM4),
        cryptogram(CardAlgorithm.DES),
        ProtectTask(key(0x0173, Use.MESSAGING), FACTOR, bytes.fromhex("84240001"), b"\x12\x34", encrypt=True),
    ]  # fmt: skip
    results = await lender.compute(tasks * 20, "T1")
    assert results == ring().compute(tasks * 20)


async def test_what_no_psam_has_or_does_is_refused_one_by_one(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    lender = lender_of(Fixed([Chip(1)]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    good, unknown, tac = await lender.compute(
        [cryptogram(), CryptogramTask(key(0x0001, Use.INTERNAL), FACTOR, CHALLENGE),
         TacTask(key(0x00B5, Use.TAC), b"data")],
        "T1",
    )  # fmt: skip
    assert [good] == ring().compute([cryptogram()])
    assert isinstance(unknown, KeyNotFound)
    assert isinstance(tac, KeyUsageRefused)


async def test_a_task_whose_member_fails_is_done_by_another(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    is_broken = True
    served = 0

    def fails_in_the_middle(command: bytes) -> str | None:
        return "lost answer" if is_broken and served and command[1] == 0xFA else None

    lender = lender_of(Fixed([Chip(1, fails_in_the_middle), Chip(2)]))
    nursery.start_soon(lender.run)
    await until_ready(lender, 2)
    served = 1
    expected = ring().compute([cryptogram()])
    for _ in range(4):
        assert await lender.compute([cryptogram()], "T1") == expected
    assert sorted(report.failures for report in lender.members()) == [0, 1]


async def test_with_no_member_left_a_task_is_refused(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    is_ready = False
    lender = lender_of(Fixed([Chip(1, lambda _command: "failed" if is_ready else None)]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    is_ready = True
    (refused,) = await lender.compute([cryptogram()], "T1")
    assert isinstance(refused, PoolExhausted | PsamGone)


async def test_a_member_taken_away_as_it_is_granted_is_a_refusal(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    chip = Chip(1)
    source = Fixed([chip])
    lender = lender_of(source)
    nursery.start_soon(lender.run)
    await until_ready(lender)
    holder = await lender.open("T1", Wanted())
    await answers(holder, SM4_ENVIRONMENT, APPLICATION, DELIVER)
    results: list[bytes | Refusal] = []

    async def compute() -> None:
        results.extend(await lender.compute([cryptogram()], "T2"))

    async with trio.open_nursery() as inner:
        inner.start_soon(compute)
        await trio.sleep(0.5)
        assert [report.waiting for report in lender.members()] == [1]
        # With the end of this turn the other one begins, of which nobody has heard yet.
        await holder.transmit(CIPHER)
        source.parted(chip)
    assert isinstance(results[0], KeyNotFound)


# Virtual members -------------------------------------------------------------------------------------------------


async def test_slots_of_a_virtual_psam_share_its_numbers_and_nothing_else(
    nursery: trio.Nursery,
) -> None:
    lender = lender_of(Fixed([VirtualMember("virtual 1", psam(1), slots=8)]))
    nursery.start_soon(lender.run)
    await until_ready(lender)
    numbers: list[bytes] = []

    async def buy(terminal: str) -> None:
        lent = await lender.open(terminal, Wanted())
        await answers(lent, SM4_ENVIRONMENT, APPLICATION)
        for _ in range(3):
            waiting = await lent.transmit(PURCHASE)
            assert waiting == bytes.fromhex("6108")
            numbers.append((await lent.transmit(bytes.fromhex("00C0000008")))[:4])
            assert await lent.transmit(bytes.fromhex("807200000400000000")) == bytes.fromhex("9302")
        await lent.close()

    async with trio.open_nursery() as buyers:
        for number in range(5):
            buyers.start_soon(buy, f"T{number}")
    assert len(set(numbers)) == len(numbers) == 15


def test_what_is_known_of_a_virtual_psam_is_what_probing_finds_out() -> None:
    played = psam(1)
    probed = converse(identify_and_probe(PLACES, PROFILE), Applet(played).transmit)
    known = VirtualMember("virtual 1", played).known(PLACES)
    assert known.levels == probed.levels
    assert (known.serial, known.terminal) == (probed.serial, probed.terminal)
    assert len(known.levels) > 100


async def test_issued_psams_come_go_and_begin_anew(nursery: trio.Nursery) -> None:
    source: VirtualSource[str] = VirtualSource(
        lambda number: psam(int(number)), lambda _number: "", slots=2
    )
    lender = lender_of(source)
    nursery.start_soon(lender.run)
    source.show({"000000000001": "1", "000000000002": "2"})
    await until_ready(lender, 2)
    lent = await lender.open("T1", Wanted("000000000001"))
    source.show({"000000000002": "2"})
    with trio.fail_after(10):
        while len(lender.members()) > 1:  # noqa: ASYNC110
            await trio.sleep(0.01)
    with pytest.raises(PsamGone):
        await lent.transmit(SM4_ENVIRONMENT)
    with pytest.raises(PsamNotFound):
        await lender.open("T1", Wanted("000000000001"))
