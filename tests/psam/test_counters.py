"""No terminal transaction number is given twice, whatever ends the process and whenever."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyd.errors import StoreUnavailable
from keyd.psam import Counters, FileMemory, PsamRecord, TransientMemory
from keyd.psam.counters import NumbersSpent

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).parents[2]

# A terminal that buys for ever, in a process of its own: each number goes to standard output in one write.
BUYER: Final = """
import os, sys
from pathlib import Path
from keyd.psam import FileMemory
from tests.psam.bench import make_applet
from tests.psam.commands import purchase
applet = make_applet(memory=FileMemory(Path(sys.argv[1])))
applet.transmit(bytes.fromhex("00A4040006D15600000590"))
buy = purchase("social-security", "SM4")
while True:
    answer = applet.transmit(buy)
    assert answer.endswith(bytes.fromhex("9000")), answer.hex()
    os.write(1, answer[:4])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "psam.json"


@pytest.fixture
def memory(file: Path) -> Iterator[FileMemory]:
    made = FileMemory(file)
    yield made
    made.close()


def test_killed_between_the_two_commands_a_number_never_comes_twice(file: Path) -> None:
    seen: list[int] = []
    for round_number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", BUYER, file], cwd=REPOSITORY, stdout=subprocess.PIPE
        ) as buyer:
            assert buyer.stdout is not None
            # It buys for some milliseconds, different ones each time, and is killed wherever it is.
            first = buyer.stdout.read(4)
            killer = threading.Timer(0.002 * round_number, buyer.send_signal, [signal.SIGKILL])
            killer.start()
            rest = buyer.stdout.read()
            killer.join()
        assert buyer.returncode == -signal.SIGKILL
        numbers = first + rest
        seen += [int.from_bytes(numbers[at : at + 4], "big") for at in range(0, len(numbers), 4)]
    assert len(seen) > 12
    assert seen == sorted(set(seen))


def test_what_was_kept_is_there_again(file: Path, memory: FileMemory) -> None:
    counters = Counters(memory, 10)
    assert [counters.take_number() for _ in range(3)] == [1, 2, 3]
    assert counters.count_wrong("MAC2") == 1
    memory.close()
    again = FileMemory(file)
    try:
        counters = Counters(again, 10)
        assert counters.wrong("MAC2") == 1
        assert counters.take_number() == 11
        counters.forget_wrong("MAC2", 15)
        assert again.load() == PsamRecord(number=21)
    finally:
        again.close()


def test_the_file_is_its_owners_alone(file: Path, memory: FileMemory) -> None:
    memory.change(lambda _: PsamRecord(number=7))
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}


def test_two_processes_do_not_have_one_psam(file: Path, memory: FileMemory) -> None:
    with pytest.raises(StoreUnavailable, match="another process uses the PSAM"):
        FileMemory(file)
    memory.close()
    FileMemory(file).close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"number":-1}', b'{"number":1,"more":1}', b'{"number":4294967296}']
)
def test_a_file_that_is_no_record_is_not_taken_for_a_new_psam(
    file: Path, memory: FileMemory, content: bytes
) -> None:
    file.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="is not the record of a PSAM"):
        Counters(memory, 1)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be kept: No such file"):
        FileMemory(tmp_path / "nowhere" / "psam.json")


def test_a_full_disk_gives_nothing_and_is_over_when_it_is_over(file: Path) -> None:
    memory = FileMemory(file)
    counters = Counters(memory, 2)
    assert counters.take_number() == 1
    folder = file.with_name("psam.json.new")
    folder.mkdir()
    assert counters.take_number() == 2
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            counters.take_number()
    assert counters.next_number == 3
    folder.rmdir()
    assert counters.take_number() == 3
    memory.close()


@pytest.mark.parametrize("reserved", [1, 2, 3, 16])
def test_numbers_are_kept_before_they_are_given(reserved: int) -> None:
    memory = TransientMemory()
    counters = Counters(memory, reserved)
    for number in range(1, 40):
        assert counters.take_number() == number
        assert memory.record.number > number


def test_the_end_of_all_numbers() -> None:
    counters = Counters(TransientMemory(PsamRecord(number=0xFFFF_FFFE)), 100)
    assert counters.take_number() == 0xFFFF_FFFE
    for _ in range(2):
        with pytest.raises(NumbersSpent):
            counters.take_number()
    assert counters.next_number == 0xFFFF_FFFF


def test_a_wrong_proof_counts_though_it_cannot_be_kept(file: Path) -> None:
    memory = FileMemory(file)
    counters = Counters(memory, 2)
    folder = file.with_name("psam.json.new")
    folder.mkdir()
    for count in range(1, 4):
        with pytest.raises(StoreUnavailable):
            counters.count_wrong("MAC2")
        assert counters.wrong("MAC2") == count
    folder.rmdir()
    assert counters.count_wrong("MAC2") == 4
    assert memory.load().wrong == {"MAC2": 4}
    memory.close()


def test_a_disk_that_is_full_in_the_middle_of_a_record_leaves_the_one_before(file: Path) -> None:
    # As many bytes as this process may write to a file: the record after it is cut.
    script = """
import resource, signal, sys
from pathlib import Path
from keyd.errors import StoreUnavailable
from keyd.psam import Counters, FileMemory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
memory = FileMemory(Path(sys.argv[1]))
counters = Counters(memory, 5)
counters.take_number()
resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
try:
    counters.count_wrong("MAC2")
except StoreUnavailable:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, file],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused\n"
    memory = FileMemory(file)
    assert memory.load() == PsamRecord(number=6)
    memory.close()


def test_two_that_have_one_record_give_no_number_twice_and_count_together() -> None:
    memory = TransientMemory()
    one, other = Counters(memory, 3), Counters(memory, 3)
    given = [psam.take_number() for _ in range(10) for psam in (one, other)]
    assert len(set(given)) == 20
    assert one.count_wrong("MAC2") == 1
    assert other.count_wrong("MAC2") == 2
    assert one.count_wrong("MAC2") == 3
    # Nobody has told the other yet; a right proof there begins anew all the same.
    assert other.wrong("MAC2") == 2
    other.forget_wrong("MAC2", 15)
    assert memory.record.wrong == {}


def test_what_is_locked_elsewhere_is_not_unlocked_here() -> None:
    """One keyd has counted a few wrong proofs, another all that there may be: a right one at the first is too late."""
    memory = TransientMemory()
    one, other = Counters(memory, 1), Counters(memory, 1)
    one.count_wrong("MAC2")
    for _ in range(14):
        other.count_wrong("MAC2")
    one.forget_wrong("MAC2", 15)
    assert one.wrong("MAC2") == memory.record.wrong["MAC2"] == 15


def test_many_threads_share_one_psams_counters(memory: FileMemory) -> None:
    counters = Counters(memory, 5)
    given: list[int] = []

    def buy() -> None:
        # One list at a time: appending is atomic, and the test must see what each thread got.
        given.extend([counters.take_number() for _ in range(60)])
        counters.count_wrong("MAC2")

    threads = [threading.Thread(target=buy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 481))
    assert memory.load() == PsamRecord(number=481, wrong={"MAC2": 8})
