"""Whatever bytes come, the pump answers what Python would have answered, or hands them up as they came, in order."""

from __future__ import annotations

import itertools
import random
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd.keys.block import Use
from keyd.keys.ring import MAX_CITY_KEYS
from keyd.keys.sam import purpose
from keyd.pump import METHODS
from keyd.pump._pump import Pump
from tests.crypto.native.conftest import run
from tests.pump.conftest import (
    ATR_PREFIX,
    CARD,
    CHALLENGE,
    DES,
    EXTERNAL_AUTHENTICATE,
    FACTOR,
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    IRK,
    REGIONS,
    RKSSSE,
    SM4,
    SSF33,
    HolderCard,
    Stand,
    cold,
    cryptogram,
    forged,
    hot,
    identity,
    messages,
    msgid_of,
    packed,
    require_one_semantics,
    ring,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# pump.h's PUMP_READ_BYTES, PUMP_MAX_EVENTS and MAX_ROUTES.
READ_BYTES: Final = 64 * 1024
MAX_EVENTS: Final = 1024
MAX_ROUTES: Final = 8192

# Every width that a msgid can have on the wire, and the edges between them.
MSGIDS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF)

every_method = pytest.mark.parametrize("method", METHODS)

# One stand for many examples is what the daemon is, too.
many = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def is_answered(stand: Stand, request: bytes) -> bool:
    """Whether the pump answers a request; if not, it must have handed up every byte."""
    count, handed = require_one_semantics(stand, request)
    assert (count, handed) in ((1, b""), (0, request))
    return count == 1


# What is the pump's ---------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("msgid", MSGIDS)
def test_a_hot_request_is_answered_as_python_answers_it(
    stand: Stand, method: str, msgid: int
) -> None:
    assert is_answered(stand, hot(method, msgid))


@every_method
@pytest.mark.parametrize("has_own_region", [True, False])
@pytest.mark.parametrize("is_atr", [True, False])
@pytest.mark.parametrize("optional", [(), (SM4,), (SM4, 3), (DES,), (DES, 3), (DES, 2), (DES, 1)])
@pytest.mark.parametrize("region", REGIONS)
def test_every_form_is_learnt_and_then_answered(
    stand: Stand,
    method: str,
    region: str,
    optional: tuple[int, ...],
    is_atr: bool,
    has_own_region: bool,
) -> None:
    if optional == (DES, 1) and method == EXTERNAL_AUTHENTICATE:
        address = 0x0176  # a first generation's permission key
    else:
        address = RKSSSE if method == EXTERNAL_AUTHENTICATE else IRK
    card = HolderCard(region, has_own_region=has_own_region)
    for given_address in {address, None if method != EXTERNAL_AUTHENTICATE else address}:
        request = hot(method, 300, card, optional, given_address, is_atr=is_atr)
        is_good = stand.python(request).answers[0][5:6] == b"\xc0"
        stand.teach(request)
        assert is_answered(stand, request) is is_good


@pytest.mark.parametrize("form", [b"\xcc\x05", b"\xcd\x00\x05", b"\xce\x00\x00\x00\x05"])
@every_method
def test_a_msgid_in_a_longer_form_than_it_needs_is_the_same_msgid(
    stand: Stand, method: str, form: bytes
) -> None:
    request = hot(method, 5)
    assert request[2:3] == b"\x05"
    assert is_answered(stand, request[:2] + form + request[3:])


@pytest.mark.parametrize(
    "form", [b"\xcf" + bytes(7) + b"\x05", b"\xd0\x05", b"\xd1\0\x05", b"\xd2\0\0\0\x05"]
)
def test_a_number_in_a_form_that_is_not_the_pumps_is_pythons(stand: Stand, form: bytes) -> None:
    request = hot(INTERNAL_CRYPTOGRAM, 5)
    assert not is_answered(stand, request[:2] + form + request[3:])


# What is Python's -----------------------------------------------------------------------------------------


