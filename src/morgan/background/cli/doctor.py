"""Owns `doctor`: says what is wrong in words, and what to do. What is looked at is in diagnosis.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from .. import diagnosis
from ..diagnosis import Finding, Level
from ..ipc.client import Client
from .session import config_of, print_json

MARKS = {Level.OK: "ok      ", Level.HINT: "hint    ", Level.PROBLEM: "PROBLEM "}


def run(args: argparse.Namespace) -> int:
    """Look at everything; return 1 if there is a problem, else 0."""
    config = config_of(args)
    found: list[Finding] = []

    def note(findings: Iterable[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            if not args.json:
                print(f"{MARKS[finding.level]}{finding.about}: {finding.words}")
                sys.stdout.flush()

    note(diagnosis.of_configuration(config))
    with Client(runtime_dir=config.runtime_dir(), state_dir=config.state_dir()) as client:
        is_running = client.is_running()
        note(diagnosis.of_service(config, client if is_running else None))
    note(diagnosis.of_runtime_dir(config))
    note(diagnosis.of_cgroup())
    embedder, findings = diagnosis.of_model(config)
    note(findings)
    note(diagnosis.of_reranker(config))
    store, findings = diagnosis.of_store(config, is_running=is_running)
    note(findings)
    if store is not None:
        try:
            note(diagnosis.of_collections(config, store, embedder))
        finally:
            store.close()
    problems = sum(finding.level is Level.PROBLEM for finding in found)
    if args.json:
        print_json({"problems": problems, "findings": found})
    else:
        print("nothing is wrong" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return 1 if problems else 0
