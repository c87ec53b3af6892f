"""A signature proves one terminal, on one line, over both challenges, now; and keyd proves itself in turn."""

from __future__ import annotations

import datetime
import functools
from typing import TYPE_CHECKING, Any, Final

import pytest
from msgspec.structs import replace

from keyd.crypto.sm2 import SignatureNotAuthentic, Sm2PrivateKey, Sm2PublicKey
from keyd.crypto.sm2.der import signature_from_der
from keyd.errors import ChallengeExpired, Refusal, TerminalNotAuthentic
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic_identity_key, synthetic_terminals_master
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.proof import NO_BINDING, signed_by_keyd, signed_by_terminal
from keyd.registry.synthetic import synthetic_terminal
from keyd.registry.terminal import Proof, Terminal, TerminalState
from keyd.terminals import (
    CLOCK_SECONDS,
    SESSION_SECONDS,
    Line,
    Moment,
    Presented,
    Proven,
    Session,
    Terminals,
)
from keyd.tls.chains import Anchor, Anchors
from keyd.tls.kinds import TlsKind
from keyd.tls.pki import SyntheticPki, Validity, load_key, make_revocation_list, synthetic_pki
from tests.proofs import terminal_proof
from tests.test_terminals import (
    CODE,
    NOBODY,
    OFFICE,
    OTHER_CODE,
    TEN,
    THEIRS,
    counted,
    line,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

BEGIN: Final = datetime.datetime.fromtimestamp(TEN - 1000, datetime.UTC)
END: Final = datetime.datetime.fromtimestamp(TEN + 1000, datetime.UTC)


@functools.cache
def signer() -> Sm2PrivateKey:
    """Return the terminal's key."""
    return Sm2PrivateKey.generate()


@functools.cache
def other_signer() -> Sm2PrivateKey:
    return Sm2PrivateKey.generate()


@functools.cache
def identity() -> Sm2PrivateKey:
    return synthetic_identity_key()


@functools.cache
def pki(kind: TlsKind) -> SyntheticPki:
    return synthetic_pki(kind, Validity(BEGIN, END), ["keyd.test"], [CODE, OTHER_CODE])


def registered(**spec: Any) -> dict[str, Terminal]:
    fields = {"proofs": (Proof.SIGNATURE,), "public_key": signer().public.encode()}
    return {CODE: synthetic_terminal(CODE, **{**fields, **spec})}


class Keyd:
    """Terminals that sign, and a moment in hand. Judging is done where it is called."""

    def __init__(self, registry: Mapping[str, Terminal] | None = None) -> None:
        self.terminals = Terminals(registered() if registry is None else registry, counted())
        self.now = Moment(5000.0, TEN)

    def session(self, line: Line | None = None) -> Session:
        session = Session(1, source=OFFICE)
        session.line = line
        return session

    def challenge(self, session: Session, code: str = CODE) -> bytes:
        return self.terminals.open_challenge(session, code, THEIRS, self.now.monotonic)

    def judge(self, session: Session, presented: Presented) -> bytes:
        attempt = self.terminals.begin_signature(session, presented, self.now)
        judged = attempt.judge(identity().sign)
        return self.terminals.end_signature(session, attempt, judged, self.now)

    def refused(
        self,
        session: Session,
        presented: Presented,
        refusal: type[Refusal] = TerminalNotAuthentic,
    ) -> str:
        with pytest.raises(Refusal) as raised:
            self.judge(session, presented)
        assert type(raised.value) is refusal
        assert raised.value.args == refusal().args
        assert session.terminal is None
        return str(self.terminals.take_notes(self.now.monotonic)[-1]["reason"])


def presented(
    ours: bytes,
    *,
    key: Sm2PrivateKey | None = None,
    code: str = CODE,
    theirs: bytes = THEIRS,
    binding: bytes = NO_BINDING,
    time: int = TEN,
    chain: bytes = b"",
) -> Presented:
    signature = (key or signer()).sign(signed_by_terminal(code, theirs, ours, binding, time))
    return Presented(signature, time, chain)


def certified(ours: bytes, chain: bytes, kind: TlsKind = TlsKind.GUOMI) -> Presented:
    """Sign with the certificate's key and bring the chain."""
    key = load_key(pki(kind).terminals[CODE].private_key)
    message = signed_by_terminal(CODE, THEIRS, ours, NO_BINDING, TEN)
    return Presented(signature_from_der(key.sign(message)), TEN, chain)


# --- as it should be


def test_a_terminal_and_keyd_sign_for_each_other() -> None:
    keyd = Keyd()
    session = keyd.session()
    ours = keyd.challenge(session)
    answer = keyd.judge(session, presented(ours))
    assert session.terminal is not None
    assert session.terminal.code == CODE
    assert session.proven == Proven(Proof.SIGNATURE)
    assert session.until == keyd.now.monotonic + SESSION_SECONDS
    signed = signed_by_keyd(CODE, THEIRS, ours, NO_BINDING, TEN)
    Sm2PublicKey.load(identity().public.encode()).verify(signed, answer)
    # keyd's is no terminal's.
    with pytest.raises(SignatureNotAuthentic):
        identity().public.verify(signed_by_terminal(CODE, THEIRS, ours, NO_BINDING, TEN), answer)


def test_a_signature_is_bound_to_its_line() -> None:
    keyd, made = Keyd(), line()
    session = keyd.session(made)
    keyd.judge(session, presented(keyd.challenge(session), binding=made.channel_binding))
    assert session.terminal is not None
    for binding in (NO_BINDING, bytes(31) + b"\1"):
        session = keyd.session(made)
        assert keyd.refused(session, presented(keyd.challenge(session), binding=binding)) == (
            "wrong-proof"
        )
    session = keyd.session()
    ours = keyd.challenge(session)
    assert keyd.refused(session, presented(ours, binding=made.channel_binding)) == "wrong-proof"


def test_a_terminal_brings_its_certificate() -> None:
    keyd = Keyd(registered(public_key=b""))
    keyd.terminals.anchors = Anchors([Anchor(pki(TlsKind.GUOMI).authority.certificate)])
    session = keyd.session()
    chain = pki(TlsKind.GUOMI).terminals[CODE].certificate
    keyd.judge(session, certified(keyd.challenge(session), chain))
    assert session.proven is not None
    assert session.proven.serial
    # The certificate ends before the working day does.
    assert session.until == keyd.now.monotonic + 1000


# --- what is none


@pytest.mark.parametrize(
    "changes",
    [
        {"code": OTHER_CODE},
        {"theirs": bytes(16)},
        {"binding": bytes(31) + b"\1"},
    ],
    ids=str,
)
def test_a_signature_over_anything_else_is_none(changes: dict[str, Any]) -> None:
    keyd = Keyd()
    session = keyd.session()
    assert keyd.refused(session, presented(keyd.challenge(session), **changes)) == "wrong-proof"


def test_a_signature_of_another_key_or_another_challenge_is_none() -> None:
    keyd = Keyd()
    session = keyd.session()
    first = keyd.challenge(session)
    ours = keyd.challenge(session)
    assert keyd.refused(session, presented(ours, key=other_signer())) == "wrong-proof"
    keyd.challenge(session)
    assert keyd.refused(session, presented(first)) == "wrong-proof"


def test_keyds_own_signature_sent_back_is_none() -> None:
    # Even to a keyd that has itself on record.
    keyd = Keyd(registered(public_key=identity().public.encode()))
    session = keyd.session()
    ours = keyd.challenge(session)
    reflected = identity().sign(signed_by_keyd(CODE, THEIRS, ours, NO_BINDING, TEN))
    assert keyd.refused(session, Presented(reflected, TEN)) == "wrong-proof"


def test_a_time_that_was_not_signed_is_refused() -> None:
    keyd = Keyd()
    session = keyd.session()
    signature = presented(keyd.challenge(session)).signature
    assert keyd.refused(session, Presented(signature, TEN + 1)) == "wrong-proof"


@pytest.mark.parametrize(
    "late", [-CLOCK_SECONDS - 1, -CLOCK_SECONDS, CLOCK_SECONDS, CLOCK_SECONDS + 1]
)
def test_a_signature_is_of_now(late: int) -> None:
    keyd = Keyd()
    session = keyd.session()
    brought = presented(keyd.challenge(session), time=TEN + late)
    if abs(late) <= CLOCK_SECONDS:
        keyd.judge(session, brought)
    else:
        assert keyd.refused(session, brought) == "time"


def test_a_challenge_serves_once_whatever_becomes_of_it() -> None:
    keyd = Keyd()
    session = keyd.session()
    brought = presented(keyd.challenge(session))
    keyd.judge(session, brought)
    assert keyd.refused(session, brought, ChallengeExpired) == "challenge"


def test_a_right_signature_of_somebody_who_may_not_is_refused_alike() -> None:
    reasons = {}
    for reason, registry in {
        "suspended": registered(state=TerminalState.SUSPENDED),
        "hours": registered(hours=("Tue 08:00-09:00",)),
        "network": registered(networks=("10.9.0.0/16",)),
        "proof-not-allowed": registered(proofs=(Proof.KEY_BY_CODE,)),
    }.items():
        keyd = Keyd(registry)
        session = keyd.session()
        reasons[reason] = keyd.refused(session, presented(keyd.challenge(session)))
        assert session.failures == 1
    assert list(reasons) == list(reasons.values())


def test_a_code_without_a_record_or_a_key_costs_a_verification_too() -> None:
    for registry, code in ((registered(), NOBODY), (registered(public_key=b""), CODE)):
        keyd = Keyd(registry)
        session = keyd.session()
        attempt = keyd.terminals.begin_signature(
            session, presented(keyd.challenge(session, code), code=code), keyd.now
        )
        judged = attempt.judge(identity().sign)
        assert judged.reason == "wrong-proof"
        with pytest.raises(TerminalNotAuthentic):
            keyd.terminals.end_signature(session, attempt, judged, keyd.now)


# --- certificates


def chained(keyd: Keyd, chain: bytes, kind: TlsKind = TlsKind.GUOMI) -> str:
    session = keyd.session()
    return keyd.refused(session, certified(keyd.challenge(session), chain, kind))


def trusting(registry: dict[str, Terminal], kind: TlsKind = TlsKind.GUOMI) -> Keyd:
    keyd = Keyd(registry)
    keyd.terminals.anchors = Anchors([Anchor(pki(kind).authority.certificate)])
    return keyd


def test_a_certificate_is_its_terminals_own() -> None:
    terminals = pki(TlsKind.GUOMI).terminals
    keyd = trusting(registered())
    assert chained(keyd, terminals[OTHER_CODE].certificate) == "certificate-code"
    assert chained(keyd, b"no chain") == "certificate-unreadable"
    assert chained(keyd, pki(TlsKind.GUOMI).server.certificate) == "certificate-wrong-use"
    assert chained(Keyd(), terminals[CODE].certificate) == "certificate-not-trusted"
    # Whoever brings a certificate is judged by it: the key on record does not help.
    session = keyd.session()
    brought = presented(keyd.challenge(session), chain=terminals[CODE].certificate)
    assert keyd.refused(session, brought) == "wrong-proof"


def test_a_certificate_of_the_other_kind_signs_nothing_here() -> None:
    keyd = trusting(registered(), TlsKind.STANDARD)
    certificate = pki(TlsKind.STANDARD).terminals[CODE].certificate
    assert chained(keyd, certificate, TlsKind.STANDARD) == "certificate-kind"


def test_a_certificate_counts_between_its_dates() -> None:
    keyd = trusting(registered())
    keyd.now = Moment(5000.0, TEN + 1001)
    session = keyd.session()
    ours = keyd.challenge(session)
    key = load_key(pki(TlsKind.GUOMI).terminals[CODE].private_key)
    message = signed_by_terminal(CODE, THEIRS, ours, NO_BINDING, TEN + 1001)
    chain = pki(TlsKind.GUOMI).terminals[CODE].certificate
    brought = Presented(signature_from_der(key.sign(message)), TEN + 1001, chain)
    assert keyd.refused(session, brought) == "certificate-not-valid"


def test_a_revoked_certificate_is_refused() -> None:
    keyd = Keyd(registered())
    authority = pki(TlsKind.GUOMI).authority
    chain = pki(TlsKind.GUOMI).terminals[CODE].certificate
    free = Anchors([Anchor(authority.certificate)])
    serial = free.verify_untrusted(chain, TEN).serial
    revoked = make_revocation_list(authority, {serial: BEGIN}, BEGIN, END, 1)
    keyd.terminals.anchors = Anchors([Anchor(authority.certificate, revoked)])
    assert chained(keyd, chain) == "certificate-revoked"


def test_only_the_newest_certificate_of_keyds_own_counts() -> None:
    chain = pki(TlsKind.GUOMI).terminals[CODE].certificate
    anchors = Anchors([Anchor(pki(TlsKind.GUOMI).authority.certificate)])
    serial = anchors.verify_untrusted(chain, TEN).serial
    newest = serial.to_bytes(20, "big")
    for certificate, is_good in ((newest, True), ((serial ^ 1).to_bytes(20, "big"), False)):
        keyd = trusting({CODE: replace(registered()[CODE], certificate=certificate)})
        if is_good:
            session = keyd.session()
            keyd.judge(session, certified(keyd.challenge(session), chain))
            # Another one is issued: this one's session is over, and its line.
            keyd.terminals.load({CODE: replace(registered()[CODE], certificate=b"\1")})
            keyd.terminals.review(session, keyd.now)
            assert session.terminal is None
            assert session.must_close
        else:
            assert chained(keyd, chain) == "certificate-serial"


# --- while it is judged


def test_the_old_identity_stays_until_the_new_proof_is_judged() -> None:
    keyd = Keyd()
    session = keyd.session()
    keyd.judge(session, presented(keyd.challenge(session)))
    was = session.terminal
    attempt = keyd.terminals.begin_signature(
        session, presented(keyd.challenge(session), key=other_signer()), keyd.now
    )
    judged = attempt.judge(identity().sign)
    assert session.terminal is was
    with pytest.raises(TerminalNotAuthentic):
        keyd.terminals.end_signature(session, attempt, judged, keyd.now)
    assert session.terminal is None


def test_whoever_goes_on_to_another_proof_is_judged_by_that() -> None:
    keyd = Keyd()
    session = keyd.session()
    first = keyd.terminals.begin_signature(session, presented(keyd.challenge(session)), keyd.now)
    second = keyd.terminals.begin_signature(session, presented(keyd.challenge(session)), keyd.now)
    with pytest.raises(ChallengeExpired):
        keyd.terminals.end_signature(session, first, first.judge(identity().sign), keyd.now)
    assert session.terminal is None
    keyd.terminals.end_signature(session, second, second.judge(identity().sign), keyd.now)
    assert session.terminal is not None


def test_a_proof_under_a_key_overtakes_a_signature_that_is_being_judged() -> None:
    keyd = Keyd(registered(proofs=tuple(Proof), psam_number=bytes(6)))
    session, ring = keyd.session(), KeyRing([synthetic_terminals_master()])
    attempt = keyd.terminals.begin_signature(session, presented(keyd.challenge(session)), keyd.now)
    ours = keyd.challenge(session)
    proof = terminal_proof(synthetic_terminal_key(CODE), THEIRS, ours)
    keyd.terminals.authenticate(session, proof, keyd.now, ring)
    entered = session.terminal
    with pytest.raises(ChallengeExpired):
        keyd.terminals.end_signature(session, attempt, attempt.judge(identity().sign), keyd.now)
    assert session.terminal is entered is not None


def test_a_judgement_of_another_connection_is_none_here() -> None:
    keyd = Keyd()
    mine, theirs = keyd.session(), keyd.session()
    attempt = keyd.terminals.begin_signature(mine, presented(keyd.challenge(mine)), keyd.now)
    with pytest.raises(ChallengeExpired):
        keyd.terminals.end_signature(theirs, attempt, attempt.judge(identity().sign), keyd.now)
    assert theirs.terminal is None


@pytest.mark.parametrize(
    "after",
    [
        {},
        registered(state=TerminalState.LOST),
        registered(public_key=identity().public.encode()),
    ],
    ids=["gone", "lost", "another key"],
)
def test_what_changes_while_it_is_judged_counts(after: dict[str, Terminal]) -> None:
    keyd = Keyd()
    session = keyd.session()
    attempt = keyd.terminals.begin_signature(session, presented(keyd.challenge(session)), keyd.now)
    judged = attempt.judge(identity().sign)
    keyd.terminals.load(after)
    with pytest.raises(TerminalNotAuthentic):
        keyd.terminals.end_signature(session, attempt, judged, keyd.now)
    assert session.terminal is None


def test_a_line_that_was_closed_meanwhile_becomes_nobodys() -> None:
    keyd = Keyd()
    session = keyd.session()
    attempt = keyd.terminals.begin_signature(session, presented(keyd.challenge(session)), keyd.now)
    session.end()
    with pytest.raises(TerminalNotAuthentic):
        keyd.terminals.end_signature(session, attempt, attempt.judge(identity().sign), keyd.now)
    assert session.terminal is None


def test_another_key_on_record_ends_the_session() -> None:
    keyd = Keyd()
    session = keyd.session()
    keyd.judge(session, presented(keyd.challenge(session)))
    keyd.terminals.load(registered(public_key=other_signer().public.encode()))
    keyd.terminals.review(session, keyd.now)
    assert session.terminal is None
    assert session.must_close
