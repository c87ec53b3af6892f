"""The table is whole, every message keeps its bytes for ever, and what does not fit a message is refused."""

from __future__ import annotations

import base64
import inspect
import json
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect as types

from keyd.handlers import HANDLERS
from keyd.handlers.custody import OFFICERS_HANDLERS
from keyd.keys.block import Domain, KeyState, Tier, Use
from keyd.protocol.commands import (
    BATCH_SUFFIX,
    BATCHES,
    BY_REQUEST,
    MAX_BATCH,
    OFFICERS,
    TABLE,
    Command,
    Cost,
    Role,
)
from keyd.protocol.connection import MAX_ANSWER, MAX_MESSAGE, MAX_METHOD, answer_bytes, encode
from keyd.protocol.fields import Request, Response
from keyd.protocol.messages.daemon import DaemonState, KeyReport, SelftestReport
from keyd.protocol.redaction import describe, log_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msgspec import Struct

GOLDEN: Final = cast(
    "dict[str, dict[str, dict[str, Any]]]",
    json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))["messages"],
)

# What logs may say of each message. A field is added here only by somebody who has thought about it: neither
# keys nor PINs nor anything of a person may ever be.
SHOWN: Final = {
    "AskStatus": "",
    "DaemonState": "version state synthetic_keys algorithms sm2 selftest keys counters",
    "SelftestReport": "name passed detail",
    "KeyReport": ("addresses name set algorithm levels kcv key_id domain tier use version state"),
    "RunSelftest": "",
    "SelftestResults": "results",
    "AskRandom": "length",
    "RandomBytes": "",
    "RequestChallenge": "code",
    "Challenge": "seconds",
    "AuthenticateTerminal": "",
    "KeydAuthentic": "",
    "AuthenticateSignature": "time",
    "KeydSigned": "",
    "CardIdentity": "algorithm generation key_version",
    "InternalCryptogram": "card address",
    "InternalReply": "warnings",
    "InternalAuthenticate": "card address",
    "CardAuthentic": "warnings",
    "ExternalAuthenticate": "card address",
    "ExternalReply": "warnings",
    "MutualCryptograms": "card internal_address external_address",
    "MutualReply": "warnings",
    "MutualAuthenticate": "card internal_address external_address",
    "SecureMessage": "card address header encrypt",
    "ReadyApdu": "warnings",
    "PinUnblock": "card",
    "PinReload": "card",
    "Purchase": "type terminal time",
    "Load": "type terminal time",
    "MakePurchase": "card purchase address",
    "ConfirmPurchase": "card purchase address tac_address",
    "MakeLoad": "card load address",
    "ConfirmLoad": "card load tac_address",
    "Mac1": "warnings",
    "Mac2": "warnings",
    "Confirmed": "warnings",
    "ReadCardBas": "",
    "ReadCard": "card",
    "WriteCard": "card",
    "ReloadPin1": "card",
    "ReloadPin2": "card",
    "UnblockPin1": "card",
    "UnblockPin2": "card",
    "DoDebit1": "card",
    "DoDebit2": "card",
    "LibraryReply": "warnings",
    "AskOpen": "keys algorithm number region",
    "PsamOpened": "handle number serial atr kind levels",
    "Transmit": "handle",
    "PsamAnswer": "",
    "TransmitMany": "handle go_on",
    "PsamAnswers": "",
    "RunScript": "handle steps results",
    "RunOnce": "keys steps results algorithm number region",
    "ScriptStep": "header references le expected",
    "ScriptReference": "at step offset length fold",
    "ScriptResult": "step offset length fold",
    "ScriptDone": "",
    "Close": "handle",
    "PsamClosed": "",
    "PsamInternalAuthenticate": "card address",
    "PsamExternalAuthenticate": "card address",
    "PurchaseTerms": "type time key_version key_algorithm",
    "PsamMakePurchase": "handle card purchase",
    "PurchaseBegun": "number warnings",
    "PsamConfirmPurchase": "handle",
    "PurchaseConfirmed": "",
    "ListMembers": "",
    "PsamMember": "name kind state number sessions waiting turns failures keys",
    "PsamMembers": "members",
    "EnrolWithCode": "code",
    "Enrolled": "",
    "RenewCertificate": "",
    "ListTerminals": "offset search state",
    "TerminalList": "total",
    "ShowTerminal": "code",
    "TerminalReport": "last_seen last_source authentications failures",
    "StopTerminal": "code state reason",
    "ListIssuedPsams": "offset search state",
    "IssuedPsams": "total",
    "ShowIssuedPsam": "number",
    "ShownPsam": "next_number wrong_mac2",
    "LosePsam": "number reason",
    "IssuedPsam": "",
    "ListAuthorities": "",
    "AuthorityList": "",
    "AuthorityReport": "kind",
    "AskSeal": "",
    "SealState": "sealed store_id tier generation threshold given public_key keepers",
    "GiveShare": "",
    "ForgetShares": "",
    "RequestOfficerChallenge": "",
    "OfficerChallenge": "store_id seconds",
    "OfficerCommand": "domain officer",
    "CommandDone": "",
    "SealNow": "reason",
    "Done": "",
    "ProposalReport": (
        "proposal_id domain action note state proposed_by proposed_at expires_at decided_by decided_at"
        " components waiting_for"
    ),
    "ProposalOutcome": "proposal",
    "ProposalList": "proposals total",
    "Propose": "note lifetime",
    "Approve": "proposal_id",
    "Reject": "proposal_id",
    "ListProposals": "all offset",
    "ShowProposal": "proposal_id",
    "EnterComponent": "proposal_id number kcv",
    "Take": "proposal_id",
    "Taken": "salt",
    "ConfirmShare": "proposal_id",
    "ListKeys": "offset",
    "StoredKeys": "keys total",
    "StoredKey": "key_id header is_gone",
    "ListOfficers": "",
    "Officers": "officers",
    "OfficerReport": "domain officer roles public_key is_retired",
    "TakeBackup": "offset",
    "BackupPart": "total",
}
MASKED: Final = {("CardIdentity", "card_id")}

