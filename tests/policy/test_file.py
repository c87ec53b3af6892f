"""A policy file is taken whole or refused whole, every fault says its line, and no bytes can do anything else."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.policy import Catalogue, Fault, PolicyError, read_policy
from keyd.policy.file import MAX_BYTES
from tests.policy.conftest import CATALOGUE, LIMITS, SHIPPED

if TYPE_CHECKING:
    from keyd.policy import PolicyFile

HEAD: Final = '[roles.clerk]\nwhat = "a clerk"\n\n'
# Its header is line 4.
RULE: Final = '[[roles.clerk.rules]]\nwhy = "a test"\n'


def rule(**fields: str) -> str:
    """A rule for IRK, with fields changed; an empty value leaves the field out."""
    all_fields = {"methods": '["card.internal_*"]', "keys": '["IRK"]'} | fields
    return RULE + "".join(f"{name} = {value}\n" for name, value in all_fields.items() if value)


def faults(text: str, known: Catalogue = CATALOGUE) -> str:
    with pytest.raises(PolicyError) as error:
        read_policy(text.encode(), known)
    return str(error.value)


def test_the_shipped_file_is_right(shipped: PolicyFile) -> None:
    assert len(shipped.policy.role_lines) == 10
    lines = SHIPPED.read_text(encoding="utf-8").split("\n")
    for role, at in shipped.policy.role_lines.items():
        assert lines[at - 1] == f"[roles.{role}]"
        for one in shipped.policy.rules_of(frozenset({role})):
            assert lines[one.line - 1] == f"[[roles.{role}.rules]]"
            assert lines[one.line] == f'why = "{one.why}"'


@pytest.mark.parametrize(
    ("fields", "line", "said"),
    [
        ({"methods": '["card.pin_relod"]'}, 6, "there is no method card.pin_relod"),
        ({"methods": '["terminal.authenticate"]'}, 6, "no method terminal.authenticate that term"),
        ({"methods": '["*"]'}, 6, "is no method: write family.verb"),
        ({"methods": '["card.internal_*", "card.internal_cryptogram"]'}, 6, "adds nothing"),
        ({"methods": "[]"}, 6, "length >= 1"),
        ({"methods": '"card.*"'}, 6, "Expected `array`"),
        ({"methods": '["daemon.random", "card.pin_reload"]'}, 6, "daemon.random use no key: say"),
        ({"methods": '["daemon.random"]'}, 7, "daemon.random use no key and no card"),
        ({"keys": ""}, 4, "say which keys"),
        ({"keys": '["0001"]'}, 7, "no profile knows the address 0001"),
        ({"keys": '["0170-0FFF"]'}, 7, "no profile knows the address 0FFF"),
        ({"keys": '["0172-0170"]'}, 7, "runs backwards"),
        ({"keys": '["0170-0170"]'}, 7, "names one address"),
        ({"keys": '["IRQ"]'}, 7, "no profile knows a key IRQ"),
        ({"keys": '["irk"]'}, 7, "is no key: write 0090"),
        ({"keys": "[368]"}, 7, "Expected `str`, got `int`"),
        ({"keys": '["IRK", "0171"]'}, 7, "0171 adds nothing"),
        ({"keys": '["IRK", "PUK"]'}, 7, "PUK is of no use to card.internal_authenticate"),
        ({"methods": '["card.*_authenticate"]'}, 7, "none of them is of use to card.external_"),
        ({"algorithms": '["AES"]'}, 8, "'AES' is none of DES, SSF33, SM4"),
        ({"algorithms": '["SM4", "SM4"]'}, 8, "SM4 is there twice"),
        ({"regions": '["5101000"]'}, 8, "one to six digits"),
        ({"regions": '["٥١"]'}, 8, "one to six digits"),
        ({"regions": '["51\\n"]'}, 8, "one to six digits"),
        ({"regions": '["5101", "51"]'}, 8, "one within the other"),
        ({"regions": '["330106"]'}, 8, "Zhejiang's keys are by city"),
        ({"hours": '["8-17"]'}, 8, "is no hours"),
        ({"hours": '["25:00-26:00"]'}, 8, "is no time of day"),
        ({"hours": '["08:00-08:00"]'}, 8, "is no time at all"),
        ({"hours": '["24:00-06:00"]'}, 8, "is no time at all"),
        ({"hours": '["Fri-Mon 08:00-09:00"]'}, 8, "runs backwards"),
        ({"hours": '["Mon,Mon 08:00-09:00"]'}, 8, "twice"),
        ({"hours": '["08:00-12:00", "09:00-10:00"]'}, 8, "adds nothing"),
        ({"business": '["05"]'}, 8, "carry none"),
        ({"metods": '["x.y"]'}, 8, "unknown field `metods`"),
        ({"why": '""'}, 5, "length >= 1"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_named_by_its_line(fields: dict[str, str], line: int, said: str) -> None:
    text = HEAD + rule(**{name: value for name, value in fields.items() if name != "why"}) + LIMITS
    told = faults(text.replace('"a test"', fields.get("why", '"a test"')))
    assert told.startswith(f"line {line}: role clerk, rule 1: "), told
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("second", "is_covered"),
    [
        (rule(), True),
        (rule(regions='["51"]'), True),
        (rule(hours='["08:00-09:00"]'), True),
        (rule(hours='["08:00-09:00"]', algorithms='["SM4"]'), True),
        (rule(keys='["0171"]', methods='["card.internal_cryptogram"]'), True),
        (rule(keys='["IRK", "RKSSSE"]', methods='["card.mutual_*"]'), False),
    ],
)
def test_a_rule_that_decides_nothing_is_a_fault(second: str, is_covered: bool) -> None:
    text = HEAD + rule() + second + LIMITS
    if is_covered:
        assert "rule 1 (line 4) allows all of it" in faults(text)
        assert faults(text).startswith("line 8: role clerk, rule 2: ")
        # The narrow one first is no nonsense: it says which line decides.
        narrow_first = HEAD + second + rule() + LIMITS
        if second != rule():
            read_policy(narrow_first.encode(), CATALOGUE)
    else:
        read_policy(text.encode(), CATALOGUE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `roles`"),
        (HEAD + rule(), "missing required field `limits`"),
        ("[roles]\n" + LIMITS, "length >= 1"),
        (HEAD + LIMITS, "line 1: role clerk: Object missing required field `rules`"),
        (HEAD.replace("what", "waht") + rule() + LIMITS, "line 1: role clerk: "),
        ("x = 1\n" + HEAD + rule() + LIMITS, "unknown field `x`"),
        (HEAD.replace("clerk", "Clerk") + LIMITS, "line 1: role 'Clerk': a role's name is"),
        ('utc_offset = "8"\n' + HEAD + rule() + LIMITS, "line 1: utc_offset: '8' is no offset"),
        (HEAD + rule() + LIMITS.replace("per_terminal = 2", "per_terminal = 0"), ">= 1"),
        (HEAD + rule() + LIMITS + "x = 1", "line 18: limits: "),
        (
            HEAD + rule() + LIMITS + '[limits.rates.methods]\n"a.b"={requests=1,seconds=1,burst=1}',
            "line 18: limits: rates.methods: there is no method a.b",
        ),
        ("a = \n", "line 1: no TOML: "),
        ("a = 1\na = 2\n", "line 2: no TOML: "),
        ("a = " + "[" * 100_000, "no TOML"),
        ("a = " + "1" * 5000, "no TOML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(text: str, said: str) -> None:
    assert said in faults(text)


def test_rules_whose_lines_cannot_be_told_are_refused() -> None:
    # TOML knows other ways to write the same; a fault in such a rule would name another line.
    inline = '[roles.clerk]\nwhat = "x"\nrules = [{why="x", methods=["daemon.random"]}]\n'
    quoted = (
        '[roles.clerk]\nwhat = "x"\n[["roles".clerk.rules]]\nwhy="x"\nmethods=["daemon.random"]\n'
    )
    hidden = HEAD + rule() + 'hours = ["""\n[[roles.clerk.rules]]\n"""]\n'
    for text in (inline, quoted, hidden):
        assert "each rule with [[roles.clerk.rules]]" in faults(text + LIMITS)


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = HEAD + rule(keys='["X"]') + rule(hours='["x"]') + LIMITS.replace("= 10", "= 0")
    wrong = [
        text.split("\n").index(line) + 1
        for line in ('keys = ["X"]', 'hours = ["x"]', "region_minutes = 0")
    ]
    assert re.findall(r"^line (\d+)", faults(text), re.MULTILINE) == [str(line) for line in wrong]


def test_what_is_no_text_or_too_much_of_it_is_refused() -> None:
    with pytest.raises(PolicyError, match="line 2: this is not UTF-8"):
        read_policy(b"a = 1\n\xff", CATALOGUE)
    with pytest.raises(PolicyError, match="more than"):
        read_policy(b"#" * (MAX_BYTES + 1), CATALOGUE)


TEXT: Final = SHIPPED.read_text(encoding="utf-8")
PIECES: Final = [
    *("[", "]", "[[", '"', '"""', "'", "=", "\n", "#", ",", "{", "}", "-", ".", "\\", "\0", "\r"),
    *(
        "keys = 1\n",
        "rules = []\n",
        "1979-05-27",
        "08:00:00",
        "nan",
        "true",
        "[[roles.counter.rules]]",
    ),
    *("[limits]\n", '"0090-"', '"*"', '"9999"', "[roles.x]", "𝟘", "_", "1e999", "0x10", "\ud7ff"),
]


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(TEXT)), st.integers(0, 40), st.sampled_from(PIECES) | st.text(max_size=3)),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_no_mutation_does_anything_but_be_taken_or_refused(
    edits: list[tuple[int, int, str]],
) -> None:
    text = TEXT
    for at, cut, put in edits:
        text = text[:at] + put + text[at + cut :]
    found: tuple[Fault, ...] = (Fault(0, "", "none"),)
    try:
        read_policy(text.encode("utf-8", "surrogatepass"), CATALOGUE)
    except PolicyError as error:
        found = error.faults
    assert found
    assert all(0 <= fault.line <= text.count("\n") + 1 and fault.what for fault in found)


