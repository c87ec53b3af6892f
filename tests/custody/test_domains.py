"""SOCIAL, FINANCE, ACSE and LOCAL never meet: every command and every action is tried across them.

A command brings together an officer, a proposal, a key and perhaps a transport key. Whenever two of them are not of
one domain, the command is refused and nothing changes; the same command within one domain is done, so that a refusal
here says something.
"""

# ruff: noqa: S608 - the statements are made of names that stand here.
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, get_args

import pytest
from sqlalchemy import text

from keyd.custody import actions as act
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.proposals import Proposal
from keyd.errors import DomainCrossed, ProposalNotFound, Refusal
from keyd.keys.block import Domain, Export, Use
from keyd.keys.hierarchy import TERMINAL_LEVELS, TERMINAL_MASTER_ADDRESS
from keyd.registry.psam import PsamAct
from keyd.registry.terminal import Proof, TerminalSpec
from keyd.store.rows import Kind
from tests.custody.world import (
    ADDRESS,
    World,
    contents_of,
    envelope,
    kcv_of,
    private_key,
    psam_spec,
    spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyd.custody.officers import Officer

BLOCK: Final = act.TransportFormat.BLOCK
MATERIAL: Final = bytes(range(16))
PAIRS: Final = [(one, other) for one, other in itertools.permutations(Domain, 2)]


class Furnished:
    """A world in which every domain has a root, a transport key, proposals, and something on its way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root: dict[Domain, bytes] = {}
        self.kek: dict[Domain, bytes] = {}
        self.wrapped: dict[Domain, bytes] = {}
        self.opened: dict[Domain, Proposal] = {}
        self.wanted: dict[Domain, Proposal] = {}
        self.given: dict[Domain, Proposal] = {}
        for domain in Domain:
            self.root[domain] = world.make_key(domain, export=Export.WRAPPED)
            self.kek[domain] = world.make_key(domain, use=Use.TRANSPORT)
            exported = world.decide(
                domain, act.ExportKey(self.root[domain], self.kek[domain], BLOCK)
            )
            self.wrapped[domain] = exported.result["wrapped"]
            self.opened[domain] = world.propose(domain, act.Activate(self.root[domain]))
            self.wanted[domain] = world.propose(domain, act.ImportKey(spec(domain), 2))
            self.given[domain] = world.decide(
                domain,
                act.GiveComponents(spec(domain, addresses=(0x9000 + len(self.given),)), ("a", "c"))
                if domain is not Domain.SOCIAL
                else act.GiveComponents(spec(domain, addresses=(0x100,)), ("a", "c")),
            )


@pytest.fixture(scope="module")
def furnished() -> Iterator[Furnished]:
    """One world for the whole module: what is refused changes nothing, and that is checked."""
    world = World()
    yield Furnished(world)
    world.close()


def officer(furnished: Furnished, domain: Domain, code: str = "b") -> Officer:
    return furnished.world.officer(domain, code)


def actions_with(
    furnished: Furnished, mine: Domain, key: Domain, kek: Domain
) -> dict[str, act.Action]:
    """Every action that names a key or a transport key, for officers of `mine`."""
    root, transport = furnished.root[key], furnished.kek[kek]
    kcv = furnished.world.header(root).kcv
    return {
        "import-wrapped": act.ImportWrapped(
            spec(mine, addresses=(ADDRESS[mine],), export=Export.WRAPPED),
            transport,
            BLOCK,
            furnished.wrapped[key],
            kcv,
        ),
        "export": act.ExportKey(root, transport, BLOCK),
        "export-child": act.ExportChild(root, "510100", transport, BLOCK),
        "activate": act.Activate(root),
        "deactivate": act.Deactivate(root),
        "compromise": act.Compromise(root),
        "destroy": act.Destroy(root, 1),
        "restore": act.Restore(root),
        "permit": act.Permit(root, ceiling=7),
    }


# Those that name no key: crossed where they name something else, or not to be crossed at all.
NAME_NO_KEY: Final = {
    "generate",
    "import-components",
    "give-components",
    "import-envelope",
    "enrol-officer",
    "retire-officer",
    "rekey",
}
# Those about terminals and PSAMs: LOCAL's alone, whatever they name.
OF_LOCAL: Final[dict[str, act.Action]] = {
    "enrol-terminals": act.EnrolTerminals(
        (TerminalSpec("T-2", "org", "510100", ("counter",), (Proof.SIGNATURE,)),)
    ),
    "activate-terminals": act.ActivateTerminals(("T-1",)),
    "give-enrolment-codes": act.GiveEnrolmentCodes(("T-1",), "c"),
    "give-terminal-keys": act.GiveTerminalKeys(("T-1",), "c"),
    "make-authority": act.MakeAuthority("guomi", "CA", 10),
    "issue-psams": act.IssuePsams((psam_spec(2),)),
    "change-psams": act.ChangePsams((psam_spec(1).number.hex(),), PsamAct.ASSIGN, "T-1"),
}
TAGS: Final = {kind.__struct_config__.tag for kind in get_args(act.Action)}
NAME_A_TRANSPORT_KEY: Final = ("import-wrapped", "export", "export-child")
NAME_A_KEY: Final = sorted(str(tag) for tag in TAGS - NAME_NO_KEY - OF_LOCAL.keys())


def test_every_action_is_tried_here(furnished: Furnished) -> None:
    """Whoever adds an action adds it to one of the tests below."""
    tried = actions_with(furnished, Domain.SOCIAL, Domain.SOCIAL, Domain.SOCIAL)
    assert set(tried) | NAME_NO_KEY | OF_LOCAL.keys() == TAGS


@pytest.mark.parametrize("name", NAME_A_KEY)
def test_no_action_takes_a_key_or_a_transport_key_of_another_domain(
    furnished: Furnished, name: str
) -> None:
    """All 64 combinations of officers', key's and transport key's domain; 4 of them are possible."""
    world = furnished.world
    before = world.store.load().rows
    for mine, key, kek in itertools.product(Domain, repeat=3):
        action = actions_with(furnished, mine, key, kek)[name]
        domains = {mine, key, kek} if name in NAME_A_TRANSPORT_KEY else {mine, key}
        if len(domains) == 1:
            continue
        if name == "import-wrapped" and mine is kek:
            # What is in the block is found when it is opened.
            proposal = world.propose(mine, action)
            with pytest.raises(Refusal):
                world.approve(proposal)
            world.vault.reject(officer(furnished, mine), proposal.proposal_id)
            continue
        with pytest.raises(DomainCrossed):
            world.propose(mine, action)
    kept = [row for row in world.store.load().rows if row.kind != "proposal"]
    assert kept == [row for row in before if row.kind != "proposal"]


@pytest.mark.parametrize("name", NAME_A_KEY)
@pytest.mark.parametrize("domain", list(Domain))
def test_within_one_domain_it_is_proposed(furnished: Furnished, name: str, domain: Domain) -> None:
    world = furnished.world
    proposal = world.propose(domain, actions_with(furnished, domain, domain, domain)[name])
    world.vault.reject(officer(furnished, domain), proposal.proposal_id)


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_no_command_touches_another_domains_proposal(
    furnished: Furnished, mine: Domain, theirs: Domain
) -> None:
    """It looks as if there were none, to whoever guesses its number."""
    vault = furnished.world.vault
    me = officer(furnished, mine)
    component = envelope(MATERIAL, vault)
    calls: list[Callable[[], object]] = [
        lambda: vault.approve(me, furnished.opened[theirs].proposal_id),
        lambda: vault.reject(me, furnished.opened[theirs].proposal_id),
        lambda: vault.enter_component(
            me, furnished.wanted[theirs].proposal_id, 1, component, kcv_of(MATERIAL)
        ),
        lambda: vault.take(officer(furnished, mine, "a"), furnished.given[theirs].proposal_id),
        lambda: vault.confirm_share(me, furnished.opened[theirs].proposal_id, bytes(16)),
    ]
    before = furnished.world.store.load()
    for call in calls:
        with pytest.raises(ProposalNotFound) as refused:
            call()
        assert refused.value.detail == ProposalNotFound().detail
    assert furnished.world.store.load() == before
    assert not vault.components_given(furnished.wanted[theirs].proposal_id)


@pytest.mark.parametrize("mine", [domain for domain in Domain if domain is not Domain.LOCAL])
def test_only_local_decides_on_the_seal(furnished: Furnished, mine: Domain) -> None:
    with pytest.raises(DomainCrossed):
        furnished.world.propose(mine, act.Rekey(2, ("a", "c")))


@pytest.mark.parametrize("name", OF_LOCAL)
def test_only_local_decides_about_terminals_and_psams(furnished: Furnished, name: str) -> None:
    world = furnished.world
    if "T-1" not in contents_of(world.vault).terminals:
        known = TerminalSpec("T-1", "org", "510100", ("counter",), (Proof.KEY_BY_CODE,))
        world.decide(Domain.LOCAL, act.EnrolTerminals((known,)))
        world.decide(Domain.LOCAL, act.IssuePsams((psam_spec(1),)))
        world.make_key(
            Domain.LOCAL,
            name="TMK",
            use=Use.TERMINAL,
            levels=TERMINAL_LEVELS,
            addresses=(TERMINAL_MASTER_ADDRESS,),
            export=Export.CHILD,
        )
    for mine in Domain:
        if mine is not Domain.LOCAL:
            with pytest.raises(DomainCrossed):
                world.propose(mine, OF_LOCAL[name])
    proposal = world.propose(Domain.LOCAL, OF_LOCAL[name])
    world.vault.reject(officer(furnished, Domain.LOCAL), proposal.proposal_id)


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_custodians_officers_and_addresses_are_a_domains_own(
    furnished: Furnished, mine: Domain, theirs: Domain
) -> None:
    """Named by their codes, people are those of the domain that decides; elsewhere nothing happens to them."""
    world = furnished.world
    elsewhere = world.officer(theirs, "c")
    code = f"only-{theirs.value.lower()}"
    if world.vault.contents is not None and contents_of(world.vault).officer(theirs, code) is None:
        point = private_key(theirs, code).public.encode()
        world.decide(theirs, act.EnrolOfficer(code, "Only here", elsewhere.roles, point))
    with pytest.raises(Refusal):
        world.propose(mine, act.GiveComponents(spec(mine), ("a", code)))
    with pytest.raises(Refusal):
        world.decide(mine, act.RetireOfficer(code))
    address = world.header(furnished.root[theirs]).addresses
    with pytest.raises(Refusal):
        world.propose(mine, act.GenerateKey(spec(mine, addresses=address)))
    assert world.officer(theirs, "c") == elsewhere


# --- in the database


def tables(world: World) -> list[str]:
    return [f"{kind}_rows" for kind in Kind]


def moves(domain: Domain) -> list[tuple[str, str]]:
    """Statements that take something of SOCIAL, or of LOCAL, elsewhere."""
    found = []
    for table in ("key", "officer", "proposal"):
        where = f"WHERE rowid = (SELECT min(rowid) FROM {table}_rows WHERE domain = 'SOCIAL')"
        found.append(
            (f"{table} to {domain}", f"UPDATE {table}_rows SET domain = '{domain}' {where}")
        )
    found.append(("identity", f"UPDATE identity_rows SET domain = '{domain}'"))
    found.append(("seal", f"UPDATE seal_rows SET domain = '{domain}'"))
    found.append(("lmk", f"UPDATE lmk_rows SET domain = '{domain}' WHERE domain = 'SOCIAL'"))
    return found


@pytest.mark.parametrize("domain", [Domain.FINANCE, Domain.ACSE])
@pytest.mark.parametrize("number", range(6))
def test_a_row_that_is_moved_to_another_domain_is_refused(
    world: World, domain: Domain, number: int
) -> None:
    name, statement = moves(domain)[number]
    world.make_key()
    altered(world, statement, name)


COLUMNS: Final = "domain, revision, body, nonce, sealed"
KINDS: Final = [kind.value for kind in Kind]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_a_row_is_no_row_of_another_kind_and_none_of_another_id(
    world: World, source: str, target: str
) -> None:
    """Copied into another table, or in its own under another id, it does not open."""
    world.make_key()
    world.decide(Domain.LOCAL, OF_LOCAL["enrol-terminals"])
    world.decide(Domain.LOCAL, OF_LOCAL["make-authority"])
    world.decide(Domain.LOCAL, OF_LOCAL["issue-psams"])
    new_id = "id" if source != target else "X'00112233445566778899AABBCCDDEEFF'"
    altered(
        world,
        f"INSERT INTO {target}_rows (id, {COLUMNS}) SELECT {new_id}, {COLUMNS} FROM {source}_rows LIMIT 1",
        f"{source} as {target}",
    )


@pytest.mark.parametrize("kind", ["key", "officer", "proposal", "lmk"])
def test_rows_that_changed_places_are_refused(world: World, kind: str) -> None:
    """Two good rows under each other's id: SOCIAL's key in FINANCE's place."""
    world.make_key(Domain.SOCIAL)
    world.make_key(Domain.FINANCE)
    one, other = (
        f"(SELECT id FROM {kind}_rows WHERE domain = '{domain}' ORDER BY id LIMIT 1)"
        for domain in ("SOCIAL", "FINANCE")
    )
    altered(
        world,
        f"UPDATE {kind}_rows SET id = CASE WHEN id = {one} THEN X'FF01' ELSE X'FF02' END"
        f" WHERE id = {one} OR id = {other}",
        kind,
    )


def altered(world: World, statement: str, name: str) -> None:
    """Change the database past keyd; a keyd that is open and one that starts must both refuse it."""
    vault = world.vault
    with world.store._engine.connect() as connection:
        done = connection.execute(text(statement))
        assert done.rowcount == 1 or "CASE" in statement, name
        connection.execute(text("UPDATE changes SET number = number + 1"))
        connection.commit()
    with pytest.raises(StoreNotOurs):
        vault.reload()
    with pytest.raises(Refusal):
        world.open_vault()
