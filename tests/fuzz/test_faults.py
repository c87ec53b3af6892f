"""The targets can fail: a fault that is put into keyd is found by the seeds alone, or by a few changes to them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

import keyd.policy
from keyd.audit import records
from keyd.audit.verify import Report
from keyd.errors import Status
from keyd.handlers import HANDLERS
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.policy.table import Allowed
from keyd.protocol import connection
from keyd.protocol.connection import Ask
from keyd.protocol.messages.daemon import AskRandom, RandomBytes
from keyd.tls.connection import _Line
from tests.fuzz.target import load
from tests.fuzz.targets import officers, psam
from tests.fuzz.targets.dispatch import GOOD
from tests.psam.desk import AppletDesk
from tests.test_dispatch import CODE, Keyd, status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target

# The table, as monkeypatch can take it.
HANDLERS_OF: Final[dict[Any, Any]] = HANDLERS

MAX_TRIES: Final = 300


def fed(target: Target, tries: int = MAX_TRIES) -> None:
    """Feed a target its seeds, and then changed ones."""
    seeds = target.seeds()
    random = Random(1)
    for seed in seeds:
        target.one_input(seed)
    for _ in range(tries):
        target.one_input(target.mutate(random.choice(seeds), random))


def raising(*_arguments: Any, **_named: Any) -> Any:
    """A fault."""
    raise KeyError("a fault")


def test_without_a_fault_nothing_is_found() -> None:
    for name in (
        *("server_connection", "client_connection", "dispatch", "journal", "tls_line", "psam"),
    ):
        fed(load(name), 50)


def test_a_handler_that_falls_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("dispatch")
    monkeypatch.setitem(HANDLERS_OF, AskRandom, raising)
    with pytest.raises(AssertionError):
        fed(target, 0)


def test_an_answer_with_a_key_in_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("dispatch")
    leak = RandomBytes(synthetic_terminal_key(CODE))
    monkeypatch.setitem(HANDLERS_OF, AskRandom, lambda *_arguments: leak)
    with pytest.raises(AssertionError):
        fed(target, 0)


def test_a_log_line_with_a_pin_in_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("dispatch")
    monkeypatch.setattr("keyd.telemetry.describe", msgspec.structs.asdict)
    with pytest.raises(AssertionError):
        fed(target, 0)


def test_a_guard_that_sleeps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("psam")
    monkeypatch.setattr("keyd.psam.guard.Guard.require_allowed", lambda *_arguments: None)
    with pytest.raises(AssertionError):
        fed(target)


def test_a_psam_is_mostly_answered_well() -> None:
    """Otherwise the psam target would only ever see refusals."""
    keyd = Keyd()
    keyd.services.psams = AppletDesk()
    session = keyd.terminal()
    (opened,) = psam._answers(keyd, session, [Ask(0, "psam.open", [[psam.RKSSSE], 3, "any", "51"])])
    statuses = {}
    for number, (method, params) in enumerate(psam.GOOD):
        ask = psam._with_handle(Ask(number, method, params), opened.result[0])
        (answer,) = psam._answers(keyd, session, [ask])
        statuses[number, method] = status_of(answer)
    refused = {method for (_, method), status in statuses.items() if status is not Status.OK}
    # It was not opened for a purchase.
    assert refused == {"psam.transmit_many", "psam.make_purchase", "psam.confirm_purchase"}
    assert sum(status is Status.OK for status in statuses.values()) == 9


def test_good_requests_are_answered_well() -> None:
    """Otherwise the dispatch target would only ever see refusals."""
    keyd = Keyd()
    terminal = keyd.terminal()
    for method, params in GOOD.items():
        keyd.ok(terminal, method, *params)


@pytest.mark.parametrize("name", ["server_connection", "client_connection"])
def test_a_parser_that_raises_something_else_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_ask_from_untrusted", raising)
    monkeypatch.setattr(connection, "_answer_from_untrusted", raising)
    with pytest.raises(KeyError):
        fed(load(name), 0)


def test_a_reader_that_forgets_its_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection._ASK_UNPACKERS, "limit", 1 << 20)
    # The beginning of 256 KiB, again and again.
    endless = b"\x94\x00\x01\xa1a\x91\xc6\x00\x04\x00\x00" + bytes(40)
    with pytest.raises(AssertionError):
        load("server_connection").one_input(b"\xff" + endless)


def test_a_policy_that_allows_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyd.policy.Policy, "may", lambda *_arguments: Allowed(1))
    with pytest.raises(AssertionError):
        fed(load("policy_file"), 0)


def test_a_verifier_that_looks_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("journal")
    monkeypatch.setattr("tests.fuzz.targets.journal.verify", lambda *_a, **_n: Report())
    with pytest.raises(AssertionError):
        fed(target)


def test_a_journal_reader_that_trusts_an_event_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("journal")
    monkeypatch.setattr(records, "KINDS", dict.fromkeys(["method"]))
    monkeypatch.setattr("keyd.audit.query.decode_event", lambda encoded: {"define": encoded})
    with pytest.raises((KeyError, TypeError)):
        fed(target)


def test_a_line_that_falls_over_bad_records_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("tls_line")
    monkeypatch.setattr(_Line, "_break", raising)
    with pytest.raises(KeyError):
        fed(target)


def test_a_line_that_keeps_a_broken_peer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("tls_line")
    whole = _Line._break

    def forgetful(line: _Line, cause: str) -> None:
        peer = line.peer_certificate
        whole(line, cause)
        line.peer_certificate = peer

    monkeypatch.setattr(_Line, "_break", forgetful)
    with pytest.raises(AssertionError):
        fed(target)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("certificates", "keyd.tls.pki._require_code"),
        ("certificates", "tests.fuzz.targets.certificates.read_certificate"),
        ("config_file", "keyd.config._read_toml"),
        ("iso7816", "keyd.iso7816.tlv._length_untrusted"),
        ("officers", "keyd.custody.vault.require_approver"),
        ("papers", "keyd.crypto.sm2.files._ec_key"),
        ("pump", "keyd.handlers.card.authentication.internal_authenticate"),
        ("stored", "keyd.custody.bodies.open_block"),
        ("texts", "keyd.registry.terminal.week_of"),
    ],
)
def test_a_fault_behind_the_parser_is_found(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load(name)
    monkeypatch.setattr(place, raising)
    with pytest.raises((KeyError, AssertionError)):
        fed(target, 0)


def test_what_officers_sign_is_done(in_own_process: Callable[[str], str]) -> None:
    """Otherwise the target would only ever see refusals: of its first scripts, every command is answered well.

    Not in this process: one of the commands seals keyd, and with that every key that any test holds is gone.
    """
    in_own_process(
        """
import trio
from tests.fuzz.mutators import messages_of
from tests.fuzz.target import load
from tests.fuzz.targets import officers, psam

for seed in load("officers").seeds()[:16]:
    commands = messages_of(seed)
    with officers._keyd() as keyd:
        trio.run(keyd.do, commands)
        assert len(keyd.answers) == len(commands), commands
"""
    )


def test_a_component_that_is_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("officers")
    monkeypatch.setattr("keyd.handlers.custody._text", lambda _value: officers.COMPONENT.hex())
    with pytest.raises(AssertionError):
        fed(target, 0)


def test_a_store_that_does_not_open_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load("officers")
    monkeypatch.setattr("tests.custody.world.World.open_vault", raising)
    with pytest.raises(KeyError):
        fed(target, 0)
