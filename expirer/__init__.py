"""Gives reserved stock back on time, exactly once: a sidecar for inventories kept in Redis."""

from importlib import import_module
from typing import TYPE_CHECKING

from expirer.version import __version__

if TYPE_CHECKING:
    from expirer.checkout.reservations import (
        Code,
        Ended,
        InsufficientStock,
        Refused,
        Reservation,
        Reservations,
    )

__all__ = ["Code", "Ended", "InsufficientStock", "Refused", "Reservation", "Reservations", "__version__"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the program blocks its signals before it loads anything large.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    return getattr(import_module("expirer.checkout.reservations"), name)
