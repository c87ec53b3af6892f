"""Only a terminal that is registered, active, here, now, and holds its key becomes one: on its own connection, once
per challenge and in time. Whoever is refused cannot tell why.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.crypto.sm3 import sm3
from keyd.errors import ChallengeExpired, QuotaExceeded, Refusal, TerminalNotAuthentic
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic_terminals_master
from keyd.keys.synthetic import synthetic_psam_key, synthetic_terminal_key
from keyd.policy.limits import ConnectionLimits, Quotas
from keyd.registry.synthetic import synthetic_terminal, synthetic_terminals
from keyd.registry.terminal import Proof, Terminal, TerminalState
from keyd.terminals import (
    CHALLENGE_SECONDS,
    MAX_FAILURES,
    SESSION_SECONDS,
    Line,
    Lockouts,
    Moment,
    Session,
    Terminals,
)
from tests.proofs import keyd_proof, terminal_proof

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyd.keys.sam import ProofTask

CODE: Final = "T-0001"
OTHER_CODE: Final = "T-0002"
NOBODY: Final = "T-9999"
PSAM: Final = bytes.fromhex("510100000042")

THEIRS: Final = bytes(range(16))
OFFICE: Final = "10.1.2.3"

# Monday 2026-06-01, 10:00 in China.
TEN: Final = 1_780_279_200
MONDAY_TEN: Final = Moment(5000.0, TEN)


def counted() -> Callable[[int], bytes]:
    """Return a source of bytes that never repeats and is the same in every run."""
    count = itertools.count()
    return lambda size: sm3(next(count).to_bytes(8, "big"))[:size]


class CountingRing(KeyRing):
    """The terminal master key, and how often it was asked for proofs, of which side."""

    def __init__(self, *, is_empty: bool = False) -> None:
        super().__init__([] if is_empty else [synthetic_terminals_master()])
        self.asked: list[list[str]] = []

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        self.asked.append([task.key.side.name for task in tasks])
        return super().prove(tasks)


class Keyd:
    """Terminals with a registry, a ring, and a moment in hand."""

    def __init__(self, registry: Mapping[str, Terminal] | None = None) -> None:
        if registry is None:
            registry = synthetic_terminals([CODE, OTHER_CODE])
        self.terminals = Terminals(registry, counted())
        self.ring = CountingRing()
        self.now = MONDAY_TEN
        self._numbers = itertools.count(1)

    def session(self, source: str = OFFICE, line: Line | None = None) -> Session:
        session = Session(next(self._numbers), source=source)
        session.line = line
        return session

    def challenge(self, session: Session, code: str = CODE, theirs: bytes = THEIRS) -> bytes:
        return self.terminals.open_challenge(session, code, theirs, self.now.monotonic)

    def authenticate(self, session: Session, proof: bytes) -> bytes:
        return self.terminals.authenticate(session, proof, self.now, self.ring)

    def prove(self, session: Session, code: str = CODE, key: bytes | None = None) -> bytes:
        """Authenticate as a terminal does, and check keyd as a terminal does."""
        key = key or synthetic_terminal_key(code)
        ours = self.challenge(session, code)
        answer = self.authenticate(session, terminal_proof(key, THEIRS, ours))
        assert answer == keyd_proof(key, THEIRS, ours)
        return answer

    def refused(
        self, session: Session, proof: bytes, refusal: type[Refusal] = TerminalNotAuthentic
    ) -> Refusal:
        with pytest.raises(Refusal) as raised:
            self.authenticate(session, proof)
        assert type(raised.value) is refusal
        assert session.terminal is None
        return raised.value

    def fail(self, session: Session, code: str = CODE) -> None:
        self.challenge(session, code)
        self.refused(session, bytes(8))

    def later(self, seconds: float) -> None:
        self.now = Moment(self.now.monotonic + seconds, self.now.unix + int(seconds))

    def notes(self) -> list[dict[str, Any]]:
        return self.terminals.take_notes(self.now.monotonic)

    def reasons(self) -> list[str]:
        return [note["reason"] for note in self.notes()]


@pytest.fixture
def keyd() -> Keyd:
    return Keyd()


def line(code: str = CODE, **changes: Any) -> Line:
    made = Line(code, 7, bytes(32), bytes(65), TEN + 3600, b"binding".ljust(32, b"\0"))
    return made._replace(**changes)


# --- as it should be


@given(theirs=st.binary(min_size=16, max_size=16))
def test_a_terminal_and_keyd_prove_themselves_to_each_other(theirs: bytes) -> None:
    keyd = Keyd()
    session, key = keyd.session(), synthetic_terminal_key(CODE)
    ours = keyd.challenge(session, CODE, theirs)
    assert len(ours) == 16
    assert session.terminal is None
    answer = keyd.authenticate(session, terminal_proof(key, theirs, ours))
    assert answer == keyd_proof(key, theirs, ours)
    assert session.terminal is not None
    assert session.terminal.code == CODE
    assert not session.must_close
    assert keyd.notes() == []


def test_a_session_says_what_the_policy_asks_of_a_terminal() -> None:
    keyd = Keyd(
        {CODE: synthetic_terminal(CODE, roles=("a", "b"), region="330100", organisation="Branch")}
    )
    session = keyd.session()
    keyd.prove(session)
    terminal = session.terminal
    assert terminal is not None
    assert (terminal.code, terminal.region) == (CODE, "330100")
    assert terminal.roles == {"a", "b"}
    assert (terminal.asker.terminal, terminal.asker.organisation) == (CODE, "Branch")


def test_every_challenge_is_another(keyd: Keyd) -> None:
    session = keyd.session()
    assert len({keyd.challenge(session) for _ in range(100)}) == 100


def test_a_terminal_may_prove_itself_with_its_psams_key() -> None:
    proofs = (Proof.KEY_BY_CODE, Proof.KEY_BY_PSAM)
    keyd = Keyd({CODE: synthetic_terminal(CODE, proofs=proofs, psam_number=PSAM)})
    for key in (synthetic_terminal_key(CODE), synthetic_psam_key(PSAM)):
        keyd.prove(keyd.session(), CODE, key)


@pytest.mark.parametrize(
    ("proofs", "key"),
    [
        ((Proof.KEY_BY_PSAM,), synthetic_terminal_key(CODE)),
        ((Proof.KEY_BY_CODE,), synthetic_psam_key(PSAM)),
        ((Proof.SIGNATURE,), synthetic_terminal_key(CODE)),
        ((Proof.SIGNATURE,), synthetic_psam_key(PSAM)),
    ],
)
def test_only_a_proof_that_the_record_allows_counts(proofs: tuple[Proof, ...], key: bytes) -> None:
    keyd = Keyd({CODE: synthetic_terminal(CODE, proofs=proofs, psam_number=PSAM)})
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(key, THEIRS, ours))
    assert keyd.reasons() == ["proof-not-allowed"]


def test_another_psams_key_proves_nothing() -> None:
    terminal = synthetic_terminal(CODE, proofs=(Proof.KEY_BY_PSAM,), psam_number=PSAM)
    keyd = Keyd({CODE: terminal})
    session = keyd.session()
    ours = keyd.challenge(session)
    other = synthetic_psam_key(bytes.fromhex("510100000043"))
    keyd.refused(session, terminal_proof(other, THEIRS, ours))
    assert keyd.reasons() == ["wrong-proof"]


# --- proofs that are none


def test_any_flipped_bit_is_refused(keyd: Keyd) -> None:
    key = synthetic_terminal_key(CODE)
    for bit in range(64):
        # Otherwise nobody would look at it after a few.
        keyd.terminals.lockouts = Lockouts()
        session = keyd.session()
        ours = keyd.challenge(session)
        proof = int.from_bytes(terminal_proof(key, THEIRS, ours), "big") ^ 1 << bit
        keyd.refused(session, proof.to_bytes(8, "big"))
    assert keyd.terminals.refused == {"wrong-proof": 64}


@pytest.mark.parametrize("length", [0, 1, 7, 9, 16])
def test_another_length_is_refused(keyd: Keyd, length: int) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, (terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours) * 2)[:length])


def test_keyds_own_proof_sent_back_is_refused(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, keyd_proof(synthetic_terminal_key(CODE), THEIRS, ours))


def test_keyds_own_challenge_sent_back_opens_nothing(keyd: Keyd) -> None:
    # Reflection: the thief lets keyd choose both challenges, and answers with what keyd would.
    session = keyd.session()
    first = keyd.challenge(session)
    ours = keyd.challenge(session, CODE, first)
    for proof in (
        keyd_proof(synthetic_terminal_key(CODE), first, ours),
        keyd_proof(synthetic_terminal_key(CODE), ours, first),
    ):
        keyd.challenge(session, CODE, first)
        keyd.refused(session, proof)


def test_keyd_is_no_oracle_for_a_terminals_proof(keyd: Keyd) -> None:
    # A thief opens two connections and hands keyd's challenge on one to keyd on the other: what the second
    # answers, it answers to a proof only, and what it answers is no proof.
    one, two = keyd.session(), keyd.session()
    key = synthetic_terminal_key(CODE)
    ours_one = keyd.challenge(one)
    ours_two = keyd.challenge(two, CODE, ours_one)
    honest = keyd.authenticate(two, terminal_proof(key, ours_one, ours_two))
    keyd.refused(one, honest)


def test_swapped_challenges_are_refused(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), ours, THEIRS))


def test_another_terminals_key_is_refused(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(OTHER_CODE), THEIRS, ours))


def test_another_challenge_of_the_terminals_is_refused(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), bytes(16), ours))


# --- each challenge once, here and now


def test_a_proof_serves_once(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    keyd.authenticate(session, proof)
    keyd.refused(session, proof, ChallengeExpired)


def test_a_proof_serves_for_its_own_challenge_alone(keyd: Keyd) -> None:
    # Two challenges interleaved: the first is void.
    session = keyd.session()
    ours = keyd.challenge(session)
    proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    keyd.challenge(session)
    keyd.refused(session, proof)


def test_a_wrong_proof_uses_the_challenge_up(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, bytes(8))
    right = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    keyd.refused(session, right, ChallengeExpired)


def test_a_challenge_is_of_one_connection(keyd: Keyd) -> None:
    mine, theirs = keyd.session(), keyd.session()
    ours = keyd.challenge(mine)
    proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    keyd.refused(theirs, proof, ChallengeExpired)
    keyd.challenge(theirs)
    keyd.refused(theirs, proof)
    # It was not used up by that.
    keyd.authenticate(mine, proof)


def test_without_a_challenge_there_is_no_proof(keyd: Keyd) -> None:
    keyd.refused(keyd.session(), bytes(8), ChallengeExpired)
    assert keyd.reasons() == ["challenge"]


@pytest.mark.parametrize("seconds", [CHALLENGE_SECONDS, 5])
def test_a_challenge_expires(keyd: Keyd, seconds: int) -> None:
    keyd.terminals.challenge_seconds = seconds
    for late, is_late in ((0.0, False), (seconds - 0.01, False), (seconds + 0.01, True)):
        session = keyd.session()
        ours = keyd.challenge(session)
        keyd.later(late)
        proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
        if is_late:
            keyd.refused(session, proof, ChallengeExpired)
        else:
            keyd.authenticate(session, proof)


# --- who cannot tell why


def spec(**changes: Any) -> dict[str, Terminal]:
    return {CODE: synthetic_terminal(CODE, **changes)}


# What is wrong with a terminal that holds its key.
WRONG: Final = {
    "enrolled": spec(state=TerminalState.ENROLLED),
    "suspended": spec(state=TerminalState.SUSPENDED),
    "lost": spec(state=TerminalState.LOST),
    "retired": spec(state=TerminalState.RETIRED),
    "network": spec(networks=("10.1.3.0/24", "2001:db8::/32")),
    "hours": spec(hours=("Tue-Sun 08:00-18:00", "Mon 10:01-12:00")),
    "not-valid": spec(valid_until=TEN),
    "proof-not-allowed": spec(proofs=(Proof.SIGNATURE,)),
    "unknown": {OTHER_CODE: synthetic_terminal(OTHER_CODE)},
}


@pytest.mark.parametrize("reason", WRONG)
def test_every_refusal_looks_the_same_and_the_journal_knows_better(reason: str) -> None:
    wrong, keyd = Keyd(), Keyd(WRONG[reason])
    key = synthetic_terminal_key(CODE)
    expected = []
    for one, proof in ((wrong, None), (keyd, key)):
        session = one.session()
        ours = one.challenge(session)
        refusal = one.refused(session, terminal_proof(proof, THEIRS, ours) if proof else bytes(8))
        expected.append(
            (
                *(type(refusal), refusal.args, refusal.status, len(ours)),
                *(session.failures, session.must_close, one.ring.asked),
            )
        )
    assert expected[0] == expected[1]
    note = {"event": "terminal.refused", "code": CODE, "source": OFFICE, "reason": reason}
    assert keyd.notes() == [{**note, "domain": "LOCAL"}]
    assert keyd.terminals.refused == {reason: 1}


def test_an_unknown_code_and_a_wrong_proof_cost_the_same_work() -> None:
    proofs = (Proof.KEY_BY_CODE, Proof.KEY_BY_PSAM)
    keyd = Keyd(
        {
            CODE: synthetic_terminal(CODE),
            "P": synthetic_terminal("P", proofs=proofs, psam_number=PSAM),
        }
    )
    for code in (CODE, "P", NOBODY):
        keyd.fail(keyd.session(), code)
    assert keyd.ring.asked == [["TERMINAL", "TERMINAL"]] * 3


def test_a_wrong_proof_compiles_no_terminal() -> None:
    # The first attempt at a registered code would take longer than one at another.
    keyd = Keyd(spec(networks=("10.0.0.0/8",), hours=("08:00-18:00",)))
    keyd.fail(keyd.session())
    assert keyd.terminals._known == {}
    keyd.prove(keyd.session())
    assert keyd.terminals._known.keys() == {CODE}


def test_without_a_terminal_master_key_everybody_looks_the_same() -> None:
    keyd = Keyd()
    keyd.ring = CountingRing(is_empty=True)
    for code in (CODE, NOBODY):
        session = keyd.session()
        ours = keyd.challenge(session, code)
        keyd.refused(session, terminal_proof(synthetic_terminal_key(code), THEIRS, ours))
    assert keyd.reasons() == ["key", "key"]
    assert keyd.terminals.lockouts.locked(keyd.now.monotonic) == 0


@pytest.mark.parametrize("code", ["t-0001", "T-0001.", "T-00010", "T-000"])
def test_a_code_is_what_it_is(keyd: Keyd, code: str) -> None:
    session = keyd.session()
    ours = keyd.challenge(session, code)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))


def test_a_key_that_nobody_is_registered_for_opens_nothing(keyd: Keyd) -> None:
    # Diversified from the right master key: a terminal that is not on record any more.
    session = keyd.session()
    ours = keyd.challenge(session, NOBODY)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(NOBODY), THEIRS, ours))
    assert keyd.reasons() == ["unknown"]


# --- where and when


@pytest.mark.parametrize(
    ("networks", "source", "is_here"),
    [
        ((), "gone", True),
        (("10.1.2.0/24",), "10.1.2.255", True),
        (("10.1.2.0/24",), "10.1.3.0", False),
        (("10.1.2.0/24",), "::ffff:10.1.2.3", True),
        (("10.9.0.0/16", "10.1.2.3"), OFFICE, True),
        (("2001:db8::/32",), "2001:db8:1::1", True),
        (("2001:db8::/32",), "2001:db9::1", False),
        (("10.1.2.0/24",), "unix", False),
        (("127.0.0.0/8",), "unix", True),
        (("::1",), "unix", True),
        (("0.0.0.0/0",), "gone", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
    ],
)
def test_a_terminal_comes_from_its_networks(
    networks: tuple[str, ...], source: str, is_here: bool
) -> None:
    keyd = Keyd(spec(networks=networks))
    session = keyd.session(source)
    ours = keyd.challenge(session)
    proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    if is_here:
        keyd.authenticate(session, proof)
    else:
        keyd.refused(session, proof)


HOUR: Final = 3600

ENDS: Final[list[tuple[dict[str, Any], int]]] = [
    ({}, SESSION_SECONDS),
    ({"hours": ("Mon-Fri 08:00-17:30",)}, SESSION_SECONDS - HOUR // 2),
    ({"hours": ("Mon 08:00-11:00", "Mon 11:00-12:15")}, 2 * HOUR + 900),
    ({"hours": ("10:00-10:01",)}, 60),
    ({"hours": ("00:00-24:00",)}, SESSION_SECONDS),
    ({"valid_until": TEN + 1}, 1),
    ({"valid_until": TEN + HOUR, "hours": ("Mon 09:00-10:30",)}, HOUR // 2),
    ({"valid_from": TEN}, SESSION_SECONDS),
]


@pytest.mark.parametrize(("changes", "seconds"), ENDS)
def test_a_session_lasts_until_the_first_of_all_ends(changes: dict[str, Any], seconds: int) -> None:
    keyd = Keyd(spec(**changes))
    session = keyd.session()
    keyd.prove(session)
    assert session.until == keyd.now.monotonic + seconds
    session.expire(session.until - 0.001)
    assert session.terminal is not None
    session.expire(session.until)
    assert session.terminal is None
    assert session.until == math.inf


def test_a_shorter_session_is_as_configured(keyd: Keyd) -> None:
    keyd.terminals.session_seconds = 60
    session = keyd.session()
    keyd.prove(session)
    assert session.until == keyd.now.monotonic + 60


def test_seconds_within_a_minute_count() -> None:
    keyd = Keyd(spec(hours=("10:00-10:01",)))
    keyd.later(59.0)
    session = keyd.session()
    keyd.prove(session)
    assert session.until == keyd.now.monotonic + 1
    keyd.later(1.0)
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))


def test_before_it_is_valid_a_terminal_is_nobody() -> None:
    keyd = Keyd(spec(valid_from=TEN + 1))
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))
    keyd.later(1)
    keyd.prove(keyd.session())


# --- on an encrypted line


def test_a_terminal_cannot_use_anothers_line(keyd: Keyd) -> None:
    session = keyd.session(line=line(OTHER_CODE))
    ours = keyd.challenge(session)
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))
    assert keyd.reasons() == ["line"]
    keyd.prove(session, OTHER_CODE)


def test_a_session_ends_with_its_lines_certificate(keyd: Keyd) -> None:
    session = keyd.session(line=line(not_after=TEN + 100))
    keyd.prove(session)
    assert session.until == keyd.now.monotonic + 100


@pytest.mark.parametrize(
    ("registry", "made", "is_allowed"),
    [
        (spec(), line(), True),
        (spec(), line(NOBODY), False),
        (spec(state=TerminalState.SUSPENDED), line(), False),
        (spec(valid_until=TEN), line(), False),
        (spec(), line(not_after=TEN - 1), False),
        ({CODE: replace(synthetic_terminal(CODE), certificate=b"\x07")}, line(), True),
        ({CODE: replace(synthetic_terminal(CODE), certificate=b"\x01\x07")}, line(), False),
    ],
)
def test_a_line_is_its_terminals(
    registry: dict[str, Terminal], made: Line, is_allowed: bool
) -> None:
    keyd = Keyd(registry)
    assert keyd.terminals.allows_line(made, TEN) is is_allowed
    if made.common_name == CODE and not is_allowed:
        session = keyd.session(line=made)
        ours = keyd.challenge(session)
        keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))


# --- failures


@pytest.mark.parametrize("code", [CODE, NOBODY])
def test_three_failures_cut_the_line(keyd: Keyd, code: str) -> None:
    assert MAX_FAILURES == 3
    session = keyd.session()
    for number in range(1, MAX_FAILURES + 1):
        assert not session.must_close
        keyd.fail(session, code)
        assert session.failures == number
    assert session.must_close


def test_a_success_between_failures_counts_anew(keyd: Keyd) -> None:
    session = keyd.session()
    for _ in range(MAX_FAILURES - 1):
        keyd.fail(session)
    keyd.prove(session)
    for _ in range(MAX_FAILURES - 1):
        keyd.fail(session)
    assert not session.must_close
    keyd.fail(session)
    assert session.must_close


def test_a_line_to_be_cut_stays_so(keyd: Keyd) -> None:
    session = keyd.session()
    for _ in range(MAX_FAILURES):
        keyd.fail(session)
    with pytest.raises(TerminalNotAuthentic):
        keyd.prove(session)
    assert session.must_close
    assert session.terminal is None


def test_failures_are_each_connections_own(keyd: Keyd) -> None:
    session = keyd.session()
    for _ in range(MAX_FAILURES):
        keyd.fail(session)
    other = keyd.session()
    assert not other.must_close
    keyd.prove(other)


@pytest.mark.parametrize("code", [CODE, NOBODY])
def test_while_it_is_locked_nothing_is_computed_and_nothing_looks_different(
    keyd: Keyd, code: str
) -> None:
    for _ in range(6):
        keyd.fail(keyd.session(), code)
    keyd.ring.asked.clear()
    session = keyd.session()
    ours = keyd.challenge(session, code)
    refusal = keyd.refused(session, terminal_proof(synthetic_terminal_key(code), THEIRS, ours))
    assert refusal.args == TerminalNotAuthentic().args
    assert (session.failures, keyd.ring.asked) == (1, [])
    assert keyd.reasons()[-1] == "locked"
    # It is over after a second, for whoever is somebody.
    keyd.later(1.01)
    if code == CODE:
        keyd.prove(keyd.session())


def test_nobody_locks_a_terminal_out_from_where_it_was_lately(keyd: Keyd) -> None:
    keyd.prove(keyd.session())
    for number in range(200):
        keyd.fail(keyd.session())
        keyd.fail(keyd.session(f"172.16.0.{number}"))
    keyd.prove(keyd.session())


def test_what_is_no_guess_locks_nobody() -> None:
    keyd = Keyd(WRONG["hours"])
    for _ in range(50):
        session = keyd.session()
        ours = keyd.challenge(session)
        keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))
    assert keyd.terminals.refused == {"hours": 50}


def test_a_flood_of_failures_is_counted_and_not_written_down_one_by_one(keyd: Keyd) -> None:
    for number in range(100):
        keyd.fail(keyd.session(f"172.16.0.{number}"), f"T-1{number}")
    events = keyd.notes()
    assert len(events) == 20
    assert keyd.notes() == []
    keyd.later(1)
    assert keyd.notes() == [{"event": "terminal.refusals_left_out", "domain": "LOCAL", "count": 80}]
    assert keyd.notes() == []
    assert sum(keyd.terminals.refused.values()) == 100
    keyd.fail(keyd.session())
    assert [event["event"] for event in keyd.notes()] == ["terminal.refused"]


class Seen:
    """What was told of terminals."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str, float]] = []

    def authenticated(self, code: str, source: str, now: float) -> None:
        self.told.append(("authenticated", code, source, now))

    def failed(self, code: str, source: str, now: float) -> None:
        self.told.append(("failed", code, source, now))


