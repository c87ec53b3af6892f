"""A PSAM computes only while it is assigned, for whom it is assigned to, and with the keys that it was issued with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, NotAllowed, PsamStateRefused
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.psam import Applet, Counters, KeySet, Psam, RingKeys, TransientMemory, load_psam_profiles
from keyd.registry.psam import (
    KeptPsam,
    PsamAct,
    PsamSpec,
    PsamState,
    after,
    identity_of,
    places_of,
    require_good,
    require_usable,
)
from tests.psam.commands import deliver

if TYPE_CHECKING:
    from collections.abc import Callable

PROFILES: Final = load_psam_profiles()
PLACES: Final = tuple(newest(load_profiles()).keys.values())

SPEC: Final = PsamSpec(
    number=bytes.fromhex("510100000428"),
    serial=bytes.fromhex("51010020260000000428"),
    profile="social-security",
    environment=CardAlgorithm.SM4,
    keys=("IRK", "RK*"),
    valid_from=1000,
    valid_until=2000,
)
ISSUED: Final = KeptPsam(SPEC, PsamState.ISSUED, issued_by="zhang", issued_at=900)

# Each state and what each act makes of it; None is refused. Written here a second time.
TABLE: Final[dict[str, dict[str, str | None]]] = {
    "issued": {"assign": "assigned", "lose": "lost", "return": None, "retire": "retired"},
    "assigned": {"assign": None, "lose": "lost", "return": "returned", "retire": "retired"},
    "lost": {"assign": None, "lose": None, "return": "returned", "retire": "retired"},
    "returned": {"assign": "assigned", "lose": "lost", "return": None, "retire": "retired"},
    "retired": {"assign": None, "lose": None, "return": None, "retire": None},
}


@pytest.mark.parametrize("state", list(PsamState))
@pytest.mark.parametrize("act", list(PsamAct))
def test_every_act_in_every_state(state: PsamState, act: PsamAct) -> None:
    psam = replace(ISSUED, state=state, terminal="DESK-1")
    expected = TABLE[state][act]
    if expected is None:
        with pytest.raises(PsamStateRefused, match=f"510100000428 is {state}: it cannot be"):
            after(psam, act, by="li", at=1500)
        return
    made = after(psam, act, by="li", at=1500, reason="why")
    assert (made.state, made.changed_by, made.changed_at) == (expected, "li", 1500)
    assert (made.reason, made.revision, made.spec) == ("why", 2, SPEC)
    # Who had it stays on record when it is lost or retired, and not when it came back.
    assert made.terminal == ("DESK-1" if act in (PsamAct.LOSE, PsamAct.RETIRE) else "")


def test_only_an_assignment_names_a_terminal() -> None:
    assigned = after(ISSUED, PsamAct.ASSIGN, by="li", at=1, terminal="DESK-1")
    assert assigned.terminal == "DESK-1"
    with pytest.raises(BadParameter, match="only an assignment"):
        after(assigned, PsamAct.RETURN, by="li", at=1, terminal="DESK-2")


@pytest.mark.parametrize(
    ("psam", "terminal", "now", "why"),
    [
        (ISSUED, "DESK-1", 1500, "is issued"),
        (replace(ISSUED, state=PsamState.LOST), "DESK-1", 1500, "is lost"),
        (replace(ISSUED, state=PsamState.RETIRED), "DESK-1", 1500, "is retired"),
        (replace(ISSUED, state=PsamState.ASSIGNED, terminal="DESK-2"), "DESK-1", 1500, "another"),
        (replace(ISSUED, state=PsamState.ASSIGNED, terminal="DESK-1"), "", 1500, "another"),
        (replace(ISSUED, state=PsamState.ASSIGNED), "DESK-1", 999, "not valid"),
        (replace(ISSUED, state=PsamState.ASSIGNED), "DESK-1", 2000, "not valid"),
    ],
)
def test_who_may_not_use_it(psam: KeptPsam, terminal: str, now: int, why: str) -> None:
    with pytest.raises(NotAllowed, match=why):
        require_usable(psam, terminal, now)


@pytest.mark.parametrize("now", [1000, 1999])
@pytest.mark.parametrize("owner", ["", "DESK-1"])
def test_who_may(owner: str, now: int) -> None:
    psam = after(ISSUED, PsamAct.ASSIGN, by="li", at=1, terminal=owner)
    require_usable(psam, "DESK-1", now)
    endless = replace(psam, spec=replace(SPEC, valid_from=0, valid_until=0))
    require_usable(endless, "DESK-1", 2**40)


def test_it_has_the_keys_that_it_was_issued_with_and_no_others() -> None:
    ring = KeyRing(synthetic(newest(load_profiles()).key_places((CardAlgorithm.SM4,))))
    keys = RingKeys(ring, places_of(SPEC, PLACES), KeySet())
    counters = Counters(TransientMemory(), 1)
    psam = Psam(PROFILES[SPEC.profile], identity_of(SPEC), keys, counters, bytes)
    applet = Applet(psam)
    applet.transmit(bytes.fromhex("00A4040006D15600000590"))
    answers = {
        name: applet.transmit(deliver("social-security", "SM4", usage, key_id)).hex()
        for name, usage, key_id in (
            ("IRK", 0x67, 0x08), ("RKSSSE", 0x67, 0x0A), ("UKSSSE", 0x68, 0x12), ("PUK", 0x68, 0x10)
        )
    }  # fmt: skip
    assert answers == {"IRK": "9000", "RKSSSE": "9000", "UKSSSE": "6a88", "PUK": "6a88"}
    applet.transmit(bytes.fromhex("00A40000023F00"))
    assert applet.transmit(bytes.fromhex("00B0960000")).hex() == "5101000004289000"
    assert applet.transmit(bytes.fromhex("00B0950100")).hex().startswith(SPEC.serial.hex())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"number": b"\xaa" * 6}, "decimal digits"),
        ({"serial": b"\xaa" * 10}, "decimal digits"),
        ({"profile": "nothing"}, "no PSAM profile nothing"),
        ({"valid_until": 1000}, "before it begins"),
        ({"keys": ("IRK", "XYZ")}, "there is no key XYZ"),
        ({"keys": ("XYZ*",)}, r"there is no key XYZ\*"),
    ],
)
def test_a_psam_that_nobody_could_play_is_refused(change: dict[str, Any], why: str) -> None:
    require_good(SPEC, PROFILES, PLACES)
    require_good(replace(SPEC, keys=("*",)), PROFILES, PLACES)
    with pytest.raises(BadParameter, match=why):
        require_good(replace(SPEC, **change), PROFILES, PLACES)


def test_it_is_kept_and_read_again() -> None:
    psam = after(ISSUED, PsamAct.ASSIGN, by="li", at=1, terminal="DESK-1")
    encoded = msgspec.msgpack.encode(psam)
    assert msgspec.msgpack.decode(encoded, type=KeptPsam) == psam
    for field, value in (("number", bytes(5)), ("keys", ()), ("keys", ("irk",)), ("profile", "")):
        wrong = msgspec.msgpack.encode(replace(psam, spec=replace(SPEC, **{field: value})))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(wrong, type=KeptPsam)


class LifeMachine(RuleBasedStateMachine):
    """Any order of acts: it is usable exactly while it is assigned, and retired is the end."""

    def __init__(self) -> None:
        super().__init__()
        self.psam = ISSUED

    @rule(act=st.sampled_from(list(PsamAct)), terminal=st.sampled_from(["", "DESK-1", "DESK-2"]))
    def act(self, act: PsamAct, terminal: str) -> None:
        before = self.psam
        try:
            self.psam = after(before, act, by="li", at=1, terminal=terminal)
        except PsamStateRefused:
            assert TABLE[before.state][act] is None
        except BadParameter:
            assert terminal
            assert act is not PsamAct.ASSIGN
        else:
            assert before.state is not PsamState.RETIRED
            assert self.psam.revision == before.revision + 1

    @invariant()
    def usable_while_assigned(self) -> None:
        for terminal in ("DESK-1", "DESK-2"):
            may = self.psam.state is PsamState.ASSIGNED and self.psam.terminal in ("", terminal)
            assert may is not refused(lambda: require_usable(self.psam, terminal, 1500))  # noqa: B023


def refused(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except NotAllowed:
        return True
    return False


TestLifeMachine = LifeMachine.TestCase
