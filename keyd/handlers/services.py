"""What handlers may use: the domain's objects, a clock and randomness, handed in and never imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from keyd.psam.guard import Dialects
from keyd.psam.profile_files import load_psam_profiles
from keyd.terminals import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyd.cards.profile import Profile
    from keyd.crypto.selftest import SelftestResult
    from keyd.handlers.desk import PsamDesk
    from keyd.keys.block import KeyHeader
    from keyd.keys.sam import Sam
    from keyd.routing import Routing
    from keyd.terminals import Terminals
    from keyd.warden import Warden


@cache
def _shipped_dialects() -> Dialects:
    return Dialects(load_psam_profiles().values())


@dataclass(slots=True)
class Services:
    """One keyd's domain. A reload replaces fields; handlers read them afresh on every call."""

    sam: Sam
    key_headers: tuple[KeyHeader, ...]
    has_synthetic_keys: bool
    profiles: Mapping[int, Profile]
    terminals: Terminals
    selftest: Sequence[SelftestResult]
    run_selftest: Callable[[], Sequence[SelftestResult]]
    # Monotonic seconds, and seconds since 1970.
    clock: Callable[[], float]
    now: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    is_draining: bool = False
    # A failed self-test stays failed until a restart: what computed wrongly once is not asked again.
    has_failed_selftest: bool = False
    # While sealed, only its state and unsealing are answered.
    is_sealed: bool = False
    # Whoever has custody of the keys; None where they are public synthetic ones.
    warden: Warden | None = None
    # Signs with keyd's own key: r‖s of 64 bytes. None while it is sealed away.
    sign: Callable[[bytes], bytes] | None = None
    # Whoever lends PSAMs; None where keyd has no pool.
    psams: PsamDesk | None = None
    # How commands to PSAMs are read. keyd's own profiles of PSAMs, unless there are others.
    dialects: Dialects = field(default_factory=_shipped_dialects)
    # Counts since the start, kept by the telemetry and shown by daemon.status.
    counters: Callable[[], Mapping[str, int]] = field(default=dict)
    # Which keys are the PSAMs' to compute with; None if all are the ring's.
    routing: Routing | None = None

    def moment(self) -> Moment:
        """Return this moment by both clocks."""
        return Moment(self.clock(), int(self.now()))
