"""Owns `cache`."""

from __future__ import annotations

import argparse

from ..ipc import messages
from ..ipc.client import expect
from . import render
from .session import client_of, print_json


def cache(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        match args.verb:
            case "popular":
                ask = messages.ListQueries(collection=args.collection, limit=args.limit)
                queries = expect(messages.QueryList, client.request(ask)).queries
                if args.json:
                    print_json(queries)
                else:
                    rows = [(q.query_text, q.collection, q.access_count, f"{q.popularity:.1f}") for q in queries]
                    headers = ("query", "collection", "searches", "popularity")
                    print(render.table(headers, rows) if rows else "no searches counted yet")
            case "get":
                return _get(args, client.reader.get(args.query, args.collection))
            case "invalidate":
                ask_drop = messages.Invalidate(collection=args.collection, pattern=args.pattern)
                count = expect(messages.Done, client.request(ask_drop)).count
                print_json({"dropped": count}) if args.json else print(f"{count} results dropped")
            case _:
                report = expect(messages.Report, client.request(messages.CacheStats())).report
                print_json(report) if args.json else print(render.result(report))
    return 0


def _get(args: argparse.Namespace, held: object) -> int:
    from ..ipc.result import CachedResult

    if not isinstance(held, CachedResult):
        print_json(None) if args.json else print("not in the cache")
        return 1
    if args.json:
        print_json({"query": held.query_text, "computed_at": held.computed_at, "hits": held.hits()})
    else:
        rows = [(h.id, f"{h.score:.3f}", h.payload["source"], str(h.payload["content"])[:70]) for h in held.hits()]
        print(render.table(("id", "score", "source", "text"), rows))
    return 0
