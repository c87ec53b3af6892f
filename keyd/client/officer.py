"""The officer's client: every command signed, over the administration's Unix socket.

    with OfficerClient("/run/keyd/admin.sock", Identity("SOCIAL", "chen", private_key)) as officer:
        officer.ask(Approve(proposal_id))

The private key stays in this process. A command is signed over a challenge of the connection, so it cannot be
repeated by whoever reads the socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import msgspec

from keyd.client.blocking import Client
from keyd.client.conversation import Backoff
from keyd.errors import RemoteProtocolError
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.messages.custody import (
    ListKeys,
    ListProposals,
    OfficerCommand,
    RequestOfficerChallenge,
)
from keyd.protocol.messages.registry import ListIssuedPsams, ListTerminals

if TYPE_CHECKING:
    from types import TracebackType

    from keyd.crypto.sm2 import Sm2PrivateKey
    from keyd.protocol.fields import Request, Response
    from keyd.protocol.messages.custody import ProposalReport, StoredKey
    from keyd.protocol.messages.registry import IssuedPsam, TerminalReport

ResponseT = TypeVar("ResponseT", bound="Response")

# As keyd.custody.officers has it; tests/custody compares the two.
COMMAND_LABEL = b"keyd officer command 1\n"


class Identity(NamedTuple):
    """Who signs: domain, officer's code, and the private key."""

    domain: str
    officer: str
    key: Sm2PrivateKey


class Asks(Protocol):
    """Somebody who asks in an officer's name."""

    def ask(self, request: Request[ResponseT]) -> ResponseT:
        """Sign one command and have it done."""


def all_keys(officer: Asks) -> list[StoredKey]:
    """List a domain's keys, page by page."""
    found: list[StoredKey] = []
    while True:
        page = officer.ask(ListKeys(len(found)))
        found += page.keys
        if not page.keys or len(found) >= page.total:
            return found


def all_proposals(officer: Asks, *, closed: bool) -> list[ProposalReport]:
    """List a domain's proposals, page by page, newest first."""
    found: list[ProposalReport] = []
    while True:
        page = officer.ask(ListProposals(closed, len(found)))
        found += page.proposals
        if not page.proposals or len(found) >= page.total:
            return found


def all_terminals(officer: Asks, *, search: str = "", state: str = "any") -> list[TerminalReport]:
    """List terminals, page by page, by code."""
    found: list[TerminalReport] = []
    while True:
        page = officer.ask(ListTerminals(len(found), search, state))
        found += page.terminals
        if not page.terminals or len(found) >= page.total:
            return found


def all_issued_psams(officer: Asks, *, search: str = "", state: str = "any") -> list[IssuedPsam]:
    """List PSAMs that keyd plays, page by page, by number."""
    found: list[IssuedPsam] = []
    while True:
        page = officer.ask(ListIssuedPsams(len(found), search, state))
        found += page.psams
        if not page.psams or len(found) >= page.total:
            return found


class OfficerClient:
    """A synchronous client for one officer. Not for several threads at once."""

    def __init__(self, socket_path: str, identity: Identity, *, timeout: float = 30.0) -> None:
        self._client = Client(f"unix:{socket_path}", timeout=timeout, backoff=Backoff(attempts=1))
        self._identity = identity

    def ask(self, request: Request[ResponseT]) -> ResponseT:
        """Sign one command and have it done.

        Raises:
            Refusal: keyd's no, as the class that keyd raised.
            ConnectionLost: the line broke. Whether the command was done is in the journal.
            RemoteProtocolError: the answer is none to this question.
        """
        row = BY_REQUEST[type(request)]
        command = msgspec.msgpack.encode([row.method, request])
        opened = self._client.ask(RequestOfficerChallenge())
        domain, officer, key = self._identity
        message = COMMAND_LABEL + msgspec.msgpack.encode(
            [opened.store_id, opened.challenge, f"{domain}/{officer}", command]
        )
        done = self._client.ask(OfficerCommand(domain, officer, command, key.sign(message)))
        try:
            response = msgspec.msgpack.decode(done.result, type=row.response)
        except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
            raise RemoteProtocolError("keyd's answer does not fit the question") from None
        return cast("ResponseT", response)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def __enter__(self) -> OfficerClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
