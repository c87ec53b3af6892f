"""What docs/terminals.md says of lists is what lists are, and what it shows of refusals is worded so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from keyd.registry.listing import COLUMNS, KEPT, MAX_BYTES, MAX_ROWS, REFUSED, read_csv, read_spec
from keyd.registry.terminal import Form, Interface, Proof, TerminalSpec, TerminalState

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docs" / "terminals.md").read_text(encoding="utf-8")
LISTS: Final = TEXT.partition("\n## Lists\n")[2].partition("\n## ")[0]
ROWS: Final = re.findall(r"^\| `(\w+)` \|(.*)\|$", LISTS, re.MULTILINE)

GOOD: Final = {
    "code": "A",
    "organisation": "所",
    "region": "110101",
    "roles": "counter",
    "proofs": "signature",
}


def test_every_column_is_explained_and_no_other() -> None:
    assert [name for name, _ in ROWS] == [*COLUMNS, *KEPT]
    required = [name for name, what in ROWS if what.startswith(" required")]
    assert required == [f.name for f in msgspec.structs.fields(TerminalSpec) if f.required]


def test_what_an_empty_cell_is_is_said() -> None:
    spec = read_spec(GOOD)
    usual = dict(re.findall(r"^\| `(\w+)` \| `([a-z0-9;]+)` \|", LISTS, re.MULTILINE))
    assert usual == {
        "form": spec.form,
        "generations": ";".join(map(str, spec.generations)),
        "interfaces": ";".join(spec.interfaces),
    }


def test_every_word_of_a_kind_is_named() -> None:
    for kind in (Form, Proof, Interface, TerminalState):
        for word in kind:
            assert f"`{word}`" in LISTS
    assert f"{MAX_ROWS:,}" in LISTS
    assert f"{MAX_BYTES >> 20} MiB" in LISTS
    assert all(f"`{name}`" in LISTS for name in REFUSED)


def test_the_examples_are_good_cells() -> None:
    for name, cell in (
        ("roles", "counter;card-issuing"),
        ("networks", "10.1.2.0/24;10.9.0.7"),
        ("hours", "Mon-Fri 08:30-17:30"),
        ("valid_from", "2027-01-01"),
        ("valid_from", "2027-01-01T08:00+08:00"),
    ):
        assert f"`{cell}`" in LISTS
        read_spec(GOOD | {name: cell})


def test_the_refusals_that_are_shown_are_worded_so() -> None:
    rows = [
        ",".join([*GOOD, "psam_number"]),
        "A,所,110101,counter,signature,",
        "B,所,110101,counter,signature,1.10101E+11",
        "C,所,110101,hospital;Kiosk,signature,",
    ]
    for row in read_csv("\n".join(rows).encode()).refused:
        for fault in row.faults:
            assert f"\nrow {row.number}: {fault}\n" in LISTS
