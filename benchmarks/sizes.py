"""How much of everything a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a whole run, as the targets name them."""

    drain: int = 20_000
    drain_large: int = 200_000
    """For the fast ones, so that the first and the last batch do not decide."""
    drain_limit_s: float = 8.0
    """The rate of a slow system is known by then; its backlog stays as it was."""
    million: int = 1_000_000
    raw_foreground: int = 300_000
    due: int = 500
    due_s: int = 10
    flood: int = 20_000
    flood_s: int = 20
    holds: int = 100
    ttl_keys: int = 100_000
    ttl_wait_s: float = 5.0
    """Longest wait, after the last is due, for a system that may never release some of them."""
    window_s: float = 3.0
    """Foreground: how long a drain is watched."""
    scaling_drained: int = 10_000
    scaling: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    idle_s: float = 120.0
    """Two whole intervals, so that it holds the same number of ticks wherever it begins."""
    fleet: int = 20
    fleet_due: int = 2_000
    fleet_s: int = 10
    primaries: int = 200_000
    steady_due: int = 1_000
    steady_s: int = 10
    audit_idle_s: float = 60.0
    """As long as an audit takes, more or less: p99 is the rarer, the longer one looks."""


QUICK = Sizes(
    drain=2_000,
    drain_large=20_000,
    drain_limit_s=4.0,
    million=100_000,
    raw_foreground=30_000,
    due=100,
    due_s=2,
    flood=2_000,
    flood_s=2,
    holds=20,
    ttl_keys=10_000,
    ttl_wait_s=2.0,
    window_s=1.0,
    scaling_drained=1_000,
    scaling=(100, 1_000, 10_000, 100_000),
    idle_s=5.0,
    fleet=4,
    fleet_due=400,
    fleet_s=2,
    primaries=20_000,
    steady_due=200,
    steady_s=2,
    audit_idle_s=5.0,
)
"""A smoke test: everything is run, nothing is proved."""
