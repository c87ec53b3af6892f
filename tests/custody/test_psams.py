"""Two officers issue, assign, take back and retire PSAMs that keyd plays; one reports a loss, at once, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from keyd.custody import actions as act
from keyd.custody.backup import JournalHead
from keyd.custody.catalogue import Catalogue, shipped_catalogue
from keyd.errors import (
    BadParameter,
    DomainCrossed,
    OwnProposal,
    PsamNotFound,
    PsamStateRefused,
    RoleMissing,
    TerminalNotFound,
    TerminalStateRefused,
)
from keyd.keys.block import Domain
from keyd.registry.psam import KeptPsam, PsamAct, PsamState
from keyd.registry.terminal import Proof, TerminalSpec, TerminalState
from tests.custody.world import NOON, World, contents_of, psam_spec

if TYPE_CHECKING:
    from keyd.custody.vault import Vault

LOCAL: Final = Domain.LOCAL
NUMBER: Final = "510100000428"
HEAD: Final = JournalHead("keyd1", 3, 1234, bytes(range(32)), NOON * 10**9)


def terminal(code: str = "DESK-1", **fields: Any) -> TerminalSpec:
    return TerminalSpec(code, "org", "510100", ("counter",), (Proof.SIGNATURE,), **fields)


def issue(world: World, *serials: int) -> None:
    world.decide(LOCAL, act.IssuePsams(tuple(psam_spec(n) for n in serials or (428,))))


def change(
    world: World, what: PsamAct, terminal: str = "", number: str = NUMBER, reason: str = ""
) -> None:
    world.decide(LOCAL, act.ChangePsams((number,), what, terminal, reason))


def kept(world: World, number: str = NUMBER, vault: Vault | None = None) -> KeptPsam:
    return contents_of(vault or world.vault).psam(number)


def events(world: World) -> list[dict[str, Any]]:
    records = [record for _n, record in world.store.outbox(world.vault._holding.instance)]
    return [msgspec.msgpack.decode(record) for record in records]


# --- who decides


def test_a_life_from_issue_to_retirement(world: World) -> None:
    world.decide(LOCAL, act.EnrolTerminals((terminal(),)))
    issue(world)
    assert (kept(world).state, kept(world).issued_by) == (PsamState.ISSUED, "a+b")
    change(world, PsamAct.ASSIGN, "DESK-1")
    assert (kept(world).state, kept(world).terminal) == (PsamState.ASSIGNED, "DESK-1")
    lost = world.vault.lose_psam(world.officer(LOCAL, "e"), NUMBER, "stolen with its desk")
    assert (lost.state, lost.terminal, lost.changed_by) == (PsamState.LOST, "DESK-1", "e")
    change(world, PsamAct.RETURN)
    change(world, PsamAct.ASSIGN)
    assert (kept(world).state, kept(world).terminal) == (PsamState.ASSIGNED, "")
    change(world, PsamAct.RETIRE, reason="broken by nobody")
    assert kept(world).reason == "broken by nobody"
    told = [
        (event["event"], event["psams"], event.get("terminal"), event["officer"])
        for event in events(world)
        if event["event"].startswith("psam.")
    ]
    assert told == [
        ("psam.issued", [NUMBER], None, "LOCAL/b"),
        ("psam.assigned", [NUMBER], "DESK-1", "LOCAL/b"),
        ("psam.lost", [NUMBER], "DESK-1", "LOCAL/e"),
        ("psam.returned", [NUMBER], None, "LOCAL/b"),
        ("psam.assigned", [NUMBER], "", "LOCAL/b"),
        ("psam.retired", [NUMBER], None, "LOCAL/b"),
    ]


def test_nobody_issues_or_assigns_alone(world: World) -> None:
    proposal = world.propose(LOCAL, act.IssuePsams((psam_spec(),)))
    with pytest.raises(OwnProposal):
        world.approve(proposal, by="a")
    with pytest.raises(RoleMissing):
        world.approve(proposal, by="c")
    with pytest.raises(RoleMissing):
        world.propose(LOCAL, act.IssuePsams((psam_spec(),)), by="e")
    assert contents_of(world.vault).psams == {}


@pytest.mark.parametrize("by", ["a", "e"])
def test_one_officer_reports_a_loss_and_every_keyd_knows(world: World, by: str) -> None:
    issue(world)
    change(world, PsamAct.ASSIGN)
    other = world.open_vault()
    world.vault.lose_psam(world.officer(LOCAL, by), NUMBER, "")
    assert other.reload()
    assert kept(world, vault=other).state is PsamState.LOST


def test_who_may_not_report_a_loss_and_what_cannot_be_lost(world: World) -> None:
    issue(world)
    with pytest.raises(RoleMissing):
        world.vault.lose_psam(world.officer(LOCAL, "c"), NUMBER, "")
    with pytest.raises(DomainCrossed):
        world.vault.lose_psam(world.officer(Domain.SOCIAL, "a"), NUMBER, "")
    officer = world.officer(LOCAL, "e")
    for reason in ("\x1b[31m", "a|b", "a\u202eb"):
        with pytest.raises(BadParameter, match="printable"):
            world.vault.lose_psam(officer, NUMBER, reason)
    with pytest.raises(PsamNotFound):
        world.vault.lose_psam(officer, "510100000429", "")
    world.vault.lose_psam(officer, NUMBER, "")
    with pytest.raises(PsamStateRefused, match="is lost"):
        world.vault.lose_psam(officer, NUMBER, "")
    with pytest.raises(BadParameter, match="no second officer"):
        change(world, PsamAct.LOSE)


# --- what is refused, when it is proposed


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (act.IssuePsams((psam_spec(profile="none"),)), "there is no PSAM profile none"),
        (act.IssuePsams((psam_spec(keys=("XYZ",)),)), "there is no key XYZ"),
        (act.IssuePsams((psam_spec(number=b"\xab" * 6),)), "decimal digits"),
        (act.IssuePsams((psam_spec(serial=b"\xab" * 10),)), "decimal digits"),
        (act.IssuePsams((psam_spec(valid_from=2, valid_until=2),)), "cease to be valid"),
        (act.IssuePsams((psam_spec(1), psam_spec(1))), "a PSAM 510100000001 already"),
        (
            act.IssuePsams((psam_spec(1), psam_spec(2, serial=psam_spec(1).serial))),
            "serial number 51010020000000000001 already",
        ),
        (act.IssuePsams((psam_spec(),)), f"a PSAM {NUMBER} already"),
        (act.IssuePsams((psam_spec(9, serial=psam_spec().serial),)), "serial number"),
        (act.ChangePsams((NUMBER, NUMBER), PsamAct.ASSIGN), "named twice"),
        (act.ChangePsams((NUMBER,), PsamAct.RETIRE, "DESK-1"), "only an assignment"),
        (act.ChangePsams((NUMBER,), PsamAct.RETIRE, "", "a\u202eb"), "printable"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_proposed(
    world: World, action: act.Action, why: str
) -> None:
    world.decide(LOCAL, act.EnrolTerminals((terminal(),)))
    issue(world)
    with pytest.raises(BadParameter, match=why):
        world.propose(LOCAL, action)


def test_a_retired_psams_number_is_not_given_again(world: World) -> None:
    """Purchases of years ago bear it."""
    issue(world)
    change(world, PsamAct.RETIRE)
    with pytest.raises(BadParameter, match="already"):
        issue(world)


def test_it_is_assigned_to_terminals_that_there_are(world: World) -> None:
    issue(world)
    with pytest.raises(TerminalNotFound):
        change(world, PsamAct.ASSIGN, "DESK-1")
    world.decide(LOCAL, act.EnrolTerminals((terminal(),)))
    world.vault.stop_terminal(world.officer(LOCAL, "e"), "DESK-1", TerminalState.RETIRED, "old")
    with pytest.raises(TerminalStateRefused, match="DESK-1 is retired"):
        change(world, PsamAct.ASSIGN, "DESK-1")
    with pytest.raises(PsamNotFound):
        change(world, PsamAct.ASSIGN, number="510100000429")


def test_all_of_a_list_is_done_or_nothing(world: World) -> None:
    issue(world, 1, 2)
    change(world, PsamAct.ASSIGN, number="510100000001")
    with pytest.raises(PsamStateRefused):
        world.propose(LOCAL, act.ChangePsams(("510100000002", "510100000001"), PsamAct.ASSIGN))
    both = ("510100000001", "510100000002")
    proposal = world.propose(LOCAL, act.ChangePsams(both, PsamAct.RETIRE))
    change(world, PsamAct.RETIRE, number="510100000002")
    with pytest.raises(PsamStateRefused):
        world.approve(proposal)
    assert kept(world, "510100000001").state is PsamState.ASSIGNED


def test_one_terminal_number_is_not_two_terminals(world: World) -> None:
    """A terminal with a chip of that number, and keyd's PSAM elsewhere, would give one transaction number twice."""
    number = psam_spec().number
    own = terminal("CHIP-1", psam_number=number)
    world.decide(LOCAL, act.EnrolTerminals((own, terminal("DESK-1"))))
    issue(world)
    for code in ("", "DESK-1"):
        with pytest.raises(BadParameter, match="terminal CHIP-1 has a PSAM 510100000428"):
            change(world, PsamAct.ASSIGN, code)
    change(world, PsamAct.ASSIGN, "CHIP-1")
    # The other way round: whoever comes later with that number.
    issue(world, 1)
    for code, whose in (("DESK-1", "terminal DESK-1"), ("", "the shared set")):
        change(world, PsamAct.ASSIGN, code, "510100000001")
        late = terminal("LATE-1", psam_number=psam_spec(1).number)
        with pytest.raises(BadParameter, match=f"510100000001 is assigned to {whose}"):
            world.propose(LOCAL, act.EnrolTerminals((late,)))
        change(world, PsamAct.RETURN, number="510100000001")
    world.decide(LOCAL, act.EnrolTerminals((late,)))
    # A terminal that is gone for good needs no number any more.
    world.vault.stop_terminal(world.officer(LOCAL, "e"), "LATE-1", TerminalState.RETIRED, "old")
    change(world, PsamAct.ASSIGN, "DESK-1", "510100000001")


def test_a_site_has_profiles_of_its_own(world: World) -> None:
    shipped = shipped_catalogue()
    own = replace(shipped, profiles={"sichuan": shipped.profiles["social-security"]})
    vault = _vault_with(world, own)
    for profile, is_there in (("sichuan", True), ("social-security", False)):
        action = act.IssuePsams((psam_spec(profile=profile),))
        if is_there:
            world.decide(LOCAL, action, vault)
        else:
            with pytest.raises(BadParameter, match="no PSAM profile"):
                world.propose(LOCAL, action, vault=vault)


def _vault_with(world: World, catalogue: Catalogue) -> Vault:
    vault = world.sealed_vault()
    vault._catalogue = catalogue
    for share in world.founded.shares[:2]:
        vault.give_share(share)
    return vault
