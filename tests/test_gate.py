"""Nobody gets an answer that the policy does not give them: the long way, in batches, and by the pump's short cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from keyd.dispatch import Pass, Slow
from keyd.errors import BadParameter, RateLimited, Status
from keyd.gate import MAX_ALLOWANCE, MAX_ROLE_SETS, UNLIMITED, Gate
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.needs import GOVERNED, Needs
from keyd.policy import NO_KEY, read_policy
from keyd.policy.watch import SeenCards
from keyd.protocol.commands import TABLE, Role
from keyd.protocol.connection import Ask
from keyd.protocol.messages import psam
from keyd.pump._pump import SeenCards as NativeSeenCards
from keyd.registry.synthetic import synthetic_terminal
from keyd.registry.terminal import TerminalState
from keyd.terminals import KnownTerminal, Moment, Session
from tests.policy.conftest import CATALOGUE, LIMITS, SHIPPED
from tests.policy.test_matrix import ALLOWED, ROLES
from tests.proofs import terminal_proof
from tests.pump.conftest import (
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    HolderCard,
    Stand,
    hot,
    messages,
)
from tests.test_dispatch import (
    CARD,
    CHALLENGE,
    FACTOR,
    PIN,
    Keyd,
    heard,
    status_of,
    well_formed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyd.policy import PolicyFile, Strange
    from keyd.policy.watch import Seen
    from keyd.protocol.commands import Command
    from keyd.protocol.fields import Request

SECRET: Final = bytes(range(16))

READER: Final = """
[roles.reader]
what = "reads"
[[roles.reader.rules]]
why = "is the card genuine"
methods = ["card.internal_authenticate", "card.internal_cryptogram"]
keys = ["IRK"]
[[roles.reader.rules]]
why = "reads by day"
methods = ["card.external_authenticate"]
keys = ["RKSSSE"]
regions = ["51"]
hours = ["08:00-17:30"]
[roles.counter]
what = "resets PINs"
[[roles.counter.rules]]
why = "resets"
methods = ["card.pin_*"]
keys = ["STKSSSE"]
[[roles.counter.rules]]
why = "is the card genuine"
methods = ["card.internal_authenticate"]
keys = ["IRK"]
"""

# 2026-11-23 10:00 in China.
MORNING: Final = 1_795_399_200
HOUR: Final = 3600


def policy_file(text: str = READER, limits: str = LIMITS) -> PolicyFile:
    return read_policy((text + limits).encode(), CATALOGUE)


def with_rates(rates: str) -> str:
    return f"{LIMITS}\n[limits.rates]\n{rates}\n"


def terminal(*roles: str, region: str = "510100", code: str = "T-1") -> KnownTerminal:
    return KnownTerminal(synthetic_terminal(code, roles=roles, region=region))


class Guarded(Keyd):
    """A keyd with a policy in force."""

    def __init__(self, file: PolicyFile, seen: Seen | None = None) -> None:
        super().__init__()
        self.unix = MORNING
        self.services.now = lambda: self.unix
        self.strange: list[tuple[str, str]] = []
        self.gate = Gate(
            file,
            Needs(self.services.profiles),
            SECRET,
            lambda what, code: self.strange.append((what.value, code)),
            (lambda: seen) if seen is not None else SeenCards,
        )
        self.dispatch.gate = self.gate

    def as_(self, *roles: str, region: str = "510100", code: str = "T-1") -> Session:
        session = self.session()
        session.enter(terminal(*roles, region=region, code=code))
        return session


@pytest.fixture
def keyd() -> Guarded:
    return Guarded(policy_file())


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield cast("list[Any]", lines)


# --- the long way


def test_only_a_role_that_may_gets_an_answer(keyd: Guarded) -> None:
    asked = ("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    assert keyd.status(keyd.as_("reader"), *asked) is Status.OK
    for roles in ((), ("counter",), ("reader-of-another-file",)):
        assert keyd.status(keyd.as_(*roles), *asked) is Status.NOT_ALLOWED
    assert keyd.status(keyd.as_("counter", "reader"), *asked) is Status.OK


def test_a_key_that_no_rule_names_is_not_for_that_role(keyd: Guarded) -> None:
    reader = keyd.as_("reader")
    assert (
        keyd.status(reader, "card.external_authenticate", CARD, 0x004C, FACTOR, CHALLENGE)
        is Status.OK
    )
    # PUK 0090 lets whoever has it reset PINs.
    assert (
        keyd.status(reader, "card.external_authenticate", CARD, 0x0090, FACTOR, CHALLENGE)
        is Status.NOT_ALLOWED
    )


def test_hours_are_those_of_the_moment(keyd: Guarded) -> None:
    reader = keyd.as_("reader")
    asked = ("card.external_authenticate", CARD, 0x004C, FACTOR, CHALLENGE)
    for hour, status in ((0, Status.OK), (7, Status.OK), (8, Status.NOT_ALLOWED), (22, Status.OK)):
        keyd.unix = MORNING + hour * HOUR
        assert keyd.status(reader, *asked) is status


def test_who_may_not_ask_at_all_is_not_even_read(keyd: Guarded) -> None:
    assert keyd.status(keyd.as_("reader"), "card.pin_reload", b"junk") is Status.NOT_ALLOWED
    assert keyd.status(keyd.as_("reader"), "card.internal_cryptogram", b"x") is Status.BAD_PARAMETER
    assert keyd.status(keyd.session(), "card.pin_reload", b"junk") is Status.NOT_AUTHENTICATED


def test_each_item_of_a_batch_is_decided_for_itself(keyd: Guarded) -> None:
    good, denied = [CARD, 0x004C, FACTOR, CHALLENGE], [CARD, 0x0090, FACTOR, CHALLENGE]
    items = keyd.ok(keyd.as_("reader"), "card.external_authenticate_batch", [good, denied, good])
    assert [error and error[0] for error, _ in items] == [None, int(Status.NOT_ALLOWED), None]


def test_the_log_knows_the_line_and_the_peer_does_not(keyd: Guarded, log: list[Any]) -> None:
    answer = keyd.say(
        keyd.as_("reader"), "card.external_authenticate", CARD, 0x0090, FACTOR, CHALLENGE
    )
    assert answer.refusal is not None
    assert not any(character.isdigit() for character in answer.refusal.detail)
    (line,) = log
    assert READER.split("\n")[line["policy_line"] - 1] == "[[roles.reader.rules]]"


def test_an_operator_has_no_roles_and_needs_none(keyd: Guarded) -> None:
    operator = keyd.session(is_operator=True)
    assert keyd.status(operator, "daemon.status") is Status.OK
    # Nor does it lose that by being a terminal as well, which is governed in everything else.
    operator.enter(terminal("reader"))
    assert keyd.status(operator, "daemon.status") is Status.OK
    assert keyd.status(operator, "card.pin_unblock", CARD, FACTOR) is Status.NOT_ALLOWED
    assert keyd.status(keyd.as_("reader"), "daemon.status") is Status.NOT_ALLOWED


def test_who_asks_in_a_tick_is_who_was_there_then(keyd: Guarded) -> None:
    """A connection that becomes another terminal's in the middle of a tick takes nothing along."""
    learnt = []

    class Learning:
        until = float("inf")

        def learn(self, _request: object, passed: Pass) -> None:
            learnt.append(passed.terminal)

        def forget(self) -> None: ...

    keyd.dispatch.short_cut = Learning()
    session = keyd.as_("reader")
    was = session.terminal
    ask = Ask(1, "card.internal_cryptogram", [CARD, FACTOR, CHALLENGE])
    # A challenge that is open, and a proof that fails: it is nobody's from then on.
    keyd.ok(session, "terminal.challenge", "DEV-0001", bytes(16))
    learnt.clear()
    answers = keyd.tick(
        (session, ask), (session, Ask(2, "terminal.authenticate", [bytes(8)])), (session, ask)
    )
    said = [status_of(heard(cast("bytes", answer))) for answer in answers]
    assert said == [Status.OK, Status.TERMINAL_NOT_AUTHENTIC, Status.NOT_AUTHENTICATED]
    assert learnt == [was]


