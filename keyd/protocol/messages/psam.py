"""Messages of the psam family: PSAMs that keyd lends, whole or for one answer.

A terminal without a PSAM opens one of keyd's and speaks to it in APDUs, as it would to its own. It is the same PSAM
until it is closed, its time is over, the connection ends or keyd says PSAM_GONE. Commands to one open PSAM are done in
the order in which they arrive. They may name the keys alone that the PSAM was opened for, and none of the PSAM's own:
anything else is NOT_ALLOWED and not sent. docs/psam-commands.md has examples.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from keyd.crypto.algorithms import CardAlgorithm
from keyd.protocol.fields import (
    HIDE,
    SHOW,
    Address,
    Amount,
    Block,
    Card,
    Header,
    Mac,
    Message,
    Number2,
    Number4,
    Request,
    Response,
    Time,
    TransactionType,
    Warnings,
)
from keyd.protocol.messages.card import IRK, ExternalReply, InternalReply

# PSAMs that one connection may have open: a terminal has a slot or two, a rack of them a few.
MAX_OPEN: Final = 8

# As many commands as a script has steps.
MAX_COMMANDS: Final = 32
MAX_KEYS: Final = 32

Handle = Annotated[
    int, Meta(ge=1, le=0x7FFF_FFFF, extra=SHOW, description="the open PSAM, as psam.open has said")
]
PsamNumber = Annotated[
    str,
    Meta(
        pattern=r"\A([0-9]{12}|any)\Z",
        extra=SHOW,
        description="终端机编号 of a certain PSAM, 12 digits, or any",
    ),
]
Region = Annotated[
    str,
    Meta(
        pattern=r"\A([0-9]{1,6}|any)\Z",
        extra=SHOW,
        description="the first digits of the cards' region, which diversifiers then have to name; or any",
    ),
]
Keys = Annotated[
    tuple[Address, ...],
    Meta(
        min_length=1,
        max_length=MAX_KEYS,
        extra=SHOW,
        description="the logical addresses (first sets) of the keys that it is for, 1 to 32",
    ),
]
Algorithm = Annotated[
    CardAlgorithm, Meta(extra=SHOW, description="whose environment: 1 DES/3DES, 2 SSF33, 3 SM4")
]
CommandBytes = Annotated[
    bytes,
    Meta(min_length=4, max_length=261, extra=HIDE, description="a command APDU, 4 to 261 bytes"),
]
AnswerBytes = Annotated[bytes, Meta(extra=HIDE, description="data and status word")]
StepNumber = Annotated[
    int, Meta(ge=0, le=31, extra=SHOW, description="which step's answer, the first is 0")
]
Offset = Annotated[int, Meta(ge=0, le=256, extra=SHOW, description="from which byte of it")]
Fold = Annotated[
    bool, Meta(extra=SHOW, description="XOR the first half with the second, which leaves half")
]
StatusWord = Annotated[int, Meta(ge=0, le=0xFFFF, extra=SHOW, description="a status word")]


class ScriptReference(Message, frozen=True, forbid_unknown_fields=True):
    """Bytes of an earlier step's answer, without its status word, that are put into a step's data."""

    at: Annotated[int, Meta(ge=0, le=255, extra=SHOW, description="where in the data they begin")]
    step: StepNumber
    offset: Offset
    length: Annotated[int, Meta(ge=1, le=256, extra=SHOW, description="how many bytes of it")]
    fold: Fold = False


class ScriptResult(Message, frozen=True, forbid_unknown_fields=True):
    """Bytes of a step's answer, without its status word, that are answered."""

    step: StepNumber
    offset: Offset = 0
    length: Annotated[
        int, Meta(ge=0, le=256, extra=SHOW, description="how many bytes of it; 0 is all from there")
    ] = 0
    fold: Fold = False


