"""Dispatch and the pump record what they answer, and answer nothing that they could not record.

The journal is a real one in a folder of the test. One that is closed cannot be written, as if its disk were full.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec
import pytest

from keyd.audit.journal import Journal
from keyd.audit.query import EventRecord, query
from keyd.audit.records import KINDS
from keyd.crypto.algorithms import CardAlgorithm
from keyd.dispatch import Decided, Dispatch, Slow
from keyd.errors import AuditUnavailable, Status, TooManyInFlight
from keyd.hub.held import HeldAnswers
from keyd.hub.peer import Peer
from keyd.keys.block import Use
from keyd.keys.roots import synthetic_identity_key, synthetic_signer
from keyd.keys.sam import purpose
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import BATCHES, TABLE
from keyd.protocol.connection import Ask, answer_bytes
from keyd.protocol.messages.card import InternalCryptogram
from keyd.protocol.messages.daemon import AskRandom
from keyd.protocol.proof import NO_BINDING, signed_by_terminal
from keyd.pump import METHODS
from keyd.pump._pump import Pump
from keyd.recorder import Recorder
from keyd.registry.synthetic import development_terminals, synthetic_terminal
from keyd.routes import Routes
from keyd.telemetry import Events, Meter
from keyd.terminals import KnownTerminal, Session
from keyd.uses import Numbers
from tests.daemon.journals import named_uses
from tests.proofs import terminal_proof
from tests.pump.conftest import (
    CHALLENGE,
    FACTOR,
    INTERNAL_CRYPTOGRAM,
    Stand,
    cold,
    forged,
    hot,
    identity,
    label,
    make_services,
    messages,
    ring,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

UNAVAILABLE: Final = int(Status.AUDIT_UNAVAILABLE)
CODE: Final = "DEV-0001"


@pytest.mark.parametrize(
    ("card_ids", "kept"),
    [("whole", slice(0, 16)), ("masked", slice(0, 3)), ("none", slice(0, 0))],
)
def test_what_is_recorded_of_a_card(tmp_path: Path, card_ids: str, kept: slice) -> None:
    """The first three bytes are its region; the rest tells one holder from another."""
    params = [identity(), FACTOR, CHALLENGE]
    ask = msgspec.convert(params, InternalCryptogram, builtin_types=(bytes,))
    with closing(Journal(tmp_path, "keyd", clock_ns=time.time_ns)) as journal:
        numbers = Numbers(journal, ring(), card_ids)
    assert numbers.card_id(ask) == ask.card.card_id[kept].ljust(16, b"\0")
    assert numbers.card_id(AskRandom(8)) == bytes(16)
    assert numbers.card_id(None) == bytes(16)


class Keyd:
    """A dispatch that records, and what it records into."""

    def __init__(self, folder: Path, *, waits_for_disk: bool = False) -> None:
        self.folder = folder
        self.journal = Journal(folder, "keyd", clock_ns=time.time_ns)
        self.meter = Meter()
        events = Events(time.monotonic)
        self.recorder = Recorder(
            self.journal,
            Numbers(self.journal, ring(), "masked"),
            self.meter,
            events,
            waits_for_disk=waits_for_disk,
            wait_seconds=1.0,
        )
        self.services = make_services()
        self.dispatch = Dispatch(self.services, self.meter, events, self.recorder)
        self.session = Session(7)
        self.session.enter(KnownTerminal(synthetic_terminal(CODE)))

    def run(self, *requests: tuple[Session, str, list[Any]]) -> Decided:
        return self.dispatch.run(
            [
                (session, Ask(at, method, params))
                for at, (session, method, params) in enumerate(requests)
            ]
        )

    def statuses(self, decided: Decided) -> list[int]:
        return [status_of(answer) for answer in decided.answers if isinstance(answer, bytes)]


def status_of(answer: bytes) -> int:
    error = msgpack.unpackb(answer)[2]
    return int(error[0]) if error else 0


@pytest.fixture
def keyd(tmp_path: Path) -> Iterator[Keyd]:
    made = Keyd(tmp_path)
    yield made
    made.journal.close()


def authentication(keyd: Keyd, session: Session) -> list[Any]:
    (answer,) = keyd.run((session, "terminal.challenge", [CODE, bytes(16)])).answers
    assert isinstance(answer, bytes)
    theirs = msgpack.unpackb(answer)[3][0]
    return [terminal_proof(synthetic_terminal_key(CODE), bytes(16), theirs)]


GOOD: Final = [identity(), FACTOR, CHALLENGE]


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.method)
def test_every_audited_command_leaves_a_record_and_no_other_does(keyd: Keyd, row: Any) -> None:
    (answer,) = keyd.run((keyd.session, row.method, ["no such parameter"] * 20)).answers
    assert isinstance(answer, bytes)
    uses = named_uses(keyd.folder)
    assert [(use.method, use.status) for use in uses] == (
        [(row.method, status_of(answer))] if row.audited else []
    )


@pytest.mark.parametrize("method", BATCHES)
def test_every_item_of_a_batch_leaves_a_record(keyd: Keyd, method: str) -> None:
    keyd.run((keyd.session, method, [[[], [1], ["x"]]]))
    uses = named_uses(keyd.folder)
    assert [(use.method, use.status) for use in uses] == [(BATCHES[method].method, 102)] * 3


def test_a_tick_is_one_frame(keyd: Keyd) -> None:
    other = Session(8)
    keyd.run(
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD),
        (other, INTERNAL_CRYPTOGRAM, GOOD),
        (other, "daemon.status", []),
        (keyd.session, INTERNAL_CRYPTOGRAM + "_batch", [[GOOD, GOOD]]),
    )
    uses = named_uses(keyd.folder)
    assert [(use.status, use.connection, use.terminal, use.key) for use in uses] == [
        (0, 7, CODE, label()),
        (200, 8, None, None),
        (0, 7, CODE, label()),
        (0, 7, CODE, label()),
    ]
    assert keyd.meter.journal_frames.value == 1
    assert keyd.meter.journal_records.value == 4


def test_whoever_asked_is_recorded_though_somebody_else_is_there_at_the_end(keyd: Keyd) -> None:
    proof = authentication(keyd, keyd.session)
    keyd.run(
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD),
        (keyd.session, "terminal.authenticate", [bytes(8)]),
        (keyd.session, "terminal.authenticate", proof),
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD),
    )
    assert [(use.terminal, use.status) for use in named_uses(keyd.folder)] == [
        (CODE, 0),
        (None, 201),
        (None, 202),
        (None, 200),
    ]


def signature(keyd: Keyd, session: Session) -> list[Any]:
    """Return the params of a right signature."""
    keyd.services.terminals.load(development_terminals([CODE]))
    keyd.services.sign = synthetic_identity_key().sign
    (answer,) = keyd.run((session, "terminal.challenge", [CODE, bytes(16)])).answers
    assert isinstance(answer, bytes)
    ours, now = msgpack.unpackb(answer)[3][0], int(time.time())
    message = signed_by_terminal(CODE, bytes(16), ours, NO_BINDING, now)
    return [synthetic_signer(CODE).sign(message), now]


async def test_who_has_signed_is_recorded_as_who_did(keyd: Keyd) -> None:
    session = Session(9)
    for params, expected in (
        (signature(keyd, session), (CODE, 0)),
        ([bytes(64), int(time.time())], (None, 202)),
    ):
        (slow,) = keyd.run((session, "terminal.authenticate_signature", params)).answers
        assert isinstance(slow, Slow)
        await keyd.dispatch.run_slow(slow)
        if expected[1]:
            # Who asked, at that time, was the terminal.
            expected = (CODE, 202)
        use = named_uses(keyd.folder)[-1]
        assert (use.terminal, use.status) == expected
    assert session.terminal is None


async def test_whose_signature_cannot_be_recorded_is_nobody(keyd: Keyd) -> None:
    session = Session(9)
    params = signature(keyd, session)
    (slow,) = keyd.run((session, "terminal.authenticate_signature", params)).answers
    assert isinstance(slow, Slow)
    keyd.journal.close()
    decided = await keyd.dispatch.run_slow(slow)
    assert keyd.statuses(decided) == [UNAVAILABLE]
    assert session.terminal is None


def test_the_journal_is_told_why_in_the_frame_of_the_refusal(keyd: Keyd) -> None:
    keyd.run(
        (keyd.session, "terminal.challenge", ["NOBODY", bytes(16)]),
        (keyd.session, "terminal.authenticate", [bytes(8)]),
    )
    events = [record for record in query(keyd.folder) if isinstance(record, EventRecord)]
    assert [(event.name, event.fields["reason"]) for event in events[-1:]] == [
        ("terminal.refused", "unknown")
    ]
    assert not keyd.services.terminals.take_notes(1e9)


def test_a_key_is_named_in_one_place(keyd: Keyd) -> None:
    use = purpose(Use.INTERNAL)
    header = ring().header_of(0x0170, CardAlgorithm.SM4, use)
    assert header is not None
    number = keyd.recorder.numbers.key(0x0170, CardAlgorithm.SM4, use)
    assert number == keyd.journal.number_of("key", header.label)
    assert keyd.recorder.numbers.key(0xFFFF, CardAlgorithm.SM4, use) == 0


def test_what_cannot_be_recorded_is_not_answered(keyd: Keyd) -> None:
    newcomer = Session(8)
    proof = authentication(keyd, newcomer)
    learnt = []

    class Learning:
        until = math.inf

        def learn(self, request: object, _passed: object) -> None:
            learnt.append(request)

        def forget(self) -> None: ...

    keyd.dispatch.short_cut = Learning()
    keyd.journal.close()
    assert keyd.recorder.unavailable_because is None, "it is not known yet"
    decided = keyd.run(
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD),
        (keyd.session, "daemon.random", [8]),
        (newcomer, "terminal.authenticate", proof),
        (keyd.session, INTERNAL_CRYPTOGRAM + "_batch", [[GOOD, []]]),
        (keyd.session, "card.no_such", []),
    )
    assert keyd.statuses(decided) == [UNAVAILABLE, 0, UNAVAILABLE, 0, 101]
    batch = msgpack.unpackb(decided.answers[3])[3]
    assert [(error[0], result) for error, result in batch] == [(UNAVAILABLE, None)] * 2
    assert newcomer.terminal is None
    assert [type(request).__name__ for request in learnt] == ["AskRandom"]
    assert keyd.recorder.unavailable_because == "the journal is closed"


def test_no_key_is_used_while_nothing_can_be_recorded(keyd: Keyd) -> None:
    computed: list[Any] = []
    sam = keyd.services.sam

    class Watched:
        def compute(self, tasks: Any) -> Any:
            computed.extend(tasks)
            return sam.compute(tasks)

        def prove(self, tasks: Any) -> Any:
            return sam.prove(tasks)

    keyd.services.sam = Watched()
    keyd.recorder.unavailable_because = "the disk is full"
    decided = keyd.run(
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD), (Session(8), INTERNAL_CRYPTOGRAM, GOOD)
    )
    assert keyd.statuses(decided) == [UNAVAILABLE] * 2
    assert computed == []
    keyd.recorder.unavailable_because = None
    assert keyd.statuses(keyd.run((keyd.session, INTERNAL_CRYPTOGRAM, GOOD))) == [0]
    assert len(computed) == 1


def test_whom_the_journal_has_no_number_for_is_refused_and_nobody(keyd: Keyd) -> None:
    """The numbers of a kind can be used up. Then it is a journal that cannot be written, for those who need another."""
    known, newcomer = Session(8), Session(9)
    known.enter(KnownTerminal(synthetic_terminal("T-0002")))
    assert keyd.statuses(keyd.run((known, INTERNAL_CRYPTOGRAM, GOOD))) == [0]
    use_up(keyd, "terminal")
    proof = authentication(keyd, newcomer)
    decided = keyd.run(
        (newcomer, "terminal.authenticate", proof),
        # What leaves the tick would be recorded later, and as nobody's.
        (newcomer, "daemon.selftest", []),
    )
    assert keyd.statuses(decided) == [UNAVAILABLE] * 2
    assert newcomer.terminal is None
    assert keyd.statuses(keyd.run((keyd.session, INTERNAL_CRYPTOGRAM, GOOD))) == [UNAVAILABLE]
    assert keyd.statuses(keyd.run((known, INTERNAL_CRYPTOGRAM, GOOD))) == [0]
    assert [use.terminal for use in named_uses(keyd.folder) if use.key] == ["T-0002"] * 2


async def test_whose_signature_finds_no_number_left_is_nobody(keyd: Keyd) -> None:
    session = Session(9)
    params = signature(keyd, session)
    use_up(keyd, "terminal")
    (slow,) = keyd.run((session, "terminal.authenticate_signature", params)).answers
    assert isinstance(slow, Slow)
    assert keyd.statuses(await keyd.dispatch.run_slow(slow)) == [UNAVAILABLE]
    assert session.terminal is None


def test_a_key_without_a_number_answers_nothing(keyd: Keyd) -> None:
    use_up(keyd, "key")
    for _ in range(2):
        decided = keyd.run(
            (keyd.session, INTERNAL_CRYPTOGRAM, GOOD), (keyd.session, "daemon.random", [8])
        )
        assert keyd.statuses(decided) == [UNAVAILABLE, 0]
    assert named_uses(keyd.folder) == []
    assert keyd.statuses(keyd.run((Session(8), INTERNAL_CRYPTOGRAM, GOOD))) == [200]


def use_up(keyd: Keyd, kind: str) -> None:
    """Let the journal have given the last number of a kind."""
    keyd.journal._names._last_numbers[kind] = KINDS[kind]


async def test_slow_work_is_recorded_before_its_answer(keyd: Keyd) -> None:
    (slow,) = keyd.run((keyd.session, "daemon.selftest", [])).answers
    assert isinstance(slow, Slow)
    assert named_uses(keyd.folder) == []
    assert keyd.statuses(keyd.dispatch.refuse_slow(slow, TooManyInFlight())) == [103]
    assert keyd.statuses(await keyd.dispatch.run_slow(slow)) == [0]
    assert [(use.status, use.terminal) for use in named_uses(keyd.folder)] == [
        (103, CODE),
        (0, CODE),
    ]
    keyd.journal.close()
    assert keyd.statuses(await keyd.dispatch.run_slow(slow)) == [UNAVAILABLE]
    assert keyd.statuses(keyd.dispatch.refuse_slow(slow, TooManyInFlight())) == [UNAVAILABLE]


def test_with_fsync_only_what_was_recorded_waits(tmp_path: Path) -> None:
    keyd = Keyd(tmp_path, waits_for_disk=True)
    decided = keyd.run(
        (keyd.session, "daemon.random", [8]),
        (keyd.session, INTERNAL_CRYPTOGRAM, GOOD),
        (keyd.session, "daemon.status", []),
    )
    assert decided.position == keyd.journal.position
    assert decided.free == {0, 2}
    assert keyd.run((keyd.session, "daemon.random", [8])).position == 0
    keyd.journal.close()


# The pump -------------------------------------------------------------------------------------------------


class RecordingStand(Stand):
    """A pump whose uses go to the test, which says what becomes of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[bytes] = []
        self.position = 0
        self.pump.record(self._append, (1, 2, 3), 3)

    def _append(self, uses: bytes) -> int:
        self.uses.append(uses)
        if self.position < 0:
            raise AuditUnavailable
        return self.position


