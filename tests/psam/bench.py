"""A PSAM on the bench: the applet and the naive one with the same synthetic keys and the same random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.psam import (
    Applet,
    Counters,
    KeyAttributes,
    KeySet,
    Psam,
    PsamIdentity,
    TransientMemory,
    load_psam_profiles,
)
from tests.psam.naive import NaivePsam

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.psam import PsamMemory, PsamProfile
    from tests.psam.naive import Keys

PROFILES: Final = load_psam_profiles()

SERIAL: Final = bytes.fromhex("51010020260000000428")
TERMINAL: Final = bytes.fromhex("510100000001")

# Type and id, levels, and how long the key is in the 3DES environment: one of each thing that can be asked for.
SYNTHETIC: Final = (
    (0x00, 0x00, 0, 16),  # master key
    (0x01, 0x01, 0, 16),  # maintenance
    (0x02, 0x01, 3, 16),  # purchase, version 1
    (0x06, 0x19, 1, 16),  # MAC, a city's
    (0x07, 0x08, 3, 16),  # IRK
    (0x07, 0x0A, 3, 16),  # RKSSSE
    (0x08, 0x09, 3, 8),  # STKSSSE, single length
    (0x08, 0x12, 2, 16),  # UKSSSE, a province's
    (0x08, 0x41, 2, 16),  # the application's, a province's
    (0x09, 0x4B, 3, 16),  # delivered to nobody
)

ALGORITHMS: Final = {"DES": CardAlgorithm.DES, "SM4": CardAlgorithm.SM4}


def synthetic_keys() -> Keys:
    """Keys by type, id and environment: synthetic and public, as everything in the tests."""
    keys: Keys = {}
    for kind, key_id, levels, des_bytes in SYNTHETIC:
        for name in ("DES", "SM4"):
            material = sm3(f"synthetic PSAM key {kind:02X} {key_id:02X} {name}".encode())
            length = des_bytes if name == "DES" else 16
            keys[kind, key_id, name] = (levels, material[:length])
    return keys


def key_set(keys: Keys) -> KeySet:
    """The same keys in locked memory."""
    made = KeySet()
    for (kind, key_id, name), (levels, material) in keys.items():
        cipher = Algorithm.SM4 if name == "SM4" else Algorithm.TDES
        if len(material) == 8:
            cipher = Algorithm.DES
        attributes = KeyAttributes(levels << 5 | kind, key_id, cipher)
        made.put(attributes, ALGORITHMS[name], SecretKey.load(cipher, material))
    return made


def random_source(seed: bytes = b"synthetic") -> Callable[[int], bytes]:
    """Random numbers that are the same every time."""
    count = 0

    def random_bytes(length: int) -> bytes:
        nonlocal count
        count += 1
        return sm3(seed + count.to_bytes(4, "big"))[:length]

    return random_bytes


def make_applet(
    profile: str | PsamProfile = "social-security",
    environment: str = "SM4",
    memory: PsamMemory | None = None,
) -> Applet:
    """An applet with the synthetic keys."""
    kind = PROFILES[profile] if isinstance(profile, str) else profile
    memory = memory or TransientMemory()
    identity = PsamIdentity(SERIAL, TERMINAL, environment=ALGORITHMS[environment])
    counters = Counters(memory, kind.purchase.numbers_reserved)
    return Applet(Psam(kind, identity, key_set(synthetic_keys()), counters, random_source()))


def make_naive(profile: str = "social-security", environment: str = "SM4") -> NaivePsam:
    """The naive PSAM with the same."""
    return NaivePsam(
        synthetic_keys(),
        random_source(),
        environment,
        profile == "pboc",
        serial=SERIAL,
        terminal=TERMINAL,
    )


@dataclass
class Both:
    """The applet and the naive PSAM side by side: every command goes to both, and they answer the same."""

    applet: Applet
    naive: NaivePsam

    def transmit(self, command: bytes) -> bytes:
        answer = self.applet.transmit(command)
        assert answer == self.naive.transmit(command), command.hex().upper()
        return answer

    def ask(self, command: str) -> str:
        """Hex in, hex out."""
        return self.transmit(bytes.fromhex(command)).hex().upper()

    def reset(self) -> None:
        self.applet.reset()
        self.naive.reset()


def make_both(profile: str = "social-security", environment: str = "SM4") -> Both:
    return Both(make_applet(profile, environment), make_naive(profile, environment))
