"""The reasons for quarantine: how an entry is read, and what to do about it."""

from __future__ import annotations

import re
from typing import Any

from expirer.contract.numbers import integer
from expirer.contract.text import decode

ADVICE = {
    "reservation_missing": "a writer died half way, or the prefix is wrong; find its units, release --force or drop it",
    "reservation_wrong_type": "its key is no hash: check EXPIRER_RESERVATION_PREFIX",
    "status_unknown": "name the word in EXPIRER_STATUS_ENDED, or fix the status; then requeue",
    "unit_mismatch": "check EXPIRER_SCORE_UNIT; then requeue",
    "expires_at_invalid": "fix the field, or set EXPIRER_FIELD_EXPIRES_AT= ; then requeue",
    "product_id_missing": "check EXPIRER_FIELD_PRODUCT_ID; then requeue, or release with --product",
    "quantity_invalid": "fix the quantity, then requeue; or release its units",
    "stock_missing": "restore the product, or check EXPIRER_STOCK_PREFIX; then requeue",
    "stock_wrong_type": "check EXPIRER_STOCK_PREFIX; then requeue",
    "available_invalid": "fix the counter; then requeue",
    "reserved_invalid": "recount with expirer audit --repair; then requeue",
    "reserved_too_small": "recount with expirer audit --repair; then requeue",
    "available_overflow": "fix the counter; then requeue",
    "key_forbidden": "its key is outside the key patterns of the user: fix the entry or the patterns; then requeue",
}
"""Reason -> what to do."""


def read_entry(entry: bytes) -> dict[str, Any]:
    """Read `reason=… at=… score=…`, and `retry=…` if it is tried again; any other text is the reason as it is."""
    text = decode(entry)
    match = re.fullmatch(r"reason=(\S+) at=(\S+) score=(\S+?)(?: retry=(\S+))?", text)
    at = integer(match[2], least=0) if match else None
    if match is None or at is None:
        return {"reason": text, "at": None, "score": None, "retry": None}
    return {"reason": match[1], "at": at, "score": match[3], "retry": match[4]}
