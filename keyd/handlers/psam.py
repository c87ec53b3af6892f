"""Handlers of the psam family: PSAMs that are open on a connection, and what is said to them.

An open PSAM is the connection's that opened it, until it is closed or the terminal is there no more. Its number is
random: after a line was lost, a number from before it must not be another PSAM's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from keyd.cards import authentication
from keyd.cards.authentication import Exchange
from keyd.cards.messaging import STK
from keyd.cards.profile import Use, newest
from keyd.errors import (
    BadParameter,
    KeyNotFound,
    KeyUsageRefused,
    MacNotAuthentic,
    NotAuthenticated,
    PsamDeclined,
    PsamNotFound,
    PsamNotOpen,
    Refusal,
    RemoteProtocolError,
    TooManyInFlight,
)
from keyd.handlers.card import card_of
from keyd.handlers.desk import Wanted
from keyd.handlers.opened import Ending, Opened, drop
from keyd.handlers.registry import handles
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord, transmit, tries_left
from keyd.iso7816.sw import more_data
from keyd.keys.hierarchy import city_diversifier, province_diversifier
from keyd.protocol.messages import psam as wire
from keyd.protocol.messages.card import ExternalReply, InternalReply
from keyd.psam import script
from keyd.psam.guard import Guard
from keyd.psam.level_index import Place, place_of_key
from keyd.psam.transactions import AMOUNT_BYTES, PURCHASE_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.handlers.desk import OpenPsam, PsamDesk
    from keyd.handlers.services import Services
    from keyd.iso7816 import Dialogue
    from keyd.keys.sam import Steps
    from keyd.terminals import Session

T = TypeVar("T")

# What an open PSAM may be asked for. Keys of loads and of TACs are delivered to nobody.
USES: Final = (Use.INTERNAL, Use.EXTERNAL, Use.MESSAGING, Use.DEBIT)

# And never this one: PIN resets are counted by card, and what is done in APDUs is not.
NEVER: Final = (STK,)

_NO_POOL: Final = "this keyd has no pool of PSAMs"


# Opening and closing --------------------------------------------------------------------------------------


@handles(wire.AskOpen)
async def open_psam(ask: wire.AskOpen, session: Session, services: Services) -> wire.PsamOpened:
    places = _places(ask, services)
    handle, opened = _begin(ask, places, session, services)
    lent = await _lend(ask, places, opened, session, services)
    facts = lent.facts
    return wire.PsamOpened(
        handle,
        facts.terminal,
        facts.serial,
        facts.atr,
        str(lent.kind),
        tuple(facts.levels.get(place, 0) for place in places),
    )


@handles(wire.Close)
async def close(ask: wire.Close, session: Session, services: Services) -> wire.PsamClosed:
    opened = _opened(session, ask.handle, services)
    del session.psams[ask.handle]
    await _give_back(opened)
    return wire.PsamClosed()


def _places(ask: wire.AskOpen | wire.RunOnce, services: Services) -> list[Place]:
    """Return what PSAMs call the keys, in their order.

    Raises:
        KeyNotFound: no profile knows the address, or it is of another set than PSAMs have.
        KeyUsageRefused: the key is of no use on a PSAM, or resets PINs.
    """
    profile = newest(services.profiles)
    places = []
    for address in ask.keys:
        key = profile.key(address, *USES)
        if key.name in NEVER:
            raise KeyUsageRefused(
                f"{key.name} resets PINs: card.pin_reload and card.pin_unblock do"
            )
        place = place_of_key(key, ask.algorithm)
        if place is None:
            raise KeyNotFound(f"{address:04X} is not of the first set, and PSAMs have no other")
        places.append(place)
    return places


def _begin(
    ask: wire.AskOpen | wire.RunOnce, places: Sequence[Place], session: Session, services: Services
) -> tuple[int, Opened]:
    """Take one of the connection's places, before anything is waited for."""
    if len(session.psams) >= wire.MAX_OPEN:
        raise TooManyInFlight(f"a connection has at most {wire.MAX_OPEN} PSAMs open: close one")
    region = "" if ask.region == "any" else ask.region
    opened = Opened(ask, Guard(services.dialects, frozenset(places), region))
    handle = 0
    while handle == 0 or handle in session.psams:
        handle = int.from_bytes(services.random_bytes(4), "big") & 0x7FFF_FFFF
    session.psams[handle] = opened
    return handle, opened


