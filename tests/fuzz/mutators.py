"""Ways to change an input: as bytes, as MessagePack, as DER, as text. All chance comes from the `Random` given.

Bytes that are changed blindly mostly stop being a message at all. The others change the tree that the bytes stand for
and write it again, so that what comes out reaches the checks behind the parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

_NUMBERS: Final = (
    *(0, 1, 2, 3, 7, 8, 16, 32, 127, 128, 255, 256, 511, 512, 1024, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1),
    *(-1, -32, -33, -128, -129, -(2**31), -(2**63)),
)
_TEXTS: Final = ("", "\0", "0", "|", "\n", "é", "卡", "\U0001f0a1", "%s", "../", "a" * 33, "9" * 64)
_LENGTHS: Final = (0, 1, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 32, 33, 64, 65, 128, 251, 252, 256)

# A tree that is deeper was made to be deep; it is written again as it is.
_MAX_DEPTH: Final = 64


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change, insert, remove or repeat some bytes."""
    if not data:
        return random.randbytes(random.randint(1, 8))
    at = random.randrange(len(data))
    size = min(random.choice((1, 1, 1, 2, 4, 8, 32)), len(data) - at)
    match random.randrange(7):
        case 0:
            changed = bytes([data[at] ^ (1 << random.randrange(8))])
            return data[:at] + changed + data[at + 1 :]
        case 1:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at + size :]
        case 3:
            return data[:at] + random.randbytes(size) + data[at:]
        case 4:
            return data[: at + size] + data[at:]
        case 5:
            return data[:at]
        case _:
            to = random.randrange(len(data))
            return data[:to] + data[at : at + size] + data[to + size :]


def mutate_value(value: Any, random: Random, depth: int = 0) -> Any:
    """Change one thing somewhere in a tree of lists, maps and plain values."""
    if depth < _MAX_DEPTH and isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        changed = mutate_value(value[at], random, depth + 1)
        return [*value[:at], changed, *value[at + 1 :]]
    if depth < _MAX_DEPTH and isinstance(value, dict) and value and random.random() < 0.9:
        name = random.choice(list(value))
        return {**value, name: mutate_value(value[name], random, depth + 1)}
    if random.random() < 0.15:
        return _any_value(random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, value ^ 1 << random.randrange(16), *_NUMBERS))
    if isinstance(value, float):
        return random.choice((-value, value + 1, int(value) if abs(value) < 1e9 else 0))
    if isinstance(value, bytes):
        return _mutate_octets(value, random)
    if isinstance(value, str):
        return _mutate_text(value, random)
    if isinstance(value, list):
        return _mutate_list(value, random)
    if isinstance(value, dict):
        name = random.choice((*value, *_TEXTS))
        other = random.choice((*value.values(), _any_value(random)))
        return {**value, name: other} if random.random() < 0.7 else _without(value, name)
    return _any_value(random)


def _without(value: dict[Any, Any], name: Any) -> dict[Any, Any]:
    return {other: kept for other, kept in value.items() if other != name}


def _any_value(random: Random) -> Any:
    return random.choice(
        (
            None,
            True,
            0.5,
            float("nan"),
            random.choice(_NUMBERS),
            random.choice(_TEXTS),
            random.randbytes(random.choice(_LENGTHS)),
            [],
            [[]],
            {},
            {"a": 1},
            msgpack.ExtType(5, b"ext"),
        )
    )


def _mutate_octets(value: bytes, random: Random) -> Any:
    match random.randrange(4):
        case 0:
            return mutate_bytes(value, random)
        case 1:
            # Right in length and wrong in all else.
            return random.randbytes(len(value))
        case 2:
            return random.randbytes(random.choice(_LENGTHS))
        case _:
            return value.hex() if random.random() < 0.3 else value[::-1]


def _mutate_text(value: str, random: Random) -> Any:
    at = random.randrange(len(value) + 1)
    match random.randrange(5):
        case 0:
            return value[:at] + random.choice(_TEXTS) + value[at:]
        case 1:
            return value[:at] + value[at + 1 :]
        case 2:
            return value[:at] + chr(random.randrange(32, 127)) + value[at + 1 :]
        case 3:
            # Fields of the terminal library's strings.
            fields = value.split("|")
            place = random.randrange(len(fields))
            fields[place] = random.choice((*_TEXTS, "0" * len(fields[place]), fields[0]))
            return "|".join(fields)
        case _:
            return value.encode() if random.random() < 0.3 else value * 2


