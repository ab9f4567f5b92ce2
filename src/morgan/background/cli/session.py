"""Owns what most commands begin and end with: the configuration, a client, and the printing of what came back."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

import msgspec

from ..supervisor.config import Config, load

if TYPE_CHECKING:
    from ..ipc.client import Client  # late: `serve` needs none, and is to be there soon


def config_of(args: argparse.Namespace) -> Config:
    """Return the configuration with the command line's folders before the file's and the environment's."""
    env = dict(os.environ)
    for name in ("state_dir", "runtime_dir"):
        if value := getattr(args, name):
            # both names that load() reads: a folder on the command line goes before either
            env[f"MORGAN_{name.upper()}"] = env[f"MORGAN_SERVICE_{name.upper()}"] = str(value)
    if args.state_dir and not args.runtime_dir:  # the runtime folder follows the state folder, not another service's
        for variable in ("MORGAN_RUNTIME_DIR", "MORGAN_SERVICE_RUNTIME_DIR"):
            env.pop(variable, None)
    return load(args.config, env)


def client_of(args: argparse.Namespace) -> Client:
    from ..ipc.client import Client

    config = config_of(args)
    return Client(runtime_dir=config.runtime_dir(), state_dir=config.state_dir())


def print_json(value: Any) -> None:
    print(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False, default=str))
