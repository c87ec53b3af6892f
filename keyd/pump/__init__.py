"""The native half of the tick, see pump.h. `keyd.hub` runs it, and `keyd.routes` tells it keys.

It is a short cut through rules that stand in Python and nowhere else: what it does not recognise, or would have to
refuse, it hands up untouched.
"""

from typing import Final

# The commands that it knows, in the order of pump.h's pump_kind.
METHODS: Final = (
    "card.internal_authenticate",
    "card.internal_cryptogram",
    "card.external_authenticate",
)

# What is left for Python of a connection: file descriptor, epoll mask, whether it was reset, read, unsent.
Rest = tuple[int, int, bool, bytes, bytes]

# Answers that wait for their records: file descriptor, bytes, the position to wait for, how many answers.
Held = tuple[int, bytes, int, int]