def not_the_pumps() -> Iterator[tuple[str, bytes]]:
    """Requests that are nearly hot and good."""
    card, short = identity(), [CARD.card_id, CARD.historical[:-1]]
    other_serial = [CARD.card_id, HolderCard(serial=b"\0\0\0\1").historical]
    other_rid = [CARD.card_id[:4] + b"\0" + CARD.card_id[5:], CARD.historical]
    right = cryptogram()
    yield "forged", forged()
    yield "cold", cold()
    yield "notification", packed([2, INTERNAL_CRYPTOGRAM, [card, FACTOR, CHALLENGE]])
    for name, params in {
        "no digits": [identity(HolderCard("51010A")), FACTOR, CHALLENGE],
        "other serial": [other_serial, FACTOR, CHALLENGE],
        "other application": [other_rid, FACTOR, CHALLENGE],
        "short historical": [short, FACTOR, CHALLENGE],
        "other ATR": [[CARD.card_id, b"\x3b\x6e" + CARD.atr[2:]], FACTOR, CHALLENGE],
        "other interface": [[CARD.card_id, b"\x3b\x6d\0\1" + CARD.historical], FACTOR, CHALLENGE],
        "short factor": [card, FACTOR[:4], CHALLENGE],
        "long factor": [card, FACTOR * 2, CHALLENGE],
        "short challenge": [card, FACTOR, CHALLENGE[:7]],
        "text": [card, "12345678", CHALLENGE],
        "SSF33": [[*card, SSF33], FACTOR, CHALLENGE],
        "unknown algorithm": [[*card, 0], FACTOR, CHALLENGE],
        "algorithm 259": [[*card, 256 + SM4], FACTOR, CHALLENGE],
        "unknown generation": [[*card, SM4, 4], FACTOR, CHALLENGE],
        "generation 259": [[*card, SM4, 256 + 3], FACTOR, CHALLENGE],
        "SM4 of generation 2": [[*card, SM4, 2], FACTOR, CHALLENGE],
        "key version": [[*card, SM4, 3, 1], FACTOR, CHALLENGE],
        "unknown key version": [[*card, SM4, 3, 2], FACTOR, CHALLENGE],
        "unknown card field": [[*card, SM4, 3, 0, 0], FACTOR, CHALLENGE],
        "unknown field": [card, FACTOR, CHALLENGE, IRK, 0],
        "unknown address": [card, FACTOR, CHALLENGE, 0xFFFF],
        "address of 17 bits": [card, FACTOR, CHALLENGE, 0x10000 + IRK],
        "wrong usage": [card, FACTOR, CHALLENGE, RKSSSE],
        "address that is no number": [card, FACTOR, CHALLENGE, None],
        "nothing": [],
    }.items():
        yield name, packed([0, 1, INTERNAL_CRYPTOGRAM, params])
    yield (
        "missing cryptogram",
        packed([0, 1, INTERNAL_AUTHENTICATE, [card, FACTOR, CHALLENGE]]),
    )
    yield (
        "short cryptogram",
        packed([0, 1, INTERNAL_AUTHENTICATE, [card, FACTOR, CHALLENGE, right[:7]]]),
    )
    yield "external without address", packed([0, 1, EXTERNAL_AUTHENTICATE, [card, FACTOR]])
    yield (
        "external of an IRK",
        packed([0, 1, EXTERNAL_AUTHENTICATE, [card, IRK, FACTOR, CHALLENGE]]),
    )
    yield "longer method", packed([0, 1, INTERNAL_CRYPTOGRAM + "s", [card, FACTOR, CHALLENGE]])
    yield "batch", packed([0, 1, INTERNAL_CRYPTOGRAM + "_batch", [[[card, FACTOR, CHALLENGE]]]])
    yield "no key id", packed([0, 1, EXTERNAL_AUTHENTICATE, [card, 0x004F, FACTOR, CHALLENGE]])


NOT_THE_PUMPS: Final = dict(not_the_pumps())


