"""The points at which servers are measured: how many connections, and how many requests each keeps open."""

from __future__ import annotations

import argparse
from typing import Final, NamedTuple

# A generator keeps connections × depth send times and as many spare frames; nobody needs more of either.
MAX_CONNECTIONS: Final = 900
MAX_DEPTH: Final = 1024


class Point(NamedTuple):
    """A closed loop: each connection has `depth` requests outstanding, always."""

    connections: int
    depth: int

    def __str__(self) -> str:
        return f"{self.connections}×{self.depth}"


DEFAULT_POINTS: Final = (
    # A counter, a service window, a city's terminals: one question at a time on each line.
    Point(1, 1),
    Point(16, 1),
    Point(64, 1),
    Point(256, 1),
    # Card-making machines and middleware, which pipeline.
    Point(16, 16),
    Point(16, 64),
)


def parse_points(text: str) -> tuple[Point, ...]:
    """Read "64x1,16x16", as an argparse type."""
    return tuple(_parse_point(word) for word in text.split(","))


def _parse_point(word: str) -> Point:
    connections, _, depth = word.partition("x")
    if not (connections.isdecimal() and depth.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word!r} is no point: write CONNECTIONSxDEPTH")
    point = Point(int(connections), int(depth))
    if not (1 <= point.connections <= MAX_CONNECTIONS and 1 <= point.depth <= MAX_DEPTH):
        raise argparse.ArgumentTypeError(
            f"{word!r} is out of range: at most {MAX_CONNECTIONS} connections and depth {MAX_DEPTH}"
        )
    return point
