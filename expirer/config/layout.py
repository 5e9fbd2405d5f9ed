"""The layout of an inventory: its keys, fields, status words and unit, which need not be ours."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode

from expirer.config.environment import variable, words


class Layout(BaseSettings):
    """The settings of the layout; the defaults are the project's own contract."""

    index_key: str | None = Field(None, min_length=1, description="key of the index; default {inventory}:reservations")
    reservation_prefix: str | None = Field(
        None, description="prefix of a reservation's key; default {inventory}:reservation:"
    )
    stock_prefix: str | None = Field(None, description="prefix of a product's stock key; default {inventory}:stock:")
    events_key: str | None = Field(
        None, min_length=1, description="key of the event stream; default {inventory}:expired"
    )
    field_order_id: str = Field("order_id", description="field of the reservation; empty if there is none")
    field_product_id: str = Field("product_id", min_length=1, description="field of the reservation")
    field_quantity: str = Field("quantity", min_length=1, description="field of the reservation")
    field_status: str = Field(
        "status", description="field of the reservation; empty if there is none: then retention must be 0"
    )
    field_expires_at: str = Field("expires_at", description="field of the reservation; empty if there is none")
    field_available: str = Field("available", description="field of the stock; empty if there is none")
    field_reserved: str = Field("reserved", description="field of the stock; empty if there is none")
    status_active: str = Field("Active", min_length=1, description="status of a reservation that holds units")
    status_expired: str = Field("Expired", min_length=1, description="status that expiry writes")
    status_ended: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = Field(
        ("Confirmed", "Released"),
        description="statuses of reservations that hold no units any more, comma-separated, in any case",
    )
    score_unit: Literal["ms", "s"] = Field("ms", description="unit of the score and of expires_at")

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if not self.field_available and not self.field_reserved:
            raise ValueError(
                "EXPIRER_FIELD_AVAILABLE and EXPIRER_FIELD_RESERVED are both empty:"
                " expiry would have no counter to give units back to"
            )
        fields = {name: getattr(self, name) for name in _RESERVATION_FIELDS}
        if "expired_at" in fields.values():
            raise ValueError("expired_at is the field that expiry writes; no EXPIRER_FIELD_… can have this name")
        _refuse_repetition(fields)
        _refuse_repetition({name: getattr(self, name) for name in _STOCK_FIELDS})
        statuses = {"status_active": self.status_active.lower(), "status_expired": self.status_expired.lower()}
        for ended in self.status_ended:
            _refuse_repetition(statuses | {"status_ended": ended.lower()})
        _refuse_repetition(statuses)
        return self

    @property
    def unit_ms(self) -> int:
        """How many ms one unit of the score has."""
        return 1000 if self.score_unit == "s" else 1

    @property
    def layout_digest(self) -> str:
        """Return a short text that two settings share if their layouts do."""
        values = [getattr(self, name) for name in LAYOUT]
        return hashlib.sha256(repr(values).encode()).hexdigest()[:8]

    @property
    def is_custom_layout(self) -> bool:
        """Whether any name, field, status word or unit differs from the project's own contract."""
        return any(getattr(self, name) != Layout.model_fields[name].default for name in LAYOUT)


LAYOUT = tuple(Layout.model_fields)
KEY_SETTINGS = ("index_key", "reservation_prefix", "stock_prefix", "events_key")
_STOCK_FIELDS = ("field_available", "field_reserved")
_RESERVATION_FIELDS = tuple(name for name in LAYOUT if name.startswith("field_") and name not in _STOCK_FIELDS)


def _refuse_repetition(values: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, value in values.items():
        if value and value in seen:
            raise ValueError(f"{variable(seen[value])} and {variable(name)} are both {value!r}")
        seen[value] = name
