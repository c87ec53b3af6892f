"""A script says what single commands would, and what cannot be right is refused before anything is sent."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keyd.errors import BadParameter, PsamDeclined
from keyd.iso7816 import converse
from keyd.psam.script import (
    MAX_REFERENCES,
    MAX_RESULTS,
    MAX_STEPS,
    Part,
    Reference,
    Script,
    Step,
    require_good,
    run,
)

HEADER: Final = bytes.fromhex("80FA0000")


class Chip:
    """Answers each command with what it is given, in T=0's manner if told so, and takes note of the commands."""

    def __init__(self, *answers: bytes, fetches: bool = False) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self._fetches = fetches
        self._waiting = b""

    def __call__(self, command: bytes) -> bytes:
        if command[:2] == b"\x00\xc0":
            waiting, self._waiting = self._waiting, b""
            return waiting
        self.sent.append(command)
        answer = self.answers.pop(0)
        if self._fetches and len(answer) > 2 and answer[-2:] == b"\x90\x00":
            self._waiting = answer
            return bytes((0x61, (len(answer) - 2) % 256))
        return answer


def said(script: Script, *answers: bytes, fetches: bool = False) -> tuple[Chip, list[bytes]]:
    chip = Chip(*answers, fetches=fetches)
    return chip, converse(run(script), chip)


@pytest.mark.parametrize("fetches", [False, True], ids=["Le", "GET RESPONSE"])
def test_an_answer_is_put_into_a_later_command(fetches: bool) -> None:
    script = Script(
        (
            Step(b"\x00\x84\x00\x00", le=8),
            Step(HEADER, b"\xaa" * 12, (Reference(at=2, step=0, offset=1, length=4),), le=16),
        ),
        (Part(1, 0, 0), Part(0, 2, 3)),
    )
    chip, results = said(
        script, bytes(range(8)) + b"\x90\0", b"\x55" * 16 + b"\x90\0", fetches=fetches
    )
    assert chip.sent == [
        bytes.fromhex("0084000008"),
        HEADER + b"\x0c" + b"\xaa\xaa\1\2\3\4" + b"\xaa" * 6 + b"\x10",
    ]
    assert results == [b"\x55" * 16, b"\2\3\4"]


def test_halves_are_xored_in_references_and_results() -> None:
    script = Script(
        (Step(HEADER, le=4), Step(HEADER, bytes(4), (Reference(1, 0, 4, True, at=0),), le=4)),
        (Part(0, 0, 4, fold=True),),
    )
    # Positional, a reference is a part: step 1 has not been answered yet.
    with pytest.raises(BadParameter, match="step 1"):
        require_good(script)
    good = replace(
        script,
        steps=(
            script.steps[0],
            replace(script.steps[1], references=(Reference(0, 0, 4, True, at=1),)),
        ),
    )
    chip, results = said(good, bytes.fromhex("0102101F9000"), bytes.fromhex("000000009000"))
    assert chip.sent[1] == HEADER + bytes.fromhex("04 00 11 1D 00 04")
    assert results == [bytes.fromhex("111D")]


def test_a_step_may_expect_other_words_and_then_has_no_data() -> None:
    script = Script((Step(HEADER, expected=(0x9000, 0x6A88)), Step(HEADER)), (Part(0, 0, 0),))
    chip, results = said(script, b"\x6a\x88", b"\x90\0")
    assert (len(chip.sent), results) == (2, [b""])


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([b"\x6a\x88"], r"step 0 was answered 6A88 \(key not found\)"),
        ([b"\x01\x90\0"], "step 0 was answered with fewer bytes"),
        ([bytes(257) + b"\x90\0"], "step 0 was answered with more than 256"),
        ([b"\1\2\x90\0", b"\x69\x85"], "step 1 was answered 6985"),
    ],
)
def test_the_first_step_that_fails_ends_it(answers: list[bytes], told: str) -> None:
    script = Script(
        (
            Step(HEADER, le=2),
            Step(HEADER, bytes(2), (Reference(0, 0, 2, at=0),)),
            Step(HEADER),
        )
    )
    chip = Chip(*answers)
    with pytest.raises(PsamDeclined, match=told):
        converse(run(script), chip)
    assert len(chip.sent) == len(answers)


def test_what_a_card_holder_has_is_in_no_sentence() -> None:
    script = Script((Step(HEADER, b"\x91\x73\x64\x02"),))
    with pytest.raises(PsamDeclined) as declined:
        said(script, b"\x6a\x80")
    assert "9173" not in str(declined.value)


GOOD: Final = Step(HEADER, bytes(16), (Reference(0, 0, 8, at=0),))


