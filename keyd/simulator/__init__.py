"""A card and a terminal that keyd did not make, for the demo and for integrators without live cards.

The simulator stands on the ground floor only. It has its own arithmetic and its own key table, so that it can
disagree with the daemon; all that the two share is the synthetic roots, which are public.

    card = issue_card(region="510100", serial=428, generation="3.0", algorithm=0x03)
    library = TerminalLibrary(card.transmit, card.atr)

    request = library.read_card_bas_step1()   # "510100|0000…|03|5101…|过程因子|原信息|过程因子|原信息|"
    answer = back_end(request)                # yours: "鉴别数据原信息|鉴别数据原信息|"
    try:
        print(library.read_card_bas_step2(answer).name)
    except CardNotGenuine:
        print("this card is forged")          # as it would be for forge_card(card)

A step is a card conversation; between two steps the back end is asked. `card.transmit` takes any command.
"""

from keyd.simulator.card import SimulatedCard
from keyd.simulator.interface import BasicData, CardNotGenuine, CardRefused
from keyd.simulator.issue import Holder, forge_card, issue_card, synthetic_holder
from keyd.simulator.machine import Asking, CardDisagrees, CardMakingMachine
from keyd.simulator.terminal import TerminalLibrary

__all__ = [
    "Asking",
    "BasicData",
    "CardDisagrees",
    "CardMakingMachine",
    "CardNotGenuine",
    "CardRefused",
    "Holder",
    "SimulatedCard",
    "TerminalLibrary",
    "forge_card",
    "issue_card",
    "synthetic_holder",
]
