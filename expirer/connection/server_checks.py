"""Checks what a server says in INFO, as far as it matters to reservations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from expirer.config.address import format_address
from expirer.config.settings import Settings
from expirer.connection.errors import PRIMARY

_LEAST_VERSION = (6, 2)
_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one thing: `ok`, `warning` or `failure`, and the remedy."""

    level: str
    what: str
    finding: str
    remedy: str = ""


def checks(info: Mapping[str, object], settings: Settings) -> Iterator[Check]:
    """Yield a check of each thing that this INFO has; what a host hides is left out."""
    if "redis_version" in info:
        yield _version(info)
    if info.get("role") in ("slave", "replica"):
        primary = format_address((str(info.get("master_host")), int(str(info.get("master_port") or 0))))
        yield Check("failure", "role", f"a replica of {primary}", PRIMARY)
    elif "role" in info:
        yield Check("ok", "role", "primary")
    if "maxmemory_policy" in info:
        yield _eviction(info)
    used, most = info.get("used_memory"), info.get("maxmemory")
    if isinstance(used, int) and isinstance(most, int) and most:
        finding = f"{used / most:.0%} of maxmemory in use"
        remedy = "raise maxmemory: a full server refuses every expiry"
        yield Check("warning", "memory", finding, remedy) if used > _FULL * most else Check("ok", "memory", finding)
    if info.get("cluster_enabled") and not settings.redis_cluster:
        yield Check("failure", "cluster", "a Redis Cluster", "set EXPIRER_REDIS_CLUSTER=true")


def _version(info: Mapping[str, object]) -> Check:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info["redis_version"]))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < _LEAST_VERSION:
        return Check("failure", "version", f"{name} {version}", "Redis 6.2 or later, or Valkey, is needed")
    return Check("ok", "version", f"{name} {version}")


def _eviction(info: Mapping[str, object]) -> Check:
    policy = str(info["maxmemory_policy"])
    if not policy.startswith("allkeys"):
        return Check("ok", "eviction", policy)
    level = "failure" if info.get("maxmemory") else "warning"
    remedy = "it may evict Active reservations: set maxmemory-policy to noeviction or volatile-ttl"
    return Check(level, "eviction", policy, remedy)
