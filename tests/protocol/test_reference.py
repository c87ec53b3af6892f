"""The manual says what the table says."""

from __future__ import annotations

from pathlib import Path

from keyd.protocol.commands import TABLE
from keyd.protocol.reference import flat_fields, manual, summary

MANUAL = Path(__file__).parents[2] / "docs" / "protocol.md"


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
