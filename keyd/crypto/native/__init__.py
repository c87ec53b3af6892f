"""The native layer: SM4 for many keys at once, DES, card arithmetic in batches, and locked key memory.

The arithmetic is C, in the files beside this one; `_core` is what Python sees of it. Key bytes go in and do not
come out: Python holds `KeyHandle`s. Nothing here knows addresses, profiles, policy or the wire.
"""
