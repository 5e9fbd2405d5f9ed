"""What the sidecar tells the process that serves HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from expirer.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Brief:
    """Whom to speak of, and the descriptors to do it with; it is pickled."""

    settings: Settings
    worker: str
    pid: int
    memory: int
    """Descriptor of the tally."""
    listener: int
    """Descriptor of the listening socket."""
