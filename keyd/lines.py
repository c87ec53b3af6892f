"""Encrypted lines as they are configured: files into contexts, at the start and again at every reload.

A reload may bring other certificates, keys, authorities, revocation lists and groups. What did not change keeps its
context, and with it the tickets that terminals resume with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keyd.config import ConfigError, expand, require_private
from keyd.tls import TlsKind, TlsServerContext, TlsUnusable, require_support

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keyd.config import ListenTls


class _Files(NamedTuple):
    """What an entry's files hold, in PEM."""

    certificate: bytes
    private_key: bytes
    client_authorities: bytes | None
    revoked: bytes | None


class ConfiguredLine:
    """One address of encrypted lines, and the context that its files make."""

    __slots__ = ("_files", "context", "entry")

    context: TlsServerContext

    def __init__(self, entry: ListenTls, before: ConfiguredLine | None = None) -> None:
        """Read what an entry names.

        Raises:
            ConfigError: something cannot be read or used; the sentence begins with the address.
        """
        self.entry = entry
        try:
            self._files = _read(entry)
            if before is not None and before.makes_the_same(self):
                self.context = before.context
            else:
                self.context = _make(entry, self._files)
        except (ConfigError, TlsUnusable) as error:
            raise ConfigError(f"listen.tls {entry.address}: {error}") from None

    def makes_the_same(self, other: ConfiguredLine) -> bool:
        """Whether another line has the same kind, groups and contents of files."""
        return (self.entry.kind, self.entry.groups, self._files) == (
            other.entry.kind,
            other.entry.groups,
            other._files,
        )

    def __repr__(self) -> str:
        return f"<ConfiguredLine {self.entry.address} {self.entry.kind}>"


def read_lines(
    entries: Sequence[ListenTls], before: Sequence[ConfiguredLine] = ()
) -> list[ConfiguredLine]:
    """Make the context of every entry. A line that is there already keeps its context if nothing has changed.

    Raises:
        ConfigError: one of them cannot be made.
    """
    known = {place_of(line.entry): line for line in before}
    return [ConfiguredLine(entry, known.get(place_of(entry))) for entry in entries]


def place_of(entry: ListenTls) -> tuple[str, str, bool]:
    """Return what of a line does not change without a restart."""
    return entry.address, entry.kind, entry.enrolment


def _make(entry: ListenTls, files: _Files) -> TlsServerContext:
    kind = TlsKind(entry.kind)
    require_support(kind, entry.groups)
    return TlsServerContext(
        kind,
        certificate=files.certificate,
        private_key=files.private_key,
        client_authorities=files.client_authorities,
        revoked=files.revoked,
        groups=entry.groups,
    )


def _read(entry: ListenTls) -> _Files:
    private_key = expand(entry.private_key)
    require_private(private_key)
    return _Files(
        _read_file(expand(entry.certificate)),
        _read_file(private_key),
        _read_file(expand(entry.client_authorities)) if entry.client_authorities else None,
        _read_file(expand(entry.revoked)) if entry.revoked else None,
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
