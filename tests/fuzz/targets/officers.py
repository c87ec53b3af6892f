"""What officers sign, whole: any commands, each signed as it should be, are done or refused with a `Refusal`.

An input is up to ten MessagePack arrays [who, method, params]. Where an officer would have to know something that this
keyd drew, it says so in a word that is put in: proposals and keys by number, an envelope to keyd around some bytes.
Afterwards another keyd opens the store with the same shares, whatever was decided, and no component is anywhere in the
answers and in the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from keyd.audit.journal import Journal
from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.officers import command_message
from keyd.errors import Refusal
from keyd.handlers.custody import officer_challenge, officer_command
from keyd.handlers.services import Services
from keyd.keys.block import Domain, Export, Use
from keyd.keys.hierarchy import TERMINAL_LEVELS, TERMINAL_MASTER_ADDRESS
from keyd.keys.ring import KeyRing
from keyd.protocol.commands import OFFICERS
from keyd.protocol.messages.custody import OfficerCommand, RequestOfficerChallenge
from keyd.registry.psam import PsamAct
from keyd.registry.terminal import Proof, TerminalSpec
from keyd.terminals import Session
from keyd.warden import Warden
from tests.custody.world import PEOPLE, World, contents_of, kcv_of, private_key, psam_spec, spec
from tests.fuzz.mutators import messages_of, mutate_message
from tests.fuzz.seeds import examples, params_of
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_COMMANDS: Final = 10

PSAM: Final = psam_spec().number.hex()

# What officers cannot know before it is there: b"proposal 0" is the first of this keyd, b"key 0" the first key.
PROPOSAL: Final = b"proposal "
KEY: Final = b"key "
ENVELOPE: Final = b"envelope "

# A component that nothing else would draw.
COMPONENT: Final = bytes.fromhex("C0DEC0DEC0DEC0DEC0DEC0DEC0DEC0DE")

_WHO: Final = list(itertools.product((Domain.SOCIAL, Domain.LOCAL), PEOPLE))


class _Keyd:
    """One keyd's custody, with its real warden, vault, store and journal, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.journal = Journal(folder / "journal", "keyd1", clock_ns=lambda: 10**18)
        self.warden = Warden(
            self.world.vault,
            self.world.store,
            KeyRing(()),
            self.journal,
            "keyd1",
            lambda _event, _detail: None,
            lambda: None,
            now=self.world.clock,
        )
        self.answers: list[bytes] = []
        self._ids: list[bytes] = []

    def services(self) -> Services:
        """What the handlers ask for, as far as custody's do."""
        values: dict[str, Any] = {
            field.name: None
            for field in dataclasses.fields(Services)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        values |= {
            "warden": self.warden,
            "clock": self.world.clock,
            # A challenge of zeros is as good here as any.
            "random_bytes": bytes,
        }
        return Services(**values)

    async def do(self, commands: list[Any]) -> None:
        """Have the commands sent one after the other."""
        services = self.services()
        for command in commands:
            match command:
                case [int(who), str(method), list(params)]:
                    domain, code = _WHO[who % len(_WHO)]
                    octets = self._octets(method, params)
                    if octets is not None:
                        await self._send(services, domain, code, octets)
                        self._note_new()

    def _octets(self, method: str, params: list[Any]) -> bytes | None:
        """Return what an officer signs; None if nobody could write it down."""
        try:
            params = self._known(params)
            if method == "proposal.make" and params and isinstance(params[0], dict):
                # An action is signed as bytes; as a tree it can be changed and still be one.
                params = [msgspec.msgpack.encode(params[0]), *params[1:]]
            return msgspec.msgpack.encode([method, params])
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None

    async def _send(self, services: Services, domain: Domain, code: str, octets: bytes) -> None:
        session = Session(1, is_administration=True)
        opened = await officer_challenge(RequestOfficerChallenge(), session, services)
        message = command_message(opened.store_id, opened.challenge, f"{domain}/{code}", octets)
        signature = private_key(domain, code).sign(message)
        asked = OfficerCommand(domain.value, code, octets, signature)
        with contextlib.suppress(Refusal):
            done = await officer_command(asked, session, services)
            self.answers.append(msgspec.msgpack.encode(done))

    def _known(self, value: Any) -> Any:
        """Put in what the words stand for."""
        if isinstance(value, list):
            return [self._known(part) for part in value]
        if isinstance(value, dict):
            return {name: self._known(part) for name, part in value.items()}
        contents = self.warden.vault.contents
        if not isinstance(value, bytes) or contents is None:
            return value
        if value.startswith(ENVELOPE):
            material = value.removeprefix(ENVELOPE)
            return Sm2PublicKey.load(contents.identity_body.public_key).encrypt(material or b"\0")
        for word, there in ((PROPOSAL, contents.proposals), (KEY, contents.keys)):
            number = value.removeprefix(word)
            known = [one for one in self._ids if one in there]
            if value.startswith(word) and number.isdigit() and known:
                return known[int(number[:3]) % len(known)]
        return value

    def _note_new(self) -> None:
        """Remember ids in the order in which they came: they are random, and the store sorts them."""
        contents = self.warden.vault.contents
        if contents is not None:
            there = [*contents.proposals, *contents.keys]
            self._ids += [one for one in there if one not in self._ids]


def one_input(data: bytes) -> None:
    with _keyd() as keyd:
        generation = contents_of(keyd.world.vault).seal.body.generation
        trio.run(keyd.do, messages_of(data)[:MAX_COMMANDS])
        said = b"".join(keyd.answers)
        written = b"".join(
            path.read_bytes() for path in (keyd.world.path.parent / "journal").iterdir()
        )
        assert COMPONENT not in said + written
        assert COMPONENT.hex().encode() not in (said + written).lower()
        other = keyd.world.sealed_vault()
        if other.seal_body.generation == generation:
            assert keyd.world.open_vault().contents is not None


@contextlib.contextmanager
def _keyd() -> Iterator[_Keyd]:
    with tempfile.TemporaryDirectory(prefix="keyd-fuzz-") as folder:
        keyd = _Keyd(Path(folder))
        try:
            yield keyd
        finally:
            keyd.warden.vault.drop()
            keyd.journal.close()
            keyd.world.close()


# Whose number is whose: SOCIAL's officers a, b, c, d, e and then LOCAL's.
A, B, C, LOCAL_A, LOCAL_B = 0, 1, 2, 5, 6


TERMINAL: Final = TerminalSpec("T-1", "org", "510100", ("counter",), tuple(Proof)[:1])
MASTER_KEY: Final = spec(
    Domain.LOCAL,
    name="TMK",
    use=Use.TERMINAL,
    levels=TERMINAL_LEVELS,
    addresses=(TERMINAL_MASTER_ADDRESS,),
    export=Export.CHILD,
)


def seeds() -> list[bytes]:
    def actions(*chosen: act.Action, proposer: int = A, approver: int = B) -> list[list[Any]]:
        made: list[list[Any]] = []
        for number, action in enumerate(chosen):
            tree = msgspec.msgpack.decode(msgspec.msgpack.encode(action))
            made += [
                [proposer, "proposal.make", [tree, "why", 3600]],
                [approver, "proposal.approve", [PROPOSAL + b"%d" % number]],
            ]
        return made

    of_local = functools.partial(actions, proposer=LOCAL_A, approver=LOCAL_B)
    word = KEY + b"0"
    key = actions(act.GenerateKey(spec()))
    transport = (act.GenerateKey(spec(use=Use.TRANSPORT)), act.Activate(word))
    other = bytes(range(16))
    scripts = [
        key,
        actions(act.GenerateKey(spec()), act.Activate(word), act.Deactivate(word)),
        actions(act.GenerateKey(spec()), act.Destroy(word, 30), act.Restore(word)),
        actions(act.GenerateKey(spec()), act.Destroy(word, 0)),
        actions(act.GenerateKey(spec()), act.Permit(word, ceiling=100), act.Compromise(word)),
        actions(act.GiveComponents(spec(), ("a", "c"))),
        actions(
            *transport,
            act.GenerateKey(spec(export=Export.WRAPPED)),
            act.ExportKey(KEY + b"1", word, act.TransportFormat.BLOCK),
            act.ExportChild(KEY + b"1", "510100", word, act.TransportFormat.ECB_MAC),
        ),
        actions(
            act.EnrolOfficer("z", "Z", PEOPLE["c"], private_key(Domain.SOCIAL, "z").public.encode())
        ),
        actions(act.RetireOfficer("d")),
        [
            *actions(act.ImportKey(spec(), 2))[:1],
            [A, "component.enter", [PROPOSAL + b"0", 1, ENVELOPE + COMPONENT, kcv_of(COMPONENT)]],
            [C, "component.enter", [PROPOSAL + b"0", 2, ENVELOPE + other, kcv_of(other)]],
            [B, "proposal.approve", [PROPOSAL + b"0"]],
        ],
        [
            [
                LOCAL_A,
                "proposal.make",
                [{"action": "rekey", "threshold": 2, "custodians": ["a", "b"]}],
            ],
            [LOCAL_B, "proposal.approve", [PROPOSAL + b"0"]],
            [LOCAL_A, "component.take", [PROPOSAL + b"0"]],
        ],
        [*key, [A, "key.list", []], [A, "proposal.list", [True, 0]], [A, "officer.list", []]],
        [
            [LOCAL_A, "backup.take", [0]],
            [LOCAL_A, "backup.take", [100]],
            [LOCAL_A, "seal.close", [""]],
        ],
        of_local(
            act.MakeAuthority("guomi", "CA", 10),
            act.EnrolTerminals((TERMINAL,)),
            act.ActivateTerminals(("T-1",)),
            act.GiveEnrolmentCodes(("T-1",), "c"),
        ),
        of_local(
            act.EnrolTerminals((TERMINAL,)),
            act.GenerateKey(MASTER_KEY),
            act.Activate(word),
            act.GiveTerminalKeys(("T-1",), "c"),
        ),
        [
            *of_local(act.EnrolTerminals((TERMINAL,), activate=True)),
            [LOCAL_A, "terminal.list", [0, "T-", "any"]],
            [LOCAL_A, "terminal.show", ["T-1"]],
            [LOCAL_A, "terminal.stop", ["T-1", "lost", "stolen"]],
            [LOCAL_A, "authority.list", []],
        ],
        [
            *of_local(
                act.IssuePsams((psam_spec(), psam_spec(429))),
                act.ChangePsams((PSAM,), PsamAct.ASSIGN),
                act.ChangePsams((PSAM,), PsamAct.RETIRE, reason="worn"),
            ),
            [LOCAL_A, "psam.issued", [0, "irk", "any"]],
            [LOCAL_A, "psam.lose", ["510100000429", "stolen"]],
            [LOCAL_A, "psam.show", ["510100000429"]],
        ],
        actions(
            *transport,
            act.ImportWrapped(spec(), word, act.TransportFormat.BLOCK, bytes(90), bytes(3)),
            act.ImportWrapped(spec(), word, act.TransportFormat.ECB_MAC, bytes(90), bytes(3)),
            act.ImportEnvelope(spec(), ENVELOPE + COMPONENT, kcv_of(COMPONENT)),
        ),
        *([[LOCAL_A, method, params_of(method)]] for method in OFFICERS if method in examples()),
    ]
    return [b"".join(map(msgspec.msgpack.encode, script)) for script in scripts]


def _quiet() -> None:
    # Threads of an ended trio.run may still hold a connection of the store when it is closed.
    warnings.simplefilter("ignore", ResourceWarning)


_quiet()

TARGET = Target(one_input, seeds, mutate_message)
