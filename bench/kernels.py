"""The kernels suite: keyd's cryptography on one core beside OpenSSL, libgcrypt, Botan and `cryptography`.

Repetitions are the outermost loop, and a ratio is always taken between neighbours in time, as in the server suite.
Times are CPU times of the one thread, so that a stranger on the core changes little.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.progress import Progress

from bench.card_requests import BATCH, CardRequests
from bench.cpus import choose_cpus, on_cpu
from bench.errors import BenchError
from bench.findings import Finding, Findings, Sample, Target, add_out, finish
from bench.kernel_library import KernelLibrary
from bench.tables import console_for_tables
from keyd.crypto.native import _core

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

HELP: Final = (
    "SM4 and card operations on one core, beside OpenSSL, libgcrypt, Botan and cryptography"
)

NAME: Final = "kernels"

EACH: Final = "key schedule + block, another key each"
BULK: Final = "one key, ECB, 64 KiB, a block"
REQUEST: Final = "whole request in C, batches of 64"
PYTHON: Final = "internal authentication from Python, batches of 64"
CARDS: Final = "a card's key under its city's"

EVP: Final = "OpenSSL EVP"
BENEATH: Final = "OpenSSL beneath EVP"
CRYPTOGRAPHY: Final = "cryptography"

# Cards in the country, and how long one core may take for a key of each.
ALL_CARDS: Final = 1_370_000_000
ALL_CARDS_SECONDS: Final = 15.0

_TARGETS_BY_PATH: Final = {"gfni512": 35.0, "aesni": 9.0, "portable": 2.5}

_OTHERS_WITH_BULK: Final = {
    "libgcrypt": "libgcrypt20",
    "Botan": "libbotan-2-19",
}


class Contestant(NamedTuple):
    """Somebody at a task; `run` computes so many rounds of `units` and returns CPU seconds."""

    what: str
    who: str
    units: int
    rounds: int
    run: Callable[[int], float]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument(
        "--seconds", type=float, default=0.1, help="CPU time of each measurement (default 0.1)"
    )
    parser.add_argument("--repetitions", type=int, default=9, help="of all of them (default 9)")
    parser.add_argument(
        "--cards",
        type=int,
        default=20_000_000,
        help="card keys in the slice of the country's (default 20 million)",
    )
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    cpus = choose_cpus()
    where = "not pinned" if cpus.server is None else f"on CPU {cpus.server}"
    findings = Findings.begin(
        NAME,
        f"{options.repetitions} interleaved repetitions of {options.seconds:g} s of CPU time; "
        f"one thread, {where}",
    )
    console = console_for_tables()
    with on_cpu(cpus.server), Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling and warming up", total=options.repetitions)
        library = KernelLibrary()
        measure_all(
            findings,
            library,
            options.seconds,
            options.repetitions,
            options.cards,
            lambda repetition: progress.update(task, completed=repetition, description="measuring"),
        )
    finish(findings, options.out)


def measure_all(
    findings: Findings,
    library: KernelLibrary,
    seconds: float,
    repetitions: int,
    cards: int,
    show: Callable[[int], None],
) -> None:
    """Fill the findings in: every contestant once in each repetition, in turn."""
    paths = library.paths()
    contestants = list(_contestants(library, paths, seconds, cards))
    for repetition in range(1, repetitions + 1):
        show(repetition)
        for contestant in contestants:
            took = contestant.run(contestant.rounds)
            each = took / (contestant.rounds * contestant.units) * 1e9
            findings.samples.append(Sample(contestant.what, contestant.who, "ns", repetition, each))
    _judge(findings, paths)
    _note(findings, library, paths, cards)


def _contestants(
    library: KernelLibrary, paths: list[str], seconds: float, cards: int
) -> Iterator[Contestant]:
    has_beneath = library.has_static_openssl
    agree = _Agreement()

    def native(what: str, who: str, name: str, path: str = paths[0]) -> Contestant:
        def run(rounds: int) -> float:
            library.select(path)
            took, fingerprint = library.run(name, rounds)
            agree.check(what, who, fingerprint)
            return took

        library.select(path)
        return Contestant(what, who, library.units(name), library.rounds_for(name, seconds), run)

    for path in paths:
        yield native(EACH, _keyd(path), "each keyd", path)
    yield native(EACH, EVP, "each EVP")
    if has_beneath:
        yield native(EACH, BENEATH, "each beneath EVP")
    yield native(BULK, _keyd(paths[0]), "bulk keyd")
    yield native(BULK, EVP, "bulk EVP")
    for other in _OTHERS_WITH_BULK:
        if library.version(other):
            yield native(BULK, other, f"bulk {other}")
    yield native(REQUEST, _keyd(paths[0]), "request keyd")
    yield native(REQUEST, EVP, "request EVP")
    if has_beneath:
        yield native(REQUEST, BENEATH, "request beneath EVP")
    requests = CardRequests()
    yield _from_python(PYTHON, _keyd(_core.path_name()), requests.by_keyd, seconds)
    yield _from_python(PYTHON, CRYPTOGRAPHY, requests.by_cryptography, seconds)
    units = library.units("cards keyd")

    def diversify(rounds: int) -> float:
        library.select(paths[0])
        # No agreement to check: each run goes on with the cards where the last one ended.
        return library.run("cards keyd", rounds)[0]

    yield Contestant(CARDS, _keyd(paths[0]), units, max(1, cards // units), diversify)


class _Agreement:
    """All who answer the same task must give the same answers."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int]] = {}

    def check(self, what: str, who: str, fingerprint: int) -> None:
        other, expected = self._first.setdefault(what, (who, fingerprint))
        if fingerprint != expected:
            raise BenchError(f"{who} and {other} compute different answers: {what}")


