"""The applet and the naive PSAM give the same answer to everything: any order, any length, any bytes."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keyd.crypto.native import _core
from tests.psam.bench import Both, make_both
from tests.psam.commands import L1, created, deliver, every_command, load, prove, wrong_lengths

BOTH_WAYS: Final = [
    (profile, environment)
    for profile in ("social-security", "pboc")
    for environment in ("SM4", "DES")
]

both_ways = pytest.mark.parametrize(("profile", "environment"), BOTH_WAYS)

# Where a pair of commands begins: outside of the application, in it, and in it with a key and a challenge.
BEGINNINGS: Final = {
    "outside": [],
    "inside": ["SELECT DF01"],
    "with a key": ["SELECT DF01", "CHALLENGE", "DELIVER 48 12"],
}
beginnings = pytest.mark.parametrize("beginning", list(BEGINNINGS))


@both_ways
@beginnings
def test_every_order_of_two_commands(profile: str, environment: str, beginning: str) -> None:
    commands = every_command(profile, environment)
    for first in commands.values():
        for second in commands.values():
            both = make_both(profile, environment)
            for name in BEGINNINGS[beginning]:
                both.transmit(commands[name])
            both.transmit(first)
            both.transmit(second)
            # And what waits after them.
            both.transmit(commands["RESPONSE"])


@both_ways
def test_every_wrong_length_of_every_command_after_every_other(
    profile: str, environment: str
) -> None:
    commands = every_command(profile, environment)
    for first in commands.values():
        for name, second in commands.items():
            # All lengths of one command on one PSAM: most are refused, and what is not has to agree as well.
            both = make_both(profile, environment)
            both.transmit(commands["SELECT DF01"])
            for wrong in wrong_lengths(second):
                both.transmit(first)
                both.transmit(wrong)
            both.transmit(commands[name])


@both_ways
def test_every_p1_and_p2_of_every_command(profile: str, environment: str) -> None:
    for command in every_command(profile, environment).values():
        both = make_both(profile, environment)
        both.ask("00A4040006D15600000590")
        for octet in range(256):
            both.transmit(command[:2] + bytes((octet,)) + command[3:])
            both.transmit(command[:3] + bytes((octet,)) + command[4:])


def test_every_class_and_instruction() -> None:
    both = make_both()
    for cla in range(256):
        for ins in range(256):
            both.transmit(bytes((cla, ins, 0, 0)))


def test_every_usage_and_id_of_a_delivery() -> None:
    both = make_both()
    both.ask("00A4040006D15600000590")
    for usage in range(256):
        for key_id in (*range(0x20), 0x41, 0x4B, 0xC0):
            both.transmit(deliver("social-security", "SM4", usage, key_id))


@given(commands=st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_bytes(commands: list[bytes]) -> None:
    both = make_both()
    for command in commands:
        both.transmit(command)


@both_ways
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_commands_with_a_few_bytes_changed(profile: str, environment: str, data: Any) -> None:
    commands = list(every_command(profile, environment).values())
    both = make_both(profile, environment)
    for command in data.draw(st.lists(st.sampled_from(commands), min_size=1, max_size=12)):
        changed = bytearray(command)
        for _ in range(data.draw(st.integers(0, 2))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        both.transmit(bytes(changed))


class PsamMachine(RuleBasedStateMachine):
    """Long conversations, which know challenges and transaction numbers as a terminal does."""

    both: Both
    profile: str
    environment: str
    challenge: bytes
    commands: dict[str, bytes]

    @initialize(way=st.sampled_from(BOTH_WAYS))
    def begin(self, way: tuple[str, str]) -> None:
        self.profile, self.environment = way
        self.both = make_both(*way)
        self.commands = every_command(*way)
        self.challenge = b""
        self.both.transmit(self.commands["SELECT DF01"])

    @rule(data=st.data(), channel=st.sampled_from([0, 0, 0, 1, 2]))
    def a_command(self, data: Any, channel: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.commands)))
        command = self.commands[name]
        self.both.transmit(bytes((command[0] ^ channel,)) + command[1:])

    @rule(length=st.sampled_from([4, 8, 16]))
    def challenge_is_given(self, length: int) -> None:
        answer = self.both.transmit(bytes((0, 0x84, 0, 0, length)))
        self.challenge = answer[:-2] or self.challenge

    @rule(key_id=st.sampled_from([0, 1]))
    def own_key_is_proved(self, key_id: int) -> None:
        keys = self.both.naive.keys
        self.both.transmit(prove(self.environment, key_id, self.challenge or L1, keys))

    @rule(usage=st.sampled_from([0x00, 0x02, 0x62, 0x27, 0x48, 0x67]), key_id=st.integers(0, 0x50))
    def key_is_created(self, usage: int, key_id: int) -> None:
        said = created(self.environment, usage, key_id)
        self._load("84D40012" if key_id >= 0x40 else "84D40011", said)

    @rule(data=st.data())
    def key_is_changed(self, data: Any) -> None:
        places = sorted(place for place in self.both.naive.keys if place[2] == self.environment)
        kind, key_id, _ = place = data.draw(st.sampled_from(places))
        levels, old = self.both.naive.keys[place]
        new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
        file = data.draw(st.sampled_from(["11", "12", "13"]))
        self._load("84D401" + file, bytes((levels << 5 | kind, key_id, 0)), new)

    def _load(self, header: str, said: bytes, key: bytes = bytes(range(16))) -> None:
        master = self.both.naive.keys[0, 0, self.environment][1]
        challenge = self.challenge if len(self.challenge) <= 8 else L1
        self.both.transmit(load(self.environment, header, said, challenge, key=key, master=master))

    @rule()
    def purchase_is_made(self) -> None:
        self.both.transmit(self.commands["PURCHASE"])
        lane = self.both.naive.lanes[0]
        if lane.purchase:
            mac2 = self.both.naive._mac(lane, *lane.purchase)
            assert self.both.transmit(bytes.fromhex("8072000004") + mac2) == b"\x90\x00"

    @rule()
    def reset(self) -> None:
        self.both.reset()
        self.both.transmit(self.commands["SELECT DF01"])

    @invariant()
    def numbers_agree(self) -> None:
        # Without a command: that would end what was begun.
        if hasattr(self, "both"):
            assert self.both.applet.next_number == self.both.naive.number


TestPsamMachine = PsamMachine.TestCase
TestPsamMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_no_session_key_is_left_in_key_memory_after_reset_or_select() -> None:
    both = make_both()
    commands = every_command("social-security", "SM4")
    both.transmit(commands["SELECT DF01"])
    before = _core.arena_info().used
    for leave in (both.reset, lambda: both.transmit(commands["SELECT DF01"])):
        both.transmit(commands["SELECT DF01"])
        both.transmit(commands["DELIVER 67 08"])
        assert _core.arena_info().used == before + 1
        leave()
        assert _core.arena_info().used == before
        both.transmit(commands["SELECT DF01"])
        assert both.transmit(commands["PURCHASE"])[-2:] == b"\x90\x00"
        assert _core.arena_info().used == before + 1
        leave()
        assert _core.arena_info().used == before
