"""Owns how another Python process of this package is started: it finds the package where this process found it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = __package__.rpartition(".")[0]


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` of this package ("" for the package itself)."""
    return [sys.executable, "-m", f"{PACKAGE}.{module}" if module else PACKAGE, *arguments]


def environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `overrides`, and the package on the path, installed or not."""
    root = str(Path(sys.modules[PACKAGE].__path__[0]).absolute().parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, **overrides}
