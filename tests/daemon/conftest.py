"""What the daemon's tests share: a raw peer that can misbehave, and a daemon with a configuration."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.client import parse_address
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.registry.synthetic import synthetic_terminal
from tests.founded import EVERYTHING, founded_store
from tests.proofs import terminal_proof

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


class RawPeer:
    """A peer that writes what it likes and reads answers as plain lists."""

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        if isinstance(parsed, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(parsed)
        else:
            self.sock = socket.create_connection(parsed)
        self.sock.settimeout(20)
        self._unpacker = msgpack.Unpacker()
        self._msgid = 0

    def send(self, method: str, *params: Any) -> int:
        """Send a request; return its msgid."""
        self._msgid += 1
        self.sock.sendall(self.encode(method, *params, msgid=self._msgid))
        return self._msgid

    @staticmethod
    def encode(method: str, *params: Any, msgid: int = 1) -> bytes:
        """Return the bytes of a request."""
        encoded: bytes = msgpack.packb([0, msgid, method, list(params)])
        return encoded

    def answers(self) -> Iterator[Any]:
        """Yield every answer until keyd closes the line."""
        while True:
            yield from self._unpacker
            data = self.sock.recv(65536)
            if not data:
                return
            self._unpacker.feed(data)

    def answer(self) -> Any:
        """Return the next answer."""
        return next(self.answers())

    def ask(self, method: str, *params: Any) -> Any:
        """Send a request and return its answer: [1, msgid, error, result]."""
        self.send(method, *params)
        return self.answer()

    def authenticate(self, code: str = "DEV-0001") -> None:
        """Prove a terminal with its synthetic key."""
        assert self.prove(code) == "OK"

    def prove(self, code: str = "DEV-0001") -> str:
        """Try to prove a terminal with its synthetic key; return the status."""
        ours = secrets.token_bytes(16)
        theirs = self.ask("terminal.challenge", code, ours)[3][0]
        proof = terminal_proof(synthetic_terminal_key(code), ours, theirs)
        error = self.ask("terminal.authenticate", proof)[2]
        return "OK" if error is None else str(error[1])

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


@pytest.fixture
def raw() -> Iterator[Callable[[str], RawPeer]]:
    """Open raw peers, closed after the test."""
    with ExitStack() as opened:

        def connect(address: str) -> RawPeer:
            peer = RawPeer(address)
            opened.callback(peer.close)
            return peer

        yield connect


class WriteConfig(Protocol):
    """Write a configuration with synthetic keys, and return the daemon's arguments.

    Terminals have the role that may everything, or the roles that a mapping says.
    """

    def __call__(
        self,
        *lines: str,
        terminals: Iterable[str] = ("DEV-0001",),
        policy: Path = EVERYTHING,
    ) -> list[str]: ...


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Write keyd.toml and what it names into the test's folder; `lines` are put at its end, in [audit]."""

    def write(
        *lines: str, terminals: Iterable[str] = ("DEV-0001",), policy: Path = EVERYTHING
    ) -> list[str]:
        if not (tmp_path / "keyd.db").exists():
            keys = synthetic(newest(load_profiles()).key_places([CardAlgorithm.SM4]))
            roles = terminals if isinstance(terminals, Mapping) else {}
            registry = {
                code: synthetic_terminal(code, **({"roles": roles[code]} if code in roles else {}))
                for code in terminals
            }
            founded_store(tmp_path, keys, terminals=registry)
        config = tmp_path / "keyd.toml"
        config.write_text(
            f"""
            [store]
            url = "sqlite:///{tmp_path / "keyd.db"}"
            [seal]
            credential = "{tmp_path / "seal.credential"}"
            [custody]
            socket = "{tmp_path / "admin.sock"}"
            [listen]
            tcp = ["127.0.0.1:0"]
            unix = "{tmp_path / "keyd.sock"}"
            operations = "127.0.0.1:0"
            [policy]
            file = "{policy}"
            [audit]
            folder = "{tmp_path / "journal"}"
            """
            + "\n".join(lines)
        )
        return ["--config", str(config)]

    return write


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text)
