"""Small texts that people write in files and on command lines: each reader takes one or refuses it, in a sentence.

The first byte says which reader. A reader is a line in READERS: whatever else it raises is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from keyd.errors import BadParameter
from keyd.keys.hierarchy import region_from_digits
from keyd.policy.week import WEEK_MINUTES, offset_of, week_of
from keyd.registry.enrolment import CODE_BYTES, read_code
from keyd.registry.listing import read_csv
from keyd.registry.terminal import TerminalSpec, require_good
from tests.fuzz.mutators import mutate_bytes, mutate_text
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


class Reader(NamedTuple):
    """Something that reads texts, what it may raise, and texts that it takes."""

    read: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    examples: tuple[bytes, ...]


def _read_hours(data: bytes) -> None:
    assert 0 < week_of(data.decode("utf-8", "replace")) < 1 << WEEK_MINUTES


def _read_offset(data: bytes) -> None:
    assert abs(offset_of(data.decode("utf-8", "replace"))) < 20 * 60


def _read_region(data: bytes) -> None:
    region_from_digits(data.decode("utf-8", "replace"))


def _read_terminal(data: bytes) -> None:
    spec = msgspec.json.decode(data, type=TerminalSpec)
    require_good(spec)
    # What is good can be kept, and read again.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=TerminalSpec) == spec


_TERMINAL: Final = """{"code": "510100-0001", "organisation": "成都", "region": "510100", "roles": ["clerk"],
 "proofs": ["key-by-code", "key-by-psam"], "psam_number": "UQEAAAAB", "networks": ["10.1.2.0/24", "::1"],
 "hours": ["Mon-Fri 08:00-17:30"], "generations": [2, 3], "interfaces": ["contact"], "valid_from": 1,
 "valid_until": 2, "form": "desktop"}""".encode()

_LIST: Final = (
    b"code,organisation,region,roles,proofs,psam_number\r\n"
    b"510100-0001,Chengdu,510100,counter;hospital,key-by-psam,510100000001\r\n"
    b"510100-0002,Chengdu,510100,counter,signature,\r\n"
)


def _read_code(data: bytes) -> None:
    assert len(read_code(data.decode("utf-8", "replace"))) == CODE_BYTES


READERS: Final = (
    Reader(_read_hours, (ValueError,), (b"08:00-17:30", b"Mon-Fri,Sun 22:00-06:00")),
    Reader(_read_offset, (ValueError,), (b"+08:00", b"-11:30")),
    Reader(_read_terminal, (BadParameter, msgspec.ValidationError, ValueError), (_TERMINAL,)),
    Reader(_read_region, (BadParameter,), (b"510100", b"330106")),
    Reader(read_csv, (BadParameter,), (_LIST,)),
    Reader(_read_code, (BadParameter,), (b"000G-40R4-0M30-E209-Y",)),
)


def one_input(data: bytes) -> None:
    if not data:
        return
    reader = READERS[data[0] % len(READERS)]
    try:
        reader.read(data[1:])
    except reader.refusals as refusal:
        assert str(refusal)


_WORDS: Final = (
    *(
        "Mon-Fri",
        "Sat,Sun",
        "24:00",
        "00:00-24:00",
        "22:00-06:00",
        "+08:00",
        "10.0.0.0/8",
        "fe80::1/64",
    ),
    *('"key-by-psam"', '"signature"', '"lost"', "[]", "null", "-1", "1e400", '"\\ud800"', "٥١٠١٠٠"),
)


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    return data[:1] + mutate_text(data[1:], random, _WORDS)


def seeds() -> list[bytes]:
    return [
        bytes([number]) + text for number, reader in enumerate(READERS) for text in reader.examples
    ]


TARGET = Target(one_input, seeds, mutate, max_bytes=2048)
