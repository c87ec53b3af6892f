"""SM2 gives the standard's answers; what one backend makes the other accepts; nothing altered is accepted."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.crypto.sm2 import (
    DEFAULT_USER_ID,
    CiphertextNotAuthentic,
    CiphertextOrder,
    PointNotOnCurve,
    SignatureNotAuthentic,
    Sm2PrivateKey,
    Sm2PublicKey,
    abi,
    backend_name,
    libcrypto,
    selection,
)
from keyd.crypto.sm2.backend import Ciphertext
from keyd.crypto.sm2.curve import (
    MAX_USER_ID_BYTES,
    A,
    B,
    G,
    N,
    P,
    message_digest,
    scalar,
    z_value,
)
from keyd.crypto.sm2.guarded import (
    GuardedPublicKey,
    key_stream,
    maybe_add,
    maybe_encrypt,
    maybe_sign,
    multiply,
)
from keyd.crypto.sm2.keys import MAX_PLAINTEXT_BYTES
from keyd.crypto.sm2.libcrypto import LibcryptoBackend, LibcryptoError, LibcryptoUnusable
from keyd.crypto.sm3 import sm3
from keyd.errors import AlgorithmNotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.crypto.sm2.backend import Backend

# Hypothesis dislikes fixtures that live for one test only; ours live for the session and hold no state.
few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
orders = st.sampled_from(CiphertextOrder)


class Standard:
    """The vectors of GB/T 32918.5, as bytes and numbers."""

    def __init__(self, vectors: dict[str, str]) -> None:
        def octets(name: str) -> bytes:
            return bytes.fromhex(vectors[name])

        self.d = octets("d")
        self.point = b"\x04" + octets("x") + octets("y")
        self.z = octets("z")
        self.user_id = vectors["id"].encode()
        self.message = octets("message")
        self.k = int(vectors["k"], 16)
        self.signature = octets("r") + octets("s")
        self.plaintext = octets("plaintext")
        self.c2, self.c3 = octets("c2"), octets("c3")
        # The standard's example encrypts under the k of its signature, whose C1 is [k]G.
        self.c1 = multiply(self.k, G)


@pytest.fixture(scope="session")
def standard(gm: dict[str, Any]) -> Standard:
    return Standard(gm["sm2"])


@pytest.fixture(scope="session")
def key(standard: Standard, backend: Backend) -> Sm2PrivateKey:
    return Sm2PrivateKey.load(standard.d, backend=backend)


def flipped(octets: bytes, bit: int) -> bytes:
    """Return the bytes with one bit changed."""
    number = int.from_bytes(octets, "big") ^ 1 << bit
    return number.to_bytes(len(octets), "big")


def bits(octets: bytes, backend_in_use: str) -> range:
    """Every bit over libcrypto; over the slow backend one in 41, which is prime to bytes and words."""
    return range(0, len(octets) * 8, 1 if backend_in_use == "libcrypto" else 41)


# --- the standard's vectors


def test_the_key_has_the_published_public_key(key: Sm2PrivateKey, standard: Standard) -> None:
    assert key.public.encode() == standard.point


def test_z_is_the_published_one(standard: Standard) -> None:
    assert standard.user_id == DEFAULT_USER_ID
    assert z_value(standard.point, standard.user_id) == standard.z


def test_the_published_signature_verifies(key: Sm2PrivateKey, standard: Standard) -> None:
    key.public.verify(standard.message, standard.signature)


def test_the_published_k_makes_the_published_signature(standard: Standard) -> None:
    e = message_digest(standard.point, standard.message, standard.user_id)
    signature = maybe_sign(int.from_bytes(e, "big"), int.from_bytes(standard.d, "big"), standard.k)
    assert signature == standard.signature


def test_the_published_k_makes_the_published_ciphertext(standard: Standard) -> None:
    ciphertext = maybe_encrypt(standard.plaintext, standard.point, standard.k)
    assert ciphertext == Ciphertext(standard.c1, standard.c2, standard.c3)


def test_the_published_ciphertext_decrypts_in_both_orders(
    key: Sm2PrivateKey, standard: Standard
) -> None:
    new = standard.c1 + standard.c3 + standard.c2
    old = standard.c1 + standard.c2 + standard.c3
    assert key.decrypt(new) == standard.plaintext
    assert key.decrypt(new, order=CiphertextOrder.C1C3C2) == standard.plaintext
    assert key.decrypt(old, order=CiphertextOrder.C1C2C3) == standard.plaintext


# --- what one backend makes, the other accepts


@few
@given(message=st.binary(max_size=300), user_id=st.binary(min_size=1, max_size=40))
def test_what_one_signs_the_other_verifies(
    two_sides: tuple[Backend, Backend], message: bytes, user_id: bytes
) -> None:
    signer, verifier = two_sides
    key = Sm2PrivateKey.generate(backend=signer)
    signature = key.sign(message, user_id=user_id)
    public = Sm2PublicKey.load(key.public.encode(), backend=verifier)
    public.verify(message, signature, user_id=user_id)
    with pytest.raises(SignatureNotAuthentic):
        public.verify(message + b"\0", signature, user_id=user_id)
    with pytest.raises(SignatureNotAuthentic):
        public.verify(message, signature, user_id=user_id + b"\0")


@few
@given(plaintext=st.binary(min_size=1, max_size=300), order=orders)
def test_what_one_encrypts_the_other_decrypts(
    two_sides: tuple[Backend, Backend], plaintext: bytes, order: CiphertextOrder
) -> None:
    encryptor, decryptor = two_sides
    d = scalar(1 + int.from_bytes(sm3(plaintext), "big") % (N - 2))
    public = Sm2PrivateKey.load(d, backend=encryptor).public
    ciphertext = public.encrypt(plaintext, order=order)
    assert ciphertext[0] == 0x04
    assert len(ciphertext) == 65 + 32 + len(plaintext)
    assert Sm2PrivateKey.load(d, backend=decryptor).decrypt(ciphertext, order=order) == plaintext


@pytest.mark.parametrize("d", [1, 2, 0x80, N - 2, (N - 1) // 2])
def test_the_backends_compute_the_same_public_key(
    libcrypto: Backend, guarded: Backend, d: int
) -> None:
    secret = bytearray(scalar(d))
    assert libcrypto.public_point(secret) == guarded.public_point(secret)


@pytest.mark.parametrize("length", [1, MAX_USER_ID_BYTES])
def test_the_shortest_and_the_longest_identifier_work(
    two_sides: tuple[Backend, Backend], length: int
) -> None:
    signer, verifier = two_sides
    key = Sm2PrivateKey.generate(backend=signer)
    signature = key.sign(b"", user_id=b"i" * length)
    Sm2PublicKey.load(key.public.encode(), backend=verifier).verify(
        b"", signature, user_id=b"i" * length
    )


def test_the_longest_plaintext_works(two_sides: tuple[Backend, Backend]) -> None:
    encryptor, decryptor = two_sides
    plaintext = bytes(range(256)) * (MAX_PLAINTEXT_BYTES // 256)
    d = scalar(7)
    ciphertext = Sm2PrivateKey.load(d, backend=encryptor).public.encrypt(plaintext)
    assert Sm2PrivateKey.load(d, backend=decryptor).decrypt(ciphertext) == plaintext


def test_each_signature_and_each_ciphertext_has_its_own_k(key: Sm2PrivateKey) -> None:
    assert len({key.sign(b"message")[:32] for _ in range(20)}) == 20
    assert len({key.public.encrypt(b"plaintext")[:65] for _ in range(20)}) == 20


def test_each_generated_key_is_another(backend: Backend) -> None:
    assert len({Sm2PrivateKey.generate(backend=backend).public for _ in range(10)}) == 10


# --- signatures: nothing altered is accepted


def test_a_signature_with_one_bit_changed_is_refused(
    key: Sm2PrivateKey, backend: Backend, standard: Standard
) -> None:
    for bit in bits(standard.signature, backend.name):
        with pytest.raises(SignatureNotAuthentic):
            key.public.verify(standard.message, flipped(standard.signature, bit))


def test_a_message_with_one_bit_changed_is_refused(
    key: Sm2PrivateKey, backend: Backend, standard: Standard
) -> None:
    for bit in bits(standard.message, backend.name):
        with pytest.raises(SignatureNotAuthentic):
            key.public.verify(flipped(standard.message, bit), standard.signature)


def test_another_key_or_identifier_is_refused(
    key: Sm2PrivateKey, backend: Backend, standard: Standard
) -> None:
    with pytest.raises(SignatureNotAuthentic):
        key.public.verify(standard.message, standard.signature, user_id=b"ALICE123@YAHOO.COM")
    other = Sm2PrivateKey.generate(backend=backend).public
    with pytest.raises(SignatureNotAuthentic):
        other.verify(standard.message, standard.signature)


@pytest.mark.parametrize("value", [0, N, N + 1, (1 << 256) - 1])
@pytest.mark.parametrize("part", ["r", "s"])
def test_r_or_s_out_of_range_is_refused(
    key: Sm2PrivateKey, standard: Standard, part: str, value: int
) -> None:
    r, s = standard.signature[:32], standard.signature[32:]
    forged = scalar(value) + s if part == "r" else r + scalar(value)
    with pytest.raises(SignatureNotAuthentic, match="out of range"):
        key.public.verify(standard.message, forged)


def test_a_signature_whose_r_and_s_cancel_is_refused(
    key: Sm2PrivateKey, standard: Standard
) -> None:
    # t = r + s = 0 would take the public key out of the equation (GB/T 32918.2 §7.1 B5).
    r = int.from_bytes(standard.signature[:32], "big")
    with pytest.raises(SignatureNotAuthentic):
        key.public.verify(standard.message, scalar(r) + scalar(N - r))


def test_a_signature_that_leads_to_infinity_is_refused(
    key: Sm2PrivateKey, standard: Standard
) -> None:
    # [s]G + [t]P is infinity when s + (r + s)d = 0: only who has d can ask, and the answer is still no.
    d, r = int.from_bytes(standard.d, "big"), 1
    s = -r * d * pow(1 + d, -1, N) % N
    with pytest.raises(SignatureNotAuthentic):
        key.public.verify(standard.message, scalar(r) + scalar(s))


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(
    key: Sm2PrivateKey, standard: Standard, length: int
) -> None:
    with pytest.raises(SignatureNotAuthentic, match="64 bytes"):
        key.public.verify(standard.message, (standard.signature * 2)[:length])


@pytest.mark.parametrize("length", [0, MAX_USER_ID_BYTES + 1])
def test_an_identifier_that_z_cannot_hold_is_our_mistake(
    key: Sm2PrivateKey, standard: Standard, length: int
) -> None:
    with pytest.raises(ValueError, match="1 to 8190 bytes"):
        key.sign(b"", user_id=b"i" * length)
    with pytest.raises(ValueError, match="1 to 8190 bytes"):
        key.public.verify(standard.message, standard.signature, user_id=b"i" * length)


# --- ciphertexts: nothing altered is accepted


@pytest.mark.parametrize("order", CiphertextOrder)
def test_a_ciphertext_with_one_bit_changed_is_refused(
    key: Sm2PrivateKey, backend: Backend, order: CiphertextOrder
) -> None:
    # C1 is the first 65 bytes; C2 and C3 follow in either order: all three are covered.
    ciphertext = key.public.encrypt(b"sixteen bytes...", order=order)
    for bit in bits(ciphertext, backend.name):
        with pytest.raises(CiphertextNotAuthentic):
            key.decrypt(flipped(ciphertext, bit), order=order)


def test_the_opposite_point_is_refused(key: Sm2PrivateKey, standard: Standard) -> None:
    # -C1 is on the curve and shares x2 with C1: only y2 in C3 tells them apart.
    y = int.from_bytes(standard.c1[33:], "big")
    opposite = standard.c1[:33] + scalar(P - y)
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt(opposite + standard.c3 + standard.c2)


def test_a_c1_off_the_curve_is_refused_before_the_key_is_used(
    key: Sm2PrivateKey, standard: Standard
) -> None:
    for c1 in (
        b"\x04" + bytes(64),
        flipped(standard.c1, 0),
        b"\x03" + standard.c1[1:],
        b"\x00" * 65,
    ):
        with pytest.raises(CiphertextNotAuthentic, match="C1 is not a point"):
            key.decrypt(c1 + standard.c3 + standard.c2)


@pytest.mark.parametrize("order", CiphertextOrder)
def test_every_truncation_and_extension_is_refused(
    key: Sm2PrivateKey, standard: Standard, order: CiphertextOrder
) -> None:
    tail = (
        standard.c3 + standard.c2 if order is CiphertextOrder.C1C3C2 else standard.c2 + standard.c3
    )
    whole = standard.c1 + tail
    for length in range(len(whole)):
        with pytest.raises(CiphertextNotAuthentic):
            key.decrypt(whole[:length], order=order)
    for longer in (whole + b"\0", b"\x04" + whole, whole + bytes(MAX_PLAINTEXT_BYTES)):
        with pytest.raises(CiphertextNotAuthentic):
            key.decrypt(longer, order=order)


def test_the_other_order_and_another_key_are_refused(
    key: Sm2PrivateKey, backend: Backend, standard: Standard
) -> None:
    ciphertext = standard.c1 + standard.c3 + standard.c2
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt(ciphertext, order=CiphertextOrder.C1C2C3)
    with pytest.raises(CiphertextNotAuthentic):
        Sm2PrivateKey.generate(backend=backend).decrypt(ciphertext)


@few
@given(octets=st.binary(max_size=200), order=orders)
def test_no_bytes_at_all_raise_anything_else(
    key: Sm2PrivateKey, octets: bytes, order: CiphertextOrder
) -> None:
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt(octets, order=order)
    with pytest.raises(SignatureNotAuthentic):
        key.public.verify(octets, octets[:64])


@pytest.mark.parametrize("length", [0, MAX_PLAINTEXT_BYTES + 1])
def test_a_plaintext_out_of_bounds_is_our_mistake(key: Sm2PrivateKey, length: int) -> None:
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        key.public.encrypt(bytes(length))


# --- the key stream that is all zero


@pytest.fixture(scope="session")
def zero_stream() -> tuple[int, bytes]:
    """A k, and [k]G, whose key stream begins with a zero byte: one k in 256 is such."""
    k, point = 1, G
    while any(key_stream(point, 1)):
        k, total = k + 1, maybe_add(point, G)
        assert total is not None
        point = total
    return k, point


def test_encrypting_wants_another_k_for_a_zero_key_stream(zero_stream: tuple[int, bytes]) -> None:
    k, _ = zero_stream
    # Under d = 1 the public key is G itself, so that [k]P is [k]G.
    assert maybe_encrypt(b"A", G, k) is None
    assert maybe_encrypt(b"AB", G, k) is not None


def test_decrypting_refuses_a_zero_key_stream(
    backend: Backend, zero_stream: tuple[int, bytes]
) -> None:
    _, point = zero_stream
    key = Sm2PrivateKey.load(scalar(1), backend=backend)
    c3 = sm3(point[1:33] + b"A" + point[33:])
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt(point + c3 + b"A")


def test_a_single_byte_never_travels_in_clear(libcrypto: Backend) -> None:
    public = Sm2PublicKey.load(G, backend=libcrypto)
    # Without the guard 1 in 256 would: the chance that 1500 would not show it is below 0.3 %.
    assert all(public.encrypt(b"A")[-1:] != b"A" for _ in range(1500))


def test_a_backend_whose_key_streams_are_all_zero_is_a_fault() -> None:
    class Transparent(GuardedPublicKey):
        def encrypt(self, plaintext: bytes | bytearray) -> Ciphertext:
            return Ciphertext(G, bytes(plaintext), bytes(32))

    with pytest.raises(RuntimeError, match="zero key streams"):
        Sm2PublicKey(G, Transparent(G)).encrypt(b"plaintext")


# --- the values of k that the standard sends back


def test_signing_wants_another_k_where_the_standard_says_so() -> None:
    d, k = 0x1234567, 0x89ABCDEF
    x1 = int.from_bytes(multiply(k, G)[1:33], "big")
    assert maybe_sign(-x1 % N, d, k) is None, "r = 0"
    assert maybe_sign((N - k - x1) % N, d, k) is None, "r + k = N"
    r = k * pow(d, -1, N) % N
    assert maybe_sign((r - x1) % N, d, k) is None, "s = 0"
    assert maybe_sign((1 - x1) % N, d, k) is not None


# --- points


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x00",
        bytes(65),
        G[1:],
        G + b"\0",
        b"\x02" + G[1:33],
        b"\x03" + G[1:],
        b"\x06" + G[1:],
        b"\x04" + bytes(64),
        b"\x04" + b"\xff" * 64,
        flipped(G, 0),
        flipped(G, 300),
        G[:1] + G[33:] + G[1:33],
    ],
    ids=lambda octets: octets[:2].hex() + f"-{len(octets)}",
)
def test_what_is_not_a_point_is_refused(backend: Backend, octets: bytes) -> None:
    with pytest.raises(PointNotOnCurve):
        Sm2PublicKey.load(octets, backend=backend)


def test_a_second_spelling_of_a_point_is_refused(backend: Backend) -> None:
    # Some small x is on the curve, and x + P still fits into 32 bytes.
    for x in range(100):
        square = (x**3 + A * x + B) % P
        y = pow(square, (P + 1) // 4, P)
        if y * y % P == square:
            break
    assert Sm2PublicKey.load(b"\x04" + scalar(x) + scalar(y), backend=backend)
    with pytest.raises(PointNotOnCurve):
        Sm2PublicKey.load(b"\x04" + scalar(x + P) + scalar(y), backend=backend)


def test_public_keys_are_compared_by_their_points(
    libcrypto: Backend, guarded: Backend, standard: Standard
) -> None:
    here = Sm2PublicKey.load(standard.point, backend=libcrypto)
    there = Sm2PublicKey.load(standard.point, backend=guarded)
    other = Sm2PublicKey.load(G, backend=libcrypto)
    assert here == there
    assert len({here, there, other}) == 2
    assert here != standard.point


def test_the_guarded_arithmetic_refuses_what_gmssl_gets_wrong() -> None:
    for k in (0, -1, N, N + 1, 1 << 256):
        with pytest.raises(ValueError, match="multiplier"):
            multiply(k, G)
    assert multiply(1, G) == G
    assert maybe_add(G, G) == multiply(2, G)
    assert maybe_add(multiply(2, G), G) == multiply(3, G)
    assert maybe_add(multiply(N - 1, G), G) is None


# --- private keys


@pytest.mark.parametrize(
    "d",
    [b"", bytes(31), bytes(32), bytes(33), scalar(N - 1), scalar(N), b"\xff" * 32],
    ids=lambda d: f"{len(d)}-{d[-2:].hex()}",
)
def test_what_is_not_a_private_key_is_refused(backend: Backend, d: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes, a number in"):
        Sm2PrivateKey.load(d, backend=backend)


def test_a_private_key_never_shows_its_bytes(key: Sm2PrivateKey, standard: Standard) -> None:
    shown = f"{key} {key!r} {[key]!r}"
    assert standard.d.hex() not in shown.lower()
    assert str(int.from_bytes(standard.d, "big")) not in shown
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            attempt(key)
    with pytest.raises(TypeError, match="not compared"):
        assert key == key
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)


def test_what_can_be_wiped_is_wiped_on_loading(backend: Backend, standard: Standard) -> None:
    d = bytearray(standard.d)
    assert Sm2PrivateKey.load(d, backend=backend).public.encode() == standard.point
    assert d == bytes(32)
    refused = bytearray(scalar(N))
    with pytest.raises(ValueError, match="32 bytes"):
        Sm2PrivateKey.load(refused, backend=backend)
    assert refused == bytes(32)


@pytest.mark.parametrize("d", [1, 2, N - 3, N - 2, 0x80, 1 << 248])
def test_the_ends_of_the_range_are_keys_and_come_back_whole(backend: Backend, d: int) -> None:
    key = Sm2PrivateKey.load(scalar(d), backend=backend)
    with key.lent_secret() as lent:
        assert lent == scalar(d)
    assert lent == bytes(32)


# --- a private key under a key

KEK = bytes(range(16))
NONCE = bytes(range(12))
HEADER = b"the node's signing key"


def test_a_wrapped_private_key_opens_to_the_same_key(
    two_sides: tuple[Backend, Backend], standard: Standard
) -> None:
    wrapper, opener = two_sides
    kek = SecretKey.load(Algorithm.SM4, KEK)
    key = Sm2PrivateKey.load(standard.d, backend=wrapper)
    wrapped = key.wrapped_under(kek, NONCE, HEADER)
    assert len(wrapped) == 48
    assert wrapped == kek.seal(standard.d, NONCE, HEADER)
    opened = Sm2PrivateKey.unwrap(kek, wrapped, NONCE, HEADER, backend=opener)
    assert opened.public == key.public
    key.public.verify(b"message", opened.sign(b"message"))


def test_a_private_key_does_not_open_under_anything_else(
    key: Sm2PrivateKey, backend: Backend
) -> None:
    kek = SecretKey.load(Algorithm.SM4, KEK)
    wrapped = key.wrapped_under(kek, NONCE, HEADER)
    attempts = [(flipped(wrapped, bit), NONCE, HEADER) for bit in range(len(wrapped) * 8)]
    attempts += [(wrapped[:length], NONCE, HEADER) for length in range(len(wrapped))]
    attempts += [
        (wrapped + b"\0", NONCE, HEADER),
        (wrapped, NONCE, b""),
        (wrapped, bytes(12), HEADER),
    ]
    for attempt in attempts:
        with pytest.raises(KeyNotAuthentic):
            Sm2PrivateKey.unwrap(kek, *attempt, backend=backend)
    other = SecretKey.load(Algorithm.SM4, bytes(16))
    with pytest.raises(KeyNotAuthentic):
        Sm2PrivateKey.unwrap(other, wrapped, NONCE, HEADER, backend=backend)
    # What was sealed and is no key says so, without its bytes.
    nothing = kek.seal(bytes(32), NONCE, HEADER)
    with pytest.raises(ValueError, match="a number in"):
        Sm2PrivateKey.unwrap(kek, nothing, NONCE, HEADER, backend=backend)


# --- a key under a public key


@pytest.mark.parametrize("order", CiphertextOrder)
@pytest.mark.parametrize("algorithm", [Algorithm.SM4, Algorithm.TDES, Algorithm.DES])
def test_a_key_that_was_sent_arrives_in_locked_memory(
    two_sides: tuple[Backend, Backend],
    standard: Standard,
    algorithm: Algorithm,
    order: CiphertextOrder,
) -> None:
    sender, receiver = two_sides
    material = bytes(range(0x20, 0x20 + KEY_BYTES[algorithm]))
    ciphertext = Sm2PublicKey.load(standard.point, backend=sender).encrypt(material, order=order)
    key = Sm2PrivateKey.load(standard.d, backend=receiver)
    received = key.decrypt_to_key(ciphertext, algorithm, order=order)
    assert received.algorithm is algorithm
    block = bytes(16)
    assert received.encrypt(block) == SecretKey.load(algorithm, material).encrypt(block)


def test_what_is_no_key_is_not_received(key: Sm2PrivateKey, backend: Backend) -> None:
    ciphertext = key.public.encrypt(bytes(range(16)))
    for bit in bits(ciphertext, backend.name):
        with pytest.raises(CiphertextNotAuthentic):
            key.decrypt_to_key(flipped(ciphertext, bit), Algorithm.SM4)
    for length in (1, 8, 15, 17, 24, 32):
        other = key.public.encrypt(bytes(length))
        with pytest.raises(CiphertextNotAuthentic, match="length of a key"):
            key.decrypt_to_key(other, Algorithm.SM4)
    with pytest.raises(CiphertextNotAuthentic, match="length of a key"):
        key.decrypt_to_key(ciphertext, Algorithm.DES)
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt_to_key(ciphertext, Algorithm.SM4, order=CiphertextOrder.C1C2C3)
    with pytest.raises(AlgorithmNotSupported):
        key.decrypt_to_key(ciphertext, Algorithm.SM1)


def test_over_libcrypto_a_received_key_is_wiped_where_it_passed(
    monkeypatch: pytest.MonkeyPatch, libcrypto: LibcryptoBackend, standard: Standard
) -> None:
    key = Sm2PrivateKey.load(standard.d, backend=libcrypto)
    passed: list[bytearray] = []
    decrypt = type(key._operations).decrypt

    def watched(self: Any, ciphertext: Ciphertext) -> bytearray:
        plaintext: bytearray = decrypt(self, ciphertext)
        assert plaintext == bytes(range(16))
        passed.append(plaintext)
        return plaintext

    monkeypatch.setattr(type(key._operations), "decrypt", watched)
    ciphertext = key.public.encrypt(bytes(range(16)))
    key.decrypt_to_key(ciphertext, Algorithm.SM4)
    assert key.decrypt(ciphertext) == bytes(range(16))
    assert passed == [bytes(16), bytes(16)]


# --- many threads


def test_many_threads_share_one_key(libcrypto: Backend, standard: Standard) -> None:
    key = Sm2PrivateKey.load(standard.d, backend=libcrypto)
    threads, rounds = 8, 25
    together = threading.Barrier(threads)

    def work(number: int) -> int:
        together.wait()
        for round_ in range(rounds):
            message = f"{number} {round_}".encode()
            signature = key.sign(message)
            key.public.verify(message, signature)
            with pytest.raises(SignatureNotAuthentic):
                key.public.verify(message + b"!", signature)
            assert key.decrypt(key.public.encrypt(message)) == message
            # Keys come and go meanwhile.
            Sm2PrivateKey.generate(backend=libcrypto).sign(message)
        return rounds

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [rounds] * threads


# --- libcrypto: what it says no with, and what happens without it


def test_a_refusal_leaves_nothing_in_the_error_queue(
    libcrypto: LibcryptoBackend, standard: Standard
) -> None:
    key = Sm2PrivateKey.load(standard.d, backend=libcrypto)
    with pytest.raises(SignatureNotAuthentic):
        key.public.verify(b"another", standard.signature)
    with pytest.raises(CiphertextNotAuthentic):
        key.decrypt(standard.c1 + bytes(32) + standard.c2)
    assert libcrypto._lib._take_errors() == []


def test_a_failure_says_what_libcrypto_said_and_empties_the_queue(
    libcrypto: LibcryptoBackend,
) -> None:
    with pytest.raises(LibcryptoError, match=r"EC_GROUP_new_by_curve_name failed: .*unknown group"):
        libcrypto._lib.EC_GROUP_new_by_curve_name(0)
    assert libcrypto._lib._take_errors() == []


@pytest.fixture
def fresh_selection() -> Iterator[None]:
    """Let the backend be chosen again, before the test and after it."""

    def forget() -> None:
        selection.default_backend.cache_clear()
        selection.libcrypto_backend.cache_clear()

    forget()
    yield
    forget()


def test_libcrypto_is_used_where_it_is_there() -> None:
    assert backend_name() == "libcrypto"


@pytest.mark.usefixtures("fresh_selection")
@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (abi, "_SONAMES", ("libcrypto.so.none",), "no libcrypto"),
        (abi, "_OLDEST_VERSION", 0xF0000000, "no libcrypto"),
        (abi, "_FUNCTIONS", {"EVP_none": ("nothing", None, [])}, "has no EVP_none"),
        (libcrypto, "_NID_SM2", 0, "does not compute SM2"),
        (libcrypto, "_SM2", b"SM2-none", "does not compute SM2"),
        (libcrypto, "_SM3", b"SM3-none", "does not compute SM2"),
    ],
    ids=["absent", "too old", "lacks a function", "lacks the curve", "lacks SM2", "lacks SM3"],
)
def test_the_guarded_backend_serves_where_libcrypto_cannot(
    monkeypatch: pytest.MonkeyPatch,
    standard: Standard,
    module: object,
    name: str,
    value: object,
    reason: str,
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(LibcryptoUnusable, match=reason):
        LibcryptoBackend()
    assert backend_name() == "guarded"
    Sm2PublicKey.load(standard.point).verify(standard.message, standard.signature)
