"""CREATE KEY and CHANGE KEY: an issuer loads keys into the PSAM under its master key.

The key stands enciphered in the midst of its attributes. It is deciphered into locked memory, and only once the MAC
is found right.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.errors import Refusal, StoreUnavailable
from keyd.iso7816 import SW
from keyd.keys.hierarchy import MAC_BYTES, pad
from keyd.psam.keys import KeyAttributes, KeyName
from keyd.psam.state import Declined

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey
    from keyd.iso7816 import CommandApdu
    from keyd.psam.own import OwnKey
    from keyd.psam.state import Channel, Psam

CREATE, CHANGE = 0x00, 0x01

MASTER_KEY_ID: Final = 0x00
MAX_LEVELS: Final = 3

# Before the key stand LD and what is said of it: 用途 ‖ 标识 ‖ 00 ‖ algorithm ‖ 00000000, or 用途 ‖ 标识 ‖ 00.
CREATE_OFFSET, CHANGE_OFFSET = 9, 4


def load_key(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """CREATE KEY (P1 00) brings a key, in the place of one of the same name too; CHANGE KEY (P1 01) replaces one."""
    psam.require_unlocked()
    _require_permission(psam, channel)
    ciphertext, mac = apdu.data[:-MAC_BYTES], apdu.data[-MAC_BYTES:]
    master, name = psam.own_key(channel, MASTER_KEY_ID)
    if not ciphertext or len(ciphertext) % master.block_bytes:
        raise Declined(SW.WRONG_LENGTH)
    _require_mac(psam, channel, apdu, master, name, mac)
    attributes, key = _opened(psam, channel, apdu, master, ciphertext)
    if not psam.profile.holds(apdu.p2, attributes.kind, attributes.key_id):
        raise Declined(SW.WRONG_DATA)
    try:
        psam.keys.put(attributes, channel.environment.algorithm, key)
    except StoreUnavailable:
        raise Declined(SW.MEMORY_FAILURE) from None
    except Refusal:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED) from None
    return b""


def _require_permission(psam: Psam, channel: Channel) -> None:
    permission = psam.profile.loading.permission
    if permission is not None and int(permission, 16) not in channel.rights:
        raise Declined(SW.SECURITY_STATUS_NOT_SATISFIED)


def _require_mac(
    psam: Psam, channel: Channel, apdu: CommandApdu, master: OwnKey, name: str, mac: bytes
) -> None:
    tries = psam.profile.loading.key_tries
    if psam.counters.wrong(name) >= tries:
        raise Declined(SW.AUTHENTICATION_BLOCKED)
    challenge = channel.take_challenge()
    command = apdu.header + bytes((len(apdu.data),)) + apdu.data[:-MAC_BYTES]
    if not hmac.compare_digest(mac, master.loading_mac(challenge, command)):
        psam.count_wrong(name)
        raise Declined(SW.SECURE_MESSAGING_INCORRECT)
    psam.forget_wrong(name, tries)


def _opened(
    psam: Psam, channel: Channel, apdu: CommandApdu, master: OwnKey, ciphertext: bytes
) -> tuple[KeyAttributes, SecretKey]:
    """Return what is said of the key, and the key in locked memory."""
    offset = CREATE_OFFSET if apdu.p1 == CREATE else CHANGE_OFFSET
    # What is said stands before the key. This look at it zeroes the longest key that there is room for.
    room = len(ciphertext) - offset
    longest = Algorithm.TDES if room >= KEY_BYTES[Algorithm.TDES] else Algorithm.DES
    if room < KEY_BYTES[longest]:
        raise Declined(SW.WRONG_LENGTH)
    said = master.unwrap(ciphertext, offset, longest)[0][1:offset]
    read = _created if apdu.p1 == CREATE else _changed
    attributes = read(psam, channel, said)
    key_bytes = KEY_BYTES[attributes.algorithm]
    if key_bytes > room:
        raise Declined(SW.WRONG_DATA)
    around, key = master.unwrap(ciphertext, offset, attributes.algorithm)
    framed = bytes((len(said) + key_bytes,)) + said + bytes(key_bytes)
    if len(framed) % master.block_bytes:
        framed = pad(framed, master.block_bytes)
    if around != framed:
        raise Declined(SW.WRONG_DATA)
    return attributes, key


def _created(psam: Psam, channel: Channel, said: bytes) -> KeyAttributes:
    usage, key_id, _, algorithm_byte = said[:4]
    algorithm = channel.environment.key_algorithms.get(algorithm_byte)
    if algorithm is None or said[2] or any(said[4:]):
        raise Declined(SW.WRONG_DATA)
    attributes = KeyAttributes(usage, key_id, algorithm)
    row = psam.profile.kinds.get(attributes.kind)
    # An own key is diversified by nobody, and no key more than three times.
    if row is None or attributes.levels > MAX_LEVELS or (row.is_own and attributes.levels):
        raise Declined(SW.WRONG_DATA)
    return attributes


def _changed(psam: Psam, channel: Channel, said: bytes) -> KeyAttributes:
    name = KeyName(said[0], said[1])
    there = psam.keys.attributes(name.kind, name.key_id, channel.environment.algorithm)
    if there is None:
        raise Declined(SW.KEY_NOT_FOUND)
    if there.usage != name.usage or said[2]:
        raise Declined(SW.WRONG_DATA)
    return there
