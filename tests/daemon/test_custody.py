"""A real keyd with custody: sealed until people open it, wiped when they close it, and changed by two of them only.

Every test talks to the daemon as its users do: terminals on the public port, officers on the administration's socket.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack
import msgspec
import pytest

from keyd.audit.checkpoints import read_checkpoints
from keyd.audit.query import EventRecord, Filter, UseRecord, query
from keyd.audit.records import decode_frame, decode_header, segment_number
from keyd.audit.verify import verify
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.client.officer import Identity, OfficerClient
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import encode_share
from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.officers import command_message
from keyd.custody.vault import Vault
from keyd.errors import (
    DomainCrossed,
    KeyStateRefused,
    OwnProposal,
    Refusal,
    RoleMissing,
    Sealed,
    Status,
)
from keyd.keys.block import Domain, KeyState, Mode, Tier, Use
from keyd.keys.roots import active_root, synthetic
from keyd.protocol.commands import TABLE, Role
from keyd.protocol.messages.custody import (
    Approve,
    ListKeys,
    ListOfficers,
    ListProposals,
    Propose,
    SealNow,
    TakeBackup,
)
from keyd.registry.synthetic import synthetic_terminals
from keyd.store.database import Store
from tests.daemon.conftest import RawPeer
from tests.daemon.test_journal import readyz, wait_until
from tests.founded import EVERYTHING, founded_store
from tests.postgresql import PostgresServer, running_server
from tests.pump.conftest import (
    CHALLENGE,
    EXTERNAL_AUTHENTICATE,
    FACTOR,
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    IRK,
    RKSSSE,
    hot,
    identity,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keyd.keys.block import KeyHeader
    from tests.conftest import RunningDaemon, StartDaemon
    from tests.founded import Founded

    Connect = Callable[[str], RawPeer]

TICKS: Final = ("native", "python")
every_tick = pytest.mark.parametrize("tick", TICKS)

IRK_SPEC: Final = act.KeySpec(
    tier=Tier.NATIONAL,
    name="IRK",
    algorithm=Algorithm.SM4,
    use=Use.INTERNAL,
    addresses=(IRK,),
    levels=3,
    modes=(Mode.PRODUCE, Mode.VERIFY),
)

# What a change made at one keyd may take to reach another. The ticket's own number is two seconds.
SOON: Final = 2.0

TERMINAL: Final = "DEV-0001"


def two_keys(**changes: Any) -> list[tuple[KeyHeader, SecretKey]]:
    """The synthetic keys for a card's two proofs; what is changed is the IRK's header."""
    places = [
        place
        for place in newest(load_profiles()).key_places([CardAlgorithm.SM4])
        if place.address in (IRK, RKSSSE)
    ]
    return [
        (msgspec.structs.replace(header, **changes) if IRK in header.addresses else header, key)
        for header, key in synthetic(places)
    ]


class Running:
    """A daemon with custody, and the ways to it."""

    def __init__(self, daemon: RunningDaemon, founded: Founded, folder: Path, connect: Connect):
        self.daemon = daemon
        self.founded = founded
        self.folder = folder
        self.journal = folder / "journal"
        self.socket = folder / "admin.sock"
        self._connect = connect

    def admin(self) -> RawPeer:
        return self._connect(f"unix:{self.socket}")

    def terminal(self) -> RawPeer:
        peer = self._connect(self.daemon.address)
        peer.authenticate(TERMINAL)
        return peer

    def anybody(self) -> RawPeer:
        return self._connect(self.daemon.address)

    def operator(self) -> RawPeer:
        return self._connect(self.daemon.unix)

    @contextlib.contextmanager
    def officer(self, domain: Domain, code: str) -> Iterator[OfficerClient]:
        key = self.founded.officers[domain, code]
        with OfficerClient(str(self.socket), Identity(domain.value, code, key)) as client:
            yield client

    def decide(self, domain: Domain, action: act.Action) -> Mapping[str, bytes]:
        """One officer proposes, another approves; return what came of it."""
        with self.officer(domain, "proposer") as one, self.officer(domain, "approver") as other:
            proposed = one.ask(Propose(msgspec.msgpack.encode(action)))
            return other.ask(Approve(proposed.proposal.proposal_id)).result

    def give_shares(self, count: int = 2) -> Any:
        admin = self.admin()
        for share in self.founded.shares[:count]:
            answer = admin.ask("seal.give_share", encode_share(share))
        return answer

    def close_seal(self, reason: str = "test") -> None:
        with self.officer(Domain.LOCAL, "proposer") as operator:
            operator.ask(SealNow(reason))

    def events(self, name: str | None = None) -> list[EventRecord]:
        found = query(self.journal, Filter(event=name))
        return [record for record in found if isinstance(record, EventRecord)]

    def names(self) -> list[str]:
        return [event.name for event in self.events()]

    def uses(self, **wanted: Any) -> list[UseRecord]:
        found = query(self.journal, Filter(**wanted))
        return [record for record in found if isinstance(record, UseRecord)]


def status_of(answer: Any) -> Status:
    return Status.OK if answer[2] is None else Status(answer[2][0])


def ask(peer: RawPeer, request: bytes) -> Any:
    """Send a request that is bytes already."""
    peer.sock.sendall(request)
    return peer.answer()


def cryptogram_of(peer: RawPeer) -> bytes:
    """What the card would answer, by the key that keyd holds now."""
    return cast("bytes", ask(peer, hot(INTERNAL_CRYPTOGRAM))[3][0][:8])


def authentic(proof: bytes) -> bytes:
    """A request to check a card's answer."""
    params = [identity(), FACTOR, CHALLENGE, proof]
    return cast("bytes", msgpack.packb([0, 1, INTERNAL_AUTHENTICATE, params]))


