"""A share survives paper: what is printed reads back however it is typed, and every slip of the pen is found."""

from __future__ import annotations

import copy
import pickle
import random
import re
import traceback
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import Share, decode_share, encode_share, share_commitment
from keyd.crypto.sm3 import sm3
from keyd.errors import Refusal, ShareRefused, Status

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PREFIX: Final = "KEYD-SHARE-1-"
SALT: Final = bytes(range(16))

SHARE: Final = Share(
    store=bytes.fromhex("0A1B2C3D"),
    generation=7,
    number=3,
    threshold=2,
    value=bytes.fromhex("F1E2D3C4B5A697887766554433221100"),
)

shares = st.builds(
    Share,
    store=st.binary(min_size=4, max_size=4),
    generation=st.integers(0, 2**32 - 1),
    number=st.integers(1, 255),
    threshold=st.integers(1, 255),
    value=st.binary(min_size=16, max_size=16),
)


def fields(share: Share) -> tuple[object, ...]:
    return share.store, share.generation, share.number, share.threshold, share.value


def refusal(text: str) -> Refusal | None:
    try:
        decode_share(text)
    except Refusal as refused:
        return refused
    return None


def expected(share: Share) -> str:
    """Write a share as the module's text says, another way: bit by bit."""
    octets = share.store + share.generation.to_bytes(4, "big")
    octets += bytes([share.number, share.threshold]) + share.value
    octets += sm3(b"KEYD-SHARE-1" + octets)[:4]
    bits = "".join(f"{octet:08b}" for octet in octets)
    text = "".join(ALPHABET[int(bits[at : at + 5], 2)] for at in range(0, 240, 5))
    return PREFIX + "-".join(re.findall("....", text))


# --- there and back


@given(share=shares)
def test_what_is_printed_reads_back(share: Share) -> None:
    text = encode_share(share)
    assert text == expected(share)
    assert re.fullmatch(r"KEYD-SHARE-1(-[0-9A-HJKMNP-TV-Z]{4}){12}", text)
    assert fields(decode_share(text)) == fields(share)


def full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) if character > " " else "　" for character in text)


@given(share=shares, seed=st.integers(0, 2**32))
def test_however_it_is_typed_it_reads_back(share: Share, seed: int) -> None:
    text, draw = encode_share(share), random.Random(seed)  # noqa: S311 - how a test types
    looks_like = {"0": "0Oo", "1": "1IiLl"}
    sloppy = "".join(
        draw.choice([*looks_like.get(character, character), character.lower()])
        + draw.choice(["", "", " ", "-", "\n"])
        for character in text
    )
    for typed in (
        sloppy,
        text.lower(),
        text.replace("-", ""),
        text.replace("-", " "),
        f"  {text}\r\n",
        text.replace("-", "–"),
        full_width(text),
        full_width(text.replace("-", " ").lower()),
    ):
        assert fields(decode_share(typed)) == fields(share)


# --- every slip is found


def body_places(text: str) -> list[int]:
    return [at for at in range(len(PREFIX), len(text)) if text[at] != "-"]


@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_character_is_always_found(seed: int) -> None:
    """All 48 places, all 31 other characters."""
    value = random.Random(seed).randbytes(16)  # noqa: S311 - a share of a test
    text = encode_share(Share(b"TEST", seed, 1 + seed, 3, value))
    count = 0
    for at in body_places(text):
        for character in set(ALPHABET) - {text[at]}:
            count += 1
            with pytest.raises(ShareRefused, match=r"\Athe checksum"):
                decode_share(text[:at] + character + text[at + 1 :])
    assert count == 48 * 31


@pytest.mark.parametrize("seed", range(50))
def test_two_that_changed_places_are_always_found(seed: int) -> None:
    """All pairs, neighbours or not."""
    value = random.Random(seed).randbytes(16)  # noqa: S311 - a share of a test
    text = encode_share(Share(b"TEST", seed, 1 + seed, 3, value))
    places = body_places(text)
    for first in places:
        for second in places:
            if text[first] != text[second]:
                swapped = list(text)
                swapped[first], swapped[second] = text[second], text[first]
                with pytest.raises(ShareRefused, match=r"\Athe checksum"):
                    decode_share("".join(swapped))


def test_two_groups_that_changed_places_are_found() -> None:
    groups = encode_share(SHARE).split("-")
    for at in range(3, 14):
        swapped = [*groups[:at], groups[at + 1], groups[at], *groups[at + 2 :]]
        with pytest.raises(ShareRefused, match=r"\Athe checksum"):
            decode_share("-".join(swapped))


TEXT: Final = encode_share(SHARE)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "prefix"),
        ("KEYD", "prefix"),
        (TEXT.replace("KEYD", "KEYE"), "prefix"),
        (TEXT.replace("SHARE-1", "SHARE-2"), "prefix"),
        (TEXT[5:], "prefix"),
        (TEXT.removeprefix(PREFIX), "prefix"),
        ("x" + TEXT, "prefix"),
        (PREFIX, "length"),
        (TEXT[:-1], "length"),
        (TEXT + "0", "length"),
        (TEXT + TEXT, "length"),
        (TEXT + " " * 300, "length"),
        ("-" * 257, "length"),
        (TEXT[:-1] + "U", "character"),
        (TEXT[:-1] + "u", "character"),
        (TEXT[:-1] + "*", "character"),
        (TEXT[:-1] + "\0", "character"),
        (TEXT[:-1] + "ß", "character"),
        (TEXT[:-1] + "ı", "character"),
        (TEXT[:-1] + "٣", "character"),
        (TEXT[:-1] + "\ud800", "character"),
    ],
)
def test_the_sentence_names_the_part_that_is_wrong(text: str, part: str) -> None:
    with pytest.raises(ShareRefused, match=rf"\A(the|a) {part} of the share is wrong") as refused:
        decode_share(text)
    assert refused.value.status is Status.SHARE_REFUSED


