"""The same on PostgreSQL: killed before, in the midst of or after anything that it sends to the server, or writes."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from tests.crash.grounds import START_SECONDS
from tests.crash.rounds import Stage, play_all, some_kills
from tests.crash.test_named_steps import IS_WHOLE, STRIDE
from tests.postgresql import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgresql import PostgresServer

PHASES = ("import", "rekey")


# A round costs a database of its own.
ROUNDS = 8


class Server:
    """A PostgreSQL server as grounds use it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.folder = Path(str(make_url(server.url("any")).query["host"]))

    def empty(self) -> str:
        """Return the URL of an empty database."""
        return self._server.url(self._server.new_database())

    def clone(self, url: str) -> str:
        """Return the URL of a copy."""
        self.settle(url)
        made = self._server.new_database()
        with contextlib.closing(self._server.admin()) as connection:
            connection.execute(f"DROP DATABASE {made}")
            connection.execute(f"CREATE DATABASE {made} TEMPLATE {make_url(url).database}")
        return self._server.url(made)

    def settle(self, url: str) -> None:
        """Wait until the server has noticed that its clients are dead: until then, a commit may be on its way."""
        deadline = time.monotonic() + START_SECONDS
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        with contextlib.closing(self._server.admin()) as connection:
            while True:
                found = connection.execute(asked, [make_url(url).database]).fetchone()
                if found is not None and not found[0]:
                    return
                assert time.monotonic() < deadline
                time.sleep(0.01)


@pytest.fixture(scope="module")
def stage_on_postgresql(shim: Path, place: Path) -> Iterator[Stage]:
    """The phases, played once without a kill on PostgreSQL."""
    with running_server() as server, tempfile.TemporaryDirectory(dir=place) as folder:
        database = Server(server)
        with Stage.played(shim, Path(folder), PHASES, database) as made:
            yield made


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_loses_nothing_on_postgresql(stage_on_postgresql: Stage, phase: str) -> None:
    stage = stage_on_postgresql
    played = stage.phases[phase]
    assert "send" in {step.call for step in played.steps}
    chosen = [kill for kill in some_kills(played, STRIDE) if kill.step.during]
    kills = chosen if IS_WHOLE else chosen[:: max(1, len(chosen) // ROUNDS)]
    results, wrong = play_all(stage, kills)
    assert not wrong, f"{len(wrong)} of {len(kills)}: {wrong[:3]}"
    assert sum(result.was_killed for result in results) >= 0.8 * len(kills)
