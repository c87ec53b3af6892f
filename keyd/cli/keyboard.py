"""What is typed without echo, and what is shown once: the terminal of somebody who handles a secret.

What is typed goes from the terminal into one bytearray of fixed size, is read from there octet by octet, and is wiped.
No string is made of it unless a caller asks for one. What cannot be wiped from here: the line buffer of the kernel's
terminal driver, whatever the terminal emulator or the keyboard's own driver keeps, and the screen's scrollback, which
`show_once` stays out of by using the alternate screen.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from typing import TYPE_CHECKING, Final

import typer

from keyd.crypto.native import _core
from keyd.errors import BadParameter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# The kernel gives out lines of at most 4095 characters and the newline.
_MAX_LINE: Final = 4096

_ALTERNATE_SCREEN: Final = b"\x1b[?1049h\x1b[2J\x1b[H"
# Cleared before it is left: some terminals show the alternate screen again.
_BACK_TO_NORMAL: Final = b"\x1b[2J\x1b[3J\x1b[H\x1b[?1049l"

_NEWLINES: Final = frozenset(b"\r\n")
_BETWEEN: Final = frozenset(b" \t-")
_HEX: Final = {ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"}


class Hidden:
    """Octets that nobody else may see, in one bytearray that is wiped on leaving the `with` block."""

    def __init__(self, octets: bytearray, start: int, end: int) -> None:
        self._octets = octets
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def key(self, length: int, what: str) -> bytearray:
        """Read a key in hex, with spaces or hyphens anywhere; the caller wipes it.

        By hand: bytes.fromhex takes a string, which nobody can wipe. The numbers below are at most 255, and those
        Python has once for all.

        Raises:
            BadParameter: it is not so many bytes in hex. The sentence says nothing of what was typed.
        """
        key = bytearray(length)
        digits = 0
        for at in range(self._start, self._end):
            octet = self._octets[at]
            value = _HEX.get(octet)
            if value is None and octet in _BETWEEN:
                continue
            if value is None or digits == 2 * length:
                digits = -1
                break
            key[digits >> 1] |= value if digits & 1 else value << 4
            digits += 1
        if digits != 2 * length:
            _core.wipe(key)
            raise BadParameter(f"{what} is not {2 * length} hex digits")
        return key

    def line_after(self, mark: bytes, what: str) -> Hidden:
        """Return the rest of the line that a mark stands in, in the same memory.

        Raises:
            BadParameter: there is no such mark.
        """
        at = self._octets.find(mark, self._start, self._end)
        if at < 0:
            raise BadParameter(f"{what} has no line {mark.decode()!r}")
        start = at + len(mark)
        end = start
        while end < self._end and self._octets[end] not in _NEWLINES:
            end += 1
        return Hidden(self._octets, start, end)

    def text(self) -> str:
        """Return it as a string, which cannot be wiped: for a passphrase or a share, which become one anyway.

        Raises:
            BadParameter: it is no UTF-8.
        """
        try:
            return self.octets().decode()
        except UnicodeDecodeError:
            raise BadParameter("what was typed is no text") from None

    def octets(self) -> bytes:
        """Return it as bytes, which cannot be wiped: see `text`."""
        return bytes(memoryview(self._octets)[self._start : self._end])

    def wipe(self) -> None:
        """Overwrite all of it."""
        _core.wipe(self._octets)

    def __enter__(self) -> Hidden:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return f"<Hidden, {len(self)} octets>"


def ask_hidden(prompt: str, instead: str) -> Hidden:
    """Ask for one line at the terminal without showing it. `instead` says how to do without a terminal.

    Raises:
        typer.BadParameter: there is no terminal.
        BadParameter: the line is too long.
    """
    with _terminal(instead) as terminal, _without_echo(terminal):
        _write(terminal, prompt.encode())
        octets = bytearray(_MAX_LINE)
        try:
            count = os.readv(terminal, [octets])
        finally:
            # The newline that was typed was not echoed either.
            _write(terminal, b"\n")
    end = count
    while end and octets[end - 1] in _NEWLINES:
        end -= 1
    hidden = Hidden(octets, 0, end)
    if count == _MAX_LINE and end == count:
        hidden.wipe()
        raise BadParameter("the line is too long")
    return hidden


def ask_open(prompt: str, instead: str) -> str:
    """Ask for one line at the terminal that everybody may see.

    Raises:
        typer.BadParameter: there is no terminal.
    """
    with _terminal(instead) as terminal:
        _write(terminal, prompt.encode())
        return os.read(terminal, _MAX_LINE).decode(errors="replace").strip()


def show_once(text: str, then: str, instead: str) -> None:
    """Show a secret on the alternate screen until Enter is pressed, and leave nothing of it there.

    Raises:
        typer.BadParameter: there is no terminal.
    """
    with _terminal(instead) as terminal, _without_echo(terminal):
        _write(terminal, _ALTERNATE_SCREEN)
        try:
            _write(terminal, f"{text}\n{then}".encode())
            os.read(terminal, _MAX_LINE)
        finally:
            _write(terminal, _BACK_TO_NORMAL)


def is_interactive() -> bool:
    """Whether somebody sits at a terminal and can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def _terminal(instead: str) -> Iterator[int]:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise typer.BadParameter(f"there is no terminal here: {instead}") from None
    try:
        yield terminal
    finally:
        os.close(terminal)


@contextlib.contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] = (silent[3] & ~termios.ECHO & ~termios.ECHONL) | termios.ICANON | termios.ISIG
    # What was typed before the question is dropped: it was typed where it could be seen.
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def _write(terminal: int, data: bytes) -> None:
    while data:
        data = data[os.write(terminal, data) :]
