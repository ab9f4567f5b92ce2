"""Owns the comparison of a rebuilt version with the one in use: which queries, which models, and the gate's verdict."""

from __future__ import annotations

from collections.abc import Generator

from .gate import Verdict, judge
from .measuring import Side, measured, with_sentences
from .task import Job, Step, Tools


def compared(job: Job, tools: Tools, source: str, target: str, old_model: str) -> Generator[Step, None, Verdict]:
    """Measure both versions on the job's queries and return the verdict. `old_model` made the vectors of `source`."""
    settings = tools.settings
    old = tools.named(old_model)
    if old is None:
        return Verdict(
            False,
            f"the model {old_model!r}, which made the vectors in use, cannot be loaded any more: without it nothing says"
            " that the new ones are no worse. Swap without comparison with without_gate",
            {},
        )
    queries = with_sentences(job.queries, settings.gate.queries, tools.store, source, settings.model.text_field)
    sides = yield from measured(Side(source, old), Side(target, tools.embedder), queries, tools.store, tools.pace)
    return judge(*sides, settings.gate, is_new_model=old_model != tools.embedder.name)
