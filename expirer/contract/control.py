"""The operator's hand on a shard: what the control key says, and what is written into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expirer.contract.text import readable

BRAKE = "brake: "
"""How the reason of a pause begins that a worker made by itself."""
FIELDS = ("paused", "until", "by", "reason", "since", "resumed_at")

_LEAST_UNIX_MS = 10**11
"""Less is a time in seconds, or no time."""
_NOT_PAUSED = {b"", b"0", b"no", b"false", b"off"}


@dataclass(frozen=True, slots=True)
class Pause:
    """Who holds a shard, why, since and until when (Unix ms; until None: until resumed)."""

    by: str
    reason: str
    since: int | None
    until: int | None

    def has_ended(self, now: float) -> bool:
        """Say whether a timed pause is over at `now`, Unix ms."""
        return self.until is not None and self.until <= now

    @property
    def is_brake(self) -> bool:
        """Whether a worker paused the shard by itself."""
        return self.reason.startswith(BRAKE)


@dataclass(frozen=True, slots=True)
class Control:
    """What the control key says; a pause may have ended by itself, which only a clock can tell."""

    pause: Pause | None
    resumed_at: int
    """Unix ms; 0: never. The brake lets go what was overdue then."""

    @classmethod
    def read(cls, row: Sequence[bytes | None]) -> Control:
        """Read the values of FIELDS.

        Any `paused` but nothing, 0, no, false and off pauses. A pause whose end cannot be read lasts: nothing
        expires against the operator's will.
        """
        paused, until, by, reason, since, resumed_at = (value or b"" for value in row)
        pause = None
        if paused.strip().lower() not in _NOT_PAUSED:
            pause = Pause(by=readable(by), reason=readable(reason), since=_unix_ms(since), until=_unix_ms(until))
        return cls(pause, _unix_ms(resumed_at) or 0)


def pausing(by: str, reason: str, now: int, until: int | None = None) -> dict[str, str | int]:
    """Return what pauses a shard when it is written: one HSET, over whatever stands there."""
    return {"paused": 1, "by": by, "reason": reason, "since": now, "until": "" if until is None else until}


def resuming(by: str, now: int) -> dict[str, str | int]:
    """Return what resumes a shard, and lets go what the brake holds."""
    return {"paused": 0, "by": by, "reason": "", "since": now, "until": "", "resumed_at": now}


def _unix_ms(value: bytes) -> int | None:
    return int(value) if value.strip().isdigit() and len(value) < 20 and int(value) >= _LEAST_UNIX_MS else None  # noqa: PLR2004
