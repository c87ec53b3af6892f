"""The journal: every use of a key and every act of custody, on file before it is answered.

    records.py      the bytes: headers, frames, use records, events, definitions; no I/O
    journal.py      the one writer: appends, rotates, recovers, says when it cannot
    names.py        the numbers that names get, and which of them are still to be defined
    folder.py       the folder: its lock, the reserve, what is set aside
    reopening.py    where a journal goes on after a stop or a crash
    segment.py      one segment file that is open
    unsynced.py     the segments that wait for a sync
    verify.py       is a journal what was written? Offline, without a key
    query.py        a journal's records by name, filtered
    checkpoints.py  signed heads in a second place, so that truncation shows

No function here takes a message of the protocol. What comes in is numbers, a card identifier and fields that
their caller chose one by one, so that a secret would have to be put into the journal on purpose.
"""
