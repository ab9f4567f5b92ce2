"""That the overlap benchmark still runs the re-index it is about: every point is read, embedded and written."""

from __future__ import annotations

import pytest

from bench.overlap import points_per_s


@pytest.mark.parametrize("takes_threads", [False, True])
def test_every_point_goes_through_either_way(takes_threads: bool) -> None:
    assert points_per_s(1e6, 0.0, takes_threads=takes_threads) > 0
