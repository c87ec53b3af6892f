"""Over real sockets, a keyd that computes in a PSAM answers the same bytes as one that computes in its ring.

The hub, its pump and its lines are the daemon's own; peers are sockets in a thread beside it.
"""

from __future__ import annotations

import socket
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from keyd.cards.profile import newest
from keyd.dispatch import Dispatch
from keyd.hub.hub import Hub
from keyd.hub.limits import MAX_LATE_PER_CONNECTION, MAX_SLOW_PER_CONNECTION, Limits
from keyd.pump import METHODS
from keyd.pump._pump import Pump
from keyd.routes import Routes
from keyd.routing import Routing
from keyd.telemetry import Events, Meter
from tests.daemon.conftest import RawPeer
from tests.psam.sams import ROUTES, LendsNothing, OnePool, PsamSam
from tests.pump.conftest import CHALLENGE, FACTOR, cryptogram, identity, make_services, ring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from keyd.errors import Refusal
    from keyd.keys.sam import SamTask

UNBLOCK: Final = "card.pin_unblock"

# Every kind of card command that a PSAM serves, and one that it does not.
REQUESTS: Final[list[tuple[str, list[Any]]]] = [
    (METHODS[0], [identity(), FACTOR, CHALLENGE, cryptogram()]),
    (METHODS[0], [identity(), FACTOR, CHALLENGE, bytes(8)]),
    (METHODS[1], [identity(), FACTOR, CHALLENGE]),
    (METHODS[1], [identity(), FACTOR, CHALLENGE]),
    (METHODS[2], [identity(), 0x004C, FACTOR, CHALLENGE]),
    (METHODS[2], [identity(), 0x017F, FACTOR, CHALLENGE]),
    ("card.mutual_cryptograms", [identity(), FACTOR, CHALLENGE, FACTOR, CHALLENGE]),
    ("card.secure_message", [identity(), 0x0173, FACTOR, b"\x04\xd6\0\0", bytes(100), True]),
    (UNBLOCK, [identity(), FACTOR]),
    (UNBLOCK + "_batch", [[[identity(), FACTOR], [identity(), b""], None]]),
    ("card.pin_reload", [identity(), FACTOR, "918273"]),
    ("card.pin_reload", [identity(), FACTOR, "91"]),
]


class Keyd:
    """A hub on a port of its own, with the pump before it; with a pool or without."""

    def __init__(self, *, has_pool: bool) -> None:
        self.services = make_services()
        if has_pool:
            profiles = self.services.profiles
            self.services.routing = Routing.of(ROUTES, profiles)
            self.services.psams = OnePool(PsamSam(ring(), newest(profiles).keys))
        events, meter = Events(time.monotonic), Meter()
        self.dispatch = Dispatch(self.services, meter, events)
        self.hub = Hub(self.dispatch, meter, events, Limits(), time.monotonic, Pump)
        assert self.hub.pump is not None
        self.dispatch.short_cut = Routes(self.hub.pump, ring(), self.services)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*listener.getsockname())
        self.hub.listen([listener])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hub.run)
            yield
            nursery.cancel_scope.cancel()
        with suppress(OSError):
            self.hub._close_all()

    async def converse(self, talk: Callable[[RawPeer], Any]) -> Any:
        """Let an authenticated peer say something, in a thread."""

        def run() -> Any:
            peer = RawPeer(self.address)
            try:
                peer.authenticate()
                return talk(peer)
            finally:
                peer.close()

        return await trio.to_thread.run_sync(run)


def all_requests(peer: RawPeer) -> list[Any]:
    # Twice, since the pump answers what it has learnt.
    return [peer.ask(method, *params)[2:] for method, params in REQUESTS * 2]


