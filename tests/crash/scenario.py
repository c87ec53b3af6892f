"""What is going on when a daemon is killed: a custody's life in phases, each of some steps that a client is answered.

`Facts` is what the people know: what was acknowledged to them. A phase begins with a start on the files that the
phase before has left, and ends with an end in order; each may be killed in as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from keyd.client import ConnectionLost
from keyd.client.officer import all_keys, all_proposals
from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import Share, decode_share, encode_share, share_commitment
from keyd.crypto.sm2 import Sm2PrivateKey, Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.backup import verify_backup
from keyd.custody.officers import OfficerRole
from keyd.custody.rekeying import KIND_SHARE
from keyd.errors import KeyExhausted, Overloaded
from keyd.keys.block import Domain, Export, Tier, Use
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalCryptogram
from keyd.protocol.messages.custody import (
    Approve,
    AskSeal,
    ConfirmShare,
    EnterComponent,
    GiveShare,
    ListOfficers,
    ProposalOutcome,
    Propose,
    Reject,
    SealNow,
    StoredKey,
    Take,
    TakeBackup,
)
from tests.pump.conftest import CARD, CHALLENGE, FACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.crash.grounds import Daemon

IRK: Final = 0x0170
CUSTODIANS: Final = ("custodian-1", "custodian-2", "custodian-3")

# A lease is a hundredth: every tenth use asks the store for more.
CEILING: Final = 2000
LEASE: Final = 20
USES: Final = 15

# What the scenario's people type. It is no secret: it is recognisable.
COMPONENTS: Final = (bytes.fromhex("C0" * 8 + "11" * 8), bytes.fromhex("0D" * 8 + "22" * 8))

QUESTION: Final = InternalCryptogram(
    CardIdentity(CARD.card_id, CARD.historical), FACTOR, CHALLENGE, IRK
)
METHOD: Final = "card.internal_cryptogram"


@dataclass
class Facts:
    """What was acknowledged so far."""

    proposals: dict[str, bytes] = field(default_factory=dict)
    """By note."""
    keys: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Id and check value, by the note of the proposal that made it."""
    good: int = 0
    """Uses of the counted key that were answered."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """What the card's cryptogram is, by the key version that answers."""
    salt: bytes = b""
    """What new shares are confirmed with."""
    new_shares: dict[str, Share] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    """Those of the seal that holds."""
    backup: bytes = b""

    def copied(self) -> Facts:
        """Return the same facts, apart."""
        return replace(
            self,
            proposals=dict(self.proposals),
            keys=dict(self.keys),
            answers=dict(self.answers),
            new_shares=dict(self.new_shares),
            shares=list(self.shares),
        )


