"""A PSAM written a second time, straight from the description, with another library's ciphers and no locked memory.

It is slow, has one function, and keeps keys as bytes: what the applet is compared with, and nothing to build on. It
plays both dialects of the profiles that keyd ships, in the 3DES and in the SM4 environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import CommandApdu

if TYPE_CHECKING:
    from collections.abc import Callable

# (type, id, "DES" or "SM4") → levels and the key; in DES, 8 bytes are a DES key and 16 a 3DES one.
Keys = dict[tuple[int, int, str], tuple[int, bytes]]

MF, DDF2, DF01 = "3F00", "DDF2", "DF01"
NAMES: Final = {
    "7378312E73682EC9E7BBE1B1A3D5CF": ("DES", MF),
    "7378322E73682EC9E7BBE1B1A3D5CF": ("SSF33", "DDF1"),
    "7378332E73682EC9E7BBE1B1A3D5CF": ("SM4", DDF2),
}
APPLICATION: Final = "D15600000590"
KIND_OPERATIONS: Final = {3: "EM", 4: "EM", 5: "EM", 6: "M", 7: "E", 8: "EM"}
KINDS: Final = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12}
KEY_FILES: Final = {
    0x11: {*range(0x10), *range(0x20, 0x40)},
    0x12: {*range(0x10, 0x18), *range(0x40, 0x80)},
    0x13: {*range(0x18, 0x20), *range(0x80, 0xC0)},
}


def ecb(name: str, key: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
    if name == "SM4":
        cipher: Any = Cipher(algorithms.SM4(key), modes.ECB())  # noqa: S305
    else:
        full = key * 3 if len(key) == 8 else key + key[:8]
        cipher = Cipher(TripleDES(full), modes.ECB())  # noqa: S305
    context = cipher.decryptor() if decrypt else cipher.encryptor()
    done: bytes = context.update(data) + context.finalize()
    return done


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def cbc(name: str, key: bytes, data: bytes, iv: bytes) -> bytes:
    for at in range(0, len(data), len(iv)):
        iv = ecb(name, key, xor(iv, data[at : at + len(iv)]))
    return iv


def mac_block(name: str, key: bytes, data: bytes, iv: bytes) -> bytes:
    """The last block: retail under 3DES."""
    if name == "DES" and len(key) == 16:
        last = cbc(name, key[:8], data, iv)
        return ecb(name, key[:8], ecb(name, key[8:], last, decrypt=True))
    return cbc(name, key, data, iv)


def four(block: bytes) -> bytes:
    if len(block) == 8:
        return block[:4]
    return xor(xor(block[:4], block[4:8]), xor(block[8:12], block[12:]))


def padded(data: bytes, size: int) -> bytes:
    data += b"\x80"
    while len(data) % size:
        data += b"\0"
    return data


def diversify(name: str, key: bytes, factor: bytes) -> bytes:
    if len(key) == 8:
        return ecb(name, key, factor)
    return ecb(name, key, factor + bytes(octet ^ 0xFF for octet in factor))


def session(name: str, key: bytes, factor: bytes) -> bytes:
    return ecb(name, key, factor.ljust(16 if name == "SM4" else 8, b"\0"))


def cryptogram(name: str, key: bytes, factor: bytes, challenge: bytes) -> bytes:
    whole = ecb(
        name, session(name, key, factor), challenge.ljust(16 if name == "SM4" else 8, b"\0")
    )
    return whole if len(whole) == 8 else xor(whole[:8], whole[8:])


@dataclass
class Lane:
    """A logical channel."""

    algorithm: str
    inside: bool = False
    file: int | None = None
    challenge: bytes = b""
    key: bytes = b""
    operations: str = ""
    chain: tuple[bytes, bytes] | None = None
    purchase: tuple[bytes, bytes] | None = None
    waiting: bytes = b""


@dataclass
class NaivePsam:
    """What a PSAM answers."""

    keys: Keys
    random: Callable[[int], bytes]
    algorithm: str = "DES"
    is_pboc: bool = False
    serial: bytes = bytes(10)
    terminal: bytes = bytes(6)
    number: int = 1
    wrong: dict[str, int] = field(default_factory=dict)
    lanes: dict[int, Lane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lanes = {0: Lane(self.algorithm)}

    def transmit(self, message: bytes) -> bytes:
        sw, data, le, lane = self._command(message)
        if sw == 0x9000 and lane is not None:
            lane.waiting = data[le:] + lane.waiting
            data = data[:le]
            if lane.waiting:
                sw = 0x6100 + len(lane.waiting)
        return (data if sw == 0x9000 or sw >> 8 == 0x61 else b"") + sw.to_bytes(2, "big")

    def _command(self, message: bytes) -> tuple[int, bytes, int, Lane | None]:
        try:
            apdu = CommandApdu.parse_untrusted(message)
        except RemoteProtocolError:
            return 0x6700, b"", 0, None
        deliver = "801A" if self.is_pboc else "BFDE"
        known = ["00A4", "00B0", "0084", "BFEC", "0082", "00C0", "0070", deliver, "80FA"]
        known += ["8070", "8072", "84D4"]
        for n in range(4):
            name = f"{apdu.cla ^ n:02X}{apdu.ins:02X}"
            if name in known:
                if n not in self.lanes:
                    return 0x6881, b"", 0, None
                lane = self.lanes[n]
                sw, data = self._obey("DELIVER" if name == deliver else name, apdu, lane)
                return sw, data, apdu.le or 0, lane
        for n in range(4):
            if f"{(apdu.cla & 0xF3) ^ n:02X}{apdu.ins:02X}" in known:
                return 0x6882, b"", 0, None
        is_class = any(
            f"{apdu.cla ^ n:02X}" in {name[:2] for name in [*known, deliver]} for n in range(4)
        )
        is_instruction = f"{apdu.ins:02X}" in {name[2:] for name in known}
        return (0x6D00 if is_class and not is_instruction else 0x6E00), b"", 0, None

    def _obey(self, name: str, apdu: CommandApdu, lane: Lane) -> tuple[int, bytes]:
        p1, p2, data, le = apdu.p1, apdu.p2, apdu.data, apdu.le
        if name not in ("00C0", "8072"):
            lane.purchase = None
        if name == "DELIVER":
            lane.key = b""
        waiting, lane.waiting = lane.waiting, b""
        good = {
            "00A4": p1 in (0, 2, 4) and p2 == 0,
            "00B0": True,
            "0084": p1 == p2 == 0,
            "BFEC": p1 == p2 == 0,
            "0082": p1 == 0,
            "00C0": p1 == p2 == 0,
            "0070": (p1 == 0 and p2 == 0)
            or (p1 == 0x80 and p2 in (1, 2, 3))
            or (p1 in (0, 0x80) and p2 < 4 and (bool(data) or apdu.extended)),
            "DELIVER": True,
            "80FA": p1 in (0, 1, 2, 3, 5, 7) and p2 == 0,
            "8070": p1 == (0 if self.is_pboc else 1) and p2 == 0,
            "8072": p1 == p2 == 0,
            "84D4": p1 in (0, 1) and p2 in KEY_FILES,
        }
        if not good[name]:
            return 0x6A86, b""
        lengths: dict[str, Any] = {
            "00A4": range(1, 17),
            "00B0": [0],
            "0084": [0],
            "BFEC": [1],
            "0082": [16, 17],
            "00C0": [0],
            "0070": [0],
            "8072": [4],
            "84D4": range(5, 256),
        }
        if apdu.extended or len(data) not in lengths.get(name, range(1, 256)):
            return 0x6700, b""
        if name == "00C0":
            lane.waiting = waiting
        method = getattr(self, "_" + {"00A4": "select", "00B0": "read", "0084": "challenge",
            "BFEC": "province", "0082": "prove", "00C0": "response", "0070": "channel",
            "DELIVER": "deliver", "80FA": "cipher", "8070": "buy", "8072": "credit",
            "84D4": "load"}[name])  # fmt: skip
        done: tuple[int, bytes] = method(lane, p1, p2, data, le, apdu)
        return done

    # --- files

    def _select(self, lane: Lane, p1: int, _p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        text = data.hex().upper()
        if p1 != 4:
            if len(data) != 2:
                return 0x6700, b""
            by_id = {file_id: aid for aid, (_, file_id) in NAMES.items()} | {DF01: APPLICATION}
            if p1 == 0 and text in by_id:
                text = by_id[text]
            else:
                return self._select_file(lane, int(text, 16))
        if text == APPLICATION:
            self._leave(lane)
            lane.inside = True
            return 0x9000, bytes.fromhex("6F0A8406" + APPLICATION + "A500")
        if text not in NAMES:
            return 0x6A82, b""
        self._enter(lane, NAMES[text][0])
        lane.inside = False
        number = {"DES": 1, "SSF33": 2, "SM4": 3}[lane.algorithm]
        return 0x9000, bytes.fromhex("6F19840F" + text + f"A5069F0C038601{number:02X}")

    def _select_file(self, lane: Lane, file_id: int) -> tuple[int, bytes]:
        here = {0x19, 0x1A, 0x1B, 0x1C} if lane.inside else {0x01, 0x15, 0x16}
        if file_id not in here:
            return 0x6A82, b""
        lane.file = file_id
        return 0x9000, b""

    def _leave(self, lane: Lane) -> None:
        lane.file, lane.key, lane.purchase = None, b"", None

    def _enter(self, lane: Lane, algorithm: str) -> None:
        self._leave(lane)
        if lane.algorithm != algorithm:
            lane.challenge = b""
        lane.algorithm = algorithm

    def _read(
        self, lane: Lane, p1: int, p2: int, _data: bytes, le: int | None, *_: Any
    ) -> tuple[int, bytes]:
        if le is None:
            return 0x6700, b""
        if 0x80 <= p1 <= 0x9F:
            sw, _nothing = self._select_file(lane, p1 - 0x80)
            if sw != 0x9000:
                return sw, b""
            offset = p2
        elif p1 >= 0x80:
            return 0x6A86, b""
        else:
            offset = p1 * 256 + p2
        if lane.file is None:
            return 0x6986, b""
        contents = {
            0x01: bytes.fromhex("61084F06" + APPLICATION),
            0x15: b"\0" + self.serial + bytes.fromhex("01010000"),
            0x16: self.terminal,
            0x19: self.number.to_bytes(4, "big"),
        }
        rest = contents.get(lane.file, bytes(25))[offset:]
        if not rest:
            return 0x6B00, b""
        if le < 256 and le > len(rest):
            return 0x6C00 + len(rest), b""
        return 0x9000, rest[:le]

    def _response(
        self, lane: Lane, _p1: int, _p2: int, _data: bytes, le: int | None, *_: Any
    ) -> tuple[int, bytes]:
        if le is None:
            return 0x6700, b""
        if not lane.waiting:
            return 0x6985, b""
        if le < 256 and le > len(lane.waiting):
            return 0x6C00 + len(lane.waiting), b""
        data, lane.waiting = lane.waiting[:le], lane.waiting[le:]
        return 0x9000, data

    def _channel(
        self, _lane: Lane, p1: int, p2: int, _data: bytes, le: int | None, *_: Any
    ) -> tuple[int, bytes]:
        if p1 == 0x80:
            if not p2 or p2 not in self.lanes:
                return 0x6A86, b""
            del self.lanes[p2]
            return 0x9000, b""
        if p2:
            return 0x6A86, b""
        if le is None:
            return 0x6700, b""
        free = [n for n in (1, 2, 3) if n not in self.lanes]
        if not free:
            return 0x6A81, b""
        self.lanes[free[0]] = Lane(self.algorithm)
        return 0x9000, bytes(free[:1])

    # --- the environment

    def _challenge(
        self, lane: Lane, _p1: int, _p2: int, _data: bytes, le: int | None, *_: Any
    ) -> tuple[int, bytes]:
        if le is None or le not in ((4, 8) if lane.algorithm == "DES" else (4, 8, 16)):
            return 0x6700, b""
        lane.challenge = self.random(le)
        return 0x9000, lane.challenge

    def _province(self, lane: Lane, _p1: int, _p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        self._enter(lane, "SSF33" if data == b"\x11" else "DES")
        return 0x9000, b""

    def _prove(self, lane: Lane, _p1: int, p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        if lane.algorithm == "SSF33":
            return 0x6A81, b""
        kind = next((k for k in (0, 1) if (k, p2, lane.algorithm) in self.keys), None)
        if kind is None or data[16:] not in (b"", b"\x01"):
            return 0x6A88, b""
        name = f"{lane.algorithm} {kind:02X} {p2:02X}"
        if self.wrong.get(name, 0) >= 3:
            return 0x6983, b""
        factor, lane.challenge = lane.challenge, b""
        if not factor:
            return 0x6984, b""
        right = cryptogram(
            lane.algorithm, self.keys[kind, p2, lane.algorithm][1], factor, data[8:16]
        )
        if right != data[:8]:
            self.wrong[name] = self.wrong.get(name, 0) + 1
            return 0x63C0 + 3 - self.wrong[name], b""
        self.wrong[name] = 0
        return 0x9000, b""

    # --- keys

    def _root(self, lane: Lane, usage: int, key_id: int, missing: int) -> int | bytes:
        kind = usage % 32
        if not lane.inside and (kind == 2 or not 0x08 <= key_id <= 0x1F):
            return missing
        if lane.algorithm == "SSF33":
            return 0x6A81
        levels, key = self.keys.get((kind, key_id, lane.algorithm), (-1, b""))
        if not key:
            return missing
        return key if levels == usage // 32 and levels else 0x6A80

    def _deliver(self, lane: Lane, p1: int, p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        if self.wrong.get("MAC2", 0) >= 15:
            return 0x9303, b""
        kind, levels = p1 % 32, p1 // 32
        if kind not in KINDS:
            return 0x6A88, b""
        if kind not in KIND_OPERATIONS:
            return 0x6985, b""
        tail = 0 if self.is_pboc else (8 if lane.algorithm == "DES" else 16)
        if len(data) != 8 * levels + tail:
            return 0x6700, b""
        root = self._root(lane, p1, p2, 0x6A88)
        if isinstance(root, int):
            return root, b""
        card = self._card(lane, root, data[: 8 * levels])
        lane.key = card if self.is_pboc else session(lane.algorithm, card, data[8 * levels :])
        lane.operations, lane.chain = KIND_OPERATIONS[kind], None
        return 0x9000, b""

    def _card(self, lane: Lane, key: bytes, factors: bytes) -> bytes:
        for at in range(len(factors) - 8, -1, -8):
            key = diversify(lane.algorithm, key, factors[at : at + 8])
        return key

    def _cipher(self, lane: Lane, p1: int, _p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        if not lane.key:
            return 0x6901, b""
        if ("E" if p1 in (0, 2) else "M") not in lane.operations:
            return 0x6985, b""
        size, most = (16, 128) if lane.algorithm == "SM4" else (8, 64)
        if len(data) % size or len(data) > most or (p1 in (5, 7) and len(data) == size):
            return 0x6700, b""
        key, chain = lane.key, lane.chain
        lane.chain = None
        if p1 in (1, 3) and chain is None:
            return 0x6985, b""
        if p1 in (0, 1, 5) and not self.is_pboc:
            lane.key = b""
        if p1 in (0, 2):
            return 0x9000, ecb(lane.algorithm, key, data)
        if p1 in (5, 7):
            iv, message = data[:size], data[size:]
        else:
            assert chain is not None
            iv, message = chain[0], chain[1] + data
        if p1 in (7, 3):
            # Everything so far, and the MAC over all of it at the end: nothing of it can go wrong on the way.
            lane.chain = (iv, message)
            return 0x9000, b""
        return 0x9000, four(mac_block(lane.algorithm, key, message, iv))

    # --- purchases

    def _buy(self, lane: Lane, _p1: int, _p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        if self.wrong.get("MAC2", 0) >= 15:
            return 0x9303, b""
        if not lane.inside:
            return 0x6985, b""
        fixed = 20 if self.is_pboc else 28
        if len(data) not in (fixed + 8, fixed + 16, fixed + 24):
            return 0x6700, b""
        version, algorithm = data[fixed - 2 : fixed]
        named = {"DES": (0, 1), "SSF33": (2,), "SM4": (3,)}[lane.algorithm]
        usage = 32 * ((len(data) - fixed) // 8) + 2
        root = self._root(lane, usage, version, 0x9403) if algorithm in named else 0x9403
        if isinstance(root, int):
            return root, b""
        card = self._card(lane, root, data[fixed:])
        number = self.number.to_bytes(4, "big")
        self.number += 1
        key = session(lane.algorithm, card, data[:6] + number[2:])
        amounts = data[6 : fixed - 10]
        message = amounts + data[fixed - 10 : fixed - 9] + self.terminal
        lane.purchase = (key, amounts)
        return 0x9000, number + self._mac(lane, key, message + data[fixed - 9 : fixed - 2])

    def _mac(self, lane: Lane, key: bytes, message: bytes) -> bytes:
        size = 16 if lane.algorithm == "SM4" else 8
        return four(cbc(lane.algorithm, key, padded(message, size), bytes(size)))

    def _credit(self, lane: Lane, _p1: int, _p2: int, data: bytes, *_: Any) -> tuple[int, bytes]:
        if self.wrong.get("MAC2", 0) >= 15:
            return 0x9303, b""
        purchase, lane.purchase = lane.purchase, None
        if purchase is None:
            return 0x6901, b""
        if data != self._mac(lane, *purchase):
            self.wrong["MAC2"] = self.wrong.get("MAC2", 0) + 1
            return 0x9302, b""
        self.wrong["MAC2"] = 0
        return 0x9000, b""

    # --- loading

    def _load(
        self, lane: Lane, p1: int, p2: int, data: bytes, _le: Any, apdu: CommandApdu
    ) -> tuple[int, bytes]:
        if self.wrong.get("MAC2", 0) >= 15:
            return 0x9303, b""
        if lane.algorithm == "SSF33":
            return 0x6A81, b""
        if (0, 0, lane.algorithm) not in self.keys:
            return 0x6A88, b""
        master, size = self.keys[0, 0, lane.algorithm][1], 16 if lane.algorithm == "SM4" else 8
        body, mac = data[:-4], data[-4:]
        if len(body) % size:
            return 0x6700, b""
        name = f"{lane.algorithm} 00 00"
        if self.wrong.get(name, 0) >= 3:
            return 0x6983, b""
        challenge, lane.challenge = lane.challenge, b""
        if not challenge:
            return 0x6984, b""
        message = padded(apdu.header + bytes([len(data)]) + body, size)
        right = mac_block(lane.algorithm, master, message, challenge.ljust(size, b"\0"))
        if four(right) != mac:
            self.wrong[name] = self.wrong.get(name, 0) + 1
            return 0x6988, b""
        self.wrong[name] = 0
        return self._put(lane, p1, p2, ecb(lane.algorithm, master, body, decrypt=True), size)

    def _put(self, lane: Lane, p1: int, p2: int, plain: bytes, size: int) -> tuple[int, bytes]:
        said_bytes = 3 if p1 else 8
        if len(plain) - 1 - said_bytes < 8:
            return 0x6700, b""
        said = plain[1 : 1 + said_bytes]
        usage, key_id, place = said[0], said[1], (said[0] % 32, said[1], lane.algorithm)
        if p1:
            if place not in self.keys:
                return 0x6A88, b""
            levels, old = self.keys[place]
            length = len(old)
            if usage // 32 != levels or said[2]:
                return 0x6A80, b""
        else:
            lengths = {"DES": {0: 16, 1: 8}, "SM4": {3: 16}}[lane.algorithm]
            length = lengths.get(said[3], 0)
            is_own = usage % 32 in (0, 1)
            if not length or said[2] or any(said[4:]) or usage % 32 not in KINDS:
                return 0x6A80, b""
            if usage // 32 > 3 or (is_own and usage // 32):
                return 0x6A80, b""
        key = plain[1 + said_bytes : 1 + said_bytes + length]
        framed = bytes([said_bytes + length]) + said + key
        if len(key) != length or plain != (
            framed if len(framed) % size == 0 else padded(framed, size)
        ):
            return 0x6A80, b""
        if usage % 32 != 2 and key_id not in KEY_FILES[p2]:
            return 0x6A80, b""
        self.keys[place] = (usage // 32, key)
        return 0x9000, b""