@pytest.fixture
def stand() -> Iterator[RecordingStand]:
    made = RecordingStand()
    made.teach(*(hot(method) for method in METHODS))
    yield made
    made.close()


def line_of(stand: RecordingStand) -> tuple[socket.socket, socket.socket]:
    theirs, ours = stand.open(is_admitted=False)
    stand.pump.admit(ours.fileno(), 0xC1C2C3C4, 0xD1D2D3D4)
    return theirs, ours


MIXED: Final = (hot(INTERNAL_CRYPTOGRAM, 1), forged(2), hot(INTERNAL_CRYPTOGRAM, 3), cold(4))


def test_the_pump_records_good_answers_and_then_sends_them(stand: RecordingStand) -> None:
    theirs, _ours = line_of(stand)
    theirs.sendall(b"".join(MIXED))
    rests, count = stand.tick()
    assert count == 2
    use = bytes.fromhex("0002 0000 C1C2C3C4 D1D2D3D4 00000000 510100") + bytes(13)
    assert stand.uses == [use * 2]
    assert len(messages(theirs.recv(4096))) == 2
    assert [rest[3] for rest in rests] == [MIXED[1] + MIXED[3]]
    assert stand.pump.held == []


def test_the_pump_gives_out_nothing_that_could_not_be_recorded(stand: RecordingStand) -> None:
    lines = [line_of(stand) for _ in range(70)]  # more than one part
    stand.position = -1
    for theirs, _ours in lines:
        theirs.sendall(b"".join(MIXED))
    rests, count = stand.tick()
    assert count == 0
    assert len(stand.uses) == 1, "the second part was computed though nothing could be recorded"
    assert {rest[0]: rest[3] for rest in rests} == {
        ours.fileno(): b"".join(MIXED) for _theirs, ours in lines
    }
    for theirs, _ours in lines:
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    assert stand.pump.last_request[1] == b""


