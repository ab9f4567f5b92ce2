"""Owns what the workers of other task queues import: one task, and the application object that each of them wants.

The objects are made when they are asked for: importing this module needs none of those packages. MORGAN_BENCH_REDIS is
the path of the Redis server's Unix socket.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

HOLD_S = 600.0
RESULTS_S = 3600


def work(mark: str = "") -> int:
    """Do nothing; return this process's pid. With `mark`, a path: write the pid there and hold, at the first call alone.

    So a worker can be killed in the middle of a task whose next attempt ends at once.
    """
    if mark:
        try:
            fd = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return os.getpid()
        os.write(fd, f"{os.getpid()}\n".encode())
        os.close(fd)
        time.sleep(HOLD_S)
    return os.getpid()


def redis_socket() -> str:
    return os.environ["MORGAN_BENCH_REDIS"]


@cache
def celery_app() -> Any:
    from celery import Celery

    url = f"redis+socket://{redis_socket()}"
    app = Celery("bench", broker=url, backend=url)
    # late acknowledgement: without it a task whose worker dies is lost
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
        result_expires=RESULTS_S,
    )
    app.task(name="work")(work)
    return app


@cache
def dramatiq_broker() -> Any:
    import dramatiq
    import redis
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(client=redis.Redis(unix_socket_path=redis_socket()))
    broker.add_middleware(Results(backend=RedisBackend(client=redis.Redis(unix_socket_path=redis_socket()))))
    dramatiq.set_broker(broker)
    dramatiq.actor(work, broker=broker, store_results=True, actor_name="work")
    return broker


@cache
def huey_app() -> Any:
    from huey import RedisHuey

    app = RedisHuey("bench", url=f"unix://{redis_socket()}")
    app.bench_work = app.task(retries=3, name="work")(work)
    return app


MAKERS = {"celery": celery_app, "dramatiq": dramatiq_broker, "huey": huey_app}


def __getattr__(name: str) -> Any:
    """Return an application by the name under which its command line asks for it."""
    if name in MAKERS:
        return MAKERS[name]()
    raise AttributeError(name)


def mark_of(folder: Path, number: int) -> Path:
    return folder / f"mark-{number}"
