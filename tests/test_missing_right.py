"""A right that Redis refuses is told: in the log once, by the probe as long as it lasts, and not as a Redis that is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from expirer.journal import RightsJournal
from tests.acl import PASSWORD, RULES
from tests.conftest import Log
from tests.program import Backlog, wait_until
from tests.servers import RedisServer
from tests.test_web import Site

Open = Callable[..., Site]
WAY_OUT = "grant what the README lists under Container, server and rights; ACL LOG names what was refused"


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the test's own server as its owner."""
    with own_server.client() as client:
        yield client


@pytest.fixture
def open_site(own_server: RedisServer, admin: redis.Redis) -> Iterator[Open]:
    """Return a function that runs a worker with HTTP, whose user lacks a right."""
    with ExitStack() as stack:

        def run(lacks: str) -> Site:
            rules = [rule for rule in RULES["expirer"] if rule != lacks]
            admin.execute_command("ACL", "SETUSER", "expirer", *rules)  # type: ignore[no-untyped-call]
            return Site(f"{own_server.url}?username=expirer&password={PASSWORD}", stack)

        yield run


@pytest.mark.parametrize(
    ("lacks", "named"),
    [
        ("+hgetall", ["HGETALL {inventory}:stats", "'hgetall'"]),
        ("~{inventory}:expired", ["key"]),
        ("+hscan", ["'hscan'"]),
    ],
)
def test_what_only_the_figures_need_keeps_nobody_from_work(
    open_site: Open, admin: redis.Redis, lacks: str, named: list[str]
) -> None:
    """Redis is up, units come back, the probe says ok and what is missing; log and probe say when it is granted."""
    backlog = Backlog(admin)
    backlog.add(20)
    shop = backlog.shop
    admin.hset(shop.keys.quarantine, "o9:mug", "reason=stock_missing at=1 score=1")
    flags = () if lacks[0] == "+" else ("no events",)
    site = open_site(lacks)
    told = site.program.wait_for("right_missing")
    wait_until(lambda: flags or not backlog.left())
    code, body = site.get("/readyz")
    figures = site.figures()
