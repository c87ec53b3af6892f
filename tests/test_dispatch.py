"""Every ask of a tick is answered once, in order, by its own right; no item, peer or bug disturbs another."""

from __future__ import annotations

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack
import msgspec
import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from keyd.cards.identity import identify
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.selftest import SelftestResult
from keyd.crypto.sm3 import sm3
from keyd.dispatch import UNKNOWN_METHOD, Dispatch, Slow
from keyd.errors import Refusal, Status
from keyd.handlers import Services
from keyd.keys.block import Use
from keyd.keys.ring import KeyRing
from keyd.keys.roots import (
    synthetic,
    synthetic_identity_key,
    synthetic_signer,
    synthetic_terminals_master,
)
from keyd.keys.sam import CryptogramTask, MacTask, ProtectTask, TacTask
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import BATCHES, MAX_BATCH, TABLE, Command, Cost, Role
from keyd.protocol.connection import Answer, Ask, ClientConnection, ServerConnection
from keyd.protocol.proof import NO_BINDING, signed_by_keyd, signed_by_terminal
from keyd.registry.synthetic import development_terminals, synthetic_terminals
from keyd.routing import Routing
from keyd.telemetry import MAX_PEER_LINES_PER_SECOND, Events, Meter, configure_logging
from keyd.terminals import CHALLENGE_SECONDS, Session, Terminals
from tests.proofs import keyd_proof, terminal_proof
from tests.psam.desk import AppletDesk
from tests.psam.sams import ROUTES, OnePool, PsamSam

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from keyd.keys.sam import ProofTask, Sam, SamTask

CODE: Final = "T-0001"

CARD: Final[list[Any]] = [
    bytes.fromhex("510100D15600000530000BEE00000000"),
    bytes.fromhex("00814A44468649510130000BEE"),
    3,
    3,
]
FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")
PIN: Final = "918273"
TIME: Final = bytes.fromhex("20240102030405")
PSAM_TERMINAL: Final = bytes.fromhex("510100000001")
NUMBER: Final = bytes.fromhex("0000000A")
PURCHASE: Final = [
    *(bytes.fromhex("01020304"), b"\0\5", NUMBER, 0, 10_000, 100, 1, PSAM_TERMINAL, TIME),
]
LOAD: Final = [bytes.fromhex("01020304"), b"\0\3", 5000, 1000, 2, PSAM_TERMINAL, TIME]

STEP_1: Final = "03|{address}|0102030405060708|1112131415161718|"
BAS: Final = (
    "510100|00814A44468649510130000BEE|03|510100D15600000530000BEE00000000|0102030405060708|"
    "1112131415161718|2122232425262728|3132333435363738|"
)
DEBIT: Final = "03|017F|01020304|0005|0000271000000064|01|510100000001|20240102030405|"

GOLDEN: Final = cast(
    "dict[str, dict[str, dict[str, Any]]]",
    json.loads((Path(__file__).parent / "protocol" / "golden.json").read_text(encoding="utf-8"))[
        "messages"
    ],
)

# Those of custody, and those that a sealed keyd does not refuse with SEALED. An officer's own are refused as ever.
OF_CUSTODY: Final = frozenset({Role.ADMINISTRATION, Role.OFFICER})
WHILE_SEALED: Final = OF_CUSTODY | {Role.OPERATOR}
# Those that are asked elsewhere: on the administration's socket, in an envelope, on an enrolment line.
ELSEWHERE: Final = OF_CUSTODY | {Role.ENROLMENT}
OF_TERMINALS: Final = frozenset({Role.TERMINAL, Role.SELF})

every_row = pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.method)
every_batch = pytest.mark.parametrize("row", BATCHES.values(), ids=lambda row: row.method)


def well_formed(row: Command) -> list[Any]:
    """Return params that fit a request's types; what they say need not be true."""
    return cast("list[Any]", msgpack.unpackb(bytes.fromhex(GOLDEN[row.method]["request"]["wire"])))


class Keyd:
    """The middle of a keyd without its edges: real services, a clock and a source of bytes in hand."""

    def __init__(
        self, sam: Sam | None = None, *, sample_every: int = 0, has_pool: bool = False
    ) -> None:
        self.now = 1000.0
        self.selftest_passes = True
        count = itertools.count()
        profiles = load_profiles()
        places = newest(profiles).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
        ring = KeyRing([*synthetic(places), synthetic_terminals_master()])

        def random_bytes(size: int) -> bytes:
            digests = (sm3(b"%d" % next(count)) for _ in range(0, size, 32))
            return b"".join(digests)[:size]

        self.meter = Meter()
        self.services = Services(
            sam=sam or ring,
            key_headers=ring.headers,
            has_synthetic_keys=True,
            profiles=profiles,
            terminals=Terminals(synthetic_terminals([CODE]), random_bytes),
            selftest=(),
            run_selftest=self._run_selftest,
            clock=lambda: self.now,
            now=lambda: 0.0,
            random_bytes=random_bytes,
            sign=synthetic_identity_key().sign,
            counters=self.meter.totals,
        )
        if has_pool:
            self.services.routing = Routing.of(ROUTES, profiles)
            self.services.psams = OnePool(PsamSam(ring, newest(profiles).keys))
        self.ring = ring
        events = Events(lambda: self.now, sample_every=sample_every)
        self.dispatch = Dispatch(self.services, self.meter, events)
        self._numbers = itertools.count(1)

    def _run_selftest(self) -> Sequence[SelftestResult]:
        return (SelftestResult("sm4", self.selftest_passes, ""),)

    def put_before_keys(self, wrapper: Callable[[Sam], Sam]) -> None:
        """Put something between this keyd and whatever computes for it."""
        self.services.sam = wrapper(self.services.sam)
        if isinstance(self.services.psams, OnePool):
            self.services.psams.psam = wrapper(self.services.psams.psam)

    def session(self, *, is_operator: bool = False, is_administration: bool = False) -> Session:
        """Return a new connection's session."""
        return Session(
            next(self._numbers), is_operator=is_operator, is_administration=is_administration
        )

    def terminal(self) -> Session:
        """Return the session of a terminal that has proved itself."""
        session, theirs = self.session(), bytes(16)
        ours = self.ok(session, "terminal.challenge", CODE, theirs)[0]
        key = synthetic_terminal_key(CODE)
        proof = self.ok(session, "terminal.authenticate", terminal_proof(key, theirs, ours))
        assert proof == [keyd_proof(key, theirs, ours)]
        return session

    def tick(self, *asks: tuple[Session, Ask]) -> list[bytes | Slow]:
        """Let everything arrive in one tick. What left it for the pool is answered too."""
        answers = self.dispatch.run(asks).answers
        if self.services.psams is None:
            return answers
        return [
            in_trio(self.slow, answer) if isinstance(answer, Slow) and answer.late else answer
            for answer in answers
        ]

    async def slow(self, slow: Slow) -> bytes:
        """Do what left the tick."""
        (answer,) = (await self.dispatch.run_slow(slow)).answers
        assert isinstance(answer, bytes)
        return answer

    def say(self, session: Session, method: str, *params: Any) -> Answer:
        """Send one request over the wire's both ends and return its answer."""
        client, server = ClientConnection(), ServerConnection()
        msgid, data = client.ask(method, params)
        server.receive_data_untrusted(data)
        (ask,) = server.next_asks_untrusted(2)
        (octets,) = self.tick((session, ask))
        assert isinstance(octets, bytes), "it left the tick"
        answer = heard(octets)
        assert answer.msgid == msgid
        return answer

    def ok(self, session: Session, method: str, *params: Any) -> Any:
        """Send one request that must be answered; return the result as it is on the wire."""
        answer = self.say(session, method, *params)
        assert answer.refusal is None, repr(answer.refusal)
        return answer.result

    def status(self, session: Session, method: str, *params: Any) -> Status:
        """Send one request and return its status."""
        return status_of(self.say(session, method, *params))

    def counted(self, method: str, status: Status) -> float:
        """Return how often the metrics saw this."""
        labels = {"method": method, "status": status.name}
        return self.meter.registry.get_sample_value("keyd_requests_total", labels) or 0.0