# The nouns that the pipeline puts into a log line itself.
LOG_NOUNS: Final = frozenset(
    str.split("event level timestamp method status detail connection terminal exc_info exception")
)


def bare(kind: types.Type) -> types.Type:
    """Return a field's type without what it says for logs and manuals."""
    while isinstance(kind, types.Metadata):
        kind = kind.type
    return kind


def fields_of(message: type[Struct]) -> tuple[types.Field, ...]:
    info = types.type_info(message)
    assert isinstance(info, types.StructType)
    return info.fields


def within(message: type[Struct]) -> Iterator[type[Struct]]:
    """Yield a message's type and those of the messages in it."""
    yield message
    for field in fields_of(message):
        kind = bare(field.type)
        if isinstance(kind, types.VarTupleType):
            kind = bare(kind.item_type)
        if isinstance(kind, types.StructType):
            yield from within(kind.cls)


ROWS: Final = list(TABLE.values())
MESSAGES: Final = sorted(
    {inner for row in ROWS for side in (row.request, row.response) for inner in within(side)},
    key=lambda message: message.__name__,
)

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.method)
every_batch = pytest.mark.parametrize("row", BATCHES.values(), ids=lambda row: row.method)
every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
every_example = pytest.mark.parametrize(
    ("row", "side"),
    [(row, side) for row in ROWS for side in ("request", "response")],
    ids=lambda part: part.method if isinstance(part, Command) else part,
)


def side_of(row: Command, side: str) -> type[Struct]:
    return row.request if side == "request" else row.response


def decode(octets: bytes, message: type[Struct]) -> Any:
    """Read a message as both sides do: MessagePack first, then the types."""
    return msgspec.convert(msgpack.unpackb(octets, use_list=True), message, builtin_types=(bytes,))


def built(kind: types.Type, value: Any, *, is_earlier: bool = False) -> Any:
    """Make a message of its fields' values by name, as the golden file has them.

    An earlier example has no value for a field that was appended since: that field has its default.
    """
    match bare(kind):
        case types.StructType(cls=message, fields=fields):
            wanted = {field.name for field in fields if field.required or not is_earlier}
            assert wanted <= value.keys() <= {field.name for field in fields}
            return message(
                **{
                    f.name: built(f.type, value[f.name], is_earlier=is_earlier)
                    for f in fields
                    if f.name in value
                }
            )
        case types.VarTupleType(item_type=item):
            return tuple(built(item, part, is_earlier=is_earlier) for part in value)
        case types.DictType(value_type=item):
            return {name: built(item, part, is_earlier=is_earlier) for name, part in value.items()}
        case types.EnumType(cls=enumeration):
            return enumeration(value)
        case types.BytesType():
            return bytes.fromhex(value.removeprefix("hex:"))
    return value