def test_no_value_of_another_type_does_anything_but_be_refused() -> None:
    """Every value of a small file in turn becomes each other kind of value that TOML has."""
    text = HEAD + rule(algorithms='["SM4"]', regions='["51"]', hours='["08:00-09:00"]') + LIMITS
    others = ["1", "1.5", "true", '"x"', "[]", "[1]", '["x"]', "{}", "{a=1}", "[[]]", "[{}]"]
    others += ["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "nan", "inf", "-1", "[nan]"]
    lines = text.split("\n")
    for number, line in enumerate(lines):
        name, equals, value = line.partition(" = ")
        if not equals:
            continue
        for other in others:
            if other == value or (name == "why" and other == '"x"') or name == "what":
                continue
            changed = [*lines[:number], f"{name} = {other}", *lines[number + 1 :]]
            if name in {"per_terminal", "per_organisation"} | set(_CARD_NAMES) and other == "1":
                continue
            with pytest.raises(PolicyError):
                read_policy("\n".join(changed).encode(), CATALOGUE)


_CARD_NAMES: Final = (*("pin_resets_per_day", "region_minutes", "failures", "failure_minutes"),)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_refused(seed: int) -> None:
    with pytest.raises(PolicyError):
        read_policy(random.Random(seed).randbytes(200), CATALOGUE)  # noqa: S311 - no secret is made
