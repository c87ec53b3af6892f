"""The key ring: a `Sam` in software. It holds the roots, decides which of them answers, and computes.

Which key answers is decided by address, algorithm, version and purpose, and by what its header allows: state,
validity, use, mode. City keys are kept in a small cache, because a city issues millions of cards; card keys never
are. What was decided is cached with the city's key, so a change of any key empties the cache (`load`), and so does
every moment at which a key begins or ceases to be valid. A batch looks at the clock once.
"""

from __future__ import annotations

import math
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.native._core import CardKernel
from keyd.errors import (
    AlgorithmNotSupported,
    KeyExhausted,
    KeyNotFound,
    KeyNotValidNow,
    KeyStateRefused,
    KeyUsageRefused,
    KeyVersionRefused,
    Refusal,
)
from keyd.keys.block import KeyState, Mode, Use
from keyd.keys.hierarchy import Region, RootKey, TerminalMasterKey, city_key, root_key
from keyd.keys.sam import (
    CardKeyRef,
    CryptogramTask,
    MacTask,
    ProofTask,
    ProtectTask,
    SamTask,
    TacTask,
    TerminalKeyRef,
    purpose_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from keyd.crypto.native._core import KeyHandle
    from keyd.crypto.secret import SecretKey
    from keyd.keys.block import KeyHeader
    from keyd.keys.sam import Purpose

# China has about 400 cities and a key ring some 155 addresses; a machine park asks for few of either.
MAX_CITY_KEYS: Final = 4096

# Which card algorithm a loaded key answers to. A DES card has 3DES keys and single-length ones (STK).
_CARD_ALGORITHM: Final = {
    Algorithm.SM4: CardAlgorithm.SM4,
    Algorithm.TDES: CardAlgorithm.DES,
    Algorithm.DES: CardAlgorithm.DES,
}

# States in which a key computes anything at all.
_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.DEACTIVATED})

_Place = tuple[int, CardAlgorithm]


class LoadedKey(Struct, frozen=True):
    """A root in the ring, of cards or of terminals, and the header that came with it."""

    header: KeyHeader
    root: RootKey | TerminalMasterKey


class Quota(Protocol):
    """How often a key with a ceiling may still be used."""

    def take(self) -> bool:
        """Use it once; False if it may not be used any more. A Refusal refuses this one task."""