def in_trio(run: Callable[[Slow], Awaitable[bytes]], slow: Slow) -> bytes:
    """Run something of trio to its end, also where trio is running."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(trio.run, run, slow).result()


def heard(octets: bytes) -> Answer:
    (answer,) = ClientConnection().receive_data_untrusted(octets)
    return answer


def status_of(answer: Answer) -> Status:
    return Status.OK if answer.refusal is None else answer.refusal.status


@pytest.fixture
def keyd(request: pytest.FixtureRequest) -> Keyd:
    """A keyd that computes in its ring; `on_both` makes another, which computes in a PSAM whatever PSAMs do."""
    return Keyd(has_pool=getattr(request, "param", "ring") == "pool")


# What is answered does not depend on what computes it.
on_both = pytest.mark.parametrize("keyd", ["ring", "pool"], indirect=True)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """What would be logged."""
    with capture_logs() as lines:
        yield cast("list[Any]", lines)


# --- every command, as it is meant


def conversation(keyd: Keyd) -> Iterator[str]:
    """Use every command that answers within the tick; yield the methods that were answered."""
    terminal = keyd.terminal()
    yield "terminal.challenge"
    yield "terminal.authenticate"

    def ok(method: str, *params: Any) -> Any:
        return keyd.ok(terminal, method, *params)

    assert len(ok("daemon.random", 20)[0]) == 20
    yield "daemon.random"
    state = ok("daemon.status")
    assert state[1] == "serving"
    assert len(state[6]) == 311
    yield "daemon.status"

    reply, warnings = ok("card.internal_cryptogram", CARD, FACTOR, CHALLENGE)
    assert reply[8:] == CHALLENGE
    assert warnings == []
    yield "card.internal_cryptogram"
    cryptogram = reply[:8]
    ok("card.internal_authenticate", CARD, FACTOR, CHALLENGE, cryptogram)
    yield "card.internal_authenticate"
    proof, apdu, _ = ok("card.external_authenticate", CARD, 0x004C, FACTOR, CHALLENGE)
    assert apdu == bytes.fromhex("0082000A10") + proof
    yield "card.external_authenticate"
    both = ok("card.mutual_cryptograms", CARD, FACTOR, CHALLENGE, FACTOR, CHALLENGE)
    assert both == [reply, proof, []]
    yield "card.mutual_cryptograms"
    opened = ok("card.mutual_authenticate", CARD, FACTOR, CHALLENGE, cryptogram, FACTOR, CHALLENGE)
    assert opened == [proof, apdu, []]
    yield "card.mutual_authenticate"
    (update, _) = ok("card.secure_message", CARD, 0x0173, FACTOR, b"\x04\xd6\0\0", b"data", False)
    assert update[:9] == b"\x04\xd6\0\0\x08data"
    yield "card.secure_message"
    (unblock, _) = ok("card.pin_unblock", CARD, FACTOR)
    yield "card.pin_unblock"
    (reload, _) = ok("card.pin_reload", CARD, FACTOR, PIN)
    yield "card.pin_reload"

    (mac1, _) = ok("medical.make_purchase", CARD, PURCHASE)
    assert len(mac1) == 4
    yield "medical.make_purchase"
    mac2, tac = keyd.ring.compute(purchase_tasks(keyd))
    ok("medical.confirm_purchase", CARD, PURCHASE, mac2, tac)
    yield "medical.confirm_purchase"
    mac1, tac = keyd.ring.compute(load_tasks(keyd))
    ok("medical.make_load", CARD, LOAD, mac1)
    yield "medical.make_load"
    ok("medical.confirm_load", CARD, LOAD, tac)
    yield "medical.confirm_load"

    assert ok("library.read_card_bas", BAS)[0].count("|") == 2
    yield "library.read_card_bas"
    for method, address in (
        ("library.read_card", "004C"),
        ("library.write_card", "0094"),
        ("library.reload_pin_1", "0090"),
        ("library.unblock_pin_1", "0090"),
    ):
        assert len(ok(method, CARD, STEP_1.format(address=address))[0]) == 32
        yield method
    text = f"03|0173|0102030405060708|8424000114|{PIN}|"
    assert ok("library.reload_pin_2", CARD, text)[0] == reload.hex().upper()
    yield "library.reload_pin_2"
    text = "03|0173|0102030405060708|8424000004||"
    assert ok("library.unblock_pin_2", CARD, text)[0] == unblock.hex().upper()
    yield "library.unblock_pin_2"
    assert ok("library.do_debit_1", CARD, DEBIT, NUMBER)[0].startswith("0000000A|20240102030405|")
    yield "library.do_debit_1"
    mac2, tac = keyd.ring.compute(purchase_tasks(keyd))
    assert isinstance(mac2, bytes)
    assert isinstance(tac, bytes)
    step2 = (
        f"{mac2.hex().upper()}|03|017F|0000271000000064|01|510100000001|0000000A|20240102030405|"
        f"{tac.hex().upper()}|"
    )
    assert ok("library.do_debit_2", CARD, DEBIT, step2) == ["", []]
    yield "library.do_debit_2"

    keyd.services.psams = AppletDesk()
    ((member,),) = ok("psam.list")
    assert member[:4] == ["psam-1", "virtual", "ready", "510100000001"]
    yield "psam.list"


def a_card(keyd: Keyd) -> Any:
    return identify(keyd.services.profiles, CARD[0], CARD[1], CardAlgorithm.SM4, 3)


def purchase_tasks(keyd: Keyd) -> list[SamTask]:
    """Return what a card computes for MAC2 and TAC of the purchase."""
    amounts = bytes(4) + (10_000).to_bytes(4, "big") + (100).to_bytes(4, "big")
    card = a_card(keyd)
    return [
        MacTask(card.key(0x017F, Use.DEBIT), bytes.fromhex("010203040005000A"), amounts),
        TacTask(card.key(0x00B5, Use.TAC), amounts + b"\1" + PSAM_TERMINAL + NUMBER + TIME),
    ]


def load_tasks(keyd: Keyd) -> list[SamTask]:
    """Return what a card computes for MAC1 and TAC of the load."""
    balance, amount = (5000).to_bytes(4, "big"), (1000).to_bytes(4, "big")
    card = a_card(keyd)
    head = amount + b"\2" + PSAM_TERMINAL
    return [
        MacTask(card.key(0x00B2, Use.LOAD), bytes.fromhex("0102030400038000"), balance + head),
        TacTask(card.key(0x00B5, Use.TAC), balance + b"\0\3" + head + TIME),
    ]


@on_both
def test_every_command_of_the_tick_answers_what_it_is_asked(keyd: Keyd, log: list[Any]) -> None:
    answered = list(conversation(keyd))
    assert set(answered) == {row.method for row in TABLE.values() if row.cost is Cost.TICK}
    assert all(keyd.counted(method, Status.OK) >= 1 for method in answered)
    assert log == []


async def test_the_slow_command_answers_outside_the_tick(keyd: Keyd) -> None:
    terminal = keyd.terminal()
    slow, quick = keyd.tick(
        (terminal, Ask(1, "daemon.selftest", [])), (terminal, Ask(2, "daemon.random", [1]))
    )
    assert isinstance(slow, Slow)
    assert isinstance(quick, bytes)
    assert keyd.counted("daemon.selftest", Status.OK) == 0
    answer = heard(await keyd.slow(slow))
    assert answer == Answer(1, None, [[["sm4", True, ""]]])
    assert keyd.counted("daemon.selftest", Status.OK) == 1


# --- who may ask


@every_row
def test_who_is_nobody_may_only_prove_to_be_somebody(keyd: Keyd, row: Command) -> None:
    (answer,) = keyd.tick((keyd.session(), Ask(1, row.method, well_formed(row))))
    if isinstance(answer, Slow):
        assert row.role is Role.ANYONE
        return
    status = status_of(heard(answer))
    assert (status is Status.NOT_AUTHENTICATED) == (row.role in OF_TERMINALS | {Role.OPERATOR})
    assert (status is Status.ROLE_MISSING) == (row.role in ELSEWHERE)
    assert status is not Status.INTERNAL


@every_row
def test_the_operator_may_also_look_after_keyd(keyd: Keyd, row: Command) -> None:
    session = keyd.session(is_operator=True)
    (answer,) = keyd.tick((session, Ask(1, row.method, well_formed(row))))
    if isinstance(answer, Slow):
        assert row.role in {Role.OPERATOR, Role.ANYONE}
        return
    status = status_of(heard(answer))
    assert (status is Status.NOT_AUTHENTICATED) == (row.role in OF_TERMINALS)
    assert (status is Status.ROLE_MISSING) == (row.role in ELSEWHERE)
    assert status is not Status.INTERNAL


@every_row
def test_a_terminal_may_ask_everything_but_custody(keyd: Keyd, row: Command) -> None:
    (answer,) = keyd.tick((keyd.terminal(), Ask(1, row.method, well_formed(row))))
    if isinstance(answer, Slow):
        assert row.cost is Cost.SLOW
        assert row.role not in ELSEWHERE
        return
    status = status_of(heard(answer))
    assert status not in {Status.NOT_AUTHENTICATED, Status.INTERNAL}
    assert (status is Status.ROLE_MISSING) == (row.role in ELSEWHERE)


@every_row
def test_on_an_enrolment_line_machines_ask_for_a_certificate_and_nothing_else(
    keyd: Keyd, row: Command
) -> None:
    session = keyd.session()
    session.is_enrolment = True
    for params in (well_formed(row), []):
        (answer,) = keyd.tick((session, Ask(1, row.method, params)))
        if isinstance(answer, Slow):
            assert row.role is Role.ENROLMENT
        else:
            is_missing = status_of(heard(answer)) is Status.ROLE_MISSING
            assert is_missing == (row.role is not Role.ENROLMENT)


@every_row
def test_the_administrations_socket_takes_what_needs_no_terminal(keyd: Keyd, row: Command) -> None:
    """It is no operator and no terminal by itself; and an officer's command comes in its envelope alone."""
    session = keyd.session(is_administration=True)
    (answer,) = keyd.tick((session, Ask(1, row.method, well_formed(row))))
    if isinstance(answer, Slow):
        assert row.role in {Role.ADMINISTRATION, Role.ANYONE}
        return
    status = status_of(heard(answer))
    assert row.role is not Role.ADMINISTRATION
    assert (status is Status.NOT_AUTHENTICATED) == (row.role in OF_TERMINALS | {Role.OPERATOR})
    assert (status is Status.ROLE_MISSING) == (row.role in {Role.OFFICER, Role.ENROLMENT})


