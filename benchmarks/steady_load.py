"""A steady load: reservations that fall due one after the other, and how late each of them came back."""

from __future__ import annotations

import time

import redis

from benchmarks import probes
from benchmarks.figures import Figures, curve, percentile
from benchmarks.servers import Server
from benchmarks.shop import Ledger, holds, write_contract

_AFTER_S = 1.5


class SteadyLoad:
    """A number of reservations that fall due evenly over some seconds, the first of them after a lead."""

    def __init__(self, server: Server, client: redis.Redis, count: int, seconds: int, lead_s: float) -> None:
        self._server = server
        self._client = client
        self._seconds = seconds
        self._start_ms = probes.server_ms(client) + round(lead_s * 1000)
        self._made = list(holds(self._start_ms + n * seconds * 1000 // count for n in range(count)))
        self.released_again = 0
        """How many were marked Expired more than once; known after `watch`."""
        self.commands = 0
        """What clients sent while they fell due; known after `watch`."""
        write_contract(server, self._made)

    def wait(self) -> None:
        """Return a second before the first is due."""
        time.sleep(max(0.0, self._start_ms / 1000 - 1 - time.time()))  # what starts meanwhile is not measured

    def watch(self) -> Figures:
        """Return how late they came back, those that did not, and the verdict on the counters."""
        with probes.monitoring(self._server) as monitor:
            time.sleep(self._seconds + 1 + _AFTER_S)  # all that falls due, and what comes late
            end_ms = probes.server_ms(self._client)
        late = probes.lateness({hold.id: hold.expires_at for hold in self._made}, monitor.releases(), end_ms)
        self.released_again = late.twice
        self.commands = monitor.client_commands(self._start_ms * 1000, (self._start_ms + self._seconds * 1000) * 1000)
        return {
            "p50": percentile(late.ms, 50),
            "p99": percentile(late.ms, 99),
            "worst": max(late.ms),
            "waiting": late.waiting,
            "check": Ledger.of(self._made).check(self._client, [hold.id for hold in self._made]),
            "curve": curve(late.ms),
        }
