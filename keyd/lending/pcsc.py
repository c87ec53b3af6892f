"""PC/SC as keyd needs it: the only module that knows pyscard.

Every call may block for as long as pcscd, a driver or a chip likes, and cannot be stopped from outside: whoever calls
has a thread for it (`readers`). An object here is made, used and closed by one thread.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from keyd.iso7816 import CommandApdu
from keyd.iso7816.sw import MORE_DATA

# Under this name SCardGetStatusChange tells of readers that come and go.
NOTIFICATION: Final = "\\\\?PnP?\\Notification"

# pcscd has room for so many readers and lets nobody ask for more at a time, the notification included. When all are
# there, one that goes away is seen by its own state.
MAX_ASKED: Final = 16

# SW1 61: so many bytes wait for GET RESPONSE, and 00 stands for 256.
_SW1_MORE: Final = MORE_DATA >> 8
_ALL: Final = 256


class PcscUnavailable(Exception):  # noqa: N818 - says what is so
    """pyscard is not installed; the sentence says what to install."""


class PcscFailed(Exception):  # noqa: N818 - says what happened
    """A call of PC/SC had no success; the sentence says which and why, and nothing of any APDU."""

    def __init__(self, call: str, code: int) -> None:
        self._code = code
        why = load().SCardGetErrorMessage(code).strip().rstrip(".")
        super().__init__(f"{call}: {why}")

    def is_any_of(self, *names: str) -> bool:
        """Whether it is one of pyscard's constants."""
        return self._code in [getattr(load(), name) for name in names]


def load() -> Any:
    """Return pyscard's functions.

    Raises:
        PcscUnavailable: it is not there.
    """
    try:
        from smartcard import scard
    except ImportError:
        raise PcscUnavailable(
            'readers need the package pyscard: install keyd with its extra, "keyd[pcsc]"'
        ) from None
    return scard


class _Context:
    """A line to pcscd. All that is done over it ends with it."""

    def __init__(self) -> None:
        self.scard = load()
        self.context = self.call("SCardEstablishContext", self.scard.SCARD_SCOPE_SYSTEM)[0]

    def call(self, name: str, *arguments: object) -> list[Any]:
        """Call a function; return what it returns beside the success."""
        returned = getattr(self.scard, name)(*arguments)
        code, *rest = returned if isinstance(returned, list) else [returned]
        if code != self.scard.SCARD_S_SUCCESS:
            # Never look at the rest: beside an error, pyscard's SCardTransmit hands out 64 KiB of memory as it was.
            raise PcscFailed(name, code)
        return rest

    def close(self) -> None:
        with suppress(PcscFailed):
            self.call("SCardReleaseContext", self.context)


class Watch(_Context):
    """Looks which readers there are, and in which of them a chip is."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, int] = {}
        self._chips: dict[str, int] = {}

    def wait(self, milliseconds: int) -> dict[str, int]:
        """Wait until something changes or the time is over; return the readers that have a chip.

        The number beside each counts insertions and removals, so that a chip that was exchanged is noticed.

        Raises:
            PcscFailed: pcscd is not there any more.
        """
        asked = [(reader, self._known.get(reader, 0)) for reader in self._readers()]
        try:
            (states,) = self.call(
                "SCardGetStatusChange",
                self.context,
                milliseconds,
                [*asked, (NOTIFICATION, 0)][:MAX_ASKED],
            )
        except PcscFailed as failed:
            # A reader that went away in between is not listed the next time.
            if failed.is_any_of("SCARD_E_TIMEOUT", "SCARD_E_UNKNOWN_READER"):
                return self._chips
            raise
        self._known = {
            state[0]: state[1] & ~self.scard.SCARD_STATE_CHANGED
            for state in states
            if state[0] != NOTIFICATION
        }
        self._chips = {
            reader: state >> 16
            for reader, state in self._known.items()
            if state & self.scard.SCARD_STATE_PRESENT
        }
        return self._chips

    def _readers(self) -> list[str]:
        try:
            return list(self.call("SCardListReaders", self.context, [])[0])
        except PcscFailed as failed:
            if failed.is_any_of("SCARD_E_NO_READERS_AVAILABLE"):
                return []
            raise


class ReaderChip(_Context):
    """The chip in a reader, for us alone."""

    def __init__(self, reader: str) -> None:
        """Connect to it.

        Raises:
            PcscFailed: pcscd, the reader or the chip is not there, or another has it.
        """
        self._handle: Any = None
        super().__init__()
        self._any = self.scard.SCARD_PROTOCOL_T0 | self.scard.SCARD_PROTOCOL_T1
        self._exclusive = self.scard.SCARD_SHARE_EXCLUSIVE
        try:
            self._handle, self._protocol = self.call(
                "SCardConnect", self.context, reader, self._exclusive, self._any
            )
        except PcscFailed:
            self.close()
            raise

    def reset(self) -> bytes:
        """Reset the chip, also after it was taken out and put back; return the ATR.

        Raises:
            PcscFailed: it does not answer, or is not there.
        """
        (self._protocol,) = self.call(
            "SCardReconnect",
            self._handle,
            self._exclusive,
            self._any,
            self.scard.SCARD_RESET_CARD,
        )
        return bytes(self.call("SCardStatus", self._handle)[-1])

    def transmit(self, command: bytes) -> bytes:
        """Send a command APDU in the short form; return data and status word as they came.

        Raises:
            PcscFailed: there is no answer.
        """
        apdu = CommandApdu.parse_untrusted(command)
        if self._protocol != self.scard.SCARD_PROTOCOL_T0 or not apdu.data or apdu.le is None:
            return self._exchange(command)
        # T=0 has no command that sends data and asks for some: what waits is fetched (ISO 7816-3, 12.2.1).
        answer = self._exchange(command[:-1])
        if len(answer) != 2 or answer[0] != _SW1_MORE:
            return answer
        le = min(apdu.le, answer[1] or _ALL)
        return self._exchange(bytes(CommandApdu(_channel(apdu.cla), 0xC0, 0, 0, le=le)))

    def close(self) -> None:
        """Let go of it, without power."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(PcscFailed):
                self.call("SCardDisconnect", handle, self.scard.SCARD_UNPOWER_CARD)
        super().close()

    def _exchange(self, sent: bytes) -> bytes:
        is_t0 = self._protocol == self.scard.SCARD_PROTOCOL_T0
        header = self.scard.SCARD_PCI_T0 if is_t0 else self.scard.SCARD_PCI_T1
        return bytes(self.call("SCardTransmit", self._handle, header, list(sent))[0])


def _channel(cla: int) -> int:
    """Return the class of GET RESPONSE on the command's logical channel; of a private class, on the basic one."""
    return cla & 0x03 if cla < 0x90 else 0