def header_of(founded: Founded, key_id: bytes | None = None) -> KeyHeader:
    """Look into the store with people's shares; return a key's header, the IRK's unless it is named."""
    store = Store.open(founded.url)
    vault = Vault(store, "looking", time.time, secrets.token_bytes, lambda: None)
    for share in founded.shares[:2]:
        vault.give_share(share)
    vault.close()  # whoever unseals takes leases, and this one needs none
    contents = vault.contents
    assert contents is not None
    headers = [held.header for held in contents.keys.values()]
    store.close()
    (found,) = [h for h in headers if (h.key_id == key_id if key_id else IRK in h.addresses)]
    return found


class Place:
    """Where one keyd's files are; `start` may be called again after its end."""

    def __init__(
        self, folder: Path, founded: Founded, start_daemon: StartDaemon, connect: Connect
    ) -> None:
        self.folder = folder
        self.founded = founded
        self._start_daemon = start_daemon
        self._connect = connect

    def start(
        self,
        tick: str = "native",
        *,
        unseals_itself: bool = True,
        instance: str = "keyd",
        audit: str = "",
    ) -> Running:
        folder = self.folder
        folder.mkdir(exist_ok=True)
        credential = f'credential = "{self.founded.credential}"' if unseals_itself else ""
        (folder / "keyd.toml").write_text(
            f"""
            [store]
            url = "{self.founded.url}"
            [seal]
            {credential}
            [custody]
            socket = "{folder / "admin.sock"}"
            [listen]
            tcp = ["127.0.0.1:0"]
            unix = "{folder / "keyd.sock"}"
            operations = "127.0.0.1:0"
            [policy]
            file = "{EVERYTHING}"
            [audit]
            folder = "{folder / "journal"}"
            instance = "{instance}"
            {audit}
            """
        )
        env = {"KEYD_TICK": "python"} if tick == "python" else {}
        daemon = self._start_daemon("--config", str(folder / "keyd.toml"), env=env)
        assert daemon.ready["sealed"] is not unseals_itself, daemon.output
        return Running(daemon, self.founded, folder, self._connect)