def test_the_pump_touches_no_key_when_it_is_told(stand: RecordingStand) -> None:
    theirs, _ours = line_of(stand)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    rests, counts = stand.pump.tick(hands_up=True)
    assert (stand.uses, sum(counts), rests[0][3]) == ([], 0, hot(INTERNAL_CRYPTOGRAM))


def test_held_answers_are_handed_over_in_place_of_being_sent(stand: RecordingStand) -> None:
    theirs, ours = line_of(stand)
    stand.position = 42
    theirs.sendall(b"".join(MIXED))
    rests, count = stand.tick()
    assert count == 2
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    ((fd, answers, position, held),) = stand.pump.held
    assert (fd, position, held) == (ours.fileno(), 42, 2)
    assert [msgpack.unpackb(answer)[1] for answer in messages(answers)] == [1, 3]
    assert rests == [(ours.fileno(), 0, False, MIXED[1] + MIXED[3], b"")]
    # The next tick holds its own only.
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM, 5))
    assert stand.tick() == ([], 1)
    assert [held[3] for held in stand.pump.held] == [1]


def test_a_route_brings_the_key_s_number(tmp_path: Path) -> None:
    keyd = Keyd(tmp_path)
    stand = RecordingStand()
    routes = Routes(stand.pump, ring(), stand.services, keyd.recorder.numbers)
    stand.python(hot(INTERNAL_CRYPTOGRAM), routes)
    theirs, _ours = line_of(stand)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    stand.tick()
    number = keyd.journal.number_of("key", label())
    assert stand.uses[0][12:16] == number.to_bytes(4, "big")
    stand.close()
    keyd.journal.close()