@pytest.mark.parametrize("name", NOT_THE_PUMPS)
def test_what_is_not_exactly_hot_and_good_is_handed_up(stand: Stand, name: str) -> None:
    request = NOT_THE_PUMPS[name]
    stand.teach(request)
    assert not is_answered(stand, request)


@every_method
def test_every_bit_flipped_is_answered_as_python_answers_it_or_handed_up(
    stand: Stand, method: str
) -> None:
    request = hot(method, 7, CARD, (SM4, 3), RKSSSE if method == EXTERNAL_AUTHENTICATE else IRK)
    for at, bit in itertools.product(range(len(request)), range(8)):
        flipped = bytearray(request)
        flipped[at] ^= 1 << bit
        count, handed = require_one_semantics(stand, bytes(flipped))
        assert count == 1 or handed == bytes(flipped)


@every_method
def test_every_prefix_is_handed_up(stand: Stand, method: str) -> None:
    request = hot(method, 70_000)
    for length in range(1, len(request)):
        assert require_one_semantics(stand, request[:length]) == (0, request[:length])


@every_method
def test_a_request_that_ends_within_the_next_leaves_that_to_python(
    stand: Stand, method: str
) -> None:
    request = hot(method)
    for length in range(len(request)):
        assert require_one_semantics(stand, request + request[:length]) == (1, request[:length])


