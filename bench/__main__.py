"""`python -m bench [SUITE] [options]`: choose a suite and run it. Without a suite, all of them run."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from bench import kernels, limits, lines, policy, psam, server, timing, tls
from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Each suite adds its options to a parser and runs from what was parsed.
SUITES: Final = {
    "kernels": kernels,
    "timing": timing,
    "server": server,
    "limits": limits,
    "tls": tls,
    "lines": lines,
    "policy": policy,
    "psam": psam,
}


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    suites = parser.add_subparsers(title="suites", required=True)
    for name, suite in SUITES.items():
        options = suites.add_parser(name, help=suite.HELP, description=suite.HELP)
        suite.add_options(options)
        options.set_defaults(run=suite.run)
    chosen = [list(arguments)] if arguments else [[name] for name in SUITES]
    try:
        for words in chosen:
            parsed = parser.parse_args(words)
            run: Callable[[argparse.Namespace], None] = parsed.run
            run(parsed)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