@every_row
def test_an_officers_command_is_never_taken_without_its_envelope(keyd: Keyd, row: Command) -> None:
    # Whoever else somebody is: terminal, operator and administration at once.
    session = keyd.terminal()
    session.is_operator = session.is_administration = True
    for is_sealed in (False, True):
        keyd.services.is_sealed = is_sealed
        (answer,) = keyd.tick((session, Ask(1, row.method, well_formed(row))))
        if row.role is Role.OFFICER:
            assert isinstance(answer, bytes)
            assert status_of(heard(answer)) is Status.ROLE_MISSING


@every_row
def test_while_sealed_only_state_and_unsealing_are_answered(keyd: Keyd, row: Command) -> None:
    """Everything else is SEALED, whoever asks, and before anything else is looked at."""
    everybody = [
        keyd.session(),
        keyd.terminal(),
        keyd.session(is_operator=True),
        keyd.session(is_administration=True),
    ]
    keyd.services.is_sealed = True
    for session in everybody:
        for params in (well_formed(row), [], ["junk"] * 9):
            (answer,) = keyd.tick((session, Ask(1, row.method, params)))
            if isinstance(answer, Slow):
                assert row.role in WHILE_SEALED
                continue
            is_sealed = status_of(heard(answer)) is Status.SEALED
            assert is_sealed == (row.role not in WHILE_SEALED | {Role.ENROLMENT})