@pytest.fixture
def place(tmp_path: Path, start_daemon: StartDaemon, raw: Connect) -> Callable[..., Place]:
    """Found a store with these keys, the synthetic ones for a card's two proofs unless they are named."""

    def make(keys: list[tuple[KeyHeader, SecretKey]] | None = None, **of_store: Any) -> Place:
        founded = founded_store(
            tmp_path,
            two_keys() if keys is None else keys,
            terminals=synthetic_terminals([TERMINAL]),
            **of_store,
        )
        return Place(tmp_path / "one", founded, start_daemon, raw)

    return make


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for this module."""
    with running_server() as server:
        yield server


# The seal -----------------------------------------------------------------------------------------------------


def test_without_a_credential_it_starts_sealed_until_people_give_their_shares(
    place: Callable[..., Place],
) -> None:
    keyd = place().start(unseals_itself=False)
    assert keyd.daemon.ready["keys"] == 0
    assert readyz(keyd.daemon) == (503, "sealed\n")
    state = keyd.operator().ask("daemon.status")
    assert state[2] is None
    assert (state[3][1], state[3][6]) == ("sealed", [])
    # Nobody becomes anybody, and nothing else is answered.
    peer = keyd.anybody()
    assert status_of(peer.ask("terminal.challenge", TERMINAL, bytes(16))) is Status.SEALED
    for request in (hot(INTERNAL_CRYPTOGRAM), hot(EXTERNAL_AUTHENTICATE)):
        assert status_of(ask(peer, request)) is Status.SEALED

    admin = keyd.admin()
    assert admin.ask("seal.status")[3][0] is True
    first, second, _third = map(encode_share, keyd.founded.shares)
    given = admin.ask("seal.give_share", first)
    assert (given[2], given[3][0], given[3][5]) == (None, True, [1])
    # A slip of the pen is refused and costs nothing.
    slip = second[:-1] + ("A" if second[-1] != "A" else "B")
    assert status_of(admin.ask("seal.give_share", slip)) is Status.SHARE_REFUSED
    assert readyz(keyd.daemon)[0] == 503
    opened = admin.ask("seal.give_share", second)
    assert (opened[2], opened[3][0]) == (None, False)

    assert readyz(keyd.daemon)[0] == 200
    assert keyd.daemon.wait_for("unsealed")
    terminal = keyd.terminal()
    for _ in range(3):  # the long way, and then through the pump
        assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.OK
        assert status_of(ask(terminal, hot(EXTERNAL_AUTHENTICATE))) is Status.OK
    assert status_of(admin.ask("seal.give_share", first)) is Status.NOT_SEALED
    (event,) = keyd.events("unsealed")
    assert event.fields["by"] == "shares"
    # What was typed is nowhere that people look.
    texts = keyd.daemon.output + str([event.fields for event in keyd.events()])
    assert first not in texts
    assert second not in texts


def test_shares_that_were_begun_can_be_forgotten(place: Callable[..., Place]) -> None:
    keyd = place().start(unseals_itself=False)
    assert keyd.give_shares(1)[3][5] == [1]
    assert keyd.admin().ask("seal.forget_shares")[3][5] == []
    second = encode_share(keyd.founded.shares[1])
    assert keyd.admin().ask("seal.give_share", second)[3][0] is True


@every_tick
def test_after_the_seal_is_closed_nothing_answers_and_people_can_open_it_again(
    place: Callable[..., Place], tick: str
) -> None:
    keyd = place().start(tick)
    terminal = keyd.terminal()
    for _ in range(3):
        assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.OK
    keyd.close_seal("fire alarm")
    # From the answer on: the pump has let go as well, on a connection that was a terminal's before.
    assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.SEALED
    assert status_of(terminal.ask("daemon.random", 8)) is Status.SEALED
    assert readyz(keyd.daemon) == (503, "sealed\n")
    with keyd.officer(Domain.LOCAL, "proposer") as officer, pytest.raises(Sealed):
        officer.ask(SealNow())
    (event,) = keyd.events("sealed")
    assert event.fields["reason"] == "LOCAL/proposer: fire alarm"
    assert keyd.give_shares()[3][0] is False
    assert status_of(ask(keyd.terminal(), hot(INTERNAL_CRYPTOGRAM))) is Status.OK


def in_memory(pid: int, wanted: bytes) -> bool:
    """Search everything that a process has mapped, also what a core dump would leave out."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            if "r" not in mode or "[v" in line:
                continue
            start, end = (int(edge, 16) for edge in span.split("-"))
            with contextlib.suppress(OSError, ValueError):
                memory.seek(start)
                if wanted in memory.read(end - start):
                    return True
    return False


def test_a_closed_seal_leaves_no_root_in_memory_and_none_in_a_core_dump(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    """Neither in one that somebody forces. The key is no test's: nobody could compute it by accident."""
    if not shutil.which("gcore"):
        pytest.skip("gcore of gdb makes the core")
    ((header, _),) = [(h, k) for h, k in two_keys() if IRK in h.addresses]
    canary = secrets.token_bytes(16)
    key = SecretKey.load(Algorithm.SM4, bytearray(canary))
    (irk,) = [
        p for p in newest(load_profiles()).key_places([CardAlgorithm.SM4]) if p.address == IRK
    ]
    root = active_root(irk, 3, key, header.key_id, "test")
    keyd = place([(root, key)]).start()
    pid = keyd.daemon.process.pid
    terminal = keyd.terminal()
    for _ in range(3):
        assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.OK
    try:
        is_there = in_memory(pid, canary) or in_memory(pid, swapped(canary))
    except PermissionError:
        pytest.skip("this machine cannot run it: nobody may look into another process here")
    assert is_there, "the search would find nothing"
    core_has_none(pid, canary, tmp_path / "serving")  # locked memory is left out of dumps
    keyd.close_seal()
    assert not in_memory(pid, canary)
    assert not in_memory(pid, swapped(canary))
    core_has_none(pid, canary, tmp_path / "sealed")
    for path in (*keyd.journal.iterdir(), *tmp_path.glob("keyd.db*")):
        assert canary not in path.read_bytes(), path


def swapped(material: bytes) -> bytes:
    """A key as kernels hold it: words of 4 bytes, the other way round."""
    return b"".join(material[at : at + 4][::-1] for at in range(0, len(material), 4))


def core_has_none(pid: int, canary: bytes, where: Path) -> None:
    done = subprocess.run(
        ["gcore", "-o", str(where), str(pid)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine cannot run gcore: {done.stderr.splitlines()[-1:]}")
    dump = Path(f"{where}.{pid}")
    core = dump.read_bytes()
    dump.unlink()
    assert TERMINAL.encode() in core, "what keyd knows is in its core"
    assert canary not in core
    assert swapped(canary) not in core


# Who may ----------------------------------------------------------------------------------------------------


def test_the_administration_is_its_owners_and_the_public_port_knows_nothing_of_it(
    place: Callable[..., Place],
) -> None:
    keyd = place().start()
    assert stat.S_IMODE(keyd.socket.stat().st_mode) == 0o600
    share = encode_share(keyd.founded.shares[0])
    for peer in (keyd.anybody(), keyd.terminal(), keyd.operator()):
        for row in TABLE.values():
            if row.role in {Role.ADMINISTRATION, Role.OFFICER}:
                params = [share] if row.method == "seal.give_share" else []
                assert status_of(peer.ask(row.method, *params)) is Status.ROLE_MISSING, row.method
    # It makes nobody a terminal. Whoever may connect is root or keyd's own user, and so an operator.
    admin = keyd.admin()
    assert status_of(admin.ask("daemon.random", 8)) is Status.NOT_AUTHENTICATED
    assert status_of(ask(admin, hot(INTERNAL_CRYPTOGRAM))) is Status.NOT_AUTHENTICATED
    assert status_of(admin.ask("daemon.status")) is Status.OK
    for row in TABLE.values():
        if row.role is Role.OFFICER:
            assert status_of(admin.ask(row.method)) is Status.ROLE_MISSING


class Signing:
    """An officer's command put together by hand, so that parts of it can be wrong."""

    def __init__(self, keyd: Running) -> None:
        self._keyd = keyd

    def command(
        self,
        opened: Any,
        *,
        code: str = "proposer",
        signer: str = "proposer",
        domain: Domain = Domain.SOCIAL,
        method: str = "key.list",
    ) -> list[Any]:
        """Return the params of officer.command for a challenge."""
        challenge, store_id, _seconds = opened
        inner = msgpack.packb([method, []])
        key = self._keyd.founded.officers[domain, signer]
        message = command_message(store_id, challenge, f"{domain}/{code}", inner)
        return [domain.value, code, inner, key.sign(message)]


def test_a_command_needs_its_officer_and_its_own_fresh_challenge(
    place: Callable[..., Place],
) -> None:
    keyd = place().start()
    signing, admin, other = Signing(keyd), keyd.admin(), keyd.admin()

    def opened(peer: RawPeer = admin) -> Any:
        return peer.ask("officer.challenge")[3]

    def done(params: list[Any], peer: RawPeer = admin) -> Status:
        return status_of(peer.ask("officer.command", *params))

    good = signing.command(opened())
    assert done(good) is Status.OK
    # The same bytes again: the challenge was for once.
    assert done(good) is Status.CHALLENGE_EXPIRED
    opened()
    assert done(good) is Status.OFFICER_NOT_AUTHENTIC
    # Somebody else's key, somebody who is nobody, somebody of another domain.
    assert done(signing.command(opened(), signer="approver")) is Status.OFFICER_NOT_AUTHENTIC
    assert done(signing.command(opened(), code="nobody")) is Status.OFFICER_NOT_AUTHENTIC
    moved = signing.command(opened())
    assert done(["LOCAL", *moved[1:]]) is Status.OFFICER_NOT_AUTHENTIC
    # What was signed is done, and nothing else.
    altered = signing.command(opened())
    altered[2] = msgpack.packb(["officer.list", []])
    assert done(altered) is Status.OFFICER_NOT_AUTHENTIC
    flipped = signing.command(opened())
    flipped[3] = flipped[3][:-1] + bytes([flipped[3][-1] ^ 1])
    assert done(flipped) is Status.OFFICER_NOT_AUTHENTIC
    # Another connection's challenge, where there is none of its own and where there is one.
    theirs = opened(other)
    assert done(signing.command(theirs)) is Status.CHALLENGE_EXPIRED
    opened()
    assert done(signing.command(theirs)) is Status.OFFICER_NOT_AUTHENTIC
    # A challenge that was replaced is void.
    replaced = signing.command(opened())
    opened()
    assert done(replaced) is Status.OFFICER_NOT_AUTHENTIC
    # Methods that are not an officer's do not become one's by a signature.
    for method in ("daemon.random", "card.internal_cryptogram", "no.such"):
        assert done(signing.command(opened(), method=method)) is Status.METHOD_UNKNOWN
    assert not any(event.name.startswith("proposal") for event in keyd.events())
    # Every attempt has left a record, refused ones too.
    recorded = keyd.uses(method="officer.command")
    assert [use.status for use in recorded].count(Status.OFFICER_NOT_AUTHENTIC) == 8


def test_officers_may_what_their_roles_and_domains_say(place: Callable[..., Place]) -> None:
    keyd = place().start()
    key_id = header_of(keyd.founded).key_id
    deactivate = msgspec.msgpack.encode(act.Deactivate(key_id))

    with keyd.officer(Domain.SOCIAL, "proposer") as proposer:
        proposed = proposer.ask(Propose(deactivate)).proposal
        with pytest.raises(OwnProposal):
            proposer.ask(Approve(proposed.proposal_id))
        with pytest.raises(DomainCrossed):
            proposer.ask(SealNow())
        with pytest.raises(DomainCrossed):
            proposer.ask(TakeBackup())
        assert [key.key_id for key in proposer.ask(ListKeys()).keys if key.key_id == key_id]
    for code in ("custodian-1", "auditor"):
        with keyd.officer(Domain.SOCIAL, code) as officer, pytest.raises(RoleMissing):
            officer.ask(Approve(proposed.proposal_id))
    with keyd.officer(Domain.LOCAL, "approver") as stranger:
        with pytest.raises(Refusal) as crossed:
            stranger.ask(Approve(proposed.proposal_id))
        assert crossed.value.status in {Status.DOMAIN_CROSSED, Status.PROPOSAL_NOT_FOUND}
        # Its own domain's, and no other's.
        assert [key.header["name"] for key in stranger.ask(ListKeys()).keys] == ["TMK"]
        assert stranger.ask(ListProposals(all=True)).proposals == ()
        assert {officer.domain for officer in stranger.ask(ListOfficers()).officers} == {"LOCAL"}
    with keyd.officer(Domain.LOCAL, "auditor") as auditor, pytest.raises(RoleMissing):
        auditor.ask(SealNow())
    assert header_of(keyd.founded).state is KeyState.ACTIVE


# What two officers decide -----------------------------------------------------------------------------------


@every_tick
def test_a_key_that_two_officers_made_answers_at_once(
    place: Callable[..., Place], tick: str
) -> None:
    keyd = place([]).start(tick)
    terminal = keyd.terminal()
    assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_NOT_FOUND
    key_id = keyd.decide(Domain.SOCIAL, act.GenerateKey(IRK_SPEC))["key_id"]
    assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_STATE
    keyd.decide(Domain.SOCIAL, act.Activate(key_id))
    # Not only within a second: whoever has the approval's answer is served.
    proof = cryptogram_of(terminal)
    assert status_of(ask(terminal, authentic(proof))) is Status.OK
    (key,) = (key for key in keyd.operator().ask("daemon.status")[3][6] if key[1] != "TMK")
    assert key[6] == key_id
    label = header_of(keyd.founded, key_id).label
    assert [use.status for use in keyd.uses(key=label)][-2:] == [Status.OK, Status.OK]
    made = ["proposal.made", "proposal.approved"]
    assert [name for name in keyd.names() if name in made] == made * 2
    officers = [event.fields["officer"] for event in keyd.events("proposal.approved")]
    assert officers == ["SOCIAL/approver"] * 2
    assert {event.domain for event in keyd.events("proposal.made")} == {"SOCIAL"}
    assert verify(keyd.journal).is_good


@every_tick
def test_a_deactivated_key_produces_nothing_from_then_on_and_verifies_still(
    place: Callable[..., Place], tick: str
) -> None:
    keyd = place().start(tick)
    terminal = keyd.terminal()
    for _ in range(3):  # the pump knows the key by then
        proof = cryptogram_of(terminal)
        assert status_of(ask(terminal, authentic(proof))) is Status.OK
    key_id = header_of(keyd.founded).key_id
    keyd.decide(Domain.SOCIAL, act.Deactivate(key_id))
    for _ in range(3):
        assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_STATE
        assert status_of(ask(terminal, authentic(proof))) is Status.OK
        assert status_of(ask(terminal, authentic(bytes(8)))) is Status.CARD_NOT_AUTHENTIC
    # Another key is no part of it.
    assert status_of(ask(terminal, hot(EXTERNAL_AUTHENTICATE))) is Status.OK
    keyd.decide(Domain.SOCIAL, act.Compromise(key_id))
    assert status_of(ask(terminal, authentic(proof))) is Status.KEY_STATE
    # And after a restart it is the same.
    with keyd.officer(Domain.SOCIAL, "proposer") as one:
        activate = one.ask(Propose(msgspec.msgpack.encode(act.Activate(key_id)))).proposal
    with keyd.officer(Domain.SOCIAL, "approver") as other, pytest.raises(KeyStateRefused):
        other.ask(Approve(activate.proposal_id))


@every_tick
def test_a_key_whose_time_is_over_answers_no_more_also_where_it_is_known_by_heart(
    place: Callable[..., Place], tick: str
) -> None:
    """The pump has no clock, and the key's time was set while it was serving."""
    keyd = place().start(tick)
    terminal = keyd.terminal()
    key_id = header_of(keyd.founded).key_id
    until = int(time.time()) + 3
    keyd.decide(Domain.SOCIAL, act.Permit(key_id, valid_until=until))
    answered = 0
    while (status := status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM)))) is Status.OK:
        answered += 1
        assert time.time() < until + SOON
    assert status is Status.KEY_NOT_VALID_NOW
    assert answered
    # And again: the request that was refused has taught nobody anything.
    assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_NOT_VALID_NOW
    assert status_of(ask(terminal, hot(EXTERNAL_AUTHENTICATE))) is Status.OK


# Ceilings ---------------------------------------------------------------------------------------------------

CEILING: Final = 250

# A lease is a hundredth of the ceiling, and another is taken when half of it is gone.
LOST_AT_MOST: Final = 2 * (CEILING // 100) + 1


def use_up(terminal: RawPeer, most: int) -> int:
    """Ask until it is refused for good, or so many were answered; return how many were."""
    answered = 0
    refused_since: float | None = None
    while answered < most:
        status = status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM)))
        if status is Status.OK:
            answered, refused_since = answered + 1, None
            continue
        assert status in {Status.KEY_EXHAUSTED, Status.OVERLOADED}
        # Between two leases it is refused as well, for as long as the store takes to write one.
        refused_since = refused_since or time.monotonic()
        if time.monotonic() - refused_since > 1.0:
            break
        time.sleep(0.005)
    return answered


