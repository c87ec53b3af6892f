"""The format of key blocks is what docs/key-blocks.md says, and what the vectors say stays so for ever.

The vectors were computed without keyd. The document's tables are compared with the code field by field, so that
whoever changes a field has to change the document and to add a vector.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import pytest
from msgspec import inspect as types

from keyd.crypto.algorithms import IN_SOFTWARE, Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.keys.block import (
    BLOCK_FORMAT,
    MAX_HEADER_BYTES,
    NONCE_BYTES,
    KeyBlock,
    KeyHeader,
    make_block,
    open_block,
    read_header,
)

if TYPE_CHECKING:
    import enum
    from collections.abc import Sequence

HERE: Final = Path(__file__).parent
DOCUMENT: Final = (HERE.parents[1] / "docs" / "key-blocks.md").read_text(encoding="utf-8")
CASES: Final = cast(
    "list[dict[str, Any]]",
    json.loads((HERE.parent / "vectors" / "key_block.json").read_text(encoding="utf-8"))["cases"],
)
OPENING: Final = [case for case in CASES if case["must"] == "opens"]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
every_opening = pytest.mark.parametrize("case", OPENING, ids=lambda case: case["name"])

info: Final = types.type_info(KeyHeader)
assert isinstance(info, types.StructType)
FIELDS: Final = info.fields

# Earlier blocks lack fields that were appended since; keyd reads them and writes all fields that it knows.
WHOLE: Final = [case for case in OPENING if len(case["fields"]) == len(FIELDS)]


def kek_of(case: dict[str, Any]) -> SecretKey:
    return SecretKey.load(Algorithm.SM4, bytes.fromhex(case["kek"]))


def block_of(case: dict[str, Any]) -> KeyBlock:
    return msgspec.msgpack.decode(bytes.fromhex(case["block"]), type=KeyBlock)


def plain(value: Any) -> Any:
    """Write a field's value as the vectors do."""
    if isinstance(value, bytes):
        return "hex:" + value.hex().upper()
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


# --- the vectors


@every_case
def test_a_block_opens_or_is_refused_as_its_vector_says(case: dict[str, Any]) -> None:
    if case["must"] == "refused":
        with pytest.raises(KeyNotAuthentic):
            open_block(kek_of(case), block_of(case))
        return
    assert case["must"] == "opens"
    header, key = open_block(kek_of(case), block_of(case))
    expected = SecretKey.load(header.algorithm, bytes.fromhex(case["key"]))
    assert key.kcv().hex().upper() == header.kcv.hex().upper() == case["kcv"]
    assert key.encrypt(bytes(range(32))) == expected.encrypt(bytes(range(32)))


@every_case
def test_a_block_is_the_array_of_its_three_parts(case: dict[str, Any]) -> None:
    parts = KeyBlock(*(bytes.fromhex(case[name]) for name in ("header", "nonce", "wrapped")))
    assert block_of(case) == parts
    assert msgspec.msgpack.encode(parts).hex().upper() == case["block"]


@every_opening
def test_a_header_reads_as_the_vector_names_its_fields(case: dict[str, Any]) -> None:
    header = read_header(bytes.fromhex(case["header"]))
    for field in FIELDS:
        value = msgspec.to_builtins(getattr(header, field.name), builtin_types=(bytes,))
        # A field that was appended since has its default.
        assert plain(value) == case["fields"].get(field.name, field.default), field.name


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["name"])
def test_keyd_makes_the_bytes_of_the_vector(case: dict[str, Any]) -> None:
    key = SecretKey.load(Algorithm(case["fields"]["algorithm"]), bytes.fromhex(case["key"]))
    header = read_header(bytes.fromhex(case["header"]))
    made = make_block(kek_of(case), header, key, bytes.fromhex(case["nonce"]))
    assert msgspec.msgpack.encode(made).hex().upper() == case["block"]