def test_whoever_counts_is_told_of_registered_terminals_alone(keyd: Keyd) -> None:
    seen = keyd.terminals.activity = Seen()
    session = keyd.session()
    keyd.fail(session)
    keyd.fail(session, NOBODY)
    keyd.prove(session)
    # A review is no proof.
    keyd.terminals.load(spec(roles=("another",)))
    keyd.terminals.review(session, keyd.now)
    assert seen.told == [("failed", CODE, OFFICE, TEN), ("authenticated", CODE, OFFICE, TEN)]


# --- quotas


def test_a_connection_counts_until_it_is_nobodys(keyd: Keyd) -> None:
    quotas = keyd.terminals.quotas = Quotas(ConnectionLimits(2, 3))
    sessions = [keyd.session() for _ in range(3)]
    keyd.prove(sessions[0])
    keyd.prove(sessions[1])
    with pytest.raises(QuotaExceeded):
        keyd.prove(sessions[2])
    assert sessions[2].terminal is None
    # Again on the same line: it is one connection as before.
    keyd.prove(sessions[0])
    assert len(quotas) == 2
    sessions[0].end()
    keyd.prove(sessions[2])
    for session in sessions:
        session.end()
    assert len(quotas) == 0


# --- again on the same line


def test_another_terminal_may_take_the_connection_over(keyd: Keyd) -> None:
    session = keyd.session()
    keyd.prove(session)
    ours = keyd.challenge(session, OTHER_CODE)
    # Until it has proved itself, the connection is the first one's.
    assert session.terminal is not None
    assert session.terminal.code == CODE
    keyd.authenticate(session, terminal_proof(synthetic_terminal_key(OTHER_CODE), THEIRS, ours))
    assert session.terminal.code == OTHER_CODE


