"""Processes that play a PSAM of a store and buy with it, for tests that kill them.

They are forked from a server that has imported everything already, so that thirty of them cost seconds.
"""

from __future__ import annotations

import multiprocessing
import secrets
from typing import TYPE_CHECKING, Any, Final

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.shares import decode_share
from keyd.custody.catalogue import shipped_catalogue
from keyd.custody.vault import Vault
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.lending.issued import Player, playable
from keyd.psam import Applet
from keyd.store.database import Store
from tests.custody.world import NOON

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

SELECT: Final = bytes.fromhex("00A4040006D15600000590")
# 100 yuan, a debit, with the key of docs/psam.md's example.
BUY: Final = bytes.fromhex(
    "8070010034"
    "010203040005000027100000000000000000012024010203040501038649519930000BEE"
    "35313031303073783531303030307368"
)
GET_RESPONSE: Final = bytes.fromhex("00C0000008")


def context() -> Any:
    """Return what starts such processes."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.custody.buyers", "psycopg"])
    return made


def synthetic_ring() -> KeyRing:
    """A ring with the synthetic roots of all cards."""
    return KeyRing(synthetic(newest(load_profiles()).key_places((CardAlgorithm.SM4,))))


def buy(url: str, shares: Sequence[str], answered: Connection) -> None:
    """Unseal the store, play its one PSAM and buy for ever; tell each transaction number when it was answered."""
    store = Store.open(url)
    vault = Vault(store, "buyer", lambda: float(NOON), secrets.token_bytes, lambda: None)
    for share in shares:
        if vault.is_sealed:
            vault.give_share(decode_share(share))
    contents = vault.contents
    assert contents is not None
    (kept,) = playable(contents, NOON).values()
    player = Player(store, synthetic_ring(), shipped_catalogue(), secrets.token_bytes)
    applet = Applet(player.play(contents, kept))
    assert applet.transmit(SELECT)[:1] == b"\x61"
    while True:
        answer = applet.transmit(BUY)
        assert answer == bytes.fromhex("6108"), answer.hex()
        answered.send(int.from_bytes(applet.transmit(GET_RESPONSE)[:4], "big"))