@every_tick
def test_a_ceiling_is_exact_over_kills(place: Callable[..., Place], tick: str) -> None:
    """Never one use more, and a kill costs one lease at most."""
    here = place(two_keys(ceiling=CEILING))
    answered = kills = 0
    for wanted in (40, 71, 3):
        keyd = here.start(tick)
        answered += use_up(keyd.terminal(), wanted)
        keyd.daemon.terminate(signal.SIGKILL)
        kills += 1
    keyd = here.start(tick)
    terminal = keyd.terminal()
    answered += use_up(terminal, 10 * CEILING)
    assert CEILING - kills * LOST_AT_MOST <= answered <= CEILING
    assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_EXHAUSTED
    # The key beside it has no ceiling.
    assert status_of(ask(terminal, hot(EXTERNAL_AUTHENTICATE))) is Status.OK
    header = header_of(keyd.founded)
    assert header.uses == CEILING
    good = keyd.uses(key=header.label, status=Status.OK)
    assert len(good) == answered
    assert keyd.daemon.terminate() == 0
    assert verify(keyd.journal).is_good


def test_an_orderly_end_gives_leases_back(place: Callable[..., Place]) -> None:
    here = place(two_keys(ceiling=10_000))
    keyd = here.start()
    assert use_up(keyd.terminal(), 7) == 7
    assert header_of(keyd.founded).uses == 100, "a lease is on record before it is used"
    assert keyd.daemon.terminate() == 0
    assert header_of(keyd.founded).uses == 7
    # Sealing is an orderly end as well.
    keyd = here.start()
    assert use_up(keyd.terminal(), 5) == 5
    keyd.close_seal()
    assert header_of(keyd.founded).uses == 12


