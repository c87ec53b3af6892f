"""Two officers let a terminal in, one puts it out; a code is good once; a certificate counts until it is superseded."""

from __future__ import annotations

import datetime
import re
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody.enrolling import CERTIFICATE_DAYS, KIND_CODES, KIND_KEYS
from keyd.errors import (
    BadParameter,
    DomainCrossed,
    EnrolmentRefused,
    ExportRefused,
    KeyNotFound,
    OwnProposal,
    Refusal,
    RoleMissing,
    TerminalNotFound,
    TerminalStateRefused,
)
from keyd.keys.block import Domain, Export, Tier, Use
from keyd.keys.hierarchy import (
    TERMINAL_LEVELS,
    TERMINAL_MASTER_ADDRESS,
    Side,
    TerminalKey,
    TerminalMasterKey,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.registry import lifecycle
from keyd.registry.enrolment import CODE_BYTES, digest_of, is_code_of, make_code, read_code
from keyd.registry.terminal import Proof, Terminal, TerminalSpec, TerminalState
from keyd.store.rows import Kind
from keyd.tls import TlsKind
from keyd.tls.pki import generate_key, load_key, make_request
from tests.custody.world import DAY, NOON, World, contents_of, private_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.custody.proposals import Proposal
    from keyd.custody.vault import Vault

LOCAL: Final = Domain.LOCAL
CODE: Final = "DESK-0001"


def spec(code: str = CODE, **fields: Any) -> TerminalSpec:
    wanted: dict[str, Any] = {
        "organisation": "成都市人社局",
        "region": "510100",
        "roles": ("counter",),
        "proofs": (Proof.SIGNATURE, Proof.KEY_BY_CODE),
    }
    return TerminalSpec(code, **(wanted | fields))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def enrol(world: World, *specs: TerminalSpec, activate: bool = True) -> None:
    world.decide(LOCAL, act.EnrolTerminals(specs or (spec(),), activate))


def terminal(world: World, code: str = CODE, vault: Vault | None = None) -> Terminal:
    return contents_of(vault or world.vault).terminal(code)


def stop(world: World, to: TerminalState, by: str = "e", code: str = CODE) -> Terminal:
    return world.vault.stop_terminal(world.officer(LOCAL, by), code, to, "reported by the county")


def envelope(world: World, proposal: Proposal, officer: str, kind: bytes) -> Any:
    sealed = world.vault.take(world.officer(LOCAL, officer), proposal.proposal_id)
    plain = private_key(LOCAL, officer).decrypt(sealed)
    assert plain.startswith(kind)
    return msgspec.msgpack.decode(plain[len(kind) :])


def code_for(world: World, code: str = CODE) -> str:
    proposal = world.decide(LOCAL, act.GiveEnrolmentCodes((code,), "c"))
    return str(envelope(world, proposal, "c", KIND_CODES)[code])


def request_of(code: str = CODE, kind: TlsKind = TlsKind.GUOMI) -> bytes:
    return make_request(load_key(generate_key(kind)), code)


def make_ca(world: World, kind: str = "guomi") -> None:
    world.decide(LOCAL, act.MakeAuthority(kind, "省级 CA", 10))


def make_master(world: World, export: Export = Export.CHILD) -> None:
    world.make_key(
        LOCAL,
        name="TMK",
        algorithm=Algorithm.SM4,
        use=Use.TERMINAL,
        levels=TERMINAL_LEVELS,
        addresses=(TERMINAL_MASTER_ADDRESS,),
        export=export,
    )


def events(world: World) -> list[dict[str, Any]]:
    records = [record for _n, record in world.store.outbox(world.vault._holding.instance)]
    return [msgspec.msgpack.decode(record) for record in records]


# --- who decides


def test_two_officers_of_the_daemon_enrol_and_activate(world: World) -> None:
    enrol(world, activate=False)
    assert terminal(world).state is TerminalState.ENROLLED
    assert terminal(world).enrolled_by == "a+b"
    world.decide(LOCAL, act.ActivateTerminals((CODE,)))
    assert terminal(world).state is TerminalState.ACTIVE
    last = events(world)[-2]
    assert (last["event"], last["terminals"], last["officer"]) == (
        "terminal.activated",
        [CODE],
        "LOCAL/b",
    )


def test_nobody_enrols_alone_or_for_another_domain(world: World) -> None:
    proposal = world.propose(LOCAL, act.EnrolTerminals((spec(),)))
    with pytest.raises(OwnProposal):
        world.approve(proposal, by="a")
    with pytest.raises(RoleMissing):
        world.approve(proposal, by="c")
    for domain in (Domain.SOCIAL, Domain.FINANCE, Domain.ACSE):
        with pytest.raises(DomainCrossed):
            world.propose(domain, act.EnrolTerminals((spec(),)))
    assert contents_of(world.vault).terminals == {}


@pytest.mark.parametrize(
    "action",
    [
        act.ActivateTerminals((CODE,)),
        act.GiveEnrolmentCodes((CODE,), "c"),
        act.GiveTerminalKeys((CODE,), "c"),
        act.MakeAuthority("guomi", "CA", 10),
    ],
)
def test_the_others_are_the_daemons_as_well(world: World, action: act.Action) -> None:
    with pytest.raises(DomainCrossed):
        world.propose(Domain.SOCIAL, action)


@pytest.mark.parametrize("to", ["suspended", "lost", "retired"])
@pytest.mark.parametrize("by", ["a", "e"])
def test_one_officer_stops_a_terminal_at_once(world: World, to: str, by: str) -> None:
    enrol(world)
    other = world.open_vault()
    assert stop(world, TerminalState(to), by).state == to
    # Another keyd of the same store asks it every second.
    assert other.reload()
    assert terminal(world, vault=other).state == to
    assert terminal(world).reason == "reported by the county"
    assert events(world)[-1]["event"] == f"terminal.{to}"


def test_a_reason_is_something_to_read(world: World) -> None:
    enrol(world)
    for reason in ("\x1b[2J", "line\nline", "\x00"):
        with pytest.raises(BadParameter, match="printable"):
            world.vault.stop_terminal(world.officer(LOCAL, "e"), CODE, TerminalState.LOST, reason)
    assert terminal(world).state is TerminalState.ACTIVE


def test_who_is_neither_security_officer_nor_operator_stops_nothing(world: World) -> None:
    enrol(world)
    with pytest.raises(RoleMissing):
        stop(world, TerminalState.SUSPENDED, by="c")
    social = world.officer(Domain.SOCIAL, "a")
    with pytest.raises(DomainCrossed):
        world.vault.stop_terminal(social, CODE, TerminalState.LOST, "")
    assert terminal(world).state is TerminalState.ACTIVE


# --- a terminal's life


def test_every_step_that_is_not_in_the_picture_is_refused() -> None:
    """Against the picture, by hand: from each state, what may follow."""
    may: dict[str, set[str]] = {
        "enrolled": {"active", "suspended", "lost", "retired"},
        "active": {"suspended", "lost", "retired"},
        "suspended": {"active", "lost", "retired"},
        "lost": {"active", "retired"},
        "retired": set(),
    }
    for begin in TerminalState:
        for to in TerminalState:
            if to is TerminalState.ENROLLED:
                continue
            at = Terminal(spec(), begin, "a+b", NOON)
            try:
                after = (
                    lifecycle.activated(at, "x", NOON)
                    if to is TerminalState.ACTIVE
                    else lifecycle.stopped(at, to, "", "x", NOON)
                )
            except TerminalStateRefused:
                assert to.value not in may[begin.value]
            else:
                assert to.value in may[begin.value]
                assert (after.state, after.revision, after.changed_by) == (to, 2, "x")


def test_stopping_takes_the_enrolment_code_back(world: World) -> None:
    enrol(world)
    make_ca(world)
    code = code_for(world)
    stop(world, TerminalState.SUSPENDED)
    world.decide(LOCAL, act.ActivateTerminals((CODE,)))
    with pytest.raises(EnrolmentRefused):
        world.vault.enrol_terminal(CODE, code, request_of())


def test_a_new_spec_keeps_the_state_and_a_retired_code_is_never_given_again(world: World) -> None:
    enrol(world)
    stop(world, TerminalState.SUSPENDED)
    enrol(world, spec(roles=("hospital",)))
    assert terminal(world).state is TerminalState.SUSPENDED
    assert terminal(world).spec.roles == ("hospital",)
    stop(world, TerminalState.RETIRED)
    with pytest.raises(TerminalStateRefused, match="not given twice"):
        world.propose(LOCAL, act.EnrolTerminals((spec(),)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"networks": ("10.0.0.1/8",)}, "is no network"),
        ({"hours": ("8-17",)}, "is no hours"),
        ({"psam_number": b"\xaa" * 6}, "12 decimal digits"),
        ({"psam_number": b"\x11" * 5}, "12 decimal digits"),
        ({"proofs": (Proof.KEY_BY_PSAM,)}, "needs the PSAM"),
        ({"roles": ("counter", "counter")}, "twice"),
        ({"public_key": b"\x04" * 64}, "65 bytes"),
        ({"valid_from": 10, "valid_until": 10}, "before it begins"),
    ],
)
def test_a_terminal_that_never_could_is_refused_when_it_is_proposed(
    world: World, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadParameter, match=says):
        world.propose(LOCAL, act.EnrolTerminals((spec(**wrong),)))