async def test_the_answers_are_the_same_over_real_sockets() -> None:
    answers = []
    for has_pool in (False, True):
        keyd = Keyd(has_pool=has_pool)
        async with keyd.running():
            answers.append(await keyd.converse(all_requests))
        if isinstance(keyd.services.psams, OnePool):
            # All that is well formed came to the PSAM, both times: the pump has learnt nothing of it.
            addresses = [task.key.address for _, task in keyd.services.psams.asked]
            assert addresses == [*([0x0170] * 4), *([0x004C, 0x0170, 0x004C]), *([0x0173] * 4)] * 2
    assert answers[0] == answers[1]


async def test_what_the_pump_knew_it_forgets_when_keys_are_routed() -> None:
    keyd = Keyd(has_pool=True)
    routing, keyd.services.routing = keyd.services.routing, None
    pool = keyd.services.psams
    assert isinstance(pool, OnePool)
    hot = (METHODS[1], identity(), FACTOR, CHALLENGE)
    async with keyd.running():
        before = await keyd.converse(lambda peer: [peer.ask(*hot)[3] for _ in range(3)])
        assert pool.asked == []
        # What the daemon does when it reads another configuration.
        keyd.services.routing = routing
        assert keyd.dispatch.short_cut is not None
        keyd.dispatch.short_cut.forget()
        after = await keyd.converse(lambda peer: [peer.ask(*hot)[3] for _ in range(3)])
    assert before == after
    assert len(pool.asked) == 3


class Waiting(LendsNothing):
    """A pool whose PSAMs are all in use until they are let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.began = trio.Event()
        self.free = trio.Event()

    async def compute(self, tasks: Sequence[SamTask], _terminal: str) -> list[bytes | Refusal]:
        self.waiting += 1
        self.began.set()
        await self.free.wait()
        return ring().compute(tasks)


async def test_a_line_may_have_a_ticks_share_waiting_for_psams_and_other_work_beside_it() -> None:
    keyd = Keyd(has_pool=True)
    keyd.services.psams = pool = Waiting()
    beyond, selftests = 3, MAX_SLOW_PER_CONNECTION
    late = MAX_LATE_PER_CONNECTION + beyond

    def flood(peer: RawPeer) -> dict[int, Any]:
        requests = [peer.encode(UNBLOCK, identity(), FACTOR, msgid=n) for n in range(late)]
        tests = [peer.encode("daemon.selftest", msgid=late + n) for n in range(selftests)]
        peer.sock.sendall(b"".join(requests + tests))
        answers = peer.answers()
        first = [next(answers) for _ in range(beyond + selftests)]
        # And what waits for nothing is answered meanwhile.
        first.append(peer.ask("daemon.random", 8))
        trio.from_thread.run_sync(pool.free.set)
        rest = [next(answers) for _ in range(late - beyond)]
        return {answer[1]: answer[2] for answer in [*first[:-1], *rest]}

    async with keyd.running():
        errors = await keyd.converse(flood)
    refused = {msgid for msgid, error in errors.items() if error is not None}
    assert refused == set(range(MAX_LATE_PER_CONNECTION, late))
    assert {errors[msgid][1] for msgid in refused} == {"TOO_MANY_IN_FLIGHT"}
    assert pool.waiting == MAX_LATE_PER_CONNECTION


@pytest.mark.parametrize("has_pool", [False, True])
async def test_who_hangs_up_meanwhile_leaves_nothing_behind(has_pool: bool) -> None:
    keyd = Keyd(has_pool=has_pool)
    if has_pool:
        keyd.services.psams = pool = Waiting()

    def vanish(peer: RawPeer) -> None:
        peer.send(UNBLOCK, identity(), FACTOR)

    async with keyd.running():
        await keyd.converse(vanish)
        if has_pool:
            await pool.began.wait()
            pool.free.set()
        with trio.fail_after(20):
            while keyd.hub._slow_work.count or keyd.hub._connections.peers:  # noqa: ASYNC110 - the hub tells nobody
                await trio.sleep(0.01)
        assert keyd.hub._slow_work.late == 0