def test_a_failed_attempt_takes_the_terminal_away(keyd: Keyd) -> None:
    session = keyd.session()
    keyd.prove(session)
    keyd.fail(session)
    keyd.prove(session)
    keyd.refused(session, bytes(8), ChallengeExpired)


def test_proving_again_begins_another_session(keyd: Keyd) -> None:
    session = keyd.session()
    keyd.prove(session)
    keyd.later(1000)
    keyd.prove(session)
    assert session.until == keyd.now.monotonic + SESSION_SECONDS


# --- after the registry has changed


def reviewed(
    before: dict[str, Terminal], after: dict[str, Terminal], **of: Any
) -> tuple[Session, Keyd]:
    """Return a session that was authenticated before the registry changed."""
    keyd = Keyd(before)
    session = keyd.session(**of)
    keyd.prove(session)
    assert keyd.terminals.load(after) is (before != after)
    keyd.terminals.review(session, keyd.now)
    return session, keyd


def test_a_change_elsewhere_leaves_a_session_as_it_was() -> None:
    keyd = Keyd(spec())
    session = keyd.session()
    keyd.prove(session)
    was = session.terminal
    keyd.terminals.load({**spec(), OTHER_CODE: synthetic_terminal(OTHER_CODE)})
    keyd.terminals.review(session, keyd.now)
    assert session.terminal is was
    assert not session.must_close