def test_what_proves_one_terminal_proves_no_other(world: World) -> None:
    number = bytes.fromhex("510100000001")
    enrol(world, spec(psam_number=number))
    with pytest.raises(BadParameter, match="with the same"):
        world.propose(LOCAL, act.EnrolTerminals((spec("DESK-0002", psam_number=number),)))
    twins = (spec("A", public_key=b"\x04" + bytes(64)), spec("B", public_key=b"\x04" + bytes(64)))
    with pytest.raises(BadParameter, match="with the same"):
        world.propose(LOCAL, act.EnrolTerminals(twins))
    with pytest.raises(BadParameter, match="twice"):
        world.propose(LOCAL, act.EnrolTerminals((spec("A"), spec("A"))))
    # A PSAM may go on in another machine once the first is out for good.
    stop(world, TerminalState.RETIRED)
    enrol(world, spec("DESK-0002", psam_number=number))


def test_a_terminal_that_is_not_there_is_said(world: World) -> None:
    for action in (act.ActivateTerminals(("X",)), act.GiveEnrolmentCodes(("X",), "c")):
        with pytest.raises(TerminalNotFound):
            world.propose(LOCAL, action)
    with pytest.raises(TerminalNotFound):
        stop(world, TerminalState.LOST, code="X")


# --- enrolment codes


