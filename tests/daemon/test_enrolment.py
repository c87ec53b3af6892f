"""From the officers' decision to an answer, and to the end of a stolen machine: on real daemons and real lines."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keyd.client import Client, ConnectionLost, SignatureEnrolment
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody import actions as act
from keyd.custody.enrolling import KIND_CODES
from keyd.errors import EnrolmentRefused, NotAllowed, TerminalNotAuthentic
from keyd.keys.block import Domain
from keyd.protocol.messages.custody import Approve, AskSeal, Propose, Take
from keyd.protocol.messages.daemon import AskRandom
from keyd.protocol.messages.registry import (
    EnrolWithCode,
    ListAuthorities,
    RenewCertificate,
    ShowTerminal,
    StopTerminal,
)
from keyd.registry.terminal import Proof, Terminal, TerminalSpec
from keyd.tls import TlsClientContext, TlsKind, TlsUnusable
from keyd.tls.pki import generate_key, load_key, make_request
from tests.daemon.encrypted import SERVER_NAME, entry, pki, write_pki
from tests.daemon.test_custody import Place, two_keys
from tests.founded import founded_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import StartDaemon
    from tests.daemon.test_custody import Connect, Running

LOCAL: Final = Domain.LOCAL
CODE: Final = "DESK-0001"
GUOMI: Final = TlsKind.GUOMI


def spec(code: str = CODE, **fields: Any) -> TerminalSpec:
    wanted: dict[str, Any] = {"organisation": "org", "region": "510100", "roles": ("development",)}
    return TerminalSpec(code, proofs=(Proof.SIGNATURE,), **(wanted | fields))


class Machine:
    """A machine with an SM2 key of its own."""

    def __init__(self, office: Office, code: str = CODE) -> None:
        self.office = office
        self.code = code
        self.pem = generate_key(GUOMI)
        self.chain = b""

    @property
    def request(self) -> bytes:
        return make_request(load_key(self.pem), self.code)

    def ask_for_certificate(self, code: str, terminal: str | None = None) -> None:
        context = TlsClientContext(
            GUOMI,
            certificate=None,
            private_key=None,
            server_authorities=pki(GUOMI).authority.certificate,
        )
        with Client(self.office.enrolment_address, tls=context) as line:
            asked = EnrolWithCode(terminal or self.code, code, self.request)
            self.chain = line.ask(asked).chain

    def client(self, code: str | None = None, keyd: Running | None = None) -> Client:
        """Return a client that proves itself with a signature, on a line with the machine's certificate."""
        context = TlsClientContext(
            GUOMI,
            certificate=self.chain,
            private_key=self.pem,
            server_authorities=pki(GUOMI).authority.certificate,
        )
        enrolment = SignatureEnrolment(
            code or self.code, _private_key(self.pem), self.office.public_key, self.chain
        )
        address = (keyd or self.office.keyd).daemon.ready["encrypted"][0]
        return Client(str(address), enrolment, tls=context, timeout=20)


def _private_key(pem: bytes) -> Sm2PrivateKey:
    key = load_key(pem)
    private: Sm2PrivateKey = key._key  # type: ignore[attr-defined]  # as the machine's own file would be read
    return private


class Office:
    """A daemon whose encrypted lines believe its own authority."""

    def __init__(self, place: Place, **settings: Any) -> None:
        self.place = place
        folder = place.folder
        folder.mkdir(exist_ok=True)
        write_pki(folder, GUOMI)
        lines = [
            line
            for line in (*entry(folder, GUOMI), *entry(folder, GUOMI, enrolment=True))
            if not line.startswith("revoked")
        ]
        self.keyd = place.start(audit="\n".join(lines), **settings)
        self._lines = lines
        self.public_key = bytes(self.keyd.admin().ask("seal.status")[3][6])

    @property
    def enrolment_address(self) -> str:
        return str(self.keyd.daemon.ready["encrypted"][1])

    def make_authority(self) -> None:
        """Let officers make keyd's CA, and let the line believe it."""
        self.keyd.decide(LOCAL, act.MakeAuthority("guomi", "keyd CA", 10))
        with self.keyd.officer(LOCAL, "auditor") as officer:
            (authority,) = officer.ask(ListAuthorities()).authorities
        (self.place.folder / "guomi-ca.pem").write_bytes(authority.certificate)
        self.keyd.daemon.process.send_signal(signal.SIGHUP)
        self.keyd.daemon.wait_for("reloaded")

    def enrol(self, *specs: TerminalSpec, activate: bool = True) -> None:
        self.keyd.decide(LOCAL, act.EnrolTerminals(specs or (spec(),), activate))

    def code_for(self, code: str = CODE) -> str:
        with (
            self.keyd.officer(LOCAL, "proposer") as one,
            self.keyd.officer(LOCAL, "approver") as two,
        ):
            action = act.GiveEnrolmentCodes((code,), "custodian-1")
            proposal = one.ask(Propose(msgspec.msgpack.encode(action))).proposal.proposal_id
            two.ask(Approve(proposal))
        with self.keyd.officer(LOCAL, "custodian-1") as custodian:
            envelope = custodian.ask(Take(proposal)).envelope
        plain = self.keyd.founded.officers[LOCAL, "custodian-1"].decrypt(envelope)
        return str(msgspec.msgpack.decode(plain.removeprefix(KIND_CODES))[code])

    def machine(self, code: str = CODE) -> Machine:
        """A machine that has its certificate."""
        machine = Machine(self, code)
        machine.ask_for_certificate(self.code_for(code))
        return machine

    def stop(self, state: str, code: str = CODE) -> None:
        with self.keyd.officer(LOCAL, "proposer") as officer:
            officer.ask(StopTerminal(code, state, "reported"))

    def shown(self, code: str = CODE) -> Any:
        with self.keyd.officer(LOCAL, "auditor") as officer:
            return officer.ask(ShowTerminal(code))


