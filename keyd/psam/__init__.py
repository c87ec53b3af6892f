"""The PSAM that keyd plays: a social security PSAM on the level of APDUs, computed by the key ring.

    applet = Applet(Psam(profile, identity, keys, counters, secrets.token_bytes))
    applet.atr                                    # the answer to reset
    applet.transmit(bytes.fromhex("00A4040006D15600000590"))

An `Applet` takes and returns bytes and waits for nothing but its counters, which are kept before an answer depends
on them. It knows no socket, no clock and no terminal: who may use which PSAM is decided elsewhere. What a PSAM has
and how its dialect differs is a profile (`keyd.psam.profile`), which is a file; its keys come from `PsamKeys`, which
the key ring is one of (`keyd.psam.ring`).
"""

from keyd.psam.applet import Applet, may_wait
from keyd.psam.counters import Counters, PsamMemory, PsamRecord, TransientMemory
from keyd.psam.file_memory import FileMemory
from keyd.psam.guard import Dialects, Guard
from keyd.psam.issue import synthetic_psam
from keyd.psam.keys import KeyAttributes, KeyName, KeySet, PsamKeys
from keyd.psam.own import OwnKey
from keyd.psam.profile import PsamIdentity, PsamProfile
from keyd.psam.profile_files import load_psam_profiles
from keyd.psam.ring import RingKeys
from keyd.psam.state import Psam

__all__ = [
    "Applet",
    "Counters",
    "Dialects",
    "FileMemory",
    "Guard",
    "KeyAttributes",
    "KeyName",
    "KeySet",
    "OwnKey",
    "Psam",
    "PsamIdentity",
    "PsamKeys",
    "PsamMemory",
    "PsamProfile",
    "PsamRecord",
    "RingKeys",
    "TransientMemory",
    "load_psam_profiles",
    "may_wait",
    "synthetic_psam",
]