# --- the table


def test_every_row_has_a_handler_and_every_handler_a_row() -> None:
    signed = {row.request for row in ROWS if row.role is Role.OFFICER}
    assert BY_REQUEST.keys() == {row.request for row in ROWS}
    # What needs a signature can be reached in its envelope only: HANDLERS must not know it.
    assert OFFICERS_HANDLERS.keys() == signed == {row.request for row in OFFICERS.values()}
    assert HANDLERS.keys() == BY_REQUEST.keys() - signed


@every_row
def test_what_is_slow_is_asynchronous_and_nothing_else_is(row: Command) -> None:
    # The tick cannot await; and what it need not wait for should not cost a task.
    handlers = OFFICERS_HANDLERS if row.role is Role.OFFICER else HANDLERS
    assert inspect.iscoroutinefunction(handlers[row.request]) == (row.cost is Cost.SLOW)


@every_row
def test_a_row_is_well_formed(row: Command) -> None:
    assert TABLE[row.method] is row
    family, dot, verb = row.method.partition(".")
    allowed = set(string.ascii_lowercase + string.digits + "_")
    assert dot
    assert family
    assert verb
    assert set(family + verb) <= allowed
    assert row.family == family
    assert len(row.method + BATCH_SUFFIX) <= MAX_METHOD
    assert not row.method.endswith(BATCH_SUFFIX)
    assert issubclass(row.request, Request)
    assert issubclass(row.response, Response)


def test_no_request_serves_two_methods() -> None:
    assert len({row.request for row in ROWS}) == len(ROWS)


def test_a_batch_is_the_method_with_a_suffix_and_never_slow() -> None:
    assert BATCHES.keys().isdisjoint(TABLE)
    assert {name.removesuffix(BATCH_SUFFIX) for name in BATCHES} == {
        row.method for row in ROWS if row.has_batch
    }
    assert all(row.cost is Cost.TICK for row in BATCHES.values())


def test_who_may_ask_what_before_a_terminal_is_authenticated() -> None:
    assert {row.method for row in ROWS if row.role is Role.ANYONE} == {
        "terminal.challenge",
        "terminal.authenticate",
        "terminal.authenticate_signature",
    }
    assert {row.method for row in ROWS if row.role is Role.OPERATOR} == {
        "daemon.status",
        "daemon.selftest",
        "psam.list",
    }
    assert [row.method for row in ROWS if row.role is Role.ENROLMENT] == ["terminal.enrol"]
    assert [row.method for row in ROWS if row.role is Role.SELF] == ["terminal.renew"]


def test_what_is_asked_on_the_administrations_socket_without_a_signature() -> None:
    # Nobody can sign while keyd is sealed, so shares need none; everything else of custody does.
    assert {row.method for row in ROWS if row.role is Role.ADMINISTRATION} == {
        "seal.status",
        "seal.give_share",
        "seal.forget_shares",
        "officer.challenge",
        "officer.command",
    }
    custody = {"seal", "officer", "proposal", "component", "share", "key", "backup", "authority"}
    assert {row.family for row in OFFICERS.values()} <= custody | {"terminal", "psam"}
    assert {row.role for row in ROWS if row.family in custody} == {
        Role.ADMINISTRATION,
        Role.OFFICER,
    }
    # All of it is slow: it waits for the store, and the tick waits for nobody.
    assert all(row.cost is Cost.SLOW for row in ROWS if row.family in custody)
    assert not [row for row in ROWS if row.family in custody and row.has_batch]


def test_everything_is_audited_but_what_uses_no_key() -> None:
    assert {row.method for row in ROWS if not row.audited} == {
        "daemon.status",
        "daemon.random",
        "terminal.challenge",
        "psam.list",
    }


# --- what logs may say


@every_message
def test_every_field_says_what_logs_may_say_of_it(message: type[Struct]) -> None:
    for field in fields_of(message):
        assert isinstance(field.type, types.Metadata), f"{field.name} does not say"
        extra = field.type.extra
        assert extra is not None
        assert extra.get("log") in {"show", "mask", "hide"}, f"{field.name} does not say"
        schema = field.type.extra_json_schema
        assert schema is not None
        assert schema.get("description"), f"{field.name} is not described in the manual"


