"""A rig with one server, and a proxy each before it for the workers and for the checkouts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import redis

from expirer.contract import control
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from tests.proxy import CLEAR, Conditions, Proxy
from tests.servers import RedisServer, free_port
from tests.torture.rig import Rig

KEYS = ShardKeys.of("inventory")


class OneServer(Rig):
    """One server at a time: `move_to` makes everybody go to another."""

    def build(self) -> None:
        """Start server and proxies."""
        self._servers = 0
        self._running = ExitStack()
        self.server = self.new_server()
        self.server.start()
        self.client = self.server.client()
        self.shards = [(self.client, KEYS)]
        self.line = self._running.enter_context(Proxy(self.server.port))
        """Of the workers."""
        self._line_of_the_shop = self._running.enter_context(Proxy(self.server.port))

    def tear_down(self) -> None:
        """End server and proxies."""
        self._running.close()
        self.server.stop()

    def settings(self, *, of_workers: bool) -> dict[str, Any]:
        """Return an address."""
        return {"redis_url": self.with_timeouts((self.line if of_workers else self._line_of_the_shop).url)}

    def a_client(self) -> redis.Redis:
        """Return a client of the server."""
        return self.client

    def calm(self) -> None:
        """Let everything pass again."""
        self.change(CLEAR)

    def new_server(self) -> RedisServer:
        """Make another server with the same options; it is not started."""
        self._servers += 1
        folder = self.folder / f"server-{self._servers}"
        folder.mkdir()
        environment = self.clock.environment if self.clock else None
        return RedisServer(self._binary, folder, *self._options, port=free_port(), environment=environment)

    def move_to(self, server: RedisServer) -> None:
        """Let everybody go to another server from now on."""
        self.server, self.client = server, server.client()
        self.shards = [(self.client, KEYS)]
        for line in (self.line, self._line_of_the_shop):
            line.port = server.port
            line.cut()

    def change(self, conditions: Conditions, *, cut: bool = False) -> None:
        """Change the conditions for workers and checkouts; with `cut` all their connections are cut too."""
        for line in (self.line, self._line_of_the_shop):
            line.conditions = conditions
            if cut:
                line.cut()

    def is_braked(self) -> bool:
        """Say whether a worker has pulled the brake."""
        return Control.read(self.client.hmget(KEYS.control, control.FIELDS)).brake is not None  # type: ignore[arg-type]
