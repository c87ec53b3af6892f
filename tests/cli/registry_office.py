"""A keyd that has nothing but officers and terminals: what `keyd terminal` is tried against without a store.

It speaks with production code (the connection, the messages, the officers' signatures) and decides as custody does, as
far as the commands of terminals go. It makes the synthetic secrets that its tests look for.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.enrolling import KIND_CODES, KIND_KEYS
from keyd.custody.officers import Officer, OfficerRole, SignedCommand, verify_command
from keyd.errors import (
    BadParameter,
    ComponentRefused,
    OwnProposal,
    ProposalNotFound,
    Refusal,
)
from keyd.keys.block import Domain
from keyd.protocol.commands import OFFICERS, TABLE
from keyd.protocol.connection import ServerConnection, answer_bytes, refusal_bytes
from keyd.protocol.messages import custody, registry
from keyd.registry.terminal import Terminal, TerminalState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from keyd.protocol.connection import Ask

STORE_ID: Final = bytes(range(16))
ROLES: Final = (OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR)

# The pages of a real keyd are longer; these are short so that there are several.
PAGE: Final = 3

_decode_action: Final = msgspec.msgpack.Decoder(act.Action).decode


class Office:
    """Its officers' commands, answered on a Unix socket by one thread."""

    def __init__(self, path: Path, officers: Mapping[str, Sm2PublicKey]) -> None:
        self.officers = {
            code: Officer(Domain.LOCAL, code, code, ROLES, key.encode(), "founding", 0)
            for code, key in officers.items()
        }
        self.terminals: dict[str, Terminal] = {}
        self.proposals: dict[bytes, custody.ProposalReport] = {}
        self.secrets: dict[bytes, dict[str, Any]] = {}
        self.authorities: tuple[registry.AuthorityReport, ...] = ()
        # What the next answer is instead, for what a keyd of another version could say.
        self.refuses_after = 1 << 30
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer:
                    self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        connection = ServerConnection()
        challenge = b""
        while data := peer.recv(65536):
            connection.receive_data_untrusted(data)
            for ask in connection.next_asks_untrusted(64):
                if ask.method == "officer.challenge":
                    challenge = secrets.token_bytes(16)
                    answer = answer_bytes(
                        ask.msgid, custody.OfficerChallenge(challenge, STORE_ID, 120)
                    )
                else:
                    answer = self._answer(ask, challenge)
                peer.sendall(answer)

    def _answer(self, ask: Ask, challenge: bytes) -> bytes:
        try:
            assert ask.method == "officer.command"
            command = msgspec.convert(ask.params, TABLE[ask.method].request, builtin_types=(bytes,))
            assert isinstance(command, custody.OfficerCommand)
            officer = self.officers.get(command.officer)
            signed = SignedCommand(
                Domain(command.domain), command.officer, command.command, command.signature
            )
            verify_command(officer, signed, STORE_ID, challenge)
            method, params = msgspec.msgpack.decode(command.command)
            request = msgspec.convert(params, OFFICERS[method].request, builtin_types=(bytes,))
            done = self._do(command.officer, request)
            return answer_bytes(ask.msgid, custody.CommandDone(msgspec.msgpack.encode(done)))
        except Refusal as refusal:
            return refusal_bytes(ask.msgid, refusal)

    def _do(self, officer: str, request: Any) -> Any:
        match request:
            case custody.Propose():
                return self._propose(officer, request)
            case custody.Approve():
                return self._approve(officer, self._proposal(request.proposal_id))
            case custody.ShowProposal():
                return self._outcome(self._proposal(request.proposal_id))
            case custody.ListKeys():
                return custody.StoredKeys((), 0)
            case custody.Take():
                return self._take(officer, request.proposal_id)
            case registry.ListTerminals():
                return self._list(request)
            case registry.ShowTerminal():
                return self._report(self._terminal(request.code))
            case registry.StopTerminal():
                stopped = replace(
                    self._terminal(request.code),
                    state=TerminalState(request.state),
                    reason=request.reason,
                )
                self.terminals[request.code] = stopped
                return self._report(stopped)
            case registry.ListAuthorities():
                return registry.AuthorityList(self.authorities)
        raise AssertionError(request)

    # Dual control ---------------------------------------------------------------------------------------

    def _propose(self, officer: str, request: custody.Propose) -> custody.ProposalOutcome:
        _decode_action(request.action)
        if len(self.proposals) >= self.refuses_after:
            raise BadParameter("there are as many proposals as there may be")
        now = int(time.time())
        report = custody.ProposalReport(
            proposal_id=secrets.token_bytes(8), domain="LOCAL", action=request.action, note=request.note,
            state="open", proposed_by=officer, proposed_at=now, expires_at=now + 259_200, decided_by="",
            decided_at=0, components={}, waiting_for=(),
        )  # fmt: skip
        self.proposals[report.proposal_id] = report
        return self._outcome(report)

    def _approve(self, officer: str, report: custody.ProposalReport) -> custody.ProposalOutcome:
        if report.proposed_by == officer:
            raise OwnProposal
        action = _decode_action(report.action)
        match action:
            case act.EnrolTerminals():
                for spec in action.terminals:
                    state = TerminalState.ACTIVE if action.activate else TerminalState.ENROLLED
                    old = self.terminals.get(spec.code)
                    self.terminals[spec.code] = (
                        replace(old, spec=spec)
                        if old
                        else Terminal(
                            spec, state, f"{report.proposed_by}+{officer}", int(time.time())
                        )
                    )
            case act.ActivateTerminals():
                for code in action.codes:
                    self.terminals[code] = replace(
                        self._terminal(code), state=TerminalState.ACTIVE, reason=""
                    )
            case act.GiveEnrolmentCodes():
                codes = {
                    code: "-".join(secrets.token_hex(2).upper() for _ in "1234")
                    for code in action.codes
                }
                self.secrets[report.proposal_id] = codes
            case act.GiveTerminalKeys():
                keys = {code: secrets.token_bytes(16) for code in action.codes}
                self.secrets[report.proposal_id] = keys
        done = replace(report, state="done", decided_by=officer, decided_at=int(time.time()))
        self.proposals[report.proposal_id] = done
        return self._outcome(done)

    def _outcome(self, report: custody.ProposalReport) -> custody.ProposalOutcome:
        return custody.ProposalOutcome(report, {})

    def _proposal(self, proposal_id: bytes) -> custody.ProposalReport:
        if proposal_id not in self.proposals:
            raise ProposalNotFound
        return self.proposals[proposal_id]

    def _take(self, officer: str, proposal_id: bytes) -> custody.Taken:
        action = _decode_action(self._proposal(proposal_id).action)
        assert isinstance(action, act.GiveEnrolmentCodes | act.GiveTerminalKeys)
        if action.officer != officer or proposal_id not in self.secrets:
            raise ComponentRefused("there is nothing for this officer")
        key = Sm2PublicKey.load(self.officers[officer].public_key)
        kind = KIND_CODES if isinstance(action, act.GiveEnrolmentCodes) else KIND_KEYS
        plaintext = msgspec.msgpack.encode(self.secrets[proposal_id])
        return custody.Taken(key.encrypt(kind + plaintext), b"")

    # The registry ---------------------------------------------------------------------------------------

    def _terminal(self, code: str) -> Terminal:
        if code not in self.terminals:
            raise BadParameter(f"there is no terminal {code}")
        return self.terminals[code]

    def _list(self, request: registry.ListTerminals) -> registry.TerminalList:
        found = [
            terminal
            for code, terminal in sorted(self.terminals.items())
            if request.search in code + terminal.spec.organisation + terminal.spec.region
            and request.state in ("any", terminal.state)
        ]
        page = found[request.offset : request.offset + PAGE]
        return registry.TerminalList(tuple(map(self._report, page)), len(found))

    def _report(self, terminal: Terminal) -> registry.TerminalReport:
        encoded = msgspec.msgpack.encode(terminal)
        return registry.TerminalReport(encoded, 1_764_547_200, "10.1.2.3", 7, 1)