def test_no_sentence_quotes_the_share_or_says_where() -> None:
    draw = random.Random(1)  # noqa: S311 - slips of a test
    sentences = set()
    for _ in range(500):
        at = draw.randrange(len(TEXT))
        changed = TEXT[:at] + draw.choice(ALPHABET + "U*-") + TEXT[at + 1 :]
        refused = refusal(changed)
        if refused is not None:
            assert refused.__cause__ is None
            sentences.add(refused.detail)
    # One sentence for each part, wherever in it the slip was.
    assert len(sentences) == 4
    for sentence in sentences:
        for group in TEXT.split("-")[3:]:
            assert group not in sentence


def with_fields(octets: bytes) -> str:
    """Write any fields with their right checksum, as somebody might who means no good."""
    number = int.from_bytes(octets + sm3(b"KEYD-SHARE-1" + octets)[:4], "big")
    return PREFIX + "".join(ALPHABET[number >> place & 31] for place in range(235, -1, -5))


@pytest.mark.parametrize("place", [8, 9])
def test_numbers_begin_with_one(place: int) -> None:
    octets = bytearray(b"\1" * 26)
    assert decode_share(with_fields(bytes(octets))).number == 1
    octets[place] = 0
    with pytest.raises(ShareRefused, match=r"\Athe number"):
        decode_share(with_fields(bytes(octets)))


@given(text=st.one_of(st.text(), st.text(alphabet=ALPHABET + "-OIL ", max_size=100)))
def test_any_text_is_a_share_or_is_refused(text: str) -> None:
    for attempt in (text, PREFIX + text):
        refused = refusal(attempt)
        assert refused is None or type(refused) is ShareRefused


# --- a share is a secret


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "{!r}".format, lambda share: f"{[share]}"]
)
def test_its_text_shows_its_number_and_no_more(show: Callable[[Share], str]) -> None:
    assert show(SHARE).strip("[]") == "<Share 3>"


@pytest.mark.parametrize(
    "attempt", [pickle.dumps, copy.copy, copy.deepcopy, hash, vars, lambda share: share == share]
)
def test_it_is_not_carried_away_or_compared(attempt: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refused:
        attempt(SHARE)
    assert SHARE.value.hex() not in "".join(traceback.format_exception(refused.value)).lower()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("store", b"123"),
        ("store", b"12345"),
        ("generation", -1),
        ("generation", 2**32),
        ("number", 0),
        ("number", 256),
        ("threshold", 0),
        ("threshold", 256),
        ("value", bytes(15)),
        ("value", bytes(17)),
    ],
)
def test_what_is_no_share_is_not_made(name: str, wrong: Any) -> None:
    right: dict[str, Any] = {
        part: getattr(SHARE, part)
        for part in ("store", "generation", "number", "threshold", "value")
    }
    with pytest.raises(ValueError, match=r"."):
        Share(**right | {name: wrong})


# --- commitments


def test_a_commitment_is_of_one_share_and_one_salt() -> None:
    commitments = {share_commitment(SHARE, SALT), share_commitment(SHARE, bytes(16))}
    for name, other in (
        ("store", b"1234"),
        ("generation", 8),
        ("number", 4),
        ("threshold", 3),
        ("value", bytes(16)),
    ):
        parts = {
            part: getattr(SHARE, part)
            for part in ("store", "generation", "number", "threshold", "value")
        }
        commitments.add(share_commitment(Share(**parts | {name: other}), SALT))
    assert {len(commitment) for commitment in commitments} == {16}
    assert len(commitments) == 7
    assert share_commitment(decode_share(encode_share(SHARE)), SALT) == share_commitment(
        SHARE, SALT
    )


def test_a_commitment_never_changes() -> None:
    """Stores keep them: the answer of today is the answer of every later version."""
    octets = bytes.fromhex("0A1B2C3D 00000007 03 02 F1E2D3C4B5A697887766554433221100")
    digest = sm3(b"keyd share commitment 1" + SALT + octets)
    assert share_commitment(SHARE, SALT) == digest[:16]


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_salt_has_16_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        share_commitment(SHARE, bytes(length))


# --- all of it together


def test_a_key_goes_through_envelopes_and_comes_back() -> None:
    key = SecretKey.generate(Algorithm.SM4)
    envelopes = [
        encode_share(Share(b"KEYD", 1, number, 3, value))
        for number, value in enumerate(key.split(3, 5), 1)
    ]
    typed = [decode_share(text.lower()) for text in (envelopes[4], envelopes[0], envelopes[2])]
    combined = SecretKey.combine(Algorithm.SM4, [(share.number, share.value) for share in typed])
    assert combined.kcv() == key.kcv()
