"""What is served to a similar query: only with evidence and room, and pending until its truth is known."""

from __future__ import annotations

from morgan.background.cli.render import similar as line_of
from morgan.background.supervisor.ledger import FIRST_LOOK
from morgan.background.supervisor.similar import ATTEMPTS, Served, Similar

ROWS = tuple(range(10))
SAME_8 = (*range(8), 20, 21)
SAME_7 = (*range(7), 20, 21, 22)


def learned(rate: float, audits: int = 4 * FIRST_LOOK, cosine: float = 0.96) -> Similar:
    found = Similar(rate)
    for _ in range(audits):
        found.audit("docs", cosine, ROWS, SAME_8)
    return found


def served(text: str) -> Served:
    return Served(text, "docs", 0.96, ROWS)


def test_nothing_is_served_without_evidence_for_the_rate_the_cosine_and_the_collection() -> None:
    similar = learned(0.05)
    similar.ledger.requests = 1000
    assert similar.may_serve("docs", 0.96)
    assert not similar.may_serve("docs", 0.98)
    assert not similar.may_serve("docs", -1.0)
    assert not similar.may_serve("code", 0.96)
    assert not learned(0.001).may_serve("docs", 0.96)
    assert not learned(0.0).may_serve("docs", 0.96)
    assert similar.ledger.requests == 1004
    similar.forget("docs")
    assert not similar.may_serve("docs", 0.96)


def test_an_audit_with_fewer_than_8_of_10_rows_is_an_error() -> None:
    similar = learned(0.1)
    similar.audit("docs", 0.96, ROWS, SAME_7)
    report = similar.report()
    assert (report["audits"], report["audit_errors"]) == (4 * FIRST_LOOK + 1, 1)
    assert report["certified_from"] == {"docs": 0.95}


def test_the_status_says_what_is_known_once_there_are_audits() -> None:
    assert line_of(Similar(0.05).report()) == []
    similar = learned(0.1)
    similar.ledger.requests = 40
    similar.serve("one", served("one"))
    assert line_of(similar.report()) == [
        "similar   256 audits, 0 would have been wrong; 1 served, 0 wrong, 1 not known yet:"
        " at most 2 % of 40 requests, 10 % allowed; safe: docs from 0.95"
    ]
    assert line_of(learned(0.0).report())[0].endswith("0 % allowed; safe: no cosine")


def test_what_was_served_is_wanted_until_its_truth_is_known() -> None:
    similar = learned(0.1)
    similar.ledger.requests = 30
    for text in ("one", "two", "one"):
        similar.serve(text, served(text))
    assert similar.waiting() == {"docs": ["one", "two"]}
    assert not similar.ledger.may_serve()
    similar.computed("one", SAME_7)
    similar.computed("never served", SAME_7)
    similar.computed("two", SAME_8)
    assert similar.waiting() == {}
    report = similar.report()
    assert [report[key] for key in ("served", "pending", "errors")] == [3, 0, 2]
    assert report["bound"] == 2 / 30


def test_what_cannot_be_computed_counts_as_wrong_for_good() -> None:
    similar = learned(0.1)
    similar.ledger.requests = 10
    similar.serve("one", served("one"))
    for _ in range(ATTEMPTS):
        assert similar.waiting() == {"docs": ["one"]}
        similar.attempted("code")
        similar.attempted("docs")
    assert similar.waiting() == {}
    similar.computed("one", ROWS)
    assert (similar.ledger.pending, similar.ledger.may_serve()) == (1, False)