@every_batch
def test_while_sealed_a_batch_is_sealed_item_by_item(keyd: Keyd, row: Command) -> None:
    terminal = keyd.terminal()
    keyd.services.is_sealed = True
    answer = keyd.say(terminal, row.method + "_batch", [well_formed(row)] * 2)
    assert [status for status, _result in items_of(answer)] == [Status.SEALED] * 2


def test_a_sealed_keyd_says_that_it_is(keyd: Keyd) -> None:
    operator = keyd.session(is_operator=True)
    assert keyd.ok(operator, "daemon.status")[1] == "serving"
    keyd.services.is_sealed = True
    assert keyd.ok(operator, "daemon.status")[1] == "sealed"
    keyd.services.is_draining = True
    assert keyd.ok(operator, "daemon.status")[1] == "draining"


@every_row
def test_who_may_not_ask_learns_nothing_of_the_parameters(keyd: Keyd, row: Command) -> None:
    if row.role is Role.ANYONE:
        return
    refusal = Status.ROLE_MISSING if row.role in ELSEWHERE else Status.NOT_AUTHENTICATED
    for params in ([], ["junk"], [None] * 20):
        assert keyd.status(keyd.session(), row.method, *params) is refusal


@on_both
def test_an_authentication_counts_from_the_next_ask_of_the_same_tick(keyd: Keyd) -> None:
    session, theirs = keyd.session(), bytes(16)
    ours = keyd.ok(session, "terminal.challenge", CODE, theirs)[0]
    proof = terminal_proof(synthetic_terminal_key(CODE), theirs, ours)
    card = Ask(2, "card.pin_unblock", [CARD, FACTOR])
    answers = keyd.tick(
        (session, card), (session, Ask(1, "terminal.authenticate", [proof])), (session, card)
    )
    statuses = [status_of(heard(cast("bytes", answer))) for answer in answers]
    assert statuses == [Status.NOT_AUTHENTICATED, Status.OK, Status.OK]


@on_both
def test_a_failed_proof_takes_the_rights_away_and_the_line(keyd: Keyd) -> None:
    session = keyd.terminal()
    for number in range(3):
        assert not session.must_close
        assert keyd.status(session, "terminal.challenge", "T-9999", bytes(16)) is Status.OK
        status = keyd.status(session, "terminal.authenticate", bytes(8))
        assert status is Status.TERMINAL_NOT_AUTHENTIC, number
        assert keyd.status(session, "card.pin_unblock", CARD, FACTOR) is Status.NOT_AUTHENTICATED
    assert session.must_close


def test_a_challenge_expires_by_keyds_own_clock(keyd: Keyd) -> None:
    session, theirs = keyd.session(), bytes(16)
    ours, seconds = keyd.ok(session, "terminal.challenge", CODE, theirs)
    assert seconds == CHALLENGE_SECONDS
    keyd.now += CHALLENGE_SECONDS + 1
    proof = terminal_proof(synthetic_terminal_key(CODE), theirs, ours)
    assert keyd.status(session, "terminal.authenticate", proof) is Status.CHALLENGE_EXPIRED


@on_both
def test_a_session_that_is_over_is_nobodys(keyd: Keyd) -> None:
    session = keyd.terminal()
    keyd.now = session.until - 0.001
    assert keyd.status(session, "card.pin_unblock", CARD, FACTOR) is Status.OK
    keyd.now = session.until
    assert keyd.status(session, "card.pin_unblock", CARD, FACTOR) is Status.NOT_AUTHENTICATED
    assert session.terminal is None
    # The same line serves whoever proves itself again.
    ours = keyd.ok(session, "terminal.challenge", CODE, bytes(16))[0]
    proof = terminal_proof(synthetic_terminal_key(CODE), bytes(16), ours)
    keyd.ok(session, "terminal.authenticate", proof)
    assert keyd.status(session, "card.pin_unblock", CARD, FACTOR) is Status.OK


def test_an_expired_terminal_that_is_also_the_operator_stays_the_operator(keyd: Keyd) -> None:
    session = keyd.terminal()
    session.is_operator = True
    keyd.now = session.until
    assert keyd.status(session, "daemon.status") is Status.OK
    assert session.terminal is None


