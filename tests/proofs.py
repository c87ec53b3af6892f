"""Proofs between a terminal and keyd for tests, by the simulator's arithmetic, which is not keyd's own."""

from __future__ import annotations

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.simulator import arithmetic


def terminal_proof(key: bytes, theirs: bytes, ours: bytes) -> bytes:
    """Return the terminal's proof under its key: over its own challenge `theirs` and keyd's `ours`."""
    loaded = SecretKey.load(Algorithm.SM4, key)
    return arithmetic.terminal_proof(loaded, arithmetic.TERMINAL_SIDE, ours, theirs)


def keyd_proof(key: bytes, theirs: bytes, ours: bytes) -> bytes:
    """Return keyd's proof to a terminal with that key."""
    loaded = SecretKey.load(Algorithm.SM4, key)
    return arithmetic.terminal_proof(loaded, arithmetic.KEYD_SIDE, theirs, ours)
