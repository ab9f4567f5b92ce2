"""Owns the commands, their options and the exit codes. What a command does is in its own module."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..ipc.errors import (
    AlreadyRunning,
    ConfigError,
    InvalidArgument,
    MorganError,
    ServiceUnavailable,
    StoreLocked,
)

OK, FAILED, USAGE, NO_SERVICE = range(4)
INTERRUPTED = 130  # as a shell reports SIGINT

FREQUENCIES = ("hourly", "daily", "weekly")
TYPES = ("reindex", "rerank", "warm", "tune", "learn", "ping")


class _Parser(argparse.ArgumentParser):
    """Takes the options that stand anywhere: before a command, behind it, behind its verb."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # SUPPRESS: the default of a later place must not undo the value given at an earlier one
        self.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="the TOML file to use")
        self.add_argument(
            "--state-dir", metavar="DIR", default=argparse.SUPPRESS, help="which service: its state directory"
        )
        self.add_argument("--runtime-dir", metavar="DIR", default=argparse.SUPPRESS, help="its sockets, shared memory")
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")


def build() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="morgan-background",
        description="Spends a RAG machine's spare capacity on making retrieval better.",
        epilog="exit codes: 0 done, 1 it failed, 2 usage or configuration, 3 no service answers, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"morgan-background {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, does: str, target: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        one.set_defaults(target=target)
        return one

    add("serve", "run the service until SIGTERM", "serve:serve")
    add("stop", "drain and end the service", "service:stop")
    add("status", "show what runs, what waits and why, budget, cache, problems", "service:status")
    why = add("why", "say why tasks wait, when they are expected to run, and what schedules do", "service:why")
    why.add_argument("id", nargs="?", help="of one task or schedule")
    add("reload", "read the configuration again, and say what takes effect", "service:reload")
    governor = add("governor", "list what the governor decided, or plot the CPU budget", "governor:governor")
    governor.add_argument("--hours", type=float, default=24.0, metavar="N", help="of so many hours (default: 24)")
    governor.add_argument("--plot", metavar="FILE", help="draw them into this PNG file (needs matplotlib)")
    quality = add("quality", "say what is known of quality, or plot it over time", "quality:quality")
    quality.add_argument("--days", type=int, default=30, metavar="N", help="of so many days (default: 30)")
    quality.add_argument("--plot", metavar="FILE", help="draw them into this PNG file (needs matplotlib)")
    watch = add("watch", "print what happens as it happens, until Ctrl-C", "watch:watch")
    watch.add_argument("--for", type=float, dest="for", metavar="SECONDS", help="end by itself after this long")
    _run(add("run", "run one task now and show its progress", "tasks:run"))
    _schedule(add("schedule", "list, add or remove scheduled tasks", "schedule:schedule"))
    _tasks(add("tasks", "list tasks, or cancel, requeue, pause and resume them", "tasks:tasks"))
    _cache(add("cache", "figures and contents of the result store", "cache:cache"))
    _collections(add("collections", "list, create, load, search or drop collections", "collections:collections"))
    back = add("roll-back", "serve the version before a collection's last swap again", "versions:roll_back")
    back.add_argument("collection")
    back.add_argument("--force", action="store_true", help="also where documents were written since the swap")
    learn = add("learn", "learn a reranker for a collection from its judgments", "tasks:learn")
    learn.add_argument("collection")
    learn.add_argument("--undo", action="store_true", help="use the reranker before instead; once more: the later one")
    learn.add_argument("--force", action="store_true", help="run it whatever the CPU budget")
    tune = add("tune", "measure a collection's index and propose other settings", "tasks:tune")
    tune.add_argument("collection")
    tune.add_argument("--apply", action="store_true", help="make the changes that are proposed")
    tune.add_argument("--force", action="store_true", help="run it whatever the CPU budget")
    adopt = add("adopt-alias", "make an alias of a collection's name, so that it can be swapped", "versions:adopt")
    adopt.add_argument("collection")
    demo = add("demo", "the whole service on a small real corpus, in a folder of its own", "demo:run")
    demo.add_argument("--keep", metavar="DIR", help="leave the demo's state in this folder")
    add("doctor", "say in words what is wrong", "doctor:run")
    config = add("config", "show the configuration in force", "service:config")
    _units(add("install-service", "write a systemd unit for the service", "install:install"), is_install=True)
    _units(add("uninstall-service", "remove the unit that install-service wrote", "install:uninstall"))
    config.add_argument("--defaults", action="store_true", help="print a file with every key at its default")
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", help=" | ".join(TYPES))
    parser.add_argument("collection")
    parser.add_argument("--force", action="store_true", help="run it whatever the CPU budget")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="give it up where it has not ended by then")
    parser.add_argument("--no-wait", action="store_true", help="hand it in and return")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter, its value in JSON"
    )


