"""The benchmarks' harness: how figures are taken, what is printed, and what is said of what is missing."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.cases import load
from bench.cases.scifact import COLLECTION, SETTINGS, by_ir_measures, in_frames, per_query
from bench.daemon import merged, serving, to_toml
from bench.measure import Latency, find_above, interleaved, latency, median_latency, median_ratio, missing, percentile
from bench.payload import ENTRIES
from bench.reading import Crew, Shape
from bench.report import Goal, MissingInput, Noise, Result, Table, goal_table, show, versions
from bench.scifact import Corpus, shipped, whole
from bench.stores import all_stores, needs, needs_program
from morgan.background.data import documents
from morgan.background.ipc import messages, wire
from morgan.background.ipc.records import PointId
from morgan.background.supervisor.config import load as load_config

ROOT = Path(__file__).parents[2]
OPTIONAL = (
    "torch",
    "sentence_transformers",
    "qdrant_client",
    "qdrant_edge",
    "lmdb",
    "diskcache",
    "redis",
    "pymemcache",
)

samples = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)
durations = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=15)


# --- measuring ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(samples, st.floats(0, 1))
def test_a_percentile_is_a_sample_with_that_share_at_or_below_it(found: list[int], share: float) -> None:
    ordered = sorted(found)
    value = percentile(ordered, share)
    assert value in ordered
    assert sum(one <= value for one in ordered) >= share * len(ordered)
    assert sum(one < value for one in ordered) <= share * len(ordered)


def test_no_sample_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


@settings(deadline=None)
@given(samples)
def test_a_latency_counts_its_samples_in_any_order(found: list[int]) -> None:
    one = latency(found)
    assert one == latency(sorted(found, reverse=True))
    assert one.p50_ns <= one.p99_ns
    assert one.count == len(found)


def test_one_disturbed_round_does_not_move_the_median_of_the_rounds() -> None:
    calm = [Latency(100, 200, 10), Latency(101, 201, 10)]
    found = median_latency([*calm, Latency(9000, 90000, 10)])
    assert (found.p50_ns, found.p99_ns, found.count) == (101, 201, 30)


@settings(deadline=None)
@given(durations, st.floats(0.01, 100), st.data())
def test_a_slow_round_of_both_does_not_move_a_ratio(below: list[float], times: float, data: st.DataObject) -> None:
    slow = data.draw(st.lists(st.floats(1, 50), min_size=len(below), max_size=len(below)))
    above = [one * times for one in below]
    disturbed = median_ratio(
        [a * s for a, s in zip(above, slow, strict=True)], [b * s for b, s in zip(below, slow, strict=True)]
    )
    assert disturbed == pytest.approx(times)
    assert median_ratio(above, below) == pytest.approx(times)


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), unique=True, min_size=1, max_size=6), st.integers(0, 8), st.integers(0, 2**32))
def test_every_round_has_every_name_once_and_a_seed_names_the_order(names: list[str], rounds: int, seed: int) -> None:
    order = list(interleaved(names, rounds, seed))
    assert order == list(interleaved(names, rounds, seed))
    for start in range(0, rounds * len(names), len(names)):
        assert sorted(order[start : start + len(names)]) == sorted(names)


def test_rounds_differ_in_their_order() -> None:
    order = list(interleaved("abcdef", 20))
    assert len({tuple(order[start : start + 6]) for start in range(0, 120, 6)}) > 10


def test_a_folder_is_found_beside_or_above_the_start(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "deep" / "down").mkdir(parents=True)
    assert find_above(tmp_path / "deep" / "down", "shared/data") == tmp_path / "shared" / "data"
    assert find_above(tmp_path, "shared/data") == tmp_path / "shared" / "data"
    assert find_above(tmp_path / "deep", "shared/none-of-that-name") is None


# --- saying it ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_goal_is_met_on_its_own_side_of_the_bound(value: float, bound: float) -> None:
    assert Goal.at_least(value, bound).met is (value >= bound)
    assert Goal.at_most(value, bound).met is (value <= bound)
    assert Goal.at_least(bound, bound).met
    assert Goal.at_most(bound, bound).met


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed_and_says_why() -> None:
    goal = Goal.at_least(None, 20, "no redis-server on PATH")
    assert goal.met is None
    assert "not measured: no redis-server on PATH" in goal_table({"times Redis": goal}).text()


def test_a_table_has_one_line_a_row_and_numbers_end_in_one_column() -> None:
    lines = Table("Heading", ("store", "ns"), [("ours", "7"), ("another one", "1,234")]).text().splitlines()
    assert lines == ["Heading", "store           ns", "-----------  -----", "ours             7", "another one  1,234"]


def test_the_last_line_is_a_result_that_parses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goals = {"fast enough": Goal.at_least(2.0, 1.5), "as good": Goal.at_most(None, 1, "no peer")}
    result = Result(
        "store", [Table("T", ("a",), [("1",)])], {"rows": [{"p50_ns": 12}]}, goals, ["a note"], {"Peer": "1.2"}
    )
    show(result, Noise.now(), tmp_path / "made" / "here.json")
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("RESULT {")
    found = json.loads(last.removeprefix("RESULT "))
    assert found["bench"] == "store"
    assert found["figures"] == {"rows": [{"p50_ns": 12}]}
    assert found["goals"] == {
        "fast enough": {"value": 2.0, "goal": ">= 1.5", "met": True},
        "as good": {"value": None, "goal": "<= 1", "met": None, "why": "no peer"},
    }
    assert found["machine"]["libraries"]["Peer"] == "1.2"
    assert {"cpu", "cores", "usable_cores", "memory_gib", "kernel", "python", "noise"} <= set(found["machine"])
    assert json.loads((tmp_path / "made" / "here.json").read_text()) == found


def test_versions_are_of_what_is_installed() -> None:
    found = versions(["numpy", "a-package-nobody-has"])
    assert list(found) == ["numpy"]
    assert re.match(r"\d+\.\d+", found["numpy"])


# --- the command line ---------------------------------------------------------------------------------------------------


def test_list_names_every_benchmark_without_importing_what_may_be_missing() -> None:
    program = (
        "import sys; from bench.__main__ import main; code = main(['list']);"
        f"print('imported:', [name for name in {OPTIONAL!r} if name in sys.modules]); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, imported = ran.stdout.splitlines()
    assert imported == "imported: []"
    assert [line.split()[0] for line in lines] == sorted(load())
    assert all(load()[line.split()[0]].SUMMARY in line for line in lines)


def test_an_unknown_benchmark_is_a_usage_error_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonesuch"]) == 2
    said = capsys.readouterr().err
    assert "nonesuch" in said
    assert all(name in said for name in load())


def test_a_benchmark_without_its_data_says_what_is_missing_and_where_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    assert main(["scifact", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"{tmp_path} has no queries.jsonl, no qrels/test.tsv" in said.err
    assert "--data" in said.err
    assert "RESULT" not in said.out


# --- peers --------------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_missing_is_named_with_what_installs_it() -> None:
    assert needs("json") is None
    assert needs("a_module_nobody_has") == "not installed: pip install '.[bench]' brings a_module_nobody_has"
    assert needs_program("sh", "dash") is None
    said = needs_program("a-program-nobody-has", "its-package")
    assert said == "no a-program-nobody-has on PATH: the system package its-package brings it"


def test_the_extra_brings_every_module_that_a_peer_needs() -> None:
    wanted = set(re.findall(r'needs\("(\w+)"\)', (ROOT / "bench" / "stores.py").read_text()))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {re.split(r"[<>=]", one)[0].replace("-", "_") for one in extras["bench"]}
    assert wanted
    assert wanted | {"ir_measures"} <= brought


def test_the_peers_that_need_nothing_are_never_missing(tmp_path: Path) -> None:
    absent = missing(all_stores(tmp_path))
    assert not {"morgan result store", "dict, in process", "sqlite (WAL)", "Manager().dict"} & set(absent)
    assert all(why for why in absent.values())


def test_every_store_at_hand_is_written_by_one_process_and_read_by_others_without_a_miss(tmp_path: Path) -> None:
    stores = [store for store in all_stores(tmp_path) if store.available() is None]
    with contextlib.ExitStack() as stack:
        for store in stores:
            stack.enter_context(store.serving())
        crew = stack.enter_context(Crew(stores, 2))
        for store in stores:
            assert crew.fill(store.name) == ENTRIES
            for shape in (Shape.REPEATED, Shape.EVERYTHING):
                found = crew.read(store.name, shape, 0.01, 2)
                assert [reading.misses for reading in found] == [0, 0], store.name
                assert all(reading.latency.count > 0 for reading in found)


# --- SciFact ------------------------------------------------------------------------------------------------------------


def beir(folder: Path) -> Path:
    """Write a corpus as BEIR lays it out: three documents, one test claim with two judgments."""
    rows: list[dict[str, str]] = [
        {"_id": "7", "title": "On cells.", "text": "A text with a separator\u2028in it."},
        {"_id": "8", "title": "On proteins", "text": "Another."},
        {"_id": "9", "title": "On genes", "text": "A third."},
    ]
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    claims = [{"_id": "1", "text": "Cells divide."}, {"_id": "2", "text": "Of the train split."}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, claims)) + "\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t7\t1\n1\t9\t1\n", encoding="utf-8")
    return folder


def test_a_folder_as_beir_lays_it_out_is_read_with_its_test_claims_alone(tmp_path: Path) -> None:
    corpus = whole(beir(tmp_path / "shared" / "data" / "scifact"), tmp_path)
    assert corpus == whole(None, tmp_path)
    assert [one["id"] for one in corpus.documents] == [7, 8, 9]
    assert corpus.documents[0]["text"] == "On cells. A text with a separator\u2028in it."
    assert corpus.claims == [{"text": "Cells divide.", "judgments": {"7": 1.0, "9": 1.0}}]
    assert corpus.judgments == 2


def test_without_a_folder_the_search_and_the_way_to_get_it_are_told(tmp_path: Path) -> None:
    if find_above(tmp_path, "shared/data/scifact") is not None:
        pytest.skip("the data lies above the folder for temporary files")
    with pytest.raises(MissingInput, match=r"no folder shared/data/scifact in .* --data"):
        whole(None, tmp_path)


@pytest.mark.parametrize("limit", [1, 120, 10_000])
def test_the_shipped_corpus_keeps_every_judged_document_however_small(limit: int) -> None:
    corpus = shipped(limit)
    ids = [str(one["id"]) for one in corpus.documents]
    judged = {document_id for claim in corpus.claims for document_id in claim["judgments"]}
    assert judged <= set(ids)
    assert len(ids) == len(set(ids)) == min(max(limit, len(judged)), len(documents()))


@settings(deadline=None)
@given(st.lists(st.tuples(st.characters(codec="utf-8"), st.integers(1, 8000)), max_size=20))
def test_queries_are_handed_in_in_order_and_every_request_fits_its_frame(made_of: list[tuple[str, int]]) -> None:
    texts = [letter * count for letter, count in made_of]
    groups = in_frames(texts)
    assert [text for group in groups for text in group] == texts
    for group in groups:
        request = messages.Submit(
            rid=2**32, task_type="rerank", collection=COLLECTION, params={"queries": group}, is_forced=True
        )
        assert len(wire.encode(request)) <= wire.MAX_CLIENT_BYTES


def test_the_score_of_each_claim_is_what_ir_measures_finds_on_average() -> None:
    claims: list[Any] = [
        {"text": "a", "judgments": {"1": 1.0, "2": 1.0}},
        {"text": "b", "judgments": {"3": 1.0}},
        {"text": "c", "judgments": {"9": 1.0}},
    ]
    corpus = Corpus("three claims", [], claims)
    lists: list[list[PointId]] = [[2, 5, 1], [4, 3], [6, 7]]
    scores = per_query(lists, corpus)
    assert scores[1:] == [pytest.approx(1 / math.log2(3)), 0.0]
    assert by_ir_measures(lists, corpus) == pytest.approx(statistics.fmean(scores))


# --- the service of a benchmark -----------------------------------------------------------------------------------------

keys = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
printable = st.text(st.characters(exclude_categories=["C"]), max_size=20)
values = st.one_of(st.booleans(), st.integers(-(2**31), 2**31), st.floats(-1e6, 1e6), printable)
sections = st.dictionaries(keys, st.dictionaries(keys, values, max_size=4), max_size=4)


@settings(deadline=None)
@given(sections)
def test_settings_are_read_back_as_they_were_written(settings: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(to_toml(settings)) == settings


@settings(deadline=None)
@given(sections, sections)
def test_of_two_settings_every_key_is_kept_and_the_second_goes_before(first: Any, second: Any) -> None:
    both = merged(first, second)
    for section in first.keys() | second.keys():
        assert both[section] == first.get(section, {}) | second.get(section, {})


def test_the_settings_of_scifact_are_ones_the_service_takes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(SETTINGS))
    limits = load_config(path, {}).limits()
    assert (limits.active_cpu_permille, limits.quiet_cpu_permille) == (1000, 1000)


def test_a_service_runs_for_the_block_and_nothing_of_it_is_left() -> None:
    with serving(SETTINGS) as service:
        running = service.processes()
        assert {"supervisor", "owner", "worker 1"} <= set(running)
        usage = {one.name: one for one in service.usage()}
        assert set(usage) == set(running)
        assert all(one.rss_kib > 0 and one.threads > 0 for one in usage.values())
        folder = service.client.runtime.root
        assert folder.is_dir()
    _, alive = psutil.wait_procs(running.values(), timeout=30)
    assert not alive
    assert not folder.exists()


def test_a_benchmark_that_is_told_to_end_takes_its_service_with_it() -> None:
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench", "scifact", "--quick"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family: list[psutil.Process] = []
    end_at = time.monotonic() + 60
    while len(family) < 3:  # supervisor, owner, worker
        assert bench.poll() is None, "it ended by itself"
        assert time.monotonic() < end_at, family
        family = psutil.Process(bench.pid).children(recursive=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            bench.wait(0.05)
    bench.terminate()
    assert bench.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_a_service_that_does_not_start_raises_with_its_own_words() -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start.*active_hours_cpu_limit"),
        serving({"limits": {"active_hours_cpu_limit": 7.0}}),
    ):
        pytest.fail("it started")


def test_the_documentation_names_every_benchmark_and_its_command() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(f"python -m bench {name}" in text for name in load())
