"""The names of all keys, and which shard a product lives on."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, replace

from redis.crc import key_slot

from expirer.config.environment import variable
from expirer.config.settings import ConfigurationError, Settings, split_namespace

_CUSTOM = {
    "index_key": "index",
    "events_key": "events",
    "reservation_prefix": "reservation_prefix",
    "stock_prefix": "stock_prefix",
}
"""Setting -> the name that it replaces."""


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The key names of one shard; they share one hash tag, so they live in one Cluster slot."""

    index: str
    events: str
    quarantine: str
    control: str
    stats: str
    workers: str
    about: str
    operations: str
    wake: str
    ticks: str
    reservation_prefix: str
    stock_prefix: str

    @classmethod
    def of(cls, namespace: str, shard: int = 0, shards: int = 1) -> ShardKeys:
        """Name the keys of one shard by the contract.

        Raises:
            ValueError: the namespace has braces, and not just one {tag} of them.

        """
        before, tag, after = split_namespace(namespace)
        tag = f"{before}{{{tag}}}{after}" if shards == 1 else f"{before}{{{tag}:{shard}}}{after}"
        return cls(
            index=f"{tag}:reservations",
            events=f"{tag}:expired",
            quarantine=f"{tag}:quarantine",
            control=f"{tag}:control",
            stats=f"{tag}:stats",
            workers=f"{tag}:workers",
            about=f"{tag}:about",
            operations=f"{tag}:operations",
            wake=f"{tag}:wake",
            ticks=f"{tag}:ticks",
            reservation_prefix=f"{tag}:reservation:",
            stock_prefix=f"{tag}:stock:",
        )


def shard_tag(namespace: str) -> tuple[bytes, bytes]:
    """Return what is before and after the number of a shard in its hash tag; the first ends in a colon."""
    before, tag, after = split_namespace(namespace)
    return f"{before}{{{tag}:".encode(), f"}}{after}".encode()


def shard_keys(settings: Settings) -> tuple[ShardKeys, ...]:
    """Name the keys of every shard; custom names replace the contract's, and are for one shard.

    Raises:
        ConfigurationError: two keys have one name.

    """
    own = tuple(ShardKeys.of(settings.namespace, shard, settings.shards) for shard in range(settings.shards))
    if settings.shards > 1:
        return own
    custom = {name: getattr(settings, setting) for setting, name in _CUSTOM.items()}
    keys = replace(own[0], **{name: value for name, value in custom.items() if value is not None})
    names = Counter(asdict(keys).values())
    if names.total() > len(names):
        (name, _), *_ = names.most_common(1)
        raise ConfigurationError([f"{name!r} is the name of two keys or prefixes: each key needs a name of its own"])
    return (keys,)


def slot_of(keys: ShardKeys) -> int:
    """Return the slot of a Redis Cluster in which all keys of a shard live.

    Raises:
        ConfigurationError: they do not share one; only custom names can do that.

    """
    slot = key_slot(keys.control.encode())
    remedy = (
        f"in a Redis Cluster all keys of a shard need the hash tag {keys.control.removesuffix(':control')},"
        " which EXPIRER_NAMESPACE sets"
    )
    problems = []
    for setting, field in _CUSTOM.items():
        name, is_prefix = getattr(keys, field), field.endswith("prefix")
        # A tag that a prefix does not close is closed by an id, or by none: each key would have a slot of its own.
        is_open = is_prefix and not re.match(r"[^{]*\{[^}]+\}", name)
        if is_open or key_slot(name.encode()) != slot:
            place = "puts its keys into other slots" if is_prefix else "lives in another slot"
            problems.append(f"{variable(setting)}={name} {place} than {keys.control}; {remedy}")
    if problems:
        raise ConfigurationError(problems)
    return slot


def shard_of(product_id: str | bytes, shards: int) -> int:
    """Return the shard of a product: CRC-32 (as in zlib) of its bytes, UTF-8 for text, modulo the shards."""
    data = product_id.encode(errors="surrogateescape") if isinstance(product_id, str) else product_id
    return zlib.crc32(data) % shards
