"""Commands for the bench: all of a PSAM's, well made, for the synthetic keys and the first challenge there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.psam.bench import random_source, synthetic_keys
from tests.psam.naive import cryptogram, ecb, four, mac_block, padded

if TYPE_CHECKING:
    from tests.psam.naive import Keys

L1, L2, L3 = (bytes.fromhex(text * 8) for text in ("A1", "A2", "A3"))
FACTORS: Final = {1: L3, 2: L3 + L2, 3: L3 + L2 + L1}

NEW_KEY: Final = bytes.fromhex("404142434445464748494A4B4C4D4E4F")


def apdu(header: str, data: bytes = b"", le: int | None = None) -> bytes:
    """CLA INS P1 P2 in hex, data, and Le."""
    lc = bytes((len(data),)) if data else b""
    return bytes.fromhex(header) + lc + data + (b"" if le is None else bytes((le % 256,)))


def deliver(profile: str, environment: str, usage: int, key_id: int, factor: bytes = L1) -> bytes:
    """DELIVERY, as the profile has it."""
    factors = FACTORS.get(usage >> 5, b"")
    if profile == "pboc":
        return apdu(f"801A{usage:02X}{key_id:02X}", factors)
    size = 16 if environment == "SM4" else 8
    return apdu(f"BFDE{usage:02X}{key_id:02X}", factors + factor.ljust(size, b"\0"))


def purchase(profile: str, environment: str, version: int = 1, levels: int = 3) -> bytes:
    """INIT SAM FOR PURCHASE."""
    amounts = bytes(range(0x10, 0x14 if profile == "pboc" else 0x1C))
    algorithm = 3 if environment == "SM4" else 0
    terms = bytes.fromhex("C1C2C3C40005") + amounts + bytes.fromhex("0120261123120000")
    p1 = "00" if profile == "pboc" else "01"
    return apdu(f"8070{p1}00", terms + bytes((version, algorithm)) + FACTORS[levels], 8)


def prove(environment: str, key_id: int, factor: bytes, keys: Keys | None = None) -> bytes:
    """EXTERNAL AUTHENTICATE of an own key after that challenge."""
    key = (keys or synthetic_keys())[key_id & 1, key_id, environment][1]
    proof = cryptogram(environment, key, factor, L2)
    return apdu(f"008200{key_id:02X}", proof + L2)


def load(
    environment: str,
    header: str,
    said: bytes,
    challenge: bytes,
    key: bytes = NEW_KEY,
    master: bytes | None = None,
) -> bytes:
    """CREATE KEY or CHANGE KEY, whose content is what is said of the key and the key."""
    master = master or synthetic_keys()[0, 0, environment][1]
    size = 16 if environment == "SM4" else 8
    framed = bytes((len(said + key),)) + said + key
    body = ecb(environment, master, framed if len(framed) % size == 0 else padded(framed, size))
    whole = bytes.fromhex(header) + bytes((len(body) + 4,)) + body
    mac = mac_block(environment, master, padded(whole, size), challenge.ljust(size, b"\0"))
    return whole + four(mac)


def created(environment: str, usage: int, key_id: int) -> bytes:
    """What CREATE KEY says of a 16-byte key."""
    return bytes((usage, key_id, 0, 3 if environment == "SM4" else 0)) + bytes(4)


def every_command(profile: str, environment: str) -> dict[str, bytes]:
    """One of each, by name. Those that need a challenge of 8 bytes are made for the first one."""
    challenge = random_source()(8)
    block = 16 if environment == "SM4" else 8
    return {
        "SELECT MF": apdu("00A40000", bytes.fromhex("3F00"), 0),
        "SELECT SM4": apdu("00A40000", bytes.fromhex("DDF2")),
        "SELECT SSF33": apdu("00A40400", bytes.fromhex("7378322E73682EC9E7BBE1B1A3D5CF")),
        "SELECT DF01": apdu("00A40400", bytes.fromhex("D15600000590")),
        "SELECT DF01 by id": apdu("00A40000", bytes.fromhex("DF01"), 0),
        "SELECT 0015": apdu("00A40200", bytes.fromhex("0015")),
        "SELECT 0019": apdu("00A40000", bytes.fromhex("0019")),
        "READ": apdu("00B00000", le=0),
        "READ 0016": apdu("00B09600", le=6),
        "READ number": apdu("00B09900", le=4),
        "READ directory": apdu("00B08100", le=0),
        "CHALLENGE": apdu("00840000", le=8),
        "CHALLENGE 4": apdu("00840000", le=4),
        "ENVIRONMENT": apdu("BFEC0000", b"\x51"),
        "ENVIRONMENT SSF33": apdu("BFEC0000", b"\x11"),
        "PROVE": prove(environment, 0, challenge),
        "PROVE wrongly": apdu("00820001", bytes(17)),
        "DELIVER 67 08": deliver(profile, environment, 0x67, 0x08),
        "DELIVER 48 12": deliver(profile, environment, 0x48, 0x12),
        "DELIVER 68 09": deliver(profile, environment, 0x68, 0x09),
        "DELIVER 26 19": deliver(profile, environment, 0x26, 0x19),
        "DELIVER 48 41": deliver(profile, environment, 0x48, 0x41),
        "DELIVER 47 08": deliver(profile, environment, 0x47, 0x08),
        "DELIVER 07 08": deliver(profile, environment, 0x07, 0x08),
        "DELIVER 67 0F": deliver(profile, environment, 0x67, 0x0F),
        "DELIVER 69 4B": deliver(profile, environment, 0x69, 0x4B),
        "DELIVER 7F 08": deliver(profile, environment, 0x7F, 0x08),
        "CIPHER 00": apdu("80FA0000", bytes(range(block)), block),
        "CIPHER 02": apdu("80FA0200", bytes(range(2 * block))),
        "CIPHER 05": apdu("80FA0500", bytes(range(3 * block)), 4),
        "CIPHER 07": apdu("80FA0700", bytes(range(2 * block))),
        "CIPHER 03": apdu("80FA0300", bytes(range(block))),
        "CIPHER 01": apdu("80FA0100", bytes(range(block)), 4),
        "PURCHASE": purchase(profile, environment),
        "PURCHASE 2": purchase(profile, environment, version=2),
        "PURCHASE at two levels": purchase(profile, environment, levels=2),
        "CREDIT": apdu("80720000", bytes(4)),
        "CREATE": load(environment, "84D40011", created(environment, 0x67, 0x0A), challenge),
        "CHANGE": load(environment, "84D40111", bytes((0x67, 0x0A, 0)), challenge),
        "CHANGE master": load(environment, "84D40111", bytes(3), challenge),
        "RESPONSE": apdu("00C00000", le=4),
        "RESPONSE all": apdu("00C00000", le=0),
        "OPEN": apdu("00700000", le=1),
        "CLOSE": apdu("00708001"),
        "SELECT DF01, channel 1": apdu("01A40400", bytes.fromhex("D15600000590")),
        "CHALLENGE, channel 2": apdu("02840000", le=8),
        "DELIVER, channel 1": bytes((apdu_class(profile) ^ 1,))
        + deliver(profile, environment, 0x67, 0x08)[1:],
        "CIPHER, channel 1": apdu("81FA0000", bytes(range(block)), block),
    }


def apdu_class(profile: str) -> int:
    """CLA of the profile's DELIVERY."""
    return 0x80 if profile == "pboc" else 0xBF


def wrong_lengths(command: bytes) -> list[bytes]:
    """The command with every length that is not its own: data cut or grown by a byte or a block, Lc, Le."""
    header, data = command[:4], command[5:]
    has_data = len(command) > 5
    le = b""
    if has_data:
        data, le = command[5 : 5 + command[4]], command[5 + command[4] :]
    variants = [header, header + b"\0", header + b"\x05", header + b"\xff", command + b"\0"]
    if not has_data:
        variants += [header + b"\x04" + bytes(4), header + b"\x01\x00", command[:3]]
        variants += [header + bytes((0, 0, 8)), header + bytes((0, 0, 1, 0))]
        return variants
    lengths = {0, 1, len(data) - 1, len(data) + 1, len(data) - 8, len(data) + 8, 64, 72, 128, 144}
    for length in sorted(lengths & set(range(1, 256))):
        other = data[:length].ljust(length, b"\x5a")
        variants += [header + bytes((length,)) + other + le]
    variants += [command[: -1 - len(le)], header + bytes((len(data),)) + data + b"\x01"]
    variants += [header + bytes((0, 0, len(data))) + data]
    return variants