class ScriptStep(Message, frozen=True, forbid_unknown_fields=True):
    """One command of a script. Lc is made of the data; references are put over bytes that stand there."""

    header: Header
    data: Annotated[
        bytes, Meta(max_length=255, extra=HIDE, description="the command's data, at most 255 bytes")
    ] = b""
    references: Annotated[
        tuple[ScriptReference, ...],
        Meta(max_length=16, extra=SHOW, description="what is put into the data, at most 16"),
    ] = ()
    le: Annotated[
        int, Meta(ge=0, le=256, extra=SHOW, description="Le, 1 to 256; 0 for a command without")
    ] = 0
    expected: Annotated[
        tuple[StatusWord, ...],
        Meta(
            min_length=1,
            max_length=4,
            extra=SHOW,
            description="the status words that it may be answered with, 1 to 4",
        ),
    ] = (0x9000,)


Steps = Annotated[
    tuple[ScriptStep, ...],
    Meta(
        min_length=1, max_length=MAX_COMMANDS, extra=SHOW, description="the steps in order, 1 to 32"
    ),
]
Results = Annotated[
    tuple[ScriptResult, ...],
    Meta(max_length=MAX_COMMANDS, extra=SHOW, description="what is answered, at most 32"),
]


class PsamOpened(Response, frozen=True):
    """The PSAM that was opened. The algorithm's environment is selected if the PSAM has it by the usual file id."""

    handle: Handle
    number: Annotated[bytes, Meta(extra=SHOW, description="its 终端机编号, 6 bytes of BCD")]
    serial: Annotated[bytes, Meta(extra=SHOW, description="its serial number, 10 bytes of BCD")]
    atr: Annotated[bytes, Meta(extra=SHOW, description="its answer to reset")]
    kind: Annotated[str, Meta(extra=SHOW, description="virtual, reader or rack")]
    levels: Annotated[
        tuple[int, ...],
        Meta(
            extra=SHOW,
            description="how often it diversifies each key that was asked for, in their order; 0 if not known",
        ),
    ]


class PsamAnswer(Response, frozen=True):
    """What the PSAM answered."""

    answer: AnswerBytes


class PsamAnswers(Response, frozen=True):
    """What the PSAM answered to each command that was sent, in their order."""

    answers: Annotated[
        tuple[bytes, ...], Meta(extra=HIDE, description="data and status word of each")
    ]


class ScriptDone(Response, frozen=True):
    """The script's results, in their order."""

    results: Annotated[tuple[bytes, ...], Meta(extra=HIDE, description="the results")]


class PsamClosed(Response, frozen=True):
    """It is closed."""


class PurchaseBegun(Response, frozen=True):
    """What the card's DEBIT FOR PURCHASE needs of the PSAM."""

    terminal_transaction_number: Number4
    mac1: Mac
    number: Annotated[bytes, Meta(extra=SHOW, description="the PSAM's 终端机编号, 6 bytes of BCD")]
    warnings: Warnings = ()


class PurchaseConfirmed(Response, frozen=True):
    """MAC2 is the card's: it was debited."""


class PsamMember(Message, frozen=True):
    """One PSAM of the pool."""

    name: Annotated[str, Meta(extra=SHOW, description="what keyd calls it")]
    kind: Annotated[str, Meta(extra=SHOW, description="virtual, reader or rack")]
    state: Annotated[str, Meta(extra=SHOW, description="how it does")]
    number: Annotated[str, Meta(extra=SHOW, description="its 终端机编号, 12 digits, once known")]
    sessions: Annotated[int, Meta(extra=SHOW, description="how many have it open")]
    waiting: Annotated[int, Meta(extra=SHOW, description="how many wait for a turn on it")]
    turns: Annotated[int, Meta(extra=SHOW, description="turns since it joined")]
    failures: Annotated[int, Meta(extra=SHOW, description="failures since it joined")]
    keys: Annotated[int, Meta(extra=SHOW, description="how many keys it was found to have")]


class PsamMembers(Response, frozen=True):
    """The pool as it is now."""

    members: Annotated[tuple[PsamMember, ...], Meta(extra=SHOW, description="its members")]


