"""Every status but OK is one Refusal, its number never changes, and it crosses the wire as itself."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.custody.bodies import StoreNotOurs
from keyd.errors import (
    REFUSALS,
    Internal,
    LocalProtocolError,
    NotAllowed,
    Refusal,
    RemoteProtocolError,
    Status,
    StoreUnavailable,
    refusal_from_wire,
)
from keyd.protocol.connection import refusal_from_untrusted, refusal_on_wire
from keyd.store.database import OutcomeUnknown

# The numbers on the wire, written a second time: a line may be added here, and none may change.
NUMBERS: Final = {
    "OK": 0,
    "MALFORMED": 100,
    "METHOD_UNKNOWN": 101,
    "BAD_PARAMETER": 102,
    "TOO_MANY_IN_FLIGHT": 103,
    "TOO_LARGE": 104,
    "TIMED_OUT": 105,
    "NOT_AUTHENTICATED": 200,
    "TERMINAL_NOT_AUTHENTIC": 201,
    "CHALLENGE_EXPIRED": 202,
    "OFFICER_NOT_AUTHENTIC": 203,
    "ROLE_MISSING": 204,
    "NOT_ALLOWED": 205,
    "RATE_LIMITED": 206,
    "QUOTA_EXCEEDED": 207,
    "CARD_LIMIT": 208,
    "ENROLMENT_REFUSED": 209,
    "KEY_NOT_FOUND": 300,
    "KEY_USAGE": 301,
    "ALGORITHM_NOT_SUPPORTED": 302,
    "KEY_STATE": 303,
    "KEY_EXHAUSTED": 304,
    "KEY_NOT_VALID_NOW": 305,
    "KEY_VERSION": 306,
    "DOMAIN_CROSSED": 307,
    "EXPORT_REFUSED": 308,
    "KEY_BLOCK_REFUSED": 309,
    "CARD_NOT_AUTHENTIC": 400,
    "CARD_DATA_INCONSISTENT": 401,
    "MAC_NOT_AUTHENTIC": 402,
    "TAC_NOT_AUTHENTIC": 403,
    "COMMAND_NOT_ALLOWED": 404,
    "INTERNAL": 500,
    "DRAINING": 501,
    "OVERLOADED": 502,
    "KEY_FILE_UNUSABLE": 503,
    "SELFTEST_FAILED": 504,
    "AUDIT_UNAVAILABLE": 505,
    "SEALED": 506,
    "STORE_UNAVAILABLE": 507,
    "PROPOSAL_NOT_FOUND": 600,
    "PROPOSAL_CLOSED": 601,
    "OWN_PROPOSAL": 602,
    "SHARE_REFUSED": 603,
    "COMPONENT_REFUSED": 604,
    "CHANGED_MEANWHILE": 605,
    "NOT_SEALED": 606,
    "TERMINAL_NOT_FOUND": 607,
    "TERMINAL_STATE": 608,
    "PSAM_NOT_FOUND": 609,
    "PSAM_STATE": 610,
    "POOL_EXHAUSTED": 700,
    "PSAM_GONE": 701,
    "PSAM_NOT_OPEN": 702,
    "PSAM_DECLINED": 703,
}

every_refusal = pytest.mark.parametrize(
    "refusal", REFUSALS.values(), ids=lambda refusal: refusal.__name__
)


def test_the_numbers_are_the_frozen_ones() -> None:
    assert {status.name: status.value for status in Status} == NUMBERS


def test_no_number_serves_twice() -> None:
    # An IntEnum takes a second name for a number as an alias, and says nothing.
    assert len(Status.__members__) == len(set(Status.__members__.values())) == len(Status)


def test_every_status_but_ok_is_one_refusal() -> None:
    classes = Refusal.__subclasses__()
    statuses = [refusal.status for refusal in classes]
    assert len(statuses) == len(set(statuses))
    assert set(statuses) == set(Status) - {Status.OK} == set(REFUSALS)
    # Who refines a refusal has its parent's status, and is lost on the wire. These two are for callers within keyd:
    # what a client can do about any of the three is to look, and to ask again later.
    deeper = {deeper for refusal in classes for deeper in refusal.__subclasses__()}
    assert deeper == {StoreNotOurs, OutcomeUnknown}
    assert all(issubclass(refined, StoreUnavailable) for refined in deeper)


@every_refusal
def test_without_a_detail_it_says_what_it_is(refusal: type[Refusal]) -> None:
    sentence = refusal().detail
    assert sentence == refusal.__doc__ == str(refusal())
    assert sentence.endswith(".")
    assert refusal("").detail == sentence


@every_refusal
def test_it_crosses_the_wire_as_itself(refusal: type[Refusal]) -> None:
    there = list(refusal_on_wire(refusal("why")))
    assert there == [refusal.status.value, refusal.status.name, "why"]
    assert type(there[0]) is int
    back = refusal_from_untrusted(there)
    assert type(back) is refusal
    assert back.detail == "why"
    assert list(refusal_on_wire(back)) == there


@given(detail=st.text(min_size=1))
def test_any_detail_crosses_the_wire(detail: str) -> None:
    for refusal in REFUSALS.values():
        back = refusal_from_wire(refusal.status, refusal.status.name, detail)
        assert back.args == refusal(detail).args


@given(status=st.integers(), name=st.text(max_size=20), detail=st.text(max_size=20))
def test_a_status_of_a_newer_keyd_keeps_its_name_and_detail(
    status: int, name: str, detail: str
) -> None:
    refusal = refusal_from_wire(status, name, detail)
    if status in set(REFUSALS):
        assert refusal.status == status
        return
    assert type(refusal) is Internal
    assert refusal.detail == f"{name} ({status}): {detail}"


def test_the_line_that_denied_does_not_cross_the_wire() -> None:
    # Only log and journal say where the policy decided.
    denied = NotAllowed(line=42)
    assert denied.line == 42
    assert "42" not in str(list(refusal_on_wire(denied)))


def test_an_error_that_says_ok_is_none_of_ours() -> None:
    refusal = refusal_from_wire(0, "OK", "done")
    assert type(refusal) is Internal
    assert "OK (0)" in refusal.detail


def test_the_two_protocol_errors_are_no_refusals() -> None:
    # A refusal is a foreseen no; these end a connection, or are a bug.
    for error in (RemoteProtocolError, LocalProtocolError):
        assert not issubclass(error, Refusal)
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
