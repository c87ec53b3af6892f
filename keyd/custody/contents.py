"""What an unsealed keyd holds of its store: every row opened, checked and kept in memory.

Contents never change: after a commit they are read anew, and only rows that differ are opened again, so what is
served is always what the store says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from keyd.crypto.secret import KeyNotAuthentic
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody.authority import HeldAuthority, open_authority_row
from keyd.custody.bodies import (
    IDENTITY_ID,
    IdentityBody,
    StoreAltered,
    decode,
    open_key_row,
    open_row,
)
from keyd.custody.officers import Officer, OfficerRole, title
from keyd.custody.proposals import Proposal
from keyd.custody.psam_rows import HeldPsam, open_psam_row
from keyd.errors import (
    DomainCrossed,
    KeyNotFound,
    KeyStateRefused,
    ProposalNotFound,
    PsamNotFound,
    TerminalNotFound,
)
from keyd.keys.block import Domain, KeyHeader, KeyState
from keyd.registry.terminal import Terminal
from keyd.store.rows import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyd.crypto.secret import SecretKey
    from keyd.custody.seal import OpenSeal
    from keyd.registry.psam import KeptPsam
    from keyd.store.rows import Row, Snapshot
    from keyd.tls import TlsKind


class HeldKey(Struct, frozen=True):
    """A key of the store; `key` is None once it is gone for good."""

    header: KeyHeader
    key: SecretKey | None

    def living(self) -> SecretKey:
        """Return the key itself.

        Raises:
            KeyStateRefused: it is gone for good.
        """
        if self.key is None:
            raise KeyStateRefused(f"{self.header.label} is gone for good")
        return self.key


class Contents(Struct, frozen=True):
    """The store, opened."""

    number: int
    seal: OpenSeal
    identity: Sm2PrivateKey
    identity_body: IdentityBody
    keys: Mapping[bytes, HeldKey]
    officers: Mapping[str, Officer]
    proposals: Mapping[bytes, Proposal]
    terminals: Mapping[str, Terminal]
    authorities: Mapping[TlsKind, HeldAuthority]
    # PSAMs that keyd plays, by their 终端机编号 in 12 digits, and the keys that their counters are sealed under.
    psams: Mapping[str, KeptPsam]
    psam_keys: Mapping[str, SecretKey]
    # Where each opened row came from, so that it need not be opened again.
    opened: Mapping[tuple[Kind, bytes], tuple[Row, object]]

    def key(self, key_id: bytes, domain: Domain) -> HeldKey:
        """Return a key of a domain.

        Raises:
            KeyNotFound: there is none of that id.
            DomainCrossed: it is another domain's.
        """
        held = self.keys.get(key_id)
        if held is None:
            raise KeyNotFound(f"the store has no key {key_id.hex()}")
        if held.header.domain is not domain:
            raise DomainCrossed(f"{held.header.label} is not {domain}'s")
        return held

    def proposal(self, proposal_id: bytes, domain: Domain) -> Proposal:
        """Return a proposal of a domain.

        Raises:
            ProposalNotFound: there is none; another domain's looks the same.
        """
        proposal = self.proposals.get(proposal_id)
        if proposal is None or proposal.domain is not domain:
            raise ProposalNotFound
        return proposal

    def officer(self, domain: Domain, code: str) -> Officer | None:
        """Return an officer, retired or not."""
        return self.officers.get(title(domain, code))

    def terminal(self, code: str) -> Terminal:
        """Return a terminal, whatever its state.

        Raises:
            TerminalNotFound: none of that code was ever enrolled.
        """
        terminal = self.terminals.get(code)
        if terminal is None:
            raise TerminalNotFound(f"no terminal {code} is enrolled")
        return terminal

    def psam(self, number: str) -> KeptPsam:
        """Return a PSAM that keyd plays, by its 终端机编号 in 12 digits, whatever its state.

        Raises:
            PsamNotFound: none of that number was ever issued.
        """
        kept = self.psams.get(number)
        if kept is None:
            raise PsamNotFound(f"no PSAM {number} was issued")
        return kept

    def serving_officers(self, domain: Domain, role: OfficerRole) -> list[Officer]:
        """List a domain's officers of a role that are not retired."""
        return [
            officer
            for officer in self.officers.values()
            if officer.domain is domain and role in officer.roles and not officer.is_retired
        ]

    def versions_at(self, header: KeyHeader) -> list[KeyHeader]:
        """List every key that shares an address and the kind of card with this one, whatever became of it."""
        return [
            held.header
            for held in self.keys.values()
            if held.header.domain is header.domain
            and is_same_place(held.header, header.name, header.addresses)
            and (held.header.algorithm.value == "SM4") == (header.algorithm.value == "SM4")
        ]

    @property
    def loaded_keys(self) -> list[tuple[KeyHeader, SecretKey]]:
        """Every key that is not gone, for the ring, which decides what each may do."""
        return [
            (held.header, held.key)
            for held in self.keys.values()
            if held.key is not None and held.header.state is not KeyState.DESTROYED
        ]


