"""ISO 7816 as far as keyd needs it: what is said to a chip, and how a conversation with one is written.

One idea per module: the messages (`apdu`), the status words (`sw`), the data objects (`tlv`), the answer to
reset (`atr`), the applications (`aid`), and `Dialogue`, a conversation as a generator (`dialogue`). Nothing
here knows where the chip is, what its keys are, or what any command means for a social security card.
"""

from keyd.iso7816.aid import Aid
from keyd.iso7816.apdu import CommandApdu, ResponseApdu
from keyd.iso7816.atr import Atr, historical_bytes
from keyd.iso7816.dialogue import Dialogue, UnexpectedStatusWord, converse, transmit
from keyd.iso7816.sw import SW, status_word_name, tries_left
from keyd.iso7816.tlv import Fci, Record, Tlv

__all__ = [
    "SW",
    "Aid",
    "Atr",
    "CommandApdu",
    "Dialogue",
    "Fci",
    "Record",
    "ResponseApdu",
    "Tlv",
    "UnexpectedStatusWord",
    "converse",
    "historical_bytes",
    "status_word_name",
    "transmit",
    "tries_left",
]
