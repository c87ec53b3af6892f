"""What is printed and goes into an envelope (密码信封): shares of the seal, and component sheets (分量表).

Both are plain text, so that any printer prints them and `keyd` reads them back. A paper holds a secret: it goes to
a terminal's alternate screen or into a file that its owner alone may read, and nowhere else. Its text is a Python
string, which cannot be wiped; the process that made it ends at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.cli.common import groups_of_4
from keyd.cli.files import write_new
from keyd.cli.keyboard import Hidden, show_once
from keyd.crypto.shares import encode_share

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from keyd.crypto.algorithms import Algorithm
    from keyd.crypto.shares import Share

_RULE: Final = "=" * 76

_SHARE_LINE: Final = re.compile(r"^[ \t]*(KEYD-SHARE-1-.*\S)[ \t]*$", re.MULTILINE)

# What stands before the digits on a sheet; read back by `sheet_value` without making a string of what follows.
_VALUE: Final = "分量值 value         "
_VALUE_OCTETS: Final = _VALUE.strip().encode()
_KCV: Final = "校验值 check value   "


class Sheet(Struct, frozen=True):
    """What a component sheet says, apart from the component."""

    name: str
    algorithm: Algorithm
    number: int
    of: int
    custodian: str
    kcv: bytes
    proposal: str = ""


def share_envelope(share: Share, of: int, store_id: bytes, custodian: str = "") -> str:
    """Return the text of a share's envelope."""
    needed = share.threshold
    return "\n".join(
        (
            _RULE,
            "  密码信封 · ENVELOPE                                   keyd 封印份额 · share of the seal",
            _RULE,
            f"  密钥库 store         {groups_of_4(store_id.hex().upper())}",
            f"  封印 seal            {share.generation}",
            f"  份额 share           {share.number} / {of}",
            f"  开启 to open         任意 {needed} 份 · any {needed} of {of}",
            f"  保管人 custodian     {custodian or '____________________'}",
            "",
            f"  {encode_share(share)}",
            "",
            "  本信封仅由保管人本人拆阅，封存于保险柜，不得复印、拍照或转述。",
            f"  启封（keyd unseal）时，由 {needed} 位保管人依次输入各自份额。",
            "  遗失或被他人看到，立即报告安全主管，重新封印（keyd rekey）；旧份额随之作废。",
            "",
            "  For its custodian alone: keep it sealed, in a safe; never copy, photograph or read it out.",
            f"  When keyd is unsealed (keyd unseal), {needed} custodians type theirs one after another.",
            "  If it is lost or seen by anybody, tell a security officer at once: keyd is rekeyed",
            "  (keyd rekey), and from then on this share opens nothing.",
            _RULE,
            "",
        )
    )


def share_line(text: str) -> str:
    """Return the share in an envelope's text, or the whole text if somebody wrote down nothing else."""
    found = _SHARE_LINE.search(text)
    return found[1] if found else text.strip()


def component_sheet(sheet: Sheet, component: bytes | bytearray) -> str:
    """Return the text of a component sheet."""
    return "\n".join(
        (
            _RULE,
            "  密钥分量表 · COMPONENT SHEET                          keyd 密钥分量 · component of a key",
            _RULE,
            f"  密钥 key             {sheet.name}  {sheet.algorithm.value}",
            *([f"  提案 proposal        {sheet.proposal}"] if sheet.proposal else []),
            f"  分量 component       {sheet.number} / {sheet.of}",
            f"  保管人 custodian     {sheet.custodian}",
            f"  {_KCV}{sheet.kcv.hex().upper()}",
            f"  {_VALUE}{groups_of_4(component.hex().upper())}",
            "",
            f"  密钥由全部 {sheet.of} 个分量异或而成，缺一不可；单个分量不泄露密钥。",
            "  仅由保管人本人拆阅；录入（keyd component enter）并核对校验值后，按规定封存或销毁。",
            "",
            f"  The key is the XOR of all {sheet.of} components; fewer say nothing of it.",
            "  For its custodian alone. When it has been entered (keyd component enter) and its check",
            "  value compared, seal it again or destroy it, as your rules have it.",
            _RULE,
            "",
        )
    )


def sheet_value(hidden: Hidden, length: int) -> bytearray:
    """Read the component off a sheet's file; the caller wipes it.

    Raises:
        BadParameter: the file is no sheet, or what stands there is no component of that length.
    """
    return hidden.line_after(_VALUE_OCTETS, "the file").key(length, "the value on the sheet")


def sheet_kcv(hidden: Hidden) -> bytes:
    """Read the check value off a sheet's file.

    Raises:
        BadParameter: there is none.
    """
    line = hidden.line_after(_KCV.strip().encode(), "the file")
    return bytes(line.key(3, "the check value on the sheet"))


def hand_over(text: str, to: Path | None, whose: str) -> None:
    """Give a paper to whom it belongs: into a new private file, or once on the terminal's screen.

    Raises:
        KeyFileUnusable: the file is there already, or cannot be written.
        typer.BadParameter: there is neither file nor terminal.
    """
    if to is not None:
        write_new(to, text.encode())
        return
    show_once(
        text,
        f"  {whose}: copy it by hand, compare, and press Enter. The screen is then cleared. ",
        "say --to FILE",
    )


# Terminals' secrets ---------------------------------------------------------------------------------------

# So many lines stay on one screen, with what stands around them.
_SECRETS_ON_A_SCREEN: Final = 12


def terminal_sheets(
    what: str, officer: str, proposal: str, secrets: Mapping[str, str]
) -> Iterator[str]:
    """Yield the texts of as many sheets as it takes: what belongs to each terminal, by its code."""
    items = list(secrets.items())
    parts = range(0, len(items), _SECRETS_ON_A_SCREEN)
    for number, at in enumerate(parts, start=1):
        yield "\n".join(
            (
                _RULE,
                f"  终端密信 · TERMINAL SHEET {number} / {len(parts)}                  keyd {what}",
                _RULE,
                f"  提案 proposal        {proposal}",
                f"  领取人 officer       {officer}",
                "",
                *(
                    f"  {code:32}  {_in_groups(secret)}"
                    for code, secret in items[at : at + _SECRETS_ON_A_SCREEN]
                ),
                "",
                "  仅交安装该终端的人员；录入终端后销毁。",
                "  For whoever sets that terminal up, and for nobody else: destroy it afterwards.",
                _RULE,
                "",
            )
        )


def _in_groups(secret: str) -> str:
    # An enrolment code comes in groups already.
    return secret if "-" in secret else groups_of_4(secret)
