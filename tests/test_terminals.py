"""Only a terminal that holds its key becomes one, on its own connection, once per challenge and in time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.sm3 import sm3
from keyd.errors import ChallengeExpired, Refusal, TerminalNotAuthentic
from keyd.protocol.proof import keyd_proof, terminal_proof
from keyd.terminals import CHALLENGE_SECONDS, MAX_FAILURES, Session, Terminal, Terminals

if TYPE_CHECKING:
    from collections.abc import Callable

CODE: Final = "T-0001"
KEY: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")
OTHER_CODE: Final = "T-0002"
OTHER_KEY: Final = bytes.fromhex("00112233445566778899AABBCCDDEEFF")

THEIRS: Final = bytes(range(16))


def counted() -> Callable[[int], bytes]:
    """Return a source of bytes that never repeats and is the same in every run."""
    count = itertools.count()
    return lambda size: sm3(next(count).to_bytes(8, "big"))[:size]


@pytest.fixture
def terminals() -> Terminals:
    return Terminals({CODE: KEY, OTHER_CODE: OTHER_KEY}, counted())


@pytest.fixture
def session() -> Session:
    return Session(1)


def prove(terminals: Terminals, session: Session, now: float = 0.0) -> bytes:
    """Authenticate as a terminal does."""
    ours = terminals.open_challenge(session, CODE, THEIRS, now)
    return terminals.authenticate(session, terminal_proof(KEY, CODE, THEIRS, ours), now)


def refused(
    terminals: Terminals,
    session: Session,
    proof: bytes,
    now: float = 0.0,
    refusal: type[Refusal] = TerminalNotAuthentic,
) -> Refusal:
    with pytest.raises(refusal) as refused:
        terminals.authenticate(session, proof, now)
    assert session.terminal is None
    return refused.value


# --- as it should be


@given(theirs=st.binary(min_size=16, max_size=16))
def test_a_terminal_and_keyd_prove_themselves_to_each_other(theirs: bytes) -> None:
    terminals, session = Terminals({CODE: KEY}, counted()), Session(1)
    ours = terminals.open_challenge(session, CODE, theirs, 0.0)
    assert len(ours) == 16
    assert session.terminal is None
    answer = terminals.authenticate(session, terminal_proof(KEY, CODE, theirs, ours), 0.0)
    assert answer == keyd_proof(KEY, CODE, theirs, ours)
    assert session.terminal is not None
    assert session.terminal.code == CODE
    assert not session.must_close


def test_every_challenge_is_another(terminals: Terminals, session: Session) -> None:
    challenges = [terminals.open_challenge(session, CODE, THEIRS, 0.0) for _ in range(100)]
    assert len(set(challenges)) == 100


def test_a_terminals_key_has_sixteen_bytes() -> None:
    for length in (0, 8, 15, 17, 32):
        with pytest.raises(ValueError, match="16 bytes"):
            Terminals({CODE: bytes(length)}, counted())


def test_no_text_shows_a_terminals_key(terminals: Terminals, session: Session) -> None:
    prove(terminals, session)
    texts = [repr(session.terminal), repr(terminals), repr(session), str(session.terminal)]
    assert texts[0] == f"<Terminal {CODE}>"
    assert not any(KEY[:4].hex() in text.lower() or repr(KEY[:4])[2:-1] in text for text in texts)


# --- proofs that are none


def test_any_flipped_bit_is_refused(terminals: Terminals) -> None:
    for bit in range(256):
        session = Session(bit)
        ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
        proof = int.from_bytes(terminal_proof(KEY, CODE, THEIRS, ours), "big") ^ 1 << bit
        refused(terminals, session, proof.to_bytes(32, "big"))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_another_length_is_refused(terminals: Terminals, session: Session, length: int) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    proof = (terminal_proof(KEY, CODE, THEIRS, ours) * 2)[:length]
    refused(terminals, session, proof)


def test_keyds_own_proof_sent_back_is_refused(terminals: Terminals, session: Session) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    refused(terminals, session, keyd_proof(KEY, CODE, THEIRS, ours))


def test_keyd_is_no_oracle_for_a_terminals_proof(terminals: Terminals) -> None:
    # A thief opens two connections and hands keyd's challenge on one to keyd on the other: what the second
    # answers, it answers to a proof only, and what it answers is no proof.
    one, two = Session(1), Session(2)
    ours_one = terminals.open_challenge(one, CODE, THEIRS, 0.0)
    ours_two = terminals.open_challenge(two, CODE, ours_one, 0.0)
    honest = terminals.authenticate(two, terminal_proof(KEY, CODE, ours_one, ours_two), 0.0)
    refused(terminals, one, honest)


def test_swapped_challenges_are_refused(terminals: Terminals, session: Session) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    refused(terminals, session, terminal_proof(KEY, CODE, ours, THEIRS))


def test_another_terminals_key_or_code_is_refused(terminals: Terminals) -> None:
    for key, code in ((OTHER_KEY, CODE), (KEY, OTHER_CODE), (OTHER_KEY, OTHER_CODE)):
        session = Session(1)
        ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
        refused(terminals, session, terminal_proof(key, code, THEIRS, ours))


def test_another_challenge_of_the_terminals_is_refused(
    terminals: Terminals, session: Session
) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    refused(terminals, session, terminal_proof(KEY, CODE, bytes(16), ours))


# --- each challenge once, here and now


def test_a_proof_serves_once(terminals: Terminals, session: Session) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    proof = terminal_proof(KEY, CODE, THEIRS, ours)
    terminals.authenticate(session, proof, 0.0)
    refused(terminals, session, proof, refusal=ChallengeExpired)


def test_a_proof_serves_for_its_own_challenge_alone(terminals: Terminals, session: Session) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    proof = terminal_proof(KEY, CODE, THEIRS, ours)
    terminals.open_challenge(session, CODE, THEIRS, 0.0)
    refused(terminals, session, proof)


def test_a_wrong_proof_uses_the_challenge_up(terminals: Terminals, session: Session) -> None:
    ours = terminals.open_challenge(session, CODE, THEIRS, 0.0)
    refused(terminals, session, bytes(32))
    right = terminal_proof(KEY, CODE, THEIRS, ours)
    refused(terminals, session, right, refusal=ChallengeExpired)


def test_a_challenge_is_of_one_connection(terminals: Terminals) -> None:
    mine, theirs = Session(1), Session(2)
    ours = terminals.open_challenge(mine, CODE, THEIRS, 0.0)
    proof = terminal_proof(KEY, CODE, THEIRS, ours)
    refused(terminals, theirs, proof, refusal=ChallengeExpired)
    terminals.open_challenge(theirs, CODE, THEIRS, 0.0)
    refused(terminals, theirs, proof)
    # It was not used up by that.
    terminals.authenticate(mine, proof, 0.0)


def test_without_a_challenge_there_is_no_proof(terminals: Terminals, session: Session) -> None:
    refused(terminals, session, bytes(32), refusal=ChallengeExpired)


@pytest.mark.parametrize("opened", [0.0, 1e9])
def test_a_challenge_expires(terminals: Terminals, opened: float) -> None:
    for late, is_late in ((0.0, False), (CHALLENGE_SECONDS - 0.01, False), (0.01, True)):
        session = Session(1)
        ours = terminals.open_challenge(session, CODE, THEIRS, opened)
        proof = terminal_proof(KEY, CODE, THEIRS, ours)
        now = opened + (CHALLENGE_SECONDS + late if is_late else late)
        if is_late:
            refused(terminals, session, proof, now, ChallengeExpired)
        else:
            terminals.authenticate(session, proof, now)


# --- somebody who is not enrolled


def test_an_unknown_code_looks_like_a_wrong_proof(terminals: Terminals) -> None:
    known, unknown = Session(1), Session(2)
    for session, code in ((known, CODE), (unknown, "T-9999")):
        assert len(terminals.open_challenge(session, code, THEIRS, 0.0)) == 16
    wrong = refused(terminals, known, bytes(32))
    nobody = refused(terminals, unknown, bytes(32))
    assert type(wrong) is type(nobody)
    assert wrong.args == nobody.args
    assert wrong.status == nobody.status
    assert (known.failures, known.must_close) == (unknown.failures, unknown.must_close)


def test_nobodys_key_opens_nothing(terminals: Terminals, session: Session) -> None:
    # Even who came by it: nobody is enrolled under it.
    ours = terminals.open_challenge(session, "T-9999", THEIRS, 0.0)
    refused(terminals, session, terminal_proof(terminals._nobody_key, "T-9999", THEIRS, ours))


@pytest.mark.parametrize("code", ["", "t-0001", "T-0001 ", "T-0001\0", "T-000１"])
def test_a_code_is_what_it_is(terminals: Terminals, session: Session, code: str) -> None:
    ours = terminals.open_challenge(session, code, THEIRS, 0.0)
    refused(terminals, session, terminal_proof(KEY, code, THEIRS, ours))


# --- failures


def fail(terminals: Terminals, session: Session, code: str = CODE) -> None:
    terminals.open_challenge(session, code, THEIRS, 0.0)
    refused(terminals, session, bytes(32))


@pytest.mark.parametrize("code", [CODE, "T-9999"])
def test_three_failures_cut_the_line(terminals: Terminals, session: Session, code: str) -> None:
    assert MAX_FAILURES == 3
    for number in range(1, MAX_FAILURES + 1):
        assert not session.must_close
        fail(terminals, session, code)
        assert session.failures == number
    assert session.must_close


def test_a_success_between_failures_counts_anew(terminals: Terminals, session: Session) -> None:
    for _ in range(MAX_FAILURES - 1):
        fail(terminals, session)
    prove(terminals, session)
    for _ in range(MAX_FAILURES - 1):
        fail(terminals, session)
    assert not session.must_close
    fail(terminals, session)
    assert session.must_close


def test_a_line_to_be_cut_stays_so(terminals: Terminals, session: Session) -> None:
    for _ in range(MAX_FAILURES):
        fail(terminals, session)
    with pytest.raises(TerminalNotAuthentic):
        prove(terminals, session)
    assert session.must_close
    assert session.terminal is None


def test_failures_are_each_connections_own(terminals: Terminals, session: Session) -> None:
    for _ in range(MAX_FAILURES):
        fail(terminals, session)
    other = Session(2)
    assert not other.must_close
    prove(terminals, other)


# --- again, and after a reload


def test_another_terminal_may_take_the_connection_over(
    terminals: Terminals, session: Session
) -> None:
    prove(terminals, session)
    ours = terminals.open_challenge(session, OTHER_CODE, THEIRS, 0.0)
    # Until it has proved itself, the connection is the first one's.
    assert session.terminal is not None
    assert session.terminal.code == CODE
    terminals.authenticate(session, terminal_proof(OTHER_KEY, OTHER_CODE, THEIRS, ours), 0.0)
    assert session.terminal.code == OTHER_CODE


def test_a_failed_attempt_takes_the_terminal_away(terminals: Terminals, session: Session) -> None:
    prove(terminals, session)
    fail(terminals, session)
    assert session.terminal is None
    prove(terminals, session)
    refused(terminals, session, bytes(32), refusal=ChallengeExpired)


def reviewed(keys: dict[str, bytes]) -> Terminal | None:
    """Return whose an authenticated connection is after a reload."""
    session = Session(1)
    prove(Terminals({CODE: KEY}, counted()), session)
    Terminals(keys, counted()).review(session)
    return session.terminal


def test_a_reload_keeps_who_is_still_enrolled() -> None:
    kept = reviewed({CODE: KEY, OTHER_CODE: OTHER_KEY})
    assert kept is not None
    assert kept.code == CODE


@pytest.mark.parametrize(
    "keys",
    [{}, {OTHER_CODE: OTHER_KEY}, {CODE: OTHER_KEY}, {OTHER_CODE: KEY}],
    ids=["nobody", "another", "another key", "another code"],
)
def test_a_reload_ends_who_is_not(keys: dict[str, bytes]) -> None:
    assert reviewed(keys) is None


def test_a_reload_leaves_who_never_was_anybody(terminals: Terminals, session: Session) -> None:
    terminals.review(session)
    assert session.terminal is None


def test_a_challenge_open_across_a_reload_is_proved_to_the_new_registry(session: Session) -> None:
    before = Terminals({CODE: KEY}, counted())
    ours = before.open_challenge(session, CODE, THEIRS, 0.0)
    after = Terminals({CODE: OTHER_KEY}, counted())
    refused(after, session, terminal_proof(KEY, CODE, THEIRS, ours))


def test_how_many_are_enrolled(terminals: Terminals) -> None:
    assert len(terminals) == 2
