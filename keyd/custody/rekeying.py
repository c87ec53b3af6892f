"""A new seal: new shares, new wrapping keys, every row sealed anew, in one transaction.

It is staged first. The shares exist from then on, each encrypted to its custodian, but the old seal goes on holding
until every custodian has confirmed that the share is in hand: nobody is locked out by a share that was lost in the
post. What is staged is in memory only; a restart forgets it and the old seal stands.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import encode_share
from keyd.crypto.sm2 import Sm2PublicKey
from keyd.custody.appointing import custodians_of
from keyd.custody.authority import HeldAuthority
from keyd.custody.bodies import (
    SALT_BYTES,
    SealBody,
    WrappingKeyBody,
    seal_key_row,
    seal_row,
    seal_wrapping_key,
)
from keyd.custody.contents import HeldKey
from keyd.custody.founding import identity_row
from keyd.custody.lifecycle import changed
from keyd.custody.officers import Officer
from keyd.custody.proposals import Proposal
from keyd.custody.psam_rows import HeldPsam, psam_row
from keyd.custody.seal import OpenSeal, marks_of, split_seal_key, wrap_for_keeper
from keyd.errors import BadParameter, DomainCrossed, ShareRefused
from keyd.keys.block import Domain
from keyd.registry.terminal import Terminal
from keyd.store.rows import Kind, Put, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.custody.actions import Rekey
    from keyd.custody.bodies import ShareMark, WrappedSealKey
    from keyd.custody.contents import Contents
    from keyd.custody.founding import Keeper

# What stands before a share when it is encrypted to its custodian.
KIND_SHARE = b"keyd share 1\n"


class StagedSeal:
    """A seal that waits for its custodians."""

    def __init__(
        self,
        contents: Contents,
        action: Rekey,
        custodians: Sequence[Officer],
        now: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        before = contents.seal.body
        self.seal_key = SecretKey.generate(Algorithm.SM4)
        self._random_bytes = random_bytes
        salt = random_bytes(SALT_BYTES)
        generation = before.generation + 1
        shares = split_seal_key(
            self.seal_key, before.store_id, generation, action.threshold, len(custodians)
        )
        marks = marks_of(shares, salt)
        self.body = SealBody(
            store_id=before.store_id,
            tier=before.tier,
            generation=generation,
            threshold=action.threshold,
            salt=salt,
            shares=marks,
            keepers=(),
            made_at=now,
            revision=before.revision + 1,
        )
        self.envelopes = {
            officer.code: Sm2PublicKey.load(officer.public_key).encrypt(
                KIND_SHARE + encode_share(share).encode()
            )
            for officer, share in zip(custodians, shares, strict=True)
        }
        self._marks = dict(zip((officer.code for officer in custodians), marks, strict=True))
        self._confirmed: set[str] = set()

    @property
    def waiting_for(self) -> list[str]:
        """Who has not confirmed yet."""
        return [code for code in self._marks if code not in self._confirmed]

    @property
    def salt(self) -> bytes:
        """The salt of the commitments, 16 bytes, by which a custodian confirms."""
        return self.body.salt

    def confirm(self, code: str, commitment: bytes) -> bool:
        """Take a custodian's word, and the proof of it, that the share is in hand. Returns whether that is new.

        Raises:
            ShareRefused: the custodian has no share in this seal, or holds something else.
        """
        mark: ShareMark | None = self._marks.get(code)
        if mark is None:
            raise ShareRefused(f"{code} has no share in this seal")
        if not compare_digest(mark.commitment, commitment):
            raise ShareRefused(f"what {code} holds is not share {mark.number}")
        is_new = code not in self._confirmed
        self._confirmed.add(code)
        return is_new

    def take_back(self, code: str) -> None:
        """Forget that a custodian has confirmed."""
        self._confirmed.discard(code)

    def wrapped_for(self, keepers: Sequence[Keeper]) -> list[WrappedSealKey]:
        """Return the new seal's key for each keeper, wrapped under the key that it holds."""
        return [
            wrap_for_keeper(self.seal_key, keeper.name, keeper.hint, keeper.key, self._random_bytes)
            for keeper in keepers
        ]

    def rows(
        self, contents: Contents, done: Proposal, keepers: Sequence[WrappedSealKey]
    ) -> tuple[list[Put], OpenSeal]:
        """Return every row of the store under the new seal, and that seal, open.

        `done` is the proposal that decided on the seal, as it is when the seal takes effect.
        """
        self.body = msgspec.structs.replace(self.body, keepers=tuple(keepers))
        lmks = {domain: SecretKey.generate(Algorithm.SM4) for domain in Domain}
        revisions = {d: contents.seal.wrapping_revisions[d] + 1 for d in Domain}
        random_bytes = self._random_bytes
        puts = [
            Put(seal_row(self.seal_key, Kind.SEAL, self.body.store_id, "", self.body, random_bytes))
        ]
        for domain, lmk in lmks.items():
            body = WrappingKeyBody(domain, self.body.generation, revisions[domain])
            puts.append(Put(seal_wrapping_key(self.seal_key, body, lmk, random_bytes)))
        seal = OpenSeal(self.body, lmks, revisions, tuple(put.row for put in puts))
        for row, thing in contents.opened.values():
            is_done = isinstance(thing, Proposal) and thing.proposal_id == done.proposal_id
            moved = self._moved(contents, row, done if is_done else thing, lmks)
            if moved is not None:
                puts.append(Put(moved))
        return puts, seal

    def _moved(
        self, contents: Contents, row: Row, thing: object, lmks: dict[Domain, SecretKey]
    ) -> Row | None:
        random_bytes = self._random_bytes
        if isinstance(thing, HeldKey):
            return seal_key_row(
                lmks[thing.header.domain], changed(thing.header), thing.key, random_bytes
            )
        if isinstance(thing, Officer | Proposal):
            decided: Struct = msgspec.structs.replace(thing, revision=thing.revision + 1)
            return seal_row(lmks[thing.domain], row.kind, row.id, row.domain, decided, random_bytes)
        if isinstance(thing, Terminal):
            moved = msgspec.structs.replace(thing, revision=thing.revision + 1)
            return seal_row(lmks[Domain.LOCAL], row.kind, row.id, row.domain, moved, random_bytes)
        if isinstance(thing, HeldAuthority):
            return thing.moved(lmks[Domain.LOCAL], random_bytes)
        if isinstance(thing, HeldPsam):
            # The key of its counters stays, and with it what they are sealed under.
            kept = msgspec.structs.replace(thing.kept, revision=thing.kept.revision + 1)
            return psam_row(lmks[Domain.LOCAL], HeldPsam(kept, thing.key), random_bytes)
        if row.kind is Kind.IDENTITY:
            identity = msgspec.structs.replace(
                contents.identity_body, revision=contents.identity_body.revision + 1
            )
            return identity_row(lmks[Domain.LOCAL], identity, contents.identity, random_bytes)
        return None


def require_rekey(contents: Contents, domain: Domain, action: Rekey) -> list[Officer]:
    """Return the custodians of a new seal.

    Raises:
        DomainCrossed: another domain than LOCAL asks.
        BadParameter: somebody is no custodian, or the threshold is above the number of shares.
    """
    if domain is not Domain.LOCAL:
        raise DomainCrossed("the seal is the daemon's own: LOCAL's officers decide on it")
    if action.threshold > len(action.custodians):
        raise BadParameter("there would be fewer shares than are needed")
    return custodians_of(contents, domain, action.custodians)