@pytest.mark.parametrize(
    ("steps", "results", "told"),
    [
        ((), (), "1 to 32 steps"),
        ((Step(HEADER),) * (MAX_STEPS + 1), (), "1 to 32 steps"),
        ((Step(b"\x80\xfa\0"),), (), "header"),
        ((Step(HEADER, bytes(256)),), (), "255"),
        ((Step(HEADER, le=257),), (), "Le"),
        ((Step(HEADER, expected=()),), (), "status words"),
        ((Step(HEADER, expected=(0x9000,) * 5),), (), "status words"),
        ((Step(HEADER, expected=(0x10000,)),), (), "two bytes"),
        ((GOOD,), (), "step 0 refers to step 0, which is none before it"),
        ((Step(HEADER), replace(GOOD, references=(Reference(2, 0, 8, at=0),))), (), "step 2"),
        ((Step(HEADER), replace(GOOD, references=(Reference(-1, 0, 8, at=0),))), (), "step -1"),
        ((Step(HEADER), replace(GOOD, references=(Reference(0, 0, 8, at=9),))), (), "beyond"),
        ((Step(HEADER), replace(GOOD, references=(Reference(0, 0, 8, at=-1),))), (), "beyond"),
        ((Step(HEADER), replace(GOOD, references=(Reference(0, 0, 0, at=0),))), (), "how many"),
        (
            (Step(HEADER), replace(GOOD, references=(Reference(0, 250, 8, at=0),))),
            (),
            "at most 256",
        ),
        ((Step(HEADER), replace(GOOD, references=(Reference(0, 0, 7, True, at=0),))), (), "halves"),
        (
            (
                Step(HEADER),
                replace(GOOD, references=(Reference(0, 0, 8, at=0), Reference(0, 0, 1, at=7))),
            ),
            (),
            "same place",
        ),
        (
            (
                Step(HEADER),
                replace(
                    GOOD,
                    references=tuple(Reference(0, 0, 1, at=n) for n in range(MAX_REFERENCES + 1))[
                        :17
                    ],
                ),
            ),
            (),
            "at most 16 references",
        ),
        ((Step(HEADER),), (Part(1, 0, 0),), "a result refers to step 1"),
        ((Step(HEADER),), (Part(0, 0, 0, fold=True),), "how many"),
        ((Step(HEADER),), (Part(0, 0, 0),) * (MAX_RESULTS + 1), "32 results"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_sent(
    steps: tuple[Step, ...], results: tuple[Part, ...], told: str
) -> None:
    chip = Chip()
    with pytest.raises(BadParameter, match=told):
        converse(run(Script(steps, results)), chip)
    assert not chip.sent


def naively(script: Script, answers: list[bytes]) -> tuple[list[bytes], list[bytes] | None]:
    """What is sent, and the results or None where it ends early: written without looking at the other."""
    sent: list[bytes] = []
    got: list[bytes] = []

    def part(p: Part) -> bytes | None:
        piece = got[p.step][p.offset :]
        if p.length == 0:
            return piece
        if len(piece) < p.length:
            return None
        piece = piece[: p.length]
        if p.fold:
            half = len(piece) // 2
            return bytes(piece[i] ^ piece[half + i] for i in range(half))
        return piece

    for step, answer in zip(script.steps, answers, strict=False):
        data = list(step.data)
        for reference in step.references:
            piece = part(reference)
            if piece is None:
                return sent, None
            for i, octet in enumerate(piece):
                data[reference.at + i] = octet
        lc = [len(data)] if data else []
        le = [step.le % 256] if step.le else []
        sent.append(bytes([*step.header, *lc, *data, *le]))
        sw = int.from_bytes(answer[-2:], "big")
        if sw not in step.expected:
            return sent, None
        got.append(answer[:-2] if sw == 0x9000 else b"")
    results = [part(p) for p in script.results]
    return sent, None if None in results else [r for r in results if r is not None]


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    steps = []
    for number in range(draw(st.integers(1, 5))):
        data = draw(st.binary(max_size=24))
        references = draw(st.lists(parts(number, at=True), max_size=2)) if number else []
        steps.append(
            Step(
                draw(st.binary(min_size=4, max_size=4)),
                data,
                tuple(references),
                draw(st.sampled_from([0, 8, 256])),
                draw(st.sampled_from([(0x9000,), (0x9000, 0x6A80), (0x6A80,)])),
            )
        )
    return Script(tuple(steps), tuple(draw(st.lists(parts(len(steps)), max_size=3))))


def parts(steps: int, *, at: bool = False) -> st.SearchStrategy[Any]:
    numbers = (st.integers(0, steps - 1), st.integers(0, 12), st.integers(0, 12), st.booleans())
    if at:
        return st.builds(
            lambda where, *rest: Reference(*rest, at=where), st.integers(0, 24), *numbers
        )
    return st.builds(Part, *numbers)


@given(
    script=scripts(),
    answers=st.lists(
        st.builds(
            lambda data, sw: data + sw, st.binary(max_size=20), st.sampled_from([b"\x90\0"] * 4)
        )
        | st.just(b"\x6a\x80"),
        min_size=5,
        max_size=5,
    ),
    fetches=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_a_script_sends_what_single_commands_would(
    script: Script, answers: list[bytes], fetches: bool
) -> None:
    """Against a second reading: the same commands, results and ends; and no command is longer than it said."""
    chip = Chip(*answers, fetches=fetches)
    try:
        require_good(script)
    except BadParameter:
        with pytest.raises(BadParameter):
            converse(run(script), chip)
        assert not chip.sent
        return
    try:
        results: list[bytes] | None = converse(run(script), chip)
    except PsamDeclined:
        results = None
    assert (chip.sent, results) == naively(script, answers)
    for step, command in zip(script.steps, chip.sent, strict=False):
        assert command[:4] == step.header
        assert len(command) == 4 + (len(step.data) + 1 if step.data else 0) + bool(step.le)