# --- how often, and which card


def test_rates_refuse_and_what_is_refused_takes_nothing() -> None:
    rates = with_rates("terminal = { requests = 1, seconds = 10, burst = 2 }")
    keyd = Guarded(policy_file(limits=rates))
    reader = keyd.as_("reader")
    asked = ("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    # What is not allowed is not counted.
    for _ in range(5):
        assert keyd.status(reader, "card.pin_unblock", CARD, FACTOR) is Status.NOT_ALLOWED
    assert [keyd.status(reader, *asked) for _ in range(3)] == [
        Status.OK,
        Status.OK,
        Status.RATE_LIMITED,
    ]
    keyd.now += 10
    assert keyd.status(reader, *asked) is Status.OK
    assert keyd.status(keyd.as_("reader", code="T-2"), *asked) is Status.OK


def test_the_items_of_a_batch_are_counted() -> None:
    rates = with_rates("terminal = { requests = 1, seconds = 10, burst = 2 }")
    keyd = Guarded(policy_file(limits=rates))
    items = keyd.ok(
        keyd.as_("reader"), "card.internal_cryptogram_batch", [[CARD, FACTOR, CHALLENGE]] * 4
    )
    limited = int(Status.RATE_LIMITED)
    assert [error and error[0] for error, _ in items] == [None, None, limited, limited]


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("psam.transmit_many", lambda n: psam.TransmitMany(1, (b"\0\x84\0\0\x08",) * n)),
        ("psam.run", lambda n: psam.RunScript(1, (psam.ScriptStep(b"\0\x84\0\0", le=8),) * n)),
        (
            "psam.run_once",
            lambda n: psam.RunOnce((0x004C,), (psam.ScriptStep(b"\0\x84\0\0", le=8),) * n),
        ),
    ],
)
def test_each_command_to_a_psam_is_counted(
    method: str, request_of: Callable[[int], Request[Any]]
) -> None:
    rules = """
[roles.psam]
what = "has a PSAM"
[[roles.psam.rules]]
why = "opens it"
methods = ["psam.open", "psam.run_once"]
keys = ["RKSSSE"]
[[roles.psam.rules]]
why = "speaks to it"
methods = ["psam.run", "psam.transmit_many"]
"""
    rates = with_rates("terminal = { requests = 1, seconds = 1, burst = 20 }")
    gate = Guarded(policy_file(rules, limits=rates)).gate
    asker = terminal("psam")
    # A debt is at most another bucket: of 32 commands from a bucket of 20, 12 are owed.
    for commands, at, is_let in ((1, 0, True), (32, 0, True), (1, 12, False), (1, 14, True)):
        moment = Moment(float(at), MORNING)
        if is_let:
            gate.admit(asker, method, request_of(commands), moment)
        else:
            with pytest.raises(RateLimited):
                gate.admit(asker, method, request_of(commands), moment)