@given(st.binary(min_size=CODE_BYTES, max_size=CODE_BYTES))
def test_a_code_is_read_as_it_was_made_however_it_is_typed(number: bytes) -> None:
    code = make_code(lambda _size: number)
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){4}[0-9A-HJKMNP-TV-Z*~$=U]", code)
    for typed in (code, code.lower(), code.replace("-", ""), f" {code.replace('-', ' ')} "):
        assert read_code(typed) == number
    assert read_code(code[:-2].replace("0", "O").replace("1", "l") + code[-2:]) == number


@given(st.binary(min_size=CODE_BYTES, max_size=CODE_BYTES), st.integers(0, 15), st.data())
def test_one_slip_is_told_apart_from_a_wrong_code(number: bytes, at: int, data: Any) -> None:
    code = make_code(lambda _size: number).replace("-", "")
    other = data.draw(
        st.sampled_from([c for c in "0123456789ABCDEFGHJKMNPQRSTVWXYZ" if c != code[at]])
    )
    with pytest.raises(BadParameter, match="mistyped"):
        read_code(code[:at] + other + code[at + 1 :])
    if at < 15 and code[at] != code[at + 1]:
        with pytest.raises(BadParameter, match="mistyped"):
            read_code(code[:at] + code[at + 1] + code[at] + code[at + 2 :])


