"""What a keyd that lends PSAMs is made of: its members' sources, the pool over them, and which keys are the pool's."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from keyd.cards.profile import newest
from keyd.client import parse_address
from keyd.config import ConfigError, expand
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, Sealed
from keyd.lending.issued import Player, RingOnTick, playable
from keyd.lending.lender import Lender, Times
from keyd.lending.pcsc import PcscUnavailable
from keyd.lending.racks import RackSource
from keyd.lending.readers import ReaderSource
from keyd.lending.virtual import VirtualSource
from keyd.psam import Counters, KeySet, Psam, PsamIdentity, RingKeys, TransientMemory
from keyd.psam.level_index import every_place
from keyd.psam.pool import Pool, PoolLimits, Strategy
from keyd.psam.profile import SERIAL_BYTES, TERMINAL_BYTES
from keyd.psam.profile_files import load_psam_profiles
from keyd.routing import Routing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyd.cards.profile import Profile
    from keyd.config import PsamsConfig
    from keyd.custody.catalogue import Catalogue
    from keyd.keys.ring import KeyRing
    from keyd.lending.member import Source
    from keyd.opening import Custody
    from keyd.psam.profile import PsamProfile
    from keyd.registry.psam import KeptPsam
    from keyd.warden import Warden

# Of PSAMs with public synthetic keys, the first 终端机编号.
FIRST_SYNTHETIC: Final = 510100000001

DEFAULT_PROFILE: Final = "social-security"

# How often is looked whether a PSAM has begun or ceased to be valid.
VALIDITY_SECONDS: Final = 30.0

# How long keyd says that it is not ready yet, since PSAMs that it plays are not there.
START_SECONDS: Final = 3.0


class Pooling:
    """The lender of one keyd, and the issued PSAMs that it plays."""

    def __init__(
        self,
        lender: Lender,
        played: VirtualSource[Any] | None,
        issued: VirtualSource[KeptPsam] | None,
        ring: KeyRing,
    ) -> None:
        self._lender = lender
        self._ring = ring
        self._played = played
        self._issued = issued

    async def run(
        self, warden: Warden | None, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Lend, until it is cancelled. It has started when the PSAMs that keyd plays are there."""
        async with trio.open_nursery() as nursery:
            self.show(warden)
            nursery.start_soon(self._lender.run)
            if self._played is not None:
                # Their counters may be in a database that does not answer, and keyd has more to do than to play PSAMs.
                with trio.move_on_after(START_SECONDS):
                    await self._played.has_begun.wait()
            task_status.started()
            while True:
                await trio.sleep(VALIDITY_SECONDS)
                self.show(warden)

    def show(self, warden: Warden | None) -> None:
        """Lend the PSAMs that officers have assigned and that are valid now, and no others; while sealed, none."""
        if self._issued is None or warden is None:
            return
        contents = warden.vault.contents
        issued = {} if contents is None else playable(contents, int(time.time()))
        self._issued.show(issued, self._ring.epoch)


def load_kinds(config: PsamsConfig) -> dict[str, PsamProfile]:
    """Read the PSAM profiles that a configuration speaks of.

    Raises:
        BadParameter: a profile is wrong.
        ConfigError: the one that readers and racks have is not among them.
    """
    kinds = load_psam_profiles(expand(config.profiles) if config.profiles else None)
    if config.profile not in kinds:
        raise ConfigError(f"psams.profile: there is no {config.profile!r} in {', '.join(kinds)}")
    return kinds


def issued_psams(custody: Custody, ring: KeyRing, catalogue: Catalogue) -> VirtualSource[KeptPsam]:
    """Return the PSAMs that officers issued, which `Pooling.show` brings up to date."""
    player = Player(custody.store, RingOnTick(ring), catalogue, secrets.token_bytes)

    def play(kept: KeptPsam) -> Psam:
        contents = custody.warden.vault.contents
        if contents is None:
            raise Sealed
        return player.play(contents, kept)

    return VirtualSource(play, lambda kept: kept.terminal)


def synthetic_psams(count: int, ring: KeyRing, catalogue: Catalogue) -> VirtualSource[int]:
    """Return so many shared PSAMs with the keys of a development ring. Their numbers begin anew with each start."""
    kind = catalogue.profiles[DEFAULT_PROFILE]
    on_tick = RingOnTick(ring)

    def play(number: int) -> Psam:
        terminal = bytes.fromhex(f"{number:0{2 * TERMINAL_BYTES}}")
        return Psam(
            kind,
            PsamIdentity(terminal.rjust(SERIAL_BYTES, b"\0"), terminal),
            RingKeys(on_tick, catalogue.places, KeySet()),
            Counters(TransientMemory(), kind.purchase.numbers_reserved),
            secrets.token_bytes,
        )

    source = VirtualSource(play, lambda _number: "")
    numbers = range(FIRST_SYNTHETIC, FIRST_SYNTHETIC + count)
    source.show({f"{number:012}": number for number in numbers})
    return source


def open_pool(
    config: PsamsConfig,
    catalogue: Catalogue,
    profiles: Mapping[int, Profile],
    played: Source | None,
    say: Callable[[str, str], None],
) -> Lender | None:
    """Return whoever lends the PSAMs of a configuration, and those that keyd plays; None if there are none.

    Raises:
        ConfigError: a rack has no address, or readers are wanted and pyscard is not installed.
    """
    kind = catalogue.profiles[config.profile]
    sources: list[Source] = [] if played is None else [played]
    if config.racks:
        sources.append(RackSource([_rack(name) for name in config.racks], kind))
    if config.readers:
        try:
            sources.append(ReaderSource(config.readers, kind))
        except PcscUnavailable as error:
            raise ConfigError(f"psams.readers: {error}") from None
    if not sources:
        return None
    limits = PoolLimits(
        waiting=config.waiting,
        wait_seconds=config.wait_seconds,
        turn_seconds=config.turn_seconds,
        idle_seconds=config.idle_seconds,
    )
    keys = newest(profiles).keys
    return Lender(
        Pool(limits, Strategy(config.strategy)),
        sources,
        keys,
        every_place(keys.values(), tuple(CardAlgorithm)),
        kind,
        Times(config.answer_seconds, config.open_seconds),
        say,
    )


def routing_of(config: PsamsConfig, profiles: Mapping[int, Profile]) -> Routing | None:
    """Return which keys are the pool's.

    Raises:
        ConfigError: a route is wrong.
    """
    try:
        return Routing.of(config.route, profiles)
    except BadParameter as error:
        raise ConfigError(f"psams.route: {error}") from None


def _rack(name: str) -> tuple[str, int]:
    try:
        address = parse_address(name)
    except ValueError as error:
        raise ConfigError(f"psams.racks: {error}") from None
    if isinstance(address, str):
        raise ConfigError(f"psams.racks: {name} is no HOST:PORT")
    return address
