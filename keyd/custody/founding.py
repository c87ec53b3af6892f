"""The first rows of a store: its seal, the domains' wrapping keys, keyd's own key, and the first officers.

Founding is the one act without dual control, since there is nobody yet to exercise it. It is done once, on a store
that is empty, by the people who will hold the shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody.appointing import LEAST_SECURITY_OFFICERS
from keyd.custody.bodies import (
    IDENTITY_ID,
    SALT_BYTES,
    STORE_ID_BYTES,
    IdentityBody,
    SealBody,
    WrappingKeyBody,
    encode,
    seal_row,
    seal_wrapping_key,
)
from keyd.custody.officers import Officer, OfficerRole, require_public_key
from keyd.custody.seal import marks_of, split_seal_key, wrap_for_keeper
from keyd.errors import BadParameter
from keyd.keys.block import NONCE_BYTES, Domain, Tier
from keyd.store.rows import Kind, Put, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.crypto.shares import Share
    from keyd.custody.bodies import WrappedSealKey


class Keeper(Struct, frozen=True):
    """Something other than people that can open the seal: its name, what it needs to find its key, and the key."""

    name: str
    hint: bytes
    key: SecretKey


class Founded(Struct, frozen=True):
    """A store's first rows, and the shares that will open it: to be handed out, and kept nowhere."""

    store_id: bytes
    public_key: bytes
    changes: list[Put]
    shares: list[Share]


def found(
    *,
    tier: Tier,
    threshold: int,
    share_count: int,
    officers: Sequence[Officer],
    keepers: Sequence[Keeper],
    now: int,
    random_bytes: Callable[[int], bytes],
) -> Founded:
    """Make a store's first rows.

    Raises:
        BadParameter: a domain has officers but cannot decide anything, LOCAL has none, threshold and number of
            shares do not go together, or an officer or a keeper is not what one is.
    """
    if not 1 <= threshold <= share_count <= 255:
        raise BadParameter(
            "the threshold is between 1 and the number of shares, which is at most 255"
        )
    _require_able(officers)
    if len({(keeper.name, keeper.hint) for keeper in keepers}) != len(keepers):
        raise BadParameter("a keeper is named twice")
    store_id = random_bytes(STORE_ID_BYTES)
    seal_key = SecretKey.generate(Algorithm.SM4)
    salt = random_bytes(SALT_BYTES)
    shares = split_seal_key(seal_key, store_id, 1, threshold, share_count)
    wrapped: list[WrappedSealKey] = [
        wrap_for_keeper(seal_key, keeper.name, keeper.hint, keeper.key, random_bytes)
        for keeper in keepers
    ]
    body = SealBody(
        store_id=store_id,
        tier=tier,
        generation=1,
        threshold=threshold,
        salt=salt,
        shares=marks_of(shares, salt),
        keepers=tuple(wrapped),
        made_at=now,
    )
    try:
        changes = [Put(seal_row(seal_key, Kind.SEAL, store_id, "", body, random_bytes))]
    except ValueError:
        raise BadParameter("a keeper's name has 1 to 32 characters, its hint 1024 bytes") from None
    lmks = {domain: SecretKey.generate(Algorithm.SM4) for domain in Domain}
    for domain, lmk in lmks.items():
        wrapping = WrappingKeyBody(domain, 1)
        changes.append(Put(seal_wrapping_key(seal_key, wrapping, lmk, random_bytes)))
    identity = Sm2PrivateKey.generate()
    identity_body = IdentityBody(identity.public.encode(), now)
    changes.append(Put(identity_row(lmks[Domain.LOCAL], identity_body, identity, random_bytes)))
    for officer in officers:
        row = seal_row(
            lmks[officer.domain],
            Kind.OFFICER,
            officer.title.encode(),
            officer.domain.value,
            officer,
            random_bytes,
        )
        changes.append(Put(row))
    return Founded(store_id, identity.public.encode(), changes, shares)


def identity_row(
    lmk: SecretKey,
    body: IdentityBody,
    identity: Sm2PrivateKey,
    random_bytes: Callable[[int], bytes],
) -> Row:
    """Make the row of keyd's own key."""
    encoded = encode(body)
    nonce = random_bytes(NONCE_BYTES)
    wrapped = identity.wrapped_under(lmk, nonce, encoded)
    return Row(
        Kind.IDENTITY, IDENTITY_ID, Domain.LOCAL.value, body.revision, encoded, nonce, wrapped
    )


def _require_able(officers: Sequence[Officer]) -> None:
    for officer in officers:
        # A struct checks nothing when it is made.
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(officer), type=Officer)
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadParameter(f"{officer.title} is no officer: {error}") from None
        if officer.is_retired or officer.revision != 1:
            raise BadParameter(f"{officer.title} would have served before the founding")
    titles = [officer.title for officer in officers]
    if len(set(titles)) != len(titles):
        raise BadParameter("an officer is named twice")
    points = [officer.public_key for officer in officers]
    if len(set(points)) != len(points):
        # One key in two domains would be one person in two domains, without saying so.
        raise BadParameter("two officers have one public key")
    for officer in officers:
        require_public_key(officer.public_key)
    for domain in {officer.domain for officer in officers} | {Domain.LOCAL}:
        able = [
            officer
            for officer in officers
            if officer.domain is domain and OfficerRole.SECURITY_OFFICER in officer.roles
        ]
        if len(able) < LEAST_SECURITY_OFFICERS:
            raise BadParameter(
                f"{domain} needs {LEAST_SECURITY_OFFICERS} security officers at least: one proposes, "
                "another approves"
            )
