"""Build the native layer. Everything else about the package stands in pyproject.toml.

Each C file is compiled with flags of its own, because the SM4 paths use instructions that the rest must not: the
path is chosen when the process starts, and whatever runs on an older machine has to run there.

`KEYD_SANITIZE=address,undefined` in the environment builds with sanitizers, for tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A build backend does not look beside setup.py by itself.
sys.path.insert(0, str(Path(__file__).parent))

from build_native import COMPILE, HARDENING, sources

NATIVE: Final = "keyd/crypto/native"

SANITIZE: Final = os.environ.get("KEYD_SANITIZE", "")

# With sanitizers, the lanes' long functions take minutes at -O3, and again at a full -g, which Python's own flags ask
# for. A report needs no more than -g1: the line and the function.
SANITIZERS: Final = [
    "-O1",
    "-g1",
    f"-fsanitize={SANITIZE}",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]

FLAGS: Final = [*COMPILE, *(SANITIZERS if SANITIZE else HARDENING)]
LINK: Final = [
    "-Wl,-z,relro,-z,now,-z,noexecstack",
    *(SANITIZERS if SANITIZE else []),
]
# The generated code is not ours to tidy.
WARN: Final = ["-Wall", "-Wextra"]

NO_COMPILER: Final = (
    "keyd's cryptography is built from C: it needs a C compiler and Python's headers "
    "(on Debian: apt install gcc libc6-dev python3-dev)."
)


class BuildNative(build_ext):
    """Compile each C file with its own flags, then the module with all of them."""

    def build_extension(self, ext: Extension) -> None:
        """Build the extension.

        Raises:
            SystemExit: there is no compiler, or there are no headers of Python.
        """
        compiler = self.compiler.compiler_so[0]
        headers = Path(sysconfig.get_path("include"), "Python.h")
        if shutil.which(compiler) is None or not headers.exists():
            raise SystemExit(NO_COMPILER)
        objects = list(ext.extra_objects)
        c_files = sources(Path(NATIVE).glob("*.c")) if ext.name == core.name else {}
        for file, own_flags in c_files.items():
            objects += self.compiler.compile(
                [file.as_posix()],
                output_dir=self.build_temp,
                include_dirs=[NATIVE],
                depends=ext.depends,
                extra_postargs=[*FLAGS, *WARN, *own_flags],
            )
        ext.extra_objects = objects
        super().build_extension(ext)


core = Extension(
    "keyd.crypto.native._core",
    [f"{NATIVE}/_core.pyx"],
    include_dirs=[NATIVE],
    # A change in any of them builds everything anew.
    depends=[
        "build_native.py",
        "setup.py",
        *sorted(file.as_posix() for file in Path(NATIVE).glob("*.[ch]")),
    ],
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
)

pump = Extension(
    "keyd.pump._pump",
    ["keyd/pump/_pump.pyx", "keyd/pump/pump.c", "keyd/pump/seen.c"],
    include_dirs=["keyd/pump", NATIVE],
    depends=[
        "setup.py",
        "keyd/pump/pump.h",
        "keyd/pump/seen.h",
        f"{NATIVE}/card.h",
        f"{NATIVE}/arena.h",
    ],
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
)

setup(
    # The generated C file belongs to the build, not to the sources.
    ext_modules=cythonize([core, pump], build_dir="build"),
    cmdclass={"build_ext": BuildNative},
)
