"""Messages of the library family: the strings of the terminal's dynamic library, taken and given verbatim.

A middleware forwards what its library printed (pOutInfo) and hands what comes back to the next step (pKey).
Only the first string names the card; the later ones travel with the card beside them.
"""

from __future__ import annotations

from keyd.protocol.fields import Card, LibraryText, Number4, Request, Response, Warnings


class LibraryReply(Response, frozen=True):
    """The string for the library's next step, bit-exact with its trailing |."""

    text: LibraryText
    warnings: Warnings = ()


class ReadCardBas(Request[LibraryReply], frozen=True):
    """Answer iReadCardBas_HSM_Step1 with the pKey of iReadCardBas_HSM_Step2."""

    text: LibraryText


class ReadCard(Request[LibraryReply], frozen=True):
    """Answer iReadCard_HSM_Step1 (a reading key RK…) with the pKey of its step 2."""

    card: Card
    text: LibraryText


class WriteCard(Request[LibraryReply], frozen=True):
    """Answer iWriteCard_HSM_Step1 (a writing key UK…) with the pKey of its step 2."""

    card: Card
    text: LibraryText


class ReloadPin1(Request[LibraryReply], frozen=True):
    """Answer iReloadPIN_HSM_Step1 with the pKey of its step 2."""

    card: Card
    text: LibraryText


class ReloadPin2(Request[LibraryReply], frozen=True):
    """Answer iReloadPIN_HSM_Step2, which holds the new PIN, with the pKey of its step 3."""

    card: Card
    text: LibraryText


class UnblockPin1(Request[LibraryReply], frozen=True):
    """Answer iUnblockPIN_HSM_Step1 with the pKey of its step 2."""

    card: Card
    text: LibraryText


class UnblockPin2(Request[LibraryReply], frozen=True):
    """Answer iUnblockPIN_HSM_Step2 with the pKey of its step 3."""

    card: Card
    text: LibraryText


class DoDebit1(Request[LibraryReply], frozen=True):
    """Answer iDoDebit_HSM_Step1 with the pKey of its step 2: 终端交易序号|时间|MAC1|."""

    card: Card
    text: LibraryText
    terminal_transaction_number: Number4


class DoDebit2(Request[LibraryReply], frozen=True):
    """Check MAC2 and TAC of iDoDebit_HSM_Step2 against what step 1 said; the answer is empty.

    Refuses with MAC_NOT_AUTHENTIC or TAC_NOT_AUTHENTIC.
    """

    card: Card
    step1: LibraryText
    step2: LibraryText
