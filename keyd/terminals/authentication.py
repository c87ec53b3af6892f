"""How a terminal and keyd prove themselves to each other on a connection."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.errors import ChallengeExpired, TerminalNotAuthentic
from keyd.policy.limits import Asker
from keyd.protocol.proof import CHALLENGE_BYTES, TERMINAL_KEY_BYTES, keyd_proof, terminal_proof

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyd.terminals.session import Session

# Long enough for a terminal on a slow line, too short to be worth collecting.
CHALLENGE_SECONDS: Final = 30

# A terminal that knows its key does not fail; after this many failures the line is cut.
MAX_FAILURES: Final = 3


class Terminal:
    """An enrolled terminal. Its key is used here and shown nowhere."""

    __slots__ = ("_key", "asker", "code", "region", "roles")

    def __init__(
        self,
        code: str,
        key: bytes,
        roles: frozenset[str] = frozenset(),
        organisation: str = "",
        region: str = "",
    ) -> None:
        if len(key) != TERMINAL_KEY_BYTES:
            raise ValueError(f"a terminal key has {TERMINAL_KEY_BYTES} bytes")
        self.code = code
        # What the policy asks of a terminal: its roles, whom to count, and the six digits of where it stands.
        self.roles = roles
        self.asker = Asker(code, organisation)
        self.region = region
        self._key = key

    def terminal_proof(self, theirs: bytes, ours: bytes) -> bytes:
        """Return the proof that this terminal owes for its challenge and ours, 32 bytes."""
        return terminal_proof(self._key, self.code, theirs, ours)

    def keyd_proof(self, theirs: bytes, ours: bytes) -> bytes:
        """Return the proof that keyd owes this terminal, 32 bytes."""
        return keyd_proof(self._key, self.code, theirs, ours)

    def has_same_key(self, other: Terminal) -> bool:
        """Whether both are enrolled with one key."""
        return compare_digest(self._key, other._key)

    def __repr__(self) -> str:
        return f"<Terminal {self.code}>"


class OpenChallenge(Struct, frozen=True):
    """A challenge that waits for its proof: on one connection, once, until the deadline."""

    code: str
    theirs: bytes
    ours: bytes
    deadline: float


class Terminals:
    """The enrolled terminals."""

    def __init__(
        self,
        keys: Mapping[str, bytes],
        random_bytes: Callable[[int], bytes],
        roles: frozenset[str] = frozenset(),
    ) -> None:
        self._random_bytes = random_bytes
        self._terminals = {code: Terminal(code, key, roles) for code, key in keys.items()}
        # Somebody who is not enrolled gets the same work done, under a key that nobody has.
        self._nobody_key = random_bytes(TERMINAL_KEY_BYTES)

    def __len__(self) -> int:
        return len(self._terminals)

    def open_challenge(self, session: Session, code: str, theirs: bytes, now: float) -> bytes:
        """Give a connection a challenge of 16 bytes for the terminal it names; the last one is void."""
        ours = self._random_bytes(CHALLENGE_BYTES)
        session.challenge = OpenChallenge(code, theirs, ours, now + CHALLENGE_SECONDS)
        return ours

    def authenticate(self, session: Session, proof: bytes, now: float) -> bytes:
        """Check a terminal's proof, make the connection the terminal's and return keyd's own proof.

        Whoever was authenticated on the connection before is not any more, whatever comes of it.

        Raises:
            ChallengeExpired: there is no open challenge.
            TerminalNotAuthentic: the proof is wrong, or nobody of that code is enrolled.
        """
        challenge, session.challenge = session.challenge, None
        session.leave()
        if session.must_close:
            raise TerminalNotAuthentic  # too late: the line is about to be cut
        if challenge is None or now > challenge.deadline:
            raise ChallengeExpired
        enrolled = self._terminals.get(challenge.code)
        terminal = enrolled or Terminal(challenge.code, self._nobody_key)
        expected = terminal.terminal_proof(challenge.theirs, challenge.ours)
        is_proven = compare_digest(expected, proof)
        if not is_proven or enrolled is None:
            session.failures += 1
            session.must_close = session.failures >= MAX_FAILURES
            raise TerminalNotAuthentic
        session.enter(enrolled)
        session.failures = 0
        return enrolled.keyd_proof(challenge.theirs, challenge.ours)

    def review(self, session: Session) -> None:
        """Take the session away from a terminal that is no longer enrolled, or not with that key."""
        was = session.terminal
        if was is None:
            return
        now = self._terminals.get(was.code)
        if now is not None and now.has_same_key(was):
            session.enter(now)
        else:
            session.leave()
