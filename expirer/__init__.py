"""Gives reserved stock back on time, exactly once: a sidecar for inventories kept in Redis."""

from expirer.reservations import (
    Code,
    Ended,
    InsufficientStock,
    Refused,
    Reservation,
    Reservations,
)

__all__ = ["Code", "Ended", "InsufficientStock", "Refused", "Reservation", "Reservations"]
__version__ = "0.1.0"
