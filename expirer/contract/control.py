"""What stops expiry: a person's pause and a worker's brake, as the control key of a shard has them.

    state            pause            pause --for     resume    brake pulled     pause ends
    running          paused           timed           running   braked           running
    paused           paused           timed           running   paused, braked   paused
    timed            paused           timed           running   timed, braked    running
    braked           paused, braked   timed, braked   running   braked           braked
    paused, braked   paused, braked   timed, braked   running   paused, braked   paused, braked
    timed, braked    paused, braked   timed, braked   running   timed, braked    braked

A pause and a brake never replace each other, and only a person's resume ends a brake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expirer.contract.numbers import integer
from expirer.contract.text import decode

FIELDS = ("paused", "until", "by", "reason", "since", "brake", "brake_by", "brake_since", "resumed_at")

_LEAST_UNIX_MS = 10**11
"""Less is a time in seconds, or no time."""
_AHEAD_MS = 60_000
"""A time that lies further ahead was written by a wrong clock."""
_OFF = {b"", b"0", b"no", b"false", b"off"}


@dataclass(frozen=True, slots=True)
class Pause:
    """Who stops a shard, why, since and until when (Unix ms; until None: until resumed)."""

    by: str
    reason: str
    since: int | None
    until: int | None = None
    is_brake: bool = False
    """Whether a worker pulled the brake; else a person paused."""

    def has_ended(self, now: float) -> bool:
        """Say whether a timed pause is over at `now`, Unix ms."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True)
class Control:
    """What the control key says; `halt` says what of it is in force."""

    pause: Pause | None
    brake: Pause | None
    resumed_at: int
    """Unix ms; 0: never."""

    @classmethod
    def read(cls, row: Sequence[bytes | None]) -> Control:
        """Read the values of FIELDS.

        Any value of `paused` pauses, except empty, 0, no, false or off. A pause whose end cannot be read has none:
        nothing expires against the operator's will.
        """
        paused, until, by, reason, since, brake, brake_by, brake_since, resumed_at = (value or b"" for value in row)
        pause = Pause(decode(by), decode(reason), _unix_ms(since), _unix_ms(until)) if _is_on(paused) else None
        pulled = Pause(decode(brake_by), decode(brake), _unix_ms(brake_since), is_brake=True) if _is_on(brake) else None
        return cls(pause, pulled, _unix_ms(resumed_at) or 0)

    def halt(self, now: float) -> Pause | None:
        """Return what stops expiry at `now`, Unix ms: the pause while it lasts, else the brake; None: nothing."""
        return self.brake if self.pause is None or self.pause.has_ended(now) else self.pause

    def counted_from(self, now: float) -> int:
        """Return the Unix ms at which a person last let the backlog go: by a resume, or by the end of a timed pause."""
        until = self.pause.until if self.pause and self.pause.has_ended(now) else None
        return max(until or 0, self.resumed_at if self.resumed_at <= now + _AHEAD_MS else 0)


def pausing(by: str, reason: str, now: int, until: int | None = None) -> dict[str, str | int]:
    """Return the fields that pause a shard; until None: until it is resumed."""
    return {"paused": 1, "by": by, "reason": reason, "since": now, "until": "" if until is None else until}


def braking(by: str, reason: str, now: int) -> dict[str, str | int]:
    """Return the fields that pull the brake of a shard."""
    return {"brake": reason, "brake_by": by, "brake_since": now}


def resuming(by: str, now: int) -> dict[str, str | int]:
    """Return the fields that end pause and brake, and let the backlog go."""
    return {"paused": 0, "by": by, "reason": "", "since": now, "until": "", "brake": "", "resumed_at": now}


def _is_on(value: bytes) -> bool:
    return value.strip().lower() not in _OFF


def _unix_ms(value: bytes) -> int | None:
    return integer(value.strip(), least=_LEAST_UNIX_MS)