def test_a_change_of_rights_is_entered_at_once_and_lengthens_no_session() -> None:
    keyd = Keyd(spec(roles=("counter",)))
    quotas = keyd.terminals.quotas = Quotas(ConnectionLimits(1, 1))
    session = keyd.session()
    keyd.prove(session)
    until = session.until
    keyd.later(100)
    assert keyd.terminals.load(spec(roles=("issuer",), organisation="Another"))
    keyd.terminals.review(session, keyd.now)
    assert session.terminal is not None
    assert session.terminal.roles == {"issuer"}
    assert session.until == until
    assert len(quotas) == 1
    assert keyd.terminals.load(spec(hours=("Mon 10:00-11:00",)))
    keyd.terminals.review(session, keyd.now)
    assert session.until == keyd.now.monotonic + HOUR - 100
    session.end()
    assert len(quotas) == 0


@pytest.mark.parametrize("reason", WRONG)
def test_a_terminal_that_may_no_longer_be_there_is_nobody_and_its_line_is_cut(reason: str) -> None:
    session, _ = reviewed(spec(), WRONG[reason])
    assert session.terminal is None
    assert session.must_close


def test_a_certificate_that_was_replaced_ends_its_line() -> None:
    before = {CODE: replace(synthetic_terminal(CODE), certificate=b"\x07")}
    after = {CODE: replace(synthetic_terminal(CODE), certificate=b"\x08")}
    session, _ = reviewed(before, after, line=line())
    assert session.terminal is None
    assert session.must_close


