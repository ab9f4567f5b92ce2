"""`python -m bench.train_reranker --out FOLDER`: train a cross-encoder on SciFact's train split, report its test split.

    train claims ─┬▶ fit: the cross-encoder is trained ─▶ FOLDER/model ─┐
                  └▶ choose: weights of its and the other views ────────┴▶ test claims: nDCG@10, nothing is fitted to them

What it computes lies in FOLDER, from where an interrupted run goes on. The training is that of the `learn` task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from morgan.background.data import Query
from morgan.background.ipc.records import QueryJob
from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.cases import Case
from morgan.background.workers.excerpts import excerpts
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.fusion import Matrix, fit_weights, fused
from morgan.background.workers.learned_reranker import CROSS_WEIGHTS, READ, Views
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.quality import paired_bootstrap
from morgan.background.workers.reranker import CrossEncoderReranker, max_sims
from morgan.background.workers.task import Embedder, Floats, Reranker
from morgan.background.workers.trainable import CrossEncoderModel
from morgan.background.workers.training import Plan, Training
from morgan.background.workers.vectors import Vectors

from .report import Goal, MissingInput, Noise, Result, Table, show
from .scifact import Corpus, shipped, whole

NAME = "train_reranker"
CANDIDATES = 50
DEPTHS = (10, 20, 50, 100)
CHOOSE_EVERY = 5  # of the train claims, in the order of a hash of their texts, one is for the weights
SAVE_S = 60.0
QUICK_DOCUMENTS = 60
QUICK_FIT = 20  # of the 30 claims that ship with the package
QUICK_PLAN = Plan(epochs=1, queries=4)

Views4 = Matrix  # shape (len(VIEWS), candidates)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


class Progress:
    """Says on stderr how far something is, and how long it takes, once in ten seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._began_at, self._said_at = what, total, time.monotonic(), 0.0

    def at(self, done: int, beside: str = "", first: int = 0) -> None:
        now = time.monotonic()
        if now - self._said_at < 10 and done < self._total:
            return
        self._said_at = now
        left_s = (now - self._began_at) / max(done - first, 1) * (self._total - done)
        say(f"{self._what}: {done} of {self._total}{beside}, {left_s / 60:.1f} minutes left")


# --- what is searched ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Index:
    """Every document's vector, and what embeds."""

    corpus: Corpus
    embedder: Embedder
    vectors: Vectors

    def cases(self, claims: Sequence[Query], count: int) -> list[Case]:
        """Return the claims with their `count` nearest documents, by exact search."""
        documents = self.corpus.documents
        places = {str(one["id"]): place for place, one in enumerate(documents)}
        cases = []
        for claim, vector in zip(claims, self.embedder.embed([claim["text"] for claim in claims]), strict=True):
            scores = self.vectors @ vector
            best = np.argsort(-scores, kind="stable")[:count]
            ids = tuple(documents[row]["id"] for row in best)
            missed = [one for one, grade in claim["judgments"].items() if grade > 0 and int(one) not in ids]
            cases.append(
                Case(
                    QueryJob(text=claim["text"], judgments=claim["judgments"]),
                    ids,
                    tuple(documents[row]["text"] for row in best),
                    scores[best],
                    tuple(documents[places[one]]["text"] for one in missed),
                )
            )
        return cases


def indexed(corpus: Corpus, embedder: Embedder, out: Path) -> Index:
    """Return the corpus with its vectors, from `out` where an earlier run left them."""
    path, texts = out / "vectors.npz", [one["text"] for one in corpus.documents]
    key = fingerprint("\n".join([embedder.revision, *texts]))
    if path.exists() and str((held := np.load(path))["key"]) == key:
        return Index(corpus, embedder, held["vectors"])
    vectors, progress = np.empty((len(texts), embedder.size), dtype=np.float32), Progress("embedding", len(texts))
    for start in range(0, len(texts), 64):
        vectors[start : start + 64] = embedder.embed(texts[start : start + 64])
        progress.at(min(start + 64, len(texts)))
    np.savez(path, key=np.array(key), vectors=vectors)
    return Index(corpus, embedder, vectors)