@pytest.mark.parametrize("text", ["", "-", "ÄÖÜ", "7Q2M", "0" * 16, "0" * 18, "0" * 5000])
def test_what_is_no_code_is_mistyped(text: str) -> None:
    with pytest.raises(BadParameter, match="mistyped"):
        read_code(text)


def test_a_code_is_one_terminals() -> None:
    number = secrets.token_bytes(CODE_BYTES)
    assert is_code_of(digest_of("A", number), "A", number)
    assert not is_code_of(digest_of("A", number), "B", number)
    assert not is_code_of(b"", "A", number)


def test_with_its_code_a_machine_gets_its_certificate_once(world: World) -> None:
    enrol(world, activate=False)
    make_ca(world)
    code = code_for(world)
    chain = world.vault.enrol_terminal(CODE, code.lower(), request_of())
    own, ca = x509.load_pem_x509_certificates(chain)
    assert own.subject.rfc4514_string() == f"CN={CODE}"
    assert own.issuer == ca.subject
    kept = terminal(world)
    assert int.from_bytes(kept.certificate, "big") == own.serial_number
    assert kept.certificate_until == NOON + CERTIFICATE_DAYS * DAY
    assert kept.certificate_until == int(own.not_valid_after_utc.timestamp())
    # Two officers activate it, and a certificate does not.
    assert kept.state is TerminalState.ENROLLED
    with pytest.raises(EnrolmentRefused):
        world.vault.enrol_terminal(CODE, code, request_of())
    assert [event["event"] for event in events(world)][-1] == "terminal.certified"


def test_a_code_is_for_its_terminal_its_time_and_its_request(world: World) -> None:
    enrol(world, spec(), spec("DESK-0002"))
    make_ca(world)
    code = code_for(world)
    said = set()
    for asked, typed, request in (
        ("DESK-0002", code, request_of("DESK-0002")),
        ("NOBODY", code, request_of("NOBODY")),
        (CODE, make_code(secrets.token_bytes), request_of()),
    ):
        with pytest.raises(EnrolmentRefused) as refused:
            world.vault.enrol_terminal(asked, typed, request)
        said.add(refused.value.detail)
    assert len(said) == 1, "a stranger learns who is enrolled"
    with pytest.raises(EnrolmentRefused, match="for another terminal"):
        world.vault.enrol_terminal(CODE, code, request_of("DESK-0002"))
    with pytest.raises(EnrolmentRefused, match="no standard authority"):
        world.vault.enrol_terminal(CODE, code, request_of(kind=TlsKind.STANDARD))
    with pytest.raises(EnrolmentRefused, match="not readable"):
        world.vault.enrol_terminal(CODE, code, b"junk")
    world.clock.now += 7 * DAY
    with pytest.raises(EnrolmentRefused):
        world.vault.enrol_terminal(CODE, code, request_of())


