"""The client: typed requests in, typed responses out, in a synchronous and a trio flavour.

    from keyd.client import Client, Enrolment
    from keyd.protocol.fields import CardIdentity
    from keyd.protocol.messages.card import InternalAuthenticate

    enrolment = Enrolment("DESK-0001", terminal_key)
    with Client("127.0.0.1:7170", enrolment) as keyd:
        card = CardIdentity(card_id, historical)
        keyd.ask(InternalAuthenticate(card, session_factor, challenge, cryptogram))
        print("genuine")  # a forged card raises keyd.errors.CardNotAuthentic

`ask` sends one request, `ask_all` pipelines many and returns a response or a Refusal for each, `ask_batch`
puts many of one kind into one message. A refusal is raised as the class that keyd raised. Both flavours share
`keyd.client.conversation`, which does no I/O.

With `tls=TlsClientContext(…)` the line is encrypted, both ends have a certificate, and it never becomes plain; what
is wrong with either end's is `LineRefused`.

A line that cannot be had is tried again with growing pauses. A line that was open and has broken since, as
an idle one does, is opened again, the terminal authenticated anew and the question asked once more: nothing
that keyd answers changes anything in keyd but a PSAM's counters, so asking again is safe. If that fails too,
`ConnectionLost` is raised. What a terminal had open on the line before, PSAMs (`Psam`, `AsyncPsam`), is gone with it.
"""

from keyd.client.blocking import Client
from keyd.client.conversation import (
    MAX_PIPELINED,
    Backoff,
    ConnectionLost,
    parse_address,
)
from keyd.client.enrolment import Enrolled, Enrolment, PsamEnrolment, SignatureEnrolment
from keyd.client.line import LineRefused
from keyd.client.on_trio import AsyncClient
from keyd.client.psam import AsyncPsam, Psam, step_of

__all__ = [
    "MAX_PIPELINED",
    "AsyncClient",
    "AsyncPsam",
    "Backoff",
    "Client",
    "ConnectionLost",
    "Enrolled",
    "Enrolment",
    "LineRefused",
    "Psam",
    "PsamEnrolment",
    "SignatureEnrolment",
    "parse_address",
    "step_of",
]