def _mutate_list(value: list[Any], random: Random) -> list[Any]:
    at = random.randrange(len(value) + 1)
    match random.randrange(4):
        case 0:
            return [*value[:at], _any_value(random), *value[at:]]
        case 1:
            return [*value[:at], *value[at + 1 :]]
        case 2:
            return [*value[:at], *value[at : at + 1] * random.choice((2, 3, 257)), *value[at + 1 :]]
        case _:
            return random.sample(value, len(value))


def mutate_message(data: bytes, random: Random) -> bytes:
    """Change one of several MessagePack objects that stand one after the other."""
    messages = messages_of(data)
    if not messages or random.random() < 0.1:
        return mutate_bytes(data, random)
    at = random.randrange(len(messages))
    match random.randrange(8):
        case 0:
            changed = [*messages[:at], *messages[at : at + 1] * 2, *messages[at + 1 :]]
        case 1:
            changed = messages[:at] + messages[at + 1 :]
        case 2:
            changed = random.sample(messages, len(messages))
        case _:
            changed = [*messages[:at], mutate_value(messages[at], random), *messages[at + 1 :]]
    try:
        return b"".join(msgpack.packb(message) for message in changed)
    except (ValueError, OverflowError, TypeError):
        return mutate_bytes(data, random)


def messages_of(data: bytes) -> list[Any]:
    """Return the MessagePack objects that bytes begin with, up to the first that is none."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=1 << 24)
    unpacker.feed(data)
    messages = []
    try:
        while True:
            messages.append(unpacker.unpack())
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.OutOfData):
        return messages


def mutate_der(data: bytes, random: Random) -> bytes:
    """Change one element of DER, or several; lengths around it are written anew."""
    tree = _der_tree(data)
    if tree is None or random.random() < 0.1:
        return mutate_bytes(data, random)
    return b"".join(_der_bytes(node) for node in _mutate_der_list(tree, random))


# A tag, and elements if they could be read, or else content.
_Node = tuple[int, Any]


def _der_tree(data: bytes, depth: int = 0) -> list[_Node] | None:
    nodes: list[_Node] = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, first = data[at], data[at + 1]
        width = first & 0x7F if first & 0x80 else 0
        length = int.from_bytes(data[at + 2 : at + 2 + width], "big") if width else first
        start = at + 2 + width
        at = start + length
        if width > 4 or at > len(data):
            return None
        content = data[start:at]
        inner = _der_tree(content, depth + 1) if tag & 0x20 and depth < _MAX_DEPTH else None
        nodes.append((tag, content if inner is None else inner))
    return nodes


def _der_bytes(node: _Node) -> bytes:
    tag, content = node
    encoded = content if isinstance(content, bytes) else b"".join(map(_der_bytes, content))
    length = len(encoded)
    if length < 0x80:
        return bytes([tag, length]) + encoded
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + encoded


def _mutate_der_list(nodes: list[_Node], random: Random) -> list[_Node]:
    if not nodes:
        return [(0x05, b"")]
    at = random.randrange(len(nodes))
    tag, content = nodes[at]
    if isinstance(content, list) and content and random.random() < 0.85:
        return [*nodes[:at], (tag, _mutate_der_list(content, random)), *nodes[at + 1 :]]
    changed: list[_Node]
    match random.randrange(6):
        case 0:
            changed = []
        case 1:
            changed = [nodes[at], nodes[at]]
        case 2:
            changed = [(random.choice((0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x30, 0x31)), content)]
        case 3:
            changed = [(tag, random.randbytes(random.choice(_LENGTHS)))]
        case 4:
            changed = [(tag, b"")]
        case _:
            octets = content if isinstance(content, bytes) else _der_bytes(nodes[at])
            changed = [(tag, mutate_bytes(octets, random))]
    return [*nodes[:at], *changed, *nodes[at + 1 :]]


def mutate_text(data: bytes, random: Random, words: Sequence[str]) -> bytes:
    """Change a text by lines and by words; `words` are those that mean something."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return mutate_bytes(data, random)
    at = random.randrange(len(lines))
    match random.randrange(9):
        case 0:
            del lines[at]
        case 1:
            lines.insert(random.randrange(len(lines)), lines[at])
        case 2:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            return mutate_bytes(data, random)
        case 4:
            lines.insert(at, random.choice(words))
        case _:
            lines[at] = _mutate_line(lines[at], random, words)
    return "\n".join(lines).encode()


def _mutate_line(line: str, random: Random, words: Sequence[str]) -> str:
    parts = line.split(" ")
    at = random.randrange(len(parts))
    match random.randrange(4):
        case 0:
            parts[at] = random.choice(words)
        case 1:
            parts.insert(at, random.choice(words))
        case 2:
            parts[at] = str(random.choice(_NUMBERS))
        case _:
            parts[at] = str(_mutate_text(parts[at], random))
    return " ".join(parts)