def test_the_vectors_have_every_field_and_every_algorithm() -> None:
    # Who appends a field adds vectors that have it, and leaves the others as they are.
    assert {case["fields"]["algorithm"] for case in WHOLE} == {a.value for a in IN_SOFTWARE}
    for fields in (case["fields"] for case in WHOLE):
        assert list(fields) == [field.name for field in FIELDS]
        for field in FIELDS:
            assert fields[field.name] != field.default, f"{field.name} could be missing"
    assert any(
        list(case["fields"]) == [field.name for field in FIELDS if field.required]
        for case in OPENING
    )


# --- the document


def bare(kind: types.Type) -> types.Type:
    return kind.type if isinstance(kind, types.Metadata) else kind


def type_of(kind: types.Type) -> str:
    match bare(kind):
        case types.IntType():
            return "uint"
        case types.BoolType():
            return "bool"
        case types.BytesType():
            return "bin"
        case types.StrType() | types.EnumType():
            return "str"
        case types.VarTupleType(item_type=item):
            return f"array of {type_of(item)}"
        case other:
            raise AssertionError(f"{other} is not expected here")


def limits_of(kind: types.Type) -> str:
    match bare(kind):
        case types.IntType(ge=least, le=most):
            if least == most:
                return f"{least}"
            return f"{least} or more" if most is None else f"{least} to {most}"
        case types.BoolType():
            return ""
        case types.BytesType(min_length=least, max_length=most):
            assert least == most
            return f"{least} bytes"
        case types.StrType(min_length=least, max_length=most):
            return f"{least} to {most} characters"
        case types.EnumType(cls=values):
            return f"{values.__name__}, below"
        case types.VarTupleType(item_type=item, min_length=least, max_length=most):
            return f"{least or 0} to {most}, each: {limits_of(item)}"
        case other:
            raise AssertionError(f"{other} is not expected here")


def default_of(field: types.Field) -> str:
    if field.required:
        return ""
    return f"`{json.dumps(field.default)}`"


def enumerations() -> dict[str, type[enum.Enum]]:
    found: dict[str, type[enum.Enum]] = {}
    for field in FIELDS:
        kind = bare(field.type)
        if isinstance(kind, types.VarTupleType):
            kind = bare(kind.item_type)
        if isinstance(kind, types.EnumType):
            found[kind.cls.__name__] = kind.cls
    return found


def table_under(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading of the document, cell by cell."""
    _, found, rest = DOCUMENT.partition(f"\n## {heading}\n")
    assert found, f"there is no heading {heading}"
    lines = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[0].splitlines()]
    return rows[2:]


def test_the_document_lists_the_headers_fields_as_they_are() -> None:
    rows = table_under("Header")
    assert [row[:5] for row in rows] == [
        [
            str(number),
            f"`{field.name}`",
            type_of(field.type),
            limits_of(field.type),
            default_of(field),
        ]
        for number, field in enumerate(FIELDS)
    ]
    for row in rows:
        assert row[5].endswith("."), f"{row[1]} is not explained"


def test_the_document_lists_every_value_that_a_field_may_have() -> None:
    listed = {row[0]: row[1] for row in table_under("Values")}
    assert listed == {
        name: ", ".join(f"`{member.value}`" for member in values)
        for name, values in enumerations().items()
    }


def test_the_document_takes_the_first_vector_apart_byte_by_byte() -> None:
    rows = table_under("An example, byte by byte")
    octets = [bytes.fromhex(row[1]) for row in rows]
    assert b"".join(octets).hex().upper() == CASES[0]["block"]
    at = 0
    for row, part in zip(rows, octets, strict=True):
        assert int(row[0]) == at
        at += len(part)
    # One line for the block's array, one for the header's two prefixes each, and one for each value.
    values: Sequence[str] = [row[2] for row in rows if row[2].startswith("`")]
    assert values == [f"`{field.name}`" for field in FIELDS]


def test_the_document_states_the_limits_of_the_code() -> None:
    for said in (
        f"format {BLOCK_FORMAT}",
        f"at most {MAX_HEADER_BYTES} bytes",
        f"{NONCE_BYTES} bytes",
        "tag of 16 bytes",
    ):
        assert said in DOCUMENT
    # And they are so: ciphertext as long as the key, and the tag.
    for case in OPENING:
        assert len(case["wrapped"]) == len(case["key"]) + 2 * 16
