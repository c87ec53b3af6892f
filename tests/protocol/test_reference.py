"""The manual says what the table says, and the command line reads words as the table means them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from keyd.errors import BadParameter
from keyd.protocol.commands import TABLE
from keyd.protocol.messages.card import PinReload, SecureMessage
from keyd.protocol.reference import flat_fields, manual, params_from_words, plain_result, summary

MANUAL = Path(__file__).parents[2] / "docs" / "protocol.md"

CARD = ["card.card_id=" + "51" * 16, "card.historical=" + "00" * 13]


def test_the_manual_is_current() -> None:
    assert MANUAL.read_text(encoding="utf-8") == manual(), (
        "run: python -m keyd.protocol.reference > docs/protocol.md"
    )


def test_every_command_and_every_field_is_explained() -> None:
    for command in TABLE.values():
        assert f"#### `{command.method}`" in manual()
        assert summary(command).endswith(".")
        for message in (command.request, command.response):
            for name, field in flat_fields(message):
                assert field.description, f"{message.__name__}.{name}"


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
