"""The journal: every use of a key and every act of custody, on file before it is answered.

    records.py      the bytes: headers, frames, use records, events, definitions; no I/O
    journal.py      the one writer: appends, rotates, recovers, says when it cannot
    verify.py       is a journal what was written? Offline, without a key
    query.py        a journal's records by name, filtered
    checkpoints.py  signed heads in a second place, so that truncation shows

No function here takes a message of the protocol. What comes in is numbers, a card identifier and fields that
their caller chose one by one, so that a secret would have to be put into the journal on purpose.
"""
