"""keyd's own certification authorities: one of each kind, their keys wrapped in the store.

They sign what `keyd.tls.pki` makes. A private key is opened whenever it signs and is for that moment a Python object;
docs/threats.md says what that means.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.custody.bodies import Revision, StoreAltered, decode, encode
from keyd.keys.block import NONCE_BYTES, Domain, Seconds
from keyd.registry.terminal import TerminalState
from keyd.store.rows import Kind, Row
from keyd.tls import TlsKind
from keyd.tls.pki import (
    Authority,
    Validity,
    generate_key,
    load_key,
    make_authority,
    make_revocation_list,
    random_serial,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.registry.terminal import Terminal

# A revocation list is made when it is asked for; whoever has an older one than this asks again.
REVOCATION_DAYS: Final = 7

_LABEL: Final = b"keyd authority 1\n"

# A serial number in a terminal's row, RFC 5280 §4.1.2.2.
SERIAL_BYTES: Final = 20


class AuthorityBody(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One authority: its kind, its certificate in PEM, and who decided on it."""

    kind: TlsKind
    certificate: Annotated[bytes, Meta(max_length=16 * 1024)]
    made_by: Annotated[str, Meta(max_length=64)]
    made_at: Seconds
    revision: Revision = 1


class HeldAuthority(Struct, frozen=True):
    """An authority that can sign. Its private key stays wrapped, and is opened whenever it signs."""

    body: AuthorityBody
    _lmk: SecretKey
    _row: Row

    def __repr__(self) -> str:
        return f"<HeldAuthority {self.body.kind.value}>"

    @property
    def authority(self) -> Authority:
        """The authority as the PKI wants it: to sign with, and to let go of."""
        return Authority.load(self.body.certificate, load_key(self.unwrapped()))

    def unwrapped(self) -> bytes:
        """Return the private key in PEM, for a moment.

        Raises:
            StoreAltered: its row was altered.
        """
        row = self._row
        try:
            return self._lmk.open(row.sealed, row.nonce, _LABEL + row.body)
        except (KeyNotAuthentic, ValueError):
            raise StoreAltered("a certification authority was altered") from None

    def moved(self, lmk: SecretKey, random_bytes: Callable[[int], bytes]) -> Row:
        """Return its next row, under another wrapping key."""
        body = msgspec.structs.replace(self.body, revision=self.body.revision + 1)
        return authority_row(lmk, body, self.unwrapped(), random_bytes)

    def revocation_list(self, terminals: Iterable[Terminal], now: int, number: int) -> bytes:
        """Return the list, in PEM, of every certificate that counts no more and has not expired."""
        moment = moment_of(now)
        until = moment + datetime.timedelta(days=REVOCATION_DAYS)
        return make_revocation_list(
            self.authority,
            {serial: moment_of(since) for serial, since in _revoked(terminals, now)},
            moment,
            until,
            number,
        )


def new_authority(
    kind: TlsKind, common_name: str, years: int, by: str, now: int, revision: int
) -> tuple[AuthorityBody, bytes]:
    """Make an authority with a new key; return what is kept of it, and its private key in PEM."""
    key = generate_key(kind)
    begin = moment_of(now)
    validity = Validity(begin, begin + datetime.timedelta(days=365 * years))
    made = make_authority(load_key(key), common_name, validity, random_serial())
    return AuthorityBody(kind, made.certificate, by, now, revision), key


def moment_of(seconds: int) -> datetime.datetime:
    """Return a moment that certificates can say."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def authority_row(
    lmk: SecretKey, body: AuthorityBody, key: bytes, random_bytes: Callable[[int], bytes]
) -> Row:
    """Make an authority's row: its private key (PEM) is wrapped, and bound to what its body says."""
    encoded = encode(body)
    nonce = random_bytes(NONCE_BYTES)
    sealed = lmk.seal(key, nonce, _LABEL + encoded)
    row_id = body.kind.value.encode()
    return Row(Kind.AUTHORITY, row_id, Domain.LOCAL.value, body.revision, encoded, nonce, sealed)


def open_authority_row(lmk: SecretKey, row: Row) -> HeldAuthority:
    """Open an authority's row.

    Raises:
        StoreAltered: one bit of it is not as it was written.
    """
    body = decode(row, AuthorityBody)
    held = HeldAuthority(body, lmk, row)
    held.unwrapped()
    if body.revision != row.revision or row.id != body.kind.value.encode():
        raise StoreAltered("a certification authority is not what its row says")
    return held


def _revoked(terminals: Iterable[Terminal], now: int) -> list[tuple[int, int]]:
    found = []
    for terminal in terminals:
        is_stopped = terminal.state not in (TerminalState.ENROLLED, TerminalState.ACTIVE)
        if is_stopped and terminal.certificate and terminal.certificate_until > now:
            found.append((int.from_bytes(terminal.certificate, "big"), terminal.changed_at))
        found += [
            (int.from_bytes(serial, "big"), since)
            for serial, until, since in terminal.superseded
            if until > now
        ]
    return found
