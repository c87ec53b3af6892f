"""A real keyd lends PSAMs over real sockets: those that officers issued, a rack's, and to nobody what is not theirs."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio

from keyd.client import Client, Enrolment
from keyd.client.officer import Identity, OfficerClient
from keyd.client.psam import Psam
from keyd.crypto.algorithms import CardAlgorithm
from keyd.custody import actions as act
from keyd.errors import (
    KeyNotFound,
    KeyUsageRefused,
    NotAllowed,
    PoolExhausted,
    PsamGone,
    PsamNotFound,
    Refusal,
    Status,
)
from keyd.keys.block import Domain
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.lending.rack_server import serve_rack
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import ExternalAuthenticate, InternalCryptogram, PinReload
from keyd.protocol.messages.custody import Approve, Propose
from keyd.protocol.messages.medical import MakePurchase, Purchase
from keyd.protocol.messages.psam import AskOpen, ListMembers, PsamInternalAuthenticate
from keyd.protocol.messages.registry import LosePsam
from keyd.psam import Applet
from keyd.registry.psam import PsamAct, PsamSpec
from keyd.registry.synthetic import synthetic_terminal
from tests.daemon.journals import named_uses
from tests.daemon.test_journal import wait_until
from tests.founded import founded_store
from tests.lending.members import CARDS, psam
from tests.pump.conftest import CHALLENGE, FACTOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyd.protocol.fields import Request
    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import WriteConfig
    from tests.founded import Founded

IRK, RKSSSE = 0x0170, 0x004C
FIRST: Final = "510100000001"
TERMINALS: Final = ("DEV-0001", "DEV-0002")

PURCHASE: Final = Purchase(
    bytes(4),
    bytes(2),
    bytes(4),
    personal_account=1000,
    personal_paid=0,
    pooled_fund=0,
    type=1,
    terminal=bytes.fromhex(FIRST),
    time=bytes.fromhex("20261124093000"),
)

SELECT: Final = bytes.fromhex("00A4040006D15600000590")
# The card of region 510100 with these diversifiers.
CARD: Final = CardIdentity(
    bytes.fromhex("510100D15600000530000BEE00000000"), bytes.fromhex("00814A44468649510130000BEE")
)
FACTORS: Final = bytes.fromhex("8649510130000BEE") + b"510100sx" + b"510000sh"
DELIVER: Final = bytes.fromhex("BFDE670A28") + FACTORS + FACTOR + bytes(8)
CIPHER: Final = bytes.fromhex("80FA000010") + CHALLENGE + bytes(8) + b"\x10"


def client_of(daemon: RunningDaemon, code: str = "DEV-0001") -> Client:
    return Client(daemon.address, Enrolment(code, synthetic_terminal_key(code)))


def outcome(client: Client, ask: Request[Any]) -> Any:
    try:
        return client.ask(ask)
    except Refusal as refusal:
        return type(refusal)


# Which keys are the pool's ----------------------------------------------------------------------------------------


def test_what_the_pool_computes_is_what_the_ring_computes(start_daemon: StartDaemon) -> None:
    ring, pool = start_daemon("--psams", "0"), start_daemon("--pooled", "*")
    pool.wait_for("psam_ready", nth=2)
    asks: list[Request[Any]] = [
        InternalCryptogram(CARD, FACTOR, CHALLENGE),
        ExternalAuthenticate(CARD, RKSSSE, FACTOR, CHALLENGE),
        PinReload(CARD, FACTOR, "271828"),
    ]
    with client_of(ring) as one, client_of(pool) as other:
        for ask in asks:
            assert one.ask(ask) == other.ask(ask)
        many = [asks[0]] * 50
        assert one.ask_batch(many) == other.ask_batch(many)
        # A PSAM makes MAC1 with a number of its own, and with nobody else's.
        purchase = MakePurchase(CARD, PURCHASE)
        assert one.ask(purchase).mac1
        assert outcome(other, purchase) is KeyUsageRefused
        turns = [member.turns for member in other.ask(ListMembers()).members]
    assert sum(turns) >= 53
    assert all(turns)


def test_the_journal_says_which_keys_a_psam_was_lent_for(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon("--journal", str(tmp_path / "journal"))
    with client_of(daemon) as client:
        with Psam(client, (IRK, RKSSSE), CardAlgorithm.SM4) as lent:
            lent.transmit(SELECT)
        client.ask(PsamInternalAuthenticate(CARD, FACTOR, CHALLENGE))
        # What is refused was not lent, and is told of too.
        assert outcome(client, AskOpen((IRK,), number="999999999999")) is PsamNotFound
    uses = [
        (use.method, use.status == Status.OK, use.terminal, use.key, bool(any(use.card)))
        for use in named_uses(tmp_path / "journal")
        if use.method.startswith("psam.")
    ]
    code, irk = "DEV-0001", "pool/0170/SM4"
    assert uses == [
        ("psam.open", True, code, irk, False),
        ("psam.open", True, code, "pool/004C/SM4", False),
        ("psam.transmit", True, code, None, False),
        ("psam.close", True, code, None, False),
        ("psam.internal_authenticate", True, code, irk, True),
        ("psam.open", False, code, irk, False),
    ]


def test_a_key_of_the_pool_is_nobodys_where_there_is_no_pool(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("--pooled", "IRK", "--psams", "0")
    with client_of(daemon) as client:
        ask = InternalCryptogram(CARD, FACTOR, CHALLENGE)
        assert outcome(client, ask) is KeyNotFound
        assert client.ask(ExternalAuthenticate(CARD, RKSSSE, FACTOR, CHALLENGE)).reply


# Who has them ------------------------------------------------------------------------------------------------------


def test_a_connection_that_dies_gives_everything_back(daemon: RunningDaemon) -> None:
    daemon.wait_for("psam_ready", nth=2)
    with client_of(daemon, "DEV-0002") as other:
        dying = client_of(daemon)
        dying.connect()
        lent = Psam(dying, [RKSSSE], number=FIRST).__enter__()
        assert lent.transmit(SELECT)[-2] == 0x61
        assert lent.transmit(DELIVER) == b"\x90\x00"
        assert [m.sessions for m in other.ask(ListMembers()).members if m.number == FIRST] == [1]
        dying.close()
        wait_until(lambda: sum(m.sessions for m in other.ask(ListMembers()).members) == 0)
        with Psam(other, [RKSSSE], number=FIRST) as mine:
            assert mine.transmit(SELECT)[-2] == 0x61
            assert mine.transmit(CIPHER) == bytes.fromhex("6901")


def test_many_terminals_at_once_get_their_own_answers(daemon: RunningDaemon) -> None:
    daemon.wait_for("psam_ready", nth=2)
    wrong: list[object] = []

    def work(number: int) -> None:
        code = f"DEV-{number:04}"
        challenge = number.to_bytes(8, "big")
        try:
            with client_of(daemon, code) as client, Psam(client, [RKSSSE]) as lent:
                card = client.ask(ExternalAuthenticate(CARD, RKSSSE, FACTOR, challenge))
                lent.transmit(SELECT)
                for _ in range(20):
                    lent.transmit(DELIVER)
                    command = bytes.fromhex("80FA000010") + challenge + bytes(8) + b"\x10"
                    whole = lent.transmit(command)[:16]
                    folded = bytes(a ^ b for a, b in zip(whole[:8], whole[8:], strict=True))
                    if folded != card.reply[:8]:
                        wrong.append((code, folded.hex()))
        except Exception as error:  # noqa: BLE001 - what a thread raises is to be seen
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_pool_is_in_the_metrics(daemon: RunningDaemon) -> None:
    daemon.wait_for("psam_ready", nth=2)
    with client_of(daemon) as client, Psam(client, [RKSSSE], number=FIRST) as lent:
        lent.transmit(SELECT)
        with urllib.request.urlopen(f"http://{daemon.operations}/metrics") as page:
            text = page.read().decode()
    assert 'keyd_psams{kind="virtual",state="ready"} 2.0' in text
    assert "keyd_psams_open 1.0" in text
    turns = re.search(
        rf'^keyd_psam_turns_total{{psam="virtual {FIRST}"}} (.*)$', text, re.MULTILINE
    )
    assert turns is not None
    assert float(turns[1]) >= 1
    assert f'keyd_psam_failures_total{{psam="virtual {FIRST}"}} 0.0' in text


# Those that officers issued ----------------------------------------------------------------------------------------


class City:
    """A founded keyd with two terminals, and its officers."""

    def __init__(self, folder: Path) -> None:
        keys = synthetic(CARDS.key_places([CardAlgorithm.SM4]))
        registry = {code: synthetic_terminal(code) for code in TERMINALS}
        self.founded: Founded = founded_store(folder, keys, terminals=registry)
        self._socket = str(folder / "admin.sock")

    def officer(self, code: str) -> OfficerClient:
        key = self.founded.officers[Domain.LOCAL, code]
        return OfficerClient(self._socket, Identity(Domain.LOCAL.value, code, key))

    def decide(self, action: act.Action) -> None:
        with self.officer("proposer") as one, self.officer("approver") as other:
            proposed = one.ask(Propose(msgspec.msgpack.encode(action)))
            other.ask(Approve(proposed.proposal.proposal_id))

    def issue(self, number: str, *keys: str, to: str = "") -> None:
        spec = PsamSpec(
            bytes.fromhex(number), bytes.fromhex(number.zfill(20)), "social-security",
            CardAlgorithm.SM4, keys or ("*",),
        )  # fmt: skip
        self.decide(act.IssuePsams((spec,)))
        self.decide(act.ChangePsams((number,), PsamAct.ASSIGN, to))

    def lose(self, number: str) -> None:
        with self.officer("approver") as officer:
            officer.ask(LosePsam(number, "stolen"))


@pytest.fixture
def city(tmp_path: Path) -> City:
    return City(tmp_path)


@pytest.fixture
def served(city: City, start_daemon: StartDaemon, write_config: WriteConfig) -> RunningDaemon:
    assert city.founded
    return start_daemon(*write_config())


def opened(client: Client, *keys: int, number: str = "any") -> Psam:
    """Open a PSAM as soon as there is one: a new one has to be read first."""
    give_up_at = time.monotonic() + 20
    while True:
        lent = Psam(client, keys, number=number)
        try:
            lent.__enter__()
        except (PoolExhausted, PsamNotFound):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        else:
            return lent


def test_an_issued_psam_is_lent_until_it_is_lost(city: City, served: RunningDaemon) -> None:
    with client_of(served) as client:
        with pytest.raises(PsamNotFound):
            Psam(client, [RKSSSE]).__enter__()
        city.issue(FIRST)
        lent = opened(client, RKSSSE)
        assert lent.opened.number.hex() == FIRST
        assert lent.opened.levels == (3,)
        lent.transmit(SELECT)
        assert lent.transmit(DELIVER) == b"\x90\x00"
        city.lose(FIRST)
        with pytest.raises(PsamGone):
            lent.transmit(CIPHER)
        with pytest.raises(PsamNotFound):
            Psam(client, [RKSSSE]).__enter__()


def test_a_psam_has_the_keys_and_the_terminal_it_was_issued_for(
    city: City, served: RunningDaemon
) -> None:
    city.issue(FIRST, "IRK", to="DEV-0001")
    city.issue("510100000002", "RK*")
    with client_of(served) as owner, client_of(served, "DEV-0002") as other:
        assert opened(owner, IRK).opened.number.hex() == FIRST
        assert opened(other, RKSSSE).opened.number.hex() == "510100000002"
        with pytest.raises(NotAllowed):
            Psam(other, [IRK], number=FIRST).__enter__()
        with pytest.raises(PsamNotFound):
            Psam(other, [IRK]).__enter__()


def test_transaction_numbers_go_on_after_a_kill(
    city: City, served: RunningDaemon, start_daemon: StartDaemon, write_config: WriteConfig
) -> None:
    city.issue(FIRST)
    purchase = bytes.fromhex("8070010034") + bytes(18) + b"\x01" + bytes.fromhex("20261124093000")
    purchase += bytes.fromhex("0103") + FACTORS
    seen: list[bytes] = []
    daemon = served
    for _ in range(3):
        with client_of(daemon) as client:
            lent = opened(client, 0x017F)
            lent.transmit(SELECT)
            for _ in range(2):
                assert lent.transmit(purchase) == bytes.fromhex("6108")
                seen.append(lent.transmit(bytes.fromhex("00C0000008"))[:4])
            # In the middle of a purchase.
            daemon.process.kill()
            daemon.process.wait()
        daemon = start_daemon(*write_config())
    assert len(set(seen)) == len(seen) == 6


# A rack ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rack() -> Iterator[str]:
    """The address of a rack with one PSAM."""
    ports: list[int] = []
    started, stop = threading.Event(), trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        ports.append(listeners[0].socket.getsockname()[1])
        tokens.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_rack, [Applet(psam(510100000007))], listeners)
            started.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    started.wait()
    yield f"127.0.0.1:{ports[0]}"
    tokens[0].run_sync_soon(stop.set)
    thread.join()


def test_a_rack_serves_what_is_routed_to_it(
    city: City, rack: str, start_daemon: StartDaemon, write_config: WriteConfig
) -> None:
    assert city.founded
    psams = f'[psams]\nracks = ["{rack}"]\n[[psams.route]]\nkeys = ["RKSSSE"]\nto = "pool"'
    daemon = start_daemon(*write_config(psams))
    ready = daemon.wait_for("psam_ready")
    assert "终端机编号 510100000007" in ready["detail"]
    ask = ExternalAuthenticate(CARD, RKSSSE, FACTOR, CHALLENGE)
    ring = start_daemon()
    with client_of(daemon) as client, client_of(ring) as other:
        assert client.ask(ask) == other.ask(ask)
        (member,) = client.ask(ListMembers()).members
        assert (member.kind, member.number) == ("rack", "510100000007")
        assert member.turns >= 1


# What cannot be configured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('[psams]\nprofile = "mine"', "psams.profile: there is no 'mine'"),
        ('[psams]\nracks = ["nowhere"]', "psams.racks: "),
        ('[psams]\nracks = ["unix:/rack"]', "psams.racks: unix:/rack is no HOST:PORT"),
        ('[psams]\nprofiles = "/nowhere"', "/nowhere"),
        ('[[psams.route]]\nkeys = ["NOKEY"]\nto = "pool"', "psams.route: route 1: "),
        ('[[psams.route]]\nkeys = ["*"]\nto = "hardware"', "no hardware module"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(
    write_config: WriteConfig, lines: str, says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyd.daemon", *write_config(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