def test_a_cards_pin_is_reset_so_often_a_day_whatever_its_identifier_is_said_to_be(
    keyd: Guarded,
) -> None:
    counter = keyd.as_("counter")
    card_id, *rest = CARD
    for last in (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2"):
        renamed = [card_id[:-4] + last, *rest]
        assert keyd.status(counter, "card.pin_reload", renamed, FACTOR, PIN) is Status.OK
    assert keyd.status(counter, "card.pin_unblock", CARD, FACTOR) is Status.CARD_LIMIT
    # Another file may be loaded in between.
    keyd.gate.take_over(policy_file())
    assert keyd.status(counter, "card.pin_unblock", CARD, FACTOR) is Status.CARD_LIMIT
    keyd.unix += 24 * HOUR
    assert keyd.status(counter, "card.pin_unblock", CARD, FACTOR) is Status.OK


def test_a_card_in_two_regions_is_told_of(keyd: Guarded) -> None:
    asked = ("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    assert keyd.status(keyd.as_("reader"), *asked) is Status.OK
    assert keyd.strange == []
    assert keyd.status(keyd.as_("reader", region="110000", code="T-2"), *asked) is Status.OK
    assert keyd.strange == [("two_regions", "T-2")]


def test_where_it_is_denied_the_second_region_gets_nothing() -> None:
    limits = LIMITS.replace("failure_minutes = 10", "failure_minutes = 10\ndeny_two_regions = true")
    keyd = Guarded(policy_file(limits=limits))
    asked = ("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    assert keyd.status(keyd.as_("reader"), *asked) is Status.OK
    assert keyd.status(keyd.as_("reader", region="110000"), *asked) is Status.CARD_LIMIT
    assert keyd.status(keyd.as_("reader"), *asked) is Status.OK


def test_many_failures_with_one_card_are_told_of_once_and_then_at_each_request(
    keyd: Guarded,
) -> None:
    reader = keyd.as_("reader")
    wrong = ("card.internal_authenticate", CARD, FACTOR, CHALLENGE, bytes(8))
    for _ in range(3):
        assert keyd.status(reader, *wrong) is Status.CARD_NOT_AUTHENTIC
    assert keyd.strange == [("many_failures", "T-1")]
    assert keyd.status(reader, "card.internal_cryptogram", CARD, FACTOR, CHALLENGE) is Status.OK
    assert keyd.strange == [("many_failures", "T-1")] * 2


def test_other_digits_of_the_region_begin_a_new_table(keyd: Guarded) -> None:
    """5101 and 51 are one place: what was seen by four digits cannot be compared with two."""
    asked = ("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    keyd.ok(keyd.as_("reader"), *asked)
    keyd.gate.take_over(policy_file(limits=LIMITS.replace("digits = 4", "digits = 2")))
    keyd.ok(keyd.as_("reader"), *asked)
    assert keyd.strange == []


def test_sets_of_roles_have_numbers_and_too_many_of_them_have_none(keyd: Guarded) -> None:
    numbers = {keyd.gate.role_set(terminal(f"r{n}")) for n in range(MAX_ROLE_SETS)}
    assert numbers == set(range(1, MAX_ROLE_SETS + 1))
    assert keyd.gate.role_set(terminal("one-more")) == 0
    assert keyd.gate.role_set(terminal("r7")) == 8


# --- the short cut


class Desk(Stand):
    """A pump and Python beside it, under one policy; the terminal can be another."""

    def __init__(self, file: PolicyFile) -> None:
        super().__init__()
        self.unix = MORNING
        self.services.now = lambda: self.unix
        self.seen = NativeSeenCards(bytes(8))
        self.strange: list[Strange] = []
        self.gate = Gate(
            file,
            Needs(self.services.profiles),
            SECRET,
            lambda what, _code: self.strange.append(what),
            lambda: self.seen,
        )
        self.routes.gate = self._dispatch.gate = self.gate
        self.pump.watch(self.seen, self.gate.window_seconds)

    def be(self, who: KnownTerminal) -> None:
        self._session.enter(who)

    def pumped(self, who: KnownTerminal, *requests: bytes, allowance: int = MAX_ALLOWANCE) -> int:
        """Return how many of these the pump answers by itself; the others come back as they were."""
        theirs, ours = self.open(is_admitted=False)
        roles, region = self.gate.role_set(who), self.gate.region(who)
        self.pump.admit(ours.fileno(), 0, 0, roles, region, allowance)
        theirs.sendall(b"".join(requests))
        rests, answered = self.tick()
        self.epoll.unregister(ours.fileno())
        left = self.pump.dismiss(ours.fileno())
        assert left == allowance - answered
        handed = b"".join(rest[3] for rest in rests)
        assert handed == b"".join(requests[answered:])
        assert len(messages(theirs.recv(1 << 20)) if answered else []) == answered
        return answered


@pytest.fixture
def desk() -> Iterator[Desk]:
    stand = Desk(policy_file())
    yield stand
    stand.close()


def test_what_one_role_was_answered_another_is_not_by_the_pump(desk: Desk) -> None:
    reader, counter = terminal("reader"), terminal("counter", code="T-2")
    desk.be(reader)
    desk.teach(hot(INTERNAL_CRYPTOGRAM), hot(INTERNAL_AUTHENTICATE))
    assert desk.pumped(reader, hot(INTERNAL_CRYPTOGRAM)) == 1
    assert desk.pumped(terminal("reader", code="T-3"), hot(INTERNAL_CRYPTOGRAM)) == 1
    assert desk.pumped(counter, hot(INTERNAL_CRYPTOGRAM)) == 0
    # It may authenticate cards, and does not know it yet.
    assert desk.pumped(counter, hot(INTERNAL_AUTHENTICATE)) == 0
    desk.be(counter)
    desk.teach(hot(INTERNAL_AUTHENTICATE), hot(INTERNAL_CRYPTOGRAM))
    assert desk.pumped(counter, hot(INTERNAL_AUTHENTICATE)) == 1
    assert desk.pumped(counter, hot(INTERNAL_CRYPTOGRAM)) == 0


def test_a_rule_with_hours_is_forgotten_when_they_end(desk: Desk) -> None:
    reader = terminal("reader")
    desk.be(reader)
    request = hot("card.external_authenticate")
    desk.teach(request)
    assert desk.routes.until == MORNING + 15 * HOUR // 2
    assert desk.pumped(reader, request) == 1
    desk._dispatch.short_cut = desk.routes
    desk.unix = MORNING + 15 * HOUR // 2 - 1
    desk._dispatch.look_at_clock()
    assert desk.pumped(reader, request) == 1
    desk.unix += 1
    desk._dispatch.look_at_clock()
    assert desk.pumped(reader, request) == 0
    assert desk.routes.until == float("inf")


def test_the_pump_answers_no_more_than_its_allowance(desk: Desk) -> None:
    reader = terminal("reader")
    desk.be(reader)
    desk.teach(hot(INTERNAL_CRYPTOGRAM))
    many = [hot(INTERNAL_CRYPTOGRAM, msgid) for msgid in range(20)]
    assert desk.pumped(reader, *many, allowance=7) == 7
    assert desk.pumped(reader, *many, allowance=0) == 0
    assert desk.pumped(reader, *many, allowance=20) == 20


def test_a_card_that_was_elsewhere_is_pythons_and_told_of(desk: Desk) -> None:
    home, away = terminal("reader"), terminal("reader", region="110000", code="T-2")
    request = hot(INTERNAL_CRYPTOGRAM)
    desk.be(home)
    desk.teach(request)
    assert desk.pumped(home, request, request) == 2
    assert desk.pumped(away, request) == 0
    desk.be(away)
    desk.python(request)
    assert desk.strange == ["two_regions"]
    # Now it is there, and home is elsewhere.
    assert desk.pumped(away, request) == 1
    assert desk.pumped(home, request) == 0
    # What the pump has seen, Python knows.
    other = hot(INTERNAL_CRYPTOGRAM, card=HolderCard(serial=bytes(4)))
    assert desk.pumped(home, other) == 1
    desk.be(away)
    desk.python(other)
    assert desk.strange == ["two_regions"] * 2


@pytest.mark.parametrize(
    "limits",
    [
        with_rates("key = { requests = 1, seconds = 1, burst = 100 }"),
        with_rates("method = { requests = 1, seconds = 1, burst = 100 }"),
        LIMITS.replace("failure_minutes = 10", "failure_minutes = 10\ndeny_failures = true"),
    ],
)
def test_what_is_everybodys_count_or_a_cards_past_is_not_cut_short(limits: str) -> None:
    stand = Desk(policy_file(limits=limits))
    reader = terminal("reader")
    stand.be(reader)
    stand.teach(hot(INTERNAL_CRYPTOGRAM))
    assert stand.pumped(reader, hot(INTERNAL_CRYPTOGRAM)) == 0
    stand.close()


def test_an_allowance_is_the_rates_room_and_what_was_answered_is_charged() -> None:
    rates = with_rates("terminal = { requests = 10, seconds = 1, burst = 100 }")
    gate = Guarded(policy_file(limits=rates)).gate
    asker = terminal("reader").asker
    assert gate.allowance(asker, 0) == 100
    gate.charge(asker, 0, 60)
    assert gate.allowance(asker, 0) == 40
    gate.charge(asker, 0, 40)
    assert gate.allowance(asker, 0) == 0
    assert gate.allowance(asker, 1) == 10
    many = with_rates("organisation = { requests = 100_000, seconds = 1, burst = 100_000 }")
    assert Guarded(policy_file(limits=many)).gate.allowance(asker, 0) == MAX_ALLOWANCE


def test_whoever_has_no_rate_never_goes_the_long_way_for_it(keyd: Guarded) -> None:
    """Looking at the rates sends all that has just arrived the long way: it halved what deep pipelines got."""
    asker = terminal("reader").asker
    assert keyd.gate.allowance(asker, 0) == UNLIMITED
    keyd.gate.charge(asker, 0, UNLIMITED)
    assert keyd.gate.allowance(asker, 0) == UNLIMITED


# --- the whole table


class Matrix(Guarded):
    """A keyd with the shipped policy, and a terminal of each role in each state."""

    def __init__(self) -> None:
        super().__init__(read_policy(SHIPPED.read_bytes(), CATALOGUE))
        self.services.terminals.load(
            {
                f"{role}.{state}": synthetic_terminal(f"{role}.{state}", state, roles=(role,))
                for role in ROLES
                for state in TerminalState
            }
        )
        self.needs = Needs(self.services.profiles)

    def come(self, code: str) -> tuple[Session, bool]:
        """Let a terminal prove itself as well as it can; return its connection, and whether it is in."""
        session, theirs = self.session(), bytes(16)
        ours = self.ok(session, "terminal.challenge", code, theirs)[0]
        said = self.status(
            session,
            "terminal.authenticate",
            terminal_proof(synthetic_terminal_key(code), theirs, ours),
        )
        return session, said is Status.OK

    def is_expected(self, role: str, row: Command) -> bool:
        """Whether the expectations, which people wrote, give a role what a well-formed request of this method needs."""
        request = msgspec.convert(well_formed(row), row.request, builtin_types=(bytes,))
        try:
            addresses = self.needs.of(request).addresses
        except BadParameter:
            # A string of the terminal library that cannot be read that far: the method alone decides.
            return any((role, row.method) == allowed[:2] for allowed in ALLOWED)
        return all(
            (role, row.method, "-" if address == NO_KEY else CATALOGUE.name_of(address)) in ALLOWED
            for address in addresses
        )


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return Matrix()


@pytest.mark.parametrize("state", list(TerminalState))
@pytest.mark.parametrize("role", ROLES)
def test_every_method_is_answered_exactly_where_role_state_and_proof_say(
    matrix: Matrix, role: str, state: TerminalState
) -> None:
    """Every method of the table, for a terminal that has proven itself and for one that has not."""
    stranger = matrix.session()
    terminal, is_in = matrix.come(f"{role}.{state}")
    assert is_in is (state is TerminalState.ACTIVE)
    for row in TABLE.values():
        if row.role is Role.ANYONE:
            continue  # asked above; anybody may prove who they are, and fail
        is_governed = row.role in GOVERNED
        for session, has_proven in ((stranger, False), (terminal, is_in)):
            (answer,) = matrix.tick((session, Ask(1, row.method, well_formed(row))))
            said = None if isinstance(answer, Slow) else status_of(heard(answer))
            if row.role not in GOVERNED | {Role.SELF}:
                assert said is Status.ROLE_MISSING, row.method
            elif not has_proven:
                assert said is Status.NOT_AUTHENTICATED, row.method
            else:
                is_denied = is_governed and not matrix.is_expected(role, row)
                assert (said is Status.NOT_ALLOWED) is is_denied, (row.method, said)
                assert said is not Status.NOT_AUTHENTICATED, row.method
