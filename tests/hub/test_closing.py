"""Invariant: a line that is to end does end, whatever was still buffered on it, and costs nothing after that."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import trio

from keyd.hub.limits import MAX_ASKS_PER_CONNECTION
from tests.daemon.conftest import RawPeer
from tests.hub.test_late import Keyd

if TYPE_CHECKING:
    from collections.abc import Iterator

# As many wrong proofs as end a line, and many more.
WRONG_PROOFS = 6


@pytest.fixture
def keyd() -> Keyd:
    return Keyd(has_pool=False)


def burst() -> Iterator[bytes]:
    """Wrong proofs, and behind them more than is answered in one tick."""
    for _ in range(WRONG_PROOFS):
        yield RawPeer.encode("terminal.challenge", "DEV-0001", bytes(16))
        yield RawPeer.encode("terminal.authenticate", bytes(8))
    for _ in range(3 * MAX_ASKS_PER_CONNECTION):
        yield RawPeer.encode("daemon.random", 8)


async def test_wrong_proofs_at_the_head_of_a_long_burst_end_the_line(keyd: Keyd) -> None:
    def flood() -> None:
        peer = RawPeer(keyd.address)
        peer.sock.settimeout(20)
        peer.sock.sendall(b"".join(burst()))
        while peer.sock.recv(65536):
            pass
        # It goes on, to nobody, and hangs up.
        with contextlib.suppress(OSError):
            peer.sock.sendall(RawPeer.encode("daemon.random", 8))
        peer.close()

    async with keyd.running():
        await trio.to_thread.run_sync(flood)
        with trio.fail_after(20):
            while keyd.hub._connections.peers:  # noqa: ASYNC110 - the hub tells nobody
                await trio.sleep(0.01)
        before = keyd.hub.ticks
        await trio.sleep(0.2)
        # Seventy thousand a second, while nobody was there, is what this was once.
        assert keyd.hub.ticks - before < 20
