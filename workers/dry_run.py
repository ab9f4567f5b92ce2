"""Owns what a task says it would do, without doing it: for `dry_run` of its parameters. Embeds and publishes nothing."""

from __future__ import annotations

from ..ipc.records import TaskProgress
from .in_place import to_embed
from .reindexing import planned
from .survey import Plan
from .task import Job, Outcome, Step, Steps, TaskFunction, Tools
from .texts import sort


def or_dry(task: TaskFunction, would: TaskFunction) -> TaskFunction:
    """Return `task`, or `would` in its place for a job whose parameters say so."""

    def run(job: Job, tools: Tools) -> Steps:
        return (would if job.params.get("dry_run") else task)(job, tools)

    return run


def would_embed(job: Job, tools: Tools) -> Steps:
    """Count the points that a re-index would embed, by their stamps. Raises what it would raise."""
    info = tools.store.info(job.collection)
    plan = Plan.IN_PLACE if not info.points else (yield from planned(job, tools, info)).plan
    is_all = plan is Plan.SHADOW or bool(job.params.get("force_rebuild"))
    seen = without_text = stale = 0
    after = None
    while True:
        tools.pace()
        points, after = tools.store.scroll(
            job.collection,
            after=after,
            limit=tools.settings.scroll_size,
            only_unstamped=bool(job.params.get("only_new")),
        )
        page = sort(points, tools.settings.model.text_field, tools.maker, is_rebuild=is_all)
        without_text += len(page.bare)
        stale += len(page.texts) if is_all else len(to_embed(page.stale, is_adopting=plan is Plan.ADOPT))
        seen += len(points)
        yield Step(TaskProgress(done=seen, total=max(info.points, seen), note="looking for what changed"))
        if after is None:
            break
    return Outcome(
        result={
            "success": True,
            "dry_run": True,
            "collection_name": job.collection,
            "how": plan.value,
            "documents_processed": seen,
            "documents_to_embed": stale,
            "documents_unchanged": seen - stale - without_text,
            "documents_without_text": without_text,
        }
    )


def would_compute(job: Job, tools: Tools) -> Steps:
    """List the queries that a rerank or warm task would compute, and count the cached ones it would check."""
    tools.store.info(job.collection)  # a collection that does not exist is the same error
    queries = [query.text for query in job.queries]
    yield Step(TaskProgress(done=len(queries), total=len(queries), note="listing queries"))
    return Outcome(
        result={
            "success": True,
            "dry_run": True,
            "collection_name": job.collection,
            "queries_to_compute": queries,
            "queries_to_check": len(job.cached),
        }
    )
