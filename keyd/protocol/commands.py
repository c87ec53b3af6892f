"""THE TABLE: every command, once.

Server, client, command line, manual, metrics and fuzzers read it; nothing else lists commands. A new command
is two message types, one row here and one handler.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, get_args

from keyd.protocol.fields import Request, Response
from keyd.protocol.messages import card, custody, daemon, library, medical, psam, registry, terminal

# A batch is one message and one share of a tick: 256 cards of about 120 bytes fit into MAX_MESSAGE.
MAX_BATCH: Final = 256

BATCH_SUFFIX: Final = "_batch"


class Role(enum.Enum):
    """Who may ask."""

    ANYONE = "anyone"
    TERMINAL = "an authenticated terminal"
    OPERATOR = "an authenticated terminal, or the operator on the Unix socket"
    ADMINISTRATION = "anybody on the administration's socket"
    OFFICER = "an officer, in a signed command"
    ENROLMENT = "a machine with an enrolment code, on an enrolment line"
    SELF = "an authenticated terminal, about itself"


class Cost(enum.Enum):
    """Where the work is done."""

    TICK = "in the tick"
    SLOW = "outside the tick, in a bounded task"


@dataclass(frozen=True, slots=True)
class Command:
    """One row. `audited` commands use a key or change who may; issue and version live with the messages."""

    method: str
    request: type[Request[Any]]
    response: type[Response]
    role: Role
    cost: Cost
    audited: bool
    # Hot commands have a second method that takes a list of parameter lists and answers a list of
    # [error, result], so that one bad card does not spoil the batch.
    has_batch: bool

    @property
    def family(self) -> str:
        """The part before the dot."""
        return self.method.partition(".")[0]


def _row(
    method: str,
    request: type[Request[Any]],
    role: Role = Role.TERMINAL,
    *,
    cost: Cost = Cost.TICK,
    audited: bool = True,
    batch: bool = False,
) -> Command:
    return Command(method, request, _response_of(request), role, cost, audited, batch)


def _seal_row(method: str, request: type[Request[Any]]) -> Command:
    return _row(method, request, Role.ADMINISTRATION, cost=Cost.SLOW)


def _psam_row(method: str, request: type[Request[Any]]) -> Command:
    # A PSAM is waited for: for a turn on it, and for its chip.
    return _row(method, request, cost=Cost.SLOW)


def _officer_row(method: str, request: type[Request[Any]]) -> Command:
    return _row(method, request, Role.OFFICER, cost=Cost.SLOW)


def _response_of(request: type[Request[Any]]) -> type[Response]:
    for base in getattr(request, "__orig_bases__", ()):
        for argument in get_args(base):
            if isinstance(argument, type) and issubclass(argument, Response):
                return argument
    raise TypeError(f"{request.__name__} does not name its response")


TABLE: Final[dict[str, Command]] = {
    row.method: row
    for row in (
        _row("daemon.status", daemon.AskStatus, Role.OPERATOR, audited=False),
        _row("daemon.selftest", daemon.RunSelftest, Role.OPERATOR, cost=Cost.SLOW),
        _row("daemon.random", daemon.AskRandom, audited=False),
        _row("terminal.challenge", terminal.RequestChallenge, Role.ANYONE, audited=False),
        _row("terminal.authenticate", terminal.AuthenticateTerminal, Role.ANYONE),
        _row(
            "terminal.authenticate_signature",
            terminal.AuthenticateSignature,
            Role.ANYONE,
            cost=Cost.SLOW,
        ),
        _row("terminal.enrol", registry.EnrolWithCode, Role.ENROLMENT, cost=Cost.SLOW),
        _row("terminal.renew", registry.RenewCertificate, Role.SELF, cost=Cost.SLOW),
        _row("card.internal_cryptogram", card.InternalCryptogram, batch=True),
        _row("card.internal_authenticate", card.InternalAuthenticate, batch=True),
        _row("card.external_authenticate", card.ExternalAuthenticate, batch=True),
        _row("card.mutual_cryptograms", card.MutualCryptograms, batch=True),
        _row("card.mutual_authenticate", card.MutualAuthenticate, batch=True),
        _row("card.secure_message", card.SecureMessage, batch=True),
        _row("card.pin_unblock", card.PinUnblock, batch=True),
        _row("card.pin_reload", card.PinReload, batch=True),
        _row("medical.make_purchase", medical.MakePurchase, batch=True),
        _row("medical.confirm_purchase", medical.ConfirmPurchase, batch=True),
        _row("medical.make_load", medical.MakeLoad, batch=True),
        _row("medical.confirm_load", medical.ConfirmLoad, batch=True),
        _row("library.read_card_bas", library.ReadCardBas),
        _row("library.read_card", library.ReadCard),
        _row("library.write_card", library.WriteCard),
        _row("library.reload_pin_1", library.ReloadPin1),
        _row("library.reload_pin_2", library.ReloadPin2),
        _row("library.unblock_pin_1", library.UnblockPin1),
        _row("library.unblock_pin_2", library.UnblockPin2),
        _row("library.do_debit_1", library.DoDebit1),
        _row("library.do_debit_2", library.DoDebit2),
        _psam_row("psam.open", psam.AskOpen),
        _psam_row("psam.transmit", psam.Transmit),
        _psam_row("psam.transmit_many", psam.TransmitMany),
        _psam_row("psam.run", psam.RunScript),
        _psam_row("psam.run_once", psam.RunOnce),
        _psam_row("psam.close", psam.Close),
        _psam_row("psam.internal_authenticate", psam.PsamInternalAuthenticate),
        _psam_row("psam.external_authenticate", psam.PsamExternalAuthenticate),
        _psam_row("psam.make_purchase", psam.PsamMakePurchase),
        _psam_row("psam.confirm_purchase", psam.PsamConfirmPurchase),
        _row("psam.list", psam.ListMembers, Role.OPERATOR, audited=False),
        _seal_row("seal.status", custody.AskSeal),
        _seal_row("seal.give_share", custody.GiveShare),
        _seal_row("seal.forget_shares", custody.ForgetShares),
        _seal_row("officer.challenge", custody.RequestOfficerChallenge),
        _seal_row("officer.command", custody.OfficerCommand),
        _officer_row("seal.close", custody.SealNow),
        _officer_row("proposal.make", custody.Propose),
        _officer_row("proposal.approve", custody.Approve),
        _officer_row("proposal.reject", custody.Reject),
        _officer_row("proposal.list", custody.ListProposals),
        _officer_row("proposal.show", custody.ShowProposal),
        _officer_row("component.enter", custody.EnterComponent),
        _officer_row("component.take", custody.Take),
        _officer_row("share.confirm", custody.ConfirmShare),
        _officer_row("key.list", custody.ListKeys),
        _officer_row("officer.list", custody.ListOfficers),
        _officer_row("backup.take", custody.TakeBackup),
        _officer_row("terminal.list", registry.ListTerminals),
        _officer_row("terminal.show", registry.ShowTerminal),
        _officer_row("terminal.stop", registry.StopTerminal),
        _officer_row("authority.list", registry.ListAuthorities),
        _officer_row("psam.issued", registry.ListIssuedPsams),
        _officer_row("psam.show", registry.ShowIssuedPsam),
        _officer_row("psam.lose", registry.LosePsam),
    )
}

BATCHES: Final[dict[str, Command]] = {
    row.method + BATCH_SUFFIX: row for row in TABLE.values() if row.has_batch
}

# What a signed command may carry.
OFFICERS: Final[dict[str, Command]] = {
    row.method: row for row in TABLE.values() if row.role is Role.OFFICER
}

BY_REQUEST: Final[dict[type[Request[Any]], Command]] = {row.request: row for row in TABLE.values()}
