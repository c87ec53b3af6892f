"""docs/psam-commands.md is true: what it shows is run as it stands, over a line, and the card takes it."""

from __future__ import annotations

import functools
import re
import secrets
from pathlib import Path
from typing import Any, Final

import trio

import keyd.client
import keyd.protocol.messages.psam
from keyd.client import Client, Enrolment
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.messages.psam import MAX_COMMANDS, MAX_OPEN
from tests.psam.desk import NUMBER
from tests.psam.test_line import DF04, TIME, Holder, Line, protected_by_ring
from tests.test_dispatch import CODE

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "psam-commands.md"
TEXT: Final = DOCUMENT.read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(block: str, client: Client, **names: Any) -> dict[str, Any]:
    """Run a block with the names that its text gives it; return what it has made."""
    made = {**vars(keyd.client), **vars(keyd.protocol.messages.psam), **names, "keyd": client}
    exec(block, made)  # noqa: S102 - it is our own document
    return made


def conversation(line: Line) -> None:
    holder = Holder(CardAlgorithm.SM4)
    reading, purchase, record = BLOCKS
    enrolment = Enrolment(CODE, synthetic_terminal_key(CODE))
    with Client(line.address, enrolment) as client:
        internal = secrets.token_bytes(8), secrets.token_bytes(8)
        by_card = holder.ask("00880000", b"".join(internal), 8)
        challenge, factor = (holder.ask("00840000", le=8) for _ in range(2))
        made = run(
            reading,
            client,
            factors=holder.factors,
            internal_factor=internal[0],
            internal_challenge=internal[1],
            external_factor=factor,
            external_challenge=challenge,
        )
        assert made["internal"] == by_card
        holder.ask("0082000A", made["external"] + challenge)
        holder.ask("00A40200", bytes.fromhex("EF06"))
        assert holder.ask("00B20800", le=256)

        plain = bytes.fromhex("1122334455")
        framed = (b"\5" + plain + b"\x80").ljust(16, b"\0")
        known = {"factors": holder.factors, "factor": factor, "zeros": bytes(8), "framed": framed}
        made = run(record, client, **known)
        header = bytes.fromhex("04D60080")
        assert made["command"] == protected_by_ring(line, holder, factor, header, plain)

        holder.ask("00A40400", DF04, 256)
        amounts = (1000).to_bytes(4, "big") + bytes(8)
        begun = holder.ask("B0280101", b"\1" + amounts + NUMBER, 22)
        debit = functools.partial(holder.ask, "B02C0100", le=8)
        run(
            purchase,
            client,
            begun=begun,
            amounts=amounts,
            time=TIME,
            factors=holder.factors,
            debit=debit,
        )
        assert holder.ask("B0260001", le=4) == (100_000 - 1000).to_bytes(4, "big")


async def test_what_is_shown_is_what_works() -> None:
    async with Line().serve() as line:
        await trio.to_thread.run_sync(conversation, line)
        assert not line.desk.open_ones


def test_its_numbers_are_the_tables() -> None:
    assert f"up to {MAX_COMMANDS} steps" in TEXT
    assert (MAX_OPEN, "at most eight open" in TEXT) == (8, True)
