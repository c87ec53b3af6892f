"""Say how the C files of keyd/crypto/native are compiled.

setup.py builds with these flags, and the tests build with the same ones. This module knows nothing of setuptools, so
that either can import it.
"""

from __future__ import annotations

from typing import Final

# Instructions that a file may use, for files that need any. The code in such a file runs only after sm4_paths.c has
# found that the machine has them. All are for x86-64: on other machines these files are not compiled.
ISA_FLAGS: Final[dict[str, list[str]]] = {
    "sm4_gfni512.c": ["-mgfni", "-mavx512f", "-mavx512bw", "-mavx512vl"],
    "sm4_gfni256.c": ["-mgfni", "-mavx2"],
    "sm4_aesni.c": ["-maes", "-mssse3", "-msse4.1"],
}