# Several keyds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_is_changed_at_one_keyd_is_so_at_another_soon(
    place: Callable[..., Place],
    database: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start_daemon: StartDaemon,
    raw: Connect,
) -> None:
    url = None
    if database == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.new_database())
    here = place([], url=url)
    one = here.start(instance="one")
    two = Place(tmp_path / "two", here.founded, start_daemon, raw).start(instance="two")
    terminal = two.terminal()
    key_id = one.decide(Domain.SOCIAL, act.GenerateKey(IRK_SPEC))["key_id"]
    one.decide(Domain.SOCIAL, act.Activate(key_id))
    wait_until(lambda: status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.OK, SOON)
    for _ in range(3):
        proof = cryptogram_of(terminal)
    # Both have the same key.
    assert status_of(ask(one.terminal(), authentic(proof))) is Status.OK
    two.decide(Domain.SOCIAL, act.Deactivate(key_id))
    at_one = one.terminal()
    wait_until(lambda: status_of(ask(at_one, hot(INTERNAL_CRYPTOGRAM))) is Status.KEY_STATE, SOON)
    # Each keeps the records of what was done at it, and none of the other's.
    assert [e.fields["action"] for e in one.events("proposal.approved")] == ["generate", "activate"]
    assert [e.fields["action"] for e in two.events("proposal.approved")] == ["deactivate"]
    for keyd in (one, two):
        assert keyd.daemon.terminate() == 0
        assert verify(keyd.journal).is_good