def test_another_psam_is_another_credential() -> None:
    proofs = (Proof.KEY_BY_PSAM,)
    keyd = Keyd({CODE: synthetic_terminal(CODE, proofs=proofs, psam_number=PSAM)})
    session = keyd.session()
    keyd.prove(session, CODE, synthetic_psam_key(PSAM))
    other = synthetic_terminal(CODE, proofs=proofs, psam_number=bytes(6))
    keyd.terminals.load({CODE: other})
    keyd.terminals.review(session, keyd.now)
    assert session.terminal is None
    assert session.must_close


def test_a_review_leaves_who_never_was_anybody(keyd: Keyd) -> None:
    session = keyd.session()
    keyd.terminals.load({})
    keyd.terminals.review(session, keyd.now)
    assert session.terminal is None
    assert not session.must_close


def test_a_challenge_open_across_a_change_is_proved_to_the_new_registry(keyd: Keyd) -> None:
    session = keyd.session()
    ours = keyd.challenge(session)
    keyd.terminals.load({})
    keyd.refused(session, terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours))


def test_how_many_are_registered(keyd: Keyd) -> None:
    assert len(keyd.terminals) == 2


def test_no_text_shows_a_key(keyd: Keyd) -> None:
    session = keyd.session()
    keyd.prove(session)
    key = synthetic_terminal_key(CODE)
    texts = [repr(session.terminal), repr(keyd.terminals), repr(session), repr(session.challenge)]
    assert texts[0] == f"<KnownTerminal {CODE}>"
    assert not any(key[:4].hex() in text.lower() or repr(key[:4])[2:-1] in text for text in texts)
