"""A SecretKey computes with its bytes and never shows them; the doors to the bytes are listed."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import BLOCK_BYTES, IN_SOFTWARE, KEY_BYTES, Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.errors import AlgorithmNotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE: Final = Path(__file__).parent.parent.parent / "keyd"

# Every file that may turn bytes into a key or a key into bytes, and why it must. A new line here decides who
# may see keys: it wants a reason that stands up, not a green test.
ALLOWED: Final = {
    "keyd/crypto/secret.py": "makes keys out of keys: encrypt_to_key, unwrap, xor, and opens the handle's doors",
    "keyd/crypto/selftest.py": "loads the standards' own keys, and combines a published one",
    "keyd/crypto/sm2/keys.py": "receives a key under SM2; seals and opens SM2's d, in bytearrays that are wiped",
    "keyd/tls/pki.py": "loads SM2 keys of authorities and terminals, to sign certificates with",
    "keyd/crypto/sm2/files.py": "reads and writes officers' private keys under a passphrase",
    "keyd/keepers.py": "takes in the key under which a keeper has the seal key, from a file or a token",
    "keyd/custody/seal.py": "splits the seal key into shares, and combines it of them",
    "keyd/custody/ceremony.py": "takes in components under keyd's SM2 key, and makes some that leave under custodians'",
    "keyd/custody/new_keys.py": "takes in a key under keyd's SM2 key: a digital envelope",
    "keyd/custody/transport.py": "wraps and unwraps under a key-transport key in ECB, with a MAC over it",
    "keyd/custody/enrolling.py": "gives terminal keys to an officer, under the officer's SM2 key",
    "keyd/cli/component.py": "loads a component that a custodian has typed, to show its check value",
    "keyd/keys/roots.py": "takes in roots that are synthetic and public",
    "keyd/keys/synthetic.py": "diversifies a terminal master key that is synthetic and public",
    "keyd/client/enrolment.py": "takes in a terminal's own key, in the terminal",
    "keyd/psam/own.py": "takes in what an issuer loads into a PSAM, under its master key and a MAC",
    "keyd/psam/issue.py": "takes in master keys of PSAMs that are synthetic and public",
    "keyd/simulator/issue.py": "takes in synthetic roots: a simulated card has no others",
}

# The doors, by the class they belong to.
SECRET_CLASSES: Final = frozenset({"SecretKey", "Sm2PrivateKey"})
ENTRANCES: Final = frozenset({"load", "combine"})

# Doors by their own name, on whatever object: what a key's bytes leave or enter through without a tag over them.
DOORS: Final = frozenset(
    {
        "reveal",
        "wrap_ecb",
        "decrypt_to_key",
        "unwrap_ecb",
        "unwrap_within",
        "open_into",
        "lent_secret",
        "copy_secret",
        "hand_over",
    }
)

MATERIAL: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")

software = pytest.mark.parametrize("algorithm", sorted(IN_SOFTWARE, key=str), ids=str)


def secret(algorithm: Algorithm) -> SecretKey:
    return SecretKey.load(algorithm, MATERIAL[: KEY_BYTES[algorithm]])


def spellings(material: bytes) -> Iterator[str]:
    """The ways in which bytes get into a text."""
    for start in range(0, len(material) - 3, 4):
        part = material[start : start + 4]
        yield part.hex()
        yield repr(part)[2:-1].lower()
        yield ", ".join(str(octet) for octet in part)
        yield str(int.from_bytes(part, "big"))


# --- the doors


def doors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Find every mention of a door, called or handed on, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=door) if door in DOORS:
                yield node.lineno, f".{door}"
            case ast.Attribute(value=ast.Name(id="_core"), attr=door) if door in ENTRANCES:
                yield node.lineno, f"_core.{door}"
            case (
                ast.Attribute(value=ast.Name(id=owner), attr=door)
                | ast.Attribute(value=ast.Attribute(attr=owner), attr=door)
            ) if owner in SECRET_CLASSES and door in ENTRANCES:
                yield node.lineno, f"{owner}.{door}"
            case ast.Attribute(attr="split") if not is_split_of_text(node, tree):
                yield node.lineno, ".split"
            case ast.Call(func=ast.Name(id=owner)) if owner in SECRET_CLASSES:
                yield node.lineno, f"{owner}()"
            case ast.Call(func=ast.Attribute(attr=owner)) if owner in SECRET_CLASSES:
                yield node.lineno, f"{owner}()"
            case ast.alias(name=owner, asname=str(other)) if owner in SECRET_CLASSES:
                # Under another name, the doors above would not be seen.
                yield node.lineno, f"{owner} as {other}"


def is_split_of_text(split: ast.Attribute, tree: ast.AST) -> bool:
    """Say whether it is called as text is split: with nothing, or with the text to split at."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.func is split:
            first = node.args[0] if node.args else ast.Constant("")
            at_text = isinstance(first, ast.Constant) and isinstance(
                first.value, str | bytes | None
            )
            return at_text and not {word.arg for word in node.keywords} & {"threshold", "count"}
    return False


