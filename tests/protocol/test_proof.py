"""A proof proves one side, one terminal and both challenges, and nothing else."""

from __future__ import annotations

from typing import Final

from gmssl import func, sm3
from hypothesis import assume, given
from hypothesis import strategies as st

from keyd.protocol.proof import CHALLENGE_BYTES, TERMINAL_KEY_BYTES, keyd_proof, terminal_proof

KEY: Final = bytes(range(16))
THEIRS: Final = bytes.fromhex("00112233445566778899AABBCCDDEEFF")
OURS: Final = bytes.fromhex("FFEEDDCCBBAA99887766554433221100")

# The label of each side, 16 bytes, as integrators read it in the manual.
TERMINAL_LABEL: Final = b"keyd-terminal-v1"
KEYD_LABEL: Final = b"keyd-daemon---v1"

keys = st.binary(min_size=TERMINAL_KEY_BYTES, max_size=TERMINAL_KEY_BYTES)
challenges = st.binary(min_size=CHALLENGE_BYTES, max_size=CHALLENGE_BYTES)
codes = st.text("0123456789ABCXYZabcxyz._-", min_size=1, max_size=32)


def their_hmac(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) over gmssl's SM3: an implementation that keyd does not use."""

    def digest(octets: bytes) -> bytes:
        return bytes.fromhex(sm3.sm3_hash(func.bytes_to_list(octets)))

    padded = key.ljust(64, b"\0")
    inner = digest(bytes(octet ^ 0x36 for octet in padded) + message)
    return digest(bytes(octet ^ 0x5C for octet in padded) + inner)


def test_the_proofs_are_frozen() -> None:
    # Terminals in the field compute these: a change needs a new label.
    assert terminal_proof(KEY, "T-0001", THEIRS, OURS).hex().upper() == (
        "05AA6CF990C09665B2611AD4D7DE05DDDB7450EFAE59DB31F6F6B0F21F99EF01"
    )
    assert keyd_proof(KEY, "T-0001", THEIRS, OURS).hex().upper() == (
        "95C14A59A1914A7E1414DF0981C8ACD1909F23C25B08CD2D2506230D3448AF37"
    )


@given(key=keys, code=codes, theirs=challenges, ours=challenges)
def test_a_proof_is_the_documented_hmac(key: bytes, code: str, theirs: bytes, ours: bytes) -> None:
    after = theirs + ours + code.encode()
    assert terminal_proof(key, code, theirs, ours) == their_hmac(key, TERMINAL_LABEL + after)
    assert keyd_proof(key, code, theirs, ours) == their_hmac(key, KEYD_LABEL + after)


def test_the_labels_have_one_length() -> None:
    # Everything before the code has a fixed length, so that no two inputs read the same.
    assert len(TERMINAL_LABEL) == len(KEYD_LABEL) == 16


@given(key=keys, code=codes, theirs=challenges, ours=challenges)
def test_a_proof_sent_back_is_no_proof(key: bytes, code: str, theirs: bytes, ours: bytes) -> None:
    mine = keyd_proof(key, code, theirs, ours)
    assert mine != terminal_proof(key, code, theirs, ours)
    assert mine != terminal_proof(key, code, ours, theirs)


@given(key=keys, code=codes, theirs=challenges, ours=challenges)
def test_the_challenges_have_their_places(
    key: bytes, code: str, theirs: bytes, ours: bytes
) -> None:
    assume(theirs != ours)
    for proof in (terminal_proof, keyd_proof):
        assert proof(key, code, theirs, ours) != proof(key, code, ours, theirs)


@given(one=st.tuples(keys, codes, challenges, challenges), data=st.data())
def test_every_part_counts(one: tuple[bytes, str, bytes, bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 3))
    part = data.draw((keys, codes, challenges, challenges)[place])
    assume(part != one[place])
    other = (*one[:place], part, *one[place + 1 :])
    for proof in (terminal_proof, keyd_proof):
        assert proof(*one) != proof(*other)  # type: ignore[arg-type]  # `part` has its place's type
        assert len(proof(*one)) == 32
