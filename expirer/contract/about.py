"""What each worker says of itself, so that workers that disagree are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from expirer.config.durations import to_ms
from expirer.config.settings import Settings
from expirer.contract.text import decode
from expirer.version import __version__

MUST_AGREE = ("grace_ms", "retention_ms", "unit_ms", "layout")
"""What all workers of an inventory need alike; else one expires what another still waits for."""


def describe(settings: Settings) -> str:
    """Return `name=value` words: the version, and what must agree; a worker adds `skew_ms` once it knows it."""
    retention_ms = "forever" if settings.retention is None else to_ms(settings.retention)
    words = {
        "version": __version__,
        "grace_ms": to_ms(settings.grace),
        "retention_ms": retention_ms,
        "unit_ms": settings.unit_ms,
        "layout": settings.layout_digest,
    }
    return " ".join(f"{name}={value}" for name, value in words.items())


def parse(about: bytes) -> dict[str, str]:
    """Return the words of `describe`, whatever else is there."""
    return dict(re.findall(r"(\w+)=(\S+)", decode(about)))


def disagreements(abouts: Iterable[Mapping[str, str]]) -> list[str]:
    """Name what live workers do not agree on, one line each; one that does not say a value agrees with all."""
    abouts = list(abouts)
    lines = []
    for name in MUST_AGREE:
        values = {about[name] for about in abouts if name in about}
        if len(values) > 1:
            lines.append(f"the workers disagree on {name.removesuffix('_ms')}: {', '.join(sorted(values))}")
    return lines
