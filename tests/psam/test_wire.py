"""A terminal without a PSAM does with one of keyd's what it did with its own; and nobody does with another's.

Handlers, policy and dispatch are the real ones; the desk lends real applets of one synthetic PSAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import trio
from structlog.testing import capture_logs

from keyd.dispatch import Slow
from keyd.errors import Status, TooManyInFlight
from keyd.gate import Gate
from keyd.needs import Needs
from keyd.policy import read_policy
from keyd.protocol.commands import TABLE, Role
from keyd.protocol.connection import Ask
from keyd.registry.synthetic import synthetic_terminal
from keyd.terminals import KnownTerminal
from tests.policy.conftest import CATALOGUE, LIMITS
from tests.psam.commands import apdu
from tests.psam.desk import NUMBER, SERIAL, AppletDesk
from tests.test_dispatch import CARD, CHALLENGE, FACTOR, Keyd, heard, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyd.protocol.connection import Answer
    from keyd.terminals import Session

IRK, RKSSSE, PUK, UKSSSE, DPK = 0x0170, 0x004C, 0x0090, 0x0094, 0x017F
SM4, DES = 3, 1

# The region and the card of tests.test_dispatch, as diversifiers: card's, city's, province's.
FACTORS: Final = bytes.fromhex("8649510130000BEE") + b"510100sx" + b"510000sh"
SELECT: Final = apdu("00A40400", bytes.fromhex("D15600000590"))
DELIVER: Final = apdu("BFDE670A", FACTORS + FACTOR + bytes(8))
CIPHER: Final = apdu("80FA0000", CHALLENGE + bytes(8), 16)
GET_CHALLENGE: Final = apdu("00840000", le=8)
STEP: Final = [GET_CHALLENGE[:4], b"", [], 8]


def folded(block: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(block[:8], block[8:16], strict=True))


class Lending(Keyd):
    """A keyd that lends PSAMs."""

    def __init__(self, *, sample_every: int = 0) -> None:
        super().__init__(sample_every=sample_every)
        self.desk = AppletDesk()
        self.services.psams = self.desk

    async def all(self, session: Session, *asks: tuple[str, list[Any]]) -> list[Answer]:
        """Let requests arrive in one tick, and start what is slow in the worst order: the last first."""
        begun = self.tick(*((session, Ask(n, method, p)) for n, (method, p) in enumerate(asks)))
        answers: dict[int, bytes] = {}

        async def finish(place: int, slow: Slow) -> None:
            answers[place] = await self.slow(slow)

        async with trio.open_nursery() as nursery:
            for place, answer in reversed(list(enumerate(begun))):
                if isinstance(answer, Slow):
                    nursery.start_soon(finish, place, answer)
                    await trio.testing.wait_all_tasks_blocked()
                else:
                    answers[place] = answer
        return [heard(answers[place]) for place in range(len(asks))]

    async def hear(self, session: Session, method: str, *params: Any) -> Answer:
        """Ask one thing."""
        (answer,) = await self.all(session, (method, list(params)))
        return answer

    async def done(self, session: Session, method: str, *params: Any) -> Any:
        """Ask one thing that must be answered."""
        answer = await self.hear(session, method, *params)
        assert answer.refusal is None, repr(answer.refusal)
        return answer.result

    async def refused(self, session: Session, method: str, *params: Any) -> Status:
        """Ask one thing that must not be."""
        answer = await self.hear(session, method, *params)
        assert answer.refusal is not None, method
        return answer.refusal.status

    async def open(self, session: Session, *keys: int, algorithm: int = SM4) -> int:
        """Open a PSAM."""
        handle: int = (await self.done(session, "psam.open", list(keys), algorithm))[0]
        return handle


@pytest.fixture
def keyd() -> Lending:
    return Lending()


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield cast("list[Any]", lines)


# --- as with a PSAM in the slot


async def test_a_psam_is_opened_spoken_to_and_closed(keyd: Lending) -> None:
    terminal = keyd.terminal()
    opened = await keyd.done(terminal, "psam.open", [RKSSSE, DPK])
    handle, number, serial, atr, kind, levels = opened
    assert (number, serial, atr[:1], kind, levels) == (NUMBER, SERIAL, b"\x3b", "virtual", [3, 3])
    assert keyd.desk.askers == ["T-0001"]

    async def say(command: bytes) -> bytes:
        (answer,) = await keyd.done(terminal, "psam.transmit", handle, command)
        return cast("bytes", answer)

    assert (await say(SELECT))[-2:-1] == b"\x61"
    assert await say(DELIVER) == b"\x90\0"
    answer = await say(CIPHER)
    by_ring = keyd.ok(terminal, "card.external_authenticate", CARD, RKSSSE, FACTOR, CHALLENGE)
    assert folded(answer) + CHALLENGE == by_ring[0]
    # What the PSAM says is passed on, whatever it says.
    assert await say(CIPHER) == b"\x69\x01"
    assert await keyd.done(terminal, "psam.close", handle) == []
    assert not keyd.desk.open_ones
    assert await keyd.refused(terminal, "psam.transmit", handle, SELECT) is Status.PSAM_NOT_OPEN
    assert await keyd.refused(terminal, "psam.close", handle) is Status.PSAM_NOT_OPEN


@pytest.mark.parametrize("algorithm", [SM4, DES])
async def test_it_is_in_the_environment_that_it_was_opened_for(
    keyd: Lending, algorithm: int
) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE, algorithm=algorithm)
    block = 16 if algorithm == SM4 else 8
    deliver = apdu("BFDE670A", FACTORS + FACTOR.ljust(block, b"\0"))
    (answer,) = await keyd.done(terminal, "psam.transmit", handle, deliver)
    assert answer == b"\x90\0"
    # The other one's delivery has another length; and it is not this key.
    select = apdu("00A40000", b"\x3f\0" if algorithm == SM4 else b"\xdd\xf2")
    await keyd.done(terminal, "psam.transmit", handle, select)
    assert await keyd.refused(terminal, "psam.transmit", handle, deliver) is Status.NOT_ALLOWED


async def test_many_commands_end_at_the_first_no_unless_told_to_go_on(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    commands = [SELECT, DELIVER, CIPHER, CIPHER, GET_CHALLENGE]
    (answers,) = await keyd.done(terminal, "psam.transmit_many", handle, commands)
    assert [answer[-2:].hex()[:2] for answer in answers] == ["61", "90", "90", "69"]
    (answers,) = await keyd.done(terminal, "psam.transmit_many", handle, commands, True)
    assert [answer[-2:].hex()[:2] for answer in answers] == ["61", "90", "90", "69", "90"]


async def test_commands_are_done_in_the_order_in_which_they_arrived(keyd: Lending) -> None:
    """Whatever order their tasks are started in."""
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    (lent,) = keyd.desk.lent
    lent.sent.clear()
    rounds: list[tuple[str, list[Any]]] = [
        ("psam.transmit", [handle, DELIVER]),
        ("psam.transmit_many", [handle, [CIPHER, DELIVER, CIPHER]]),
        ("psam.run", [handle, [[DELIVER[:4], DELIVER[5:]]]]),
        ("psam.transmit", [handle, CIPHER]),
        ("psam.close", [handle]),
        ("psam.transmit", [handle, DELIVER]),
    ]
    answers = await keyd.all(terminal, *rounds)
    assert [status_of(answer) for answer in answers] == [Status.OK] * 5 + [Status.PSAM_NOT_OPEN]
    assert lent.sent == [DELIVER, CIPHER, DELIVER, CIPHER, DELIVER, CIPHER]
    assert answers[3].result[0][-2:] == b"\x90\0"


async def test_a_refused_request_leaves_its_place_to_those_behind(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    asks = [(terminal, Ask(n, "psam.transmit", [handle, GET_CHALLENGE])) for n in range(3)]
    first, second, third = cast("list[Slow]", keyd.tick(*asks))
    assert keyd.dispatch.refuse_slow(second, TooManyInFlight()).answers
    with trio.fail_after(5):
        assert heard(await keyd.slow(first)).refusal is None
        assert heard(await keyd.slow(third)).refusal is None


async def test_a_request_that_is_cancelled_while_it_waits_leaves_its_place(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    asks = [(terminal, Ask(n, "psam.transmit", [handle, GET_CHALLENGE])) for n in range(3)]
    first, second, third = cast("list[Slow]", keyd.tick(*asks))
    with trio.move_on_after(0) as scope:
        await keyd.slow(second)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        assert heard(await keyd.slow(first)).refusal is None
        assert heard(await keyd.slow(third)).refusal is None


# --- scripts


READING: Final[list[list[Any]]] = [
    [bytes.fromhex("00A40400"), bytes.fromhex("D15600000590"), [], 256],
    [bytes.fromhex("BFDE6708"), FACTORS + FACTOR + bytes(8)],
    [bytes.fromhex("80FA0000"), CHALLENGE + bytes(8), [], 16],
    [bytes.fromhex("BFDE670A"), FACTORS + FACTOR + bytes(8)],
    [bytes.fromhex("80FA0000"), CHALLENGE + bytes(8), [], 16],
]
RESULTS: Final = [[2, 0, 16, True], [4, 0, 16, True]]


async def test_a_card_is_read_with_one_exchange(keyd: Lending) -> None:
    terminal = keyd.terminal()
    (results,) = await keyd.done(terminal, "psam.run_once", [IRK, RKSSSE], READING, RESULTS)
    both = keyd.ok(terminal, "card.mutual_cryptograms", CARD, FACTOR, CHALLENGE, FACTOR, CHALLENGE)
    assert [result + CHALLENGE for result in results] == both[:2]
    assert not keyd.desk.open_ones
    assert not terminal.psams


async def test_a_dialogue_in_one_and_single_commands_have_the_same_answers(keyd: Lending) -> None:
    terminal = keyd.terminal()
    whole = [[n, 0, 0] for n in range(len(READING))]
    handle = await keyd.open(terminal, IRK, RKSSSE)
    (in_one,) = await keyd.done(terminal, "psam.run", handle, READING, whole)
    one_by_one = []
    for step in READING:
        header, data = step[:2]
        le = step[3] if len(step) > 3 else None
        (answer,) = await keyd.done(terminal, "psam.transmit", handle, apdu(header.hex(), data, le))
        assert answer[-2:] == b"\x90\0"
        one_by_one.append(answer[:-2])
    assert in_one == one_by_one


async def test_a_script_that_fails_is_declined_and_the_psam_stays_open(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    cipher = [bytes.fromhex("80FA0000"), bytes(16), [], 16]
    answer = await keyd.hear(terminal, "psam.run", handle, [STEP, cipher], [[0]])
    assert status_of(answer) is Status.PSAM_DECLINED
    assert "step 1 was answered 6901" in str(answer.refusal)
    (results,) = await keyd.done(
        terminal, "psam.run", handle, [STEP, [*cipher, [0x6901]]], [[0, 0, 8], [1]]
    )
    assert [len(result) for result in results] == [8, 0]


async def test_a_script_that_cannot_be_right_sends_nothing(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    (lent,) = keyd.desk.lent
    lent.sent.clear()
    for steps, status in (
        ([STEP, [b"\x80\xfa\0\0", bytes(16), [[0, 1, 0, 8]], 16]], Status.BAD_PARAMETER),
        ([STEP, [b"\x80\xfa\0\0", bytes(16), [[9, 0, 0, 8]], 16]], Status.BAD_PARAMETER),
        # Another key, and the PSAM's own: seen before the first step is said.
        ([STEP, [b"\xbf\xde\x68\x10", bytes(40)]], Status.NOT_ALLOWED),
        ([STEP, [b"\x84\xd4\0\x11", bytes(36)]], Status.NOT_ALLOWED),
    ):
        assert await keyd.refused(terminal, "psam.run", handle, steps) is status
        assert await keyd.refused(terminal, "psam.run_once", [RKSSSE], steps) is status
    assert lent.sent == []
    assert len(keyd.desk.lent) == 1


# --- helpers


async def test_helpers_answer_as_the_ring_does_and_ask_the_pool(keyd: Lending) -> None:
    terminal = keyd.terminal()
    for name, params in (
        ("internal", (CARD, FACTOR, CHALLENGE)),
        ("external", (CARD, PUK, FACTOR, CHALLENGE)),
    ):
        twin = "card.internal_cryptogram" if name == "internal" else "card.external_authenticate"
        by_ring = keyd.ok(terminal, twin, *params)
        assert not keyd.desk.tasks
        assert await keyd.done(terminal, f"psam.{name}_authenticate", *params) == by_ring
        assert len(keyd.desk.tasks) == 1
        keyd.desk.tasks.clear()
    refused = await keyd.refused(
        terminal, "psam.external_authenticate", CARD, IRK, FACTOR, CHALLENGE
    )
    assert refused is Status.KEY_USAGE


# --- whatever is wrong


async def test_a_handle_is_the_connections_that_opened_it(keyd: Lending) -> None:
    terminal, other = keyd.terminal(), keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    for method, params in (
        ("psam.transmit", [SELECT]),
        ("psam.transmit_many", [[SELECT]]),
        ("psam.run", [[STEP]]),
        ("psam.close", []),
        ("psam.confirm_purchase", [bytes(4)]),
    ):
        for wrong in (handle + 1 if handle < 0x7FFF_FFFF else 1, 1):
            status = await keyd.refused(terminal, method, wrong, *params)
            assert status is Status.PSAM_NOT_OPEN
        assert await keyd.refused(other, method, handle, *params) is Status.PSAM_NOT_OPEN
    assert len(keyd.desk.open_ones) == 1
    assert (await keyd.open(other, RKSSSE)) != handle


async def test_a_connection_has_eight_open_at_most(keyd: Lending) -> None:
    terminal = keyd.terminal()
    answers = await keyd.all(terminal, *[("psam.open", [[RKSSSE]])] * 9)
    statuses = sorted(status_of(answer).name for answer in answers)
    assert statuses == ["OK"] * 8 + ["TOO_MANY_IN_FLIGHT"]
    run_once = ("psam.run_once", [RKSSSE], [STEP])
    assert await keyd.refused(terminal, *run_once) is Status.TOO_MANY_IN_FLIGHT
    handle = next(a.result[0] for a in answers if a.refusal is None)
    await keyd.done(terminal, "psam.close", handle)
    await keyd.done(terminal, *run_once)
    assert len({a.result[0] for a in answers if a.refusal is None}) == 8


async def test_what_cannot_be_lent_is_refused_and_takes_no_place(keyd: Lending) -> None:
    terminal = keyd.terminal()
    keyd.desk.slots = 0
    asks: list[tuple[tuple[Any, ...], Status]] = [
        (([RKSSSE],), Status.POOL_EXHAUSTED),
        (([RKSSSE], SM4, "999999999999"), Status.PSAM_NOT_FOUND),
        (([RKSSSE], 2), Status.PSAM_NOT_FOUND),
        # No such key; one that resets PINs; one of loads; the second set.
        (([0x0001],), Status.KEY_NOT_FOUND),
        (([0x0173],), Status.KEY_USAGE),
        (([0x00B2],), Status.KEY_USAGE),
        (([0x004D],), Status.KEY_NOT_FOUND),
    ]
    for ask, status in asks:
        assert await keyd.refused(terminal, "psam.open", *ask) is status
        assert not terminal.psams


async def test_without_a_pool_it_is_said_so(keyd: Lending) -> None:
    keyd.services.psams = None
    terminal = keyd.terminal()
    for method, params in (
        ("psam.open", [[RKSSSE]]),
        ("psam.run_once", [[RKSSSE], [STEP]]),
        ("psam.transmit", [1, SELECT]),
        ("psam.close", [1]),
        ("psam.internal_authenticate", [CARD, FACTOR, CHALLENGE]),
    ):
        answer = await keyd.hear(terminal, method, *params)
        assert status_of(answer) is Status.PSAM_NOT_FOUND
        assert "no pool" in str(answer.refusal)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("psam.transmit", [b"\0\xa4\0"]),
        ("psam.transmit", [bytes(262)]),
        ("psam.transmit", [bytes.fromhex("00A4040006D156")]),
        ("psam.transmit", ["00840000"]),
        ("psam.transmit_many", [[GET_CHALLENGE] * 33]),
        ("psam.transmit_many", [[]]),
        ("psam.transmit_many", [[GET_CHALLENGE, b"\0"]]),
        ("psam.transmit_many", [[GET_CHALLENGE, bytes.fromhex("00A4040006D156")]]),
        ("psam.run", [[STEP] * 33]),
        ("psam.run", [[]]),
        ("psam.run", [[[b"\0\x84\0\0", bytes(256)]]]),
        ("psam.run", [[[b"\0\x84\0\0", b"", [], 257]]]),
        ("psam.run", [[[b"\0\x84\0\0", b"", [], 8, []]]]),
        ("psam.run", [[[b"\0\x84\0\0", b"", [], 8, [0x9000], 1]]]),
        ("psam.run", [[STEP], [[0]] * 33]),
        ("psam.confirm_purchase", [bytes(3)]),
    ],
)
async def test_what_does_not_fit_is_refused_and_nothing_sent(
    keyd: Lending, method: str, params: list[Any]
) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    (lent,) = keyd.desk.lent
    lent.sent.clear()
    assert await keyd.refused(terminal, method, handle, *params) is Status.BAD_PARAMETER
    assert lent.sent == []
    assert await keyd.refused(terminal, method, 0, *params) is Status.BAD_PARAMETER


async def test_nobody_asks_before_they_are_authenticated_or_without_a_msgid(keyd: Lending) -> None:
    nobody, terminal = keyd.session(), keyd.terminal()
    terminals = (Role.TERMINAL, Role.OPERATOR)
    asked = [m for m, row in TABLE.items() if row.family == "psam" and row.role in terminals]
    assert len(asked) >= 10
    for method in asked:
        assert await keyd.refused(nobody, method, 1, SELECT) is Status.NOT_AUTHENTICATED
        (answer,) = keyd.tick((terminal, Ask(None, method, [1, SELECT])))
        assert isinstance(answer, bytes)
        assert status_of(heard(answer)) is Status.MALFORMED


async def test_a_psam_that_is_gone_is_said_to_be_and_closed(keyd: Lending) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    keyd.desk.is_broken = True
    assert await keyd.refused(terminal, "psam.transmit", handle, SELECT) is Status.PSAM_GONE
    assert not terminal.psams
    assert await keyd.refused(terminal, "psam.transmit", handle, SELECT) is Status.PSAM_NOT_OPEN
    # One that breaks while it is opened is given back as well.
    assert await keyd.refused(terminal, "psam.run_once", [RKSSSE], [STEP]) is Status.PSAM_GONE
    assert not terminal.psams
    assert not keyd.desk.open_ones


# --- when the terminal is there no more


def leaves(session: Session) -> None:
    session.leave()


def ends(session: Session) -> None:
    session.end()


def becomes_another(session: Session) -> None:
    session.enter(KnownTerminal(synthetic_terminal("T-2")))


def expires(session: Session) -> None:
    session.until = 0.0
    session.expire(1.0)


@pytest.mark.parametrize("happens", [leaves, ends, becomes_another, expires])
async def test_what_was_lent_goes_with_the_terminal(
    keyd: Lending, happens: Callable[[Session], None]
) -> None:
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    await keyd.open(terminal, PUK)
    happens(terminal)
    assert not keyd.desk.open_ones
    assert not terminal.psams
    terminal.must_close = False
    terminal.enter(KnownTerminal(synthetic_terminal("T-0001")))
    assert await keyd.refused(terminal, "psam.transmit", handle, SELECT) is Status.PSAM_NOT_OPEN


@pytest.mark.parametrize("happens", [leaves, ends, becomes_another, expires])
@pytest.mark.parametrize(
    "ask", [("psam.open", [[RKSSSE]]), ("psam.run_once", [[RKSSSE], [STEP]])], ids=["open", "once"]
)
async def test_a_psam_that_comes_too_late_is_given_back_at_once(
    keyd: Lending, happens: Callable[[Session], None], ask: tuple[str, list[Any]]
) -> None:
    terminal = keyd.terminal()
    keyd.desk.must_wait = True
    (slow,) = keyd.tick((terminal, Ask(1, *ask)))
    assert isinstance(slow, Slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyd.slow, slow)
        await trio.testing.wait_all_tasks_blocked()
        happens(terminal)
        keyd.desk.go_on.set()
    assert len(keyd.desk.lent) == 1
    assert not keyd.desk.lent[0].sent
    assert not keyd.desk.open_ones
    assert not terminal.psams


# --- the policy


POLICY: Final = """
[roles.reader]
what = "reads"
[[roles.reader.rules]]
why = "reads"
methods = ["psam.open", "psam.run_once"]
keys = ["RKSSSE"]
algorithms = ["SM4"]
regions = ["51"]
hours = ["08:00-17:30"]
[[roles.reader.rules]]
why = "speaks"
methods = ["psam.transmit", "psam.transmit_many", "psam.run", "psam.close"]
[roles.counter]
what = "writes"
[[roles.counter.rules]]
why = "writes"
methods = ["psam.open"]
keys = ["UKSSSE", "PUK"]
[[roles.counter.rules]]
why = "speaks"
methods = ["psam.transmit"]
"""
NOTHING: Final = """
[roles.reader]
what = "reads"
[[roles.reader.rules]]
why = "speaks"
methods = ["psam.transmit", "psam.run"]
"""
# 2026-11-23 10:00 in China.
MORNING: Final = 1_795_399_200


class Governed(Lending):
    """One that has a policy."""

    def __init__(self) -> None:
        super().__init__()
        self.unix = MORNING
        self.services.now = lambda: self.unix
        needs = Needs(self.services.profiles)
        self.gate = Gate(self.file(POLICY), needs, bytes(16), lambda _what, _code: None)
        self.dispatch.gate = self.gate

    @staticmethod
    def file(text: str) -> Any:
        return read_policy((text + LIMITS).encode(), CATALOGUE)

    def as_(self, *roles: str) -> Session:
        session = self.session()
        session.enter(KnownTerminal(synthetic_terminal("T-1", roles=roles)))
        return session


@pytest.fixture
def governed() -> Governed:
    return Governed()


async def test_the_policy_decides_on_the_opening(governed: Governed) -> None:
    reader, counter = governed.as_("reader"), governed.as_("counter")
    asked = ("psam.open", [RKSSSE], SM4, "any", "5101")
    await governed.done(reader, *asked)
    assert await governed.refused(counter, *asked) is Status.NOT_ALLOWED
    asks: list[tuple[Any, ...]] = [
        ([PUK], SM4, "any", "5101"),
        ([RKSSSE, UKSSSE], SM4, "any", "5101"),
        ([RKSSSE], DES, "any", "5101"),
        ([RKSSSE], SM4, "any", "52"),
        ([RKSSSE], SM4, "any", "5"),
        ([RKSSSE], SM4),
    ]
    for ask in asks:
        assert await governed.refused(reader, "psam.open", *ask) is Status.NOT_ALLOWED
        once = ("psam.run_once", ask[0], [STEP], [], *ask[1:])
        assert await governed.refused(reader, *once) is Status.NOT_ALLOWED
    await governed.done(counter, "psam.open", [PUK, UKSSSE])
    assert await governed.refused(counter, "psam.run_once", [PUK], [STEP]) is Status.NOT_ALLOWED
    assert len(governed.desk.lent) == 2


@pytest.mark.parametrize("way", ["psam.transmit", "psam.transmit_many", "psam.run", "once"])
async def test_no_way_leads_around_it(governed: Governed, way: str) -> None:
    """The PSAM has PUK; whoever opened it for RKSSSE in Sichuan can have neither it nor another region."""
    reader = governed.as_("reader")
    opening = ([RKSSSE], SM4, "any", "51")
    (handle, *_) = await governed.done(reader, "psam.open", *opening)
    tibet = FACTORS[:8] + b"540100sx" + b"540000sh"
    for header, data in (
        ("BFDE6810", FACTORS + FACTOR + bytes(8)),
        ("BFDE670A", tibet + FACTOR + bytes(8)),
        ("80700100", bytes(26) + b"\1\3" + FACTORS),
    ):
        command = apdu(header, data)
        # The reference covers the whole region: what is put there is looked at as it is sent.
        step = [command[:4], data, [], 0]
        params: dict[str, list[Any]] = {
            "psam.transmit": [handle, command],
            "psam.transmit_many": [handle, [GET_CHALLENGE, command], True],
            "psam.run": [handle, [STEP, step]],
        }
        if way == "once":
            status = await governed.refused(
                reader, "psam.run_once", [RKSSSE], [STEP, step], [], *opening[1:]
            )
        else:
            status = await governed.refused(reader, way, *params[way])
        assert status is Status.NOT_ALLOWED
    assert all(command not in lent.sent for lent in governed.desk.lent)
    assert await governed.done(reader, "psam.transmit", handle, DELIVER) == [b"\x90\0"]


async def test_a_reference_cannot_bring_another_region(governed: Governed) -> None:
    reader = governed.as_("reader")
    (handle, *_) = await governed.done(reader, "psam.open", [RKSSSE], SM4, "any", "51")
    # The challenge that is put over the city is no digits of Sichuan.
    smuggled = [DELIVER[:4], DELIVER[5:], [[8, 0, 0, 8]]]
    status = await governed.refused(reader, "psam.run", handle, [STEP, smuggled])
    assert status is Status.NOT_ALLOWED


def another_policy(governed: Governed, _reader: Session) -> None:
    governed.gate.take_over(governed.file(NOTHING))


def evening(governed: Governed, _reader: Session) -> None:
    governed.unix += 10 * 3600


@pytest.mark.parametrize("changes", [another_policy, evening])
async def test_what_could_not_be_opened_now_ends_with_the_next_request(
    governed: Governed, changes: Callable[[Governed, Session], None]
) -> None:
    reader = governed.as_("reader")
    (handle, *_) = await governed.done(reader, "psam.open", [RKSSSE], SM4, "any", "51")
    assert await governed.done(reader, "psam.transmit", handle, DELIVER)
    changes(governed, reader)
    assert await governed.refused(reader, "psam.transmit", handle, CIPHER) is Status.NOT_ALLOWED
    assert not governed.desk.open_ones
    assert CIPHER not in governed.desk.lent[0].sent
    assert await governed.refused(reader, "psam.transmit", handle, CIPHER) is Status.PSAM_NOT_OPEN


# --- what is logged


async def test_no_command_and_no_answer_is_in_the_log(log: list[Any]) -> None:
    keyd = Lending(sample_every=1)
    terminal = keyd.terminal()
    handle = await keyd.open(terminal, RKSSSE)
    await keyd.done(terminal, "psam.transmit", handle, DELIVER)
    (answer,) = await keyd.done(terminal, "psam.transmit", handle, CIPHER)
    await keyd.refused(terminal, "psam.run", handle, [[CIPHER[:4], CIPHER[5:-1], [], 16]])
    await keyd.refused(terminal, "psam.transmit", handle, apdu("84D40011", b"\x77" * 36))
    said = repr(log).lower()
    for hidden in (FACTORS[:8], CHALLENGE, answer[:8], b"\x77" * 4):
        assert hidden.hex() not in said
        assert repr(hidden)[2:-1].lower() not in said
