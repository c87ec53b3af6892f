"""The pump learns only what it may go on answering unasked: current versions, uncounted, in the right direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.dispatch import Pass
from keyd.errors import Status
from keyd.keys.block import KEY_ID_BYTES, KeyState
from keyd.keys.hierarchy import Region
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.sam import CardKeyRef, CryptogramTask
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import Ask, ClientConnection, ServerConnection
from keyd.protocol.fields import CardIdentity
from keyd.protocol.messages.card import InternalCryptogram
from keyd.pump import METHODS
from keyd.routes import KINDS, PURPOSES
from tests.pump.conftest import (
    CARD,
    CHALLENGE,
    EXTERNAL_AUTHENTICATE,
    FACTOR,
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    IRK,
    RKSSSE,
    SM4,
    Stand,
    hot,
    require_one_semantics,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyd.keys.block import KeyHeader

HOT_ADDRESSES: Final = {(IRK,), (RKSSSE,)}

Keys = list[tuple["KeyHeader", SecretKey]]
every_method = pytest.mark.parametrize("method", METHODS)


class Counted:
    """A quota of so many uses."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


def keys_with(**changes: Any) -> Keys:
    """Return the development keys, of which those that the hot requests use are changed."""
    places = newest(load_profiles()).key_places((CardAlgorithm.SM4,))
    return [
        (replace(header, **changes) if header.addresses in HOT_ADDRESSES else header, key)
        for header, key in synthetic(places)
    ]


def next_version(keys: Keys) -> Keys:
    """Make a version 2 of each of the hot keys, with other bytes."""
    return [
        (replace(header, version=2, key_id=bytes(KEY_ID_BYTES - 2) + address, kcv=key.kcv()), key)
        for header, _ in keys
        if header.addresses in HOT_ADDRESSES
        for address in (header.addresses[0].to_bytes(2, "big"),)
        for key in (SecretKey.load(Algorithm.SM4, address * 8),)
    ]


@pytest.fixture
def stand_on() -> Iterator[Callable[[KeyRing], Stand]]:
    """Make stands on rings of a test's own."""
    made: list[Stand] = []

    def make(keys: KeyRing) -> Stand:
        made.append(Stand(keys))
        return made[-1]

    yield make
    for stand in made:
        stand.close()


def said(stand: Stand, request: bytes) -> Status:
    """Return the status of Python's one answer, which also teaches the pump."""
    verdict = stand.python(request, stand.routes)
    ((_, status),) = verdict.counts
    return status


def is_pumped(stand: Stand, request: bytes) -> bool:
    """Whether the pump answers the request, as Python would."""
    return require_one_semantics(stand, request)[0] == 1


@every_method
def test_the_pump_answers_what_is_current_and_free(
    stand_on: Callable[[KeyRing], Stand], method: str
) -> None:
    # What the other tests here compare with.
    stand = stand_on(KeyRing(keys_with()))
    assert said(stand, hot(method)) is Status.OK
    assert is_pumped(stand, hot(method))


@every_method
def test_what_our_own_client_sends_is_pumped(
    stand_on: Callable[[KeyRing], Stand], method: str
) -> None:
    """The client names every field, also those that have defaults: a field that is appended must not be too many."""
    stand = stand_on(KeyRing(keys_with()))
    assert said(stand, hot(method)) is Status.OK
    (ask,) = _asks(hot(method))
    request = msgspec.convert(ask.params, TABLE[method].request, builtin_types=(bytes,))
    _msgid, sent = ClientConnection().ask(method, request)
    assert sent != hot(method)
    assert is_pumped(stand, sent)


def _asks(data: bytes) -> list[Ask]:
    connection = ServerConnection()
    connection.receive_data_untrusted(data)
    return connection.next_asks_untrusted(1)


@every_method
def test_a_key_with_a_ceiling_is_never_the_pumps(
    stand_on: Callable[[KeyRing], Stand], method: str
) -> None:
    keys = keys_with(ceiling=100)
    quotas = {header.key_id: Counted(20) for header, _ in keys}
    ring = KeyRing()
    ring.load(keys, quotas)
    stand = stand_on(ring)
    for _ in range(3):
        assert said(stand, hot(method)) is Status.OK
    # One use for each time, since every time went the long way.
    assert sorted({quota.left for quota in quotas.values()}) == [17, 20]
    assert not is_pumped(stand, hot(method))
    for quota in quotas.values():
        quota.left = 0
    assert said(stand, hot(method)) is Status.KEY_EXHAUSTED
    assert not is_pumped(stand, hot(method))


