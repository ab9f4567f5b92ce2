"""Owns progress on stderr: one line rewritten on a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from .render import bar


class Progress:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._shown = ""

    def show(self, done: int, total: int, note: str, eta_s: float | None = None) -> None:
        line = bar(done, total, note, eta_s)
        if self._is_terminal:
            self._stream.write("\r\x1b[K" + line)
        else:
            tenth = f"{10 * done // total if total else 0} {note}"
            if tenth == self._shown:
                return
            self._shown = tenth
            self._stream.write(line + "\n")
        self._stream.flush()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self.clear()
        self._stream.write(line + "\n")
        self._stream.flush()

    def clear(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
