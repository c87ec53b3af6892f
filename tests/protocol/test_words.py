"""The command line reads words as the table means them."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from keyd.errors import BadParameter
from keyd.protocol.commands import TABLE
from keyd.protocol.messages.card import PinReload, SecureMessage
from keyd.protocol.messages.psam import RunOnce, TransmitMany
from keyd.protocol.words import params_from_words, plain_result

CARD = ["card.card_id=" + "51" * 16, "card.historical=" + "00" * 13]


def test_words_become_params() -> None:
    command = TABLE["card.secure_message"]
    words = [*CARD, "address=0x0173", "session_factor=0102030405060708", "header=04D60000"]
    params = params_from_words(command, [*words, "plaintext=A1A2", "encrypt=yes"])
    request = msgspec.convert(params, SecureMessage, builtin_types=(bytes,))
    assert request.address == 0x0173
    assert request.plaintext == b"\xa1\xa2"
    assert request.encrypt
    assert plain_result(request)["header"] == "04D60000"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["card.card_id"], "name=value"),
        (["pin=1", "pin=2"], "twice"),
        ([], "card.card_id is missing"),
        (["card.card_id=0G"], "not hex"),
        ([*CARD, "session_factor=00", "pin=1234", "pine=1"], "no field pine"),
        ([*CARD, "card.algorithm=x", "session_factor=00", "pin=1234"], "not a number"),
    ],
)
def test_wrong_words_are_sentences(words: list[str], said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        params_from_words(TABLE["card.pin_reload"], words)


def test_a_wrong_word_is_not_repeated_back() -> None:
    with pytest.raises(BadParameter) as refused:
        params_from_words(TABLE["card.pin_reload"], ["card.card_id=pin 271828"])
    assert "271828" not in str(refused.value)
    assert PinReload.__name__ in {command.request.__name__ for command in TABLE.values()}


REFERENCE: Final = {"at": 0, "step": 0, "offset": 2, "length": 4, "fold": False}
STEPS: Final[list[dict[str, Any]]] = [
    {"header": "00A40400", "data": "D15600000590"},
    {"header": "80FA0000", "data": "00" * 16, "le": "0x10", "references": [REFERENCE]},
]


def test_lists_are_written_with_commas_and_messages_as_json() -> None:
    command = TABLE["psam.run_once"]
    params = params_from_words(command, ["keys=0x0170,76", f"steps={json.dumps(STEPS)}"])
    ask = msgspec.convert(params, RunOnce, builtin_types=(bytes,))
    assert ask.keys == (0x0170, 0x004C)
    assert ask.steps[0].data == bytes.fromhex("D15600000590")
    assert ask.steps[1].le == 16
    assert ask.steps[1].references[0].length == 4
    assert ask.results == ()
    command = TABLE["psam.transmit_many"]
    params = params_from_words(command, ["handle=1", "commands=0084000008,00B0960006"])
    many = msgspec.convert(params, TransmitMany, builtin_types=(bytes,))
    assert [plain.hex() for plain in many.commands] == ["0084000008", "00b0960006"]
    assert params_from_words(command, ["handle=1", "commands="])[1] == []


@pytest.mark.parametrize(
    ("keys", "steps", "said"),
    [
        ("0x0170,", "[]", "keys is not a number"),
        ("0x0170", "[", "steps is no JSON"),
        ("0x0170", "{}", "steps is not a list"),
        ("0x0170", "[7]", r"steps\[0\] is not an object"),
        ("0x0170", '[{"le": 8}]', r"steps\[0\].header is missing"),
        ("0x0170", '[{"header": 7}]', r"steps\[0\].header is not hex"),
        ("0x0170", '[{"header": "00840000", "le": 1.5}]', r"steps\[0\].le is not a number"),
        ("0x0170", '[{"header": "00840000", "lee": 1}]', r"steps\[0\] has no field lee"),
        ("0x0170", '[{"header": "00840000", "references": [{}]}]', r"references\[0\].* is missing"),
        ("0x0170", '[{"header": "00840000", "expected": 9}]', r"steps\[0\].expected is not a list"),
    ],
)
def test_wrong_lists_are_sentences(keys: str, steps: str, said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        params_from_words(TABLE["psam.run_once"], [f"keys={keys}", f"steps={steps}"])
