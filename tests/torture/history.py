"""The history: each step of a checkout before it is sent, and its answer; read back for each reservation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path

from tests.checkouts import Answer


@dataclass(frozen=True, slots=True)
class Step:
    """What a checkout asks for; `ms` is a duration."""

    operation: str
    order_id: str
    product_id: str
    quantity: int
    ms: int

    @property
    def reservation_id(self) -> str:
        """Of the reservation that it is about."""
        return f"{self.order_id}:{self.product_id}"


class Recorder:
    """The file of one checkout: it is complete at every moment, so that its writer may be killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def began(self, step: Step) -> None:
        """Note a step that is about to be sent; without an answer it may have been done or not."""
        self._file.write(json.dumps(astuple(step)) + "\n")

    def answered(self, answer: Answer | None) -> None:
        """Note the answer to the step noted last; None: there is no such reservation."""
        acknowledged = None if answer is None else (answer.status, answer.expires_at if answer.is_done else 0)
        self._file.write(json.dumps({"acknowledged": acknowledged}) + "\n")


@dataclass(slots=True)
class ReservationHistory:
    """What all checkouts know of one reservation."""

    product_id: str
    quantity: int
    tried: set[str] = field(default_factory=set)
    """Operations, answered or not."""
    acknowledged: set[str] = field(default_factory=set)
    """Statuses that Redis acknowledged to a checkout."""
    held_until: int = 0
    """The latest ExpiresAt that Redis acknowledged, Unix ms."""


@dataclass(slots=True)
class History:
    """Everything that the checkouts know."""

    of: dict[str, ReservationHistory] = field(default_factory=dict)
    """Reservation id -> what is known of it."""
    steps: int = 0
    unanswered: int = 0

    @classmethod
    def read(cls, paths: Iterable[Path]) -> History:
        """Read what all checkouts recorded."""
        history = cls()
        for path in paths:
            history._read(path)
        return history

    def _read(self, path: Path) -> None:
        reservation: ReservationHistory | None = None
        holds = False
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # its writer was killed
                entry = json.loads(line)
                if isinstance(entry, list):
                    step = Step(*entry)
                    self.steps += 1
                    self.unanswered += 1
                    reservation = self.of.setdefault(
                        step.reservation_id, ReservationHistory(step.product_id, step.quantity)
                    )
                    reservation.tried.add(step.operation)
                    holds = step.operation in ("reserve", "extend")
                elif reservation is not None:
                    self.unanswered -= 1
                    if entry["acknowledged"] is not None:
                        status, expires_at = entry["acknowledged"]
                        reservation.acknowledged.add(status)
                        reservation.held_until = max(reservation.held_until, expires_at if holds else 0)
