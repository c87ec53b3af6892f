"""Known secrets are searched for wherever keyd writes or speaks, and in its memory: they are nowhere but in the arena.

Secrets are searched for as they are, in hex of either case and in base64. A credential's file, the terminals' file and
the officers' own processes hold theirs on purpose.
"""

from __future__ import annotations

import base64
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

import msgspec
import pytest

from keyd.audit.query import query
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import KEY_BYTES, Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import encode_share
from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.bodies import SealBody, decode
from keyd.errors import Internal, Refusal, Sealed
from keyd.keys.block import Domain, Export, Tier, Use
from keyd.keys.roots import active_root
from keyd.keys.synthetic import synthetic_terminal_key, synthetic_terminal_master
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import PinReload, SecureMessage
from keyd.protocol.messages.custody import (
    AskSeal,
    EnterComponent,
    ForgetShares,
    GiveShare,
    SealNow,
    Take,
    TakeBackup,
)
from keyd.store.database import Store
from keyd.store.rows import Kind
from tests.crash.grounds import TERMINAL, Grounds, log_of, start_program
from tests.crash.scenario import CUSTODIANS, IRK, QUESTION, Facts, Run
from tests.pump.conftest import CARD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keyd.client.officer import OfficerClient
    from keyd.keys.block import KeyHeader
    from keyd.protocol.fields import Request
    from tests.crash.grounds import Daemon

PIN: Final = "8273645190283746"
PLAINTEXT: Final = bytes.fromhex("5EC2E7D0C0FFEE0012345678DEADBEEF9A8B7C6D")
WHO: Final = CardIdentity(CARD.card_id, CARD.historical)
STK: Final = 0x0173

# A program that is keyd, with a bug wherever a secret is at hand.
BUGGY: Final = """
import keyd.custody.ceremony, keyd.daemon, keyd.keys.ring, sys

def enter(self, *given):
    opened = given[-1].decrypt_to_key(given[3], given[0].action.key.algorithm)
    return len(opened) / 0

def compute(self, tasks):
    return len(tasks) / 0

def give(self, share):
    value = share.value
    return len(value) / 0

keyd.custody.ceremony.Ceremonies.enter = enter
keyd.custody.seal.Unsealing.give = give
keyd.keys.ring.KeyRing.compute = compute
raise SystemExit(keyd.daemon.main(sys.argv[1:]))
"""


