from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import CollectionInfo, IndexInfo, IndexSettings
from morgan.background.workers.proposals import Depth, Filtered, Proposals, Trial, propose

INFO = CollectionInfo(name="docs", points=1_000_000, vector_size=384, distance="cosine")
INDEXED = IndexInfo(indexed_vectors=1_000_000)
NOW = Trial(m=16, ef_construct=100, is_int8=False, recall=0.95, p50_ms=0.1, build_s=1.0)
TWICE = replace(NOW, m=32, ef_construct=200, recall=0.97)
INT8 = replace(NOW, is_int8=True, recall=0.949)

shares = st.floats(0, 1)
milliseconds = st.floats(0.01, 100)


def depths(*rows: tuple[int, float, float]) -> list[Depth]:
    return [Depth(ef, recall, ms, 2 * ms) for ef, recall, ms in rows]


def proposed(
    rows: list[Depth], trials: list[Trial] | None = None, info: CollectionInfo = INFO, index: IndexInfo = INDEXED
) -> Proposals:
    return propose(info, index, rows, trials or [], [], 0.98)


def test_the_shallowest_search_that_reaches_the_goal_is_proposed_with_what_was_measured() -> None:
    found = proposed(depths((0, 0.95, 0.5), (64, 0.97, 0.6), (128, 0.985, 0.9), (256, 0.99, 1.5)))
    assert found.settings == IndexSettings(ef=128)
    assert found.reasons == ("search with ef 128: recall@10 0.985 at 0.90 ms, now 0.950 at 0.50 ms; the goal is 0.98",)


@pytest.mark.parametrize(("ms", "ef"), [(0.85, 64), (0.95, 0)])
def test_a_shallower_search_is_proposed_only_where_it_saves_a_tenth(ms: float, ef: int) -> None:
    assert proposed(depths((0, 0.99, 1.0), (64, 0.985, ms))).settings == IndexSettings(ef=ef)


@given(st.lists(st.tuples(shares, milliseconds), min_size=4, max_size=4))
def test_a_proposed_depth_reaches_the_goal_and_no_shallower_one_does(rows: list[tuple[float, float]]) -> None:
    measured = depths(*((ef, *row) for ef, row in zip((0, 16, 64, 256), rows, strict=True)))
    ef = proposed(measured).settings.ef
    if ef:
        assert next(row for row in measured if row.ef == ef).recall >= 0.98
        assert all(row.recall < 0.98 for row in measured if 0 < row.ef < ef)
    else:
        reaching = [row for row in measured if row.recall >= 0.98]
        assert not reaching or measured[0] in reaching


SHALLOW = depths((0, 0.90, 0.5), (512, 0.95, 3.0))


def test_another_graph_is_proposed_only_where_no_depth_reaches_the_goal_and_a_trial_found_more() -> None:
    found = proposed(SHALLOW, [NOW, TWICE])
    assert found.settings == IndexSettings(m=32, ef_construct=200)
    assert "the best is 0.950 at ef 512" in found.reasons[0]
    assert "m 32 and ef_construct 200 has 0.970 where the one in use has 0.950" in found.reasons[0]
    worse = proposed(SHALLOW, [NOW, replace(TWICE, recall=0.95)])
    assert (worse.settings, worse.reasons) == (IndexSettings(), ())
    assert "no other graph that was tried on a sample finds more" in worse.notes[0]
    enough = proposed(depths((0, 0.99, 0.5), (16, 0.9, 0.4)), [NOW, TWICE])
    assert (enough.settings, enough.reasons, enough.notes) == (IndexSettings(), (), ())


def test_without_a_trial_no_graph_is_proposed_and_a_note_says_that_none_was_measured() -> None:
    found = proposed(SHALLOW)
    assert found.settings == IndexSettings()
    assert "other graphs and int8 vectors were not measured" in found.notes


def test_int8_is_proposed_by_hand_alone_and_only_where_it_is_large_and_loses_nothing() -> None:
    (words,) = proposed(SHALLOW, [NOW, TWICE, INT8]).by_hand
    assert "366 instead of 1464 MiB" in words
    assert "recall@10 is 0.949 with rescoring, 0.950 without" in words
    assert not proposed(SHALLOW, [NOW, TWICE, replace(INT8, recall=0.94)]).by_hand
    assert not proposed(SHALLOW, [NOW, TWICE, INT8], replace_points(10_000)).by_hand
    assert not proposed(SHALLOW, [NOW, TWICE]).by_hand


def replace_points(points: int) -> CollectionInfo:
    return CollectionInfo(name="docs", points=points, vector_size=384, distance="cosine")


def test_a_collection_without_a_graph_has_no_depth_to_tune_and_its_filters_all_the_same() -> None:
    filtered = [Filtered("author", "keyword", 12, 6.2)]
    found = propose(INFO, IndexInfo(), depths((0, 1.0, 7.0)), [], filtered, 0.98)
    assert found.settings == IndexSettings()
    assert found.payload == {"author": "keyword"}
    assert found.reasons == (
        "index 'author' as keyword: a search that filters by it takes 6.20 ms at the median without, and 12 did since the"
        " owner was started",
    )
    assert found.notes == ("there is no graph: every search is exact, so that there is no depth to tune",)
