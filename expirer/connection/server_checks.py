"""What a server tells of itself in INFO, as far as it matters to reservations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from expirer.config.settings import Settings
from expirer.connection.directory import shown
from expirer.connection.errors import PRIMARY

_LEAST_VERSION = (6, 2)
_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Remark:
    """What was found about one thing: `ok`, `warning` or `failure`, and the way out."""

    level: str
    what: str
    finding: str
    way_out: str = ""


def remarks(info: Mapping[str, object], settings: Settings) -> Iterator[Remark]:
    """Yield a remark on each thing that this INFO tells of; what a host hides is passed over."""
    if "redis_version" in info:
        yield _version(info)
    if info.get("role") in ("slave", "replica"):
        primary = shown((str(info.get("master_host")), int(str(info.get("master_port") or 0))))
        yield Remark("failure", "role", f"a replica of {primary}", PRIMARY)
    elif "role" in info:
        yield Remark("ok", "role", "primary")
    if "maxmemory_policy" in info:
        yield _eviction(info)
    used, most = info.get("used_memory"), info.get("maxmemory")
    if isinstance(used, int) and isinstance(most, int) and most:
        finding = f"{used / most:.0%} of maxmemory in use"
        way_out = "raise maxmemory: a full server refuses every expiry"
        yield Remark("warning", "memory", finding, way_out) if used > _FULL * most else Remark("ok", "memory", finding)
    if info.get("cluster_enabled") and not settings.redis_cluster:
        yield Remark("failure", "cluster", "a Redis Cluster", "set EXPIRER_REDIS_CLUSTER=true")


def _version(info: Mapping[str, object]) -> Remark:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info["redis_version"]))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < _LEAST_VERSION:
        return Remark("failure", "version", f"{name} {version}", "Redis 6.2 or later, or Valkey, is needed")
    return Remark("ok", "version", f"{name} {version}")


def _eviction(info: Mapping[str, object]) -> Remark:
    policy = str(info["maxmemory_policy"])
    if not policy.startswith("allkeys"):
        return Remark("ok", "eviction", policy)
    level = "failure" if info.get("maxmemory") else "warning"
    way_out = "it may evict Active reservations: set maxmemory-policy to noeviction or volatile-ttl"
    return Remark(level, "eviction", policy, way_out)