@every_message
def test_no_field_is_shown_by_accident(message: type[Struct]) -> None:
    rules = log_rules(message)
    assert [name for name, rule in rules.items() if rule == "show"] == (
        SHOWN[message.__name__].split()
    )
    masked = {(message.__name__, name) for name, rule in rules.items() if rule == "mask"}
    assert masked <= MASKED


def test_the_list_of_shown_fields_is_of_today() -> None:
    assert SHOWN.keys() == {message.__name__ for message in MESSAGES}


@every_example
def test_no_logged_field_takes_the_place_of_a_logs_own_noun(row: Command, side: str) -> None:
    kind = types.type_info(side_of(row, side))
    message = built(kind, GOLDEN[row.method][side]["fields"])
    # Two values for one noun would be a TypeError in the middle of a tick.
    assert LOG_NOUNS.isdisjoint(describe(message))


@every_message
def test_every_message_says_what_it_is(message: type[Struct]) -> None:
    first = (inspect.getdoc(message) or "").partition("\n")[0]
    assert first.endswith((".", ":"))
    assert "array_like" not in first, "this is msgspec's own docstring"


# --- golden bytes


def test_every_message_has_golden_bytes() -> None:
    assert GOLDEN.keys() == TABLE.keys()
    assert all(example.keys() == {"request", "response"} for example in GOLDEN.values())


@every_example
def test_a_message_has_its_golden_bytes_and_reads_them(row: Command, side: str) -> None:
    example, kind = GOLDEN[row.method][side], types.type_info(side_of(row, side))
    message = built(kind, example["fields"])
    assert encode(message).hex().upper() == example["wire"]
    assert decode(bytes.fromhex(example["wire"]), side_of(row, side)) == message


@every_example
def test_the_bytes_of_an_earlier_keyd_still_mean_what_they_meant(row: Command, side: str) -> None:
    # Who does not know an appended field leaves it out, and is understood as before.
    for earlier in GOLDEN[row.method][side].get("earlier", ()):
        kind = types.type_info(side_of(row, side))
        message = built(kind, earlier["fields"], is_earlier=True)
        assert decode(bytes.fromhex(earlier["wire"]), side_of(row, side)) == message
        assert len(encode(message)) > len(bytes.fromhex(earlier["wire"]))


def test_cards_of_an_earlier_keyd_are_of_the_current_key_version() -> None:
    # Of the psam family there is no earlier keyd.
    identified = [
        name
        for name, of in GOLDEN.items()
        if "card" in of["request"]["fields"] and not name.startswith("psam.")
    ]
    assert len(identified) == 20
    for method in identified:
        (earlier,) = GOLDEN[method]["request"]["earlier"]
        request = decode(bytes.fromhex(earlier["wire"]), TABLE[method].request)
        assert request.card.key_version == 0


@every_row
def test_no_two_fields_of_an_example_could_change_places(row: Command) -> None:
    # Equal neighbours would let a reordering pass.
    for side in ("request", "response"):
        parts = msgpack.unpackb(bytes.fromhex(GOLDEN[row.method][side]["wire"]))
        seen = [repr(part) for part in parts if part not in (["REGION_MISMATCH"], True)]
        assert len(seen) == len(set(seen))


# --- generated messages