# The journal ------------------------------------------------------------------------------------------------


def test_what_was_committed_and_not_journaled_when_it_was_killed_is_journaled_at_the_next_start(
    place: Callable[..., Place],
) -> None:
    here = place()
    keyd = here.start()
    keyd.daemon.terminate(signal.SIGKILL)
    # As a commit leaves it, if nothing comes after it.
    store = Store.open(keyd.founded.url)
    record = {"event": "proposal.approved", "domain": "SOCIAL", "officer": "SOCIAL/somebody"}
    store.commit([], [msgspec.msgpack.encode(record)], "keyd")
    store.close()
    # Sealed or not: its records are no secret of the seal's.
    keyd = here.start(unseals_itself=False)
    wait_until(lambda: len(keyd.events("proposal.approved")) == 1)
    (event,) = keyd.events("proposal.approved")
    assert event.fields["officer"] == "SOCIAL/somebody"
    assert keyd.daemon.terminate() == 0
    keyd = here.start()
    assert keyd.daemon.terminate() == 0
    assert len(keyd.events("proposal.approved")) == 1, "once is enough"
    store = Store.open(keyd.founded.url)
    assert store.outbox("keyd") == []
    store.close()


def cut(journal: Path, keep: Callable[[int], int]) -> None:
    """Cut whole frames off the end, so that the chain holds to the new end."""
    last = max(journal.iterdir(), key=lambda path: segment_number(path.name) or 0)
    data = last.read_bytes()
    header, offset, link = decode_header(data)
    ends, first = [offset], header.first
    while offset < len(data):
        frame = decode_frame(data, offset, link, first)
        offset += frame.length
        first, link = frame.next, frame.link
        ends.append(offset)
    last.write_bytes(data[: ends[keep(len(ends)) - 1]])


