"""Key management and terminal authentication for China's social security cards.

Start reading at `keyd.protocol.commands`, the table of everything keyd can be asked.
"""

from importlib.metadata import version
from typing import Final

__version__: Final = version("keyd")
