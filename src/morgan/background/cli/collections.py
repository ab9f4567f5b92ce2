"""Owns `collections`."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ipc import calls
from ..ipc.client import UPSERT_BATCH, Client, expect
from ..ipc.errors import CollectionNotFound, InvalidArgument
from . import render
from .progress import Progress
from .session import client_of, print_json


def collections(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        match args.verb:
            case "create":
                made = client.create_collection(args.name, args.vector_size, args.distance)
                print_json(made) if args.json else print(f"{made.name}: {made.vector_size} dimensions, {made.distance}")
            case "drop":
                expect(calls.Changed, client.call(calls.Drop(collection=args.name)))
                print_json({"message": "dropped"}) if args.json else print(f"{args.name} dropped")
            case "load":
                return load(client, args)
            case "search":
                found = client.search(args.text, args.name, args.limit, is_reranked=args.rerank)
                if args.json:
                    print_json(found)
                else:
                    hits = [(h.id, f"{h.score:.3f}", str(h.payload["content"])[:70]) for h in found.hits]
                    print(render.table(("id", "score", "text"), hits) if hits else "nothing found")
                    print(
                        f"{'precomputed' if found.is_precomputed else 'searched'} in {render.duration(found.response_s)}"
                    )
            case _:
                known = client.collections()
                if args.json:
                    print_json(known)
                else:
                    rows = [(c.name, c.points, c.vector_size, c.distance, ", ".join(c.aliases)) for c in known]
                    headers = ("collection", "points", "dimensions", "distance", "aliases")
                    print(render.table(headers, rows) if rows else "no collections yet")
    return 0


def load(client: Client, args: argparse.Namespace) -> int:
    """Store a JSON-lines file. Bad lines are reported with their numbers; the good ones are stored all the same."""
    if args.file != "-" and not Path(args.file).is_file():
        raise InvalidArgument(f"no file {args.file}")
    if args.create and args.name not in {c.name for c in client.collections()}:
        client.create_collection(args.name)
    elif not any(args.name in (c.name, *c.aliases) for c in client.collections()):
        raise CollectionNotFound(f"no collection {args.name!r}: create it, or add --create")
    total = _count_lines(args.file)
    bad: list[str] = []
    progress, stored, batch = Progress(), 0, []
    for number, point in _points(args.file, args.id_field, bad):
        batch.append(point)
        if len(batch) == UPSERT_BATCH:
            stored += client.upsert(args.name, batch)
            batch = []
            progress.show(number, total, "embedding and storing")
    stored += client.upsert(args.name, batch)
    progress.clear()
    for complaint in bad[:20]:
        print(f"morgan-background: {complaint}", file=sys.stderr)
    if args.json:
        print_json({"stored": stored, "bad_lines": bad})
    else:
        print(f"{stored} points stored in {args.name}" + (f", {len(bad)} lines left out" if bad else ""))
    return 1 if bad else 0


def _count_lines(name: str) -> int:
    if name == "-":
        return 0
    with Path(name).open("rb") as file:
        return sum(1 for _ in file)


def _points(name: str, id_field: str, bad: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with sys.stdin if name == "-" else Path(name).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                payload = json.loads(line)
            except ValueError as error:
                bad.append(f"{name}:{number}: not JSON: {error}")
                continue
            if not isinstance(payload, dict):
                bad.append(f"{name}:{number}: not a JSON object")
                continue
            yield number, {"id": point_id(payload.get(id_field), name, number), "payload": payload}


def point_id(given: Any, name: str, number: int) -> int | str:
    """Return a whole number or UUID as it is; anything else becomes a UUID made from it (or from the line's number).

    Made from its content, so that the same file loaded twice replaces its points instead of doubling them.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    try:
        return str(uuid.UUID(str(given)))
    except ValueError:
        key = f"{Path(name).name}:{number}" if given is None else str(given)
        return str(uuid.uuid5(uuid.NAMESPACE_URL, key))
