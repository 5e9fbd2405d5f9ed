"""The shop of the Compose file: it reserves and pays for ever, and loses no unit, whatever happens to its Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest
import redis

from tests.deployments import DEPLOY
from tests.inventory import Inventory
from tests.program import DEADLINE_S, Program, wait_until
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

SHOP = [sys.executable, str(DEPLOY / "shop.py")]


@contextmanager
def open_shop(url: str, log: Path) -> Iterator[None]:
    """Run the shop with holds of two seconds; close it in the end, with exit code 0."""
    environment = {"EXPIRER_REDIS_URL": url, "EXPIRER_DEFAULT_DURATION": "2s"}
    log.touch()
    opened = log.read_bytes().count(b"shop_opened")
    with log.open("ab") as stderr:
        process = subprocess.Popen(SHOP, env={**os.environ, **environment}, stderr=stderr)
    try:
        wait_until(lambda: log.read_bytes().count(b"shop_opened") > opened)
        yield
        process.send_signal(SIGTERM)

        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


def stocked(client: redis.Redis, shop: Inventory) -> dict[str, int]:
    """Return what the shop says that was delivered, by product."""
    keys = [key.decode() for key in client.scan_iter(f"{shop.keys.stock_prefix}*")]
    return {key.removeprefix(shop.keys.stock_prefix): int(client.hget(key, "stocked") or 0) for key in keys}


def test_no_unit_is_lost(own_server: RedisServer, tmp_path: Path) -> None:
    """Through a Redis that hangs, and a second shop after the first, every unit is available, reserved or sold."""
    log = tmp_path / "log"
    with own_server.client() as client, Program(own_server.url):
        shop = Inventory(client)
        with open_shop(f"{own_server.url}?socket_timeout=0.2", log):
            wait_until(lambda: client.xlen(shop.keys.events) > 20)
            own_server.signal(SIGSTOP)
            wait_until(lambda: b"redis_is_down" in log.read_bytes())
            own_server.signal(SIGCONT)
            wait_until(lambda: b"redis_is_back" in log.read_bytes())
        wait_until(lambda: not client.zcard(shop.keys.index))
        expired = client.xlen(shop.keys.events)
        with open_shop(own_server.url, log):
            wait_until(lambda: client.xlen(shop.keys.events) > expired + 20)
        wait_until(lambda: not client.zcard(shop.keys.index))

        assert 2 == log.read_bytes().count(b"shop_closed")
        assert 8 == len(stocked(client, shop))
        shop.assert_conserved(stocked(client, shop))


def test_a_closed_shop_waits_for_nobody(own_server: RedisServer, tmp_path: Path) -> None:
    """It opens without a Redis, says so once, and closes at once."""
    own_server.stop()
    log = tmp_path / "log"
    with open_shop(own_server.url, log):
        wait_until(lambda: b"redis_is_down" in log.read_bytes())

    assert [1, 1] == [log.read_bytes().count(event) for event in (b"redis_is_down", b"shop_closed")]


def test_a_wrong_setting_is_one_line() -> None:
    """A setting that the shop cannot use ends it with exit code 2 and a line that says why."""
    done = subprocess.run(
        SHOP, env={**os.environ, "EXPIRER_INDEX_KEY": "holds"}, capture_output=True, text=True, check=False
    )

    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert "another layout" in done.stderr
