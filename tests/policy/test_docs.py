"""What docs/policy.md shows is what keyd reads, and what it says of the limits is so."""

from __future__ import annotations

import re
from typing import Final

import pytest

from keyd.policy import PolicyError, read_policy
from keyd.policy.file import _RuleRow
from keyd.policy.limits import MAX_BUCKETS
from keyd.policy.watch import COLUMNS, MAX_WATCHED, ROWS
from tests.policy.conftest import CATALOGUE, ROOT

TEXT: Final = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_examples_are_one_policy_file() -> None:
    file = read_policy("\n".join(BLOCKS).encode(), CATALOGUE)
    assert list(file.policy.role_lines) == ["counter"]
    assert file.limits.cards.pin_resets_per_day == 5


def test_every_field_of_a_rule_is_explained_and_no_other() -> None:
    fields = TEXT.split("| field |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", fields, re.MULTILINE) == list(_RuleRow.__struct_fields__)


@pytest.mark.parametrize("hours", re.findall(r'`"([^"`]*\d\d:\d\d-[^"`]*)"`', TEXT))
def test_every_example_of_hours_is_one(hours: str) -> None:
    text = "\n".join(BLOCKS).replace("Mon-Fri 08:30-17:30", hours)
    read_policy(text.encode(), CATALOGUE)


def test_the_faults_that_are_shown_are_worded_so() -> None:
    wrong = BLOCKS[0].replace('"PUK"', '"0001"') + "\n".join(BLOCKS[1:])
    with pytest.raises(
        PolicyError, match="line 7: role counter, rule 1: keys: no profile knows the address 0001"
    ):
        read_policy(wrong.encode(), CATALOGUE)


def test_the_figures_are_the_codes() -> None:
    assert f"{MAX_WATCHED:,}" in TEXT
    assert ROWS * COLUMNS == 4 * 2**20
    assert MAX_BUCKETS == MAX_WATCHED
