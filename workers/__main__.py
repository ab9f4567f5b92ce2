"""Owns the start of a worker process. Started by supervisor/pool.py, never by hand."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..ipc.board import Board
from ..ipc.commands import Configure, Role
from ..ipc.reader import ResultReader
from .courtesy import be_courteous
from .link import Link, watch_over

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(prog="morgan-background worker")
    parser.add_argument("--role", type=Role, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("MORGAN_SERVICE_LOG_LEVEL", "info").upper(),
        format=f"%(asctime)s {args.role.value} {args.index} %(levelname)s %(message)s",
    )
    if args.role is Role.TASKS:  # the owner answers applications: it is not in the background
        log.info("in force: %s", ", ".join(be_courteous(args.cpu)) or "nothing; the CPU budget alone")
    link = Link(args.socket, args.role, args.index)
    command = link.wait(30.0)  # a supervisor answers Ready within one turn of its loop
    if not isinstance(command, Configure):
        link.close()
        return 1
    board = Board.attach(Path(command.board_path))
    watch_over(args.parent, board, command.board_row)
    if args.role is Role.OWNER:
        from .owner_loop import run_owner

        run_owner(link, command)
    else:
        run_tasks(link, board, command)
    link.close()
    return 0


def run_tasks(link: Link, board: Board, command: Configure) -> None:
    from .loop import TaskWorker
    from .models import SentenceTransformerEmbedder
    from .open_store import open_store
    from .reranker import make_reranker
    from .task import Tools
    from .tasks import TASKS

    settings, results = command.settings, ResultReader(Path(command.results_path))

    def make_tools(pace: Callable[[], None]) -> Tools:
        embedder = SentenceTransformerEmbedder(settings.model)
        store = open_store(settings.store, command.owner_socket)
        return Tools(
            store=store,
            embedder=embedder,
            reranker=make_reranker(settings.rerank, embedder),
            settings=settings,
            clock=time.time,
            pace=pace,
            as_of=lambda: getattr(store, "as_of", 0),
            cached=lambda text, collection: results.get_at(text, collection, "", time.time()),
        )

    row = command.board_row
    TaskWorker(link, make_tools, TASKS, duty=lambda: board.duty(row), count_step=lambda: board.count_step(row)).serve()


if __name__ == "__main__":
    raise SystemExit(main())
