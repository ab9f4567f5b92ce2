"""Owns the list of benchmarks: one module each, with NAME, SUMMARY and run(options) -> Result."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol, cast

from ..report import Options, Result


class Case(Protocol):
    NAME: str
    SUMMARY: str

    def run(self, options: Options) -> Result: ...


def load() -> Mapping[str, Case]:
    """Return all benchmarks by name. Importing one imports nothing that may be missing."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {case.NAME: case for case in (cast(Case, module) for module in modules)}
