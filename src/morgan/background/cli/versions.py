"""Owns `roll-back` and `adopt-alias`."""

from __future__ import annotations

import argparse

from ..ipc import calls
from ..ipc.client import expect
from .progress import Progress
from .session import client_of, config_of, print_json


def roll_back(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        done = client.roll_back(args.collection, is_forced=args.force)
    if args.json:
        print_json(done)
    else:
        print(f"{args.collection} is {done.served} again; {done.kept} is kept as {done.kept_as}")
    return 0


def adopt(args: argparse.Namespace) -> int:
    """Rename in the embedded store, at once; copy where a Qdrant server has the collection."""
    config = config_of(args)
    settings = config.worker_settings().store
    if settings.is_embedded:
        with client_of(args) as client:
            call = calls.MakeAlias(collection=args.collection, rename_to=f"{args.collection}__v1")
            (made,) = expect(calls.CollectionList, client.call(call)).collections
    else:
        from ..workers.adopting import adopt_alias
        from ..workers.qdrant_clients import connect

        store, progress = connect(settings), Progress()
        try:
            made = adopt_alias(store, args.collection, lambda done, total: progress.show(done, total, "copying"))
        finally:
            progress.clear()
            store.close()
    print_json(made) if args.json else print(f"{args.collection} is an alias of {made.name} now")
    return 0