def test_key_bytes_enter_and_leave_at_listed_places_only() -> None:
    offenders = [
        f"{file.relative_to(SOURCE.parent)}:{line}: {door}"
        for file in sorted(SOURCE.rglob("*.py"))
        if file.relative_to(SOURCE.parent).as_posix() not in ALLOWED
        for line, door in doors(ast.parse(file.read_text(), str(file)))
    ]
    assert not offenders, "these are not in ALLOWED:\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    "source",
    [
        "key.reveal()",
        "map(SecretKey.reveal, keys)",
        "SecretKey.load(algorithm, octets)",
        "functools.partial(secret.SecretKey.load, algorithm)",
        "SecretKey(algorithm, octets)",
        "secret.SecretKey(algorithm, octets)",
        "Sm2PrivateKey.load(d)",
        "_core.load(1, octets)",
        "_core.combine(1, shares)",
        "SecretKey.combine(algorithm, shares)",
        "secret.SecretKey.combine(algorithm, shares)",
        "key.split(2, 3)",
        "key.split(threshold, count)",
        "key.split(threshold=2, count=3)",
        "functools.partial(key.split, 2)",
        "transport.wrap_ecb(key)",
        "map(transport.wrap_ecb, keys)",
        "transport.unwrap_ecb(octets, algorithm)",
        "master.unwrap_within(octets, 9, algorithm)",
        "kek.open_into(place, sealed, nonce, header)",
        "officer.lent_secret()",
        "master.hand_over(factor)",
        "from keyd.crypto.secret import SecretKey as Innocent",
    ],
)
def test_no_way_through_a_door_is_overlooked(source: str) -> None:
    assert list(doors(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "json.load(file)",
        "Sm2PublicKey.load(point)",
        "key: SecretKey = other",
        "text.split()",
        "text.split('-', 1)",
        "text.split(None, maxsplit=1)",
        "datetime.combine(day, time)",
        "SecretKey.generate(algorithm)",
    ],
)
def test_what_is_no_door_is_left_alone(source: str) -> None:
    assert not list(doors(ast.parse(source)))


# --- nothing shows the bytes


@software
@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{!r}".format, "%s".__mod__, lambda key: repr([key, {"key": key}])],
    ids=["repr", "str", "format", "format!r", "%", "nested"],
)
def test_no_text_shows_the_bytes(algorithm: Algorithm, show: Callable[[SecretKey], str]) -> None:
    key = secret(algorithm)
    key.encrypt(bytes(key.block_bytes))
    text = show(key).lower()
    assert algorithm.value.lower() in text
    assert not [
        spelling for spelling in spellings(MATERIAL[: KEY_BYTES[algorithm]]) if spelling in text
    ]


@software
@pytest.mark.parametrize(
    "attempt",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        hash,
        vars,
        bytes,
        "{:x}".format,
        lambda key: key == key,
        lambda key: key != key,
        lambda key: key in (secret(key.algorithm), None),
        lambda key: {key},
        sorted,
    ],
    ids=str.split("pickle copy deepcopy json hash vars bytes format:x == != in set sorted"),
)
def test_what_would_show_or_compare_the_bytes_is_refused_without_them(
    algorithm: Algorithm, attempt: Callable[[object], object]
) -> None:
    key = secret(algorithm)
    with pytest.raises(TypeError) as refused:
        attempt(key)
    text = str(refused.value).lower()
    assert not [
        spelling for spelling in spellings(MATERIAL[: KEY_BYTES[algorithm]]) if spelling in text
    ]


