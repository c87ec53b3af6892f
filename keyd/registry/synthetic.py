"""Terminals that a development keyd, tests and benchmarks register: their keys are public."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyd.keys.roots import synthetic_signer
from keyd.registry.terminal import Proof, Terminal, TerminalSpec, TerminalState

if TYPE_CHECKING:
    from collections.abc import Iterable

# The shipped policy does not know it: without a policy, which only a development keyd can be, it may everything.
DEVELOPMENT_ROLE: Final = "development"


def synthetic_terminal(
    code: str, state: TerminalState = TerminalState.ACTIVE, **spec: Any
) -> Terminal:
    """Return a terminal that may do everything with its synthetic key by code, or what `spec` says of it."""
    fields = {
        "organisation": "development",
        "region": "510100",
        "roles": (DEVELOPMENT_ROLE,),
        "proofs": (Proof.KEY_BY_CODE,),
    }
    return Terminal(TerminalSpec(code, **{**fields, **spec}), state, "synthetic", 0)


def development_terminals(
    codes: Iterable[str], roles: tuple[str, ...] = (DEVELOPMENT_ROLE,)
) -> dict[str, Terminal]:
    """Return the registry of a development keyd: each has these roles, and may prove itself in all three ways.

    The n-th has the 终端机编号 5101 followed by n in eight digits.
    """
    return {
        code: synthetic_terminal(
            code,
            roles=roles,
            proofs=tuple(Proof),
            psam_number=bytes.fromhex(f"5101{number:08}"),
            public_key=synthetic_signer(code).public.encode(),
        )
        for number, code in enumerate(codes, 1)
    }


def synthetic_terminals(codes: Iterable[str]) -> dict[str, Terminal]:
    """Return a registry of such terminals, by code."""
    return {code: synthetic_terminal(code) for code in codes}
