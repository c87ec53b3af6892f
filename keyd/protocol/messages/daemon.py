"""Messages of the daemon family: what keyd says of itself, and random bytes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keyd.protocol.fields import HIDE, SHOW, Message, Request, Response


class KeyReport(Message, frozen=True):
    """One loaded key: where it answers, what it may do and its check value, never the key."""

    addresses: Annotated[
        tuple[int, ...], Meta(extra=SHOW, description="logical key addresses that it answers at")
    ]
    name: Annotated[str, Meta(extra=SHOW, description="the key's name, e.g. IRK")]
    set: Annotated[int, Meta(extra=SHOW, description="which set of the key, 1 to 3")]
    algorithm: Annotated[str, Meta(extra=SHOW, description="SM4, 3DES or DES")]
    levels: Annotated[int, Meta(extra=SHOW, description="levels to the card key: 3, 2 or 1")]
    kcv: Annotated[bytes, Meta(extra=SHOW, description="key check value, 3 bytes")]
    key_id: Annotated[bytes, Meta(extra=SHOW, description="which key it is, 16 bytes")]
    domain: Annotated[str, Meta(extra=SHOW, description="SOCIAL, FINANCE, ACSE or LOCAL")]
    tier: Annotated[str, Meta(extra=SHOW, description="national, provincial or city")]
    use: Annotated[str, Meta(extra=SHOW, description="what it is for, e.g. internal")]
    version: Annotated[int, Meta(extra=SHOW, description="version of the key, from 1")]
    state: Annotated[str, Meta(extra=SHOW, description="where in its life it is, e.g. active")]


class SelftestReport(Message, frozen=True):
    """One known-answer test."""

    name: Annotated[str, Meta(extra=SHOW, description="what was tested")]
    passed: Annotated[bool, Meta(extra=SHOW, description="whether it gave the known answer")]
    detail: Annotated[str, Meta(extra=SHOW, description="what went wrong, if it did")]


class DaemonState(Response, frozen=True):
    """What keyd is and how it does."""

    version: Annotated[str, Meta(extra=SHOW, description="keyd's version")]
    state: Annotated[str, Meta(extra=SHOW, description="serving, sealed or draining")]
    synthetic_keys: Annotated[
        bool, Meta(extra=SHOW, description="whether the roots are the public synthetic ones")
    ]
    algorithms: Annotated[
        tuple[str, ...], Meta(extra=SHOW, description="block ciphers it computes")
    ]
    sm2: Annotated[str, Meta(extra=SHOW, description="where SM2 is computed")]
    selftest: Annotated[tuple[SelftestReport, ...], Meta(extra=SHOW, description="last self-test")]
    keys: Annotated[tuple[KeyReport, ...], Meta(extra=SHOW, description="loaded keys")]
    counters: Annotated[dict[str, int], Meta(extra=SHOW, description="counts since the start")]


class SelftestResults(Response, frozen=True):
    """Every known-answer test, just run."""

    results: Annotated[tuple[SelftestReport, ...], Meta(extra=SHOW, description="the tests")]


class RandomBytes(Response, frozen=True):
    """Random bytes from the operating system's generator."""

    random: Annotated[bytes, Meta(extra=HIDE, description="as many bytes as asked for")]


class AskStatus(Request[DaemonState], frozen=True):
    """Tell version, state, algorithms, self-test, loaded keys with check values, and counters."""


class RunSelftest(Request[SelftestResults], frozen=True):
    """Run every known-answer test now."""


class AskRandom(Request[RandomBytes], frozen=True):
    """Give random bytes, for instance as challenges."""

    length: Annotated[int, Meta(ge=1, le=256, extra=SHOW, description="how many bytes, 1 to 256")]
