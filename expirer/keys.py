"""The names of all keys, and which shard a product lives on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from expirer.settings import Settings


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The key names of one shard; they share one hash tag, so they live in one Cluster slot."""

    index: str
    events: str
    quarantine: str
    control: str
    stats: str
    workers: str
    wake: str
    reservation_prefix: str
    stock_prefix: str

    @classmethod
    def of(cls, namespace: str, shard: int = 0, shards: int = 1) -> ShardKeys:
        """Name the keys of one shard by the contract."""
        tag = f"{{{namespace}}}" if shards == 1 else f"{{{namespace}:{shard}}}"
        return cls(
            index=f"{tag}:reservations",
            events=f"{tag}:expired",
            quarantine=f"{tag}:quarantine",
            control=f"{tag}:control",
            stats=f"{tag}:stats",
            workers=f"{tag}:workers",
            wake=f"{tag}:wake",
            reservation_prefix=f"{tag}:reservation:",
            stock_prefix=f"{tag}:stock:",
        )


def shard_keys(settings: Settings) -> tuple[ShardKeys, ...]:
    """Name the keys of every shard; custom names replace the contract's, and are for one shard."""
    own = tuple(ShardKeys.of(settings.namespace, shard, settings.shards) for shard in range(settings.shards))
    if settings.shards > 1:
        return own
    keys = own[0]
    return (
        ShardKeys(
            index=settings.index_key or keys.index,
            events=settings.events_key or keys.events,
            quarantine=keys.quarantine,
            control=keys.control,
            stats=keys.stats,
            workers=keys.workers,
            wake=keys.wake,
            reservation_prefix=(
                keys.reservation_prefix if settings.reservation_prefix is None else settings.reservation_prefix
            ),
            stock_prefix=keys.stock_prefix if settings.stock_prefix is None else settings.stock_prefix,
        ),
    )


def shard_of(product_id: str | bytes, shards: int) -> int:
    """Return the shard of a product: CRC-32 (as in zlib) of its bytes, UTF-8 for text, modulo the shards."""
    data = product_id.encode(errors="surrogateescape") if isinstance(product_id, str) else product_id
    return zlib.crc32(data) % shards
