"""Benchmarks: `python -m bench list`. What each measures is in docs/benchmarks.md; nothing here is installed with the package."""
