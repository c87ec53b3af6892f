"""The self-test passes on sound primitives, and breaking one fails exactly the tests that rest on it."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from gmssl import sm3 as gmssl_sm3
from gmssl import sm4 as gmssl_sm4

from keyd.crypto import selftest
from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.selftest import require_selftest, run_selftest
from keyd.crypto.sm2 import Sm2PrivateKey, Sm2PublicKey, selection
from keyd.crypto.sm2.guarded import GuardedPrivateKey, key_stream, multiply
from keyd.crypto.sm3 import sm3
from keyd.errors import SelftestFailed, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyd.crypto.sm2.backend import Backend, Ciphertext

NAMES = [
    "SM4",
    "SM4 CBC-MAC",
    "SM4 key wrap",
    "SM4 seal",
    "SM4 against gmssl",
    "3DES",
    "DES",
    "Key shares",
    "SM3",
    "SM3 against gmssl",
    "SM2 verify",
    "SM2 sign",
    "SM2 decrypt",
    "SM2 encrypt",
]

SM4_TESTS = {"SM4", "SM4 CBC-MAC", "SM4 key wrap", "SM4 seal", "SM4 against gmssl"}


def failed() -> dict[str, str]:
    return {result.name: result.detail for result in run_selftest() if not result.passed}


def last_bit_flipped(answer: bytes) -> bytes:
    return answer[:-1] + bytes([answer[-1] ^ 1])


def wrong(primitive: Callable[..., bytes]) -> Callable[..., bytes]:
    """Break a primitive in one bit."""
    return lambda *args, **kwargs: last_bit_flipped(primitive(*args, **kwargs))


def wrong_for(algorithm: Algorithm, primitive: Callable[..., bytes]) -> Callable[..., bytes]:
    """Break a SecretKey's primitive in one bit, under one algorithm."""

    def broken(key: SecretKey, *args: Any) -> bytes:
        answer = primitive(key, *args)
        return last_bit_flipped(answer) if key.algorithm is algorithm else answer

    return broken


def wrong_shares(combine: Callable[..., SecretKey]) -> Callable[..., SecretKey]:
    """Break one bit of the last share before it is combined."""

    def broken(algorithm: Algorithm, shares: Any) -> SecretKey:
        *shares, (number, value) = shares
        return combine(algorithm, [*shares, (number, last_bit_flipped(value))])

    return broken


