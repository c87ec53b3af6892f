"""What each request needs of the policy: which of its fields are the key addresses, the algorithm and the region.

One small resolver for each request type of the table, and beside it what the method can ask for at all. A resolver
reads what the handler will read and in the same way; `tests/policy/test_needs.py` compares it with the keys that the
handler's tasks really name. It decides nothing, and refuses only what cannot be read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct

from keyd.cards.identity import historical_of
from keyd.cards.library import IRK, PUK, RKSSSE
from keyd.cards.medical import DTK
from keyd.cards.messaging import STK
from keyd.cards.profile import Use
from keyd.errors import BadParameter
from keyd.policy.catalogue import NO_KEY, Catalogue, Shape, keys_of
from keyd.protocol.commands import TABLE, Role
from keyd.protocol.messages.card import (
    ExternalAuthenticate,
    InternalAuthenticate,
    InternalCryptogram,
    MutualAuthenticate,
    MutualCryptograms,
    PinReload,
    PinUnblock,
    SecureMessage,
)
from keyd.protocol.messages.daemon import AskRandom, AskStatus, RunSelftest
from keyd.protocol.messages.library import (
    DoDebit1,
    DoDebit2,
    ReadCard,
    ReadCardBas,
    ReloadPin1,
    ReloadPin2,
    UnblockPin1,
    UnblockPin2,
    WriteCard,
)
from keyd.protocol.messages.medical import ConfirmLoad, ConfirmPurchase, MakeLoad, MakePurchase
from keyd.protocol.messages.psam import (
    AskOpen,
    Close,
    ListMembers,
    PsamConfirmPurchase,
    PsamExternalAuthenticate,
    PsamInternalAuthenticate,
    PsamMakePurchase,
    RunOnce,
    RunScript,
    Transmit,
    TransmitMany,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyd.cards.profile import Profile
    from keyd.protocol.fields import CardIdentity, Request

ResolverT = TypeVar("ResolverT", bound="Callable[[Any, Needs], Need]")

# Commands for whoever proves to be a terminal. The others have gates of their own: anyone may prove who they are.
# An operator on the Unix socket is no terminal and has no roles: that gate stands before this one.
GOVERNED: Final = frozenset({Role.TERMINAL, Role.OPERATOR})


class Need(Struct, frozen=True, gc=False):
    """What a request asks of the policy. Without a key: NO_KEY, algorithm 0 and no region."""

    addresses: tuple[int, ...]
    algorithm: int = 0
    region: str = ""
    # For `Needs.card_name`; None where no card is concerned.
    historical: bytes | None = None
    generation: int = 0
    # Commands to a PSAM that it carries: rates count each of them.
    commands: int = 1


_NOTHING: Final = Need((NO_KEY,))

_SHAPES: Final[dict[type[Request[Any]], Shape]] = {}
_RESOLVERS: Final[dict[type[Request[Any]], Callable[[Any, Needs], Need]]] = {}


def _resolves(request: type[Request[Any]], shape: Shape) -> Callable[[ResolverT], ResolverT]:
    def register(resolver: ResolverT) -> ResolverT:
        if request in _SHAPES:
            raise TypeError(f"{request.__name__} has a resolver already")
        _SHAPES[request] = shape
        _RESOLVERS[request] = resolver
        return resolver

    return register


def _of(
    *uses: Use,
    names: tuple[str, ...] = ("*",),
    never: tuple[str, ...] = (),
    resets_pin: bool = False,
) -> Shape:
    return Shape(frozenset(uses), names, never, resets_pin=resets_pin)


class Needs:
    """The resolvers, over the card profiles that are loaded."""

    def __init__(self, profiles: Mapping[int, Profile]) -> None:
        self._profiles = profiles
        self._fixed = {
            (generation, key.name): profile.address_of(key.name)
            for generation, profile in profiles.items()
            for key in profile.keys.values()
            if key.name in (IRK, RKSSSE, STK, DTK) and key.set == 1
        }

    def of(self, request: Request[Any]) -> Need:
        """Return what a request needs.

        Raises:
            BadParameter: a string of the terminal library cannot be read that far.
        """
        return _RESOLVERS[type(request)](request, self)

    def card_name(self, need: Need) -> bytes | None:
        """Return what a card is counted by: what its keys are diversified by, and nothing that could be varied.

        The card identifier will not do. Its last four bytes are not checked, and neither a county of Zhejiang nor
        the region of a city's own key changes the card's keys, so one card would pass for many.

        Raises:
            BadParameter: the reset information is no card's.
        """
        if need.historical is None:
            return None
        return self._profile(need.generation).card_diversifier(historical_of(need.historical))

    def fixed(self, generation: int, name: str) -> int:
        """Return the address of a key that a method always uses."""
        address = self._fixed.get((generation, name))
        if address is None:
            raise BadParameter(f"no profile of generation {generation} with {name} is loaded")
        return address

    def _profile(self, generation: int) -> Profile:
        profile = self._profiles.get(generation)
        if profile is None:
            raise BadParameter(f"no profile is loaded for generation {generation}")
        return profile


def catalogue(profiles: Mapping[int, Profile]) -> Catalogue:
    """Return what a policy can allow: every governed method of the table and every key of these profiles."""
    return Catalogue(
        {row.method: _SHAPES[row.request] for row in TABLE.values() if row.role in GOVERNED},
        keys_of(profiles),
    )


def _card(card: CardIdentity, *addresses: int) -> Need:
    return Need(addresses, card.algorithm, card.card_id[:3].hex(), card.historical, card.generation)


# daemon ----------------------------------------------------------------------------------------------------------


@_resolves(AskStatus, Shape())
@_resolves(RunSelftest, Shape())
@_resolves(AskRandom, Shape())
# What is said to an open PSAM needs what opening it needs, now as then: `Gate.require_still` sees to that, and
# `keyd.psam.guard` that no other key is named.
@_resolves(Transmit, Shape())
@_resolves(Close, Shape())
@_resolves(PsamConfirmPurchase, Shape())
@_resolves(ListMembers, Shape())
def _no_key(_ask: Request[Any], _needs: Needs) -> Need:
    return _NOTHING


@_resolves(TransmitMany, Shape())
def _many(ask: TransmitMany, _needs: Needs) -> Need:
    return Need((NO_KEY,), commands=len(ask.commands))


@_resolves(RunScript, Shape())
def _script(ask: RunScript, _needs: Needs) -> Need:
    return Need((NO_KEY,), commands=len(ask.steps))


# card ------------------------------------------------------------------------------------------------------------


@_resolves(InternalCryptogram, _of(Use.INTERNAL))
@_resolves(InternalAuthenticate, _of(Use.INTERNAL))
@_resolves(ExternalAuthenticate, _of(Use.EXTERNAL))
@_resolves(PsamInternalAuthenticate, _of(Use.INTERNAL))
@_resolves(PsamExternalAuthenticate, _of(Use.EXTERNAL))
@_resolves(SecureMessage, _of(Use.MESSAGING))
@_resolves(MakePurchase, _of(Use.DEBIT))
@_resolves(MakeLoad, _of(Use.LOAD))
def _one_address(
    ask: InternalCryptogram
    | InternalAuthenticate
    | ExternalAuthenticate
    | SecureMessage
    | MakePurchase
    | MakeLoad
    | PsamInternalAuthenticate
    | PsamExternalAuthenticate,
    _needs: Needs,
) -> Need:
    return _card(ask.card, ask.address)


@_resolves(MutualCryptograms, _of(Use.INTERNAL, Use.EXTERNAL))
@_resolves(MutualAuthenticate, _of(Use.INTERNAL, Use.EXTERNAL))
def _mutual(ask: MutualCryptograms | MutualAuthenticate, _needs: Needs) -> Need:
    return _card(ask.card, ask.internal_address, ask.external_address)


@_resolves(PinUnblock, _of(Use.MESSAGING, names=(STK,), resets_pin=True))
@_resolves(PinReload, _of(Use.MESSAGING, names=(STK,), resets_pin=True))
@_resolves(ReloadPin2, _of(Use.MESSAGING, names=(STK,), resets_pin=True))
@_resolves(UnblockPin2, _of(Use.MESSAGING, names=(STK,), resets_pin=True))
def _pin(ask: PinUnblock | PinReload | ReloadPin2 | UnblockPin2, needs: Needs) -> Need:
    return _card(ask.card, needs.fixed(ask.card.generation, STK))


# medical ---------------------------------------------------------------------------------------------------------


@_resolves(ConfirmPurchase, _of(Use.DEBIT, Use.TAC))
def _confirm_purchase(ask: ConfirmPurchase, _needs: Needs) -> Need:
    return _card(ask.card, ask.address, ask.tac_address)


@_resolves(ConfirmLoad, _of(Use.TAC))
def _confirm_load(ask: ConfirmLoad, _needs: Needs) -> Need:
    return _card(ask.card, ask.tac_address)


# psam ------------------------------------------------------------------------------------------------------------

_OPENS: Final = _of(
    *(Use.INTERNAL, Use.EXTERNAL, Use.MESSAGING, Use.DEBIT),
    # PIN resets are counted by card, and what is said to a PSAM in APDUs is not.
    never=(STK,),
)


@_resolves(AskOpen, _OPENS)
@_resolves(RunOnce, _OPENS)
def _open_psam(ask: AskOpen | RunOnce, _needs: Needs) -> Need:
    commands = len(ask.steps) if isinstance(ask, RunOnce) else 1
    region = "" if ask.region == "any" else ask.region
    return Need(ask.keys, ask.algorithm, region, commands=commands)


@_resolves(PsamMakePurchase, Shape())
def _psam_purchase(ask: PsamMakePurchase, _needs: Needs) -> Need:
    # The card is watched like any other; the key is that of the opening.
    return Need((NO_KEY,), historical=ask.card.historical, generation=ask.card.generation)


# library ---------------------------------------------------------------------------------------------------------

_FOUR_HEX: Final = re.compile(r"\A[0-9A-F]{4}\Z")
_CARD_ID: Final = re.compile(r"\A[0-9]{6}[0-9A-F]{26}\Z")
_RESET: Final = re.compile(r"\A([0-9A-F]{26}|[0-9A-F]{34})\Z")
_ALGORITHM: Final = re.compile(r"\A0[123]\Z")


def _field(text: str, number: int, shape: re.Pattern[str]) -> str:
    parts = text.split("|")
    # Never repeat the field: it may be a PIN that stands in the wrong place.
    if number > len(parts) or not shape.match(parts[number - 1]):
        raise BadParameter(f"field {number} is not what the terminal's library prints")
    return parts[number - 1]


def _address(text: str, number: int) -> int:
    return int(_field(text, number, _FOUR_HEX), 16)


@_resolves(ReadCardBas, _of(Use.INTERNAL, Use.EXTERNAL, names=(IRK, RKSSSE)))
def _read_card_bas(ask: ReadCardBas, needs: Needs) -> Need:
    card_id = _field(ask.text, 4, _CARD_ID)
    algorithm = int(_field(ask.text, 3, _ALGORITHM))
    historical = bytes.fromhex(_field(ask.text, 2, _RESET))
    # As the handler: the external fields are there exactly for 3.0 cards.
    is_third = any(ask.text.split("|")[6:8])
    generation, names = (3, (IRK, RKSSSE)) if is_third else (2, (IRK,))
    addresses = tuple(needs.fixed(generation, name) for name in names)
    return Need(addresses, algorithm, card_id[:6], historical, generation)


@_resolves(ReadCard, _of(Use.EXTERNAL, names=("RK*",)))
@_resolves(WriteCard, _of(Use.EXTERNAL, names=("UK*",)))
@_resolves(ReloadPin1, _of(Use.EXTERNAL, names=(PUK,)))
@_resolves(UnblockPin1, _of(Use.EXTERNAL, names=(PUK,)))
def _external_step(ask: ReadCard | WriteCard | ReloadPin1 | UnblockPin1, _needs: Needs) -> Need:
    return _card(ask.card, _address(ask.text, 2))


@_resolves(DoDebit1, _of(Use.DEBIT))
def _do_debit_1(ask: DoDebit1, _needs: Needs) -> Need:
    return _card(ask.card, _address(ask.text, 2))


@_resolves(DoDebit2, _of(Use.DEBIT, Use.TAC))
def _do_debit_2(ask: DoDebit2, needs: Needs) -> Need:
    address, tac_address = _address(ask.step1, 2), _address(ask.step2, 3)
    if tac_address == address:
        # As the handler: which key the address in step 2 names is not public.
        tac_address = needs.fixed(ask.card.generation, DTK)
    return _card(ask.card, address, tac_address)
