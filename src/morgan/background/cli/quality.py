"""Owns `quality`: what is known of quality, in words, as JSON or as a picture (quality_plot.py)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..ipc import messages
from ..ipc.client import expect
from . import plot, render
from .session import client_of, print_json


def quality(args: argparse.Namespace) -> int:
    if args.plot:
        plot.check()  # before the service is asked: what is missing is said at once
    with client_of(args) as client:
        found = expect(messages.Report, client.request(messages.Quality(days=args.days))).report
    if args.plot:
        from .quality_plot import draw

        draw(found, Path(args.plot))
    if args.json:
        print_json(found | ({"plot": args.plot} if args.plot else {}))
    elif args.plot:
        print(f"{len(found['history'])} rows drawn into {args.plot}")
    else:
        lines = render.quality(found)
        print("\n".join(lines) if lines else "nothing is known yet: no search, no judgment, no reranked query")
    return 0
