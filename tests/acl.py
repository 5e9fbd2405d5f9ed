"""The users of deploy/acl/expirer.acl, the access at which one works, and what a server has refused to them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from expirer import Reservations, cli
from expirer.config.settings import Settings
from expirer.connection.connect import Servers, connect_all
from expirer.contract.clock import worker_clock
from tests.inventory import Inventory
from tests.reader import ROOT
from tests.servers import RedisServer

FILE = ROOT / "deploy" / "acl" / "expirer.acl"
SENTINEL_FILE = FILE.with_name("sentinel.acl")
PASSWORD = "correct horse"  # noqa: S105  # of users that live as long as a test
_NOT_NEEDED = {"config", "config|get", "client", "client|setinfo"}
"""What `check` and redis-py ask as well, and do without. Redis 6.2 names no subcommand."""
PAST, LATER = 1_700_000_000_000, 4_000_000_000_000


def users(text: str) -> dict[str, list[str]]:
    """Read the lines of an ACL file: user -> rules."""
    return {line.split()[1]: line.split()[2:] for line in text.splitlines() if line.startswith("user ")}


def with_passwords(text: str) -> str:
    """Put the hash of PASSWORD in place of each placeholder."""
    return re.sub(r"#sha256-\S+", f"#{hashlib.sha256(PASSWORD.encode()).hexdigest()}", text)


TEXT = FILE.read_text()
RULES = users(with_passwords(TEXT))
OF_A_TOPOLOGY = {"+cluster|slots", "+command"}
"""What one server alone asks of nobody: see test_acl_topologies."""
NAMING = "+client|setname"
"""It names connections in CLIENT LIST; without it everything else works."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where a user works: the shop as its owner sees it, and how the user reaches it; `topology` is of settings."""

    shop: Inventory
    server: RedisServer
    url: str
    topology: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Return settings with the user's address."""
        return Settings(redis_url=self.url, **self.topology)

    def fill(self) -> None:
        """Leave nothing but a small shop in which everything has happened: each outcome, each finding."""
        shop, admin = self.shop, self.shop.client
        admin.flushall()
        admin.script_flush()
        shop.stock("mug", 3, 7)
        admin.set(shop.keys.stock_prefix + "tea", 5)
        shop.hold("mug", 2, PAST, "o1:mug")
        shop.hold("tea", 1, PAST, "o2:tea")
        shop.hold("mug", 1, PAST, "ended:mug", status="Released")
        shop.hold("ghost", 1, PAST, "poison:ghost")
        admin.zadd(shop.keys.index, {"lost:mug": PAST})
        shop.hold("mug", 5, LATER, "extended:mug")
        admin.zadd(shop.keys.index, {"extended:mug": PAST})
        shop.hold("mug", 2, PAST, "old:mug", status="Expired", expired_at=PAST)
        admin.zrem(shop.keys.index, "old:mug")
        admin.xadd(shop.keys.events, {"reservation_id": "old:mug", "expired_at": PAST}, id=f"{PAST}-0")
        for id_ in ("q1:mug", "q2:mug", "q3:tea"):
            shop.hold(id_.partition(":")[2], 1, PAST, id_)
            admin.zrem(shop.keys.index, id_)
            admin.hset(shop.keys.quarantine, id_, f"reason=stock_missing at={PAST} score={PAST}")
        admin.hset(shop.keys.quarantine, "old:mug", f"reason=stock_missing at={PAST} score={PAST}")
        admin.pexpire(shop.keys.reservation_prefix + "q1:mug", 86_400_000)
        admin.hset(shop.keys.control, mapping={"paused": 1, "until": PAST - 1, "by": "ann"})
        admin.zadd(shop.keys.workers, {"gone": PAST, "here": worker_clock()})
        admin.hset(shop.keys.about, mapping={"gone": "version=1", "here": "version=1"})

    def complaints(self, *command: str) -> list[str]:
        """Run a command; return the lines in which it says that something stands in its way."""
        out, err = self.output(*command)
        said = [line for line in err.splitlines() if line.startswith("expirer: ")]
        marks = ("failure", "warning", "remark", "ok       server: it hides INFO")
        return said + [line for line in out.splitlines() if line.startswith(marks)]

    def output(self, *command: str) -> tuple[str, str]:
        """Run a command; return what it prints: standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self.topology.items()]
        with redirect_stdout(out), redirect_stderr(err), patch("expirer.operate.audit._SETTLE_S", 0):
            cli.main([*command, "--redis-url", self.url, *flags])
        return out.getvalue(), err.getvalue()

    def errors(self, act: Callable[[Servers], object]) -> list[str]:
        """Return what goes wrong where the user does something without a command."""
        return _errors(lambda: connect_all(self.settings), act)

    def checkout_errors(self, act: Callable[[Reservations], object]) -> list[str]:
        """Return what goes wrong where the user is a checkout."""
        kind: Any = RedisCluster if self.topology else redis.Redis
        return _errors(lambda: kind.from_url(self.url, protocol=2), lambda client: act(Reservations(client)))


def _errors(reach: Callable[[], Any], act: Callable[[Any], object]) -> list[str]:
    try:
        with reach() as server:
            act(server)
    except (RedisError, RedisClusterException) as error:
        return [str(error)]
    return []


def refusals(admin: redis.Redis) -> list[tuple[str, str]]:
    """Return what the server has refused for want of a right: `command`, `key` or `channel`, and which."""
    log: Any = admin.execute_command("ACL", "LOG")  # type: ignore[no-untyped-call]
    entries = ((entry[b"reason"].decode(), entry[b"object"].decode()) for entry in map(_mapping, log))
    return [(reason, what) for reason, what in entries if what not in _NOT_NEEDED]


def _mapping(entry: Any) -> dict[bytes, bytes]:  # noqa: ANN401  # redis-py parses it in some versions
    if isinstance(entry, dict):
        return {_bytes(name): _bytes(value) for name, value in entry.items()}
    return dict(zip(entry[::2], entry[1::2], strict=True))


def _bytes(value: Any) -> bytes:  # noqa: ANN401  # see _mapping
    return value if isinstance(value, bytes) else str(value).encode()
