"""What custody tests share: a founded store with people in every domain, vaults on it, and a store that fails.

Founding and making a store cost more than most tests, so it is done once and the file is copied.
"""

from __future__ import annotations

import functools
import gc
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.native import _core
from keyd.crypto.secret import SecretKey
from keyd.crypto.shares import decode_share, share_commitment
from keyd.crypto.sm2 import Sm2PrivateKey, Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.ceremony import KIND_COMPONENT
from keyd.custody.founding import Founded, found
from keyd.custody.officers import Officer, OfficerRole
from keyd.custody.rekeying import KIND_SHARE
from keyd.custody.vault import Vault
from keyd.errors import ChangedMeanwhile, StoreUnavailable
from keyd.keys.block import Domain, KeyHeader, Tier, Use
from keyd.registry.psam import PsamSpec
from keyd.store.database import OutcomeUnknown, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.crypto.shares import Share
    from keyd.custody.contents import Contents
    from keyd.custody.proposals import Proposal
    from keyd.store.rows import Change, Snapshot

NOON: Final = 1_800_000_000
DAY: Final = 24 * 3600

SECURITY: Final = OfficerRole.SECURITY_OFFICER
CUSTODIAN: Final = OfficerRole.CUSTODIAN

# Who is in every domain, and as what.
PEOPLE: Final = {
    "a": (SECURITY, CUSTODIAN),
    "b": (SECURITY, CUSTODIAN),
    "c": (CUSTODIAN,),
    "d": (SECURITY,),
    "e": (OfficerRole.OPERATOR, OfficerRole.AUDITOR),
}

# An address of each domain; 0000 to 01FF are SOCIAL's alone.
ADDRESS: Final = {
    Domain.SOCIAL: 0x0170,
    Domain.FINANCE: 0x2000,
    Domain.ACSE: 0x3000,
    Domain.LOCAL: 0x4000,
}

THRESHOLD: Final = 2
SHARES: Final = 3


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return float(self.now)


@functools.cache
def private_key(domain: Domain, code: str) -> Sm2PrivateKey:
    """The private key of somebody, the same in all tests."""
    return Sm2PrivateKey.generate()


def person(domain: Domain, code: str, roles: Sequence[OfficerRole] | None = None) -> Officer:
    """Somebody, as they are named at the founding."""
    point = private_key(domain, code).public.encode()
    chosen = tuple(PEOPLE[code] if roles is None else roles)
    return Officer(domain, code, f"Officer {code}", chosen, point, "founding", NOON)


@functools.cache
def _template(tier: Tier) -> tuple[Path, Founded]:
    founded = found(
        tier=tier,
        threshold=THRESHOLD,
        share_count=SHARES,
        officers=[person(domain, code) for domain in Domain for code in PEOPLE],
        keepers=[],
        now=NOON,
        random_bytes=secrets.token_bytes,
    )
    path = Path(tempfile.mkdtemp(prefix="keyd-custody-")) / "store.db"
    store = Store.create(f"sqlite:///{path}")
    store.commit(founded.changes)
    store.close()
    return path, founded


