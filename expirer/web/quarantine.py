"""What waits in quarantine, as far as a page shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from redis.exceptions import ResponseError

from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import describe
from expirer.contract.reasons import read_entry
from expirer.contract.text import decode
from expirer.operate.status import ShardStatus

ROWS = 20
_COUNTED = 1000
"""Entries of all shards together that are read."""
_SLICE = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """A reservation that could not be expired."""

    id: str
    reason: str
    since: int | None
    """Unix ms; None: a person wrote it."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The newest 20 of the entries that were read, and how many of them have each reason."""

    entries: tuple[Entry, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent first."""
    counted: int = 0
    error: str = ""
    """Why no entry could be read."""


def read_quarantine(servers: Servers, settings: Settings, shards: Sequence[ShardStatus]) -> Quarantine:
    """Read up to 1,000 entries, an equal share of each shard that has some; RedisError if Redis fails.

    A server that refuses HSCAN hides the entries and nothing else.
    """
    numbers = [shard.shard for shard in shards if shard.quarantined]
    entries = []
    try:
        for number in numbers:
            shard = servers.shards[number]
            scan = shard.client.hscan_iter(shard.keys.quarantine, count=_SLICE)
            for id_, value in islice(scan, max(_COUNTED // len(numbers), 1)):
                known = read_entry(value)
                entries.append(Entry(decode(id_), known["reason"], known["at"]))
    except ResponseError as error:
        return Quarantine(error=describe(error, settings))
    return Quarantine(
        entries=tuple(sorted(entries, key=lambda entry: (-(entry.since or 0), entry.id))[:ROWS]),
        reasons=tuple(Counter(entry.reason for entry in entries).most_common()),
        counted=len(entries),
    )
