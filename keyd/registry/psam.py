"""A PSAM that keyd plays, as it is kept: what officers issue, whom it is given to, and what became of it.

It is issued with a number, a serial number and the keys that it may use; assigned to one terminal or, with no terminal
named, to the shared set; lost, returned, retired. It computes only while it is assigned, and for its terminal alone.
Nothing here holds a key or a counter: `identity_of` and `places_of` say what an applet is to be made of.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from keyd.cards.profile import names_match
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, NotAllowed, PsamStateRefused
from keyd.psam.profile import PsamIdentity
from keyd.registry.terminal import PSAM_NUMBER_BYTES, PSAM_SERIAL_BYTES, Seconds, Words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyd.cards.profile import ProfileKey
    from keyd.psam.profile import PsamProfile

# As many patterns as a role's rule may have keys.
MAX_KEY_NAMES: Final = 32

KeyPattern = Annotated[str, Meta(pattern=r"\A[A-Z0-9]{0,16}\*?\Z", min_length=1)]
# Empty: the shared set.
TerminalOrNone = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z._-]{0,32}\Z")]


class PsamState(enum.StrEnum):
    """Where in its life a PSAM is. Only an assigned one computes."""

    ISSUED = "issued"
    """发卡: made, and given to nobody yet."""
    ASSIGNED = "assigned"
    """领用: a terminal's, or one of the shared set."""
    LOST = "lost"
    """挂失: whoever has its terminal is not whom it was given to."""
    RETURNED = "returned"
    """退回: it can be assigned again."""
    RETIRED = "retired"
    """注销: for good."""


class PsamAct(enum.StrEnum):
    """What officers do with a PSAM."""

    ASSIGN = "assign"
    LOSE = "lose"
    RETURN = "return"
    RETIRE = "retire"


# From which states, and to which. What is not here is refused.
ACTS: Final = {
    PsamAct.ASSIGN: (frozenset({PsamState.ISSUED, PsamState.RETURNED}), PsamState.ASSIGNED),
    PsamAct.LOSE: (
        frozenset({PsamState.ISSUED, PsamState.ASSIGNED, PsamState.RETURNED}),
        PsamState.LOST,
    ),
    PsamAct.RETURN: (frozenset({PsamState.ASSIGNED, PsamState.LOST}), PsamState.RETURNED),
    PsamAct.RETIRE: (frozenset(PsamState) - {PsamState.RETIRED}, PsamState.RETIRED),
}


class PsamSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """What officers decide about a PSAM. Times are Unix seconds, 0 is "not set".

    `keys` are names of card keys, as profiles have them; `STK*` is every name that begins so, and `*` is all.
    """

    number: Annotated[bytes, Meta(min_length=PSAM_NUMBER_BYTES, max_length=PSAM_NUMBER_BYTES)]
    serial: Annotated[bytes, Meta(min_length=PSAM_SERIAL_BYTES, max_length=PSAM_SERIAL_BYTES)]
    profile: Annotated[str, Meta(min_length=1, max_length=32)]
    environment: CardAlgorithm
    keys: Annotated[tuple[KeyPattern, ...], Meta(min_length=1, max_length=MAX_KEY_NAMES)]
    valid_from: Seconds = 0
    valid_until: Seconds = 0


class KeptPsam(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A PSAM as the store has it."""

    spec: PsamSpec
    state: PsamState
    issued_by: Annotated[str, Meta(max_length=64)]
    issued_at: Seconds
    # Whose it is while it is assigned.
    terminal: TerminalOrNone = ""
    changed_by: Annotated[str, Meta(max_length=64)] = ""
    changed_at: Seconds = 0
    reason: Words = ""
    revision: Annotated[int, Meta(ge=1)] = 1

    @property
    def number(self) -> str:
        """The 终端机编号, 12 digits, which names it everywhere."""
        return self.spec.number.hex()

    def __repr__(self) -> str:
        return f"<KeptPsam {self.number} {self.state}>"


def require_good(
    spec: PsamSpec, profiles: Mapping[str, PsamProfile], places: Iterable[ProfileKey]
) -> None:
    """Refuse a PSAM that nobody could play.

    Raises:
        BadParameter: the sentence says what is wrong.
    """
    number = spec.number.hex()
    if not (number + spec.serial.hex()).isdecimal():
        raise BadParameter(f"{number}: number and serial number are decimal digits")
    profile = profiles.get(spec.profile)
    if profile is None:
        raise BadParameter(f"{number}: there is no PSAM profile {spec.profile}")
    if spec.environment not in profile.environments:
        name = spec.environment.name
        raise BadParameter(f"{number}: profile {spec.profile} has no {name} environment")
    if spec.valid_until and spec.valid_until <= spec.valid_from:
        raise BadParameter(f"{number}: it would cease to be valid before it begins")
    names = {place.name for place in places}
    for pattern in spec.keys:
        if not any(names_match((pattern,), name) for name in names):
            raise BadParameter(f"{number}: there is no key {pattern}")


def after(
    psam: KeptPsam, act: PsamAct, *, by: str, at: int, terminal: str = "", reason: str = ""
) -> KeptPsam:
    """Return what a PSAM is after an act. Only an assignment names a terminal; without one it is to the shared set.

    Raises:
        PsamStateRefused: the PSAM's state does not allow the act.
        BadParameter: another act than an assignment names a terminal.
    """
    states, state = ACTS[act]
    if psam.state not in states:
        raise PsamStateRefused(f"PSAM {psam.number} is {psam.state}: it cannot be {_DONE[act]}")
    if terminal and act is not PsamAct.ASSIGN:
        raise BadParameter("only an assignment names a terminal")
    return replace(
        psam,
        state=state,
        # Whoever lost it stays on record until it is given to somebody else.
        terminal=terminal if act in (PsamAct.ASSIGN, PsamAct.RETURN) else psam.terminal,
        changed_by=by,
        changed_at=at,
        reason=reason,
        revision=psam.revision + 1,
    )


def require_usable(psam: KeptPsam, terminal: str, now: int) -> None:
    """Refuse a PSAM that this terminal may not use at this time, in Unix seconds.

    Raises:
        NotAllowed: it is not assigned, not to this terminal, or not valid now.
    """
    if psam.state is not PsamState.ASSIGNED:
        raise NotAllowed(f"PSAM {psam.number} is {psam.state}")
    if psam.terminal not in ("", terminal):
        raise NotAllowed(f"PSAM {psam.number} is another terminal's")
    spec = psam.spec
    if now < spec.valid_from or (spec.valid_until and now >= spec.valid_until):
        raise NotAllowed(f"PSAM {psam.number} is not valid at this time")


def identity_of(spec: PsamSpec) -> PsamIdentity:
    """Return what the applet of a PSAM has for itself."""
    return PsamIdentity(spec.serial, spec.number, environment=spec.environment)


def places_of(spec: PsamSpec, places: Iterable[ProfileKey]) -> list[ProfileKey]:
    """Return which of the cards' keys a PSAM may use: what `RingKeys` is made with."""
    return [place for place in places if names_match(spec.keys, place.name)]


_DONE: Final = {
    PsamAct.ASSIGN: "assigned",
    PsamAct.LOSE: "reported lost",
    PsamAct.RETURN: "returned",
    PsamAct.RETIRE: "retired",
}