SNIPPETS: Final = (
    *(hot(method, msgid) for method in METHODS for msgid in (1, 200, 70_000)),
    *(hot(method, 3, HolderCard(has_own_region=False), is_atr=True) for method in METHODS),
    *NOT_THE_PUMPS.values(),
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Good, bad and mutilated requests behind one another."""
    parts = []
    for part in draw(st.lists(st.sampled_from(SNIPPETS), max_size=12)):
        mutant = bytearray(part)
        for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
            mutant[draw(st.integers(0, len(mutant) - 1))] = draw(st.integers(0, 255))
        parts.append(bytes(mutant))
    return b"".join(parts)


@many
@given(data=conversations() | st.binary(max_size=300))
def test_any_bytes_are_answered_as_python_answers_them(stand: Stand, data: bytes) -> None:
    if data:
        require_one_semantics(stand, data)


@many
@given(st.lists(st.sampled_from(("good", "forged")), max_size=20), st.binary(max_size=40))
def test_what_is_handed_up_comes_in_its_order_and_byte_for_byte(
    stand: Stand, kinds: list[str], tail: bytes
) -> None:
    requests = [
        hot(METHODS[at % 3], at) if kind == "good" else forged(at) for at, kind in enumerate(kinds)
    ]
    refused = b"".join(
        request for request, kind in zip(requests, kinds, strict=True) if kind == "forged"
    )
    # What is behind the first bytes that are not hot is Python's, however good.
    rest = b"\x93" + tail + hot(INTERNAL_CRYPTOGRAM)
    theirs, _ours = stand.open()
    theirs.sendall(b"".join(requests) + rest)
    ((_fd, _mask, _is_reset, data, _unsent),), count = stand.tick()
    assert data == refused + rest
    assert count == kinds.count("good")
    if count:
        numbers = [msgid_of(answer) for answer in messages(theirs.recv(1 << 16))]
        assert numbers == [at for at, kind in enumerate(kinds) if kind == "good"]
    stand.epoll.unregister(_ours)


# Who is served --------------------------------------------------------------------------------------------


def test_only_the_admitted_are_read(stand: Stand) -> None:
    theirs, ours = stand.open(is_admitted=False)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    assert stand.tick() == ([(ours.fileno(), select.EPOLLIN, False, b"", b"")], 0)
    stand.pump.admit(ours.fileno())
    assert stand.tick() == ([], 1)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    stand.pump.dismiss(ours.fileno())
    # Level-triggered: it stays Python's until Python has read it.
    for _ in range(3):
        assert stand.tick() == ([(ours.fileno(), select.EPOLLIN, False, b"", b"")], 0)
    assert len(messages(theirs.recv(4096))) == 1
    assert ours.recv(4096) == hot(INTERNAL_CRYPTOGRAM)


def test_a_descriptor_that_nobody_was_admitted_with_can_be_dismissed(stand: Stand) -> None:
    for fd in (-1, 0, 10_000_000):
        stand.pump.dismiss(fd)
        assert stand.pump.served_at(fd) == 0
    with pytest.raises(MemoryError):
        stand.pump.admit(-1)


def test_a_connection_that_inherits_a_descriptor_inherits_nothing_else(stand: Stand) -> None:
    theirs, ours = stand.open()
    fd = ours.fileno()
    stand.pump.dismiss(fd)
    ours.close()
    theirs.close()
    theirs, ours = stand.open(is_admitted=False)
    while ours.fileno() != fd:
        theirs, ours = stand.open(is_admitted=False)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    assert stand.tick() == ([(fd, select.EPOLLIN, False, b"", b"")], 0)


def test_when_a_connection_was_served_survives_its_dismissal(stand: Stand) -> None:
    # Else a connection that was served a moment ago, and had to wait for its peer to read, would be idle.
    theirs, ours = stand.open()
    assert stand.pump.served_at(ours.fileno()) == 0
    before = time.monotonic()
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    assert stand.tick() == ([], 1)
    stand.pump.dismiss(ours.fileno())
    stand.pump.admit(ours.fileno())
    assert before <= stand.pump.served_at(ours.fileno()) <= time.monotonic()


# Keys -----------------------------------------------------------------------------------------------------


def test_what_python_has_not_answered_well_is_not_known(stand: Stand) -> None:
    request = hot(INTERNAL_CRYPTOGRAM, 1, HolderCard("440100"))
    assert not is_answered(stand, request)
    stand.teach(request)
    assert is_answered(stand, request)
    assert not is_answered(stand, hot(INTERNAL_AUTHENTICATE, 1, HolderCard("440100")))


def test_a_forged_card_teaches_nothing(stand: Stand) -> None:
    card = HolderCard("440200")
    stand.teach(forged(1, card))
    assert not is_answered(stand, hot(INTERNAL_AUTHENTICATE, 1, card))


def test_after_a_failed_selftest_nothing_is_learnt(stand: Stand) -> None:
    request = hot(INTERNAL_CRYPTOGRAM, 1, HolderCard("440300"))
    verdict = stand.python(request)
    stand.services.has_failed_selftest = True
    stand.teach(request)
    stand.services.has_failed_selftest = False
    assert verdict.counts.total() == 1
    assert not is_answered(stand, request)


def test_what_was_forgotten_is_python_s_until_it_is_learnt_again(stand: Stand) -> None:
    request = hot(INTERNAL_CRYPTOGRAM)
    assert is_answered(stand, request)
    stand.pump.forget()
    assert stand.pump.last_request[1] == b""
    assert not is_answered(stand, request)
    stand.teach(request)
    assert is_answered(stand, request)


def test_the_sampled_request_is_the_last_that_was_answered_well(stand: Stand) -> None:
    theirs, ours = stand.open()
    good = hot(EXTERNAL_AUTHENTICATE, 9)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM, 8) + good + forged(10))
    _rests, count = stand.tick()
    assert count == 2
    assert stand.pump.last_request == (ours.fileno(), good)


def learn_anew(stand: Stand, region: str) -> Any:
    """Teach the pump a city key that nobody else holds; return its handle."""
    ring()._kernel.forget()
    request = hot(INTERNAL_CRYPTOGRAM, 1, HolderCard(region))
    stand.teach(request)
    assert is_answered(stand, request)
    return ring()._kernel


def test_a_key_that_was_freed_under_it_is_python_s_question(stand: Stand) -> None:
    kernel = learn_anew(stand, "440400")
    request = hot(INTERNAL_CRYPTOGRAM, 1, HolderCard("440400"))
    kernel.forget()
    # Another key may have the cell by now: a handle is never taken for its successor.
    for region in ("440500", "440600"):
        stand.python(hot(INTERNAL_CRYPTOGRAM, 1, HolderCard(region)))
    theirs, _ours = stand.open()
    theirs.sendall(request * 3)
    ((_fd, _mask, _is_reset, data, _unsent),), count = stand.tick()
    assert (count, data) == (0, request * 3)
    stand.teach(request)
    theirs.sendall(request)
    assert stand.tick() == ([], 1)


def test_a_key_that_is_gone_spoils_no_other_request(stand: Stand) -> None:
    kernel = learn_anew(stand, "440700")
    kernel.forget()
    stand.teach(hot(INTERNAL_CRYPTOGRAM))
    gone, good = hot(INTERNAL_CRYPTOGRAM, 1, HolderCard("440700")), hot(INTERNAL_CRYPTOGRAM, 2)
    theirs, _ours = stand.open()
    theirs.sendall((gone + good) * 100)
    ((_fd, _mask, _is_reset, data, _unsent),), count = stand.tick()
    assert (count, data) == (100, gone * 100)
    assert {msgid_of(answer) for answer in messages(theirs.recv(1 << 16))} == {2}


def test_after_a_wipe_of_all_keys_and_in_a_fork_everything_is_handed_up() -> None:
    program = """
        import os
        from keyd.crypto.native import _core
        from tests.pump.conftest import Stand, hot, INTERNAL_CRYPTOGRAM
        stand = Stand()
        request = hot(INTERNAL_CRYPTOGRAM)
        stand.teach(request)
        def ask():
            theirs, ours = stand.open()
            theirs.sendall(request)
            rests, count = stand.tick()
            stand.epoll.unregister(ours)
            return count, b"".join(rest[3] for rest in rests)
        assert ask() == (1, b"")
        child = os.fork()
        if child == 0:
            os._exit(0 if ask() == (0, request) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert ask() == (1, b"")
        _core.wipe_all()
        assert ask() == (0, request)
    """
    done = run(program)
    assert done.returncode == 0, done.stderr


def test_a_table_that_is_full_of_one_peers_regions_does_not_shut_out_the_rest(stand: Stand) -> None:
    city = ring().maybe_city(IRK, SM4, "510100", purpose(Use.INTERNAL))  # type: ignore[arg-type]
    assert city is not None
    room = 0
    for number in range(MAX_ROUTES):
        room += stand.pump.learn(1, 3, 0xABCD, SM4, number.to_bytes(3, "big"), city, 0)
    assert room == MAX_ROUTES - 1
    assert room > MAX_CITY_KEYS
    # All had to give way once, and what is asked for is known again as soon as it has been asked.
    for request in (hot(INTERNAL_CRYPTOGRAM), hot(INTERNAL_CRYPTOGRAM, 1, HolderCard("450100"))):
        stand.teach(request)
        assert is_answered(stand, request)


@pytest.mark.parametrize(
    "place",
    [
        (3, 3, IRK, SM4, b"\x51\x01\x00", 0),
        (-1, 3, IRK, SM4, b"\x51\x01\x00", 0),
        (1, 3, IRK, SM4, b"\x51\x01", 0),
        (1, 3, IRK, SM4, b"\x51\x01\x00\x00", 0),
        (1, 256 + 3, IRK, SM4, b"\x51\x01\x00", 0),
        (1, 3, 0x10000 + IRK, SM4, b"\x51\x01\x00", 0),
        (1, 3, IRK, 256 + SM4, b"\x51\x01\x00", 0),
        (1, 3, IRK, SM4, b"\x51\x01\x00", 256),
    ],
)
def test_a_place_that_cannot_be_is_no_other_place(
    stand: Stand, place: tuple[int, int, int, int, bytes, int]
) -> None:
    city = ring().maybe_city(IRK, SM4, "510100", purpose(Use.INTERNAL))  # type: ignore[arg-type]
    assert city is not None
    stand.pump.forget()
    with pytest.raises((ValueError, OverflowError)):
        stand.pump.learn(*place[:5], city, place[5])
    assert not is_answered(stand, hot(INTERNAL_CRYPTOGRAM))


# Ends, and answers that do not leave ----------------------------------------------------------------------


def test_the_end_of_a_line_is_python_s_and_comes_after_the_answers(stand: Stand) -> None:
    theirs, ours = stand.open()
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    theirs.shutdown(socket.SHUT_WR)
    assert stand.tick() == ([], 1)
    assert stand.tick() == ([(ours.fileno(), select.EPOLLIN, False, b"", b"")], 0)
    assert len(messages(theirs.recv(4096))) == 1


def test_a_line_that_is_closed_at_both_ends_is_python_s(stand: Stand) -> None:
    theirs, ours = stand.open()
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM))
    theirs.close()
    ((fd, mask, is_reset, data, unsent),), count = stand.tick()
    # It has a hang-up beside it, so nothing has been read.
    assert (fd, is_reset, data, unsent, count) == (ours.fileno(), False, b"", b"", 0)
    assert mask == select.EPOLLIN | select.EPOLLHUP
    assert ours.recv(4096) == hot(INTERNAL_CRYPTOGRAM)


def tcp_pair(stand: Stand) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    for sock in (theirs, ours):
        stand._opened.callback(sock.close)
    ours.setblocking(False)
    stand.epoll.register(ours.fileno(), select.EPOLLIN)
    stand.pump.admit(ours.fileno())
    return theirs, ours


def test_a_reset_disturbs_nobody_else(stand: Stand) -> None:
    gone, ours = tcp_pair(stand)
    bystander, _ = tcp_pair(stand)
    gone.sendall(hot(INTERNAL_CRYPTOGRAM))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    bystander.sendall(hot(INTERNAL_CRYPTOGRAM))
    time.sleep(0.05)
    ((fd, mask, is_reset, _data, _unsent),), count = stand.tick()
    assert fd == ours.fileno()
    assert is_reset or mask & (select.EPOLLHUP | select.EPOLLERR)
    assert count == 1
    assert len(messages(bystander.recv(4096))) == 1


def test_a_line_that_takes_no_more_answers_is_reset_and_kills_nobody(stand: Stand) -> None:
    # Our side can no longer write: EPIPE. Python ignores the signal; the fuzzer in C would not survive it.
    theirs, ours = stand.open()
    ours.shutdown(socket.SHUT_WR)
    theirs.sendall(hot(INTERNAL_CRYPTOGRAM) + b"\xc1")
    ((fd, mask, is_reset, _data, _unsent),), _count = stand.tick()
    assert (fd, mask, is_reset) == (ours.fileno(), 0, True)


def test_answers_that_do_not_leave_are_handed_up_in_order(stand: Stand) -> None:
    theirs, ours = stand.open()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    requests = b"".join(hot(EXTERNAL_AUTHENTICATE, at) for at in range(500))
    expected = stand.python(requests + forged(500))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.sendall(requests + forged(500))
    ((fd, mask, is_reset, data, unsent),), count = stand.tick()
    assert (fd, mask, is_reset, data, count) == (ours.fileno(), 0, False, forged(500), 500)
    assert unsent
    arrived = b""
    theirs.settimeout(0.2)
    while len(arrived) + len(unsent) < sum(map(len, expected.answers[:500])):
        arrived += theirs.recv(1 << 16)
    assert messages(arrived + unsent) == expected.answers[:500]


# Many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 200])
def test_every_one_of_many_connections_gets_its_own_answers(stand: Stand, count: int) -> None:
    draw = random.Random(count)  # noqa: S311 - the choice of requests
    lines = [stand.open() for _ in range(count)]
    expected: dict[int, list[bytes]] = {}
    left: dict[int, bytes] = {}
    for number, (theirs, ours) in enumerate(lines):
        good = [
            hot(draw.choice(METHODS), number * 1000 + at) for at in range(draw.randrange(1, 40))
        ]
        bad = forged(number * 1000 + 999) if number % 3 == 0 else b""
        tail = hot(INTERNAL_CRYPTOGRAM)[: draw.randrange(50)] if number % 5 == 0 else b""
        theirs.sendall(good[0] + bad + b"".join(good[1:]) + tail)
        expected[ours.fileno()] = stand.python(b"".join(good)).answers
        left[ours.fileno()] = bad + tail
    rests, answered = stand.tick()
    assert answered == sum(map(len, expected.values()))
    assert {rest[0]: rest[3] for rest in rests} == {fd: data for fd, data in left.items() if data}
    for theirs, ours in lines:
        assert messages(theirs.recv(1 << 16)) == expected[ours.fileno()]


def test_more_work_than_one_part_of_a_tick_can_hold_is_all_done(stand: Stand) -> None:
    request = hot(INTERNAL_AUTHENTICATE)
    lines = [stand.open() for _ in range(70)]
    each = 0
    for theirs, ours in lines:
        for sock in (theirs, ours):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        each = READ_BYTES // len(request)
        theirs.sendall(request * each)
    rests, answered = stand.tick()
    assert rests == []
    assert answered == each * len(lines)
    good = stand.python(request).answers
    for theirs, _ in lines:
        assert messages(theirs.recv(1 << 20)) == good * each


def test_a_full_read_of_the_shortest_requests_ends_within_one(stand: Stand) -> None:
    shortest = hot(INTERNAL_CRYPTOGRAM, 0)
    assert len(shortest) >= 80
    theirs, ours = stand.open()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = shortest * 1000
    theirs.sendall(data)
    ((_fd, mask, is_reset, rest, unsent),), count = stand.tick()
    assert (mask, is_reset, unsent) == (0, False, b"")
    assert count == READ_BYTES // len(shortest)
    assert rest == shortest[: READ_BYTES % len(shortest)]
    # The remainder of the stream begins within a request: with what Python holds, the rest of it follows.
    assert rest + ours.recv(1 << 20) == shortest * (1000 - count)


def test_a_full_read_of_refused_requests_is_handed_up_whole(stand: Stand) -> None:
    theirs, _ours = stand.open()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = b"".join((forged(at % 128) if at % 7 else cold(1)) for at in range(1000))[:READ_BYTES]
    theirs.sendall(data)
    ((_fd, _mask, _is_reset, rest, _unsent),), count = stand.tick()
    assert (count, rest) == (0, data)
    data = b"".join(forged(at % 128) for at in range(1000))[:READ_BYTES]
    again, _ours = stand.open()
    again.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    again.sendall(data)
    ((_fd, _mask, _is_reset, rest, _unsent),), count = stand.tick()
    assert (count, rest) == (0, data)


def test_more_ready_connections_than_events_are_served_in_turn(stand: Stand) -> None:
    pipes = [stand.open() for _ in range(MAX_EVENTS // 4)]
    # One open description can be watched through many descriptors, which costs fewer sockets.
    epoll = select.epoll()
    pump = Pump(epoll.fileno())
    with epoll:
        copies = [ours.dup() for _, ours in pipes for _ in range(5)]
        for copy in copies:
            epoll.register(copy.fileno(), select.EPOLLIN)
        for theirs, _ in pipes:
            theirs.sendall(b"\xc1")
        seen: set[int] = set()
        for _ in range(4):
            rests, counts = pump.tick()
            assert len(rests) <= MAX_EVENTS
            assert counts == (0, 0, 0)
            seen.update(rest[0] for rest in rests)
        assert seen == {copy.fileno() for copy in copies}
        for copy in copies:
            copy.close()


def test_a_tick_without_anything_ready_has_nothing(stand: Stand) -> None:
    stand.open()
    assert stand.pump.tick() == ([], (0, 0, 0))
    assert stand.pump.compute_seconds == 0


def test_atr_and_historical_bytes_are_one_card(stand: Stand) -> None:
    # The ATR's prefix is no part of what keys are diversified by.
    assert ATR_PREFIX + CARD.historical == CARD.atr
    for method in METHODS:
        whole = stand.python(hot(method, 4, is_atr=True)).answers
        assert whole == stand.python(hot(method, 4)).answers
        assert is_answered(stand, hot(method, 4, is_atr=True))