def wrong_list(primitive: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
    """Break a primitive that returns a list in one bit."""

    def broken(*args: Any) -> list[bytes]:
        *answers, last = primitive(*args)
        return [*answers, last_bit_flipped(last)]

    return broken


# --- soundness


@pytest.fixture(params=["libcrypto", "guarded"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each SM2 backend in turn as the one in use."""
    backend: Backend = request.getfixturevalue(request.param)
    monkeypatch.setattr("keyd.crypto.sm2.keys.default_backend", lambda: backend)
    return backend


@pytest.mark.usefixtures("each_backend")
def test_every_test_passes() -> None:
    results = run_selftest()
    assert [result.name for result in results] == NAMES
    assert all(result.passed for result in results), results
    assert all(result.detail for result in results)
    require_selftest()


def test_it_takes_less_than_a_tenth_of_a_second() -> None:
    run_selftest()
    attempts = []
    for _ in range(3):
        start = time.perf_counter()
        run_selftest()
        attempts.append(time.perf_counter() - start)
    # The best of three: a busy machine says nothing about the self-test.
    assert min(attempts) < 0.1


def test_it_needs_nothing_but_the_package_and_warns_of_nothing(tmp_path: Path) -> None:
    # With its own bytecode cache everything is compiled again: a SyntaxWarning hides in the cache otherwise.
    program = (
        "from keyd.crypto.selftest import require_selftest; require_selftest();"
        "from keyd.crypto.sm2 import Sm2PrivateKey, selection;"
        "Sm2PrivateKey.generate(backend=selection.guarded_backend()).sign(b'')"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# --- sabotage


@pytest.mark.parametrize(
    ("owner", "name", "breaking", "expected"),
    [
        (
            SecretKey,
            "encrypt",
            lambda whole: wrong_for(Algorithm.SM4, whole),
            # Not the CBC-MAC and not the wrapping, which do not go through `encrypt`.
            {"SM4", "SM4 against gmssl"},
        ),
        (SecretKey, "decrypt", lambda whole: wrong_for(Algorithm.SM4, whole), {"SM4"}),
        (SecretKey, "cbc_mac", wrong, {"SM4 CBC-MAC"}),
        (SecretKey, "wrap", wrong, {"SM4 key wrap"}),
        (SecretKey, "seal", wrong, {"SM4 seal"}),
        (SecretKey, "open", wrong, {"SM4 seal"}),
        # Opens everything.
        (SecretKey, "open", lambda _: lambda *_: selftest._GCM_DATA, {"SM4 seal"}),
        (SecretKey, "combine", wrong_shares, {"Key shares"}),
        (SecretKey, "split", wrong_list, {"Key shares"}),
        (SecretKey, "encrypt", lambda whole: wrong_for(Algorithm.TDES, whole), {"3DES"}),
        (SecretKey, "decrypt", lambda whole: wrong_for(Algorithm.TDES, whole), {"3DES"}),
        (SecretKey, "encrypt", lambda whole: wrong_for(Algorithm.DES, whole), {"DES"}),
        (SecretKey, "decrypt", lambda whole: wrong_for(Algorithm.DES, whole), {"DES"}),
        (selftest, "sm3", wrong, {"SM3", "SM3 against gmssl"}),
        (gmssl_sm3, "IV", lambda iv: [iv[0] ^ 1, *iv[1:]], {"SM3 against gmssl"}),
        (gmssl_sm4, "SM4_FK", lambda fk: [fk[0] ^ 1, *fk[1:]], {"SM4 against gmssl"}),
        (Sm2PrivateKey, "sign", wrong, {"SM2 sign"}),
        (Sm2PrivateKey, "decrypt", wrong, {"SM2 decrypt", "SM2 encrypt"}),
        (Sm2PublicKey, "encrypt", wrong, {"SM2 encrypt"}),
        # Accepts everything.
        (Sm2PublicKey, "verify", lambda _: lambda *_, **__: None, {"SM2 verify"}),
        (Sm2PublicKey, "encode", wrong, {"SM2 sign"}),
    ],
    ids=lambda value: getattr(value, "__name__", None) if isinstance(value, type) else None,
)
def test_breaking_a_primitive_fails_exactly_the_tests_that_rest_on_it(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    breaking: Callable[[Any], object],
    expected: set[str],
) -> None:
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    assert failed().keys() == expected


def test_a_k_that_is_used_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = selection.guarded_backend()
    monkeypatch.setattr("keyd.crypto.sm2.keys.default_backend", lambda: guarded)
    monkeypatch.setattr("keyd.crypto.sm2.guarded._random_scalar", lambda: 0x1234567)
    assert failed() == {"SM2 sign": "uses one k twice", "SM2 encrypt": "uses one k twice"}


def test_a_decryption_that_ignores_c3_is_noticed(
    monkeypatch: pytest.MonkeyPatch, guarded: Backend
) -> None:
    def careless(key: GuardedPrivateKey, ciphertext: Ciphertext) -> bytearray:
        stream = key_stream(multiply(key._d, ciphertext.c1), len(ciphertext.c2))
        return bytearray(a ^ b for a, b in zip(ciphertext.c2, stream, strict=True))

    monkeypatch.setattr("keyd.crypto.sm2.keys.default_backend", lambda: guarded)
    monkeypatch.setattr(GuardedPrivateKey, "decrypt", careless)
    assert failed() == {"SM2 decrypt": "accepts an altered ciphertext"}


# --- a failure is a result, not a crash, and tells no secrets


def test_whatever_a_primitive_raises_is_a_failed_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def explodes(*_: object) -> bytes:
        raise OSError("quoting the key: 0123456789ABCDEFFEDCBA9876543210")

    monkeypatch.setattr(selftest, "sm3", explodes)
    assert failed() == {"SM3": "raised OSError", "SM3 against gmssl": "raised OSError"}


def test_keys_that_do_not_load_fail_every_test_under_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def explodes(*_: object) -> SecretKey:
        raise MemoryError

    monkeypatch.setattr(SecretKey, "load", explodes)
    assert failed().keys() == SM4_TESTS | {"3DES", "DES"}


def test_the_refusal_names_every_test_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "sm3", wrong(sm3))
    monkeypatch.setattr(Sm2PrivateKey, "sign", wrong(Sm2PrivateKey.sign))
    with pytest.raises(SelftestFailed, match=r"\Aself-test failed: SM3, .*, SM2 sign\Z") as no:
        require_selftest()
    assert no.value.status is Status.SELFTEST_FAILED


def test_no_detail_shows_key_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    details = [result.detail for result in run_selftest()]
    monkeypatch.setattr(SecretKey, "load", classmethod(lambda *_: 1 / 0))
    monkeypatch.setattr(Sm2PrivateKey, "load", classmethod(lambda *_: 1 / 0))
    details += failed().values()
    for material in (selftest._SM4_KEY, selftest._DES_KEY, selftest._SM2_D):
        for at in range(0, len(material), 4):
            assert not [text for text in details if material[at : at + 4].hex() in text.lower()]
