"""A batch answers every card as the standard says one by one, and no task's fault touches another's answer."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.native import _core
from keyd.errors import (
    BadParameter,
    CardNotAuthentic,
    KeyNotFound,
    MacNotAuthentic,
    Refusal,
    TacNotAuthentic,
    TooLarge,
)
from keyd.keys.block import Use
from keyd.keys.hierarchy import (
    MAX_PROTECTED_DATA,
    Region,
    card_diversifier,
    city_diversifier,
    province_diversifier,
)
from keyd.keys.sam import (
    CardKeyRef,
    CryptogramTask,
    MacTask,
    ProtectTask,
    SamTask,
    TacTask,
    purpose,
)

if TYPE_CHECKING:
    from tests.crypto.native.conftest import Reference, ReferenceKey

VECTORS: Final = Path(__file__).parents[2] / "vectors"
WORKED: Final = cast("dict[str, Any]", json.loads((VECTORS / "worked_examples.json").read_text()))
EXAMPLES: Final = cast("list[dict[str, Any]]", WORKED["examples"])

ALGORITHMS: Final = {"SM4": Algorithm.SM4, "3DES": Algorithm.TDES, "DES": Algorithm.DES}

unhex: Final = bytes.fromhex


def kernel(max_cities: int = 4096) -> _core.CardKernel:
    return _core.CardKernel(
        cryptogram=CryptogramTask,
        mac=MacTask,
        protect=ProtectTask,
        tac=TacTask,
        max_cities=max_cities,
    )


class Cities:
    """City keys by address, here and in the reference; an address that is not there is refused."""

    def __init__(self, reference: Reference, seed: int = 0) -> None:
        draw = random.Random(seed)  # noqa: S311 - keys of tests
        algorithms = [Algorithm.SM4, Algorithm.TDES, Algorithm.DES]
        self.reference = reference
        self.keys: dict[int, ReferenceKey] = {
            address: reference.key(algorithms[address % 3], draw.randbytes(16))
            for address in range(9)
        }
        self.opened: list[int] = []

    def open(self, ref: CardKeyRef) -> _core.KeyHandle:
        self.opened.append(ref.address)
        if ref.address not in self.keys:
            raise KeyNotFound(f"no key {ref.address}")
        return self.keys[ref.address].handle()

    def expect(self, task: SamTask) -> bytes | Refusal:
        if task.key.address not in self.keys:
            return KeyNotFound(f"no key {task.key.address}")
        return self.reference.answer(self.keys[task.key.address], task)


def plain(result: bytes | Refusal) -> object:
    """Make results comparable: a refusal is its class and its sentence."""
    return result if isinstance(result, bytes) else (type(result), result.detail)


def ref(address: int, diversifier: bytes) -> CardKeyRef:
    return CardKeyRef(
        address, CardAlgorithm.SM4, Region("510100"), diversifier, purpose(Use.INTERNAL)
    )


def random_task(draw: random.Random, *, faults: bool) -> SamTask:
    """Make a task of any kind, algorithm and length; with faults, one in ten has a field that is wrong."""

    def octets(length: int) -> bytes:
        wrong = faults and draw.random() < 0.1
        return draw.randbytes(draw.randrange(20) if wrong else length)

    key = ref(draw.randrange(10 if faults else 9), octets(8))
    factor = octets(draw.choice([4, 8]))
    match draw.randrange(5):
        case 0 | 1:
            return CryptogramTask(key, factor, octets(8))
        case 2:
            return MacTask(key, factor, draw.randbytes(draw.randrange(80)))
        case 3:
            plaintext = draw.randbytes(draw.randrange(260 if faults else 240))
            return ProtectTask(key, factor, octets(4), plaintext, draw.random() < 0.5)
        case _:
            return TacTask(key, draw.randbytes(draw.randrange(80)))


# --- the worked examples


def answers(root: ReferenceKey, region: str, levels: int, tasks: list[SamTask]) -> list[str]:
    """Compute tasks under a root: every level above the cards is diversified in locked memory too."""

    def open_city(_: CardKeyRef) -> _core.KeyHandle:
        key = root.handle()
        for diversifier in (
            province_diversifier(Region(region)),
            city_diversifier(Region(region)),
        )[3 - levels :]:
            key = key.diversify(diversifier)
        return key

    results = kernel().compute(tasks, open_city)
    return [result.hex().upper() for result in results if isinstance(result, bytes)]


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda e: f"{e['algorithm']}-{e['levels']}-{e['region']}"
)
def test_the_worked_examples_hold(example: dict[str, Any], reference: Reference, path: str) -> None:
    del path
    e, debit, load = example, example["debit"], example["load"]
    card = ref(1, card_diversifier(unhex(e["historical"])))
    factor = unhex(e["session_factor"])
    debit_factor = unhex(
        debit["pseudo_random"]
        + debit["purchase_number"]
        + debit["terminal_transaction_number"][-4:]
    )
    load_factor = unhex(load["pseudo_random"] + load["load_number"] + "8000")
    d, c = debit, load
    expected: list[tuple[SamTask, str]] = [
        (CryptogramTask(card, factor, unhex(e["challenge"])), e["cryptogram"]),
        (ProtectTask(card, factor, unhex("84240000"), b"", False), e["pin_unblock"]),
        (ProtectTask(card, factor, unhex("84240001"), unhex(e["pin"]), True), e["pin_reload"]),
        (
            ProtectTask(card, factor, unhex("04D60000"), unhex("A1A2A3A4"), False),
            e["update_binary"],
        ),
        (ProtectTask(card, factor, unhex("841E0001"), b"", False), e["application_block"]),
        (ProtectTask(card, factor, unhex("84160000"), b"", False), e["card_block"]),
        (
            MacTask(
                card, debit_factor, unhex(d["amounts"] + d["type"] + d["terminal"] + d["time"])
            ),
            d["mac1"],
        ),
        (MacTask(card, debit_factor, unhex(d["amounts"])), d["mac2"]),
        (
            TacTask(
                card,
                unhex(
                    d["amounts"]
                    + d["type"]
                    + d["terminal"]
                    + d["terminal_transaction_number"]
                    + d["time"]
                ),
            ),
            d["tac"],
        ),
        (
            MacTask(
                card, load_factor, unhex(c["balance"] + c["amount"] + c["type"] + c["terminal"])
            ),
            c["mac1"],
        ),
        (
            MacTask(card, load_factor, unhex(c["amount"] + c["type"] + c["terminal"] + c["time"])),
            c["mac2"],
        ),
        (
            TacTask(
                card,
                unhex(
                    c["balance"]
                    + c["load_number"]
                    + c["amount"]
                    + c["type"]
                    + c["terminal"]
                    + c["time"]
                ),
            ),
            c["tac"],
        ),
    ]
    root = reference.key(ALGORITHMS[e["algorithm"]], unhex(e["root"]))
    tasks = [task for task, _ in expected]
    assert answers(root, e["region"], e["levels"], tasks) == [value for _, value in expected]


def test_a_single_length_root_gives_its_worked_examples(reference: Reference) -> None:
    e = WORKED["single_length_stk"]
    card = ref(1, card_diversifier(unhex(e["historical"])))
    factor = unhex(e["session_factor"])
    tasks: list[SamTask] = [
        ProtectTask(card, factor, unhex("84240001"), unhex(e["pin"]), True),
        ProtectTask(card, factor, unhex("84240000"), b"", False),
    ]
    root = reference.key(Algorithm.DES, unhex(e["root"]))
    assert answers(root, e["region"], 3, tasks) == [e["pin_reload"], e["pin_unblock"]]


# --- against the reference


@given(seed=st.integers(0, 2**64), count=st.integers(1, 200))
def test_any_batch_agrees_with_one_by_one(reference: Reference, seed: int, count: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - keys of tests
    cities = Cities(reference, seed)
    tasks = [random_task(draw, faults=True) for _ in range(count)]
    results = kernel().compute(tasks, cities.open)
    assert list(map(plain, results)) == [plain(cities.expect(task)) for task in tasks]


def test_every_size_of_batch_agrees_on_every_path(reference: Reference, path: str) -> None:
    draw = random.Random(path)  # noqa: S311 - keys of tests
    cities = Cities(reference)
    ours = kernel()
    for count in range(1, 201):
        tasks = [random_task(draw, faults=count % 2 == 0) for _ in range(count)]
        results = ours.compute(tasks, cities.open)
        assert list(map(plain, results)) == [plain(cities.expect(task)) for task in tasks]


@pytest.mark.parametrize("kind", ["cryptogram", "mac", "protect", "encipher", "tac"])
def test_full_lanes_of_one_kind_agree_on_every_path(
    reference: Reference, path: str, kind: str
) -> None:
    draw = random.Random(path + kind)  # noqa: S311 - keys of tests
    cities = Cities(reference)

    def task() -> SamTask:
        key, factor, data = ref(0, draw.randbytes(8)), draw.randbytes(8), draw.randbytes(8)
        long = draw.randbytes(draw.randrange(200))
        tasks: dict[str, SamTask] = {
            "cryptogram": CryptogramTask(key, factor, data),
            "mac": MacTask(key, factor, long),
            "protect": ProtectTask(key, factor, b"\x04\xd6\0\0", long, False),
            "encipher": ProtectTask(key, factor, b"\x04\xd6\0\0", long, True),
            "tac": TacTask(key, long),
        }
        return tasks[kind]

    for count in (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200):
        tasks = [task() for _ in range(count)]
        assert kernel().compute(tasks, cities.open) == [cities.expect(t) for t in tasks]


@pytest.mark.parametrize("address", [0, 1, 2], ids=["SM4", "3DES", "DES"])
def test_every_length_of_data_agrees(reference: Reference, address: int) -> None:
    cities = Cities(reference)
    key, factor, header = ref(address, b"12345678"), b"87654321", b"\x04\xdc\1\2"
    tasks: list[SamTask] = []
    for length in range(300):
        data = bytes(range(256)) * 2
        tasks += [
            MacTask(key, factor, data[:length]),
            TacTask(key, data[:length]),
            ProtectTask(key, factor, header, data[:length], False),
            ProtectTask(key, factor, header, data[:length], True),
        ]
    results = kernel().compute(tasks, cities.open)
    assert list(map(plain, results)) == [plain(cities.expect(task)) for task in tasks]
    assert sum(isinstance(result, TooLarge) for result in results) >= 2 * (
        300 - MAX_PROTECTED_DATA - 1
    )


@pytest.mark.parametrize("address", [0, 1, 2], ids=["SM4", "3DES", "DES"])
def test_every_length_of_every_field_is_answered_or_refused_alike(
    reference: Reference, address: int
) -> None:
    cities = Cities(reference)
    tasks: list[SamTask] = []
    for length in range(40):
        octets = bytes(range(1, length + 1))
        key = ref(address, b"12345678")
        tasks += [
            TacTask(ref(address, octets), b"data"),
            CryptogramTask(key, octets, b"12345678"),
            CryptogramTask(key, b"12345678", octets),
            MacTask(key, octets, b"data"),
            ProtectTask(key, b"1234", octets, b"data", True),
        ]
    results = kernel().compute(tasks, cities.open)
    assert list(map(plain, results)) == [plain(cities.expect(task)) for task in tasks]
    # One length is right for a diversifier, a challenge and a header, two or three for a session factor.
    right = 3 + 2 * (3 if address == 0 else 2)
    assert sum(isinstance(result, BadParameter) for result in results) == 5 * 40 - right


def test_a_large_batch_is_computed_without_the_gil_and_alike(reference: Reference) -> None:
    draw = random.Random(7)  # noqa: S311 - keys of tests
    cities = Cities(reference)
    tasks = [random_task(draw, faults=False) for _ in range(5000)]
    assert kernel().compute(tasks, cities.open) == [cities.expect(task) for task in tasks]


def test_threads_compute_side_by_side(reference: Reference) -> None:
    draw = random.Random(8)  # noqa: S311 - keys of tests
    cities = Cities(reference)
    tasks = [random_task(draw, faults=False) for _ in range(2000)]
    expected = [cities.expect(task) for task in tasks]
    wrong: list[int] = []

    def compute(number: int) -> None:
        wrong.extend(number for _ in range(5) if kernel().compute(tasks, cities.open) != expected)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- verification


@pytest.mark.parametrize("address", [0, 1, 2], ids=["SM4", "3DES", "DES"])
def test_verifying_accepts_the_right_value_and_no_other(reference: Reference, address: int) -> None:
    cities = Cities(reference)
    key = ref(address, b"12345678")
    for task, refusal in (
        (CryptogramTask(key, b"1234", b"12345678"), CardNotAuthentic),
        (MacTask(key, b"1234", b"data"), MacNotAuthentic),
        (TacTask(key, b"data"), TacNotAuthentic),
    ):
        right = cities.expect(task)
        assert isinstance(right, bytes)
        wrong = [
            *(
                (int.from_bytes(right, "big") ^ 1 << bit).to_bytes(len(right), "big")
                for bit in range(8 * len(right))
            ),
            *(right[:length] for length in range(len(right))),
            right + b"\0",
            bytes(len(right)),
        ]
        presented = [right, *wrong, right]
        results = kernel().verify([task] * len(presented), presented, cities.open)
        assert results[0] is None
        assert results[-1] is None
        assert {type(result) for result in results[1:-1]} == {refusal}


@given(seed=st.integers(0, 2**64), count=st.integers(1, 200))
def test_verifying_a_batch_gives_each_its_own_result(
    reference: Reference, seed: int, count: int
) -> None:
    draw = random.Random(seed)  # noqa: S311 - keys of tests
    cities = Cities(reference, seed)
    tasks = [
        task
        for task in (random_task(draw, faults=True) for _ in range(count))
        if not isinstance(task, ProtectTask)
    ]
    presented: list[bytes] = []
    expected: list[type] = []
    for task in tasks:
        right = cities.expect(task)
        is_altered = draw.random() < 0.3
        if isinstance(right, Refusal):
            presented.append(b"")
            expected.append(type(right))
        else:
            presented.append(draw.randbytes(len(right)) if is_altered else right)
            expected.append(Refusal if is_altered else type(None))
    results = kernel().verify(tasks, presented, cities.open)
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result, wanted)


def test_a_protected_command_is_not_verified(reference: Reference) -> None:
    cities = Cities(reference)
    task = ProtectTask(ref(0, b"12345678"), b"1234", bytes(4), b"", False)
    with pytest.raises(TypeError, match="made, not verified"):
        kernel().verify([task], [b""], cities.open)
    with pytest.raises(ValueError, match="one presented value per task"):
        kernel().verify([TacTask(task.key, b"")], [], cities.open)


# --- the cache of city keys


def test_a_city_is_opened_once_and_the_oldest_goes(reference: Reference) -> None:
    cities, ours = Cities(reference), kernel(max_cities=3)
    held = _core.arena_info().used

    def ask(*addresses: int) -> None:
        tasks: list[SamTask] = [TacTask(ref(address, b"12345678"), b"") for address in addresses]
        assert ours.compute(tasks, cities.open) == [cities.expect(task) for task in tasks]

    ask(0, 1, 2, 0, 1, 2)
    assert cities.opened == [0, 1, 2]
    # More cities in one batch than are kept: those that go in its midst still compute.
    ask(3, 4, 5, 6, 3)
    assert cities.opened == [0, 1, 2, 3, 4, 5, 6, 3]
    assert ours.cities == 3
    assert _core.arena_info().used == held + 3
    ours.forget()
    assert _core.arena_info().used == held


def test_cities_are_told_apart_by_address_algorithm_region_and_purpose(
    reference: Reference,
) -> None:
    cities, ours = Cities(reference), kernel(200)
    # What was decided for one purpose or version is cached with the city, and answers for no other.
    purposes = [
        purpose(use, is_verifying=is_verifying, version=version)
        for use in (Use.INTERNAL, Use.STARTING_DAY)
        for is_verifying in (False, True)
        for version in (0, 1, 256, 0xFFFF)
    ]
    keys = [
        CardKeyRef(address, algorithm, Region(region), b"12345678", wanted)
        for address in (0, 1, 0xFFFF)
        for algorithm in (CardAlgorithm.DES, CardAlgorithm.SM4)
        for region in ("510100", "510101")
        for wanted in purposes
    ]
    opened: list[CardKeyRef] = []

    def open_city(key: CardKeyRef) -> _core.KeyHandle:
        opened.append(key)
        return cities.keys[0].handle()

    for _ in range(2):
        ours.compute([TacTask(key, b"") for key in keys], open_city)
        assert opened == keys
    assert not any(
        ours.city(0x0100, CardAlgorithm.SM4, "510100", wanted) for wanted in (*purposes, 0xFFFFFF)
    )


def test_a_refused_city_is_asked_for_again(reference: Reference) -> None:
    cities, ours = Cities(reference), kernel()
    task = TacTask(ref(99, b"12345678"), b"")
    for _ in range(2):
        (result,) = ours.compute([task], cities.open)
        assert isinstance(result, KeyNotFound)
    assert cities.opened == [99, 99]


def test_a_city_wiped_behind_the_cache_is_refused_once_and_then_opened_anew(
    reference: Reference,
) -> None:
    cities, ours = Cities(reference), kernel()
    handles: list[_core.KeyHandle] = []

    def open_city(key: CardKeyRef) -> _core.KeyHandle:
        handles.append(cities.open(key))
        return handles[-1]

    for address in (0, 1, 2):
        task = TacTask(ref(address, b"12345678"), b"")
        assert ours.compute([task], open_city) == [cities.expect(task)]
        handles[-1].free()
        (result,) = ours.compute([task], open_city)
        assert isinstance(result, KeyNotFound)
        assert ours.compute([task], open_city) == [cities.expect(task)]


# --- what is no task


def test_an_empty_batch_has_no_results(reference: Reference) -> None:
    assert kernel().compute([], Cities(reference).open) == []
    assert kernel().verify([], [], Cities(reference).open) == []


@pytest.mark.parametrize("wrong", [None, "12345678", bytearray(8), memoryview(bytes(8)), 8])
def test_a_field_that_is_not_bytes_is_a_bug(reference: Reference, wrong: Any) -> None:
    cities, key = Cities(reference), ref(0, b"12345678")
    for task in (
        TacTask(ref(0, wrong), b""),
        TacTask(key, wrong),
        MacTask(key, wrong, b""),
        CryptogramTask(key, b"1234", wrong),
        ProtectTask(key, b"1234", wrong, b"", True),
        ProtectTask(key, b"1234", bytes(4), wrong, False),
    ):
        with pytest.raises(TypeError):
            kernel().compute([task], cities.open)


def test_other_objects_are_a_bug(reference: Reference) -> None:
    class Other:
        key = ref(0, b"12345678")

    cities = Cities(reference)
    with pytest.raises(TypeError, match="Other is no task"):
        kernel().compute([Other()], cities.open)
    with pytest.raises(AttributeError):
        kernel().compute(cast("list[Other]", [None]), cities.open)
    with pytest.raises(TypeError, match="returns a KeyHandle"):
        kernel().compute([TacTask(Other.key, b"")], cast("Any", lambda _: b"key"))


def test_a_bug_in_opening_a_city_is_not_hidden() -> None:
    def open_city(_: CardKeyRef) -> _core.KeyHandle:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kernel().compute([TacTask(ref(0, b"12345678"), b"")], open_city)
