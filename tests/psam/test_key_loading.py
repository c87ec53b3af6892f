"""CREATE KEY and CHANGE KEY are the worked ones, do what they say, and never bring a key into Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pytest

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.psam import Applet, Counters, KeyAttributes, KeySet, Psam, PsamIdentity, TransientMemory
from keyd.psam.profile import PsamProfile
from tests.psam.bench import (
    PROFILES,
    SERIAL,
    TERMINAL,
    key_set,
    make_both,
    random_source,
    synthetic_keys,
)
from tests.psam.commands import NEW_KEY, apdu, created, deliver, load, prove

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "worked_examples.json"
LOADINGS: Final = cast("list[dict[str, Any]]", json.loads(VECTORS.read_text())["psam_key_loading"])

every_loading = pytest.mark.parametrize("loading", LOADINGS, ids=lambda v: v["algorithm"])

SELECT: Final = bytes.fromhex("00A4040006D15600000590")
environments = pytest.mark.parametrize("environment", ["SM4", "DES"])


def psam_of(loading: dict[str, Any]) -> tuple[Applet, KeySet]:
    """A PSAM with the vector's master key, which draws the vector's challenge."""
    cipher = Algorithm(loading["algorithm"])
    environment = CardAlgorithm.SM4 if cipher is Algorithm.SM4 else CardAlgorithm.DES
    keys = KeySet()
    master = SecretKey.load(cipher, bytes.fromhex(loading["mk"]))
    keys.put(KeyAttributes(0, 0, cipher), environment, master)
    psam = Psam(
        PROFILES["social-security"],
        PsamIdentity(SERIAL, TERMINAL, environment=environment),
        keys,
        Counters(TransientMemory(), 16),
        lambda _length: bytes.fromhex(loading["challenge"]),
    )
    return Applet(psam), keys


def test_every_field_of_the_vectors_is_known_here() -> None:
    assert [loading["algorithm"] for loading in LOADINGS] == ["SM4", "3DES"]
    fields = {"algorithm", "mk", "key", "usage", "id", "file", "challenge"}
    fields |= {"create_key", "change_key"}
    assert all(set(loading) == fields for loading in LOADINGS)


@every_loading
def test_the_naive_commands_are_the_worked_ones(loading: dict[str, Any]) -> None:
    environment = "SM4" if loading["algorithm"] == "SM4" else "DES"
    usage, key_id = int(loading["usage"], 16), int(loading["id"], 16)
    rest = [bytes.fromhex(loading[name]) for name in ("challenge", "key", "mk")]
    create = load(environment, "84D40011", created(environment, usage, key_id), *rest)
    change = load(environment, "84D40111", bytes((usage, key_id, 0)), *rest)
    assert create.hex().upper() == loading["create_key"]
    assert change.hex().upper() == loading["change_key"]


@every_loading
@pytest.mark.parametrize("order", [["create_key"], ["create_key", "change_key"]])
def test_the_worked_commands_load_the_worked_key(loading: dict[str, Any], order: list[str]) -> None:
    applet, keys = psam_of(loading)
    applet.transmit(SELECT)
    for command in order:
        applet.transmit(apdu("00840000", le=len(loading["challenge"]) // 2))
        assert applet.transmit(bytes.fromhex(loading[command])).hex() == "9000"
    cipher = Algorithm(loading["algorithm"])
    environment = CardAlgorithm.SM4 if cipher is Algorithm.SM4 else CardAlgorithm.DES
    found = keys.find(int(loading["usage"], 16) & 0x1F, int(loading["id"], 16), environment)
    assert found is not None
    right = SecretKey.load(cipher, bytes.fromhex(loading["key"]))
    assert found.algorithm is cipher
    assert found.kcv() == right.kcv()  # type: ignore[union-attr]
    assert keys.attributes(0x07, 0x0A, environment) == KeyAttributes(0x67, 0x0A, cipher)


@every_loading
def test_one_changed_bit_is_refused(loading: dict[str, Any]) -> None:
    command = bytes.fromhex(loading["create_key"])
    for bit in range(5 * 8, 8 * len(command)):
        applet, keys = psam_of(loading)
        applet.transmit(SELECT)
        applet.transmit(apdu("00840000", le=len(loading["challenge"]) // 2))
        changed = bytearray(command)
        changed[bit // 8] ^= 1 << bit % 8
        assert applet.transmit(bytes(changed)).hex() == "6988"
        assert keys.attributes(0x07, 0x0A, CardAlgorithm.SM4) is None


@environments
def test_a_new_key_is_delivered_and_the_master_key_can_be_the_last(environment: str) -> None:
    both = make_both(environment=environment)
    both.transmit(SELECT)

    def loads(header: str, said: bytes, key: bytes = NEW_KEY) -> str:
        challenge = both.transmit(apdu("00840000", le=8))[:-2]
        master = both.naive.keys[0, 0, environment][1]
        return both.transmit(load(environment, header, said, challenge, key, master)).hex().upper()

    usage = deliver("social-security", environment, 0x48, 0x45)
    assert both.transmit(usage).hex() == "6a88"
    assert loads("84D40012", created(environment, 0x48, 0x45)) == "9000"
    assert both.transmit(usage).hex() == "9000"
    assert loads("84D40112", bytes((0x48, 0x45, 0)), bytes(range(16))) == "9000"
    # What the change says of the key has to be what it is.
    assert loads("84D40112", bytes((0x28, 0x45, 0))) == "6A80"
    assert loads("84D40112", bytes((0x48, 0x46, 0))) == "6A88"
    assert loads("84D40112", bytes((0x48, 0x45, 1))) == "6A80"
    assert loads("84D40012", created(environment, 0x88, 0x45)) == "6A80"
    assert loads("84D40011", created(environment, 0x20, 0x00)) == "6A80"
    # National ids are in the national file.
    assert loads("84D40012", created(environment, 0x48, 0x25)) == "6A80"
    assert loads("84D40011", created(environment, 0x48, 0x25)) == "9000"
    old = both.naive.keys[0, 0, environment][1]
    assert loads("84D40111", bytes(3), bytes(range(1, 17))) == "9000"
    challenge = both.transmit(apdu("00840000", le=8))[:-2]
    late = load(environment, "84D40112", bytes((0x48, 0x45, 0)), challenge, NEW_KEY, old)
    assert both.transmit(late).hex() == "6988"
    assert loads("84D40112", bytes((0x48, 0x45, 0))) == "9000"


def test_a_single_length_key_is_loaded_and_changed() -> None:
    both = make_both(environment="DES")
    both.transmit(SELECT)
    for header, said, new in (
        ("84D40013", bytes((0x68, 0x90, 0, 1)) + bytes(4), bytes(range(8))),
        ("84D40113", bytes((0x68, 0x90, 0)), bytes(range(8, 16))),
    ):
        challenge = both.transmit(apdu("00840000", le=4))[:-2]
        assert both.transmit(load("DES", header, said, challenge, new)).hex() == "9000"
        both.transmit(deliver("social-security", "DES", 0x68, 0x90))
        assert both.transmit(apdu("80FA0000", bytes(8), 8))[-2:] == b"\x90\x00"


@environments
@pytest.mark.parametrize("wrong", ["LD", "padding", "reserved", "algorithm", "short"])
def test_what_is_said_has_to_be_right_to_the_last_byte(environment: str, wrong: str) -> None:
    # Under the master key and with a right MAC: an issuer's mistake.
    both = make_both(environment=environment)
    both.transmit(SELECT)
    said, key = created(environment, 0x48, 0x45), NEW_KEY
    if wrong == "reserved":
        said = said[:-1] + b"\1"
    elif wrong == "algorithm":
        said = said[:3] + b"\2" + said[4:]
    elif wrong == "LD":
        key += b"\0"
    elif wrong == "padding":
        key += b"\x80"
    else:
        key = key[:8]
    challenge = both.transmit(apdu("00840000", le=8))[:-2]
    answer = both.transmit(load(environment, "84D40012", said, challenge, key)).hex().upper()
    assert answer == "6A80"


@environments
def test_a_wrong_mac_three_times_in_a_row_blocks_the_master_key(environment: str) -> None:
    both = make_both(environment=environment)
    both.transmit(SELECT)
    answers = []
    for _ in range(4):
        both.transmit(apdu("00840000", le=8))
        wrong = load(environment, "84D40011", created(environment, 0x67, 0x0A), bytes(8))
        answers.append(both.transmit(wrong).hex())
    assert answers == ["6988", "6988", "6988", "6983"]
    both.reset()
    both.transmit(SELECT)
    challenge = both.transmit(apdu("00840000", le=8))[:-2]
    assert both.transmit(prove(environment, 0, challenge)).hex() == "6983"
    # The other own key is another one.
    challenge = both.transmit(apdu("00840000", le=8))[:-2]
    assert both.transmit(prove(environment, 1, challenge)).hex() == "9000"


@environments
def test_a_right_mac_begins_the_count_anew(environment: str) -> None:
    both = make_both(environment=environment)
    both.transmit(SELECT)
    said = created(environment, 0x67, 0x0A)
    for _ in range(3):
        for _ in range(2):
            both.transmit(apdu("00840000", le=8))
            assert both.transmit(load(environment, "84D40011", said, bytes(8))).hex() == "6988"
        challenge = both.transmit(apdu("00840000", le=8))[:-2]
        assert both.transmit(load(environment, "84D40011", said, challenge)).hex() == "9000"


@environments
def test_a_right_proof_begins_the_count_anew(environment: str) -> None:
    both = make_both(environment=environment)
    for _ in range(3):
        for wrong in ("63c2", "63c1"):
            both.transmit(apdu("00840000", le=8))
            assert both.transmit(prove(environment, 1, bytes(8))).hex() == wrong
        challenge = both.transmit(apdu("00840000", le=8))[:-2]
        assert both.transmit(prove(environment, 1, challenge)).hex() == "9000"


def test_loading_can_want_a_proof_first() -> None:
    identity = PsamIdentity(SERIAL, TERMINAL, environment=CardAlgorithm.SM4)
    psam = Psam(
        strict_copy(PROFILES["social-security"]),
        identity,
        key_set(synthetic_keys()),
        Counters(TransientMemory(), 1),
        random_source(),
    )
    applet = Applet(psam)

    def loads(environment: str = "SM4") -> str:
        challenge = applet.transmit(apdu("00840000", le=8))[:-2]
        said = created(environment, 0x67, 0x0A)
        return applet.transmit(load(environment, "84D40011", said, challenge)).hex()

    def proves(factor: bytes | None = None) -> str:
        challenge = applet.transmit(apdu("00840000", le=8))[:-2]
        return applet.transmit(prove("SM4", 1, factor or challenge)).hex()

    applet.transmit(SELECT)
    assert loads() == "6982"
    assert proves() == "9000"
    assert loads() == "9000"
    # The application's own folder changes nothing, another environment has other keys.
    applet.transmit(SELECT)
    assert loads() == "9000"
    applet.transmit(bytes.fromhex("00A40000023F00"))
    assert loads("DES") == "6982"
    applet.transmit(bytes.fromhex("00A4000002DDF2"))
    assert loads() == "6982"
    assert proves() == "9000"
    assert proves(bytes(8)) == "63c2"
    assert loads() == "6982"


def strict_copy(profile: PsamProfile) -> PsamProfile:
    """The profile, but for a permission that loading needs."""
    made = PsamProfile.__new__(PsamProfile)
    made.__dict__.update(profile.__dict__)
    made.__dict__["loading"] = msgspec.structs.replace(profile.loading, permission="01")
    return made


@every_loading
def test_no_key_comes_into_python(loading: dict[str, Any]) -> None:
    applet, _keys = psam_of(loading)
    applet.transmit(SELECT)
    applet.transmit(apdu("00840000", le=len(loading["challenge"]) // 2))
    command = bytes.fromhex(loading["create_key"])
    seen: list[bytes] = []
    original = SecretKey.unwrap_within

    def watched(key: SecretKey, *arguments: Any) -> Any:
        around, made = original(key, *arguments)
        seen.append(around)
        return around, made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SecretKey, "unwrap_within", watched)
        assert applet.transmit(command).hex() == "9000"
    material = bytes.fromhex(loading["key"])
    assert seen
    assert all(material[at : at + 2] not in around for around in seen for at in range(15))
