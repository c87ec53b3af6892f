"""`keyd policy` says allow or deny, which line decided, and exits by it. A wrong file is sentences, one a fault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyd.cli.policy import policy
from keyd.config import ConfigError
from keyd.registry.listing import Listed, to_csv, to_plain
from keyd.registry.terminal import Proof, Terminal, TerminalSpec, TerminalState
from tests.policy.conftest import LIMITS, SHIPPED

if TYPE_CHECKING:
    from pathlib import Path

HERE = ["--policy", str(SHIPPED)]


def explain(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(policy, ["explain", *words])
    if isinstance(done.exception, ConfigError):
        raise done.exception
    return done.exit_code, done.output


def line_of(number: int) -> str:
    return SHIPPED.read_text(encoding="utf-8").split("\n")[number - 1]


def test_it_allows_and_names_the_line() -> None:
    words = ["DESK-1", "card.external_authenticate", "0090", "--role", "counter"]
    code, said = explain(*words, *HERE)
    assert code == 0
    assert "allowed: card.external_authenticate with 0090 (PUK)" in said
    told = json.loads(explain(*words, *HERE, "--json")[1])
    assert told["allowed"] is True
    assert line_of(told["line"]) == "[[roles.counter.rules]]"
    assert "PUK 0090" in line_of(told["line"] + 1)


def test_a_name_is_as_good_as_an_address_and_a_batch_as_its_method() -> None:
    words = ["DESK-1", "card.external_authenticate_batch", "PUK", "--role", "counter"]
    assert explain(*words, *HERE)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["card.pin_reload", "0173", "--role", "hospital"],
            "no rule of hospital names this method",
        ),
        (["card.external_authenticate", "0090", "--role", "hospital"], "does not name this key"),
        (
            ["card.external_authenticate", "1234", "--role", "counter"],
            "no key that a profile knows",
        ),
        (["card.pin_reload", "0173"], "without a role, nothing is allowed"),
        (["card.pin_reload", "0173", "--role", "boss"], "the policy has no role boss"),
        (["daemon.status", "-", "--role", "counter"], "names this method"),
    ],
)
def test_it_denies_and_says_why(words: list[str], said: str) -> None:
    code, told = explain("DESK-1", *words, *HERE)
    assert code == 1
    assert "denied: " in told
    assert said in told


def test_it_says_which_region_hours_and_algorithm_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        '[roles.r]\nwhat="x"\n[[roles.r.rules]]\nwhy="x"\nmethods=["card.pin_unblock"]\nkeys=["STKSSSE"]\n'
        'algorithms=["SM4"]\nregions=["51"]\nhours=["Mon-Fri 08:00-17:00"]\n' + LIMITS
    )
    ask = ["T", "card.pin_unblock", "0173", "--role", "r", "--policy", str(file)]
    assert "for SM4, not algorithm 1" in explain(*ask, "--algorithm", "DES")[1]
    assert "for regions 51, and no region was said" in explain(*ask)[1]
    here = [*ask, "--region", "510100"]
    assert "do not have Sun 10:00" in explain(*here, "--at", "2025-11-30 10:00")[1]
    assert explain(*here, "--at", "2025-12-01 10:00")[0] == 0


def test_roles_come_from_a_list_that_keyd_exported(tmp_path: Path) -> None:
    spec = TerminalSpec("DESK-1", "所", "110101", ("counter", "kiosk"), (Proof.SIGNATURE,))
    one = Listed(Terminal(spec, TerminalState.ACTIVE, "LOCAL/li", 1))
    (tmp_path / "list.csv").write_bytes(to_csv([one]))
    (tmp_path / "list.json").write_text(json.dumps([to_plain(one)]))
    words = ["card.external_authenticate", "0090"]
    for name in ("list.csv", "list.json"):
        listed = ["--terminals", str(tmp_path / name), *HERE]
        assert explain("DESK-1", *words, *listed)[0] == 0
        with pytest.raises(ConfigError, match="no good terminal DESK-2"):
            explain("DESK-2", *words, *listed)
        with pytest.raises(ConfigError, match="not both"):
            explain("DESK-1", *words, *listed, "--role", "counter")
        (tmp_path / name).write_bytes(
            (tmp_path / name).read_bytes().replace(b"counter", b"Counter")
        )
        with pytest.raises(ConfigError, match=name):
            explain("DESK-1", *words, *listed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["card.nonsense", "0090"], "there is no method card.nonsense"),
        (["terminal.challenge", "-"], "there is no method terminal.challenge"),
        (["card.pin_reload", "-"], "uses a key: name it"),
        (["daemon.random", "0090"], "uses no key: write -"),
        (["card.pin_reload", "PUKK"], "neither an address nor"),
        (["card.pin_reload", "0173", "--algorithm", "AES"], "none of"),
        (["card.pin_reload", "0173", "--region", "51"], "six decimal digits"),
        (["card.pin_reload", "0173", "--at", "noon"], "is no time"),
    ],
)
def test_wrong_words_are_sentences(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        explain("T", *words, *HERE)


def test_check_tells_every_fault(tmp_path: Path) -> None:
    good = CliRunner().invoke(policy, ["check", *HERE])
    assert (good.exit_code, "10 roles" in good.output) == (0, True)
    file = tmp_path / "policy.toml"
    file.write_text(
        '[roles.r]\nwhat="x"\n[[roles.r.rules]]\nwhy="x"\nmethods=["x.y"]\n' + LIMITS + "x=1\n"
    )
    bad = CliRunner().invoke(policy, ["check", "--policy", str(file)])
    assert isinstance(bad.exception, ConfigError)
    assert len(str(bad.exception).split("\n")) == 2
    assert f"{file}: line 5: role r, rule 1: methods: there is no method x.y" in str(bad.exception)
    gone = CliRunner().invoke(policy, ["check", "--policy", str(tmp_path / "none")])
    assert "cannot be read" in str(gone.exception)
