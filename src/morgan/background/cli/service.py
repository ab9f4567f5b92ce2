"""Owns `serve`, `stop`, `status` and `config`."""

from __future__ import annotations

import argparse
import logging

import msgspec

from ..ipc import messages
from ..ipc.client import expect
from ..supervisor.config import default_toml
from . import render
from .session import client_of, config_of, print_json


def serve(args: argparse.Namespace) -> int:
    config = config_of(args)
    logging.basicConfig(
        level=config.service.log_level.upper(), format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    from ..supervisor.__main__ import serve as serve_until_told

    return serve_until_told(config)


def stop(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        client.request(messages.Shutdown())
    words = "draining: the service leaves when its running steps are done"
    print_json({"message": words}) if args.json else print(words)
    return 0


def status(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        report = expect(messages.Report, client.request(messages.Status())).report
    if args.json:
        print_json(report)
    else:
        print(render.status(report))
    return 0


def config(args: argparse.Namespace) -> int:
    if args.defaults:
        print(default_toml(), end="")
        return 0
    found = config_of(args)
    shown = msgspec.to_builtins(found, builtin_types=())
    shown["api_key"] = str(found.api_key)
    shown["source"] = None if found.source is None else str(found.source)
    shown["in_force"] = {"state_dir": str(found.state_dir()), "runtime_dir": str(found.runtime_dir())}
    if args.json:
        print_json(shown)
        return 0
    print(f"# from {shown['source'] or 'defaults (no file was found)'}")
    for section, values in shown.items():
        if isinstance(values, dict):
            print(f"\n[{section}]")
            print(render.result(values))
    return 0
