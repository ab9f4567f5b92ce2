"""Owns the comparison of a rebuilt version with the one in use: which queries, which models, and the gate's verdict."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import cast

from ..ipc.records import IndexSettings
from .gate import Verdict, judge
from .lending import Lending
from .measuring import Side, measured, with_sentences
from .task import Job, Step, Tools
from .vectors import Tunable

DEPTHS = (128, 256, 512)  # candidates that a search looks at, tried where a new graph finds too little


def compared(job: Job, tools: Tools, source: str, target: str, old_model: str) -> Generator[Step, None, Verdict]:
    """Measure both versions on the job's queries and return the verdict. `old_model` made the vectors of `source`.

    Where the new index finds too little of what exact search does, as a graph may after a version so small or so new that
    it had none, its searches are made deeper until they find enough or take too long. A server keeps no depth.
    """
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
    versions = Side(source, old), Side(target, tools.embedder)
    is_new_model = old_model != tools.embedder.name
    sides = yield from measured(*versions, queries, tools.store, tools.pace)
    verdict = judge(*sides, settings.gate, is_new_model=is_new_model)
    for depth in DEPTHS if isinstance(tools.store, Lending) else ():
        if not verdict.is_shallow:
            break
        cast(Tunable, tools.store).configure_index(target, IndexSettings(ef=depth), {})
        sides = yield from measured(*versions, queries, tools.store, tools.pace)
        verdict = judge(*sides, settings.gate, is_new_model=is_new_model)
        verdict = replace(verdict, reason=f"{verdict.reason}; with searches that look at {depth} candidates")
    return verdict
