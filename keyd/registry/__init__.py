"""The registry: which terminals there are, what each may prove itself with, and where in its life it is. Middle floor.

One idea per module: the terminal as it is kept (`terminal`), its life (`lifecycle`), lists of them as CSV (`listing`),
one-time enrolment codes (`enrolment`). Nothing here reads files, looks at a clock or draws randomness. Whoever proves
on a connection to be one of them is `keyd.terminals`' to say; how they are kept is `keyd.custody`'s.
"""