class Canaries:
    """Secrets by name."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}

    def add(self, name: str, secret: bytes) -> bytes:
        """Know a secret."""
        self.secrets[name] = secret
        return secret

    def found_in(self, content: bytes, names: Iterable[str] = ()) -> set[str]:
        """Return whose secrets are there, in any form."""
        return {
            name
            for name in (names or self.secrets)
            for needle in forms(self.secrets[name])
            if needle in content
        }

    def found_by(self, pid: int, names: Iterable[str]) -> dict[str, list[int]]:
        """Return where in memory secrets are, in any form."""
        places: dict[str, list[int]] = {}
        needles = [(name, form) for name in names for form in forms(self.secrets[name])]
        for address, content in memory_of(pid):
            for name, needle in needles:
                at = content.find(needle)
                while at >= 0:
                    places.setdefault(name, []).append(address + at)
                    at = content.find(needle, at + 1)
        return places


def memory_of(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield all memory that a process can have written."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *rest = line.split()
            if not rights.startswith("rw") or (rest and rest[-1].startswith("[v")):
                continue
            start, end = (int(address, 16) for address in span.split("-"))
            memory.seek(start)
            yield start, memory.read(end - start)


def forms(secret: bytes) -> set[bytes]:
    """Return how a secret may be written down."""
    if secret.isascii():
        return {secret}
    digits = secret.hex()
    return {
        secret,
        digits.encode(),
        digits.upper().encode(),
        # Without its end, which depends on what comes after.
        base64.b64encode(secret)[: len(secret) * 8 // 6],
    }


def known_roots(canaries: Canaries) -> list[tuple[KeyHeader, SecretKey]]:
    """Roots of all places, whose bytes the test knows."""
    made = []
    for place in newest(load_profiles()).key_places([CardAlgorithm.SM4]):
        material = secrets.token_bytes(KEY_BYTES[place.algorithm])
        canaries.add(f"root {place.address:04X}", material)
        key = SecretKey.load(place.algorithm, material)
        made.append((active_root(place, 3, key, secrets.token_bytes(16), "a test"), key))
    return made


def unwrapped(kek: bytes, nonce: bytes, wrapped: bytes) -> bytes:
    """Decrypt one block of SM4-GCM, whose counter begins with 2."""
    stream = SecretKey.load(Algorithm.SM4, kek).encrypt(nonce + (2).to_bytes(4, "big"))
    return bytes(a ^ b for a, b in zip(stream, wrapped[:16], strict=True))


def know_the_seal(canaries: Canaries, grounds: Grounds) -> None:
    """Compute the seal key and the wrapping keys: the test has the credential and the store."""
    store = Store.open(grounds.url)
    rows = store.load().rows
    store.close()
    credential = bytes.fromhex((grounds.folder / "seal.credential").read_text())
    canaries.add("credential", credential)
    body = next(decode(row, SealBody) for row in rows if row.kind is Kind.SEAL)
    keeper = body.keepers[0]
    seal_key = canaries.add("seal key", unwrapped(credential, keeper.nonce, keeper.wrapped))
    for row in rows:
        if row.kind is Kind.LMK:
            canaries.add(f"LMK {row.domain}", unwrapped(seal_key, row.nonce, row.sealed))
    for share in grounds.shares:
        canaries.add(f"share {share.number}", share.value)
        canaries.add(f"printed share {share.number}", encode_share(share).encode())
    for (domain, code), key in grounds.officers.items():
        with key.lent_secret() as secret:
            canaries.add(f"officer {domain}/{code}", bytes(secret))
    canaries.add("terminal", synthetic_terminal_key(TERMINAL))
    canaries.add("terminal master key", synthetic_terminal_master())


class Heard:
    """Everything that keyd has answered, as bytes."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.content = b""
        self.statuses: set[str] = set()

    def ask(self, client: Any, request: Request[Any]) -> Any:
        """Ask and keep the answer, or the refusal."""
        try:
            answer = client.ask(request)
        except Refusal as refusal:
            self.content += repr(refusal).encode() + b"\n"
            self.statuses.add(refusal.status.name)
            return refusal
        self.content += msgspec.msgpack.encode(answer) + b"\n"
        return answer

    def officer(self, code: str, domain: Domain = Domain.SOCIAL) -> OfficerClient:
        """Return an officer's client."""
        return self.daemon.officer(domain, code)


def ask_everything(heard: Heard, canaries: Canaries) -> Run:
    """Let secrets come in by every way there is, and errors happen on each."""
    daemon = heard.daemon
    run = Run(daemon, Facts())
    components = [canaries.add(f"component {number}", secrets.token_bytes(16)) for number in (1, 2)]
    combined = bytes(a ^ b for a, b in zip(*components, strict=True))
    canaries.add("combined root", combined)
    spec = act.KeySpec(
        *(Tier.NATIONAL, "IRK", Algorithm.SM4, Use.INTERNAL, (IRK,), 3), export=Export.WRAPPED
    )
    run.propose("import", act.ImportKey(spec, 2))
    wanted = run.facts.proposals["import"]
    public = Sm2PublicKey.load(daemon.seal.ask(AskSeal()).public_key)
    for number, component in enumerate(components, 1):
        kcv = SecretKey.load(Algorithm.SM4, component).kcv()
        custodian = heard.officer(CUSTODIANS[number - 1])
        for wrong in (b"\0\0\0", kcv, kcv):
            asked = EnterComponent(wanted, number, public.encrypt(component), wrong)
            heard.ask(custodian, asked)
    heard.ask(heard.officer("custodian-3"), EnterComponent(wanted, 1, bytes(113), b"abc"))
    run.approve("import")
    run.propose("give", act.GiveComponents(spec, CUSTODIANS[:2]))
    run.approve("give")
    for number, code in enumerate(CUSTODIANS[:2], 1):
        taken = heard.ask(heard.officer(code), Take(run.facts.proposals["give"]))
        opened = daemon.grounds.officers[Domain.SOCIAL, code].decrypt(taken.envelope)
        canaries.add(f"given component {number}", opened[-16:])
    transport = msgspec.structs.replace(
        spec, name="KEK", use=Use.TRANSPORT, addresses=(), levels=0, export=Export.NEVER
    )
    run.propose("transport", act.GenerateKey(transport))
    run.approve("transport")
    key_id, kek_id = run.facts.keys["import"][0], run.facts.keys["transport"][0]
    for note, action in (
        ("activate", act.Activate(key_id)),
        ("activate transport", act.Activate(kek_id)),
        ("export", act.ExportKey(key_id, kek_id, act.TransportFormat.BLOCK)),
        ("export mac", act.ExportKey(key_id, kek_id, act.TransportFormat.ECB_MAC)),
    ):
        run.propose(note, action)
        heard.content += msgspec.msgpack.encode(run.approve(note))
    ask_cards(heard)
    heard.ask(daemon.seal, GiveShare(encode_share(daemon.grounds.shares[0])))
    heard.ask(daemon.seal, GiveShare(encode_share(daemon.grounds.shares[0])[:-1]))
    heard.ask(heard.officer("proposer", Domain.LOCAL), TakeBackup())
    return run


