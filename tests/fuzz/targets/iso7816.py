"""What a chip or a terminal says in bytes: APDUs, data objects, ATRs. Read or `RemoteProtocolError`, and written again.

The first byte says as what the others are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import Aid, Atr, CommandApdu, Fci, Record, ResponseApdu, Tlv, historical_bytes
from keyd.simulator import issue_card
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

# Of one input, for the card: each with its length before it.
_MAX_COMMANDS = 8


def _command(data: bytes) -> None:
    assert bytes(CommandApdu.parse_untrusted(data)) == data


def _response(data: bytes) -> None:
    assert bytes(ResponseApdu.parse_untrusted(data)) == data


def _tlv(data: bytes) -> None:
    found = Tlv.parse_untrusted(data)
    assert sum(len(tlv.value) + 2 for tlv in found) <= len(data)
    shortest = b"".join(map(bytes, found))
    assert Tlv.parse_untrusted(shortest) == found
    assert len(shortest) <= len(data)


def _record(data: bytes) -> None:
    assert bytes(Record.parse_untrusted(data)) == data


def _fci(data: bytes) -> None:
    fci = Fci.parse_untrusted(data)
    assert Fci.parse_untrusted(bytes(fci)) == fci


def _atr(data: bytes) -> None:
    atr = Atr.parse_untrusted(data)
    assert atr.raw == data
    assert atr.historical in data


def _historical(data: bytes) -> None:
    assert len(historical_bytes(data)) == 13


def _card(data: bytes) -> None:
    """A simulated card answers anything, and without a key gives away nothing that is guarded."""
    card = issue_card(balance=10_000, pin="8642097531864209", random_bytes=bytes)
    before = card.state.pin, card.state.medical.balance
    for _ in range(_MAX_COMMANDS):
        if not data:
            break
        length = data[0]
        answer = card.transmit(data[1 : 1 + length])
        assert 2 <= len(answer) <= 258
        data = data[1 + length :]
    assert (card.state.pin, card.state.medical.balance) == before
    assert card.reset() == card.atr


_READERS: list[Callable[[bytes], None]] = [
    *(_command, _response, _tlv, _record, _fci, _atr, _historical, _card),
]


def one_input(data: bytes) -> None:
    if not data:
        return
    try:
        _READERS[data[0] % len(_READERS)](data[1:])
    except RemoteProtocolError as error:
        assert type(error) is RemoteProtocolError


def seeds() -> list[bytes]:
    atr = Atr.of_card(bytes.fromhex("00814A44468649510130000BEE")).raw
    commands = [
        bytes(CommandApdu(0, 0xA4, 4, 0, bytes(Aid.DF01))),
        bytes(CommandApdu(0, 0x88, 0, 1, bytes(16), le=8)),
        bytes(CommandApdu(0, 0xB2, 1, 4, le=256)),
        bytes(CommandApdu(0, 0xD6, 0, 0, bytes(300), le=65536)),
        bytes(CommandApdu(0, 0x84, 0, 0, le=8)),
        bytes(CommandApdu(0, 0x20, 0, 0, b"\x12\x34\x56")),
    ]
    fci = bytes(Fci(bytes(Aid.SSSE), 1, 3))
    told = b"".join(bytes([len(one)]) + one for one in commands if len(one) < 256)
    return [
        *(b"\0" + command for command in commands),
        b"\1" + bytes(8) + b"\x90\0",
        b"\2" + fci,
        b"\3" + bytes(Record(7, b"name")),
        b"\4" + fci,
        b"\5" + atr,
        b"\5" + bytes.fromhex("3B9F96801FC78031A073BE21136743200718000001A5"),
        b"\6" + atr,
        b"\6" + atr[4:],
        b"\7" + told,
    ]


TARGET = Target(one_input, seeds, max_bytes=1024)