@on_both
async def test_a_signature_leaves_the_tick_and_comes_back_as_a_terminal(keyd: Keyd) -> None:
    keyd.services.terminals.load(development_terminals([CODE]))
    session, now = keyd.session(), int(keyd.services.now())
    ours = keyd.ok(session, "terminal.challenge", CODE, bytes(16))[0]
    signed = signed_by_terminal(CODE, bytes(16), ours, NO_BINDING, now)
    ask = Ask(1, "terminal.authenticate_signature", [synthetic_signer(CODE).sign(signed), now])
    card = Ask(2, "card.pin_unblock", [CARD, FACTOR])
    slow, early = keyd.tick((session, ask), (session, card))
    assert isinstance(slow, Slow)
    assert status_of(heard(cast("bytes", early))) is Status.NOT_AUTHENTICATED
    (signature,) = heard(await keyd.slow(slow)).result
    synthetic_identity_key().public.verify(
        signed_by_keyd(CODE, bytes(16), ours, NO_BINDING, now), signature
    )
    assert keyd.status(session, "card.pin_unblock", CARD, FACTOR) is Status.OK


async def test_a_keyd_that_cannot_sign_says_that_it_is_sealed(keyd: Keyd) -> None:
    keyd.services.sign = None
    session = keyd.session()
    (slow,) = keyd.tick((session, Ask(1, "terminal.authenticate_signature", [bytes(64), 0])))
    assert isinstance(slow, Slow)
    assert status_of(heard(await keyd.slow(slow))) is Status.SEALED


# --- what is not well asked


@pytest.mark.parametrize(
    "method",
    [
        *("", "daemon", "daemon.", ".status", "daemon.Status", "daemon.status ", "card.unknown"),
        *("daemon.status_batch", "daemon.random_batch", "terminal.authenticate_batch", "_batch"),
        *("card.pin_reload_batch_batch", "library.read_card_batch", "法"),
    ],
)
def test_a_method_that_is_not_there_is_refused_and_makes_no_label(keyd: Keyd, method: str) -> None:
    for session in (keyd.session(), keyd.terminal(), keyd.session(is_operator=True)):
        assert keyd.status(session, method) is Status.METHOD_UNKNOWN
    assert keyd.counted(UNKNOWN_METHOD, Status.METHOD_UNKNOWN) == 3
    assert keyd.counted(method, Status.METHOD_UNKNOWN) == 0


def is_required(row: Command) -> bool:
    """Whether the last field of a request must be there."""
    fields = msgspec.structs.fields(row.request)
    return not fields or fields[-1].required


@every_row
def test_parameters_that_do_not_fit_are_refused(keyd: Keyd, row: Command) -> None:
    if row.role is Role.OFFICER:
        return  # it is refused before anybody looks, see above
    session, right = keyd.terminal(), well_formed(row)
    session.is_administration = row.role is Role.ADMINISTRATION
    session.is_enrolment = row.role is Role.ENROLMENT
    wrong: list[list[Any]] = [[*right, None], [right], [{}], [None] * 40, ["x"] * (len(right) + 1)]
    is_whole = row.method not in {"card.secure_message", "terminal.authenticate_signature"}
    # Without a default at its end, and slow work is done elsewhere: whatever is answered there, it fits.
    is_whole &= row.cost is not Cost.SLOW or is_required(row)
    wrong += [right[:-1]] if right and is_whole else []
    for params in wrong:
        status = keyd.status(session, row.method, *params)
        assert status is not Status.INTERNAL
        if params != right[:-1]:
            assert status is Status.BAD_PARAMETER
    assert keyd.counted(row.method, Status.BAD_PARAMETER) >= 5


@every_row
def test_a_notification_does_nothing(keyd: Keyd, row: Command) -> None:
    session = keyd.terminal()
    keyd.ok(session, "terminal.challenge", CODE, bytes(16))
    before = session.challenge
    (answer,) = keyd.tick((session, Ask(None, row.method, well_formed(row))))
    assert isinstance(answer, bytes)
    assert heard(answer).msgid is None
    assert status_of(heard(answer)) is Status.MALFORMED
    assert session.challenge is before
    assert session.terminal is not None


@on_both
def test_text_in_place_of_bytes_is_refused(keyd: Keyd) -> None:
    # AQIDBAUGBwg= is FACTOR in base64.
    terminal = keyd.terminal()
    status = keyd.status(terminal, "card.pin_unblock", CARD, "AQIDBAUGBwg=")
    assert status is Status.BAD_PARAMETER


# --- batches


def items_of(answer: Answer) -> list[tuple[Status, Any]]:
    """Return status and result of every item."""
    assert answer.refusal is None
    items = []
    for error, result in answer.result:
        status = Status.OK if error is None else Status(error[0])
        assert (error is None) != (result is None)
        assert error is None or error[1] == status.name
        items.append((status, result))
    return items


BAD_CARD: Final = [CARD[0], CARD[1][:-1] + b"\xff", 3, 3]


@on_both
def test_a_batch_has_a_status_per_item_in_order(keyd: Keyd) -> None:
    terminal = keyd.terminal()
    items: list[tuple[Any, Status]] = [
        ([CARD, FACTOR], Status.OK),
        ([BAD_CARD, FACTOR], Status.CARD_DATA_INCONSISTENT),
        ([CARD, FACTOR], Status.OK),
        ([CARD, b"short"], Status.BAD_PARAMETER),
        ([CARD], Status.BAD_PARAMETER),
        (None, Status.BAD_PARAMETER),
        ("junk", Status.BAD_PARAMETER),
        ({"card": CARD}, Status.BAD_PARAMETER),
        ([[[[[[[]]]]]]], Status.BAD_PARAMETER),
        ([[*CARD[:2], 2, 3], FACTOR], Status.ALGORITHM_NOT_SUPPORTED),
        ([[*CARD[:2], 3, 1], FACTOR], Status.ALGORITHM_NOT_SUPPORTED),
        ([CARD, bytes(5)], Status.BAD_PARAMETER),
        ([[*CARD[:2], 1, 3], FACTOR], Status.OK),
    ]
    answer = keyd.say(terminal, "card.pin_unblock_batch", [params for params, _ in items])
    answered = items_of(answer)
    assert [status for status, _ in answered] == [status for _, status in items]
    alone = keyd.ok(terminal, "card.pin_unblock", CARD, FACTOR)
    assert answered[0][1] == answered[2][1] == alone
    assert answered[12][1] == keyd.ok(terminal, "card.pin_unblock", [*CARD[:2], 1, 3], FACTOR)
    for status in set(Status):
        expected = sum(status is item for _, item in items)
        assert keyd.counted("card.pin_unblock_batch", status) == expected


