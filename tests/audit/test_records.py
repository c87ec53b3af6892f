"""The bytes: what is encoded is decoded equal, and stays the bytes that it was."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.audit import records
from keyd.audit.records import (
    NO_LINK,
    Header,
    HeaderTorn,
    NotAJournal,
    Use,
    decode_event,
    decode_frame,
    decode_header,
    decode_uses,
    encode_definition,
    encode_event,
    encode_frame,
    encode_header,
    encode_use,
    link_of,
)
from keyd.crypto.sm3 import sm3

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
uses = st.builds(Use, u16, u16, u32, u32, u32, st.binary(min_size=16, max_size=16))
plain: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
)
events = st.dictionaries(st.text(), plain | st.lists(plain), max_size=5).map(
    lambda fields: fields | {"event": "x"}
)


def test_a_use_record_has_these_32_bytes() -> None:
    card = bytes.fromhex("510100") + bytes(13)
    assert encode_use(Use(3, 401, 0x01020304, 5, 6, card)).hex() == (
        "0003019101020304000000050000000651010000000000000000000000000000"
    )


def test_a_link_is_sm3() -> None:
    assert link_of(b"abc") == sm3(b"abc")


def test_the_link_is_the_same_without_hashlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashlib.algorithms_available", set())
    assert records._linker()(b"abc") == sm3(b"abc")


@given(
    st.lists(uses, max_size=20),
    st.lists(events, max_size=5),
    u64,
    u64,
    st.binary(min_size=32, max_size=32),
)
def test_a_frame_comes_back_equal(
    written: list[Use], told: list[dict[str, Any]], first: int, time_ns: int, link: bytes
) -> None:
    data, own = encode_frame(
        link,
        first,
        time_ns,
        b"".join(map(encode_use, written)),
        b"".join(map(encode_event, told)),
    )
    frame = decode_frame(data, 0, link, first)
    assert list(decode_uses(frame.uses)) == written
    assert [decode_event(event) for event in frame.events] == told
    assert (frame.time_ns, frame.link, frame.length) == (time_ns, own, len(data))
    assert frame.next == first + len(written) + len(told)


@given(st.text(min_size=1, max_size=60), u32, u64, u64, st.binary(min_size=32, max_size=32))
def test_a_header_comes_back_equal(
    instance: str, segment: int, first: int, made_ns: int, previous: bytes
) -> None:
    header = Header(instance, segment, first, made_ns, previous)
    data = encode_header(header)
    assert decode_header(data + b"more") == (header, len(data), data[-32:])
    for length in range(len(data)):
        with pytest.raises(HeaderTorn):
            decode_header(data[:length])


def test_every_changed_byte_of_a_header_is_found() -> None:
    data = encode_header(Header("keyd-1", 1, 1, 5, NO_LINK))
    for offset in range(len(data)):
        for flip in range(1, 256):
            changed = bytearray(data)
            changed[offset] ^= flip
            with pytest.raises(NotAJournal) as caught:
                decode_header(bytes(changed))
            # It must not pass for a crash.
            assert not isinstance(caught.value, HeaderTorn)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for decode in (
        decode_event,
        decode_header,
        lambda data: decode_frame(data, 0, NO_LINK, 1),
    ):
        with suppress(NotAJournal):
            decode(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(NotAJournal):
        decode_event(b"\x91" * 60_000)


def test_a_definition_is_an_event_of_its_own() -> None:
    fields = decode_event(encode_definition("key", 7, "SOCIAL/0170/v1")[4:])
    assert fields == {"define": "key", "number": 7, "name": "SOCIAL/0170/v1"}


class Message(msgspec.Struct):
    """Like those of the protocol."""

    challenge: bytes


CANARY = bytes.fromhex("C0FFEE00C0FFEE00")


@pytest.mark.parametrize(
    "value",
    [
        Message(CANARY),
        {"nested": CANARY},
        (1, 2),
        1.5,
        bytearray(CANARY),
        [[CANARY]],
    ],
    ids=["message", "map", "tuple", "float", "bytearray", "nested list"],
)
def test_what_nobody_chose_is_not_taken(value: object) -> None:
    """A message or a nested map could bring a secret along; there is no way to put one into an event."""
    with pytest.raises(TypeError) as caught:
        encode_event({"event": "x", "value": value})
    assert CANARY.hex() not in str(caught.value).lower()


def test_a_message_is_no_event_either() -> None:
    message = Message(CANARY)
    with pytest.raises((TypeError, AttributeError)):
        encode_event(message)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        encode_event({"no": "name"})


def test_no_function_of_the_journal_takes_a_message() -> None:
    """The rule that keeps secrets out: nothing in keyd.audit knows the messages at all."""
    import keyd.audit.checkpoints
    import keyd.audit.folder
    import keyd.audit.journal
    import keyd.audit.names
    import keyd.audit.query
    import keyd.audit.reopening
    import keyd.audit.segment
    import keyd.audit.unsynced
    import keyd.audit.verify

    for module in (
        keyd.audit.checkpoints,
        keyd.audit.folder,
        keyd.audit.journal,
        keyd.audit.names,
        keyd.audit.query,
        keyd.audit.records,
        keyd.audit.reopening,
        keyd.audit.segment,
        keyd.audit.unsynced,
        keyd.audit.verify,
    ):
        assert not any("keyd.protocol" in str(vars(module).get(n, "")) for n in vars(module))


def test_what_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_event({"event": "x" * 70_000})
    with pytest.raises(ValueError, match="at most"):
        encode_frame(NO_LINK, 1, 1, bytes(16 * 1024 * 1024), b"")
    with pytest.raises(ValueError, match="whole"):
        encode_frame(NO_LINK, 1, 1, bytes(31), b"")
    with pytest.raises(ValueError, match="16 bytes"):
        encode_use(Use(1, 1, 1, 1, 1, bytes(15)))


def test_a_signed_but_wrong_event_is_refused() -> None:
    for fields in ({"define": "nothing", "number": 1, "name": "x"}, {"define": "key"}, {"a": 1}):
        with pytest.raises(NotAJournal):
            decode_event(msgspec.msgpack.encode(fields))