class World:
    """A founded store, its people, and vaults on it that are open. `codes` are those that `decide` takes."""

    def __init__(
        self,
        folder: Path | None = None,
        url: str | None = None,
        tier: Tier = Tier.NATIONAL,
        source: Path | None = None,
    ) -> None:
        path, self.founded = _template(tier)
        path = source or path
        self.clock = Clock()
        self._names = 0
        if url is None:
            folder = folder or Path(tempfile.mkdtemp(prefix="keyd-custody-"))
            self.path = folder / "world.db"
            shutil.copy(path, self.path)
            self.path.chmod(0o600)
            self.url = f"sqlite:///{self.path}"
            self.store = Store.open(self.url)
        else:
            self.url = url
            self.store = Store.create(url)
            self.store.commit(self.founded.changes)
        self._vault: Vault | None = None

    @property
    def vault(self) -> Vault:
        """The first vault, open."""
        if self._vault is None:
            self._vault = self.open_vault()
        return self._vault

    def sealed_vault(self, store: Any = None, name: str = "") -> Vault:
        """Another vault on the store, sealed."""
        self._names += 1
        return Vault(
            store or self.store,
            name or f"keyd{self._names}",
            self.clock,
            secrets.token_bytes,
            lambda: None,
        )

    def open_vault(self, store: Any = None, shares: Sequence[Share] = ()) -> Vault:
        """Another vault on the store, open."""
        vault = self.sealed_vault(store)
        for share in (shares or self.founded.shares)[:THRESHOLD]:
            vault.give_share(share)
        assert not vault.is_sealed
        return vault

    def restart(self) -> Vault:
        """Let the first vault die, as by SIGKILL, and begin again."""
        self._vault = None
        gc.collect()
        return self.vault

    def close(self) -> None:
        """Close the store and take its file away."""
        self.store.close()

    def officer(self, domain: Domain, code: str, vault: Vault | None = None) -> Officer:
        """An officer as a vault has them."""
        found_officer = contents_of(vault or self.vault).officer(domain, code)
        assert found_officer is not None
        return found_officer

    def propose(
        self, domain: Domain, action: act.Action, by: str = "a", vault: Vault | None = None
    ) -> Proposal:
        """Let somebody propose."""
        vault = vault or self.vault
        return vault.propose(self.officer(domain, by, vault), action)

    def approve(self, proposal: Proposal, by: str = "b", vault: Vault | None = None) -> Proposal:
        """Let somebody approve."""
        vault = vault or self.vault
        return vault.approve(
            self.officer(proposal.domain, by, vault), proposal.proposal_id
        ).proposal

    def decide(self, domain: Domain, action: act.Action, vault: Vault | None = None) -> Proposal:
        """Let two people decide."""
        return self.approve(self.propose(domain, action, vault=vault), vault=vault)

    def make_key(
        self,
        domain: Domain = Domain.SOCIAL,
        *,
        active: bool = True,
        vault: Vault | None = None,
        **fields: Any,
    ) -> bytes:
        """Generate a key and return its id."""
        done = self.decide(domain, act.GenerateKey(spec(domain, **fields)), vault)
        if active:
            self.decide(domain, act.Activate(done.result["key_id"]), vault)
        return done.result["key_id"]

    def header(self, key_id: bytes, vault: Vault | None = None) -> KeyHeader:
        """A key's header as a vault has it."""
        return contents_of(vault or self.vault).keys[key_id].header

    def load_key(
        self,
        material: bytes,
        domain: Domain = Domain.SOCIAL,
        vault: Vault | None = None,
        **fields: Any,
    ) -> bytes:
        """Bring a known key in, as two components, activate it and return its id."""
        vault = vault or self.vault
        proposal = self.propose(domain, act.ImportKey(spec(domain, **fields), 2), vault=vault)
        mask = secrets.token_bytes(len(material))
        halves = (mask, bytes(x ^ y for x, y in zip(mask, material, strict=True)))
        for number, (code, half) in enumerate(zip("ac", halves, strict=True), 1):
            self.enter(proposal, code, number, half, vault=vault)
        done = self.approve(proposal, vault=vault)
        self.decide(domain, act.Activate(done.result["key_id"]), vault)
        return done.result["key_id"]

    def enter(
        self,
        proposal: Proposal,
        code: str,
        number: int,
        component: bytes,
        kcv: bytes | None = None,
        vault: Vault | None = None,
    ) -> dict[int, str]:
        """Let a custodian enter a component."""
        vault = vault or self.vault
        action = proposal.action
        assert isinstance(action, act.NewKey)
        return vault.enter_component(
            self.officer(proposal.domain, code, vault),
            proposal.proposal_id,
            number,
            envelope(component, vault),
            kcv or kcv_of(component, action.key.algorithm),
        )

    def taken(self, proposal: Proposal, code: str, vault: Vault | None = None) -> bytes:
        """Let somebody take what is for them, and open it."""
        vault = vault or self.vault
        officer = self.officer(proposal.domain, code, vault)
        opened = private_key(proposal.domain, code).decrypt(
            vault.take(officer, proposal.proposal_id)
        )
        for kind in (KIND_COMPONENT, KIND_SHARE):
            if opened.startswith(kind):
                return opened.removeprefix(kind)
        raise AssertionError("it is neither a component nor a share")

    def share_of(self, proposal: Proposal, code: str, vault: Vault | None = None) -> Share:
        """Let somebody take their new share."""
        return decode_share(self.taken(proposal, code, vault).decode())

    def confirm(self, proposal: Proposal, code: str, vault: Vault | None = None) -> Proposal:
        """Let somebody take their new share and confirm it."""
        vault = vault or self.vault
        share = self.share_of(proposal, code, vault)
        salt = contents_of(vault).proposals[proposal.proposal_id].result["salt"]
        officer = self.officer(proposal.domain, code, vault)
        return vault.confirm_share(
            officer, proposal.proposal_id, share_commitment(share, salt)
        ).proposal