async def _lend(
    ask: wire.AskOpen | wire.RunOnce,
    places: Sequence[Place],
    opened: Opened,
    session: Session,
    services: Services,
) -> OpenPsam:
    """Have a PSAM lent, and its environment selected."""
    try:
        wanted = Wanted("" if ask.number == "any" else ask.number, frozenset(places))
        lent = opened.lent = await _desk(services).open(_code(session), wanted)
        await _select_environment(ask, opened, services)
    except BaseException:
        drop(session, opened)
        raise
    return lent


async def _select_environment(
    ask: wire.AskOpen | wire.RunOnce, opened: Opened, services: Services
) -> None:
    for file_id in services.dialects.environment_ids(ask.algorithm):
        await opened.transmit(CommandApdu(0x00, 0xA4, 0x00, 0x00, file_id.to_bytes(2, "big")))
        if opened.guard.environment is ask.algorithm:
            return


async def _give_back(opened: Opened) -> None:
    opened.is_abandoned = True
    if opened.lent is not None:
        await opened.lent.close()


def _desk(services: Services) -> PsamDesk:
    if services.psams is None:
        raise PsamNotFound(_NO_POOL)
    return services.psams


def _code(session: Session) -> str:
    terminal = session.terminal
    if terminal is None:
        raise NotAuthenticated
    return terminal.code


def _opened(session: Session, handle: int, services: Services) -> Opened:
    """Return the open PSAM of this number.

    Raises:
        PsamNotOpen: there is none, or it is not open yet.
        PsamNotFound: keyd has no pool.
    """
    _desk(services)
    opened = session.psams.get(handle)
    if not isinstance(opened, Opened) or opened.lent is None:
        raise PsamNotOpen
    return opened


# Speaking -------------------------------------------------------------------------------------------------


@handles(wire.Transmit)
async def transmit_one(ask: wire.Transmit, session: Session, services: Services) -> wire.PsamAnswer:
    opened = _opened(session, ask.handle, services)
    (apdu,) = _parsed((ask.command,))
    with Ending(session, opened):
        return wire.PsamAnswer(await opened.transmit(apdu, ask.command))


@handles(wire.TransmitMany)
async def transmit_many(
    ask: wire.TransmitMany, session: Session, services: Services
) -> wire.PsamAnswers:
    opened = _opened(session, ask.handle, services)
    apdus = _parsed(ask.commands)
    for apdu in apdus:
        opened.guard.require_known(apdu.header)
    answers = []
    with Ending(session, opened):
        for apdu, command in zip(apdus, ask.commands, strict=True):
            answer = await opened.transmit(apdu, command)
            answers.append(answer)
            sw = int.from_bytes(answer[-2:], "big")
            if not ask.go_on and sw != SW.OK and more_data(sw) is None:
                break
    return wire.PsamAnswers(tuple(answers))


@handles(wire.RunScript)
async def run_script(ask: wire.RunScript, session: Session, services: Services) -> wire.ScriptDone:
    opened = _opened(session, ask.handle, services)
    made = _script(ask, opened)
    with Ending(session, opened):
        return wire.ScriptDone(tuple(await opened.converse(script.run(made))))


@handles(wire.RunOnce)
async def run_once(ask: wire.RunOnce, session: Session, services: Services) -> wire.ScriptDone:
    places = _places(ask, services)
    _handle, opened = _begin(ask, places, session, services)
    try:
        made = _script(ask, opened)
        await _lend(ask, places, opened, session, services)
        try:
            return wire.ScriptDone(tuple(await opened.converse(script.run(made))))
        finally:
            await _give_back(opened)
    finally:
        drop(session, opened)


def _parsed(commands: Sequence[bytes]) -> list[CommandApdu]:
    try:
        return [CommandApdu.parse_untrusted(command) for command in commands]
    except RemoteProtocolError as error:
        raise BadParameter(str(error)) from None


def _script(ask: wire.RunScript | wire.RunOnce, opened: Opened) -> script.Script:
    """Read a script and look at all of it that can be looked at before anything is sent."""
    made = script.Script(
        tuple(
            script.Step(
                step.header,
                step.data,
                tuple(script.Reference(**msgspec.structs.asdict(r)) for r in step.references),
                step.le,
                step.expected,
            )
            for step in ask.steps
        ),
        tuple(script.Part(**msgspec.structs.asdict(result)) for result in ask.results),
    )
    script.require_good(made)
    for step in made.steps:
        opened.guard.require_known(step.header)
    return made