def ask_cards(heard: Heard) -> None:
    """Let a terminal send what is personal, to be answered and to be refused."""
    terminal = heard.daemon.terminal
    for address in (STK, 0xFFFF, IRK):
        header = bytes.fromhex("04D60000")
        heard.ask(terminal, SecureMessage(WHO, address, bytes(8), header, PLAINTEXT, True))
    heard.ask(terminal, PinReload(WHO, bytes(8), PIN))
    heard.ask(terminal, PinReload(WHO, bytes(8), PIN + "x"))
    heard.ask(terminal, QUESTION)


def everything_written(grounds: Grounds) -> dict[str, bytes]:
    """Return every file that keyd has written."""
    own = {"seal.credential", "keyd.toml"}
    files = {
        str(path.relative_to(grounds.folder)): path.read_bytes()
        for path in grounds.folder.rglob("*")
        if path.is_file() and path.name not in own
    }
    files["log"] = log_of(grounds).read_bytes()
    exported = (f"{record!r}\n" for record in query(grounds.journal))
    files["journal's export"] = "".join(exported).encode()
    return files


@pytest.fixture
def canaries() -> Canaries:
    """What comes from outside; more is added on the way."""
    made = Canaries()
    made.add("PIN", PIN.encode())
    made.add("plaintext", PLAINTEXT)
    return made


def test_no_secret_is_in_what_keyd_writes_says_or_leaves_in_memory(
    tmp_path: Path, canaries: Canaries
) -> None:
    grounds = Grounds.found(tmp_path / "grounds", known_roots(canaries))
    know_the_seal(canaries, grounds)
    arguments = grounds.configure(
        f'checkpoints = "{grounds.folder}/checkpoints"',
        'card_ids = "whole"',
        operations="127.0.0.1:0",
    )
    daemon = start_program(grounds, arguments)
    try:
        daemon.ready()
        heard = Heard(daemon)
        ask_everything(heard, canaries)
        assert {"COMPONENT_REFUSED", "NOT_ALLOWED", "NOT_SEALED"} <= heard.statuses
        require_memory(daemon, canaries, tmp_path, is_sealed=False)
        operations = re.search(r'"operations": "([^"]+)"', daemon.said())
        assert operations is not None
        with urlopen(f"http://{operations[1]}/metrics") as answer:
            heard.content += answer.read()
        assert isinstance(
            heard.ask(heard.officer("proposer", Domain.LOCAL), SealNow()), msgspec.Struct
        )
        require_memory(daemon, canaries, tmp_path, is_sealed=True)
        assert isinstance(heard.ask(daemon.terminal, QUESTION), Sealed)
        heard.ask(daemon.seal, GiveShare(encode_share(grounds.shares[1])))
        heard.ask(daemon.seal, ForgetShares())
        for share in grounds.shares[:2]:
            heard.ask(daemon.seal, GiveShare(encode_share(share)))
        assert not daemon.ready().sealed
        written = everything_written(grounds)
        assert daemon.end() == 0
    finally:
        daemon.kill()
    after = everything_written(grounds)
    assert {"keyd.db", "keyd.db-wal", "journal/00000001.keyd-journal"} <= set(written)
    assert "checkpoints" in after
    # The search works: what is to be found is found.
    assert CARD.card_id in written["journal/00000001.keyd-journal"]
    for name, content in [*written.items(), *after.items(), ("answers", heard.content)]:
        assert not canaries.found_in(content), name


