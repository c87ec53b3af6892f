"""Messages to begin from: an example of every row of the table, as the golden file has them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

import msgpack

from keyd.protocol.commands import BATCHES, TABLE

_GOLDEN: Final = Path(__file__).parents[1] / "protocol" / "golden.json"


@functools.cache
def examples() -> dict[str, dict[str, bytes]]:
    """Return an example of each method's request and response on the wire. A method without one is left out."""
    golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))["messages"]
    return {
        method: {side: bytes.fromhex(golden[method][side]["wire"]) for side in golden[method]}
        for method in TABLE
        if method in golden
    }


def params_of(method: str) -> list[Any]:
    """Return params that fit a method's types; what they say need not be true."""
    params: list[Any] = msgpack.unpackb(examples()[method]["request"])
    return params


@functools.cache
def requests() -> list[bytes]:
    """Return a request for every method of the table, batches too."""
    found = [
        msgpack.packb([0, number, method, params_of(method)])
        for number, method in enumerate(examples())
    ]
    found += [
        msgpack.packb([0, number, method, [[params_of(row.method)] * 2]])
        for number, (method, row) in enumerate(BATCHES.items())
        if row.method in examples()
    ]
    return found


@functools.cache
def answers() -> list[bytes]:
    """Return an answer for every method of the table, and refusals."""
    found = [
        msgpack.packb([1, number, None, msgpack.unpackb(example["response"])])
        for number, example in enumerate(examples().values())
    ]
    return [*found, msgpack.packb([1, 7, [400, "CARD_NOT_AUTHENTIC", "it is not"], None])]
