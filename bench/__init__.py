"""Benchmarks: what keyd costs, measured beside something that everybody knows, in the same run.

`python -m bench` from the root of the repository; `bench/README.md` says how to read what it prints. Nothing
here is imported by keyd.
"""