class Run:
    """One run of a phase: a daemon and what its people know."""

    def __init__(self, daemon: Daemon, facts: Facts) -> None:
        self.daemon = daemon
        self.facts = facts.copied()
        # For a lease, in seconds.
        self.patience = 5.0
        self.new_officer = Sm2PrivateKey.generate()

    # What people do ---------------------------------------------------------------------------------------

    def propose(self, note: str, action: act.Action, domain: Domain = Domain.SOCIAL) -> None:
        """Let the proposer propose."""
        asked = Propose(msgspec.msgpack.encode(action), note)
        done = self.daemon.officer(domain, "proposer").ask(asked)
        self.facts.proposals[note] = done.proposal.proposal_id

    def approve(self, note: str, domain: Domain = Domain.SOCIAL) -> ProposalOutcome:
        """Let the approver approve."""
        done = self.daemon.officer(domain, "approver").ask(Approve(self.facts.proposals[note]))
        if "kcv" in done.result and "key_id" in done.result:
            self.facts.keys[note] = (done.result["key_id"], done.result["kcv"])
        return done

    def reject(self, note: str, domain: Domain = Domain.SOCIAL) -> None:
        """Let the approver reject."""
        self.daemon.officer(domain, "approver").ask(Reject(self.facts.proposals[note]))

    def enter(self, note: str, number: int) -> None:
        """Let a custodian enter a component."""
        component = COMPONENTS[number - 1]
        public = self.daemon.seal.ask(AskSeal()).public_key
        envelope = Sm2PublicKey.load(public).encrypt(component)
        kcv = SecretKey.load(Algorithm.SM4, component).kcv()
        self.daemon.officer(Domain.SOCIAL, CUSTODIANS[number - 1]).ask(
            EnterComponent(self.facts.proposals[note], number, envelope, kcv)
        )

    def take_share(self, code: str) -> None:
        """Let a custodian take the new share."""
        officer = self.daemon.officer(Domain.LOCAL, code)
        taken = officer.ask(Take(self.facts.proposals["rekey"]))
        text = self.daemon.grounds.officers[Domain.LOCAL, code].decrypt(taken.envelope)
        assert text.startswith(KIND_SHARE)
        self.facts.new_shares[code] = decode_share(text.removeprefix(KIND_SHARE).decode())
        self.facts.salt = taken.salt

    def confirm_share(self, code: str) -> None:
        """Let a custodian confirm the new share; with the last, the new seal holds."""
        share = self.facts.new_shares[code]
        commitment = share_commitment(share, self.facts.salt)
        officer = self.daemon.officer(Domain.LOCAL, code)
        done = officer.ask(ConfirmShare(self.facts.proposals["rekey"], commitment))
        if done.proposal.state == "done":
            self.facts.shares = list(self.facts.new_shares.values())

    def use(self, version: str) -> None:
        """Let the terminal use the key some times; the answer is the same each time."""
        for _ in range(USES):
            reply = self._answer()
            if version == "1":
                self.facts.good += 1
            assert self.facts.answers.setdefault(version, reply) == reply

    def _answer(self) -> bytes:
        # The store may be slower than the uses: a lease that is on its way is no ceiling that is reached.
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self.daemon.terminal.ask(QUESTION).reply
            except (KeyExhausted, Overloaded):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def back_up(self) -> None:
        """Take a backup, part by part."""
        officer = self.daemon.officer(Domain.LOCAL, "proposer")
        first = officer.ask(TakeBackup())
        whole = first.part
        while len(whole) < first.total:
            whole += officer.ask(TakeBackup(len(whole))).part
        verify_backup(whole)
        self.facts.backup = whole

    def seal(self) -> None:
        """Let the operator seal."""
        self.daemon.officer(Domain.LOCAL, "proposer").ask(SealNow("a test"))

    def give_share(self, place: int) -> None:
        """Give a share."""
        self.daemon.seal.ask(GiveShare(encode_share(self.facts.shares[place])))


class Step(NamedTuple):
    """Something that is asked and answered."""

    name: str
    do: Callable[[Run], Any]


def _propose(
    note: str, action: Callable[[Run], act.Action], domain: Domain = Domain.SOCIAL
) -> Step:
    return Step(f"propose {note}", lambda run: run.propose(note, action(run), domain))


def _approve(note: str, domain: Domain = Domain.SOCIAL) -> Step:
    return Step(f"approve {note}", lambda run: run.approve(note, domain))


def _decide(note: str, action: Callable[[Run], act.Action]) -> tuple[Step, Step]:
    return _propose(note, action), _approve(note)


def _root(**fields: Any) -> act.KeySpec:
    values: dict[str, Any] = {
        "tier": Tier.NATIONAL,
        "name": "IRK",
        "algorithm": Algorithm.SM4,
        "use": Use.INTERNAL,
        "addresses": (IRK,),
        "levels": 3,
    }
    return act.KeySpec(**(values | fields))


def _key(run: Run, note: str) -> bytes:
    return run.facts.keys[note][0]


def _enter(number: int) -> Step:
    return Step(f"enter {number}", lambda run: run.enter("import", number))


def _take(code: str) -> Step:
    return Step(f"take {code}", lambda run: run.take_share(code))


def _confirm(code: str) -> Step:
    return Step(f"confirm {code}", lambda run: run.confirm_share(code))


_TRANSPORT: Final = {
    "name": "KEK",
    "use": Use.TRANSPORT,
    "addresses": (),
    "levels": 0,
    "ceiling": 10,
}

