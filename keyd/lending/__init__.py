"""PSAMs that are lent: the pool's members wherever they are, and who has which of them for how long.

A member is a PSAM that keyd plays, one in a reader, or one in a rack at the other end of a line. `Lender` brings them
together: whoever opens a PSAM gets a member for as long as it is open, and turns on it; what is begun on one member is
ended there or not at all. The rules are in `keyd.psam`, without I/O; here is what waits.
"""