def values(kind: types.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for everything that a field's type lets through."""
    match bare(kind):
        case types.StructType(cls=message):
            return messages(message)
        case types.BytesType(min_length=shortest, max_length=longest):
            return st.binary(min_size=shortest or 0, max_size=300 if longest is None else longest)
        case types.IntType(ge=least, le=most):
            return st.integers(least, most) if most is not None else st.integers(0, 2**63)
        case types.StrType(pattern=str(pattern)):
            return st.from_regex(pattern)
        case types.StrType(max_length=longest):
            return st.text(max_size=min(longest or 40, 40))
        case types.BoolType():
            return st.booleans()
        case types.EnumType(cls=enumeration):
            return st.sampled_from(enumeration)
        case types.VarTupleType(item_type=item, min_length=shortest):
            return st.lists(values(item), min_size=shortest or 0, max_size=3).map(tuple)
        case types.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case other:
            raise AssertionError(f"there is no strategy for {other}")


def messages(message: type[Struct]) -> st.SearchStrategy[Any]:
    return st.builds(message, **{field.name: values(field.type) for field in fields_of(message)})


@every_example
@settings(max_examples=15)
@given(data=st.data())
def test_every_message_round_trips(row: Command, side: str, data: st.DataObject) -> None:
    message = data.draw(messages(side_of(row, side)))
    octets = encode(message)
    read = decode(octets, side_of(row, side))
    assert read == message
    assert encode(read) == octets


@every_row
def test_an_older_clients_request_without_the_fields_appended_since_is_read(row: Command) -> None:
    example = GOLDEN[row.method]["request"]
    params = msgpack.unpackb(bytes.fromhex(example["wire"]))
    fields = fields_of(row.request)
    required = sum(field.required for field in fields)
    assert all(field.required for field in fields[:required]), "defaults come last"
    for length in range(required, len(fields) + 1):
        message = msgspec.convert(params[:length], row.request, builtin_types=(bytes,))
        for field in fields[length:]:
            assert getattr(message, field.name) == field.default


# --- what does not fit


def refused(params: Any, message: type[Struct]) -> str:
    with pytest.raises(msgspec.ValidationError) as refusal:
        msgspec.convert(params, message, builtin_types=(bytes,))
    return str(refusal.value)


def places(kind: types.Type, value: Any) -> Iterator[tuple[tuple[int, ...], types.Type, Any]]:
    """Yield path, type and value of every field of a message as it is on the wire, nested ones included."""
    inner = bare(kind)
    if isinstance(inner, types.StructType):
        for index, (field, part) in enumerate(zip(inner.fields, value, strict=True)):
            yield (index,), bare(field.type), part
            for path, *rest in places(field.type, part):
                yield (index, *path), rest[0], rest[1]
    elif isinstance(inner, types.VarTupleType):
        for index, part in enumerate(value):
            for path, *rest in places(inner.item_type, part):
                yield (index, *path), rest[0], rest[1]


def changed(params: list[Any], path: tuple[int, ...], value: Any) -> list[Any]:
    copy = list(params)
    if len(path) == 1:
        copy[path[0]] = value
    else:
        copy[path[0]] = changed(params[path[0]], path[1:], value)
    return copy


def on_wire(row: Command, side: str) -> list[Any]:
    return cast("list[Any]", msgpack.unpackb(bytes.fromhex(GOLDEN[row.method][side]["wire"])))


@every_example
def test_text_in_place_of_bytes_is_refused(row: Command, side: str) -> None:
    # msgspec would otherwise take base64, and a client that sends hex would be misread instead of refused.
    params, message = on_wire(row, side), side_of(row, side)
    for path, kind, value in places(types.type_info(message), params):
        if isinstance(kind, types.BytesType):
            for text in (base64.b64encode(value).decode(), value.hex(), value.hex().upper()):
                refused(changed(params, path, text), message)


@every_row
def test_a_wrong_type_is_refused(row: Command) -> None:
    params = on_wire(row, "request")
    right = {
        types.BytesType: {"bytes"},
        types.IntType: {"int"},
        types.EnumType: {"int"},
        types.StrType: {"text"},
        types.BoolType: {"bool"},
        types.StructType: set[str](),
        # An empty one may be right.
        types.VarTupleType: {"array"},
    }
    wrong: dict[str, Any] = {
        "nil": None,
        "bool": True,
        "int": 1,
        "float": 1.5,
        "whole float": 1.0,
        "text": "1",
        "bytes": b"1",
        "array": [],
        "map": {},
        "deep": [[[[[]]]]],
    }
    for path, kind, _ in places(types.type_info(row.request), params):
        for name, value in wrong.items():
            if name not in right[type(kind)]:
                refused(changed(params, path, value), row.request)


@every_row
def test_a_length_beside_the_right_one_is_refused(row: Command) -> None:
    params = on_wire(row, "request")
    for path, kind, value in places(types.type_info(row.request), params):
        if isinstance(kind, types.BytesType):
            if kind.min_length:
                refused(changed(params, path, bytes(kind.min_length - 1)), row.request)
            assert kind.max_length is not None, "a request's bytes are bounded"
            refused(changed(params, path, bytes(kind.max_length + 1)), row.request)
        elif isinstance(kind, types.IntType):
            assert kind.ge is not None
            assert kind.le is not None
            refused(changed(params, path, kind.ge - 1), row.request)
            refused(changed(params, path, kind.le + 1), row.request)
        elif isinstance(kind, types.VarTupleType):
            assert kind.max_length is not None, "a request's arrays are bounded"
            refused(changed(params, path, [value[0]] * (kind.max_length + 1)), row.request)
            if kind.min_length:
                refused(changed(params, path, []), row.request)
        elif isinstance(kind, types.StrType):
            refused(changed(params, path, "1" * 513), row.request)
            if kind.pattern is not None:
                assert kind.pattern.startswith(r"\A")
                assert kind.pattern.endswith(r"\Z")
                for text in (value + "\n", "\n" + value, "", value + " ", "１２３４５６"):
                    refused(changed(params, path, text), row.request)


@every_row
def test_a_request_takes_no_field_that_keyd_does_not_know(row: Command) -> None:
    params = on_wire(row, "request")
    refused([*params, None], row.request)
    refused({"0": params}, row.request)
    for path, kind, value in places(types.type_info(row.request), params):
        if isinstance(kind, types.StructType):
            refused(changed(params, path, [*value, None]), row.request)


@every_row
def test_a_response_takes_fields_that_a_newer_keyd_appended(row: Command) -> None:
    result = on_wire(row, "response")
    known = msgspec.convert(result, row.response, builtin_types=(bytes,))
    newer = [*result, "new", [1]]
    for path, kind, value in places(types.type_info(row.response), result):
        if isinstance(kind, types.StructType):
            newer = changed(newer, path, [*value, "new"])
    assert msgspec.convert(newer, row.response, builtin_types=(bytes,)) == known


# --- sizes


def largest(kind: types.Type) -> Any:
    """Return the longest value of a type, as it is on the wire."""
    match bare(kind):
        case types.StructType(fields=fields):
            return [largest(field.type) for field in fields]
        case types.BytesType(max_length=longest):
            return bytes(longest or 260)
        case types.IntType(le=most):
            return most or 2**32
        case types.StrType(pattern=str(pattern)):
            return "1" * (16 if "16" in pattern else 32)
        case types.StrType():
            return "1" * 40
        case types.BoolType():
            return True
        case types.EnumType():
            return 3
        case types.VarTupleType(item_type=item):
            return [largest(item)]
        case other:
            raise AssertionError(f"{other} is not expected here")


@every_batch
def test_a_full_batch_of_the_longest_requests_fits_into_a_message(row: Command) -> None:
    params = largest(types.type_info(row.request))
    if row.method == "card.secure_message":
        # Full commands do not all fit; a record of 150 bytes, longer than any on the card, does.
        params[4] = bytes(150)
    batch = encode((0, 2**32 - 1, row.method + BATCH_SUFFIX, [[params] * MAX_BATCH]))
    assert len(batch) <= MAX_MESSAGE


@every_batch
def test_the_answer_to_a_full_batch_fits_into_an_answer(row: Command) -> None:
    items = [[None, largest(types.type_info(row.response))]] * MAX_BATCH
    assert len(answer_bytes(2**32 - 1, items)) <= MAX_ANSWER
    refusals = [[(404, "ALGORITHM_NOT_SUPPORTED", "卡" * 80), None]] * MAX_BATCH
    assert len(answer_bytes(2**32 - 1, refusals)) <= MAX_ANSWER


def test_the_largest_status_fits_into_an_answer() -> None:
    key = KeyReport(
        addresses=(0xFFFF,) * 16,
        name="N" * 32,
        set=3,
        algorithm="3DES",
        levels=3,
        kcv=bytes(3),
        key_id=bytes(16),
        domain=max(Domain, key=len),
        tier=max(Tier, key=len),
        use=max(Use, key=len),
        version=0xFFFF,
        state=max(KeyState, key=len),
    )
    state = DaemonState(
        version="100.100.100",
        state="serving",
        synthetic_keys=False,
        algorithms=("3DES", "DES", "SM4"),
        sm2="libcrypto",
        selftest=(SelftestReport("n" * 60, passed=False, detail="d" * 200),) * 40,
        keys=(key,) * (155 * 3),
        counters={f"counter_{number}": 2**63 for number in range(50)},
    )
    assert len(answer_bytes(1, state)) <= MAX_ANSWER