def contents_of(vault: Vault) -> Contents:
    """What an open vault holds."""
    assert vault.contents is not None
    return vault.contents


def spec(domain: Domain = Domain.SOCIAL, **fields: Any) -> act.KeySpec:
    """A card's root, or with `use=Use.TRANSPORT` a transport key."""
    is_transport = fields.get("use") is Use.TRANSPORT
    values: dict[str, Any] = {
        "tier": Tier.NATIONAL,
        "name": "KEK" if is_transport else "IRK",
        "algorithm": Algorithm.SM4,
        "use": Use.INTERNAL,
        "addresses": () if is_transport else (ADDRESS[domain],),
        "levels": 0 if is_transport else 3,
    }
    return act.KeySpec(**(values | fields))


def psam_spec(count: int = 428, **fields: Any) -> PsamSpec:
    """A PSAM that keyd is to play, which may use the cards' internal and external keys."""
    values: dict[str, Any] = {
        "number": bytes.fromhex(f"5101{count:08}"),
        "serial": bytes.fromhex(f"51010020{count:012}"),
        "profile": "social-security",
        "environment": CardAlgorithm.SM4,
        "keys": ("IRK", "RK*"),
    }
    return PsamSpec(**(values | fields))


def kcv_of(material: bytes, algorithm: Algorithm = Algorithm.SM4) -> bytes:
    """The check value of key bytes."""
    return SecretKey.load(algorithm, material).kcv()


def envelope(material: bytes, vault: Vault) -> bytes:
    """Key bytes, encrypted to a vault's public key."""
    return Sm2PublicKey.load(contents_of(vault).identity_body.public_key).encrypt(material)


def cells_in_use() -> int:
    """How many keys are in locked memory."""
    gc.collect()
    return _core.arena_info().used


class FailingStore:
    """A real store behind a cable: `plan` says what the next commits come to, in their order.

    None lets one through. "unavailable" and "changed" refuse one, "lost" makes one and loses the answer, "cut" loses
    one before it is made, "blind" makes one, after which nothing can be read once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.plan: list[str | None] = []
        self.commits = 0
        self._is_blind = False

    def commit(
        self,
        changes: Sequence[Change],
        records: Sequence[bytes] = (),
        instance: str = "",
        expected_number: int | None = None,
    ) -> int:
        self.commits += 1
        failure = self.plan.pop(0) if self.plan else None
        if failure == "unavailable":
            raise StoreUnavailable
        if failure == "changed":
            raise ChangedMeanwhile
        if failure == "cut":
            raise OutcomeUnknown
        number = self._store.commit(changes, records, instance, expected_number)
        if failure == "lost":
            raise OutcomeUnknown
        self._is_blind = failure == "blind"
        return number

    def load(self) -> Snapshot:
        self._see()
        return self._store.load()

    def change_number(self) -> int:
        self._see()
        return self._store.change_number()

    def _see(self) -> None:
        if self._is_blind:
            self._is_blind = False
            raise StoreUnavailable


FAILURES: Final = ("unavailable", "changed", "cut", "lost", "blind")

# Those after which nothing was made.
NOTHING_MADE: Final = frozenset({"unavailable", "changed", "cut"})
