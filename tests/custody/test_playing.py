"""Of what officers issued, what is assigned and valid is played: with its keys, as itself, and for whom it is."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from msgspec.structs import replace

from keyd.custody import actions as act
from keyd.custody.catalogue import shipped_catalogue
from keyd.errors import BadParameter, PsamNotFound
from keyd.keys.block import Domain
from keyd.lending.issued import Player, RingOnTick, playable
from keyd.psam import Applet, Counters, PsamRecord, may_wait
from keyd.registry.psam import PsamAct, PsamState
from keyd.registry.terminal import Proof, TerminalSpec
from tests.custody.buyers import BUY, GET_RESPONSE, SELECT, synthetic_ring
from tests.custody.world import NOON, World, contents_of, psam_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.keys.block import KeyHeader
    from keyd.keys.hierarchy import RootKey
    from keyd.keys.ring import KeyRing
    from keyd.keys.sam import CardKeyRef

LOCAL: Final = Domain.LOCAL
NUMBER: Final = "510100000428"
# The card of docs/psam.md's example, lowest level first.
FACTORS: Final = "8649519930000BEE35313031303073783531303030307368"
READ_CARD: Final = bytes.fromhex("BFDE670A28" + FACTORS + "0102030405060708" + "00" * 8)


def issued(world: World, **fields: Any) -> None:
    world.decide(LOCAL, act.IssuePsams((psam_spec(**fields),)))
    world.decide(LOCAL, act.ChangePsams((NUMBER,), PsamAct.ASSIGN))


def played(world: World, ring: KeyRing | None = None) -> Applet:
    contents = contents_of(world.vault)
    player = Player(world.store, ring or synthetic_ring(), shipped_catalogue(), secrets.token_bytes)
    applet = Applet(player.play(contents, playable(contents, NOON)[NUMBER]))
    applet.transmit(SELECT)
    return applet


def test_what_is_assigned_and_valid_is_played_for_whom_it_is(world: World) -> None:
    desk = TerminalSpec("DESK-1", "org", "510100", ("counter",), (Proof.SIGNATURE,))
    world.decide(LOCAL, act.EnrolTerminals((desk,)))
    valid = {"valid_from": NOON - 10, "valid_until": NOON + 10}
    specs = (psam_spec(1), psam_spec(2), psam_spec(3, **valid), psam_spec(4))
    world.decide(LOCAL, act.IssuePsams(specs))
    numbers = [spec.number.hex() for spec in specs]
    world.decide(LOCAL, act.ChangePsams((numbers[1],), PsamAct.ASSIGN, "DESK-1"))
    world.decide(LOCAL, act.ChangePsams((numbers[2], numbers[3]), PsamAct.ASSIGN))
    world.vault.lose_psam(world.officer(LOCAL, "e"), numbers[3], "")

    def whose(now: int) -> dict[str, str]:
        found = playable(contents_of(world.vault), now)
        assert all(kept.number == number for number, kept in found.items())
        return {number: kept.terminal for number, kept in found.items()}

    both = {numbers[1]: "DESK-1", numbers[2]: ""}
    assert whose(NOON) == whose(NOON - 10) == whose(NOON + 9) == both
    assert whose(NOON - 11) == whose(NOON + 10) == {numbers[1]: "DESK-1"}


def test_it_is_itself_and_has_its_keys_and_no_others(world: World) -> None:
    issued(world)
    applet = played(world)
    applet.reset()
    # 终端机编号, which is beside the application.
    assert applet.transmit(bytes.fromhex("00B0960006")) == bytes.fromhex(NUMBER + "9000")
    applet.transmit(SELECT)
    assert applet.transmit(READ_CARD) == bytes.fromhex("9000")
    # Issued with IRK and RK*: it has no key to buy with.
    assert applet.transmit(BUY) == bytes.fromhex("9403")


def test_nobody_loads_keys_into_it(world: World) -> None:
    """It has no master key, so there is nothing to prove and nothing to load a key under: 6A88."""
    issued(world, keys=("*",))
    applet = played(world)
    for command in ("0082000010" + "00" * 16, "84D4001124" + "00" * 36, "84D4011124" + "00" * 36):
        applet.transmit(bytes.fromhex("0084000008"))
        assert applet.transmit(bytes.fromhex(command)) == bytes.fromhex("6A88")


def test_a_key_that_is_taken_from_the_ring_is_taken_from_it(world: World) -> None:
    issued(world)
    ring = synthetic_ring()
    applet = played(world, ring)
    assert applet.transmit(READ_CARD) == bytes.fromhex("9000")
    ring.load(())
    assert applet.transmit(READ_CARD) == bytes.fromhex("6A88")


def test_played_twice_it_gives_no_number_twice(world: World) -> None:
    """As when a lender makes it anew while somebody still has the one of before."""
    issued(world, keys=("*",))
    applets = [played(world), played(world)]
    given = []
    for _ in range(20):
        for applet in applets:
            applet.transmit(BUY)
            given.append(applet.transmit(GET_RESPONSE)[:4])
    assert len(set(given)) == 40


def test_what_cannot_be_played_says_why(world: World) -> None:
    issued(world)
    contents = contents_of(world.vault)
    kept = contents.psam(NUMBER)
    shipped = shipped_catalogue()
    for catalogue, spec in (
        (replace(shipped, profiles={}), kept.spec),
        (shipped, replace(kept.spec, profile="gone")),
    ):
        player = Player(world.store, synthetic_ring(), catalogue, secrets.token_bytes)
        with pytest.raises(BadParameter, match="is of profile"):
            player.play(contents, replace(kept, spec=spec))
    player = Player(world.store, synthetic_ring(), shipped, secrets.token_bytes)
    with pytest.raises(PsamNotFound):
        player.play(contents, replace(kept, spec=psam_spec(1)))
    assert kept.state is PsamState.ASSIGNED


async def test_on_worker_threads_the_ring_is_asked_on_the_tick(world: World) -> None:
    """Two slots buy on two threads while the tick reads a card: the ring hears of all of it on one thread."""
    issued(world, keys=("*",))
    asked: list[int] = []

    class Heard:
        def __init__(self) -> None:
            self.ring = synthetic_ring()

        def lend(self, ref: CardKeyRef) -> RootKey:
            asked.append(threading.get_ident())
            return self.ring.lend(ref)

        def answering(self, ref: CardKeyRef) -> KeyHeader:
            return self.ring.answering(ref)

    contents = contents_of(world.vault)
    player = Player(world.store, RingOnTick(Heard()), shipped_catalogue(), secrets.token_bytes)
    psam = await trio.to_thread.run_sync(player.play, contents, contents.psam(NUMBER))
    slots = [Applet(psam), Applet(psam), Applet(psam)]
    given: list[bytes] = []

    async def buy(applet: Applet) -> None:
        for _ in range(20):
            assert may_wait(BUY)
            assert await trio.to_thread.run_sync(applet.transmit, BUY) == b"\x61\x08"
            given.append(applet.transmit(GET_RESPONSE)[:4])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for applet in slots:
                applet.transmit(SELECT)
            for applet in slots[:2]:
                nursery.start_soon(buy, applet)
            for _ in range(40):
                assert not may_wait(READ_CARD)
                assert slots[2].transmit(READ_CARD) == b"\x90\x00"
                await trio.lowlevel.checkpoint()
    assert len(set(given)) == 40
    assert set(asked) == {threading.get_ident()}
    assert len(asked) == 80


def test_what_may_wait_is_what_the_memory_is_asked_for(world: World) -> None:
    """Every other command of every class is answered by an applet whose memory cannot be reached."""
    issued(world, keys=("*",))
    contents = contents_of(world.vault)
    ring = synthetic_ring()
    player = Player(world.store, ring, shipped_catalogue(), secrets.token_bytes)
    psam = player.play(contents, contents.psam(NUMBER))
    reached: list[bytes] = []

    class Watched:
        def load(self) -> PsamRecord:
            return PsamRecord()

        def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:
            reached.append(command)
            return to(PsamRecord())

    applet = Applet(dataclasses.replace(psam, counters=Counters(Watched(), 1)))
    applet.transmit(SELECT)
    commands = [READ_CARD, BUY, bytes.fromhex("807200000400000000")]
    commands += [
        bytes((cla, ins, 0, 0, 8, *range(8))) for cla in (0, 0x80, 0x84, 0xBF) for ins in range(256)
    ]
    for command in commands:
        applet.transmit(command)
    assert BUY in reached
    assert all(map(may_wait, reached))
