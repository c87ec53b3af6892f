"""What may be said to an open PSAM: keys that were asked for when it was opened, and no others.

Who may use a key is decided when a PSAM is opened, by the key's logical address. A command names a key as PSAMs do, by
type and id under the algorithm of the environment; the guard reads each command, before it is sent, for whether it
names one of those that the opening was for. What it cannot read, and what concerns the PSAM's own keys, it refuses: a
new way to name a key must not be a way around the policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.errors import NotAllowed
from keyd.iso7816 import SW
from keyd.iso7816.sw import more_data
from keyd.keys.hierarchy import DIVERSIFIER_BYTES
from keyd.psam.files import BY_NAME
from keyd.psam.keys import KeyName
from keyd.psam.transactions import (
    AFTER_BYTES,
    AMOUNT_BYTES,
    BEFORE_BYTES,
    KEY_BYTES,
    PURCHASE_KIND,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.crypto.algorithms import CardAlgorithm
    from keyd.iso7816 import CommandApdu
    from keyd.psam.level_index import Place
    from keyd.psam.profile import PsamProfile

_SELECT: Final = (0x00, 0xA4)
_INITIALIZE_ENVIRONMENT: Final = (0xBF, 0xEC)
_INIT_FOR_PURCHASE: Final = (0x80, 0x70)

# Commands that name no card's key. Logical channels other than the basic one are not among them: an open PSAM is one.
_HARMLESS: Final = frozenset(
    {
        (0x00, 0xB0),  # READ BINARY
        (0x00, 0xB2),  # READ RECORD
        (0x00, 0x84),  # GET CHALLENGE
        (0x00, 0xC0),  # GET RESPONSE
        (0x80, 0xFA),  # CIPHER DATA, under the key that was delivered
        (0x80, 0x72),  # CREDIT SAM, under that of the purchase
    }
)

# A wrong proof of such a key counts against the PSAM, and so against everybody who uses it.
_OWN_KEYS: Final = frozenset({(0x00, 0x82), (0x84, 0xD4)})

# ISO 7816-4: SW1 of what was done with a warning.
_WARNINGS: Final = frozenset({0x62, 0x63})

# Zhejiang issues by city: the last two digits are blanked before keys are diversified.
_ZHEJIANG: Final = "33"
_CITY_DIGITS: Final = 4


class Dialects:
    """Of the PSAM profiles that keyd knows what a guard has to recognise."""

    def __init__(self, profiles: Iterable[PsamProfile]) -> None:
        kinds = tuple(profiles)
        self.deliveries: Final = frozenset(
            (command[0], command[1])
            for command in (bytes.fromhex(kind.delivery.command) for kind in kinds)
        )
        # By P1 of INIT SAM FOR PURCHASE, how many amounts it has.
        self.amounts: Final = {int(k.purchase.p1, 16): k.purchase.amounts for k in kinds}
        self._environments: dict[bytes, set[CardAlgorithm]] = {}
        self._inner: set[bytes] = set()
        for kind in kinds:
            for environment in kind.environments.values():
                for name in (environment.aid, environment.file_id.to_bytes(2, "big")):
                    self._environments.setdefault(name, set()).add(environment.algorithm)
            self._inner.add(kind.application_aid)
            self._inner.add(kind.application_id.to_bytes(2, "big"))
            self._inner |= {file_id.to_bytes(2, "big") for file_id in kind.files}
        self._kinds = kinds

    def environment_ids(self, algorithm: CardAlgorithm) -> list[int]:
        """Return the file ids that environments of an algorithm have, each once."""
        found = (kind.environments.get(algorithm) for kind in self._kinds)
        return list(dict.fromkeys(environment.file_id for environment in found if environment))

    @property
    def applications(self) -> list[bytes]:
        """The AIDs that the application inside the environments has, each once."""
        return list(dict.fromkeys(kind.application_aid for kind in self._kinds))

    def of_name(self, name: bytes) -> CardAlgorithm | None:
        """Return the algorithm of the environment with this file id or AID, if all that have it have the same."""
        return _only(self._environments.get(name, ()))

    def of_province(self, province: int) -> CardAlgorithm | None:
        """Return the algorithm that INITIALIZE ENVIRONMENT selects, if all profiles say the same."""
        found = [kind.environment_of(province) for kind in self._kinds]
        return _only(environment.algorithm if environment else None for environment in found)

    def is_within(self, name: bytes) -> bool:
        """Whether it is a folder or file inside every environment, so that selecting it changes none."""
        return name in self._inner

    def names_algorithm(self, algorithm: CardAlgorithm, purchase_byte: int) -> bool:
        """Whether INIT SAM FOR PURCHASE may call an environment's algorithm so."""
        return any(
            purchase_byte in kind.environments[algorithm].purchase_algorithms
            for kind in self._kinds
            if algorithm in kind.environments
        )