def _units(parser: argparse.ArgumentParser, *, is_install: bool = False) -> None:
    parser.add_argument("--user", action="store_true", help="of your own systemd, without root")
    parser.add_argument("--name", default="morgan-background", help="of the unit (default: morgan-background)")
    parser.add_argument("--unit-dir", metavar="DIR", help="where units lie, if not where systemd looks for yours")
    if is_install:
        parser.add_argument("--run-as", metavar="USER", help="whose applications it serves (default: who called sudo)")
        parser.add_argument("--api-key-file", metavar="FILE", help="holds the key of the Qdrant server")
        parser.add_argument("--dry-run", action="store_true", help="print the unit, write nothing")
        parser.add_argument("--force", action="store_true", help="replace a unit of that name")


def _verbs(parser: argparse.ArgumentParser, default: str) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    parser.set_defaults(verb=default)
    return parser.add_subparsers(dest="verb", metavar="VERB")


def _schedule(parser: argparse.ArgumentParser) -> None:
    verbs = _verbs(parser, "list")
    verbs.add_parser("list", help="the next run first (the default)")
    add = verbs.add_parser("add", help="TYPE COLLECTION FREQUENCY")
    add.add_argument("type", help=" | ".join(TYPES))
    add.add_argument("collection")
    add.add_argument("frequency", help=" | ".join(FREQUENCIES))
    verbs.add_parser("remove", help="take one off").add_argument("id")


def _tasks(parser: argparse.ArgumentParser) -> None:
    verbs = _verbs(parser, "list")
    listed = verbs.add_parser("list", help="the newest first (the default)")
    listed.add_argument("--limit", type=int, default=20)
    listed.add_argument("--status", help="only those in this state")
    history = verbs.add_parser("history", help="what was run, the latest first: how long, on what CPU, to what end")
    history.add_argument("--type", help="only " + " | ".join(TYPES))
    history.add_argument("--collection")
    history.add_argument("--status", help="only those that ended so")
    history.add_argument("--limit", type=int, default=20)
    for verb, does in (
        ("show", "one task, whole"),
        ("cancel", "stop a task for good"),
        ("requeue", "try a failed one again"),
    ):
        verbs.add_parser(verb, help=does).add_argument("id")
    for verb, does in (("pause", "let nothing run"), ("resume", "let it run again")):
        verbs.add_parser(verb, help=f"{does}, or on one collection").add_argument("collection", nargs="?")


def _cache(parser: argparse.ArgumentParser) -> None:
    verbs = _verbs(parser, "stats")
    verbs.add_parser("stats", help="figures (the default)")
    popular = verbs.add_parser("popular", help="the most popular queries")
    popular.add_argument("--collection")
    popular.add_argument("--limit", type=int, default=20)
    get = verbs.add_parser("get", help="a query's precomputed results, from shared memory")
    get.add_argument("query")
    get.add_argument("collection")
    invalidate = verbs.add_parser("invalidate", help="drop results")
    invalidate.add_argument("--collection")
    invalidate.add_argument("--pattern", help="only those whose query contains this")


def _collections(parser: argparse.ArgumentParser) -> None:
    verbs = _verbs(parser, "list")
    verbs.add_parser("list", help="names, points, vectors (the default)")
    create = verbs.add_parser("create", help="an empty collection")
    create.add_argument("name")
    create.add_argument("--vector-size", type=int, default=0, help="0: the embedding model's")
    create.add_argument("--distance", default="cosine")
    verbs.add_parser("drop", help="delete a collection and its points").add_argument("name")
    load = verbs.add_parser("load", help="embed and store the lines of a JSON-lines file")
    load.add_argument("name")
    load.add_argument("file", help="a JSON object a line; - for standard input")
    load.add_argument("--create", action="store_true", help="create the collection if it is missing")
    load.add_argument("--id-field", default="id", help="which key is the id (a whole number or UUID; else one is made)")
    search = verbs.add_parser("search", help="search by meaning")
    search.add_argument("name")
    search.add_argument("text")
    search.add_argument("--limit", type=int, default=10)
    search.add_argument("--rerank", action="store_true")


def _serve_alone(argv: Sequence[str]) -> argparse.Namespace:
    """Parse what follows `serve` as `build` would, without all other commands: 8 ms of a restart."""
    parser = _Parser(prog="morgan-background serve", description="Run the service until SIGTERM.")
    parser.set_defaults(command="serve", target="serve:serve")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = _serve_alone(argv[1:]) if argv[:1] == ["serve"] else build().parse_args(argv)
    for name, value in (("config", None), ("state_dir", None), ("runtime_dir", None), ("json", False)):
        if not hasattr(args, name):
            setattr(args, name, value)
    module, _, function = args.target.partition(":")
    try:
        code: int = getattr(importlib.import_module(f".{module}", __package__), function)(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except MorganError as error:
        return _complain(args, error)
    return code


def _complain(args: argparse.Namespace, error: MorganError) -> int:
    if args.json:
        print(json.dumps({"error": error.code, "message": str(error)}))
    print(f"morgan-background: {error}", file=sys.stderr)
    match error:
        case ServiceUnavailable():
            return NO_SERVICE
        case ConfigError() | InvalidArgument() | AlreadyRunning() | StoreLocked():
            return USAGE
        case _:
            return FAILED
