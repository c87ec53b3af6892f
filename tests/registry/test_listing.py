"""Whatever is exported is read back the same, a wrong cell refuses its row and no other, and nothing is computed."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.errors import BadParameter
from keyd.registry.listing import (
    COLUMNS,
    KEPT,
    MAX_BYTES,
    MAX_CELL,
    MAX_ROWS,
    REFUSED,
    Listed,
    read_csv,
    read_spec,
    refused_csv,
    to_csv,
    to_plain,
)
from keyd.registry.terminal import (
    MAX_MOMENT,
    Form,
    Interface,
    Proof,
    Terminal,
    TerminalSpec,
    TerminalState,
    require_good,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# Synthetic, and made for these tests.
POINTS: Final = [Sm2PrivateKey.generate().public.encode() for _ in range(4)]

HEADER: Final = "code,organisation,region,roles,proofs"
GOOD: Final = "DESK-1,东城社保所,110101,counter,key-by-code"


def listed(spec: TerminalSpec, **more: Any) -> Listed:
    return Listed(Terminal(spec, TerminalState.ACTIVE, "LOCAL/li", 1, **more))


def reason(column: str, cell: str) -> str:
    """Read one row that is good but for one cell; return what is said of it."""
    cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | {column: cell}
    text = io.StringIO()
    csv.writer(text).writerows([cells.keys(), cells.values()])
    (row,) = read_csv(text.getvalue().encode()).refused
    assert (row.number, row.cells) == (2, tuple(cells.values()))
    (fault,) = row.faults
    assert fault.column == column
    return fault.reason


# Round trip -----------------------------------------------------------------------------------------------

FORMULAS: Final = "=+-@＝＋－＠"

# What a spreadsheet would compute cannot come in, and neither can what looks as if it had been quoted.
WORDS: Final = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="|"), max_size=64
).filter(lambda text: not text.startswith((*FORMULAS, *("'" + each for each in FORMULAS))))
NAMES: Final = st.from_regex(r"\A[a-z][a-z0-9-]{0,31}\Z")
NETWORKS: Final = st.sampled_from(["10.1.2.0/24", "10.0.0.1", "fd00::/8", "0.0.0.0/0", "::1"])
HOURS: Final = st.sampled_from(["08:00-17:30", "Mon-Fri 08:00-17:30", "Sat,Sun 22:00-06:00"])
MOMENTS: Final = st.integers(0, MAX_MOMENT)


def tuples(items: st.SearchStrategy[Any], least: int, most: int) -> st.SearchStrategy[Any]:
    return st.lists(items, min_size=least, max_size=most, unique=True).map(tuple)


@st.composite
def specs(draw: st.DrawFn) -> TerminalSpec:
    begin = draw(MOMENTS)
    number = draw(st.just("") | st.from_regex(r"\A[0-9]{12}\Z"))
    proofs = [proof for proof in Proof if number or proof is not Proof.KEY_BY_PSAM]
    spec = TerminalSpec(
        code=draw(st.from_regex(r"\A[0-9A-Za-z._][0-9A-Za-z._-]{0,31}\Z")),
        organisation=draw(WORDS.filter(bool)),
        region=draw(st.from_regex(r"\A[0-9]{6}\Z")),
        roles=draw(tuples(NAMES, 1, 8)),
        proofs=draw(tuples(st.sampled_from(proofs), 1, len(proofs))),
        form=draw(st.sampled_from(Form)),
        vendor=draw(WORDS),
        model=draw(WORDS),
        serial=draw(WORDS),
        psam_number=bytes.fromhex(number),
        psam_serial=draw(st.binary(max_size=10)),
        driver_version=draw(WORDS),
        generations=draw(tuples(st.integers(1, 3), 0, 3)),
        interfaces=draw(tuples(st.sampled_from(Interface), 0, 2)),
        networks=draw(tuples(NETWORKS, 0, 5)),
        hours=draw(tuples(HOURS, 0, 3)),
        valid_from=begin,
        valid_until=draw(st.just(0) | st.integers(min(begin + 1, MAX_MOMENT), MAX_MOMENT)),
        public_key=draw(st.sampled_from([b"", POINTS[0]])),
    )
    if spec.valid_until and spec.valid_until <= spec.valid_from:
        spec = replace(spec, valid_until=0)
    require_good(spec)
    return spec


@given(specs())
def test_what_is_exported_is_read_back_the_same(spec: TerminalSpec) -> None:
    reading = read_csv(to_csv([listed(spec)]))
    assert (reading.specs, reading.refused) == ((spec,), ())
    assert reading.skipped == KEPT
    # And JSON holds the same, by the same names.
    plain = json.loads(json.dumps(to_plain(listed(spec))))
    assert list(plain) == [*COLUMNS, *KEPT]
    assert bytes.fromhex(plain["psam_number"]) == spec.psam_number
    assert tuple(plain["roles"]) == spec.roles


def test_a_list_with_a_byte_order_mark_is_the_same_list() -> None:
    text = f"{HEADER}\r\n{GOOD}\r\n".encode()
    assert read_csv(b"\xef\xbb\xbf" + text) == read_csv(text)
    (spec,) = read_csv(text).specs
    assert spec == TerminalSpec(
        "DESK-1", "东城社保所", "110101", ("counter",), (Proof.KEY_BY_CODE,)
    )


def test_a_time_is_utc_wherever_the_list_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True))
        for cell in ("2027-01-01", "2027-01-01T00:00", "2027-01-01T08:00+08:00"):
            assert read_spec(cells | {"valid_from": cell}).valid_from == 1_798_761_600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_columns_stand_in_any_order_and_empty_rows_are_nothing() -> None:
    rows = [
        "organisation,code,proofs,roles,region,vendor",
        "",
        ",,,,,",
        "所,A,signature,kiosk,110101,",
    ]
    (spec,) = read_csv("\n".join(rows).encode()).specs
    assert (spec.code, spec.vendor, spec.generations) == ("A", "", (2, 3))
    # What is empty is counted: the row has the number that a spreadsheet shows.
    rows[3] = rows[3].replace("kiosk", "Kiosk")
    assert [row.number for row in read_csv("\n".join(rows).encode()).refused] == [4]


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("code", "DESK 1", "a terminal's code"),
        ("code", "D" * 33, "a terminal's code"),
        ("code", "DESK-1\n", "a terminal's code"),
        ("code", "", "it is missing"),
        ("organisation", "a|b", "none of them |"),
        ("organisation", "a\nb", "control character"),
        ("organisation", "所" * 65, "at most 64"),
        ("region", "11010", "six decimal digits"),
        ("region", "１１０１０１", "six decimal digits"),
        ("roles", "Counter", "one to eight roles"),
        ("roles", "counter; hospital", "one to eight roles"),
        ("roles", "counter,hospital", "one to eight roles"),
        ("roles", "none;", "one to eight roles"),
        ("roles", ";".join(f"r{n}" for n in range(9)), "one to eight roles"),
        ("proofs", "password", "key-by-code"),
        ("form", "Desktop", "one of desktop"),
        ("psam_number", "5.10101E+11", "12 decimal digits"),
        ("psam_number", "51010100000A", "12 decimal digits"),
        ("psam_number", "٥١٠١٠١٠٠٠٠٠١", "12 decimal digits"),
        ("psam_number", "51010100001", "12 decimal digits"),
        ("psam_serial", "ABC", "hex"),
        ("psam_serial", "AB CD", "hex"),
        ("psam_serial", "AB" * 11, "at most 20 digits"),
        ("generations", "4", "1, 2, 3"),
        ("generations", "２", "1, 2, 3"),
        ("generations", "2;", "1, 2, 3"),
        ("interfaces", "nfc", "contact or contactless"),
        ("networks", "10.1.2.3/24", "10.1.2.0/24"),
        ("networks", "none", "10.1.2.0/24"),
        ("hours", "8-17", "Mon-Fri 08:00-17:30"),
        ("hours", ";".join(f"0{n % 10}:{n}-18:00" for n in range(10, 27)), "at most 16"),
        ("valid_from", "20270101", "a time"),
        ("valid_from", "1764547200", "a time"),
        ("valid_from", "2027-02-30", "a time"),
        ("valid_from", "1969-12-31", "a time"),
        ("valid_until", "9999-12-31T23:59:59-01:00", "a time"),
        ("public_key", "04" + "00" * 64, "an SM2 public key"),
        ("public_key", "00" * 65, "an SM2 public key"),
        ("public_key", POINTS[0].hex()[:-2], "an SM2 public key"),
        ("vendor", "x" * (MAX_CELL + 1), f"at most {MAX_CELL}"),
    ],
)
def test_a_wrong_cell_is_refused_by_what_it_should_be(column: str, cell: str, said: str) -> None:
    told = reason(column, cell)
    assert said in told
    # A key may stand in a wrong place: no sentence repeats a cell.
    assert len(cell) < 4 or cell not in told


@pytest.mark.parametrize("first", FORMULAS)
def test_what_a_spreadsheet_computes_does_not_come_in_and_goes_out_quoted(first: str) -> None:
    cell = f'{first}HYPERLINK("http://x")'
    assert "compute" in reason("organisation", cell)
    assert "quoted" in reason("organisation", f"'{cell}")
    out = to_csv([listed(TerminalSpec("A", cell, "110101", ("r",), (Proof.SIGNATURE,)))])
    (row,) = list(csv.DictReader(io.StringIO(out.decode("utf-8-sig"))))
    assert row["organisation"] == f"'{cell}"
    # Not even the list of what was refused computes anything, nor does what keyd keeps.
    refused = refused_csv(read_csv(out)).decode("utf-8-sig")
    noted = to_csv(
        [listed(TerminalSpec("A", "所", "110101", ("r",), (Proof.SIGNATURE,)), reason=cell)]
    )
    raw = refused_csv(read_csv(f"{HEADER}\n{GOOD.replace('110101', first)}\n".encode())).decode(
        "utf-8-sig"
    )
    for text in (refused, noted.decode("utf-8-sig"), raw):
        cells = [each for line in csv.reader(io.StringIO(text)) for each in line]
        assert not [each for each in cells if each.startswith(tuple(FORMULAS))]


def test_one_wrong_row_refuses_itself_and_all_of_its_faults_are_told() -> None:
    rows = [
        HEADER,
        GOOD,
        "DESK-2,所,1101,Counter,key-by-code",
        "DESK-3,所,110101,counter,signature",
    ]
    reading = read_csv("\n".join(rows).encode())
    assert [spec.code for spec in reading.specs] == ["DESK-1", "DESK-3"]
    (row,) = reading.refused
    assert (row.number, [fault.column for fault in row.faults]) == (3, ["region", "roles"])


def test_of_two_rows_with_one_code_neither_is_taken() -> None:
    rows = [HEADER, GOOD, GOOD.replace("counter", "NONE"), GOOD.replace("DESK-1", "desk-1")]
    reading = read_csv("\n".join(rows).encode())
    # Codes that differ in case are two codes; a row that is wrong otherwise counts all the same.
    assert [spec.code for spec in reading.specs] == ["desk-1"]
    assert [row.number for row in reading.refused] == [2, 3]
    assert all(
        any(f.reason == "another row has the same" for f in row.faults) for row in reading.refused
    )


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("psam_number", "510101000001", "510101000001"),
        ("public_key", POINTS[0].hex(), POINTS[0].hex().upper()),
    ],
)
def test_no_two_terminals_have_one_psam_or_one_key(column: str, first: str, second: str) -> None:
    rows = [f"{HEADER},{column}", f"{GOOD},{first}", f"{GOOD.replace('DESK-1', 'B')},{second}"]
    reading = read_csv("\n".join(rows).encode())
    assert [row.faults[0].column for row in reading.refused] == [column, column]
    rows[2] = rows[2].rpartition(",")[0] + ","
    assert len(read_csv("\n".join(rows).encode()).specs) == 2


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"proofs": "key-by-psam"}, "needs the PSAM's"),
        ({"roles": "counter;counter"}, "roles name something twice"),
        ({"valid_from": "2028-01-01", "valid_until": "2027-01-01"}, "before it begins"),
    ],
)
def test_a_terminal_that_could_never_prove_itself_is_refused(
    cells: dict[str, str], said: str
) -> None:
    row = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | cells
    (refused,) = read_csv(f"{','.join(row)}\n{','.join(row.values())}".encode()).refused
    (fault,) = refused.faults
    assert (fault.column, said in fault.reason) == ("", True)
    assert "DESK-1" not in fault.reason


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the list is empty"),
        (b"\xff\xfe", "not UTF-8"),
        ("code,组织".encode("gbk"), "not UTF-8"),
        (b"code,organisation,region,roles", "no column proofs"),
        (f"{HEADER},colour".encode(), "a column 'colour'"),
        (f"{HEADER},Code".encode(), "a column 'Code'"),
        (f"{HEADER},code".encode(), "the column code twice"),
        (f'{HEADER}\nA,"x" y,110101,r,signature'.encode(), "line 2 is not CSV"),
        (f'{HEADER}\nA,"x'.encode(), "is not CSV"),
        (f"{HEADER}\nA,{'x' * 200_000},110101,r,signature".encode(), "is not CSV"),
        (b"x" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_list_is_refused_whole(data: bytes, said: str) -> None:
    with pytest.raises(BadParameter, match=said) as refusal:
        read_csv(data)
    assert len(str(refusal.value)) < 200


def test_a_row_too_many_refuses_the_list() -> None:
    rows = [HEADER, *(GOOD.replace("DESK-1", f"D{n}") for n in range(MAX_ROWS))]
    assert len(read_csv("\n".join(rows).encode()).specs) == MAX_ROWS
    with pytest.raises(BadParameter, match="at most 10000 rows"):
        read_csv("\n".join([*rows, GOOD]).encode())


def test_the_refused_rows_are_mended_and_read_again() -> None:
    rows = [
        HEADER,
        GOOD,
        "B,所,1101,counter,signature",
        "C,所,110101,counter",
        "D,所,110101,counter,signature,x",
    ]
    reading = read_csv("\n".join(rows).encode())
    text = refused_csv(reading).decode("utf-8-sig")
    assert text.splitlines()[0] == ",".join([*REFUSED, *HEADER.split(",")])
    assert text.splitlines()[1].startswith('3,"region: it is not')
    assert text.splitlines()[3].endswith(",x")
    mended = (
        text.replace("1101,", "110101,")
        .replace("counter\r", "counter,signature\r")
        .replace(",x\r", "\r")
    )
    again = read_csv(mended.encode())
    assert ([spec.code for spec in again.specs], again.refused) == (["B", "C", "D"], ())
    # A second time, the first time's words are not carried along.
    assert (
        refused_csv(read_csv(text.encode())).decode("utf-8-sig").splitlines()[0]
        == text.splitlines()[0]
    )


def test_an_export_is_sorted_and_shows_what_keyd_keeps_but_no_enrolment() -> None:
    one = listed(
        TerminalSpec("B", "所", "110101", ("r",), (Proof.SIGNATURE,), interfaces=()),
        certificate=b"\x01\x02",
        certificate_until=1_800_000_000,
        enrolment=b"\xee" * 32,
        enrolment_until=1_900_000_000,
    )._replace(last_seen=1_764_547_200, last_source="10.1.2.3", authentications=7, failures=1)
    text = to_csv([one, listed(replace(one.terminal.spec, code="A"))]).decode("utf-8-sig")
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["code"], second["code"]) == ("A", "B")
    assert (second["state"], second["last_seen"]) == ("active", "2025-12-01T00:00:00Z")
    assert (second["certificate"], second["certificate_until"]) == ("0102", "2027-01-15T08:00:00Z")
    assert (second["interfaces"], first["last_seen"]) == ("none", "")
    assert "ee" * 16 not in (text + json.dumps(to_plain(one))).lower()
    assert "enrolment" not in text + json.dumps(to_plain(one))


# Any bytes ------------------------------------------------------------------------------------------------

PIECES: Final = st.sampled_from(
    [
        *COLUMNS,
        *KEPT,
        *REFUSED,
        HEADER,
        GOOD,
        ",",
        ";",
        "\n",
        "\r",
        '"',
        "'",
        "=",
        "\x00",
        "\ufeff",
        "none",
        "٣",
    ]
)


def read_or_refused(data: bytes) -> Iterable[TerminalSpec]:
    """Read anything: it is a list, or it is refused with a sentence."""
    try:
        reading = read_csv(data)
    except BadParameter:
        return ()
    again = refused_csv(reading)
    if reading.refused:
        assert len(read_csv(again).refused) == len(reading.refused)
    return reading.specs


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join).map(
    lambda text: text.encode(errors="replace")
))  # fmt: skip
@example(f"{HEADER}\n{GOOD}\n".encode())
def test_any_bytes_are_a_list_or_a_sentence(data: bytes) -> None:
    for text in (data, f"{HEADER}\n".encode() + data):
        for spec in read_or_refused(text):
            require_good(spec)
