"""docs/terminals.md says what keyd computes: its example is computed again from what the document itself gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.keys.hierarchy import (
    Side,
    TerminalMasterKey,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.keys.synthetic import synthetic_terminal_master
from keyd.protocol.proof import NO_BINDING, signed_by_terminal
from keyd.terminals import Session
from keyd.terminals import lockouts as limits
from keyd.terminals.lockouts import Lockouts
from keyd.tls.chains import ChainFault
from tests.test_terminals import WRONG

DOCUMENT: Final = (Path(__file__).parents[1] / "docs" / "terminals.md").read_text(encoding="utf-8")
ROWS: Final = dict(re.findall(r"^\| ([^|]+) \| `([^`|]+)` \|$", DOCUMENT, re.MULTILINE))


def given(name: str) -> bytes:
    return bytes.fromhex(ROWS[name])


def complemented(half: bytes) -> bytes:
    return half + bytes(byte ^ 0xFF for byte in half)


def encrypted(key: bytes, block: bytes) -> bytes:
    return SecretKey.load(Algorithm.SM4, key).encrypt(block)


def folded(block: bytes) -> bytes:
    return bytes(left ^ right for left, right in zip(block[:8], block[8:], strict=True))


def test_the_example_is_what_the_formulas_give() -> None:
    assert given("TK by code") == encrypted(given("TMK"), complemented(given("f by code")))
    assert given("TK by PSAM") == encrypted(given("TMK"), complemented(given("f by PSAM")))
    assert given("f by PSAM") == bytes(2) + given("终端机编号")
    terminal = encrypted(given("TK by code"), complemented(b"TERMINAL"))
    keyd = encrypted(given("TK by code"), complemented(b"KEYD----"))
    assert given("terminal's side key (of TK by code)") == terminal
    assert given("keyd's side key") == keyd
    assert given("terminal's session key") == encrypted(terminal, given("K"))
    assert given("keyd's session key") == encrypted(keyd, given("T"))
    assert given("terminal's proof") == folded(
        encrypted(given("terminal's session key"), given("T"))
    )
    assert given("keyd's proof") == folded(encrypted(given("keyd's session key"), given("K")))


def test_the_example_is_what_keyd_computes() -> None:
    assert given("TMK") == synthetic_terminal_master()
    assert given("f by code") == terminal_factor_by_code(ROWS["code"])
    assert given("f by PSAM") == terminal_factor_by_psam(given("终端机编号"))
    master = TerminalMasterKey(SecretKey.load(Algorithm.SM4, given("TMK")))
    key = master.diversify(given("f by code"))
    proof = key.diversify(Side.TERMINAL).proof(given("K"), given("T"))
    assert proof == given("terminal's proof")
    assert key.diversify(Side.KEYD).proof(given("T"), given("K")) == given("keyd's proof")


def test_the_signed_bytes_are_the_documents() -> None:
    shown = "".join(re.findall(r"^    ([0-9A-F]{96})$", DOCUMENT, re.MULTILINE))
    (time,) = re.findall(r"time (\d+) and a plain line", DOCUMENT)
    signed = signed_by_terminal(ROWS["code"], given("T"), given("K"), NO_BINDING, int(time))
    assert signed == bytes.fromhex(shown)


def test_every_reason_is_explained() -> None:
    more = {"wrong-proof", "line", "time", "challenge", "locked", "key"}
    for reason in {*WRONG, *more, *(str(fault) for fault in ChainFault), "code", "kind", "serial"}:
        assert f"`{reason}`" in DOCUMENT, reason


def test_the_lockouts_are_the_documents() -> None:
    counts = (limits.FREE_FOR_PAIR, limits.FREE_FOR_SITE, limits.FREE_FOR_TERMINAL)
    assert "After {}, {} and {} of them".format(*counts) in DOCUMENT
    assert f"up to\n{limits.LONGEST_LOCKOUT / 60:g} minutes" in DOCUMENT
    assert f"last {limits.TRUSTED_FOR / 86_400:g} days" in DOCUMENT
    lockouts, session = Lockouts(), Session(1, source="10.0.0.1")
    for _ in range(limits.FREE_FOR_PAIR + 1):
        lockouts.failed("T", session.source, 0.0)
    assert lockouts.is_locked("T", session.source, 0.99)
    assert not lockouts.is_locked("T", session.source, 1.0)
