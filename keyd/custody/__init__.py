"""Custody: how keys enter, change and leave, who decides it, and what keeps them meanwhile.

    officers.py     who decides: enrolled people and their signatures
    actions.py      what can be decided, as data
    proposals.py    dual control: one proposes, another approves
    carrying_out.py what an approved action comes to: new_keys.py of keys that come in, journeys.py of keys that travel
                    between custodies, appointing.py of officers, enrolling.py of terminals, psams.py of PSAMs that
                    keyd plays
    lifecycle.py    the states of a key
    ceremony.py     components, in locked memory
    transport.py    keys under key-transport keys
    seal.py         shares, keepers, wrapping keys; rekeying.py makes a new seal, founding.py the first
    bodies.py       what is in the store's rows, and how they are sealed; contents.py opens them
    ceilings.py     use counts in leases; psam_memory.py the counters of a PSAM that keyd plays
    housekeeping.py what nobody decides but time
    holding.py      what one keyd holds of the store, turn by turn and commit by commit
    vault.py        all of it together: one keyd's custody

Nothing here knows trio, sockets or the wire; the store is below it, the ring and the handlers above.
"""
