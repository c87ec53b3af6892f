"""What custody tests share: worlds, on SQLite and where it matters on PostgreSQL too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

# Fixtures of the store's tests; pytest finds them here by their names.
from tests.custody.world import World
from tests.store.conftest import postgres_server, postgres_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A founded store in SQLite."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A founded store on either database."""
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else None
    made = World(tmp_path, url)
    yield made
    made.close()