def is_same_place(header: KeyHeader, name: str, addresses: tuple[int, ...]) -> bool:
    """Whether a key answers at one of these addresses, or, where keys have none, has this name."""
    if addresses or header.addresses:
        return bool(set(addresses) & set(header.addresses))
    return header.name == name


def open_contents(snapshot: Snapshot, seal: OpenSeal, before: Contents | None = None) -> Contents:
    """Open every row of a snapshot.

    Raises:
        StoreAltered: a row does not open. Nothing is served from a store that somebody has changed.
    """
    known = before.opened if before is not None and before.seal is seal else {}
    opened: dict[tuple[Kind, bytes], tuple[Row, object]] = {}
    for row in snapshot.rows:
        place = (row.kind, row.id)
        was = known.get(place)
        if was is not None and row.revision < was[0].revision:
            raise StoreAltered(f"an old row of {row.kind} was put back")
        opened[place] = was if was is not None and was[0] == row else (row, _open(row, seal))
    # Proposals are dropped when there are many; of all else, at least what it was is kept for ever.
    if any(place not in opened for place in known if place[0] is not Kind.PROPOSAL):
        raise StoreAltered("a key, an officer, a terminal, an authority or a PSAM is missing")
    keys: dict[bytes, HeldKey] = {}
    officers: dict[str, Officer] = {}
    proposals: dict[bytes, Proposal] = {}
    terminals: dict[str, Terminal] = {}
    authorities: dict[TlsKind, HeldAuthority] = {}
    psams: dict[str, HeldPsam] = {}
    identity: tuple[IdentityBody, Sm2PrivateKey] | None = None
    for row, thing in opened.values():
        if isinstance(thing, HeldKey):
            _require_id(row, thing.header.key_id)
            keys[row.id] = thing
        elif isinstance(thing, Officer):
            _require_id(row, thing.title.encode())
            officers[thing.title] = thing
        elif isinstance(thing, Proposal):
            _require_id(row, thing.proposal_id)
            proposals[row.id] = thing
        elif isinstance(thing, Terminal):
            _require_id(row, thing.code.encode())
            terminals[thing.code] = thing
        elif isinstance(thing, HeldAuthority):
            authorities[thing.body.kind] = thing
        elif isinstance(thing, HeldPsam):
            psams[thing.kept.number] = thing
        elif isinstance(thing, tuple):
            _require_id(row, IDENTITY_ID)
            identity = thing
    if any((row.kind, row.id) not in opened for row in seal.rows):
        raise StoreAltered("the seal or a wrapping key is missing")
    if identity is None:
        raise StoreAltered("keyd's own key is missing from the store")
    return Contents(
        number=snapshot.number,
        seal=seal,
        identity=identity[1],
        identity_body=identity[0],
        keys=keys,
        officers=officers,
        proposals=proposals,
        terminals=terminals,
        authorities=authorities,
        psams={number: held.kept for number, held in psams.items()},
        psam_keys={number: held.key for number, held in psams.items()},
        opened=opened,
    )


def _open(row: Row, seal: OpenSeal) -> object:
    if row.kind in (Kind.SEAL, Kind.LMK):
        if row not in seal.rows:
            raise StoreAltered("the seal or a wrapping key is another than what was opened")
        return None
    lmk = _wrapping_key(row, seal)
    if row.kind is Kind.KEY:
        header, key = open_key_row(lmk, row)
        _require_domain(row, header.domain)
        return HeldKey(header, key)
    if row.kind is Kind.OFFICER:
        officer = open_row(lmk, row, Officer)
        _require_domain(row, officer.domain)
        return officer
    if row.kind is Kind.PROPOSAL:
        proposal = open_row(lmk, row, Proposal)
        _require_domain(row, proposal.domain)
        return proposal
    # What is left belongs to the daemon itself.
    _require_domain(row, Domain.LOCAL)
    if row.kind is Kind.TERMINAL:
        return open_row(lmk, row, Terminal)
    if row.kind is Kind.AUTHORITY:
        return open_authority_row(lmk, row)
    if row.kind is Kind.PSAM:
        return open_psam_row(lmk, row)
    return _open_identity(row, lmk)


def _open_identity(row: Row, lmk: SecretKey) -> tuple[IdentityBody, Sm2PrivateKey]:
    body = decode(row, IdentityBody)
    try:
        private = Sm2PrivateKey.unwrap(lmk, row.sealed, row.nonce, row.body)
    except (KeyNotAuthentic, ValueError):
        raise StoreAltered("keyd's own key was altered") from None
    if private.public.encode() != body.public_key or body.revision != row.revision:
        raise StoreAltered("keyd's own key is not what its row says")
    return body, private


def _wrapping_key(row: Row, seal: OpenSeal) -> SecretKey:
    try:
        return seal.wrapping_keys[Domain(row.domain)]
    except (ValueError, KeyError):
        raise StoreAltered(f"a row of {row.kind} names no domain") from None


def _require_domain(row: Row, domain: Domain) -> None:
    if row.domain != domain:
        raise StoreAltered(f"a row of {row.kind} was moved to another domain")


def _require_id(row: Row, row_id: bytes) -> None:
    if row.id != row_id:
        raise StoreAltered(f"a row of {row.kind} was moved to another's place")
