"""What the checkouts know: each step before it is sent, and its answer; read back as one story per reservation."""

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


class Record:
    """The file of one checkout: it is complete at every moment, so that its writer may be killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def began(self, step: Step) -> None:
        """Note a step that is about to be sent; without an answer it may have been done or not."""
        self._file.write(json.dumps(astuple(step)) + "\n")

    def answered(self, answer: Answer | None) -> None:
        """Note the answer to the step noted last; None: there is no such reservation."""
        told = None if answer is None else (answer.status, answer.expires_at if answer.is_done else 0)
        self._file.write(json.dumps({"told": told}) + "\n")


@dataclass(slots=True)
class Story:
    """What all checkouts know of one reservation."""

    product_id: str
    quantity: int
    tried: set[str] = field(default_factory=set)
    """Operations, answered or not."""
    told: set[str] = field(default_factory=set)
    """Statuses in which a checkout was told that it is."""
    held_until: int = 0
    """The latest ExpiresAt that a checkout was told, Unix ms."""


@dataclass(slots=True)
class Stories:
    """Everything that the checkouts know."""

    of: dict[str, Story] = field(default_factory=dict)
    """Reservation id -> its story."""
    steps: int = 0
    unanswered: int = 0

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Stories:
        """Read the records of all checkouts."""
        stories = cls()
        for path in paths:
            stories._read(path)
        return stories

    def _read(self, path: Path) -> None:
        story: Story | None = None
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
                    story = self.of.setdefault(step.reservation_id, Story(step.product_id, step.quantity))
                    story.tried.add(step.operation)
                    holds = step.operation in ("reserve", "extend")
                elif story is not None:
                    self.unanswered -= 1
                    if entry["told"] is not None:
                        status, expires_at = entry["told"]
                        story.told.add(status)
                        story.held_until = max(story.held_until, expires_at if holds else 0)