def test_a_pump_without_a_journal_asks_nobody() -> None:
    assert isinstance(Pump(0), Pump)
    stand = Stand()
    stand.teach(hot(INTERNAL_CRYPTOGRAM))
    theirs, _ours = stand.open()
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    assert stand.tick() == ([], 1)
    assert stand.pump.held == []
    stand.close()


# What is held ---------------------------------------------------------------------------------------------


def test_held_answers_keep_their_order_and_leave_with_their_position() -> None:
    held = HeldAnswers(Meter(), time.monotonic)
    with closing(Stand()) as stand:
        one, two = (Peer(stand.open()[1], Session(number)) for number in (1, 2))
        held.hold(one, b"a", 10, 1, 0.0)
        held.hold(two, b"b", 10, 1, 0.0)
        held.hold(one, b"c", 0, 1, 0.0)
        held.hold(one, b"d", 20, 1, 0.0)
        assert (one.held_bytes, two.held_bytes) == (3, 1)
        assert held.release(9) == []
        assert held.release(10) == [one, two]
        assert (bytes(one.out), bytes(two.out)) == (b"ac", b"b")
        assert (one.held, one.held_bytes, two.held) == (1, 1, 0)
        assert held.release(20) == [one]
        assert bytes(one.out) == b"acd"
        assert one.held == one.held_bytes == 0


def test_only_answers_with_a_record_are_taken_back() -> None:
    meter = Meter()
    held = HeldAnswers(meter, time.monotonic)
    with closing(Stand()) as stand:
        peer = Peer(stand.open()[1], Session(1))
        gone = Peer(stand.open()[1], Session(2))
        gone.is_open = False
        held.hold(
            peer, answer_bytes(5, [b"secret"]) + answer_bytes(0xFFFF_FFFF, {1: b"s"}), 10, 2, 0.0
        )
        held.hold(gone, answer_bytes(6, None), 10, 1, 0.0)
        held.hold(peer, answer_bytes(7, "free"), 0, 1, 0.0)
        assert held.take_back() == [peer]
        answers = [msgpack.unpackb(answer) for answer in messages(bytes(peer.out))]
        assert [(msgid, error and error[0], result) for _, msgid, error, result in answers] == [
            (5, UNAVAILABLE, None),
            (0xFFFF_FFFF, UNAVAILABLE, None),
            (7, None, "free"),
        ]
        assert (peer.held, gone.held, bytes(gone.out)) == (0, 0, b"")
        assert meter.answers_held == 0
