"""What a request is said to need is what its handler then computes with: the same keys, algorithm, region and card."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.errors import BadParameter, PoolExhausted, Refusal
from keyd.handlers import HANDLERS, Services
from keyd.keys.ring import KeyRing
from keyd.keys.sam import CryptogramTask, MacTask, TacTask
from keyd.needs import _SHAPES, GOVERNED, Needs, catalogue
from keyd.policy import NO_KEY
from keyd.protocol.commands import BY_REQUEST, TABLE, Command, Cost
from keyd.psam.level_index import place_of_key
from keyd.registry.synthetic import synthetic_terminal
from keyd.terminals import KnownTerminal, Session, Terminals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keyd.handlers.desk import MemberReport, OpenPsam, Wanted
    from keyd.keys.sam import SamTask, Steps
    from keyd.protocol.fields import Request, Response
    from keyd.psam.level_index import Place

PROFILES: Final = load_profiles()
KEYS: Final = newest(PROFILES).keys
NEEDS: Final = Needs(PROFILES)

CARD_ID: Final = bytes.fromhex("510100D15600000530000BEE00000000")
HISTORICAL: Final = bytes.fromhex("00814A44468649510130000BEE")
CARD: Final = [CARD_ID, HISTORICAL, 3, 3]
EIGHT: Final = bytes(8)
PURCHASE: Final = [
    *(bytes(4), b"\0\5", bytes(4), 0, 10_000, 100, 1, bytes.fromhex("510100000001")),
    bytes.fromhex("20240102030405"),
]
LOAD: Final = [
    *(bytes(4), b"\0\3", 5000, 1000, 2, bytes.fromhex("510100000001")),
    bytes.fromhex("20240102030405"),
]
BAS: Final = f"510100|{HISTORICAL.hex().upper()}|03|{CARD_ID.hex().upper()}|" + f"{'00' * 8}|" * 4
STEP: Final = f"03|{{}}|{'00' * 8}|{'00' * 8}|"
PIN_STEP: Final = f"03|0173|{'00' * 8}|{{}}|"
DEBIT: Final = "03|017F|01020304|0005|0000271000000064|01|510100000001|20240102030405|"
DEBIT_2: Final = "00000000|03|{}|0000271000000064|01|510100000001|00000000|20240102030405|00000000|"

# For every method requests that its handler answers, other keys than the usual ones among them.
ASKS: Final[dict[str, list[list[Any]]]] = {
    "daemon.status": [[]],
    "daemon.selftest": [[]],
    "daemon.random": [[8]],
    "card.internal_cryptogram": [[CARD, EIGHT, EIGHT], [CARD, EIGHT, EIGHT, 0x0172]],
    "card.internal_authenticate": [[CARD, EIGHT, EIGHT, EIGHT, 0x0171]],
    "card.external_authenticate": [[CARD, 0x0090, EIGHT, EIGHT], [CARD, 0x0094, EIGHT, EIGHT]],
    "card.mutual_cryptograms": [
        [CARD, *[EIGHT] * 4],
        [CARD, *[EIGHT] * 4, 0x0171, 0x0090],
    ],
    "card.mutual_authenticate": [[CARD, *[EIGHT] * 5], [CARD, *[EIGHT] * 5, 0x0172, 0x0094]],
    "card.secure_message": [[CARD, 0x0174, EIGHT, b"\x04\xd6\0\0", b"data"]],
    "card.pin_unblock": [[CARD, EIGHT]],
    "card.pin_reload": [[CARD, EIGHT, "123456"]],
    "medical.make_purchase": [[CARD, PURCHASE], [CARD, PURCHASE, 0x0199]],
    "medical.confirm_purchase": [
        [CARD, PURCHASE, bytes(4), bytes(4)],
        [CARD, PURCHASE, bytes(4), bytes(4), 0x0199, 0x00B6],
    ],
    "medical.make_load": [[CARD, LOAD, bytes(4)]],
    "medical.confirm_load": [[CARD, LOAD, bytes(4)], [CARD, LOAD, bytes(4), 0x00B6]],
    "library.read_card_bas": [
        [BAS],
        # No external fields, so it is no 3.0 card, and such have no SM4.
        [BAS.replace("|03|", "|01|").removesuffix(f"{'00' * 8}|{'00' * 8}|") + "||"],
    ],
    "library.read_card": [[CARD, STEP.format("004C")]],
    "library.write_card": [[CARD, STEP.format("0094")]],
    "library.reload_pin_1": [[CARD, STEP.format("0090")]],
    "library.unblock_pin_1": [[CARD, STEP.format("0090")]],
    "library.reload_pin_2": [[CARD, PIN_STEP.format("8424000114|123456")]],
    "library.unblock_pin_2": [[CARD, PIN_STEP.format("8424000004|")]],
    "library.do_debit_1": [[CARD, DEBIT, bytes(4)]],
    "library.do_debit_2": [
        [CARD, DEBIT, DEBIT_2.format("017F")],
        [CARD, DEBIT, DEBIT_2.format("00B6")],
    ],
}

STEP_OF_SCRIPT: Final = [b"\x00\x84\0\0", b"", [], 8, [0x9000]]
TERMS: Final = [*(bytes(4), b"\0\5", 0, 10_000, 100, 1, bytes.fromhex("20240102030405"), 1, 3)]
ASKS.update(
    {
        "psam.open": [[[0x0170]], [[0x004C, 0x0094, 0x017F], 1, "510100000001", "5101"]],
        "psam.run_once": [[[0x0170], [STEP_OF_SCRIPT]], [[0x0174], [STEP_OF_SCRIPT], [], 1]],
        "psam.transmit": [[1, bytes(5)]],
        "psam.transmit_many": [[1, [bytes(5)]]],
        "psam.run": [[1, [STEP_OF_SCRIPT]]],
        "psam.close": [[1]],
        "psam.make_purchase": [[1, CARD, TERMS]],
        "psam.confirm_purchase": [[1, bytes(4)]],
        "psam.internal_authenticate": [[CARD, EIGHT, EIGHT], [CARD, EIGHT, EIGHT, 0x0172]],
        "psam.external_authenticate": [[CARD, 0x0090, EIGHT, EIGHT], [CARD, 0x0094, EIGHT, EIGHT]],
        "psam.list": [[]],
    }
)

GOVERNED_ROWS: Final = [row for row in TABLE.values() if row.role in GOVERNED]
# What is said to an open PSAM: its keys are those that it was opened for.
TO_AN_OPEN_PSAM: Final = {
    *("psam.transmit", "psam.transmit_many", "psam.run", "psam.close"),
    *("psam.make_purchase", "psam.confirm_purchase"),
}
# These compute nothing with a card's key, and their handlers want the whole daemon.
WITHOUT_KEY: Final = TO_AN_OPEN_PSAM | {
    *("daemon.status", "daemon.selftest", "daemon.random", "psam.list"),
}
# Which keys the pool is asked for; what then is computed with them is in APDUs.
OPENINGS: Final = {"psam.open", "psam.run_once"}

every_row = pytest.mark.parametrize("row", GOVERNED_ROWS, ids=lambda row: row.method)

SERVICES: Final = Services(
    sam=KeyRing(()),
    key_headers=(),
    has_synthetic_keys=True,
    profiles=PROFILES,
    terminals=Terminals({}, bytes),
    selftest=(),
    run_selftest=list,
    clock=lambda: 0.0,
    now=lambda: 0.0,
    random_bytes=bytes,
)


class NotingDesk:
    """A desk that takes note of what it is asked for. All it computes is zero, and it lends nothing."""

    def __init__(self) -> None:
        self.tasks: list[SamTask] = []
        self.places: list[Place] = []

    async def open(self, _terminal: str, wanted: Wanted) -> OpenPsam:
        self.places += wanted.places
        raise PoolExhausted

    async def compute(self, tasks: Sequence[SamTask], _terminal: str) -> list[bytes | Refusal]:
        self.tasks += tasks
        return [bytes(result_length(task)) for task in tasks]

    def members(self) -> Sequence[MemberReport]:
        return ()


def asked_of_the_desk(request: Request[Any]) -> NotingDesk:
    """Let a slow handler ask for what it needs.

    Raises:
        Refusal: the handler refuses before it has asked for anything.
    """
    desk = NotingDesk()
    session = Session(1)
    session.enter(KnownTerminal(synthetic_terminal("T-1")))
    services = dataclasses.replace(SERVICES, psams=desk, random_bytes=secrets.token_bytes)
    handler = cast("Callable[..., Awaitable[Response]]", HANDLERS[type(request)])
    with contextlib.suppress(PoolExhausted):
        trio.run(handler, request, session, services)
    return desk


def request_of(row: Command, params: list[Any]) -> Request[Any]:
    params = [msgspec.to_builtins(value, builtin_types=(bytes,)) for value in params]
    request: Request[Any] = msgspec.convert(params, row.request, builtin_types=(bytes,))
    return request


def tasks_of(request: Request[Any]) -> list[SamTask]:
    """Return everything that the handler wants computed. All results are zero, and so the card is always right.

    Raises:
        Refusal: the handler refuses before it has wanted anything.
    """
    if BY_REQUEST[type(request)].cost is Cost.SLOW:
        return asked_of_the_desk(request).tasks
    steps = cast("Steps[Any]", HANDLERS[type(request)](request, Session(1), SERVICES))
    seen: list[SamTask] = []
    try:
        tasks: Sequence[SamTask] = next(steps)
        while True:
            seen += tasks
            tasks = steps.send([bytes(result_length(task)) for task in tasks])
    except StopIteration:
        return seen
    except Refusal:
        if not seen:
            raise
        return seen


def result_length(task: SamTask) -> int:
    if isinstance(task, CryptogramTask):
        return 8
    # The library's new PIN is checked against the header that the terminal announced.
    return 4 if isinstance(task, MacTask | TacTask) else 21


def assert_needs_what_is_computed(request: Request[Any]) -> None:
    tasks = tasks_of(request)
    need = NEEDS.of(request)
    assert tasks
    assert {task.key.address for task in tasks} == set(need.addresses)
    assert {int(task.key.algorithm) for task in tasks} == {need.algorithm}
    assert {str(task.key.region) for task in tasks} == {need.region}
    assert {task.key.diversifier for task in tasks} == {NEEDS.card_name(need)}


def assert_needs_what_is_opened(request: Any) -> None:
    need = NEEDS.of(request)
    places = {place_of_key(KEYS[address], request.algorithm) for address in need.addresses}
    assert set(asked_of_the_desk(request).places) == places
    assert need.algorithm == request.algorithm
    assert need.region == ("" if request.region == "any" else request.region)


def test_every_command_that_needs_a_right_has_a_resolver_and_no_other_has() -> None:
    # A new command without one is red here; add it to keyd/needs.py and to ASKS.
    assert set(_SHAPES) == {row.request for row in GOVERNED_ROWS}
    assert set(ASKS) == {row.method for row in GOVERNED_ROWS}


@every_row
def test_a_request_needs_the_keys_that_are_computed_with(row: Command) -> None:
    for params in ASKS[row.method]:
        request = request_of(row, params)
        if row.method in WITHOUT_KEY:
            need = NEEDS.of(request)
            assert (need.addresses, need.algorithm, need.region) == ((NO_KEY,), 0, "")
            card = getattr(request, "card", None)
            assert NEEDS.card_name(need) == (None if card is None else HISTORICAL[-8:])
        elif row.method in OPENINGS:
            assert_needs_what_is_opened(request)
        else:
            assert_needs_what_is_computed(request)


@every_row
def test_a_shape_says_which_keys_the_service_takes(row: Command) -> None:
    """A rule that names a key which the service always refuses decides nothing, and is found by this."""
    known = catalogue(PROFILES)
    if row.method in WITHOUT_KEY:
        assert not known.methods[row.method].has_key
        return
    if row.method in OPENINGS:
        # A rule may still name the key with all its sets; PSAMs have the first.
        expected = {address for address in known.keys if known.can_use(row.method, address)}
        assert opened_for_each(row) == {a for a in expected if KEYS[a].set == 1}
        assert {known.name_of(a) for a in known.keys} - {known.name_of(a) for a in expected} == (
            {"STKSSSE", "DLK", "DTK", "DSK"}
        )
        return
    accepted = set()
    for address in known.keys:
        for params in with_address(row, address):
            try:
                if address in {task.key.address for task in tasks_of(request_of(row, params))}:
                    accepted.add(address)
            except Refusal:
                continue
    expected = {address for address in known.keys if known.can_use(row.method, address)}
    if row.method == "library.read_card_bas":
        # It always takes the first set, and a rule may still name the key.
        assert {known.name_of(address) for address in accepted} == {"IRK", "RKSSSE"}
        assert accepted <= expected
    else:
        assert accepted == expected


def opened_for_each(row: Command) -> set[int]:
    accepted = set()
    for address in KEYS:
        first, *rest = ASKS[row.method][0]
        del first
        with contextlib.suppress(Refusal):
            asked_of_the_desk(request_of(row, [[address], *rest]))
            accepted.add(address)
    return accepted


def with_address(row: Command, address: int) -> list[list[Any]]:
    """Return requests of the method that name this address wherever one can be named."""
    hexed = f"{address:04X}"
    found = list(ASKS[row.method])
    if row.method == "library.do_debit_2":
        found.append([CARD, DEBIT.replace("017F", hexed), DEBIT_2.format("00B5")])
        found.append([CARD, DEBIT, DEBIT_2.format(hexed)])
    elif row.method.startswith("library."):
        for params, old in itertools.product(ASKS[row.method], ("004C", "0090", "0094", "017F")):
            found.append(
                [put.replace(old, hexed, 1) if type(put) is str else put for put in params]
            )
    else:
        request = request_of(row, ASKS[row.method][0])
        for name in row.request.__struct_fields__:
            if name.endswith("address"):
                changed = msgspec.structs.replace(request, **{name: address})
                found.append(list(msgspec.structs.astuple(changed)))
    return found


TEXTS: Final = [row for row in GOVERNED_ROWS if row.method.startswith("library.")]


@given(
    row=st.sampled_from(TEXTS),
    which=st.integers(0, 1),
    at=st.integers(0, 200),
    put=st.text("0123456789ABCDEFabcdef|+_ x٣\n", max_size=5),
    cut=st.integers(0, 5),
)
@settings(max_examples=600, deadline=None)
def test_no_string_is_read_in_two_ways(
    row: Command, which: int, at: int, put: str, cut: int
) -> None:
    """Whatever a handler takes, the resolver has read the same in it: no string asks for less than it gets."""
    asks = ASKS[row.method]
    params = [
        value[:at] + put + value[at + cut :] if isinstance(value, str) else value
        for value in asks[which % len(asks)]
    ]
    try:
        request = request_of(row, params)
    except msgspec.ValidationError:
        return
    try:
        tasks = tasks_of(request)
    except Refusal:
        # What the handler refuses may be refused by the resolver as well, and in no other way.
        with contextlib.suppress(BadParameter):
            NEEDS.card_name(NEEDS.of(request))
        return
    assert tasks
    assert_needs_what_is_computed(request)


@pytest.mark.parametrize(
    "change",
    [
        {"card_id": CARD_ID[:12] + bytes.fromhex("DEADBEEF")},
        {"card_id": bytes.fromhex("330106") + CARD_ID[3:]},
        {"historical": bytes.fromhex("3B6D0000") + HISTORICAL},
        {"historical": b"\xff\xff\xff\xff\xff" + HISTORICAL[5:]},
        {"algorithm": 1},
        {"generation": 2},
    ],
    ids=str,
)
def test_a_card_has_one_name_whatever_else_is_varied(change: dict[str, Any]) -> None:
    # The ceiling of PIN resets counts by this name. What is varied here is not checked, or is no part of the key.
    row = TABLE["card.pin_unblock"]
    request: Any = request_of(row, [CARD, EIGHT])
    varied = msgspec.structs.replace(request, card=msgspec.structs.replace(request.card, **change))
    assert NEEDS.card_name(NEEDS.of(varied)) == NEEDS.card_name(NEEDS.of(request))


def test_another_card_has_another_name() -> None:
    row = TABLE["card.pin_unblock"]
    other = [CARD_ID[:8] + b"\1\2\3\4" + bytes(4), HISTORICAL[:9] + b"\1\2\3\4", 3, 3]
    names = {NEEDS.card_name(NEEDS.of(request_of(row, [card, EIGHT]))) for card in (CARD, other)}
    assert len(names) == 2