@software
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused_without_showing_the_bytes(
    algorithm: Algorithm, change: int
) -> None:
    material = (MATERIAL + MATERIAL)[: KEY_BYTES[algorithm] + change]
    with pytest.raises(ValueError, match=f"{KEY_BYTES[algorithm]} bytes") as refused:
        SecretKey.load(algorithm, material)
    text = "".join(traceback.format_exception(refused.value)).lower()
    assert not [spelling for spelling in spellings(material) if spelling in text]


@software
def test_no_bytes_are_no_key(algorithm: Algorithm) -> None:
    with pytest.raises(ValueError, match="bytes"):
        SecretKey.load(algorithm, b"")


@pytest.mark.parametrize("algorithm", [Algorithm.SM1, Algorithm.SSF33])
def test_what_only_hardware_has_is_refused(algorithm: Algorithm) -> None:
    with pytest.raises(AlgorithmNotSupported):
        SecretKey.load(algorithm, bytes(16))
    with pytest.raises(AlgorithmNotSupported):
        secret(Algorithm.SM4).encrypt_to_key(bytes(16), algorithm)


# --- whole blocks


@software
@given(excess=st.data())
def test_a_partial_block_is_refused_and_spoils_nothing(
    algorithm: Algorithm, excess: st.DataObject
) -> None:
    key = secret(algorithm)
    size = BLOCK_BYTES[algorithm]
    block = bytes(range(size))
    expected = key.encrypt(block)
    wrong = excess.draw(st.integers(0, 5 * size).filter(lambda n: n == 0 or n % size))
    for compute in (key.encrypt, key.decrypt, lambda blocks: key.cbc_mac(blocks, bytes(size))):
        with pytest.raises(ValueError, match=f"whole blocks of {size} bytes"):
            compute(bytes(wrong))
    assert key.encrypt(block) == expected
    assert key.decrypt(expected) == block


@software
def test_the_check_value_is_three_bytes_of_a_zero_block(algorithm: Algorithm) -> None:
    key = secret(algorithm)
    assert key.kcv() == key.encrypt(bytes(key.block_bytes))[:3]
    assert len(key.kcv()) == 3


# --- wrapping

NONCE: Final = bytes(range(12))
HEADER: Final = b"usage, address, version"


@software
def test_a_wrapped_key_opens_to_the_same_key(algorithm: Algorithm) -> None:
    key, wrapping = secret(algorithm), SecretKey.load(Algorithm.SM4, bytes(range(16)))
    wrapped = wrapping.wrap(key, NONCE, HEADER)
    assert len(wrapped) == KEY_BYTES[algorithm] + 16
    opened = wrapping.unwrap(wrapped, NONCE, HEADER, algorithm)
    block = bytes(range(key.block_bytes))
    assert opened.encrypt(block) == key.encrypt(block)
    assert opened.kcv() == key.kcv()


@software
def test_whatever_is_altered_does_not_open(algorithm: Algorithm) -> None:
    key, wrapping = secret(algorithm), SecretKey.load(Algorithm.SM4, bytes(range(16)))
    wrapped = wrapping.wrap(key, NONCE, HEADER)

    def flips(octets: bytes) -> Iterator[bytes]:
        for bit in range(len(octets) * 8):
            yield (int.from_bytes(octets, "big") ^ 1 << bit).to_bytes(len(octets), "big")

    for attempt in flips(wrapped):
        with pytest.raises(KeyNotAuthentic):
            wrapping.unwrap(attempt, NONCE, HEADER, algorithm)
    for nonce in flips(NONCE):
        with pytest.raises(KeyNotAuthentic):
            wrapping.unwrap(wrapped, nonce, HEADER, algorithm)
    for header in [*flips(HEADER), b"", HEADER + b"\0", HEADER[:-1]]:
        with pytest.raises(KeyNotAuthentic):
            wrapping.unwrap(wrapped, NONCE, header, algorithm)
    for length in range(len(wrapped)):
        with pytest.raises(KeyNotAuthentic):
            wrapping.unwrap(wrapped[:length], NONCE, HEADER, algorithm)
    with pytest.raises(KeyNotAuthentic):
        secret(Algorithm.SM4).unwrap(wrapped, NONCE, HEADER, algorithm)


def test_keys_are_wrapped_under_sm4_with_a_whole_nonce() -> None:
    key = secret(Algorithm.SM4)
    with pytest.raises(ValueError, match="wrapped under SM4"):
        secret(Algorithm.TDES).wrap(key, NONCE, HEADER)
    with pytest.raises(ValueError, match="12 bytes"):
        key.wrap(key, NONCE[:-1], HEADER)