@every_batch
@on_both
def test_an_item_of_a_batch_is_answered_as_it_would_be_alone(keyd: Keyd, row: Command) -> None:
    terminal, params = keyd.terminal(), well_formed(row)
    alone = keyd.say(terminal, row.method, *params)
    answer = keyd.say(terminal, f"{row.method}_batch", [params] * 3)
    for status, result in items_of(answer):
        assert status is status_of(alone)
        assert result == alone.result


@every_batch
def test_a_batch_of_nobody_is_refused_item_by_item(keyd: Keyd, row: Command) -> None:
    answer = keyd.say(keyd.session(), f"{row.method}_batch", [well_formed(row)] * 2)
    assert [status for status, _result in items_of(answer)] == [Status.NOT_AUTHENTICATED] * 2


@on_both
def test_a_batch_has_one_to_256_items(keyd: Keyd) -> None:
    terminal, item = keyd.terminal(), [CARD, FACTOR]
    for size in (1, MAX_BATCH):
        answer = keyd.say(terminal, "card.pin_unblock_batch", [item] * size)
        assert [status for status, _result in items_of(answer)] == [Status.OK] * size
    for size in (0, MAX_BATCH + 1):
        status = keyd.status(terminal, "card.pin_unblock_batch", [item] * size)
        assert status is Status.BAD_PARAMETER


@pytest.mark.parametrize(
    "params",
    [
        *([], [None], ["x"], [b"x"], [5], [{}], [{"0": [CARD, FACTOR]}]),
        *([[[CARD, FACTOR]], []], [[[CARD, FACTOR]], None], [CARD, FACTOR]),
    ],
    ids=str,
)
def test_what_is_no_batch_is_refused_as_a_whole(keyd: Keyd, params: list[Any]) -> None:
    answer = keyd.say(keyd.terminal(), "card.pin_unblock_batch", *params)
    if params == [CARD, FACTOR]:
        assert status_of(answer) is Status.BAD_PARAMETER
    assert answer.refusal is not None
    assert answer.refusal.status is Status.BAD_PARAMETER


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    # Parts of good requests, so that some of it goes far.
    | st.binary(max_size=20)
    | st.sampled_from([CARD, FACTOR, PIN, PURCHASE, LOAD, BAS, 0x0173, 0x004C]),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([*TABLE, *BATCHES, "no.such"]),
    params=st.lists(junk, max_size=9),
    is_numbered=st.booleans(),
)
@on_both
def test_no_parameters_make_a_bug(
    keyd: Keyd, log: list[Any], method: str, params: list[Any], is_numbered: bool
) -> None:
    session = keyd.terminal()
    msgid = 7 if is_numbered else None
    (answer,) = keyd.tick((session, Ask(msgid, method, params)))
    if not isinstance(answer, Slow):
        assert heard(answer).msgid == msgid
        assert b"INTERNAL" not in answer
    assert not [line for line in log if line["log_level"] == "error"]


# --- order


@on_both
def test_answers_stand_where_their_asks_stood(keyd: Keyd) -> None:
    one, two, nobody = keyd.terminal(), keyd.terminal(), keyd.session()
    asks = [
        (one, Ask(1, "card.pin_unblock", [CARD, FACTOR]), Status.OK),
        (nobody, Ask(1, "card.pin_unblock", [CARD, FACTOR]), Status.NOT_AUTHENTICATED),
        (two, Ask(2**32 - 1, "daemon.random", [4]), Status.OK),
        (one, Ask(0, "no.such", []), Status.METHOD_UNKNOWN),
        (two, Ask(3, "card.pin_unblock_batch", [[[CARD, FACTOR]]]), Status.OK),
        (one, Ask(1, "card.pin_reload", [CARD, FACTOR, "12"]), Status.BAD_PARAMETER),
        (two, Ask(4, "card.internal_cryptogram", [CARD, FACTOR, CHALLENGE]), Status.OK),
        (nobody, Ask(None, "terminal.challenge", [CODE, bytes(16)]), Status.MALFORMED),
    ]
    answers = [heard(cast("bytes", a)) for a in keyd.tick(*((s, ask) for s, ask, _ in asks))]
    assert [answer.msgid for answer in answers] == [ask.msgid for _, ask, _ in asks]
    assert [status_of(answer) for answer in answers] == [status for _, _, status in asks]


def test_a_tick_without_asks_is_none(keyd: Keyd) -> None:
    assert keyd.tick() == []


class Recording:
    """A Sam that notes how much it is asked for at once."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam
        self.batches: list[int] = []

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        self.batches.append(len(tasks))
        return self._sam.compute(tasks)

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        return self._sam.prove(tasks)


def test_a_tick_is_one_batch_to_the_sam(keyd: Keyd) -> None:
    recording = keyd.services.sam = Recording(keyd.ring)
    one, two = keyd.terminal(), keyd.terminal()
    keyd.tick(
        (one, Ask(1, "card.pin_unblock", [CARD, FACTOR])),
        (two, Ask(1, "card.mutual_cryptograms", [CARD, FACTOR, CHALLENGE, FACTOR, CHALLENGE])),
        (two, Ask(2, "daemon.random", [1])),
        (one, Ask(2, "card.pin_unblock_batch", [[[CARD, FACTOR]] * 10])),
    )
    assert recording.batches == [13]


# --- bugs

# In no answer, and where it is a secret in no log either.
CANARY: Final = "CANARY-OF-THE-BUG"


class Raising:
    """A Sam with a bug: one task makes it raise."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        for task in tasks:
            if isinstance(task, ProtectTask) and task.header == b"\x04\xdc\0\0":
                raise RuntimeError(CANARY)
        return self._sam.compute(tasks)

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        return self._sam.prove(tasks)


