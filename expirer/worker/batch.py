"""What a batch did: the reservations by outcome, and what it saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from expirer.contract.control import Pause
from expirer.contract.text import decode


@dataclass(frozen=True, slots=True)
class Expired:
    r"""A reservation whose units are back; `expires_at` is in Unix ms.

    Ids are text for people: bytes that are not UTF-8 stand as `\xNN`.
    """

    reservation_id: str
    order_id: str
    product_id: str
    quantity: int
    expires_at: int
    lateness_ms: int
    """Since it was due, which a grace delays."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What batches did together: reservations by outcome, units given back, and what stood in the way."""

    expired: int = 0
    units: int = 0
    skipped: int = 0
    rescheduled: int = 0
    quarantined: int = 0
    overdue: int = 0
    """Left in the index: a stop, a pause or an error came first."""
    paused: int = 0
    """Shards."""
    conflicts: int = 0
    errors: int = 0

    @property
    def due(self) -> int:
        """How many due entries were taken, whatever came of them."""
        return self.expired + self.skipped + self.rescheduled + self.quarantined

    def __add__(self, other: Tick) -> Tick:
        return Tick(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the script did, and what it saw; times are in Unix ms, `now` with a fraction.

    What happened to each entry is read from the reply when it is asked for: a drain that logs nothing of it
    does not pay for it.
    """

    now: float
    next_expires_at: int | None
    overdue: int
    """Left in the index."""
    pause: Pause | None
    elapsed_s: float
    """From sending it to reading its answer."""
    _grace_ms: int
    _expired: list[bytes]
    _skipped: list[bytes]
    _rescheduled: list[bytes]
    _quarantined: list[bytes]
    _held: bytes
    _mark: bytes

    @property
    def held(self) -> str:
        """Why less was taken than a batch: `clock`, `brake`, `rate`; else empty."""
        return self._held.decode()

    @property
    def mark(self) -> tuple[bytes, int] | None:
        """The token of the inventory and the number of this call; None: no other worker is there."""
        token, _, number = self._mark.partition(b" ")
        return (token, int(number)) if token else None

    def unheld(self) -> Batch:
        """Return the batch as one that nothing held."""
        return replace(self, _held=b"")

    @property
    def counts(self) -> Tick:
        """How many entries had each outcome, and the units that came back."""
        return Tick(
            expired=len(self._expired) // 5,
            units=sum(map(int, self._expired[3::5])),
            skipped=len(self._skipped) // 2,
            rescheduled=len(self._rescheduled) // 2,
            quarantined=len(self._quarantined) // 2,
        )

    @property
    def due(self) -> int:
        """How many due entries the batch took."""
        pairs = len(self._skipped) + len(self._rescheduled) + len(self._quarantined)
        return len(self._expired) // 5 + pairs // 2

    @property
    def lateness_ms(self) -> list[int]:
        """How late the units of each expired reservation came back, after the grace."""
        due_by = int(self.now) - self._grace_ms
        return [due_by - int(expires_at) for expires_at in self._expired[4::5]]

    def expired(self) -> Iterator[Expired]:
        """Yield the reservations whose units are back."""
        for row, lateness_ms in zip(_rows(self._expired, 5), self.lateness_ms, strict=True):
            id_, order, product, quantity, expires_at = row
            ids = decode(id_), decode(order), decode(product)
            yield Expired(*ids, int(quantity), int(expires_at), lateness_ms)

    def skipped(self) -> Iterator[tuple[str, str]]:
        """Yield reservation id and status."""
        return ((decode(id_), decode(status)) for id_, status in _rows(self._skipped, 2))

    def rescheduled(self) -> Iterator[tuple[str, int]]:
        """Yield reservation id and its own ExpiresAt."""
        return ((decode(id_), int(expires_at)) for id_, expires_at in _rows(self._rescheduled, 2))

    def quarantined(self) -> Iterator[tuple[str, str]]:
        """Yield reservation id and reason."""
        return ((decode(id_), decode(reason)) for id_, reason in _rows(self._quarantined, 2))


def _rows(flat: list[bytes], width: int) -> zip[tuple[bytes, ...]]:
    return zip(*[iter(flat)] * width, strict=True)
