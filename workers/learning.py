"""Owns the learn task: train a reranker of one collection on its judgments, and use it where it is shown to be better.

judged queries ─▶ candidates ─▶ fit: train a cross-encoder ─▶ choose: weights ─▶ held out: compare ─▶ use it, or not
                                 └ state on disk, to go on from ┘
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import msgspec

from ..ipc.records import TaskProgress
from .cases import Case, Part, gathered, judged, part_of
from .changes import anything, names_of
from .fingerprint import fingerprint
from .fusion import Matrix, fit_weights
from .in_place import eta_s
from .learned_reranker import CROSS_WEIGHTS, DEFAULT_WEIGHTS, VIEWS, LearnedReranker, Views, late_of
from .quality import paired_bootstrap
from .reranker import CrossEncoderReranker
from .shelf import Learned, Shelf
from .sizes import check_size
from .task import Job, Outcome, Step, Steps, Tools
from .trainable import CrossEncoderModel
from .training import Plan, Training

K = 10
SAVE_STEPS = 20  # optimizer steps between two states on disk: a minute or two of CPU time that a killed worker loses
LEAST_CROSS = 0.05  # weight of the cross-encoder: below it, it changes no order and costs most of the time
CASES_PER_STEP = 4  # queries compared between two steps, some seconds each


class Checkpoint(msgspec.Struct):
    """What is known when an attempt ends early. The state of the training itself is a file, see training.py."""

    is_trained: bool = False  # the model is whole on disk
    weights: tuple[float, ...] = ()  # of the views; () until they are chosen
    compared: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)  # by a query's fingerprint: nDCG@10
    elapsed_s: float = 0.0


@dataclass(slots=True)
class _Attempt:
    """One attempt at a job: what it works with, and where it stands."""

    job: Job
    tools: Tools
    shelf: Shelf
    making: Path
    at: Checkpoint
    began_at: float

    def step(self, done: int, total: int, note: str, eta: float | None = None) -> Step:
        now = self.tools.clock()
        self.at.elapsed_s += now - self.began_at
        self.began_at = now
        return Step(TaskProgress(done=done, total=total, note=note, eta_s=eta), msgspec.to_builtins(self.at))

    @property
    def model_folder(self) -> Path:
        return self.making / "model"


def learn(job: Job, tools: Tools) -> Steps:
    """Learn a reranker of `job.collection` from the judgments in `job.queries`. Params: undo uses the one before instead.

    Raises ModelUnavailable where the model that it begins with cannot be trained, and InvalidArgument for an undo of
    nothing.
    """
    settings = tools.settings.learning
    info = tools.store.info(job.collection)
    if not settings.folder:
        return _skipped(job, tools, "no folder to keep a reranker in: this service has no state directory")
    shelf = Shelf(Path(settings.folder), job.collection)
    if job.params.get("undo"):
        return (yield from _undo(job, tools, shelf))
    queries = judged(job.queries)
    counts = {part: sum(part_of(one.text) is part for one in queries) for part in Part}
    if len(queries) < settings.min_judged or not all(counts.values()):
        return _skipped(
            job,
            tools,
            f"{len(queries)} queries have a relevant document, {settings.min_judged} are needed: record_feedback tells"
            " which documents of a result are relevant (docs/usage.md); learning.min_judged is how many",
        )
    embedder = tools.searching(job.collection)
    check_size(info, embedder)
    cases = yield from gathered(
        queries,
        job.collection,
        tools.store,
        embedder,
        field=tools.settings.model.text_field,
        candidates=tools.settings.rerank.candidates,
        pace=tools.pace,
    )
    parts = {part: [case for case in cases if part_of(case.query.text) is part] for part in Part}
    if not all(parts.values()):
        return _skipped(job, tools, "searches for the judged queries find nothing")
    at = msgspec.convert(job.checkpoint or {}, Checkpoint)
    attempt = _Attempt(job, tools, shelf, shelf.begin(job.task_id), at, tools.clock())
    plan = Plan(epochs=settings.epochs)
    steps = yield from _train(attempt, parts[Part.FIT], plan)
    cross = _cross_encoder(attempt) if at.is_trained else None
    views = Views(late_of(tools.reranker, embedder), cross, plan.max_words)
    yield from _choose(attempt, parts, views)
    if not _counts(at):
        views = Views(late_of(tools.reranker, embedder), None, plan.max_words)
    pairs = yield from _compare(attempt, parts[Part.HELD_OUT], views)
    return (yield from _decide(attempt, parts, plan, steps, pairs))


def _skipped(job: Job, tools: Tools, reason: str) -> Outcome:
    name = tools.reranking(job.collection).name
    result = {
        "success": True,
        "collection_name": job.collection,
        "reason": reason,
        "adopted": False,
        "reranker": name,
    }
    return Outcome(result=result, is_skipped=True)


def _train(attempt: _Attempt, cases: Sequence[Case], plan: Plan) -> Generator[Step, None, int]:
    """Train a cross-encoder, from where an earlier attempt left it; return of how many steps. 0 where judgments are few."""
    tools, settings = attempt.tools, attempt.tools.settings
    examples = [one for case in cases for one in case.examples(plan.max_words)]
    if len(examples) < settings.learning.train_from:
        return 0
    state = attempt.making / "state.pt"
    if attempt.at.is_trained and attempt.model_folder.is_dir():
        return plan.steps(len(examples))
    base = settings.rerank.cross_encoder or tools.searching(attempt.job.collection).name
    training = Training(CrossEncoderModel(base, plan.seed), examples, plan)
    training.restore(state)
    first, began_at, saved = training.step, tools.clock(), training.step
    try:
        for at in training.run(tools.pace):
            if at.step - saved >= SAVE_STEPS:
                training.save(state)
                saved = at.step
            eta = eta_s(tools.clock() - began_at, at.step - first, at.steps - at.step)
            yield attempt.step(at.step, at.steps, f"training, loss {at.loss:.3f}", eta)
    except BaseException:  # told to stop, here or within a step: what was done until the last step is kept
        training.save(state)
        raise
    shutil.rmtree(attempt.model_folder, ignore_errors=True)
    made = attempt.making / "model.new"
    shutil.rmtree(made, ignore_errors=True)
    training.model.write(made, plan.max_tokens)
    made.replace(attempt.model_folder)
    state.unlink(missing_ok=True)
    attempt.at.is_trained = True
    yield attempt.step(training.steps, training.steps, "trained")
    return training.steps


def _cross_encoder(attempt: _Attempt) -> CrossEncoderReranker:
    model = attempt.tools.settings.model
    return CrossEncoderReranker(str(attempt.model_folder), model.device)


def _choose(attempt: _Attempt, parts: Mapping[Part, Sequence[Case]], views: Views) -> Generator[Step, None, None]:
    """Fit the weights of the views on queries that the model was not trained on."""
    if attempt.at.weights:
        return
    cases = parts[Part.CHOOSE]
    columns: list[Matrix] = []
    for case in cases:
        columns.append(views.columns(case.query.text, case.texts, case.dense, attempt.tools.pace))
        if len(columns) % CASES_PER_STEP == 0:
            yield attempt.step(len(columns), len(cases), "weighing what each view of a candidate says")
    attempt.at.weights = fit_weights(
        columns, [case.relevant for case in cases], CROSS_WEIGHTS if attempt.at.is_trained else DEFAULT_WEIGHTS
    )
    yield attempt.step(len(cases), len(cases), "weighing what each view of a candidate says")


def _compare(
    attempt: _Attempt, cases: Sequence[Case], views: Views
) -> Generator[Step, None, list[tuple[float, float]]]:
    """Return nDCG@10 of each query with what is in use, and with the new one. Nothing was fitted to these queries."""
    at, tools = attempt.at, attempt.tools
    now = tools.reranking(attempt.job.collection)
    new = LearnedReranker("learned", at.weights, views)
    for case in cases:
        key = fingerprint(case.query.text)
        if key in at.compared:
            continue
        pair = [case.ndcg(one.score(case.query.text, case.texts, case.dense, pace=tools.pace)) for one in (now, new)]
        at.compared[key] = pair[0], pair[1]
        if len(at.compared) % CASES_PER_STEP == 0:
            yield attempt.step(len(at.compared), len(cases), "comparing with the reranker in use")
    return [at.compared[fingerprint(case.query.text)] for case in cases]


def _decide(
    attempt: _Attempt,
    parts: Mapping[Part, Sequence[Case]],
    plan: Plan,
    steps: int,
    pairs: Sequence[tuple[float, float]],
) -> Generator[Step, None, Outcome]:
    """Use the new reranker if the whole interval of its gain is above 0; say what was found either way."""
    job, tools, at = attempt.job, attempt.tools, attempt.at
    embedder = tools.searching(job.collection)
    each_before, each_after = zip(*pairs, strict=True)
    before, after, gain = fmean(each_before), fmean(each_after), paired_bootstrap(each_before, each_after)
    was, is_better, has_model = tools.reranking(job.collection).name, gain.low > 0, at.is_trained and _counts(at)
    learned = Learned(
        version=time.strftime("%Y%m%d-%H%M%S", time.gmtime(tools.clock())) + f"-{fingerprint(job.task_id)[:6]}",
        embedder=embedder.name,
        instead_of=tools.reranker.name,
        weights=at.weights,
        has_model=has_model,
        max_words=plan.max_words,
        learned_at=tools.clock(),
        queries=sum(map(len, parts.values())),
        held_out=len(parts[Part.HELD_OUT]),
        before=before,
        after=after,
        low=gain.low,
        high=gain.high,
    )
    interval = (
        f"{gain.mean:+.4f} nDCG@10 on {learned.held_out} held-out queries,"
        f" 95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    )
    if is_better:
        if not has_model:
            shutil.rmtree(attempt.model_folder, ignore_errors=True)
        attempt.shelf.adopt(attempt.making, learned)
        reason = f"it is used from now on: {interval}"
    else:
        shutil.rmtree(attempt.making)
        reason = f"it is not used, for it is not shown to be better: {interval}"
    step = attempt.step(1, 1, reason)
    names = names_of(tools.store.info(job.collection))
    # results of the reranker before are still worth serving, until they are computed again
    yield replace(step, changes=(anything(names, is_soft=True),)) if is_better else step
    return Outcome(
        result={
            "success": True,
            "collection_name": job.collection,
            "judged_queries": learned.queries,
            "fit_queries": len(parts[Part.FIT]),
            "choose_queries": len(parts[Part.CHOOSE]),
            "held_out_queries": learned.held_out,
            "training_steps": steps,
            "weights": {view: round(weight, 3) for view, weight in zip(VIEWS, at.weights, strict=True)},
            "quality_metric": f"nDCG@{K}",
            "quality_before": before,
            "quality_after": after,
            "quality_improvement": gain.mean,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "adopted": is_better,
            "reason": reason,
            "reranker": f"learned {learned.version}" if is_better else was,
            "reranker_before": was,
            "processing_time_seconds": at.elapsed_s,
            "error_message": None,
        },
        metric=f"nDCG@{K}",
        before_score=before,
        after_score=after,
    )


def _counts(at: Checkpoint) -> bool:
    """Say whether the cross-encoder has a say: without it the rest is as good, and cheap."""
    return bool(at.weights) and at.weights[-1] >= LEAST_CROSS


def _undo(job: Job, tools: Tools, shelf: Shelf) -> Steps:
    use = shelf.undo()
    changes = (anything(names_of(tools.store.info(job.collection)), is_soft=True),)
    yield Step(TaskProgress(done=1, total=1, note="going back"), changes=changes)
    name = tools.reranking(job.collection).name
    return Outcome(
        result={
            "success": True,
            "collection_name": job.collection,
            "reranker": name,
            "reason": f"{name} is used from now on" + ("" if use.now else ", as before anything was learned"),
            "adopted": bool(use.now),
        }
    )
