"""What replicas must say to a batch before it counts as done (EXPIRER_MIN_REPLICAS_ACK)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from expirer.batch import ReplicasLagError

_PATIENCE_MS = 500
"""They answer at once, and a stop is promised within a second."""
_BRIEFLY_MS, _BRIEFLY_FOR_S = 20, 2.0

Wait = tuple[str, int, int]


class Replicas:
    """The replicas of one server, which its shards wait for together.

    After one that did not answer in time the next batches, of whichever shard, ask briefly for a while: else each shard
    would wait its half second after the others.

    Args:
        wanted: how many must have a batch; 0: nobody is asked.

    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._briefly_until = -math.inf

    def wait(self) -> Wait | None:
        """Return the command that asks them; None: nobody is asked."""
        if not self._wanted:
            return None
        return "WAIT", self._wanted, _BRIEFLY_MS if time.monotonic() < self._briefly_until else _PATIENCE_MS

    def lag(self, wait: Wait, answer: Callable[[], int]) -> ReplicasLagError | None:
        """Return why a batch that is committed does not count as done, by the answer to `wait`; None: it does."""
        _, wanted, within_ms = wait
        try:
            acks = answer()
        except (RedisError, OSError) as error:
            finding = f"nothing is known of its replicas ({error})"
        else:
            if acks >= wanted:
                return None
            finding = f"{acks} of {wanted} replicas acknowledged it within {within_ms} ms"
            if within_ms == _PATIENCE_MS:
                self._briefly_until = time.monotonic() + _BRIEFLY_FOR_S
        return ReplicasLagError(f"the batch is committed on the primary, but {finding}: a failover now would forget it")
