"""The one way a benchmark fails: with a sentence, instead of with a number that means nothing."""

from __future__ import annotations


class BenchError(Exception):
    """The benchmark cannot go on; the sentence says why."""