@every_method
def test_a_card_of_another_version_is_never_the_pumps(
    stand_on: Callable[[KeyRing], Stand], method: str
) -> None:
    old = keys_with()
    ring = KeyRing([*old, *next_version(old)])
    stand = stand_on(ring)
    # The card was made with version 1; `hot` shows its cryptogram.
    of_version_1 = hot(method, optional=(SM4, 3, 1))
    assert said(stand, of_version_1) is Status.OK
    assert not is_pumped(stand, of_version_1)
    # Nor did the pump learn the old key in the current one's place.
    assert not is_pumped(stand, hot(method))
    # Not even where the current one's city happens to be kept.
    address = RKSSSE if method == EXTERNAL_AUTHENTICATE else IRK
    wanted = PURPOSES[METHODS.index(method)]
    ref = CardKeyRef(address, CardAlgorithm.SM4, Region(CARD.region), bytes(8), wanted)
    ring.compute([CryptogramTask(ref, FACTOR, CHALLENGE)])
    assert ring.maybe_city(address, CardAlgorithm.SM4, Region(CARD.region), wanted) is not None
    assert said(stand, of_version_1) is Status.OK
    assert not is_pumped(stand, of_version_1)
    theirs, _ = stand.open()
    theirs.sendall(hot(method))
    assert stand.tick()[1] == 0
    if method != INTERNAL_AUTHENTICATE:
        assert said(stand, hot(method)) is Status.OK
        assert is_pumped(stand, hot(method))
        # Knowing the current key, it still hands up who names a version.
        assert not is_pumped(stand, of_version_1)
        assert stand.python(of_version_1).answers != stand.python(hot(method)).answers
    else:
        assert said(stand, hot(method)) is Status.CARD_NOT_AUTHENTIC


def test_a_deactivated_key_verifies_in_the_pump_and_produces_nowhere(
    stand_on: Callable[[KeyRing], Stand],
) -> None:
    ring = KeyRing(keys_with(state=KeyState.DEACTIVATED))
    stand = stand_on(ring)
    assert said(stand, hot(INTERNAL_AUTHENTICATE)) is Status.OK
    assert is_pumped(stand, hot(INTERNAL_AUTHENTICATE))
    for method in (INTERNAL_CRYPTOGRAM, EXTERNAL_AUTHENTICATE):
        assert said(stand, hot(method)) is Status.KEY_STATE
        assert not is_pumped(stand, hot(method))
    # Even if somebody taught it what was never answered: the key that verifies is not there for producing.
    card = CardIdentity(CARD.card_id, CARD.historical)
    stand.routes.learn(InternalCryptogram(card, FACTOR, CHALLENGE), Pass(None))
    assert not is_pumped(stand, hot(INTERNAL_CRYPTOGRAM))


@every_method
@pytest.mark.parametrize("state", [KeyState.COMPROMISED, KeyState.DESTROYED])
def test_who_forgets_when_keys_change_answers_nothing_under_the_old_ones(
    stand_on: Callable[[KeyRing], Stand], method: str, state: KeyState
) -> None:
    ring = KeyRing(keys_with())
    stand = stand_on(ring)
    stand.teach(hot(method))
    assert is_pumped(stand, hot(method))
    ring.load(keys_with(state=state))
    stand.routes.forget()
    assert said(stand, hot(method)) is Status.KEY_STATE
    assert not is_pumped(stand, hot(method))


@every_method
def test_who_forgets_at_the_end_of_a_keys_time_answers_nothing_after_it(
    stand_on: Callable[[KeyRing], Stand], method: str
) -> None:
    now = [100.0]
    ring = KeyRing(keys_with(valid_until=200), lambda: now[0])
    stand = stand_on(ring)
    stand.teach(hot(method))
    assert is_pumped(stand, hot(method))
    due = ring.refresh_at()
    assert due == 200
    now[0] = due
    stand.routes.forget()
    assert said(stand, hot(method)) is Status.KEY_NOT_VALID_NOW
    assert not is_pumped(stand, hot(method))


def test_the_pumps_purposes_are_those_that_the_services_ask_for(
    stand_on: Callable[[KeyRing], Stand],
) -> None:
    # A purpose of its own would never be in the ring's cache, and the pump would never learn a thing.
    ring = KeyRing(keys_with())
    stand = stand_on(ring)
    for method in METHODS:
        stand.teach(hot(method))
    assert ring._kernel.cities == len(KINDS) == len(PURPOSES) == len(set(PURPOSES))
    for address, wanted in zip((IRK, IRK, RKSSSE), PURPOSES, strict=True):
        assert ring.maybe_city(address, CardAlgorithm.SM4, Region(CARD.region), wanted) is not None
