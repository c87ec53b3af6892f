"""A founded store for tests: synthetic roots and terminals in it, officers with keys, a credential that unseals it.

What officers do one key at a time, with two signatures each, is put in directly here: tests/custody tests that.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody.bodies import seal_key_row, seal_row
from keyd.custody.founding import Keeper, found
from keyd.custody.officers import Officer, OfficerRole
from keyd.custody.vault import Vault
from keyd.custody.work import Outcome
from keyd.keys.block import Domain, Tier
from keyd.keys.roots import synthetic_terminals_master
from keyd.store.database import Store
from keyd.store.rows import Kind, Put

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyd.crypto.shares import Share
    from keyd.custody.contents import Contents
    from keyd.keys.block import KeyHeader
    from keyd.registry.terminal import Terminal

# A policy under which terminals with synthetic keys may ask for everything.
EVERYTHING: Final = Path(__file__).with_name("everything.toml")

ROLES: Final = {
    "proposer": (OfficerRole.SECURITY_OFFICER, OfficerRole.OPERATOR),
    "approver": (OfficerRole.SECURITY_OFFICER,),
    "custodian-1": (OfficerRole.CUSTODIAN,),
    "custodian-2": (OfficerRole.CUSTODIAN,),
    "custodian-3": (OfficerRole.CUSTODIAN,),
    "auditor": (OfficerRole.AUDITOR,),
}


class Founded(NamedTuple):
    """What the people in the room have after a founding."""

    url: str
    shares: list[Share]
    credential: Path
    officers: dict[tuple[Domain, str], Sm2PrivateKey]


def founded_store(
    folder: Path,
    keys: Iterable[tuple[KeyHeader, SecretKey]] = (),
    *,
    url: str | None = None,
    threshold: int = 2,
    share_count: int = 3,
    tier: Tier = Tier.NATIONAL,
    domains: tuple[Domain, ...] = (Domain.LOCAL, Domain.SOCIAL),
    terminals: Mapping[str, Terminal] | None = None,
) -> Founded:
    """Found a store in a folder, with officers of every role in each domain, and put keys into it as they are.

    With terminals, these as well, and the synthetic terminal master key.
    """
    if terminals:
        keys = [*keys, synthetic_terminals_master()]
    officers = {(domain, code): Sm2PrivateKey.generate() for domain in domains for code in ROLES}
    material = secrets.token_bytes(16)
    credential = folder / "seal.credential"
    credential.write_text(material.hex())
    credential.chmod(0o600)
    made = found(
        tier=tier,
        threshold=threshold,
        share_count=share_count,
        officers=[
            Officer(domain, code, code, ROLES[code], key.public.encode(), "founding", 0)
            for (domain, code), key in officers.items()
        ],
        keepers=[Keeper("credential", b"", SecretKey.load(Algorithm.SM4, material))],
        now=int(time.time()),
        random_bytes=secrets.token_bytes,
    )
    url = url or f"sqlite:///{folder / 'keyd.db'}"
    store = Store.create(url)
    store.commit(made.changes)
    vault = Vault(store, "founding", time.time, secrets.token_bytes, lambda: None)
    for share in made.shares[:threshold]:
        vault.give_share(share)
    contents = vault.contents
    assert contents is not None
    puts = [
        Put(
            seal_key_row(
                contents.seal.wrapping_keys[header.domain], header, key, secrets.token_bytes
            )
        )
        for header, key in keys
    ]
    if terminals:
        puts += _terminal_puts(contents, terminals)
    if puts:
        vault._holding.commit(Outcome(list(puts)))
    vault.seal()
    store.close()
    return Founded(url, made.shares, credential, officers)


def _terminal_puts(contents: Contents, terminals: Mapping[str, Terminal]) -> list[Put]:
    """Return what puts terminals into the store as they are."""
    lmk = contents.seal.wrapping_keys[Domain.LOCAL]
    domain = Domain.LOCAL.value
    return [
        Put(seal_row(lmk, Kind.TERMINAL, code.encode(), domain, terminal, secrets.token_bytes))
        for code, terminal in terminals.items()
    ]
