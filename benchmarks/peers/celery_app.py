"""Celery: one task per reservation with an ETA, which its worker keeps as a timer in memory."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

import redis
from celery import Celery

SOCKET = os.environ["BENCH_SOCKET"]
RESERVATION, STOCK = "{inventory}:reservation:", "{inventory}:stock:"

app = Celery("celery_app", broker=f"redis+socket://{SOCKET}")
app.conf.update(
    broker_transport_options={"visibility_timeout": 86_400},  # longer than the longest ETA, as its manual asks
    task_ignore_result=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=0,
    worker_send_task_events=False,
)
client = redis.Redis(unix_socket_path=SOCKET, protocol=2)


def release(id_: str, product: str, quantity: int) -> None:
    """Give one reservation's units back."""
    with client.pipeline() as pipe:
        pipe.hset(RESERVATION + id_, "status", "Expired")
        pipe.hincrby(STOCK + product, "available", quantity)
        pipe.hincrby(STOCK + product, "reserved", -quantity)
        pipe.execute()


task = app.task(release, name="release")


def main() -> None:
    """Add one task for each `[id, product, ExpiresAt in Unix ms]` on standard input."""
    with app.producer_pool.acquire() as producer:
        for id_, product, expires_at in json.load(sys.stdin):
            eta = datetime.fromtimestamp(expires_at / 1000, UTC)
            task.apply_async((id_, product, 1), eta=eta, producer=producer)


if __name__ == "__main__":
    main()
