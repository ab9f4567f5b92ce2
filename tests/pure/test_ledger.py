"""Serving a similar query: the ledger bounds the errors of any stream, the certificate certifies nothing without evidence."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.supervisor.ledger import (
    DOUBT,
    EDGES,
    FIRST_LOOK,
    Certificate,
    Ledger,
    doubt_of_look,
    upper_bound,
)


@given(st.floats(0, 1), st.lists(st.sampled_from(["asked", "similar", "right", "wrong"]), max_size=300))
def test_errors_are_at_most_the_rate_of_the_requests_whatever_is_asked(rate: float, steps: list[str]) -> None:
    ledger, wrong = Ledger(rate), 0
    for step in steps:
        match step:
            case "asked":
                ledger.requests += 1
            case "similar":
                ledger.requests += 1
                if ledger.may_serve():
                    ledger.serve()
            case _ if ledger.pending:
                ledger.verified(is_right=step == "right")
                wrong += step == "wrong"
        assert ledger.errors == wrong
        assert ledger.errors + ledger.pending <= rate * ledger.requests
        assert ledger.bound <= rate


def test_a_ledger_without_room_refuses() -> None:
    ledger = Ledger(0.1)
    ledger.requests = 19
    ledger.serve()
    with pytest.raises(ValueError, match="0 errors and 1 pending of 19 requests leave no room"):
        ledger.serve()
    ledger.verified(is_right=False)
    assert not ledger.may_serve()
    with pytest.raises(ValueError, match="nothing is pending"):
        ledger.verified(is_right=True)
    ledger.requests = 20
    ledger.serve()
    assert (ledger.served, ledger.pending, ledger.errors, ledger.bound) == (2, 1, 1, 0.1)


def test_a_ledger_of_rate_0_never_serves() -> None:
    ledger = Ledger(0.0)
    ledger.requests = 10**9
    assert not ledger.may_serve()


@pytest.mark.parametrize(
    ("errors", "audits", "doubt", "bound"),
    [(0, 0, 0.05, 1.0), (5, 5, 0.05, 1.0), (0, 59, 0.05, 0.04951), (1, 10, 0.05, 0.39416), (10, 100, 0.025, 0.17622)],
)
def test_the_bound_is_clopper_and_pearsons(errors: int, audits: int, doubt: float, bound: float) -> None:
    """The values are scipy's `beta.ppf(1 - doubt, errors + 1, audits - errors)`."""
    assert upper_bound(errors, audits, doubt) == pytest.approx(bound, abs=1e-5)


def test_more_errors_than_audits_are_refused() -> None:
    with pytest.raises(ValueError, match="3 errors of 2 audits"):
        upper_bound(3, 2, 0.05)


def test_all_looks_at_all_bins_together_use_no_more_than_the_doubt() -> None:
    assert sum(doubt_of_look(look) for look in range(100_000)) * len(EDGES) <= DOUBT


def test_without_evidence_nothing_is_certified() -> None:
    certificate = Certificate()
    assert all(certificate.bound(cosine) == 1.0 for cosine in (-1.0, 0.0, 0.75, 0.999, 1.0))
    for _ in range(FIRST_LOOK - 1):
        certificate.audit(0.999, is_right=True)
    assert certificate.bound(0.999) == 1.0
    certificate.audit(0.999, is_right=True)
    assert certificate.bound(0.999) < 0.12
    assert certificate.bound(0.98) == 1.0  # another bin
    certificate.audit(0.1, is_right=False)
    assert (certificate.audits, certificate.errors) == (FIRST_LOOK, 0)
    assert certificate.rows()[-1] == {"cosine_from": 0.99, "audits": 64, "errors": 0, "bound": certificate.bound(0.99)}


def test_a_bin_with_errors_above_the_rate_is_hardly_ever_certified() -> None:
    """200 seeded streams of 1,024 audits with 6 % of errors, 5 % wanted: less than DOUBT of them are ever certified."""
    certified = 0
    for seed in range(200):
        chance, certificate = np.random.default_rng(seed), Certificate()
        lowest = 1.0
        for is_wrong in chance.random(1024) < 0.06:
            certificate.audit(0.96, is_right=not is_wrong)
            lowest = min(lowest, certificate.bound(0.96))
        certified += lowest <= 0.05
    assert certified <= 200 * DOUBT


def test_a_safe_bin_is_certified_with_enough_audits() -> None:
    chance, certificate = random.Random(3), Certificate()
    for _ in range(2048):
        certificate.audit(0.96, is_right=chance.random() >= 0.005)
    assert certificate.bound(0.96) < 0.02
