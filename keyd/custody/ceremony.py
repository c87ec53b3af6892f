"""Components: how a root enters, or leaves, in parts that say nothing alone.

Components are XORed in locked memory, and wait there and nowhere else: a keyd that is restarted in the middle of a
ceremony has forgotten all of them, and the ceremony begins again. Each arrives encrypted to keyd's SM2 key and
leaves encrypted to its custodian's, so that not even the administration's socket carries one in clear.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.crypto.algorithms import KEY_BYTES
from keyd.crypto.secret import KeyWeak, SecretKey
from keyd.crypto.sm2 import CiphertextNotAuthentic, Sm2PublicKey
from keyd.custody.actions import ImportKey
from keyd.errors import ComponentRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyd.crypto.algorithms import Algorithm
    from keyd.crypto.sm2 import Sm2PrivateKey
    from keyd.custody.officers import Officer
    from keyd.custody.proposals import Proposal

# What stands before a component when it is encrypted, so that it is taken for nothing else.
KIND_COMPONENT: Final = b"keyd component 1\n"


class Component(Struct, frozen=True):
    """A component that is in: whose it is, and the key that it is."""

    custodian: str
    key: SecretKey


class Ceremonies:
    """The components of every ceremony under way, by proposal and number."""

    def __init__(self) -> None:
        self._components: dict[bytes, dict[int, Component]] = {}

    def given(self, proposal_id: bytes) -> dict[int, str]:
        """Which components are in, and whose."""
        return {
            number: component.custodian
            for number, component in sorted(self._components.get(proposal_id, {}).items())
        }

    def enter(
        self,
        proposal: Proposal,
        custodian: Officer,
        number: int,
        envelope: bytes,
        kcv: bytes,
        identity: Sm2PrivateKey,
    ) -> None:
        """Take one component in. Its envelope is SM2 (C1C3C2) to keyd's key; `kcv` is what its sheet says.

        Raises:
            ComponentRefused: no such component is wanted, it or another of this custodian's is in already, it does
                not open, or it does not have the check value that it should.
        """
        action = proposal.action
        if not isinstance(action, ImportKey):
            raise ComponentRefused("the proposal takes no components")
        entered = self._components.setdefault(proposal.proposal_id, {})
        if not 1 <= number <= action.components:
            raise ComponentRefused(f"there are components 1 to {action.components}")
        if number in entered:
            raise ComponentRefused(f"component {number} is in already")
        if custodian.code in {component.custodian for component in entered.values()}:
            raise ComponentRefused("each component is another custodian's")
        try:
            key = identity.decrypt_to_key(envelope, action.key.algorithm)
        except (CiphertextNotAuthentic, ValueError):
            raise ComponentRefused(
                f"component {number} does not open: it is {KEY_BYTES[action.key.algorithm]} bytes, "
                "encrypted to this keyd's public key"
            ) from None
        if not compare_digest(key.kcv(), kcv):
            key.handle.free()
            raise ComponentRefused(f"component {number} does not have the check value on its sheet")
        entered[number] = Component(custodian.code, key)

    def combine(self, proposal: Proposal) -> SecretKey:
        """XOR the components of a ceremony that has all of them.

        Raises:
            ComponentRefused: one is missing, two are equal, or the key does not have the check value it should.
        """
        action = proposal.action
        if not isinstance(action, ImportKey):
            raise ComponentRefused("the proposal takes no components")
        entered = self._components.get(proposal.proposal_id, {})
        missing = [number for number in range(1, action.components + 1) if number not in entered]
        if missing:
            raise ComponentRefused(
                f"component {', '.join(map(str, missing))} of {action.components} is still missing"
            )
        keys = [entered[number].key for number in sorted(entered)]
        if len({key.kcv() for key in keys}) != len(keys):
            # XOR of two equal components is nothing at all.
            raise ComponentRefused("two components are equal")
        combined = keys[0]
        try:
            for key in keys[1:]:
                combined = combined.xor(key)
        except KeyWeak:
            # Some of them cancel each other out: no accident, with components that are random.
            raise ComponentRefused("together, the components make a weak key") from None
        if action.kcv is not None and not compare_digest(combined.kcv(), action.kcv):
            raise ComponentRefused("together, the components do not have the key's check value")
        return combined

    def forget(self, proposal_id: bytes) -> None:
        """Wipe a ceremony's components."""
        for component in self._components.pop(proposal_id, {}).values():
            component.key.handle.free()

    def take_back(self, proposal_id: bytes, number: int) -> None:
        """Wipe one component."""
        component = self._components.get(proposal_id, {}).pop(number, None)
        if component is not None:
            component.key.handle.free()

    def forget_others(self, open_proposals: Mapping[bytes, object]) -> None:
        """Wipe the components of every ceremony that is not open any more."""
        for proposal_id in [known for known in self._components if known not in open_proposals]:
            self.forget(proposal_id)

    def forget_all(self) -> None:
        """Let go of everything; sealing wipes the memory itself."""
        self._components.clear()


def generate_in_components(
    algorithm: Algorithm, custodians: Sequence[Officer], random_bytes: Callable[[int], bytes]
) -> tuple[SecretKey, dict[str, bytes]]:
    """Make a random key of so many random components; return it, and each component for its custodian.

    A component is for a moment in this process's memory; the key never is.
    """
    key: SecretKey | None = None
    envelopes: dict[str, bytes] = {}
    for custodian in custodians:
        component = random_bytes(KEY_BYTES[algorithm])
        envelopes[custodian.code] = Sm2PublicKey.load(custodian.public_key).encrypt(
            KIND_COMPONENT + component
        )
        loaded = SecretKey.load(algorithm, bytearray(component))
        key = loaded if key is None else key.xor(loaded)
    if key is None:
        raise ValueError("a key has at least one component")
    return key, envelopes