PHASES: Final[Mapping[str, tuple[Step, ...]]] = {
    "import": (
        _propose("import", lambda _run: act.ImportKey(_root(ceiling=CEILING), 2)),
        _enter(1),
        _enter(2),
        _approve("import"),
        *_decide("activate 1", lambda run: act.Activate(_key(run, "import"))),
    ),
    "use": tuple(Step(f"use {turn}", lambda run: run.use("1")) for turn in range(4)),
    "rotate": (
        *_decide("next", lambda _run: act.GenerateKey(_root(export=Export.WRAPPED))),
        Step("use old", lambda run: run.use("1")),
        *_decide("activate 2", lambda run: act.Activate(_key(run, "next"))),
        Step("use new", lambda run: run.use("2")),
        *_decide(
            "permit", lambda run: act.Permit(_key(run, "import"), ceiling=CEILING - 100, warn_at=0)
        ),
        *_decide("deactivate", lambda run: act.Deactivate(_key(run, "import"))),
    ),
    "export": (
        *_decide("transport", lambda _run: act.GenerateKey(_root(**_TRANSPORT))),
        *_decide("activate 3", lambda run: act.Activate(_key(run, "transport"))),
        *_decide(
            "export",
            lambda run: act.ExportKey(
                _key(run, "next"), _key(run, "transport"), act.TransportFormat.BLOCK
            ),
        ),
    ),
    "people": (
        *_decide(
            "enrol",
            lambda run: act.EnrolOfficer(
                "wang", "Wang", (OfficerRole.AUDITOR,), run.new_officer.public.encode()
            ),
        ),
        *_decide("retire", lambda _run: act.RetireOfficer("custodian-3")),
        _propose("never", lambda run: act.Destroy(_key(run, "next"))),
        Step("reject never", lambda run: run.reject("never")),
        *_decide("destroy", lambda run: act.Destroy(_key(run, "import"), waiting_days=30)),
    ),
    "backup": (Step("back up", Run.back_up), Step("back up again", Run.back_up)),
    "rekey": (
        _propose("rekey", lambda _run: act.Rekey(2, CUSTODIANS), Domain.LOCAL),
        _approve("rekey", Domain.LOCAL),
        *(_take(code) for code in CUSTODIANS),
        *(_confirm(code) for code in CUSTODIANS),
    ),
    "seal": (
        Step("seal", Run.seal),
        Step("give 1", lambda run: run.give_share(0)),
        Step("give 2", lambda run: run.give_share(2)),
        Step("use after", lambda run: run.use("2")),
    ),
}


def run_phase(
    daemon: Daemon,
    phase: str,
    facts: Facts,
    after_step: Callable[[int], None] = lambda _place: None,
) -> tuple[Run, int]:
    """Run a phase from the start to the end of its daemon, or to where it dies.

    Returns the run and how many steps were acknowledged, the start and the end among them.
    """
    run = Run(daemon, facts)
    place = 0
    try:
        daemon.ready()
        after_step(place)
        for step in PHASES[phase]:
            place += 1
            step.do(run)
            after_step(place)
    except ConnectionLost:
        daemon.wait()
        return run, place
    if daemon.end() != 0:
        return run, place + 1
    return run, place + 2


class State(NamedTuple):
    """What a store holds, in names that are the same in every run."""

    keys: tuple[tuple[str, ...], ...]
    officers: tuple[tuple[Any, ...], ...]
    proposals: tuple[tuple[str, str], ...]
    generation: int


def stored_keys(daemon: Daemon) -> dict[bytes, StoredKey]:
    """Ask for all keys, by id."""
    auditor = daemon.officer(Domain.SOCIAL, "auditor")
    return {key.key_id: key for key in all_keys(auditor)}


def some_action(daemon: Daemon) -> bytes:
    """Return an action that can be proposed, encoded: on the first key that there is."""
    return msgspec.msgpack.encode(act.Destroy(next(iter(stored_keys(daemon)))))


def state_of(daemon: Daemon) -> State:
    """Ask an unsealed daemon for everything that two people can change."""
    shown = ("name", "version", "state", "ceiling", "minimum_version")
    keys = [
        (*(key.header[name] for name in shown), str(key.is_gone))
        for key in stored_keys(daemon).values()
    ]
    officers, proposals = [], []
    for domain in (Domain.SOCIAL, Domain.LOCAL):
        auditor = daemon.officer(domain, "auditor")
        officers += [
            (one.domain, one.officer, one.roles, one.is_retired)
            for one in auditor.ask(ListOfficers()).officers
        ]
        proposals += [(one.note, one.state) for one in all_proposals(auditor, closed=True)]
    generation = daemon.seal.ask(AskSeal()).generation
    return State(tuple(sorted(keys)), tuple(sorted(officers)), tuple(sorted(proposals)), generation)