GOOD: Final = [CARD, 0x0173, FACTOR, b"\x04\xd6\0\0", b"data"]
POISON: Final = [CARD, 0x0173, FACTOR, b"\x04\xdc\0\0", b"data"]


@on_both
def test_a_bug_in_the_sam_costs_the_ask_that_met_it_and_no_other(
    keyd: Keyd, log: list[Any]
) -> None:
    keyd.put_before_keys(Raising)
    one, two = keyd.terminal(), keyd.terminal()
    answers = keyd.tick(
        (one, Ask(1, "card.secure_message", GOOD)),
        (two, Ask(2, "card.secure_message", POISON)),
        (two, Ask(3, "card.secure_message", GOOD)),
        (one, Ask(4, "daemon.random", [1])),
        (one, Ask(5, "card.secure_message_batch", [[GOOD, POISON, GOOD]])),
        (one, Ask(6, "no.such", [])),
    )
    said = [heard(cast("bytes", answer)) for answer in answers]
    assert [status_of(answer) for answer in said] == [
        *(Status.OK, Status.INTERNAL, Status.OK, Status.OK, Status.OK, Status.METHOD_UNKNOWN),
    ]
    assert [status for status, _ in items_of(said[4])] == [Status.OK, Status.INTERNAL, Status.OK]
    # The log has the whole of it, the wire nothing.
    bugs = [line for line in log if line["log_level"] == "error"]
    assert bugs
    assert all(CANARY in str(line["exc_info"]) for line in bugs)
    assert CANARY.encode() not in b"".join(cast("list[bytes]", answers))
    assert b"RuntimeError" not in b"".join(cast("list[bytes]", answers))
    assert keyd.counted("card.secure_message", Status.INTERNAL) == 1
    # And the next tick is as any other.
    assert keyd.status(one, "card.secure_message", *GOOD) is Status.OK