class KeyRing:
    """Roots by logical address, card algorithm and version. `now` gives the time in seconds since 1970."""

    def __init__(
        self,
        keys: Iterable[tuple[KeyHeader, SecretKey]] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._roots: dict[_Place, dict[int, LoadedKey]] = {}
        self._counted: frozenset[int] = frozenset()
        self._quotas: Mapping[bytes, Quota] = {}
        self._kernel = CardKernel(
            cryptogram=CryptogramTask,
            mac=MacTask,
            protect=ProtectTask,
            tac=TacTask,
            max_cities=MAX_CITY_KEYS,
        )
        # Grows whenever something else may be decided than before.
        self.epoch = 0
        # When it was last decided, and from when until when every decision is the same.
        self._at = self._since = self._until = 0.0
        self.load(keys)

    def load(
        self,
        keys: Iterable[tuple[KeyHeader, SecretKey]],
        quotas: Mapping[bytes, Quota] | None = None,
    ) -> None:
        """Replace all keys. `quotas`, by key id, belong to those that have a ceiling: one without is refused.

        Raises:
            ValueError: two keys have one id, or answer for one address, algorithm and version; or keys of two
                domains answer for one address and algorithm. Nothing is replaced then.
        """
        roots: dict[_Place, dict[int, LoadedKey]] = {}
        key_ids: set[bytes] = set()
        counted: set[int] = set()
        for header, key in keys:
            if not header.levels:
                continue  # no card's root: a key-transport key, for instance
            if header.key_id in key_ids:
                raise ValueError(f"two keys have the id of {header.label}")
            key_ids.add(header.key_id)
            is_of_terminals = header.use is Use.TERMINAL
            root = TerminalMasterKey(key) if is_of_terminals else root_key(key, header.levels)
            loaded = LoadedKey(header, root)
            for address in set(header.addresses):
                versions = roots.setdefault((address, _CARD_ALGORITHM[header.algorithm]), {})
                _require_room(versions, header, address)
                versions[header.version] = loaded
                if header.ceiling:
                    counted.add(address)
        self._roots, self._counted = roots, frozenset(counted)
        self._quotas = {} if quotas is None else quotas
        self.refresh()

    @property
    def headers(self) -> tuple[KeyHeader, ...]:
        """The headers of all loaded roots, by lowest address, algorithm and version."""
        found = {
            versions[number].header.key_id: versions[number].header
            for _place, versions in sorted(self._roots.items(), key=itemgetter(0))
            for number in sorted(versions)
        }
        return tuple(found.values())

    def refresh_at(self) -> float | None:
        """Return when next a key begins or ceases to be valid.

        The ring itself notices; whoever keeps what it gave (see `maybe_city`) has to let go of it then.
        """
        now = self._now()
        return min((moment for moment in self._moments() if moment > now), default=None)

    def refresh(self) -> None:
        """Let go of all cities' keys, so that everything is decided afresh."""
        self._at = self._now()
        moments = self._moments()
        self._since = max((moment for moment in moments if moment <= self._at), default=-math.inf)
        self._until = min((moment for moment in moments if moment > self._at), default=math.inf)
        self._kernel.forget()
        self.epoch += 1

    def header_of(self, address: int, algorithm: CardAlgorithm, purpose: int) -> KeyHeader | None:
        """Return the header of the key that answers at a place, or that would if it might; None if there is none."""
        versions = self._roots.get((address, algorithm))
        if not versions:
            return None
        try:
            return self._version(address, versions, purpose_of(purpose).version).header
        except KeyVersionRefused:
            return None

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """Compute a batch; see `keyd.keys.sam.Sam`. All of it is decided for one moment."""
        self.look_at_clock()
        if self._counted:
            return self._compute_counted(tasks)
        return self._kernel.compute(tasks, self._open_city)

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        """Make proofs between terminals and keyd; see `keyd.keys.sam.Sam`.

        Terminals' keys are not kept: a proof costs the same whether its terminal was here before, or is one at all.
        """
        self.look_at_clock()
        results: list[bytes | Refusal] = []
        for task in tasks:
            try:
                results.append(self._prove(task))
            except Refusal as refusal:
                results.append(refusal)
        return results

    def maybe_city(
        self, address: int, algorithm: CardAlgorithm, region: Region, purpose: int
    ) -> KeyHandle | None:
        """Return a city's key if it is among those kept, for who computes with it beside the ring.

        None as well where uses are counted, which only the ring does.
        """
        self.look_at_clock()
        if address in self._counted:
            return None
        return self._kernel.city(address, algorithm, region, purpose)

    def answering(self, ref: CardKeyRef) -> KeyHeader:
        """Return the header of the key that answers for a reference.

        Raises:
            AlgorithmNotSupported, KeyNotFound: there is none.
            KeyVersionRefused, KeyStateRefused, KeyNotValidNow, KeyUsageRefused: there is one, and it must not.
        """
        self.look_at_clock()
        return self._resolve(ref).header

    def lend(self, ref: CardKeyRef) -> RootKey:
        """Return the root that answers for a reference, for who plays a PSAM with it; that is one use of it.

        The reference's region and diversifier do not matter: a PSAM's terminal brings its own.

        Raises:
            As `answering`, and KeyExhausted: it has been used as often as it may be.
        """
        self.look_at_clock()
        self._count(ref)
        return _root_of_cards(self._resolve(ref))

    def look_at_clock(self) -> None:
        """Decide for this moment from now on; if something is decided otherwise than before, it is another epoch."""
        self._at = self._now()
        # Not only the end: a clock that is set back makes keys unborn again.
        if not self._since <= self._at < self._until:
            self.refresh()

    def _moments(self) -> set[int]:
        """Return when keys begin and cease to be valid. In between, no decision depends on the time."""
        headers = self.headers
        ends = {header.valid_until for header in headers if header.valid_until}
        return ends | {header.valid_from for header in headers}

    def _open_city(self, ref: CardKeyRef) -> KeyHandle:
        return city_key(_root_of_cards(self._resolve(ref)), ref.region).handle

    def _prove(self, task: ProofTask) -> bytes:
        ref = task.key
        if ref.address in self._counted:
            self._count(ref)
        loaded = self._resolve(ref)
        if not isinstance(loaded.root, TerminalMasterKey):
            raise KeyUsageRefused(f"{loaded.header.label} is a card's root and above no terminal")
        return loaded.root.diversify(ref.factor).diversify(ref.side).proof(task.challenge, task.own)

    def _compute_counted(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """Compute a batch of which some tasks may use keys with a ceiling: those count first, in their order.

        A use counts even if its task is then refused for another reason: the count is never less than the uses.
        """
        refused: dict[int, Refusal] = {}
        for i in [i for i, task in enumerate(tasks) if task.key.address in self._counted]:
            try:
                self._count(tasks[i].key)
            except Refusal as refusal:
                refused[i] = refusal
        if not refused:
            return self._kernel.compute(tasks, self._open_city)
        left = [task for i, task in enumerate(tasks) if i not in refused]
        results = iter(self._kernel.compute(left, self._open_city))
        return [refused[i] if i in refused else next(results) for i in range(len(tasks))]

    def _count(self, ref: CardKeyRef | TerminalKeyRef) -> None:
        header = self._resolve(ref).header
        if not header.ceiling:
            return  # it is another key at this address that has one
        quota = self._quotas.get(header.key_id)
        if quota is None or not quota.take():
            raise KeyExhausted(f"{header.label} has been used as often as it may be")

    def _resolve(self, ref: CardKeyRef | TerminalKeyRef) -> LoadedKey:
        if ref.algorithm is CardAlgorithm.SSF33:
            raise AlgorithmNotSupported("SSF33 is not published; it needs hardware that offers it")
        versions = self._roots.get((ref.address, ref.algorithm))
        if not versions:
            raise KeyNotFound(
                f"no key is loaded for address {ref.address:04X} and {ref.algorithm.name}"
            )
        wanted = purpose_of(ref.purpose)
        loaded = self._version(ref.address, versions, wanted.version)
        self._require_allowed(loaded.header, wanted)
        return loaded

    def _version(self, address: int, versions: Mapping[int, LoadedKey], wanted: int) -> LoadedKey:
        least = max(loaded.header.minimum_version for loaded in versions.values())
        if wanted:
            if wanted < least:
                raise KeyVersionRefused(
                    f"address {address:04X} accepts version {least} and later, not {wanted}"
                )
            if wanted not in versions:
                raise KeyVersionRefused(f"address {address:04X} has no version {wanted}")
            return versions[wanted]
        accepted = [loaded for number, loaded in versions.items() if number >= least]
        if not accepted:
            raise KeyVersionRefused(
                f"address {address:04X} accepts version {least} and later, and has none"
            )
        return max(accepted, key=self._currency)

    def _currency(self, loaded: LoadedKey) -> tuple[bool, bool, int]:
        # The current version is the newest that is active and valid. Without one the newest that is alive stands
        # for it: deactivated, it still verifies. Without that, the newest says why nothing answers.
        header = loaded.header
        is_current = header.state is KeyState.ACTIVE and self._is_valid(header)
        return is_current, header.state in _LIVE, header.version

    def _require_allowed(self, header: KeyHeader, wanted: Purpose) -> None:
        if header.use is not wanted.use:
            raise KeyUsageRefused(f"{header.label} is for {header.use}, not {wanted.use}")
        mode = Mode.VERIFY if wanted.is_verifying else Mode.PRODUCE
        if mode not in header.modes:
            raise KeyUsageRefused(f"{header.label} may not {mode}")
        if header.state not in _LIVE:
            raise KeyStateRefused(f"{header.label} is {header.state}")
        if header.state is KeyState.DEACTIVATED and not wanted.is_verifying:
            raise KeyStateRefused(
                f"{header.label} is deactivated: it verifies and makes nothing new"
            )
        if not self._is_valid(header):
            raise KeyNotValidNow(f"{header.label} is not valid at this time")

    def _is_valid(self, header: KeyHeader) -> bool:
        has_begun = header.valid_from <= self._at
        return has_begun and (not header.valid_until or self._at < header.valid_until)


def _root_of_cards(loaded: LoadedKey) -> RootKey:
    if isinstance(loaded.root, TerminalMasterKey):
        raise KeyUsageRefused(f"{loaded.header.label} is above terminals and no card's root")
    return loaded.root


def _require_room(versions: Mapping[int, LoadedKey], header: KeyHeader, address: int) -> None:
    """Raise ValueError if a key cannot stand beside those that answer at its place already."""
    if header.version in versions:
        raise ValueError(f"two keys for address {address:04X}, one algorithm and one version")
    if any(loaded.header.domain is not header.domain for loaded in versions.values()):
        raise ValueError(f"keys of two domains for address {address:04X} and one algorithm")