def test_a_journal_that_was_cut_is_told_at_the_next_start(place: Callable[..., Place]) -> None:
    here = place()
    keyd = here.start()
    terminal = keyd.terminal()
    for _ in range(5):
        assert status_of(ask(terminal, hot(INTERNAL_CRYPTOGRAM))) is Status.OK
    assert keyd.daemon.terminate() == 0
    # An orderly end and a start are no cut.
    keyd = here.start()
    assert "journal_cut" not in keyd.daemon.output
    assert keyd.events("journal.cut") == []
    assert keyd.daemon.terminate() == 0
    cut(keyd.journal, lambda frames: frames - 2)
    assert verify(keyd.journal).is_good, "the chain alone cannot tell"
    keyd = here.start()
    assert "was cut" in keyd.daemon.wait_for("journal_cut")["detail"]
    (event,) = keyd.events("journal.cut")
    assert event.fields["anchored_number"] > event.number - 1


def test_a_journal_that_was_begun_anew_is_told_as_well(place: Callable[..., Place]) -> None:
    here = place()
    keyd = here.start()
    assert keyd.daemon.terminate() == 0
    shutil.rmtree(keyd.journal)
    keyd = here.start()
    assert keyd.daemon.wait_for("journal_cut")
    assert keyd.events("journal.cut")


def test_checkpoints_are_signed_in_a_second_place(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "elsewhere.checkpoints"
    keyd = place().start(audit=f'checkpoints = "{checkpoints}"')
    public_key = Sm2PublicKey.load(keyd.admin().ask("seal.status")[3][6])
    assert keyd.daemon.terminate() == 0
    heads = read_checkpoints(checkpoints, public_key)
    assert heads, "an orderly end leaves one"
    assert verify(keyd.journal, expected=[head.anchor for head in heads]).is_good
