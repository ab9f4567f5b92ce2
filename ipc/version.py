"""Owns the version of this package, for every process of it. The same as pyproject.toml's."""

VERSION = "0.1.0"
