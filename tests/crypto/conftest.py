"""The published vectors, and the SM2 backends that this machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyd.crypto.sm2.selection import guarded_backend, libcrypto_backend

if TYPE_CHECKING:
    from keyd.crypto.sm2.backend import Backend

VECTORS = Path(__file__).parent.parent / "vectors"


@pytest.fixture(scope="session")
def gm() -> dict[str, Any]:
    """The vectors of the Chinese standards."""
    return cast("dict[str, Any]", json.loads((VECTORS / "gm.json").read_text()))


@pytest.fixture(scope="session")
def kcv() -> dict[str, str]:
    """One key and its check value under each algorithm."""
    examples = json.loads((VECTORS / "worked_examples.json").read_text())
    return cast("dict[str, str]", examples["kcv"])


@pytest.fixture(scope="session")
def libcrypto() -> Backend:
    return libcrypto_backend()


@pytest.fixture(scope="session")
def guarded() -> Backend:
    return guarded_backend()


@pytest.fixture(scope="session", params=["libcrypto", "guarded"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn: what holds of SM2 holds of both."""
    return cast("Backend", request.getfixturevalue(request.param))


@pytest.fixture(
    scope="session",
    params=[
        ("libcrypto", "libcrypto"),
        ("libcrypto", "guarded"),
        ("guarded", "libcrypto"),
        ("guarded", "guarded"),
    ],
    ids=lambda pair: "-to-".join(pair),
)
def two_sides(request: pytest.FixtureRequest) -> tuple[Backend, Backend]:
    """The backend of the one who makes something, and of the one who receives it."""
    maker, receiver = request.param
    return request.getfixturevalue(maker), request.getfixturevalue(receiver)
