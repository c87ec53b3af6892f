"""A purchase is two commands: MAC2 can be tried once, a number is given once, and too many lies lock the PSAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyd.errors import StoreUnavailable
from keyd.psam import PsamRecord, TransientMemory
from keyd.psam.counters import MAX_NUMBER
from tests.psam.bench import Both, make_applet, make_both, make_naive
from tests.psam.commands import every_command, purchase
from tests.psam.test_one_answer import both_ways

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.psam import PsamMemory

SELECT = bytes.fromhex("00A4040006D15600000590")
WRONG = bytes.fromhex("80720000040BADBAD0")


def mac2(both: Both) -> bytes:
    """CREDIT SAM with the MAC2 that the card would make."""
    lane = both.naive.lanes[0]
    assert lane.purchase
    return bytes.fromhex("8072000004") + both.naive._mac(lane, *lane.purchase)


@both_ways
def test_mac2_can_be_tried_once(profile: str, environment: str) -> None:
    both = make_both(profile, environment)
    both.transmit(SELECT)
    both.transmit(purchase(profile, environment))
    right = mac2(both)
    assert both.transmit(WRONG).hex() == "9302"
    assert both.transmit(right).hex() == "6901"
    both.transmit(purchase(profile, environment))
    right = mac2(both)
    assert both.transmit(right).hex() == "9000"
    assert both.transmit(right).hex() == "6901"


def test_a_purchase_bears_nothing_in_between_but_get_response() -> None:
    for name, command in every_command("social-security", "SM4").items():
        both = make_both()
        both.transmit(SELECT)
        both.transmit(purchase("social-security", "SM4")[:-1])
        right = mac2(both)
        both.transmit(command)
        expected = ("9000", "6901")[not name.startswith("RESPONSE") and "channel" not in name]
        if name not in ("PURCHASE", "CREDIT"):
            assert both.transmit(right).hex() == expected, name


@both_ways
def test_mac2_that_was_wrong_too_often_locks_for_good(profile: str, environment: str) -> None:
    both = make_both(profile, environment)
    both.transmit(SELECT)
    buy = purchase(profile, environment)
    for _ in range(14):
        both.transmit(buy)
        assert both.transmit(WRONG).hex() == "9302"
    # One that is right in time, and the count begins anew.
    both.transmit(buy)
    assert both.transmit(mac2(both)).hex() == "9000"
    for _ in range(15):
        both.transmit(buy)
        assert both.transmit(WRONG).hex() == "9302"
    both.reset()
    both.transmit(SELECT)
    for name, command in every_command(profile, environment).items():
        if name == "DELIVER 07 08":
            continue  # In one dialect it has no data, and is refused for that.
        locked = both.transmit(command).hex() == "9303"
        of_the_application = name.split()[0].rstrip(",") in {
            *("DELIVER", "PURCHASE", "CREDIT", "CREATE", "CHANGE")
        }
        assert locked is (of_the_application and "channel" not in name), name


def test_a_lock_survives_the_process() -> None:
    memory = TransientMemory()
    applet = make_applet(memory=memory)
    applet.transmit(SELECT)
    for _ in range(15):
        applet.transmit(purchase("social-security", "SM4"))
        applet.transmit(WRONG)
    again = make_applet(memory=memory)
    again.transmit(SELECT)
    assert again.transmit(purchase("social-security", "SM4")).hex() == "9303"


def numbers(memory: PsamMemory, count: int) -> list[int]:
    applet = make_applet(memory=memory)
    applet.transmit(SELECT)
    answers = [applet.transmit(purchase("social-security", "SM4")) for _ in range(count)]
    assert all(answer[-2:] == b"\x90\x00" for answer in answers)
    return [int.from_bytes(answer[:4], "big") for answer in answers]


def test_a_new_process_skips_numbers_and_repeats_none() -> None:
    memory = TransientMemory()
    seen = [number for count in (1, 5, 16, 17, 1) for number in numbers(memory, count)]
    assert len(seen) == len(set(seen)) == 40
    assert seen == sorted(seen)


def test_the_last_number_is_the_end() -> None:
    applet = make_applet(memory=TransientMemory(PsamRecord(number=MAX_NUMBER - 2)))
    applet.transmit(SELECT)
    answers = [applet.transmit(purchase("social-security", "SM4")).hex() for _ in range(4)]
    assert [answer[:8] for answer in answers] == ["fffffffd", "fffffffe", "6985", "6985"]


class FullDisk(TransientMemory):
    """A memory that cannot keep anything any more."""

    def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:  # noqa: ARG002 - the protocol's
        raise StoreUnavailable("no space")


def test_what_cannot_be_kept_is_not_given() -> None:
    applet = make_applet(memory=FullDisk())
    applet.transmit(SELECT)
    assert applet.transmit(purchase("social-security", "SM4")).hex() == "6581"
    assert applet.transmit(WRONG).hex() == "6901"
    assert applet.transmit(bytes.fromhex("00B0990004")).hex() == "000000019000"


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_factors_say_the_level(levels: int) -> None:
    applet, naive = make_applet(), make_naive()
    for psam in (applet, naive):
        psam.transmit(SELECT)
        answer = psam.transmit(purchase("social-security", "SM4", levels=levels)).hex()
        assert answer == "6a80" if levels < 3 else answer.endswith("9000")
