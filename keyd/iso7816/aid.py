"""The applications of a social security card and of its PSAM, by the name that SELECT takes."""

from __future__ import annotations

import enum


class Aid(bytes, enum.Enum):
    """An application identifier. A member is its bytes."""

    # The environment (社会保障系统环境): "sx1.sh.社会保障" in GBK.
    SSSE = bytes.fromhex("7378312E73682EC9E7BBE1B1A3D5CF")

    DF01 = bytes.fromhex("D15600000500")  # 公共应用, public
    DF02 = bytes.fromhex("D15600000501")  # 就业, employment
    DF03 = bytes.fromhex("D15600000502")  # 社保 1, insurance
    DF04 = bytes.fromhex("D15600000503")  # 社保 2 (医保), medical insurance
    DF07 = bytes.fromhex("D15600000504")  # 人事人才, personnel

    # The bank's payment environment: a sibling behind a firewall, "1PAY.SYS.DDF01" in ASCII.
    PSE = bytes.fromhex("315041592E5359532E4444463031")

    PSAM_DF01 = bytes.fromhex("D15600000590")