# Helpers --------------------------------------------------------------------------------------------------


@handles(wire.PsamInternalAuthenticate)
async def internal_authenticate(
    ask: wire.PsamInternalAuthenticate, session: Session, services: Services
) -> InternalReply:
    card = card_of(ask.card, services)
    exchange = Exchange(ask.address, ask.session_factor, ask.challenge)
    steps = authentication.internal_cryptogram(card, exchange)
    return InternalReply(await _computed(steps, session, services), card.warnings)


@handles(wire.PsamExternalAuthenticate)
async def external_authenticate(
    ask: wire.PsamExternalAuthenticate, session: Session, services: Services
) -> ExternalReply:
    card = card_of(ask.card, services)
    exchange = Exchange(ask.address, ask.session_factor, ask.challenge)
    steps = authentication.external_authenticate(card, exchange)
    proof = await _computed(steps, session, services)
    return ExternalReply(proof.reply, proof.apdu, card.warnings)


@handles(wire.PsamMakePurchase)
async def make_purchase(
    ask: wire.PsamMakePurchase, session: Session, services: Services
) -> wire.PurchaseBegun:
    opened = _opened(session, ask.handle, services)
    card = card_of(ask.card, services)
    place = Place(PURCHASE_KIND, ask.purchase.key_version, ask.card.algorithm)
    lent = opened.lent
    if lent is None:
        raise PsamNotOpen
    factors = (
        card.diversifier,
        city_diversifier(card.region),
        province_diversifier(card.region),
    )[: lent.facts.levels.get(place, 3)]
    begin = _begin_purchase(ask.purchase, b"".join(factors), services)
    with Ending(session, opened):
        if opened.guard.environment is not ask.card.algorithm:
            raise PsamDeclined("the PSAM is not in the environment of the card's algorithm")
        made = await opened.converse(begin)
    if len(made) != 8:
        raise PsamDeclined("the PSAM answered the purchase with other than 8 bytes")
    return wire.PurchaseBegun(made[:4], made[4:], lent.facts.terminal, card.warnings)


@handles(wire.PsamConfirmPurchase)
async def confirm_purchase(
    ask: wire.PsamConfirmPurchase, session: Session, services: Services
) -> wire.PurchaseConfirmed:
    opened = _opened(session, ask.handle, services)
    with Ending(session, opened):
        answer = await opened.transmit(CommandApdu(0x80, 0x72, 0x00, 0x00, ask.mac2))
    sw = int.from_bytes(answer[-2:], "big")
    if sw == SW.MAC_INVALID or tries_left(sw) is not None:
        raise MacNotAuthentic
    if sw != SW.OK:
        raise PsamDeclined(str(UnexpectedStatusWord(sw, 0x72)))
    return wire.PurchaseConfirmed()


def _begin_purchase(
    terms: wire.PurchaseTerms, factors: bytes, services: Services
) -> Dialogue[bytes]:
    """Select the application and begin a purchase in it, in the social security dialect."""
    amounts = (terms.personal_account, terms.personal_paid, terms.pooled_fund)
    data = terms.pseudo_random + terms.purchase_number
    data += b"".join(amount.to_bytes(AMOUNT_BYTES, "big") for amount in amounts)
    data += bytes((terms.type,)) + terms.time + bytes((terms.key_version, terms.key_algorithm))
    (application,) = services.dialects.applications[:1]
    yield from transmit(CommandApdu(0x00, 0xA4, 0x04, 0x00, application))
    return (yield from transmit(CommandApdu(0x80, 0x70, 0x01, 0x00, data + factors)))


async def _computed(steps: Steps[T], session: Session, services: Services) -> T:
    """Have the pool compute what a service needs, whatever holds the keys otherwise."""
    desk, code = _desk(services), _code(session)
    try:
        tasks = next(steps)
        while True:
            results = await desk.compute(tasks, code)
            computed = [result for result in results if not isinstance(result, Refusal)]
            refused = [result for result in results if isinstance(result, Refusal)]
            tasks = steps.throw(refused[0]) if refused else steps.send(computed)
    except StopIteration as end:
        answer: T = end.value
        return answer


@handles(wire.ListMembers)
def list_members(_ask: wire.ListMembers, _session: Session, services: Services) -> wire.PsamMembers:
    return wire.PsamMembers(
        tuple(
            wire.PsamMember(**msgspec.structs.asdict(member))
            for member in _desk(services).members()
        )
    )
