"""Follow secrets through compiled x86-64 code, on paper: what objdump lists is interpreted with labels for values.

Each register and each place on the stack holds a set of labels that says what its value may be: a secret, a pointer to
secrets, a pointer to the table of pointers that encrypt_scheduled is given, a pointer to constants or into the stack.
Without a label it is a public number. The labels of all ways to an instruction are joined, until nothing changes; so
what holds here holds for every length and every input.

What is complained of: a secret in a general register, in the flags or in a mask register, since branches and addresses
are made of these and of nothing else; a secret as the mask of VPMASKMOV, which decides what is touched; an address with
a vector in it, that is, a gather or scatter; a secret where the table of pointers is; and everything that is not
understood here. Moves out of vector registers are not forbidden as such, because compilers park pointers there.

What is taken for granted: instructions on vectors take the same time for all values (no division and no floating
point is known here), and the caller's buffers overlap neither the table of pointers nor the stack of the callee.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Labels, one bit each. NUMBER is the absence of all.
NUMBER: Final = 0
SECRET: Final = 1
TO_SECRETS: Final = 2
TO_POINTERS: Final = 4
TO_CONSTANTS: Final = 8
TO_STACK: Final = 16

_FAMILIES: Final = {
    **{name: (f"r{name}", f"e{name}", name, f"{name[0]}l") for name in ("ax", "bx", "cx", "dx")},
    **{name: (f"r{name}", f"e{name}", name, f"{name}l") for name in ("si", "di", "bp", "sp")},
    **{f"r{i}": (f"r{i}", f"r{i}d", f"r{i}w", f"r{i}b") for i in range(8, 16)},
}
# The name in a listing, to the register it is part of and its width in bytes.
_GENERAL: Final = {
    part: (names[0], width)
    for names in _FAMILIES.values()
    for part, width in zip(names, (8, 4, 2, 1), strict=True)
}
_VECTOR: Final = {
    f"{kind}{i}": (f"zmm{i}", width)
    for kind, width in (("xmm", 16), ("ymm", 32), ("zmm", 64))
    for i in range(32)
}
_MASK: Final = {f"k{i}": (f"k{i}", 8) for i in range(8)}
_REGISTERS: Final = {**_GENERAL, **_VECTOR, **_MASK}

_NOTHING: Final = re.compile(r"nop[lw]?|endbr64|vzeroupper")
# Their destination is overwritten, or it is changed. Whether they set flags does not matter: what may not be in flags
# may not be in their destination either.
_SCALAR_WRITES: Final = re.compile(r"mov(abs|[bwlq]|[sz][bwl][wlq])?|lea|set[a-z]+")
_SCALAR_CHANGES: Final = re.compile(
    r"(add|sub|and|or|xor|shl|shr|sar|sal|sbb|adc|neg|not|inc|dec|imul)[bwlq]?|cmov[a-z]+"
)
_SCALAR_COMPARES: Final = re.compile(r"(cmp|test)[bwlq]?")
# Sources first, one destination last; none of them sets flags, and each treats all values alike.
_VECTOR_WRITES: Final = re.compile(
    r"vp(xor|or|andn?)[dq]?|vmovdq[au](8|16|32|64)?|vmov[au]p[sd]|vmov[dq]|vpshuf(b|d|lw|hw)|vpunpck[a-z]+"
    r"|vgf2p8affine(inv)?qb|vps[lr]l[dq]|vpro[lr]d|vpternlog[dq]|vpbroadcast[bwdq]|vbroadcast[a-z0-9]+"
    r"|v(insert|extract)[if][0-9x]+|vperm2[if]128|vperm[qd]|vpblend[dw]|vshuf[if][0-9x]+|vpcmp(gt|eq)[bwdq]"
    r"|vp(insr|extr)[bwdq]|vpadd[dq]|vpsub[dq]|vptestn?m[bwdq]"
    r"|vp(gather|scatter)[dq]{2}|k(mov|xor|xnor|or|and|shiftl)[bwdq]"
)
_VECTOR_CHANGES: Final = re.compile(r"vpternlog[dq]")
_MASKED_MOVE: Final = re.compile(r"vpmaskmov[dq]")
# How much of memory is touched, where that is less than a whole register.
_WIDTHS: Final = (
    (re.compile(r"v(insert|extract|broadcast)[if](128|32x4|64x2)"), 16),
    (re.compile(r"v(insert|extract|broadcast)[if](32x8|64x4)"), 32),
    (re.compile(r"vpbroadcastq|vmovq|vbroadcastsd|vp(ins|ext)rq|kmovq"), 8),
    (re.compile(r"vpbroadcastd|vmovd|vbroadcastss|vp(ins|ext)rd|kmovd"), 4),
    (re.compile(r"kmovw|vp(ins|ext)rw|mov[sz]w[lq]"), 2),
    (re.compile(r"kmovb|vp(ins|ext)rb|mov[sz]b[wlq]"), 1),
)

_LABEL: Final = re.compile(r"([0-9a-f]+) <([^>]+)>:")
_OPERANDS: Final = re.compile(r",(?![^(]*\))")
_MEMORY: Final = re.compile(
    r"(?:%(?P<segment>[a-z]s):)?(?P<displacement>-?0x[0-9a-f]+)?(?P<address>\([^)]*\))?"
)
_PREFIXES: Final = frozenset({"cs", "ds", "data16", "bnd", "notrack"})


@dataclass(frozen=True)
class Instruction:
    at: int
    function: str
    mnemonic: str
    operands: tuple[str, ...]
    following: int

    def __str__(self) -> str:
        return f"{self.function}+{self.at:x}: {self.mnemonic} {','.join(self.operands)}"


@dataclass(frozen=True)
class Memory:
    segment: str | None
    offset: int
    base: str | None
    index: str | None


def listing(shared_object: Path) -> dict[int, Instruction]:
    """Disassemble the code of a shared object, but not what the linker put into it."""
    done = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", "--section=.text", shared_object],
        capture_output=True,
        text=True,
        check=True,
    )
    lines: list[tuple[int, str, str]] = []
    function = ""
    for line in done.stdout.splitlines():
        if found := _LABEL.fullmatch(line):
            function = found[2]
        elif ":\t" in line:
            at, _, text = line.partition(":\t")
            lines.append((int(at, 16), function, re.sub(r"\s*#.*|\s*<[^>]*>", "", text).strip()))
    ends = [at for at, _, _ in lines[1:]] + [0]
    return {
        at: _instruction(at, function, text, end)
        for (at, function, text), end in zip(lines, ends, strict=True)
    }


def _instruction(at: int, function: str, text: str, following: int) -> Instruction:
    words = text.split(maxsplit=1)
    while words[0] in _PREFIXES and len(words) > 1:
        words = words[1].split(maxsplit=1)
    if words[0] == "rep" and len(words) > 1:
        words = ["rep " + words[1].split()[0], *words[1].split()[1:]]
    operands = _OPERANDS.split(words[1]) if len(words) > 1 else []
    return Instruction(at, function, words[0], tuple(operands), following)


State = dict[str, int]


class SecretFlow:
    """What may be where in one file's code, and what that breaks."""

    def __init__(
        self, code: dict[int, Instruction], roots: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Interpret the code from the functions `roots`, with the labels that their arguments have."""
        self.code = code
        self.complaints: dict[str, None] = {}
        self._starts: dict[str, int] = {}
        for at, instruction in code.items():
            self._starts.setdefault(instruction.function, at)
        self._roots = roots
        self._frames: dict[str, set[int]] = defaultdict(set)
        self._callers: dict[str, dict[int, int]] = defaultdict(dict)
        self._states: dict[int, State] = {}
        # What a way makes known of callers counts for the ways that came before, too.
        callers = -1
        while callers != (callers := sum(map(len, self._callers.values()))):
            self._run()
        for at, instruction in code.items():
            if at not in self._states and not _is_padding(instruction):
                self._complain(instruction, "was not reached, so that nothing is known of it")
        for function, frames in self._frames.items():
            if len(frames) > 1 or -1 in frames:
                self.complaints[f"{function} moves its stack pointer between two uses"] = None

    def count(self, pattern: str) -> int:
        """Return how many of the instructions reached are so called."""
        return sum(bool(re.match(pattern, self.code[at].mnemonic)) for at in self._states)

    # --- The ways through the code

    def _run(self) -> None:
        self._states = {}
        todo: list[int] = []

        def reach(at: int, state: State) -> None:
            known = self._states.get(at)
            if known is None:
                self._states[at] = dict(state)
            else:
                joined = {name: known.get(name, 0) | state.get(name, 0) for name in known | state}
                # Where the stack pointer stands is no label: two ways must agree, or it is used no more.
                if known["frame"] != state["frame"]:
                    joined["frame"] = -1
                if joined == known:
                    return
                self._states[at] = joined
            todo.append(at)

        for function, labels in self._roots.items():
            start = self._starts[function]
            reach(start, {"rsp": TO_STACK, "frame": start, **labels})
        while todo:
            at = todo.pop()
            state = dict(self._states[at])
            for target in self._step(self.code[at], state):
                reach(target, self._entered(self.code[at], target, state))

    def _entered(self, instruction: Instruction, target: int, state: State) -> State:
        """Return the state behind a way: a function that is entered or returned to has its own frame."""
        function = self.code[target].function
        if instruction.mnemonic == "ret":
            return {**state, "frame": self._callers[instruction.function][target]}
        if function != instruction.function:
            return {**state, "frame": self._starts[function]}
        return state

    def _step(self, instruction: Instruction, state: State) -> list[int]:
        """Change the state, and return where the instruction leads."""
        name = instruction.mnemonic
        if name.startswith("ret"):
            return list(self._callers[instruction.function])
        if name.startswith("call"):
            target = _target(instruction)
            if target not in self.code:
                # In the linker's part: the complaint of a smashed stack, which does not return.
                return []
            callers = self._callers[self.code[target].function]
            if instruction.following not in callers:
                callers[instruction.following] = state["frame"]
            return [target]
        if name.startswith("j"):
            target = _target(instruction)
            if target not in self.code:
                self._complain(instruction, "leads nobody knows where")
                return []
            if self.code[target].function != instruction.function and (
                instruction.function not in self._roots
            ):
                self._complain(instruction, "leaves for another function")
            return [target] if name == "jmp" else [target, instruction.following]
        if _NOTHING.fullmatch(name) or _is_padding(instruction):
            return [instruction.following]
        self._compute(instruction, state)
        return [instruction.following]

    # --- What an instruction does

    def _compute(self, instruction: Instruction, state: State) -> None:
        name, operands = instruction.mnemonic, instruction.operands
        if name == "push":
            self._public(instruction, self._read(instruction, operands[0], state))
            state["frame"] = instruction.at
        elif name == "pop":
            # What was pushed was in a general register, and so no secret.
            self._write(instruction, operands[0], NUMBER, state)
            state["frame"] = instruction.at
        elif name == "leave":
            state.update(frame=instruction.at, rbp=NUMBER)
        elif name == "rep stos":
            if state.get("rax", 0) != NUMBER:
                self._complain(instruction, "fills memory with more than a number")
        elif _SCALAR_COMPARES.fullmatch(name):
            self._public(instruction, self._read_all(instruction, operands, state))
        elif name == "lea":
            memory = _memory(operands[0])
            self._write(instruction, operands[1], self._address(instruction, memory, state), state)
        elif _SCALAR_WRITES.fullmatch(name):
            value = self._read_all(instruction, operands[:-1], state)
            self._write(instruction, operands[-1], self._public(instruction, value), state)
        elif _SCALAR_CHANGES.fullmatch(name):
            value = self._read_all(instruction, operands, state)
            if name == "xor" and operands[0] == operands[1]:
                value = NUMBER
            self._write(instruction, operands[-1], self._public(instruction, value), state)
        elif _MASKED_MOVE.fullmatch(name):
            if self._read(instruction, operands[1], state) & SECRET:
                self._complain(instruction, "touches memory as a secret says")
            value = self._read(instruction, operands[0], state)
            self._write(instruction, operands[2], value, state)
        elif _VECTOR_WRITES.fullmatch(name):
            value = self._read_all(instruction, operands[:-1], state)
            masks = re.findall(r"\{%(k[1-7])\}", operands[-1])
            value |= self._read_all(instruction, [f"%{mask}" for mask in masks], state)
            if _VECTOR_CHANGES.fullmatch(name) or (masks and "{z}" not in operands[-1]):
                value |= self._read(instruction, operands[-1], state)
            self._write(instruction, operands[-1], value, state)
        else:
            self._complain(instruction, "is not known here")

    def _public(self, instruction: Instruction, value: int) -> int:
        if value & SECRET:
            self._complain(instruction, "takes a secret to a general register or the flags")
        return value & ~SECRET

    def _read_all(
        self, instruction: Instruction, operands: list[str] | tuple[str, ...], state: State
    ) -> int:
        value = NUMBER
        for operand in operands:
            value |= self._read(instruction, operand, state)
        return value

    def _read(self, instruction: Instruction, operand: str, state: State) -> int:
        if operand.startswith("$"):
            return NUMBER
        if register := _register(operand):
            return state.get(register[0], NUMBER)
        memory = _memory(operand)
        if memory.segment == "fs":
            return NUMBER  # The stack protector's.
        address = self._address(instruction, memory, state)
        if address & TO_STACK:
            if (places := self._on_stack(instruction, memory, state)) is None:
                return SECRET
            value = NUMBER
            for place in places:
                value |= state.get(place, NUMBER)
            return value
        if address == TO_POINTERS:
            return TO_SECRETS
        return NUMBER if address == TO_CONSTANTS else SECRET

    def _write(self, instruction: Instruction, operand: str, value: int, state: State) -> None:
        if register := _register(operand):
            name, width = register
            if name in _MASK:
                if value & SECRET:
                    self._complain(instruction, "takes a secret to a mask register")
                value &= ~SECRET
            elif name == "rsp":
                state["frame"] = instruction.at
                value = TO_STACK
            elif name not in _VECTOR:
                value = self._public(instruction, value)
                # A part of four bytes clears the rest; a smaller one leaves it.
                value |= state.get(name, NUMBER) if width < 4 else NUMBER
            state[name] = value
            return
        memory = _memory(operand)
        address = self._address(instruction, memory, state)
        if address & TO_STACK:
            places = self._on_stack(instruction, memory, state)
            if places is None and value != NUMBER:
                self._complain(instruction, "puts more than a number somewhere onto the stack")
            for place, is_whole in (places or {}).items():
                state[place] = value if is_whole else value | state.get(place, NUMBER)
        elif not address & TO_SECRETS or address & TO_POINTERS:
            self._complain(instruction, "writes where only its caller's buffers may be written")

    def _address(self, instruction: Instruction, memory: Memory, state: State) -> int:
        value = NUMBER
        for part in (memory.base, memory.index):
            if part == "rip":
                value |= TO_CONSTANTS
            elif part in _GENERAL:
                value |= state.get(_GENERAL[part][0], NUMBER)
            elif part in _VECTOR:
                self._complain(instruction, "has a vector in its address")
                value |= SECRET
            elif part:
                self._complain(instruction, f"has %{part} in its address")
        return value

    def _on_stack(
        self, instruction: Instruction, memory: Memory, state: State
    ) -> dict[str, bool] | None:
        """Return the places of eight bytes, and whether all eight are meant; None if they depend on an index."""
        if memory.base != "rsp" or memory.index:
            return None
        function = instruction.function
        self._frames[function].add(state["frame"])
        end = memory.offset + _width(instruction)
        is_masked = "{" in instruction.operands[-1] or _MASKED_MOVE.fullmatch(instruction.mnemonic)
        return {
            f"{function} {place}": not is_masked
            and memory.offset <= 8 * place
            and 8 * place + 8 <= end
            for place in range(memory.offset >> 3, (end + 7) >> 3)
        }

    def _complain(self, instruction: Instruction, what: str) -> None:
        self.complaints[f"{instruction}: {what}"] = None


def _is_padding(instruction: Instruction) -> bool:
    """Between functions and before loops."""
    return bool(_NOTHING.fullmatch(instruction.mnemonic)) or (
        instruction.mnemonic == "xchg" and len(set(instruction.operands)) == 1
    )


def _target(instruction: Instruction) -> int:
    [operand] = instruction.operands
    return int(operand, 16) if re.fullmatch("[0-9a-f]+", operand) else -1


def _register(operand: str) -> tuple[str, int] | None:
    name = operand.partition("{")[0].removeprefix("%")
    return _REGISTERS.get(name) if operand.startswith("%") else None


def _memory(operand: str) -> Memory:
    found = _MEMORY.fullmatch(operand.partition("{")[0])
    if not found:
        raise ValueError(f"not understood: {operand}")
    parts = (found["address"] or "()")[1:-1].split(",")
    names = [part.removeprefix("%") or None for part in parts]
    return Memory(
        found["segment"],
        int(found["displacement"] or "0", 16),
        names[0],
        names[1] if len(names) > 1 else None,
    )


def _width(instruction: Instruction) -> int:
    for pattern, width in _WIDTHS:
        if pattern.fullmatch(instruction.mnemonic):
            return width
    registers = [_register(operand) for operand in instruction.operands]
    # Without a register, as in `movq $0,8(%rsp)`, the name's last letter says it.
    suffix = {"w": 2, "l": 4, "q": 8}.get(instruction.mnemonic[-1], 1)
    return max((register[1] for register in registers if register), default=suffix)
