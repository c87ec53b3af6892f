"""A delivered key computes what the card's own key does, and lives no longer than its profile says."""

from __future__ import annotations

import itertools

import pytest

from keyd.psam.session_keys import CIPHER_P1
from tests.psam.bench import Both, make_applet, make_both
from tests.psam.commands import L1, L2, L3, apdu, deliver, every_command
from tests.psam.test_one_answer import both_ways

SELECT = "00A4040006D15600000590"


@both_ways
def test_every_order_of_four_ciphers(profile: str, environment: str) -> None:
    # With the order of 07, 03 and 01 everything depends on what was before.
    block = 16 if environment == "SM4" else 8
    ciphers = {p1: apdu(f"80FA{p1:02X}00", bytes(range(p1, p1 + 2 * block)), 4) for p1 in CIPHER_P1}
    both = make_both(profile, environment)
    both.ask(SELECT)
    for order in itertools.product(CIPHER_P1, repeat=4):
        both.transmit(deliver(profile, environment, 0x48, 0x12))
        for p1 in order:
            both.transmit(ciphers[p1])
            both.ask("00C0000000")


@both_ways
@pytest.mark.parametrize(("usage", "key_id"), [(0x26, 0x19), (0x67, 0x08)])
def test_a_key_does_what_its_type_allows_and_nothing_else(
    profile: str, environment: str, usage: int, key_id: int
) -> None:
    both = make_both(profile, environment)
    both.ask(SELECT)
    block = 16 if environment == "SM4" else 8
    allowed = {5, 7} if usage & 0x1F == 6 else {0, 2}
    for p1 in CIPHER_P1:
        both.transmit(deliver(profile, environment, usage, key_id))
        answer = both.transmit(apdu(f"80FA{p1:02X}00", bytes(2 * block), 0))
        assert (answer[-2:] == b"\x90\x00") is (p1 in allowed)


@both_ways
@pytest.mark.parametrize("pieces", [(1,), (1, 1), (2, 1, 4), (4, 4, 3)])
def test_a_mac_in_pieces_is_the_mac_in_one(
    profile: str, environment: str, pieces: tuple[int, ...]
) -> None:
    block = 16 if environment == "SM4" else 8
    iv, data = bytes(range(block)), bytes(range(100, 100 + block)) * sum(pieces)

    def macs(both: Both) -> bytes:
        both.ask(SELECT)
        both.transmit(deliver(profile, environment, 0x48, 0x12))
        at, answer = 0, b""
        for number, blocks in enumerate(pieces):
            piece = data[at : at + blocks * block]
            at += blocks * block
            is_last = number == len(pieces) - 1
            if number == 0:
                p1, piece = ("05" if is_last else "07"), iv + piece
            else:
                p1 = "01" if is_last else "03"
            answer = both.transmit(apdu(f"80FA{p1}00", piece, 0 if is_last else None))
            assert answer[-2:] == b"\x90\x00"
        return answer

    whole = make_both(profile, environment)
    whole.ask(SELECT)
    whole.transmit(deliver(profile, environment, 0x48, 0x12))
    together = iv + data
    if len(together) <= (128 if block == 16 else 64):
        assert macs(make_both(profile, environment)) == whole.transmit(
            apdu("80FA0500", together, 0)
        )
    else:
        assert whole.transmit(apdu("80FA0500", together, 0)).hex() == "6700"
        macs(make_both(profile, environment))


def test_channels_have_keys_of_their_own() -> None:
    both = make_both()
    assert both.ask("0070000001") == "019000"
    both.ask(SELECT)
    both.ask("01" + SELECT[2:])
    both.transmit(deliver("social-security", "SM4", 0x67, 0x08, factor=L1))
    # BF with the channel's bits turned over.
    other = deliver("social-security", "SM4", 0x67, 0x08, factor=L2)
    both.transmit(b"\xbe" + other[1:])
    first = both.transmit(apdu("80FA0200", bytes(16), 16))
    second = both.transmit(apdu("81FA0200", bytes(16), 16))
    assert first[-2:] == second[-2:] == b"\x90\x00"
    assert first != second
    assert both.ask("0070800100") == "9000"
    assert both.ask("81FA0200" + "10" + "00" * 16)[-4:] == "6881"


def test_a_channel_opened_again_knows_nothing() -> None:
    both = make_both()
    for _ in range(2):
        assert both.ask("0070000001") == "019000"
        assert both.ask("81FA0200" + "10" + "00" * 16) == "6901"
        both.ask("01" + SELECT[2:])
        both.transmit(b"\xbe" + deliver("social-security", "SM4", 0x67, 0x08)[1:])
        assert both.ask("81FA0200" + "10" + "00" * 16 + "10")[-4:] == "9000"
        both.ask("0070800100")


def test_there_are_as_many_channels_as_the_profile_says() -> None:
    both = make_both()
    assert [both.ask("0070000001") for _ in range(4)] == ["019000", "029000", "039000", "6A81"]


def test_the_level_that_a_terminal_probes_for() -> None:
    # A pool finds out at which level a PSAM has a key: 6A80 says another one, 6A88 none at all.
    applet = make_applet()
    applet.transmit(bytes.fromhex(SELECT))
    answers = {}
    for levels in (3, 2, 1):
        for key_id in (0x12, 0x13):
            usage = levels << 5 | 8
            command = deliver("social-security", "SM4", usage, key_id)
            answers[levels, key_id] = applet.transmit(command).hex().upper()
    assert answers == {
        (3, 0x12): "6A80", (2, 0x12): "9000", (1, 0x12): "6A80",
        (3, 0x13): "6A88", (2, 0x13): "6A88", (1, 0x13): "6A88",
    }  # fmt: skip


def test_ssf33_needs_hardware() -> None:
    both = make_both()
    assert both.ask("00A4000002DDF100")[-4:] == "9000"
    both.ask(SELECT)
    factors = (L3 + L2 + L1 + L1 + bytes(8)).hex()
    assert both.ask("BFDE670828" + factors) == "6A81"
    for name in ("PROVE", "CREATE"):
        assert both.transmit(every_command("social-security", "SM4")[name]).hex() == "6a81"


def test_beijings_cards_have_ssf33_and_others_3des() -> None:
    both = make_both(environment="SM4")
    both.ask(SELECT)
    assert both.ask("BFEC00000111") == "9000"
    assert both.ask("BFDE670828" + "00" * 40) == "6A81"
    assert both.ask("BFEC00000151") == "9000"
    assert both.ask("BFDE670820" + "00" * 32) == "9000"