# What passes through Python for a moment, as docs/threats.md says. The rest is in the arena and nowhere else.
IN_PYTHON: Final = (
    "share",
    "printed share",
    "given component",
    "officer",
    "terminal",
    "PIN",
    "plai",
)


SOME_ROOTS: Final = ("root 0170", "root 004C", "root 0173")


def require_memory(daemon: Daemon, canaries: Canaries, folder: Path, *, is_sealed: bool) -> None:
    """Search the daemon's memory and, if gcore may look, a core of it."""
    pid = daemon.process.pid
    names = [name for name in canaries.secrets if not name.startswith(IN_PYTHON)]
    # Some roots stand for all: each secret is searched for in all memory.
    names = [name for name in names if not name.startswith("root") or name in SOME_ROOTS]
    try:
        places = canaries.found_by(pid, names)
    except PermissionError:
        pytest.skip("this machine cannot run it: only root may look into another's memory")
    if is_sealed:
        assert not places, sorted(places)
    else:
        # The search works: what must be in memory is found.
        assert {"root 0170", "combined root", "LMK SOCIAL"} <= set(places)
        where = arenas(pid)
        assert "credential" not in places
        outside = {
            name
            for name, found in places.items()
            if any(not any(place in arena for arena in where) for place in found)
        }
        assert not outside
    if shutil.which("gcore") is None:
        pytest.skip("this needs gcore: apt install gdb")
    state = "sealed" if is_sealed else "open"
    done = subprocess.run(
        ["gcore", "-o", str(folder / state), str(pid)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    core = (folder / f"{state}.{pid}").read_bytes()
    assert TERMINAL.encode() in core
    assert not canaries.found_in(core, names)


def arenas(pid: int) -> list[range]:
    """Return the mappings that are in no core dump ("dd") and locked ("lo"): the arena."""
    found, span = [], ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            span = first
        elif first == "VmFlags:" and {"dd", "lo"} <= set(rest):
            start, end = (int(address, 16) for address in span.split("-"))
            found.append(range(start, end))
    return found


def test_a_bug_tells_no_secret(tmp_path: Path, canaries: Canaries) -> None:
    """Wherever a bug strikes, the peer learns INTERNAL, and the log's traceback has no secret of its frames."""
    grounds = Grounds.found(tmp_path / "grounds", known_roots(canaries))
    know_the_seal(canaries, grounds)
    program = tmp_path / "buggy.py"
    program.write_text(BUGGY)
    daemon = start_program(grounds, grounds.configure(), program=[sys.executable, str(program)])
    try:
        daemon.ready()
        heard = Heard(daemon)
        run = Run(daemon, Facts())
        component = canaries.add("component", secrets.token_bytes(16))
        spec = act.KeySpec(Tier.NATIONAL, "IRK", Algorithm.SM4, Use.INTERNAL, (IRK,), 3)
        run.propose("import", act.ImportKey(spec, 2))
        public = Sm2PublicKey.load(daemon.seal.ask(AskSeal()).public_key)
        kcv = SecretKey.load(Algorithm.SM4, component).kcv()
        wanted = run.facts.proposals["import"]
        entered = EnterComponent(wanted, 1, public.encrypt(component), kcv)
        assert isinstance(heard.ask(heard.officer("custodian-1"), entered), Internal)
        assert isinstance(heard.ask(daemon.terminal, PinReload(WHO, bytes(8), PIN)), Internal)
        ask_cards(heard)
        heard.ask(heard.officer("proposer", Domain.LOCAL), SealNow())
        given = GiveShare(encode_share(grounds.shares[0]))
        assert isinstance(heard.ask(daemon.seal, given), Internal)
    finally:
        daemon.kill()
    log = log_of(grounds).read_bytes()
    assert log.count(b"ZeroDivisionError") >= 3
    assert not canaries.found_in(log)
    assert not canaries.found_in(heard.content)
