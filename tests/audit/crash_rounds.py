"""Run by test_crash.py in a process of its own: children append and are killed, and what they said must hold.

A child writes to a pipe what was acknowledged: the position and the journal's link. It is killed at a random
moment; then the journal must open, verify and go through everything that was acknowledged.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Final

from keyd.audit.journal import Journal
from keyd.audit.records import Anchor, Use, encode_use
from keyd.audit.verify import verify

ACKNOWLEDGED: Final = struct.Struct(">Q32s")


def write_until_killed(folder: Path, pipe: int, *, syncs: bool) -> None:
    journal = Journal(
        folder, "keyd-1", clock_ns=time.time_ns, segment_bytes=6_000, retain_segments=40
    )
    if syncs:

        def sync() -> None:
            while True:
                journal.sync()

        threading.Thread(target=sync, daemon=True).start()
    count = 0
    while True:
        count += 1
        number = journal.number_of("terminal", f"T-{count % 50}")
        use = encode_use(Use(0, 0, 1, number, 0, bytes(16)))
        position = journal.append(use * (count % 40), [{"event": "x"}] if count % 7 == 0 else [])
        os.write(pipe, ACKNOWLEDGED.pack(position, journal.head().link))


def one_round(folder: Path, chance: random.Random) -> int:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            write_until_killed(folder, writing, syncs=chance.random() < 0.3)
        finally:
            os._exit(3)  # it never ends by itself
    os.close(writing)
    time.sleep(chance.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    said = b""
    while piece := os.read(reading, 1 << 16):
        said += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
    whole = len(said) - len(said) % ACKNOWLEDGED.size
    anchors = [Anchor(*fields) for fields in ACKNOWLEDGED.iter_unpack(said[:whole])]
    if (folder / "reserve").exists():
        report = verify(folder, expected=anchors)
        assert report.is_good, report.bad
    journal = Journal(folder, "keyd-1", clock_ns=time.time_ns)
    journal.append(bytes(32))
    report = verify(folder, expected=[*anchors, journal.head().anchor])
    assert report.is_good, report.bad
    assert report.torn is None
    journal.close()
    return len(anchors)


def main() -> None:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)  # noqa: S311 - when to kill
    counts = [one_round(folder, chance) for _ in range(rounds)]
    print(rounds, sum(counts), sum(count > 0 for count in counts))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
