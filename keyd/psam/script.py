"""A script: commands to a PSAM that are said one after the other on the server, so that a slow line is crossed once.

A script is data and does little: at most 32 steps without loops or branches. A step is a command whose data may
contain parts of earlier answers, as they are or with their halves XORed. Every part says its length, so each command's
length is known, and checked, before the first one is sent; padding is written out as bytes. References reach backward
only, and into the data alone, so what the header says of a command is what is sent.

`run` is a dialogue like any other: it does not know where the PSAM is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from keyd.errors import BadParameter, PsamDeclined, RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord, status_word_name, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.iso7816 import Dialogue

# Reading a card takes four steps, and a record written under secure messaging five for each.
MAX_STEPS: Final = 32

# A command of 255 bytes of data is not made of more pieces than this by anything in this trade.
MAX_REFERENCES: Final = 16
MAX_EXPECTED: Final = 4
MAX_RESULTS: Final = 32

# What one answer may have: a short APDU's worth.
MAX_ANSWER: Final = 256
MAX_DATA: Final = 255

OK: Final = int(SW.OK)

Byte = Annotated[int, Meta(ge=0, le=255)]


class Part(Struct, frozen=True):
    """Some bytes of an earlier answer, without its status word: from `offset`, `length` of them.

    `fold` XORs their first half with their second, which leaves half as many: what a card's 鉴别数据 is made of a
    16-byte block by.
    """

    step: int
    offset: int
    length: int
    fold: bool = False

    @property
    def made_bytes(self) -> int:
        """How many bytes it makes."""
        return self.length // 2 if self.fold else self.length


class Reference(Part, frozen=True, kw_only=True):
    """A part that is put into a command's data, over what is written there, from `at` on."""

    at: int


class Step(Struct, frozen=True):
    """One command: header (4 bytes), data (0 to 255 bytes), Le (1 to 256; 0 is none), and what its answer must be.

    The answer's status word must be one of `expected`; data come with 9000 only.
    """

    header: bytes
    data: bytes = b""
    references: tuple[Reference, ...] = ()
    le: int = 0
    expected: tuple[int, ...] = (OK,)


class Script(Struct, frozen=True):
    """Steps in their order, and which parts of their answers are the result. A result of length 0 is all from there."""

    steps: tuple[Step, ...]
    results: tuple[Part, ...] = ()


def require_good(script: Script) -> None:
    """Check all that can be known before anything is sent.

    Raises:
        BadParameter: the sentence says which step is wrong, and how.
    """
    if not 1 <= len(script.steps) <= MAX_STEPS:
        raise BadParameter(f"a script has 1 to {MAX_STEPS} steps")
    for number, step in enumerate(script.steps):
        _require_good_step(number, step)
    if len(script.results) > MAX_RESULTS:
        raise BadParameter(f"a script has at most {MAX_RESULTS} results")
    for part in script.results:
        _require_good_part("a result", part, len(script.steps), may_be_open=True)


def run(script: Script) -> Dialogue[list[bytes]]:
    """Say the script to a PSAM and return its results in their order. 61xx and 6Cxx are followed.

    Raises:
        BadParameter: the script is not good; nothing was sent.
        PsamDeclined: a step was answered with another status word than it expects, or with fewer bytes than are
            referred to. Steps before it are done.
    """
    require_good(script)
    answers: list[bytes] = []
    for number, step in enumerate(script.steps):
        answers.append((yield from _say(number, step, answers)))
    return [_cut(part, answers) for part in script.results]


def command_of(step: Step, answers: Sequence[bytes]) -> CommandApdu:
    """Make the command of a step of a good script out of the answers to those before it.

    Raises:
        PsamDeclined: an answer is shorter than what is referred to.
    """
    data = bytearray(step.data)
    for reference in step.references:
        put = _cut(reference, answers)
        data[reference.at : reference.at + len(put)] = put
    cla, ins, p1, p2 = step.header
    return CommandApdu(cla, ins, p1, p2, bytes(data), step.le or None)


def _say(number: int, step: Step, answers: Sequence[bytes]) -> Dialogue[bytes]:
    sw, data = OK, b""
    try:
        data = yield from transmit(command_of(step, answers))
    except UnexpectedStatusWord as word:
        sw = word.sw
    except RemoteProtocolError:
        raise PsamDeclined(f"step {number} was answered without end") from None
    if len(data) > MAX_ANSWER:
        raise PsamDeclined(f"step {number} was answered with more than {MAX_ANSWER} bytes")
    if sw not in step.expected:
        raise PsamDeclined(f"step {number} was answered {status_word_name(sw)}")
    return data


def _cut(part: Part, answers: Sequence[bytes]) -> bytes:
    answer = answers[part.step]
    if not part.length:
        return answer[part.offset :]
    found = answer[part.offset : part.offset + part.length]
    if len(found) != part.length:
        raise PsamDeclined(f"step {part.step} was answered with fewer bytes than are taken of it")
    if not part.fold:
        return found
    half = part.length // 2
    return bytes(a ^ b for a, b in zip(found[:half], found[half:], strict=True))


def _require_good_step(number: int, step: Step) -> None:
    where = f"step {number}"
    if len(step.header) != 4:
        raise BadParameter(f"{where}: a header has 4 bytes")
    if len(step.data) > MAX_DATA or not 0 <= step.le <= MAX_ANSWER:
        raise BadParameter(
            f"{where}: a command has at most {MAX_DATA} bytes of data, and a short Le"
        )
    if not 1 <= len(step.expected) <= MAX_EXPECTED or len(step.references) > MAX_REFERENCES:
        raise BadParameter(
            f"{where}: it expects 1 to {MAX_EXPECTED} status words and has at most {MAX_REFERENCES} references"
        )
    if not all(0 <= sw <= 0xFFFF for sw in step.expected):
        raise BadParameter(f"{where}: a status word has two bytes")
    taken: set[int] = set()
    for reference in step.references:
        _require_good_part(where, reference, number)
        put = range(reference.at, reference.at + reference.made_bytes)
        if put.start < 0 or put.stop > len(step.data):
            raise BadParameter(f"{where}: a reference is put beyond its data")
        if not taken.isdisjoint(put):
            raise BadParameter(f"{where}: two references are put at the same place")
        taken.update(put)


def _require_good_part(where: str, part: Part, steps: int, *, may_be_open: bool = False) -> None:
    if not 0 <= part.step < steps:
        raise BadParameter(f"{where} refers to step {part.step}, which is none before it")
    if not (0 <= part.offset <= MAX_ANSWER and 0 <= part.length <= MAX_ANSWER - part.offset):
        raise BadParameter(f"{where}: an answer has at most {MAX_ANSWER} bytes")
    if part.length == 0 and not (may_be_open and not part.fold):
        raise BadParameter(f"{where}: a reference says how many bytes it is")
    if part.fold and part.length % 2:
        raise BadParameter(f"{where}: two halves have the same length")