def test_two_keyds_give_one_certificate_for_one_code(world: World) -> None:
    enrol(world)
    make_ca(world)
    code = code_for(world)
    vaults = [world.vault, world.open_vault(), world.open_vault()]
    given: list[bytes] = []
    refused: list[Refusal] = []
    barrier = threading.Barrier(len(vaults))

    def ask(vault: Vault) -> None:
        barrier.wait()
        try:
            given.append(vault.enrol_terminal(CODE, code, request_of()))
        except EnrolmentRefused as refusal:
            refused.append(refusal)

    threads = [threading.Thread(target=ask, args=(vault,)) for vault in vaults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 1
    assert len(refused) == 2


def test_codes_are_nowhere_but_in_the_envelope(world: World) -> None:
    enrol(world, spec(), spec("DESK-0002"))
    proposal = world.decide(LOCAL, act.GiveEnrolmentCodes((CODE, "DESK-0002"), "c"))
    codes = envelope(world, proposal, "c", KIND_CODES)
    assert set(codes) == {CODE, "DESK-0002"}
    kept = b"".join(row.body + row.sealed for row in world.store.load().rows)
    said = b"".join(record for _n, record in world.store.outbox(world.vault._holding.instance))
    for code in codes.values():
        for form in (code.encode(), code.replace("-", "").encode(), read_code(code)):
            assert form not in kept + said
    with pytest.raises(Refusal, match="nothing for"):
        world.vault.take(world.officer(LOCAL, "a"), proposal.proposal_id)


# --- keys


def test_a_terminals_key_is_the_one_that_proofs_are_made_with(world: World) -> None:
    make_master(world)
    number = bytes.fromhex("510100000001")
    by_psam = spec("PSAM-1", proofs=(Proof.KEY_BY_PSAM,), psam_number=number)
    enrol(world, spec(), by_psam)
    proposal = world.decide(LOCAL, act.GiveTerminalKeys((CODE, "PSAM-1"), "c"))
    given = envelope(world, proposal, "c", KIND_KEYS)
    (held,) = [k for k in contents_of(world.vault).keys.values() if k.header.use is Use.TERMINAL]
    assert held.key is not None
    master = TerminalMasterKey(held.key)
    challenge, own = bytes(range(16)), bytes(range(16, 32))
    for code, factor in (
        (CODE, terminal_factor_by_code(CODE)),
        ("PSAM-1", terminal_factor_by_psam(number)),
    ):
        handed = TerminalKey(SecretKey.load(Algorithm.SM4, bytearray(given[code])))
        for side in Side:
            expected = master.diversify(factor).diversify(side).proof(challenge, own)
            assert handed.diversify(side).proof(challenge, own) == expected
    with pytest.raises(BadParameter, match="8 bytes"):
        master.hand_over(bytes(7))


def test_without_a_master_key_or_a_proof_by_key_there_is_none_to_give(world: World) -> None:
    enrol(world, spec(), spec("CERT-1", proofs=(Proof.SIGNATURE,)))
    with pytest.raises(KeyNotFound):
        world.propose(LOCAL, act.GiveTerminalKeys((CODE,), "c"))
    make_master(world)
    with pytest.raises(BadParameter, match="with no key"):
        world.propose(LOCAL, act.GiveTerminalKeys(("CERT-1",), "c"))
    with pytest.raises(BadParameter, match="no officer"):
        world.propose(LOCAL, act.GiveTerminalKeys((CODE,), "nobody"))


def test_a_master_key_that_may_never_leave_gives_no_terminal_its_key(world: World) -> None:
    make_master(world, Export.NEVER)
    enrol(world)
    with pytest.raises(ExportRefused, match="never"):
        world.propose(LOCAL, act.GiveTerminalKeys((CODE,), "c"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 1},
        {"levels": 3},
        {"addresses": (0x4000,)},
        {"addresses": (TERMINAL_MASTER_ADDRESS, 0x4000)},
        {"algorithm": Algorithm.TDES},
        {"use": Use.INTERNAL},
    ],
)
def test_the_terminal_master_key_is_that_and_nothing_else(
    world: World, wrong: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {
        "tier": Tier.NATIONAL,
        "name": "TMK",
        "algorithm": Algorithm.SM4,
        "use": Use.TERMINAL,
        "levels": TERMINAL_LEVELS,
        "addresses": (TERMINAL_MASTER_ADDRESS,),
    }
    world.propose(LOCAL, act.GenerateKey(act.KeySpec(**whole)))
    with pytest.raises(DomainCrossed):
        world.propose(Domain.FINANCE, act.GenerateKey(act.KeySpec(**whole)))
    with pytest.raises(BadParameter):
        world.propose(LOCAL, act.GenerateKey(act.KeySpec(**(whole | wrong))))


def test_nothing_below_the_terminal_master_key_is_exported_as_a_region(world: World) -> None:
    transport = world.make_key(
        LOCAL, name="KEK", use=Use.TRANSPORT, levels=0, addresses=(), algorithm=Algorithm.SM4
    )
    made = world.make_key(
        LOCAL,
        name="TMK",
        algorithm=Algorithm.SM4,
        use=Use.TERMINAL,
        levels=TERMINAL_LEVELS,
        addresses=(TERMINAL_MASTER_ADDRESS,),
        export=Export.CHILD,
    )
    child = act.ExportChild(made, "510100", transport, act.TransportFormat.BLOCK)
    proposal = world.propose(LOCAL, child)
    with pytest.raises(ExportRefused):
        world.approve(proposal)


# --- the authority


def test_the_next_certificate_supersedes_the_one_before(world: World) -> None:
    enrol(world)
    make_ca(world)
    first = x509.load_pem_x509_certificates(
        world.vault.enrol_terminal(CODE, code_for(world), request_of())
    )[0]
    world.clock.now += DAY
    second = x509.load_pem_x509_certificates(world.vault.renew_certificate(CODE, request_of()))[0]
    assert revoked(world) == {first.serial_number}
    stop(world, TerminalState.LOST)
    assert revoked(world) == {first.serial_number, second.serial_number}
    with pytest.raises(EnrolmentRefused):
        world.vault.renew_certificate(CODE, request_of())
    world.decide(LOCAL, act.ActivateTerminals((CODE,)))
    assert revoked(world) == {first.serial_number}
    # What has expired by itself needs no list.
    world.clock.now += 2 * CERTIFICATE_DAYS * DAY
    assert revoked(world) == set()


def revoked(world: World, kind: TlsKind = TlsKind.GUOMI) -> set[int]:
    contents = contents_of(world.vault)
    held = contents.authorities[kind]
    pem = held.revocation_list(
        contents.terminals.values(), int(world.clock.now), contents.number + 1
    )
    crl = x509.load_pem_x509_crl(pem)
    moment = datetime.datetime.fromtimestamp(world.clock.now, datetime.UTC)
    assert crl.last_update_utc == moment
    return {entry.serial_number for entry in crl}


def test_a_certificate_ends_with_its_terminals_validity(world: World) -> None:
    enrol(world, spec(valid_until=NOON + 30 * DAY))
    make_ca(world)
    chain = world.vault.enrol_terminal(CODE, code_for(world), request_of())
    own = x509.load_pem_x509_certificates(chain)[0]
    assert own.not_valid_after_utc.timestamp() == NOON + 30 * DAY
    world.clock.now += 31 * DAY
    with pytest.raises(EnrolmentRefused, match="valid no more"):
        world.vault.renew_certificate(CODE, request_of())


@pytest.mark.parametrize("kind", ["guomi", "standard"])
def test_a_new_authority_takes_the_place_of_the_one_before(world: World, kind: str) -> None:
    make_ca(world, kind)
    first = contents_of(world.vault).authorities[TlsKind(kind)]
    make_ca(world, kind)
    second = contents_of(world.vault).authorities[TlsKind(kind)]
    assert first.body.certificate != second.body.certificate
    assert second.body.revision == 2
    assert b"PRIVATE" not in repr(second).encode()


# --- the rows


@pytest.fixture
def whole(world: World) -> World:
    enrol(world, spec(), spec("DESK-0002"))
    make_ca(world)
    make_ca(world, "standard")
    return world


def test_a_restart_keeps_everything(whole: World) -> None:
    before = contents_of(whole.vault)
    after = contents_of(whole.restart())
    assert after.terminals == before.terminals
    assert {k: a.unwrapped() for k, a in after.authorities.items()} == {
        k: a.unwrapped() for k, a in before.authorities.items()
    }


def test_no_private_key_of_an_authority_stands_in_the_store(whole: World) -> None:
    kept = b"".join(row.body + row.sealed for row in whole.store.load().rows)
    for held in contents_of(whole.vault).authorities.values():
        secret = b"".join(held.unwrapped().split(b"\n")[1:-2])
        assert secret[:32] not in kept
    assert {row.kind for row in whole.store.load().rows} >= {Kind.TERMINAL, Kind.AUTHORITY}
