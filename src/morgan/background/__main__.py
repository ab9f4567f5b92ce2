"""Owns the entry of the command line: `morgan-background` and `python -m morgan.background`."""

from __future__ import annotations

from .cli.parser import main

if __name__ == "__main__":
    raise SystemExit(main())
