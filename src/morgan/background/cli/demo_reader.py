"""Owns the second process of the demo: looks queries up in shared memory and says how long that took.

python -m morgan.background.cli.demo_reader RESULTS READERS COLLECTION < ["query", ...]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from ..ipc.reader import ResultReader

AGAIN = 100  # repeated reads of each query


def main() -> int:
    results, readers, collection = sys.argv[1:]
    queries: list[str] = json.load(sys.stdin)
    reader = ResultReader(Path(results), counters_dir=Path(readers))
    reader.get("", collection)  # opens the file: not part of any lookup
    first, again, hits = [], [], 0
    for query in queries:
        began = time.perf_counter()
        found = reader.get(query, collection)
        rows = found.hits() if found is not None else ()
        first.append(time.perf_counter() - began)
        hits += bool(rows)
    for query in queries * AGAIN:
        began = time.perf_counter()
        reader.get(query, collection)
        again.append(time.perf_counter() - began)
    print(json.dumps({"pid": os.getpid(), "hits": hits, "first_p50_s": _p50(first), "again_p50_s": _p50(again)}))
    reader.close()
    return 0


def _p50(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    raise SystemExit(main())