class Guard:
    """The guard of one open PSAM. `places` are the keys it was opened for; `region` the first digits of its cards'."""

    def __init__(self, dialects: Dialects, places: frozenset[Place], region: str = "") -> None:
        self._dialects = dialects
        self._places = places
        self._city, self._province = region, region[:2]
        if region.startswith(_ZHEJIANG):
            self._city = region[:_CITY_DIGITS]
        # What the environment's algorithm is, as far as that was seen. Unknown, no key is named.
        self.environment: CardAlgorithm | None = None

    def require_known(self, header: bytes) -> None:
        """Refuse a command of which its header (4 bytes) already says that it never may be.

        Raises:
            NotAllowed: so it is.
        """
        kind = (header[0], header[1])
        if kind in self._dialects.deliveries:
            wanted = KeyName(header[2], header[3])
            if not any(_names(place, wanted.kind, wanted.key_id) for place in self._places):
                raise NotAllowed(_NOT_ASKED_FOR)
        elif kind in _OWN_KEYS:
            raise NotAllowed("a PSAM's own keys are its issuer's")
        elif kind not in _HARMLESS | {_SELECT, _INITIALIZE_ENVIRONMENT, _INIT_FOR_PURCHASE}:
            raise NotAllowed(f"a PSAM is not asked {header[0]:02X} {header[1]:02X} through keyd")

    def require_allowed(self, apdu: CommandApdu) -> None:
        """Refuse a command that names another key, or another region, than the PSAM was opened for.

        Raises:
            NotAllowed: so it is, or it cannot be told.
        """
        self.require_known(apdu.header)
        if apdu.extended:
            raise NotAllowed("a PSAM has no extended commands")
        kind = (apdu.cla, apdu.ins)
        if kind in self._dialects.deliveries:
            wanted = KeyName(apdu.p1, apdu.p2)
            if wanted.kind == PURCHASE_KIND:
                # Whoever had this key for CIPHER DATA could make MAC1 without a transaction number.
                raise NotAllowed("a purchase key is not delivered")
            self._require_key(wanted.kind, wanted.key_id)
            self._require_region(apdu.data[: wanted.levels * DIVERSIFIER_BYTES])
        elif kind == _INIT_FOR_PURCHASE:
            self._require_purchase(apdu)

    def note(self, apdu: CommandApdu, sw: int) -> None:
        """Take note of how a command that was sent has been answered."""
        kind = (apdu.cla, apdu.ins)
        if kind not in (_SELECT, _INITIALIZE_ENVIRONMENT):
            return
        if sw != SW.OK and more_data(sw) is None:
            if sw >> 8 in _WARNINGS:
                # It may have been done, and not as it was asked.
                self.environment = None
            return
        if kind == _INITIALIZE_ENVIRONMENT:
            self.environment = self._dialects.of_province(apdu.data[0]) if apdu.data else None
        elif apdu.p1 != BY_NAME and len(apdu.data) != 2:
            self.environment = None
        elif not self._dialects.is_within(apdu.data):
            self.environment = self._dialects.of_name(apdu.data)

    def _require_key(self, kind: int, key_id: int) -> None:
        algorithm = self.environment
        if algorithm is None:
            raise NotAllowed("select an environment first, by the name that keyd knows it by")
        if (kind, key_id, algorithm) not in self._places:
            raise NotAllowed(_NOT_ASKED_FOR)

    def _require_purchase(self, apdu: CommandApdu) -> None:
        amounts = self._dialects.amounts.get(apdu.p1)
        if amounts is None:
            raise NotAllowed(f"keyd knows no purchase with P1 {apdu.p1:02X}")
        end = BEFORE_BYTES + amounts * AMOUNT_BYTES + AFTER_BYTES + KEY_BYTES
        if len(apdu.data) < end:
            raise NotAllowed("the purchase names no key")
        version, purchase_byte = apdu.data[end - KEY_BYTES : end]
        self._require_key(PURCHASE_KIND, version)
        algorithm = self.environment
        if algorithm is None or not self._dialects.names_algorithm(algorithm, purchase_byte):
            raise NotAllowed("the purchase names an algorithm of another environment")
        self._require_region(apdu.data[end:])

    def _require_region(self, factors: bytes) -> None:
        """Look at the diversifiers, the card's first, then the city's and the province's where they are there."""
        city, province = factors[8:16], factors[16:24]
        if (city and not city[: len(self._city)] == self._city.encode()) or (
            province and not province[: len(self._province)] == self._province.encode()
        ):
            raise NotAllowed("the PSAM was opened for cards of another region")


_NOT_ASKED_FOR: Final = "the PSAM was not opened for this key"


def _names(place: Place, kind: int, key_id: int) -> bool:
    return (place.kind, place.key_id) == (kind, key_id)


def _only(found: Iterable[CardAlgorithm | None]) -> CardAlgorithm | None:
    different = set(found)
    return different.pop() if len(different) == 1 else None