def _from_python(what: str, who: str, answer: Callable[[], object], seconds: float) -> Contestant:
    def run(rounds: int) -> float:
        started = time.thread_time()
        for _ in range(rounds):
            answer()
        return time.thread_time() - started

    rounds = 1
    while (took := run(rounds)) < seconds / 4:
        rounds *= 2
    return Contestant(what, who, BATCH, max(1, round(rounds * seconds / took)), run)


def _judge(findings: Findings, paths: list[str]) -> None:
    best = _keyd(paths[0])
    openssl = [who for who in (EVP, BENEATH) if findings.values(EACH, who)]
    for path in paths:
        wanted = _TARGETS_BY_PATH.get(path)
        for other in openssl:
            _compare(findings, EACH, _keyd(path), [other], wanted)
    _compare(findings, BULK, best, [EVP], 20.0)
    libraries = [who for who in _OTHERS_WITH_BULK if findings.values(BULK, who)]
    if libraries:
        _compare(findings, BULK, best, libraries, 12.0)
    for other in openssl:
        _compare(findings, REQUEST, best, [other], 15.0)
    _compare(findings, PYTHON, _keyd(_core.path_name()), [CRYPTOGRAPHY], 25.0)
    whole = [nanoseconds * ALL_CARDS / 1e9 for nanoseconds in findings.values(CARDS, best)]
    findings.findings.append(
        Finding(
            "1.37 thousand million card keys, extrapolated", " s", whole, Target(ALL_CARDS_SECONDS)
        )
    )


def _compare(
    findings: Findings, what: str, who: str, others: list[str], wanted: float | None
) -> None:
    ours = findings.values(what, who)
    theirs = [
        min(values)
        for values in zip(*(findings.values(what, other) for other in others), strict=True)
    ]
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    against = others[0] if len(others) == 1 else f"the best of {' and '.join(others)}"
    target = Target(wanted, is_at_least=True) if wanted is not None else None
    findings.findings.append(Finding(f"{what}: {who} against {against}", "×", ratios, target))


def _note(findings: Findings, library: KernelLibrary, paths: list[str], cards: int) -> None:
    notes = findings.notes
    notes.append(
        f"OpenSSL is the system's libcrypto.so.3, {library.version('EVP')}. {EVP}: one context of SM4-ECB, given "
        "every key with EVP_EncryptInit_ex2 and every block with EVP_EncryptUpdate, one by one; for one key, a single "
        "EVP_EncryptUpdate of 64 KiB; for a whole request, a context that keeps the city's key and one that is "
        "given the other two."
    )
    if library.has_static_openssl:
        notes.append(
            f"{BENEATH}: ossl_sm4_set_key and ossl_sm4_encrypt from the libcrypto.a of the same package. Programs "
            "cannot call them through the shared library; they are OpenSSL's arithmetic and nothing else."
        )
    else:
        notes.append(f"Without {BENEATH}: apt install libssl-dev for libcrypto.a.")
    for other, package in _OTHERS_WITH_BULK.items():
        version = library.version(other)
        notes.append(
            f"{version if version.startswith(other) else f'{other} {version}'}: key set once, one call for 64 KiB."
            if version
            else f"Without {other}: apt install {package} to see it beside keyd."
        )
    notes.extend(
        (
            f"keyd's paths here: {', '.join(paths)}; where none is named otherwise, {paths[0]}. The ring chose "
            f"{_core.path_name()} for itself (KEYD_SM4 changes that). Keys and blocks of '{EACH}' are 1024, all in "
            "the cache.",
            "A whole request is: diversify the card's key under the city's, derive the session key, make the "
            "cryptogram. keyd checks lengths and handles and computes in locked memory, wiped after each batch; the "
            "others do none of that. As an anchor, measured elsewhere: Intel's crypto_mb took 79 ns where OpenSSL "
            "beneath EVP took 640, a ratio of 8.1.",
            f"{CRYPTOGRAPHY}: three Cipher objects for each request, with the OpenSSL of its own wheel.",
            f"The card keys are a slice of {cards:,} in each repetition, f ‖ ~f under one city's schedule; the time "
            "for all is this slice's, multiplied. Cities change once in a million cards, which costs nothing. Keys "
            "are made and left in a buffer, not wrapped or stored.",
        )
    )


def _keyd(path: str) -> str:
    return f"keyd {path}"
