"""How a setting is written in the environment."""

from __future__ import annotations

import re

PREFIX = "EXPIRER_"

# Kubernetes and Docker links describe services called "expirer-…" to their neighbours in these variables.
SERVICE_LINK = re.compile(
    r"EXPIRER_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def words(value: object) -> object:
    """Split text at its commas; leave anything else as it is."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