@pytest.fixture
def place(tmp_path: Path, start_daemon: StartDaemon, raw: Connect) -> Callable[[], Place]:
    """Found a store with few keys."""

    def make() -> Place:
        founded = founded_store(tmp_path, two_keys())
        return Place(tmp_path / "one", founded, start_daemon, raw)

    return make


@pytest.fixture
def office(place: Callable[[], Place]) -> Office:
    made = Office(place())
    made.make_authority()
    made.enrol()
    return made


def test_a_machine_comes_in_with_its_code_and_proves_itself_ever_after(office: Office) -> None:
    machine = office.machine()
    with machine.client() as client:
        client.ask(AskRandom(8))
    kept = msgspec.msgpack.decode(office.shown().terminal, type=Terminal)
    assert kept.certificate
    assert kept.enrolment == b""


def test_a_code_serves_once(office: Office) -> None:
    code = office.code_for()
    Machine(office).ask_for_certificate(code)
    with pytest.raises(EnrolmentRefused):
        Machine(office).ask_for_certificate(code)
    with pytest.raises(EnrolmentRefused):
        Machine(office).ask_for_certificate(office.code_for(), terminal="NOBODY")


@pytest.mark.parametrize("state", ["suspended", "lost", "retired"])
def test_a_stopped_machine_is_out_within_a_second(office: Office, state: str) -> None:
    machine = office.machine()
    with machine.client() as client:
        client.ask(AskRandom(8))
        office.stop(state)
        # The officer has the answer: by then it is so.
        with pytest.raises((ConnectionLost, TerminalNotAuthentic)):
            client.ask(AskRandom(8))
    with pytest.raises(ConnectionLost), machine.client() as again:
        again.connect()


def test_it_is_out_on_every_keyd_of_the_store(place: Callable[[], Place], tmp_path: Path) -> None:
    first = place()
    office = Office(first)
    office.make_authority()
    office.enrol()
    machine = office.machine()
    second = type(first)(tmp_path / "second", first.founded, first._start_daemon, first._connect)
    second.folder.mkdir()
    other = second.start(audit="\n".join(office._lines), instance="keyd2")
    with machine.client(keyd=other) as client:
        client.ask(AskRandom(8))
        office.stop("lost")
        began = time.monotonic()
        while time.monotonic() - began < 10:
            try:
                client.ask(AskRandom(8))
            except (ConnectionLost, TerminalNotAuthentic):
                break
        # A second to ask the store, and what a busy machine adds to it.
        assert time.monotonic() - began < 5


def test_two_officers_let_a_machine_in_again(office: Office) -> None:
    machine = office.machine()
    office.stop("suspended")
    with pytest.raises(ConnectionLost), machine.client() as client:
        client.connect()
    office.keyd.decide(LOCAL, act.ActivateTerminals((CODE,)))
    with machine.client() as client:
        client.ask(AskRandom(8))


def test_a_certificate_is_no_use_on_anothers_line_or_for_another(office: Office) -> None:
    """A stolen certificate, and a terminal that has one of its own and wants to be somebody else."""
    office.enrol(spec("DESK-0002"))
    thief, owner = office.machine("DESK-0002"), office.machine()
    with pytest.raises(TerminalNotAuthentic), thief.client(code=CODE) as client:
        client.connect()
    # With the owner's chain, and the thief's own key, there is not even a line.
    thief.chain = owner.chain
    with pytest.raises(TlsUnusable, match="not the certificate's"):
        thief.client()
    with owner.client() as client:
        client.ask(AskRandom(8))


def test_a_renewed_certificate_ends_the_one_before(office: Office) -> None:
    machine = office.machine()
    old = machine.chain
    with machine.client() as client:
        machine.chain = client.ask(RenewCertificate(machine.request)).chain
    with machine.client() as client:
        client.ask(AskRandom(8))
    machine.chain = old
    with pytest.raises(ConnectionLost), machine.client() as client:
        client.connect()


def test_roles_change_while_a_machine_is_there(office: Office) -> None:
    machine = office.machine()
    with machine.client() as client:
        client.ask(AskRandom(8))
        office.enrol(spec(roles=("another",)))
        with pytest.raises(NotAllowed):
            client.ask(AskRandom(8))
        office.enrol(spec())
        client.ask(AskRandom(8))


def test_what_was_seen_of_a_machine_is_written_down_at_the_end(office: Office) -> None:
    machine = office.machine()
    with machine.client() as client:
        client.ask(AskRandom(8))
    assert office.keyd.daemon.terminate() == 0
    office.keyd = office.place.start(audit="\n".join(office._lines))
    report = office.shown()
    assert (report.authentications, report.last_source) == (1, SERVER_NAME)
    assert abs(report.last_seen - time.time()) < 120


def test_the_enrolment_line_answers_nothing_else(office: Office) -> None:
    context = TlsClientContext(
        GUOMI,
        certificate=None,
        private_key=None,
        server_authorities=pki(GUOMI).authority.certificate,
    )
    with Client(office.enrolment_address, tls=context) as line:
        for request in (AskRandom(8), AskSeal(), ListAuthorities()):
            with pytest.raises(Exception, match="on this line machines ask for a certificate"):
                line.ask(request)
    with contextlib.closing(socket.create_connection(_place(office.enrolment_address))) as plain:
        plain.settimeout(10)
        plain.sendall(msgspec.msgpack.encode([0, 1, "terminal.enrol", [CODE, "x", b"y"]]))
        heard = plain.recv(100)
        assert b"ENROLMENT" not in heard


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
