"""A target with a fault in it, by which the engines are tested. It has none of keyd."""

from __future__ import annotations

from tests.fuzz.target import Target


class Fell(Exception):  # noqa: N818 - says what happened
    """The target met what it cannot take."""


def one_input(data: bytes) -> None:
    if data[:1] == b"k" and data[1:2] > b"\xc0":
        raise Fell("over a byte")


def seeds() -> list[bytes]:
    return [b"key", b"k", b""]


TARGET = Target(one_input, seeds)
