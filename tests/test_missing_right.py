"""A right that is missing is told: in the log once, by the probe while it lasts, and not as a Redis that is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from expirer.connect import GRANT
from expirer.journal import RightsJournal
from tests.acl import PASSWORD, RULES
from tests.conftest import Log
from tests.inventory import Inventory
from tests.program import Backlog, wait_until
from tests.servers import RedisServer
from tests.test_web import Site

Open = Callable[[str], Site]


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the test's own server as its owner, with something in quarantine."""
    with own_server.client() as client:
        client.hset(Inventory(client).keys.quarantine, "poison:mug", "reason=stock_missing at=1 score=1")
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


def grant(admin: redis.Redis) -> None:
    """Give the user all its rights."""
    admin.execute_command("ACL", "SETUSER", "expirer", *RULES["expirer"])  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("lacks", ["+hgetall", "+hscan"])
def test_what_only_the_figures_need_keeps_nobody_from_work(open_site: Open, admin: redis.Redis, lacks: str) -> None:
    """Units come back, and the probe says ok and which command is missing; log and probe say when it is there."""
    backlog = Backlog(admin)
    backlog.add(20)
    site = open_site(lacks)
    told = site.program.wait_for("right_missing")
    assert lacks[1:] in told["message"]
    assert GRANT in told["message"]
    wait_until(lambda: not backlog.left())
    wait_until(lambda: site.get("/readyz")[0] == 200)
    assert (200, f"ok, but the figures lack what this user may not read: {told['message']}\n") == site.get("/readyz")
    figures = site.figures()
    assert (1, lacks == "+hgetall") == (figures["expirer_redis_up"], figures["expirer_right_missing"])
    assert (lacks == "+hgetall") == ("expirer_shard_overdue_reservations" not in figures)

    grant(admin)
    site.program.wait_for("right_given")

    assert (200, "ok\n") == site.get("/readyz")
    wait_until(lambda: site.figures()["expirer_right_missing"] == 0)
    assert site.figures()["expirer_shard_overdue_reservations"] == 0
    assert 1 == len(site.program.of("right_missing"))
    assert [] == [line for line in site.program.lines if PASSWORD in line]
    backlog.assert_expired_once()


@pytest.mark.parametrize(
    ("lacks", "named"),
    [("+zadd", "zadd"), ("~{inventory}:stock:*", "{inventory}:stock:*"), ("~{inventory}:stats", "{inventory}:stats")],
)
def test_what_the_worker_needs_is_named_by_the_probe(
    open_site: Open, admin: redis.Redis, lacks: str, named: str
) -> None:
    """A worker that may not work is not ready, and the probe names the command or the keys, and the way out."""
    backlog = Backlog(admin)
    backlog.add(20)
    site = open_site(lacks)
    site.program.wait_for("processing_error")
    wait_until(lambda: site.get("/readyz")[0] == 503)
    _, body = site.get("/readyz")
    assert body.startswith("shard 0: the last ")
    assert named in body.lower()
    assert GRANT in body
    assert PASSWORD not in body
    assert 1 == site.figures()["expirer_redis_up"]

    grant(admin)
    wait_until(lambda: not backlog.left())

    wait_until(lambda: site.get("/readyz")[0] == 200)
    backlog.assert_expired_once()


def test_the_log_says_it_once(log: Log) -> None:
    """What lasts is said once, another right anew, and the end once: however often the page looks."""
    journal = RightsJournal(log.logger())
    for missing in ("", "one", "one", "another", "", ""):
        journal.tell(missing)

    told = [(entry["event"], entry.get("message")) for entry in log.entries]
    assert [("right_missing", "one"), ("right_missing", "another"), ("right_given", None)] == told
