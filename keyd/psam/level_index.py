"""What is known of a PSAM after it was read: its identity, and how often each of its keys diversifies."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm


class Place(NamedTuple):
    """What a PSAM calls a key: type (low five bits of 用途), 标识, and the algorithm of the environment."""

    kind: int
    key_id: int
    algorithm: CardAlgorithm


class MemberFacts(Struct, frozen=True):
    """What a PSAM is: `serial` has 10 bytes, `terminal` (终端机编号) 6; `levels` are 1 to 3."""

    serial: bytes
    terminal: bytes
    atr: bytes
    levels: dict[Place, int]
