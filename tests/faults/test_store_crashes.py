"""The result store's writer killed at any instant, and read while it works at full speed: the short form of the soak.

`python -m bench.soak store` is the long one; docs/soak.md says what it found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.soak import COLLECTION, FAULTS, KEYS, TEXTS, Ledger, drops_all, drops_one, number_of, operate, written
from morgan.background.ipc.result import CachedResult
from morgan.background.ipc.store import ResultStore

ROOT = Path(__file__).parents[2]


def soak(*arguments: str) -> dict[str, Any]:
    """Run the soak in a process of its own, since it forks; return its summary."""
    command = [sys.executable, "-m", "bench.soak", "store", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=170)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert (done.returncode, found["wrong"]) == (0, 0), (found, done.stderr)
    return found


def test_300_kills_of_the_writer_lose_no_acknowledged_entry() -> None:
    found = soak("--kills", "300", "--reads", "0", "--seed", "4")["kills"]
    assert found["kills"] == 300
    assert found["operations"] > 5000
    assert found["hits"] > 2000
    assert found["killed while compacting"] > 20


def test_no_lookup_under_writes_at_full_speed_is_torn_stale_or_missing() -> None:
    found = soak("--kills", "0", "--reads", "200000", "--seed", "5")["reads"]
    assert found["reads"] == 200_000
    assert found["hits"] > 100_000
    assert found["writes"] > 1000
    assert found["compactions"] > 10
    assert found["sizes"] > 1


# --- the soak sees what it looks for ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results", capacity=KEYS)


def held(store: ResultStore, key: int) -> CachedResult | None:
    return store.get(TEXTS[key], COLLECTION)


def plain(first: int) -> int:
    """Return the first number from `first` on that is a put."""
    return next(number for number in range(first, first + 100) if not drops_all(number) and not drops_one(number))


def test_the_soak_tells_a_stale_a_lost_and_a_mixed_result_from_a_right_one(store: ResultStore) -> None:
    ledger, number = Ledger(), plain(1)
    key = number % KEYS
    assert ledger.verdict(key, 0, held(store, key), 0) == "misses"
    operate(store, ledger, number)
    low = ledger.acknowledged[key]
    assert low == number
    assert ledger.verdict(key, low, held(store, key), low) == "hits"
    assert ledger.verdict(key, low + KEYS, held(store, key), low + KEYS) == "stale"
    assert ledger.verdict(key, 0, held(store, key), low - 1) == "stale"  # of a write that has not begun
    assert ledger.verdict((key + 1) % KEYS, low, held(store, key), low) == "stale"  # another key's
    assert ledger.verdict(key, low, None, low) == "missing"
    mixed = written(number)
    for part, value in {"ids": (7, 8, 9), "sources": ("9",) * 3, "computed_at": 3.0, "embedding": bytes(32)}.items():
        values = {name: getattr(mixed, name) for name in mixed.__struct_fields__}
        store.put(type(mixed)(**values | {part: value}), expires_at=1e12)
        assert ledger.verdict(key, low, held(store, key), low) == "mixed", part
    store.close()


def test_the_soak_takes_a_dropped_entry_for_a_right_miss_only_while_it_is_dropped(store: ResultStore) -> None:
    ledger = Ledger()
    dropping = next(number for number in range(1, 1000) if drops_one(number) and number % KEYS == 5)
    for number in range(dropping - KEYS, dropping + KEYS + 1):
        operate(store, ledger, number)
        low = ledger.acknowledged[5]
        verdict = ledger.verdict(5, low, held(store, 5), low)
        assert verdict == ("misses" if dropping <= number < dropping + KEYS else "hits")
        assert verdict not in FAULTS
    assert ledger.verdict(5, dropping, None, dropping + KEYS) == "misses"  # it may have been read before the next put
    assert ledger.verdict(5, dropping + KEYS, None, dropping + KEYS) == "missing"
    result = held(store, 5)
    assert result is not None
    assert number_of(result) == dropping + KEYS
    store.close()
