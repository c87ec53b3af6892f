"""What the pump may know: keys of hot requests that went the long way and were answered well.

The pump is a short cut through the rules, so it is told nothing in advance. A request is decided by Python first, and
only the place that it named (kind, generation, address, algorithm, region) is short from then on, for terminals of the
same roles, and no longer than the rule that allowed it holds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, cast

from keyd.keys.block import Use
from keyd.keys.hierarchy import Region, card_diversifier
from keyd.keys.sam import purpose
from keyd.protocol.messages.card import (
    ExternalAuthenticate,
    InternalAuthenticate,
    InternalCryptogram,
)
from keyd.pump import METHODS

if TYPE_CHECKING:
    from keyd.dispatch import Pass
    from keyd.gate import Gate
    from keyd.handlers.services import Services
    from keyd.keys.ring import KeyRing
    from keyd.protocol.fields import Request
    from keyd.pump._pump import Pump
    from keyd.uses import Numbers

# What each kind wants of the current version of a key: internal authentication only compares.
PURPOSES: Final = (
    purpose(Use.INTERNAL, is_verifying=True),
    purpose(Use.INTERNAL),
    purpose(Use.EXTERNAL),
)

# The pump's kinds, by the request that they short-cut.
KINDS: Final[dict[type[Request[Any]], int]] = {
    InternalAuthenticate: 0,
    InternalCryptogram: 1,
    ExternalAuthenticate: 2,
}


class Routes:
    """Tells a pump the keys that good answers used."""

    def __init__(
        self, pump: Pump, ring: KeyRing, services: Services, numbers: Numbers | None = None
    ) -> None:
        self._pump = pump
        self._ring = ring
        self._services = services
        self._numbers = numbers
        # Where there is a policy, what one set of roles may another may not.
        self.gate: Gate | None = None
        # The first moment (seconds since 1970) at which something that was learnt may be another way.
        self.until = math.inf

    def learn(self, request: Request[Any], passed: Pass) -> None:
        """Let the pump answer requests like this one, which has just been answered well."""
        kind = KINDS.get(type(request))
        if kind is None or self._services.has_failed_selftest:
            return
        roles = 0
        if self.gate is not None:
            if passed.terminal is None or not self.gate.may_short_cut(METHODS[kind]):
                return
            roles = self.gate.role_set(passed.terminal)
            if not roles:
                return
        request = cast("InternalAuthenticate | InternalCryptogram | ExternalAuthenticate", request)
        card = request.card
        routing = self._services.routing
        if routing is not None and routing.is_pooled_at(request.address, card.algorithm):
            return  # the ring's key is not to answer for it, wherever that request was answered
        if card.key_version:
            return  # the pump reads cards of the current version only
        profile = self._services.profiles[card.generation]
        if profile.card_diversifier is not card_diversifier:
            return  # the pump knows the one rule
        key_id = profile.keys[request.address].card_key_id
        if key_id is None and kind == KINDS[ExternalAuthenticate]:
            return  # the answer has no APDU, which is no shape of the pump's
        region = card.card_id[:3]
        city = self._ring.maybe_city(
            request.address, card.algorithm, Region(region.hex()), PURPOSES[kind]
        )
        if city is not None:
            numbers = self._numbers
            self._pump.learn(
                kind,
                card.generation,
                request.address,
                card.algorithm,
                region,
                city,
                key_id or 0,
                numbers.key(request.address, card.algorithm, PURPOSES[kind]) if numbers else 0,
                roles,
            )
            self.until = min(self.until, passed.until)

    def forget(self) -> None:
        """Let everything go the long way again."""
        self._pump.forget()
        self.until = math.inf
