"""A key's life: pre-active, active, deactivated, compromised, destroyed; and which step leads where.

                 activate               deactivate
    pre-active ───────────► active ◄──────────────► deactivated
         │                    │       activate           │
         └──────── compromise ┴─────────────────► compromised
         any of them ── destroy ──► destroyed ── restore ──► deactivated (or compromised, if it was)

Nothing leads out of compromised but destruction. A destroyed key is wrapped still until its waiting period is
over, and computes nothing meanwhile; then only its header is left, so that its version is never given again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keyd.errors import KeyStateRefused
from keyd.keys.block import Export, KeyHeader, KeyState

if TYPE_CHECKING:
    from keyd.custody.officers import Officer
    from keyd.keys.block import Tier

_STEPS: Final[dict[KeyState, frozenset[KeyState]]] = {
    KeyState.PRE_ACTIVE: frozenset({KeyState.ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.ACTIVE: frozenset({KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.DEACTIVATED: frozenset({KeyState.ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.COMPROMISED: frozenset({KeyState.DESTROYED}),
    KeyState.DESTROYED: frozenset(),
}


def step(header: KeyHeader, to: KeyState, now: int, *, destroy_after: int = 0) -> KeyHeader:
    """Return the header after one step of its life.

    Raises:
        KeyStateRefused: no step leads there.
    """
    if to not in _STEPS[header.state]:
        raise KeyStateRefused(f"{header.label} is {header.state} and cannot become {to}")
    return changed(
        header,
        state=to,
        changed_at=now,
        destroy_after=destroy_after,
        was_compromised=header.was_compromised or to is KeyState.COMPROMISED,
    )


def restore(header: KeyHeader, now: int) -> KeyHeader:
    """Return the header of a destroyed key that is brought back: deactivated, or compromised if it ever was.

    Raises:
        KeyStateRefused: it is not destroyed, or its waiting period is over.
    """
    if header.state is not KeyState.DESTROYED:
        raise KeyStateRefused(f"{header.label} is {header.state}: there is nothing to restore")
    if now >= header.destroy_after:
        raise KeyStateRefused(f"the waiting period of {header.label} is over")
    state = KeyState.COMPROMISED if header.was_compromised else KeyState.DEACTIVATED
    return changed(header, state=state, changed_at=now, destroy_after=0)


def changed(header: KeyHeader, **fields: object) -> KeyHeader:
    """Return the header with other fields and the next revision."""
    return msgspec.structs.replace(header, revision=header.revision + 1, **fields)


def with_version(header: KeyHeader, version: int, minimum_version: int) -> KeyHeader:
    """Return the header of a new key with its place among the versions."""
    return msgspec.structs.replace(header, version=version, minimum_version=minimum_version)


def leaving(header: KeyHeader) -> KeyHeader:
    """Return the header that travels with a key: its rights, and nothing of its life here."""
    return msgspec.structs.replace(
        header,
        state=KeyState.PRE_ACTIVE,
        changed_at=0,
        uses=0,
        destroy_after=0,
        minimum_version=1,
        was_compromised=False,
        revision=1,
    )


def child_of(header: KeyHeader, *, tier: Tier, key_id: bytes, kcv: bytes) -> KeyHeader:
    """Return the header of a root's child, one level down: the same rights, and it may go no further by itself."""
    levels = header.levels - 1
    return msgspec.structs.replace(
        header,
        key_id=key_id,
        tier=tier,
        levels=levels,
        kcv=kcv,
        export=Export.CHILD if levels > 1 and header.export is Export.WRAPPED else Export.NEVER,
    )


def retired(officer: Officer) -> Officer:
    """Return the officer, retired."""
    return msgspec.structs.replace(officer, is_retired=True, revision=officer.revision + 1)