class PurchaseTerms(Message, frozen=True, forbid_unknown_fields=True):
    """A purchase as the card's INITIALIZE FOR PURCHASE has begun it. Numbers are as they stand in the APDUs."""

    pseudo_random: Number4
    purchase_number: Number2
    personal_account: Amount
    personal_paid: Amount
    pooled_fund: Amount
    type: TransactionType
    time: Time
    key_version: Annotated[
        int, Meta(ge=0, le=255, extra=SHOW, description="version of the purchase key, as answered")
    ]
    key_algorithm: Annotated[
        int, Meta(ge=0, le=255, extra=SHOW, description="algorithm byte, as the card answered it")
    ]


class AskOpen(Request[PsamOpened], frozen=True):
    """Open a PSAM of keyd's pool for certain keys.

    It waits until one is free, for as long as keyd lets it; then POOL_EXHAUSTED says when to ask again.
    """

    keys: Keys
    algorithm: Algorithm = CardAlgorithm.SM4
    number: PsamNumber = "any"
    region: Region = "any"


class Transmit(Request[PsamAnswer], frozen=True):
    """Send one command to an open PSAM. What it answers is passed on, whatever it says."""

    handle: Handle
    command: CommandBytes


class TransmitMany(Request[PsamAnswers], frozen=True):
    """Send commands to an open PSAM, one after the other, with no other command of its in between.

    After the first status word other than 9000 and 61xx nothing more is sent, unless `go_on` is said.
    """

    handle: Handle
    commands: Annotated[
        tuple[CommandBytes, ...],
        Meta(
            min_length=1, max_length=MAX_COMMANDS, extra=HIDE, description="the commands, 1 to 32"
        ),
    ]
    go_on: Annotated[
        bool, Meta(extra=SHOW, description="send the rest whatever the status words")
    ] = False


class RunScript(Request[ScriptDone], frozen=True):
    """Run a script on an open PSAM, with no other command of its in between. 61xx and 6Cxx are followed.

    Refuses with PSAM_DECLINED at the first status word that a step does not expect; the steps before it are done.
    """

    handle: Handle
    steps: Steps
    results: Results = ()


class RunOnce(Request[ScriptDone], frozen=True):
    """Open a PSAM, run a script on it and close it, in one exchange. Otherwise like psam.open and psam.run."""

    keys: Keys
    steps: Steps
    results: Results = ()
    algorithm: Algorithm = CardAlgorithm.SM4
    number: PsamNumber = "any"
    region: Region = "any"


class Close(Request[PsamClosed], frozen=True):
    """Give an open PSAM back, after the commands that came before. What was begun with it is dropped."""

    handle: Handle


class PsamInternalAuthenticate(Request[InternalReply], frozen=True):
    """Compute the reply that a genuine card gives to INTERNAL AUTHENTICATE, on any PSAM that has the key.

    Like `card.internal_cryptogram`, but on a PSAM of the pool wherever keyd has the key itself.
    """

    card: Card
    session_factor: Block
    challenge: Block
    address: Address = IRK


class PsamExternalAuthenticate(Request[ExternalReply], frozen=True):
    """Compute what EXTERNAL AUTHENTICATE needs, on any PSAM that has the key.

    Like `card.external_authenticate`, but on a PSAM of the pool wherever keyd has the key itself.
    """

    card: Card
    address: Address
    session_factor: Block
    challenge: Block


class PsamMakePurchase(Request[PurchaseBegun], frozen=True):
    """Begin a purchase on an open PSAM: a terminal transaction number and MAC1. Neither comes a second time.

    The PSAM must have been opened for DPK. `psam.confirm_purchase` comes next, with nothing in between.
    """

    handle: Handle
    card: Card
    purchase: Annotated[PurchaseTerms, Meta(extra=SHOW, description="the purchase")]


class PsamConfirmPurchase(Request[PurchaseConfirmed], frozen=True):
    """Check the card's MAC2 for the purchase that was begun on an open PSAM. It can be tried once.

    Refuses with MAC_NOT_AUTHENTIC.
    """

    handle: Handle
    mac2: Mac


class ListMembers(Request[PsamMembers], frozen=True):
    """List the members of the pool: where each is, how it does, who uses it."""
