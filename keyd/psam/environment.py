"""The security environment: challenges, which algorithm is used, and proofs of the PSAM's own keys."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW
from keyd.iso7816.sw import TRIES_LEFT
from keyd.psam.state import Declined

if TYPE_CHECKING:
    from keyd.iso7816 import CommandApdu
    from keyd.psam.state import Channel, Psam

# By the bytes of a block.
CHALLENGE_BYTES: Final = {8: frozenset({4, 8}), 16: frozenset({4, 8, 16})}

# The version that a proof may name: there is one set of own keys.
OWN_VERSION: Final = 1


def get_challenge(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """GET CHALLENGE of 4 or 8 bytes, or 16 where a block has 16: only the last one counts, and only once."""
    if apdu.le not in CHALLENGE_BYTES[channel.environment.block_bytes]:
        raise Declined(SW.WRONG_LENGTH)
    channel.challenge = psam.random_bytes(apdu.le)
    return channel.challenge


def initialize_environment(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """INITIALIZE ENVIRONMENT: take the algorithm of a province's cards; the application stays selected."""
    environment = psam.profile.environment_of(apdu.data[0])
    if environment is None:
        raise Declined(SW.FUNCTION_NOT_SUPPORTED)
    channel.enter(environment, in_application=channel.is_in_application)
    return b""


def external_authenticate(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """EXTERNAL AUTHENTICATE: the other side proves the own key P2, with the last challenge as session factor."""
    cryptogram, challenge, version = apdu.data[:8], apdu.data[8:16], apdu.data[16:]
    key, name = psam.own_key(channel, apdu.p2)
    if version and version[0] != OWN_VERSION:
        raise Declined(SW.KEY_NOT_FOUND)
    tries = psam.profile.loading.key_tries
    if psam.counters.wrong(name) >= tries:
        raise Declined(SW.AUTHENTICATION_BLOCKED)
    factor = channel.take_challenge()
    if not hmac.compare_digest(cryptogram, key.cryptogram(factor, challenge)):
        # A wrong proof also takes back what an earlier right one gave.
        channel.rights.discard(apdu.p2)
        raise Declined(TRIES_LEFT | tries - psam.count_wrong(name))
    psam.forget_wrong(name, tries)
    channel.rights.add(apdu.p2)
    return b""
