"""`python -m bench.journal`: what a frame costs to append, and how fast a journal is verified, on one core.

Single runs on whatever the machine does otherwise: figures to look at, none to assert.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from keyd.audit.journal import Journal
from keyd.audit.records import Use, encode_use
from keyd.audit.verify import verify

# Uses per frame, and frames: one request, a busy tick, the largest honest tick.
_POINTS: Final = ((1, 200_000), (64, 10_000), (1024, 600))
_REPEATS: Final = 5


def main() -> None:
    """Print a table."""
    print("uses/frame  append µs/frame  append ns/use  verify records/s of CPU")
    for uses, frames in _POINTS:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "journal"
            journal = Journal(folder, "bench", clock_ns=time.time_ns)
            method = journal.number_of("method", "card.internal_authenticate")
            content = encode_use(Use(method, 0, 1, 0, 0, bytes(16))) * uses
            best = float("inf")
            for _ in range(_REPEATS):
                start = time.perf_counter()
                for _ in range(frames // _REPEATS):
                    journal.append(content)
                best = min(best, (time.perf_counter() - start) / (frames // _REPEATS))
            head = journal.head()
            journal.close()
            start = time.process_time()
            report = verify(folder, expected=[head.anchor])
            rate = report.records / (time.process_time() - start)
            if not report.is_good:
                raise SystemExit(str(report.bad))
        print(f"{uses:10}  {best * 1e6:15.2f}  {best * 1e9 / uses:13.0f}  {rate:23,.0f}")


if __name__ == "__main__":
    main()
