"""Owns `serve`: joins the supervisor and the fork server, which know nothing of each other. Imports what both need, once."""

from __future__ import annotations

import argparse
import gc
import logging
import os


def serve(args: argparse.Namespace) -> int:
    # read by numpy's import: a process that has two threads cannot be forked
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # imports make no garbage worth looking for: that took a twentieth of the start
    try:
        from ..supervisor.__main__ import serve as serve_until_told
        from ..workers.zygote import obey
        from .session import config_of
    finally:
        gc.enable()
    config = config_of(args)
    logging.basicConfig(
        level=config.service.log_level.upper(), format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    return serve_until_told(config, lambda: config_of(args), obey)