class KeptLate:
    """Late interaction whose scores are kept in `path`, and whose token vectors, unlike a worker's, are all kept."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder, self._path = embedder, path
        self._tokens: dict[str, Vectors] = {}
        self._scores: dict[str, float] = {}
        if path.exists() and str((held := np.load(path))["revision"]) == embedder.revision:
            self._scores = dict(zip(held["keys"].tolist(), held["scores"].tolist(), strict=True))

    def similarity(self, query: str, texts: Sequence[str], pace: Callable[[], None] | None = None) -> Floats:
        keys = [fingerprint(f"{query}\0{text}") for text in texts]
        if missing := [row for row, key in enumerate(keys) if key not in self._scores]:
            unknown = [texts[row] for row in missing if texts[row] not in self._tokens]
            for text, tokens in zip(unknown, self._embedder.token_vectors(unknown), strict=True):
                self._tokens[text] = tokens.astype(np.float16)
            (asked,) = self._embedder.token_vectors([query])
            found = max_sims(asked, [self._tokens[texts[row]].astype(np.float32) for row in missing])
            self._scores |= {keys[row]: float(score) for row, score in zip(missing, found, strict=True)}
        return np.array([self._scores[key] for key in keys], dtype=np.float32)

    def save(self) -> None:
        keys, scores = list(self._scores), list(self._scores.values())
        np.savez(self._path, revision=np.array(self._embedder.revision), keys=np.array(keys), scores=np.array(scores))


class KeptCross:
    """A cross-encoder that reads no text twice: its candidates of different numbers overlap."""

    def __init__(self, cross: CrossEncoderReranker) -> None:
        self._cross = cross
        self._scores: dict[tuple[str, str], float] = {}

    @property
    def name(self) -> str:
        return self._cross.name

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        missing = [text for text in dict.fromkeys(texts) if (query, text) not in self._scores]
        found = self._cross.score(query, missing, np.zeros(len(missing), dtype=np.float32))
        self._scores |= {(query, text): float(score) for text, score in zip(missing, found, strict=True)}
        return np.array([self._scores[query, text] for text in texts], dtype=np.float32)


def cut(case: Case, count: int) -> Case:
    return Case(case.query, case.ids[:count], case.texts[:count], case.dense[:count])


def columns_of(cases: Sequence[Case], views: Views, what: str) -> list[Views4]:
    progress, found = Progress(what, len(cases)), []
    for case in cases:
        found.append(views.columns(case.query.text, case.texts, case.dense))
        progress.at(len(found))
    return found


# --- training -----------------------------------------------------------------------------------------------------------


def split(claims: Sequence[Query], every: int) -> tuple[list[Query], list[Query]]:
    """Return the claims to fit to, and one in `every` to choose by: in the order of a hash, which nobody chose."""
    ordered = sorted(claims, key=lambda claim: fingerprint(claim["text"]))
    return [claim for place, claim in enumerate(ordered) if place % every], ordered[::every]


def trained(cases: Sequence[Case], plan: Plan, out: Path, threads: int, base: str) -> dict[str, Any]:
    """Train a model into `out`/model, going on where an earlier run stopped; return the figures of it."""
    examples = [one for case in cases for one in case.examples(plan.max_words)]
    noted = out / "training.json"
    if noted.exists() and (figures := msgspec.json.decode(noted.read_bytes())).get("plan") == msgspec.to_builtins(plan):
        say(f"trained before: {out / 'model'}")
        return dict(figures)
    training = Training(CrossEncoderModel(base, plan.seed), examples, plan, threads)
    state = out / "state.pt"
    if training.restore(state):
        say(f"going on at step {training.step}")
    first, began_at, began_cpu_s = training.step, time.monotonic(), time.process_time()
    saved_at, progress, losses = began_at, Progress("training", training.steps), []
    for at in training.run():
        losses.append(at.loss)
        progress.at(at.step, f", loss {np.mean(losses[-20:]):.3f}", first)
        if time.monotonic() - saved_at > SAVE_S:
            training.save(state)
            saved_at = time.monotonic()
    training.model.write(out / "model", plan.max_tokens)
    figures = {
        "plan": msgspec.to_builtins(plan),
        "examples": len(examples),
        "steps": training.steps,
        "steps_of_this_run": training.steps - first,
        "wall_s": round(time.monotonic() - began_at, 1),
        "cpu_s": round(time.process_time() - began_cpu_s, 1),
        "last_loss": round(float(np.mean(losses[-20:])), 4) if losses else None,
    }
    noted.write_bytes(msgspec.json.encode(figures))
    state.unlink(missing_ok=True)
    return figures


# --- the report ---------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "dense": (1.0, 0.0, 0.0, 0.0),
    "BM25": (0.0, 0.0, 1.0, 0.0),
    "late interaction": (0.0, 1.0, 0.0, 0.0),
    "the default: all three": (1.0, 1.0, 1.0, 0.0),
}
DENSE, DEFAULT, LEARNED, ORACLE = "dense", "the default: all three", "learned: all four, weighted", "oracle"
ALONE = "the trained cross-encoder, alone"


def scores_of(
    cases: Sequence[Case], columns: Sequence[Views4], weights: Sequence[float], cross: Reranker, max_words: int
) -> dict[str, list[float]]:
    """Return nDCG@10 of each claim, by each order. By the cross-encoder alone: it reads every candidate."""

    def alone(case: Case) -> float:
        shown = excerpts(case.query.text, case.texts, max_words)
        return case.ndcg(cross.score(case.query.text, shown, case.dense))

    orders = {
        name: [case.ndcg(fused(one, of)) for case, one in zip(cases, columns, strict=True)]
        for name, of in WEIGHTS.items()
    }
    orders[ALONE] = [alone(case) for case in cases]
    orders[LEARNED] = [case.ndcg(fused(one, weights)) for case, one in zip(cases, columns, strict=True)]
    orders[ORACLE] = [case.ndcg(case.relevant.astype(np.float64)) for case in cases]
    return orders


def interval(before: Sequence[float], after: Sequence[float]) -> str:
    gain = paired_bootstrap(before, after)
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def reported(
    cases: Sequence[Case],
    views: Views,
    cross: Reranker,
    weights: tuple[float, ...],
    training: dict[str, Any],
    *,
    is_quick: bool,
) -> Result:
    """Score the test claims and say what came of it."""
    by_depth: dict[int, dict[str, list[float]]] = {}
    for depth in DEPTHS:
        some = [cut(case, depth) for case in cases]
        columns = columns_of(some, views, f"test claims, {depth} candidates")
        by_depth[depth] = scores_of(some, columns, weights, cross, training["plan"]["max_words"])
    scores = by_depth[CANDIDATES]
    means = {depth: {name: float(np.mean(ones)) for name, ones in found.items()} for depth, found in by_depth.items()}
    over_dense, over_default = (paired_bootstrap(scores[one], scores[LEARNED]) for one in (DENSE, DEFAULT))
    default_gain = paired_bootstrap(scores[DENSE], scores[DEFAULT])
    rows = [
        (
            name,
            f"{np.mean(ones):.4f}",
            "" if name == DENSE else interval(scores[DENSE], ones),
            "" if name in (DENSE, DEFAULT) else interval(scores[DEFAULT], ones),
        )
        for name, ones in scores.items()
    ]
    ablation = [(name, *(f"{means[depth][name]:.4f}" for depth in DEPTHS)) for name in scores]
    quick = "--quick works on the corpus that ships with the package" if is_quick else ""
    value = None if is_quick else means[CANDIDATES][LEARNED]
    return Result(
        bench=NAME,
        tables=[
            Table(
                f"nDCG@10 of {len(cases)} test claims, {CANDIDATES} candidates of the vector search; gains with 95 % intervals",
                ("order", "nDCG@10", "over dense", "over the default"),
                rows,
            ),
            Table("nDCG@10 by the number of candidates", ("order", *map(str, DEPTHS)), ablation),
        ],
        figures={
            "training": training,
            "weights": [round(one, 4) for one in weights],
            "ndcg_at_10": {
                str(depth): {name: round(one, 5) for name, one in of.items()} for depth, of in means.items()
            },
            "learned_over_dense": [round(one, 5) for one in (over_dense.mean, over_dense.low, over_dense.high)],
            "learned_over_default": [round(one, 5) for one in (over_default.mean, over_default.low, over_default.high)],
        },
        goals={
            "default, without any further model": Goal.at_least(
                None if is_quick else means[CANDIDATES][DEFAULT], 0.714, quick
            ),
            "the default's gain over dense, low end": Goal.at_least(None if is_quick else default_gain.low, 0, quick),
            "with the trained cross-encoder": Goal.at_least(value, 0.73, quick),
            "the trained one's gain over dense, low end": Goal.at_least(None if is_quick else over_dense.low, 0, quick),
        },
        notes=[
            "nothing was fitted to the test claims: the model to four fifths of the train claims, the weights to one fifth",
            f"the cross-encoder reads excerpts: alone of every candidate, fused of the {READ} that the default puts first",
            "SciFact: Wadden et al. 2020; claims CC BY 4.0, abstracts ODC-By 1.0",
        ],
    )


# --- the command --------------------------------------------------------------------------------------------------------


def claims_of(data: Path | None, *, is_quick: bool) -> tuple[Corpus, Corpus]:
    """Return the corpus with its train claims, and with its test claims. Raises MissingInput."""
    if not is_quick:
        return whole(data, Path.cwd(), "train"), whole(data, Path.cwd(), "test")
    small = shipped(QUICK_DOCUMENTS)
    parts = small.claims[:QUICK_FIT], small.claims[QUICK_FIT:]
    return Corpus(small.name, small.documents, parts[0]), Corpus(small.name, small.documents, parts[1])


def run(
    train: Corpus, test: Corpus, out: Path, plan: Plan, embedder: Embedder, base: str, threads: int, *, is_quick: bool
) -> Result:
    """Train, choose, report. `base` is the model that the cross-encoder begins with."""
    out.mkdir(parents=True, exist_ok=True)
    index = indexed(train, embedder, out)
    to_fit, to_choose = split(train.claims, CHOOSE_EVERY)
    training = trained(index.cases(to_fit, CANDIDATES), plan, out, threads, base)
    late = KeptLate(embedder, out / "late.npz")
    cross = KeptCross(CrossEncoderReranker(str(out / "model")))
    views = Views(late, cross, plan.max_words)
    choosing = index.cases(to_choose, CANDIDATES)
    columns = columns_of(choosing, views, "claims to choose by")
    late.save()
    weights = fit_weights(columns, [case.relevant for case in choosing], CROSS_WEIGHTS)
    say(f"weights {[round(one, 3) for one in weights]}; on the claims that they were fitted to:")
    for name, ones in scores_of(choosing, columns, weights, cross, plan.max_words).items():
        say(f"  {name}: {np.mean(ones):.4f}")
    result = reported(index.cases(test.claims, max(DEPTHS)), views, cross, weights, training, is_quick=is_quick)
    late.save()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.train_reranker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the model and what a run goes on from")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="SciFact as BEIR lays it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=Plan().epochs)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument(
        "--quick", action="store_true", help="on the corpus that ships with the package, small and easy"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the RESULT object to FILE as well")
    given = parser.parse_args(arguments)
    if given.out is None and not given.quick:
        parser.error("--out FOLDER is needed: the model is written there")
    plan = QUICK_PLAN if given.quick else msgspec.structs.replace(Plan(), seed=given.seed, epochs=given.epochs)
    noise = Noise.now()
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = given.out or Path(folder)
            train, test = claims_of(given.data, is_quick=given.quick)
            settings = ModelSettings(threads=given.threads)
            embedder = SentenceTransformerEmbedder(settings)
            result = run(train, test, out, plan, embedder, settings.name, given.threads, is_quick=given.quick)
    except MissingInput as missing:
        print(missing, file=sys.stderr)
        return 2
    show(result, noise, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