class Short:
    """A Sam with another bug: it loses the last result."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        return self._sam.compute(tasks)[:-1]

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        return self._sam.prove(tasks)


@on_both
def test_a_sam_that_loses_a_result_is_a_bug_and_no_wrong_answer(keyd: Keyd) -> None:
    keyd.put_before_keys(Short)
    terminal = keyd.terminal()
    right = keyd.ring.compute(
        [CryptogramTask(a_card(keyd).key(0x0170, Use.INTERNAL), FACTOR, CHALLENGE)]
    )[0]
    answers = keyd.tick(
        (terminal, Ask(1, "card.internal_cryptogram", [CARD, FACTOR, CHALLENGE])),
        (terminal, Ask(2, "card.internal_cryptogram", [CARD, FACTOR, CHALLENGE])),
    )
    said = [heard(cast("bytes", answer)) for answer in answers]
    assert {status_of(answer) for answer in said} <= {Status.OK, Status.INTERNAL}
    assert status_of(said[1]) is Status.INTERNAL
    assert all(a.result[0][:8] == right for a in said if status_of(a) is Status.OK)


@on_both
def test_a_bug_in_a_handler_costs_one_answer(keyd: Keyd, log: list[Any]) -> None:
    terminal = keyd.terminal()

    def broken(size: int) -> bytes:
        raise OSError(CANARY, size)

    keyd.services.random_bytes = broken
    answers = keyd.tick(
        (terminal, Ask(1, "daemon.random", [8])),
        (terminal, Ask(2, "card.pin_unblock", [CARD, FACTOR])),
    )
    first, second = (heard(cast("bytes", answer)) for answer in answers)
    assert status_of(first) is Status.INTERNAL
    assert status_of(second) is Status.OK
    assert first.refusal is not None
    assert CANARY not in first.refusal.detail
    bug, refusal = log
    assert bug["event"] == "handler_failed"
    assert bug["method"] == "daemon.random"
    assert CANARY in str(bug["exc_info"])
    assert refusal["status"] == "INTERNAL"
    assert CANARY not in repr(refusal)


async def test_a_bug_outside_the_tick_costs_one_answer(keyd: Keyd, log: list[Any]) -> None:
    def broken() -> Sequence[SelftestResult]:
        raise RuntimeError(CANARY)

    keyd.services.run_selftest = broken
    (slow,) = keyd.tick((keyd.terminal(), Ask(9, "daemon.selftest", [])))
    assert isinstance(slow, Slow)
    octets = await keyd.slow(slow)
    assert heard(octets).msgid == 9
    assert status_of(heard(octets)) is Status.INTERNAL
    assert CANARY.encode() not in octets
    assert CANARY in str(log[0]["exc_info"])
    assert keyd.counted("daemon.selftest", Status.INTERNAL) == 1


@on_both
def test_a_bugs_log_line_has_a_traceback_and_no_variables(
    keyd: Keyd, capsys: pytest.CaptureFixture[str]
) -> None:
    keyd.put_before_keys(Raising)
    terminal = keyd.terminal()
    params = [CARD, 0x0173, FACTOR, b"\x04\xdc\0\0", b"a secret thing"]
    configure_logging("info")
    try:
        keyd.tick((terminal, Ask(1, "card.secure_message", params)))
    finally:
        structlog.reset_defaults()
    lines = capsys.readouterr().err
    said = json.loads(lines.splitlines()[0])
    assert next(iter(said)) == "event"
    assert said["level"] == "error"
    assert said["exception"][0]["exc_type"] == "RuntimeError"
    assert any(
        frame["filename"].endswith(("/tick.py", "/late.py"))
        for frame in said["exception"][0]["frames"]
    )
    assert "secret" not in lines
    assert b"secret".hex() not in lines


# --- the self-test


@on_both
def test_after_a_failed_selftest_only_the_operators_commands_answer(keyd: Keyd) -> None:
    terminal = keyd.terminal()
    keyd.services.has_failed_selftest = True
    for row in TABLE.values():
        (answer,) = keyd.tick((terminal, Ask(1, row.method, well_formed(row))))
        if isinstance(answer, Slow):
            assert row.role in {Role.OPERATOR, Role.ANYONE}
            continue
        if row.role in OF_TERMINALS:
            assert status_of(heard(answer)) is Status.SELFTEST_FAILED
        else:
            assert status_of(heard(answer)) is not Status.SELFTEST_FAILED
        if row.role is Role.ANYONE:
            # Proving oneself changes whose the connection is.
            keyd.services.has_failed_selftest = False
            terminal = keyd.terminal()
            keyd.services.has_failed_selftest = True
    # Who is nobody learns no more than before.
    assert keyd.status(keyd.session(), "daemon.random", 1) is Status.NOT_AUTHENTICATED


async def test_what_computed_wrongly_once_is_not_asked_again(keyd: Keyd) -> None:
    terminal = keyd.terminal()
    for passes in (True, False, True):
        keyd.selftest_passes = passes
        (slow,) = keyd.tick((terminal, Ask(1, "daemon.selftest", [])))
        assert isinstance(slow, Slow)
        answer = heard(await keyd.slow(slow))
        assert answer.result == [[["sm4", passes, ""]]]
        gauge = keyd.meter.registry.get_sample_value("keyd_selftest_passed", {"test": "sm4"})
        assert gauge == float(passes)
        refused = keyd.status(terminal, "daemon.random", 1)
        keyd.selftest_passes = True
    assert refused is Status.SELFTEST_FAILED


# --- the log


@on_both
def test_a_refusal_is_one_line_that_says_who_what_and_why(keyd: Keyd, log: list[Any]) -> None:
    terminal = keyd.terminal()
    keyd.status(terminal, "card.pin_reload", BAD_CARD, FACTOR, PIN)
    (line,) = log
    assert line["event"] == "refused"
    assert line["method"] == "card.pin_reload"
    assert line["status"] == "CARD_DATA_INCONSISTENT"
    assert line["terminal"] == CODE
    assert line["connection"] == terminal.number
    assert line["card.card_id"] == "510100…"
    text = repr(line)
    for secret in (PIN, FACTOR.hex(), repr(FACTOR)[2:-1], CARD[0].hex()[8:], CARD[1].hex()[8:]):
        assert secret.lower() not in text.lower()


@on_both
def test_no_log_line_has_a_pin_that_a_string_carried(keyd: Keyd, log: list[Any]) -> None:
    terminal = keyd.terminal()
    for header, pin in (("8424000114", f"{PIN}X"), ("842400010C", PIN), ("8424000114", PIN * 4)):
        text = f"03|0173|0102030405060708|{header}|{pin}|"
        answer = keyd.say(terminal, "library.reload_pin_2", CARD, text)
        assert status_of(answer) is Status.BAD_PARAMETER
        assert PIN not in repr(answer)
    assert keyd.status(terminal, "card.pin_reload", CARD, FACTOR, f"{PIN}X")
    assert len(log) == 4
    assert PIN not in repr(log)


@on_both
def test_an_answer_is_not_logged_unless_sampled(keyd: Keyd, log: list[Any]) -> None:
    keyd.ok(keyd.terminal(), "card.pin_unblock", CARD, FACTOR)
    assert log == []


def test_a_sample_says_no_more_than_the_schema_lets_it(log: list[Any]) -> None:
    keyd = Keyd(sample_every=1)
    keyd.ok(keyd.terminal(), "card.pin_reload", CARD, FACTOR, PIN)
    line = log[-1]
    assert line["event"] == "answered"
    assert line["method"] == "card.pin_reload"
    assert PIN not in repr(log)
    assert FACTOR.hex() not in repr(log).lower()


async def test_what_is_not_yet_answered_is_not_said_to_be(log: list[Any]) -> None:
    keyd = Keyd(sample_every=1)
    terminal = keyd.terminal()
    log.clear()
    (slow,) = keyd.tick((terminal, Ask(1, "daemon.selftest", [])))
    assert isinstance(slow, Slow)
    assert log == []
    await keyd.slow(slow)


@on_both
def test_a_flood_of_refusals_is_no_flood_of_lines(keyd: Keyd, log: list[Any]) -> None:
    nobody = keyd.session()
    for _ in range(3):
        keyd.say(nobody, "card.pin_unblock_batch", [[]] * MAX_BATCH)
    assert len(log) == MAX_PEER_LINES_PER_SECOND
    keyd.now += 1
    keyd.status(nobody, "daemon.random", 1)
    left_out, line = log[MAX_PEER_LINES_PER_SECOND:]
    assert left_out["event"] == "lines_left_out"
    assert left_out["count"] == 3 * MAX_BATCH - MAX_PEER_LINES_PER_SECOND
    assert line["event"] == "refused"
    # The metrics left none out.
    counted = keyd.counted("card.pin_unblock_batch", Status.NOT_AUTHENTICATED)
    assert counted == 3 * MAX_BATCH


@on_both
def test_the_totals_are_what_status_shows(keyd: Keyd) -> None:
    terminal = keyd.terminal()
    keyd.status(terminal, "no.such")
    keyd.say(terminal, "card.pin_unblock_batch", [[CARD, FACTOR], None])
    counters = keyd.ok(terminal, "daemon.status")[7]
    assert counters["requests"] == 2 + 1 + 2
    assert counters["refusals"] == 2


# --- the short cut


class Learning:
    """A short cut that only takes notes."""

    until = math.inf

    def __init__(self) -> None:
        self.learnt: list[str] = []

    def learn(self, request: Any, _passed: Any) -> None:
        self.learnt.append(type(request).__name__)

    def forget(self) -> None:
        self.learnt.append("forgot")


async def test_a_short_cut_learns_good_answers_only_and_forgets_when_a_selftest_fails(
    keyd: Keyd,
) -> None:
    terminal, nobody = keyd.terminal(), keyd.session()
    keyd.dispatch.short_cut = noted = Learning()
    keyd.ok(terminal, "daemon.random", 8)
    keyd.say(nobody, "daemon.random", 8)
    keyd.say(terminal, "daemon.random", 0)
    keyd.say(terminal, "card.internal_cryptogram", b"junk")
    assert noted.learnt == ["AskRandom"]
    keyd.services.has_failed_selftest = True
    (slow,) = keyd.tick((terminal, Ask(1, "daemon.selftest", [])))
    assert isinstance(slow, Slow)
    await keyd.slow(slow)
    assert noted.learnt == ["AskRandom", "forgot"]
