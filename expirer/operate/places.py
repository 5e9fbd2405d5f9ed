"""Finds what of an inventory is not on the shard that it will be on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeAlias

from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.keys import ShardKeys, shard_keys, shard_of, shard_tag
from expirer.contract.text import decode, printable
from expirer.operate.inventory_scan import InventoryScan, PackedIds, Row, literal, scan

MOST_SHARDS = 1024

Misplaced: TypeAlias = defaultdict[tuple[int, bytes], tuple[PackedIds, PackedIds]]
"""(shard, product id) -> the ids of its reservations; all are on another shard than they will be.

The first are Active, in the index or in the quarantine: they move with the product's counters. On the others no
counter depends, because they have ended, or have no product.
"""


class ReshardError(Exception):
    """The move cannot begin, or go on; every product is whole, on its old shard or on its new one."""


class Places:
    """An inventory on its way from one number of shards to another."""

    def __init__(self, servers: Servers, settings: Settings, target: Settings) -> None:
        self.old, self.new = shard_keys(settings), shard_keys(target)
        self._servers = servers
        self._settings = settings

    def home(self, product_id: bytes) -> ShardKeys:
        """Return the shard that a product will be on; without a product it is the first."""
        return self.new[shard_of(product_id, len(self.new)) if product_id else 0]

    def require_known(self, *, is_moved: bool = False) -> None:
        """Raise ReshardError if a key is on no shard of either number, or on a wrong new one.

        `is_moved`: no key may be on an old shard any more.
        """
        old = set() if is_moved else set(map(_tag, self.old))
        new = set(map(_tag, self.new))
        fitting = list(range(1, MOST_SHARDS + 1))
        stranger = b""
        for key, tag, product_id in self._keys():
            is_known = tag in old or tag in new
            if product_id is not None:
                fitting = [shards for shards in fitting if tag == self._tag_of(product_id, shards)]
                is_known = tag in old or tag == _tag(self.home(product_id))
            if not is_known and not stranger and not self._is_strangers(key, tag):
                stranger = key
        if not stranger:
            return
        name = printable(decode(stranger))
        if is_moved:
            raise ReshardError(f"{name} belongs to none of {len(self.new)} shards: stop the checkouts first")
        fits = f"the inventory fits {' or '.join(map(str, fitting[:3]))} shards: " if fitting else ""
        numbers = " or ".join(dict.fromkeys((str(len(self.old)), str(len(self.new)))))
        raise ReshardError(
            f"{name} belongs to none of {numbers} shards: {fits}set {variable('shards')} to the present number"
        )

    def is_anything_misplaced(self) -> bool:
        """Say whether anything is to be moved; raise ReshardError if nothing would report who still writes."""
        with closing(self._misplaced(InventoryScan)) as misplaced:
            return next(misplaced, None) is not None

    def find(self) -> Misplaced:
        """Return all that is not where it will be; raise ReshardError if a reservation was written meanwhile."""
        found: Misplaced = defaultdict(lambda: (PackedIds(), PackedIds()))
        for number, product_id, row in self._misplaced(_RestingScan):
            placed, ended = found[number, product_id]
            if row is not None:
                (placed if product_id and (row.is_active or row.is_placed) else ended).add(row.id)
        return found

    def _misplaced(self, kind: type[InventoryScan]) -> Generator[tuple[int, bytes, Row | None]]:
        """Yield (shard, product id, reservation, or None for its stock)."""
        with closing(kind(self._servers)) as inventory:
            if inventory.tracking_error:
                raise ReshardError(
                    "without CLIENT TRACKING a checkout that still writes would not be noticed:"
                    f" {inventory.tracking_error}; expirer-reshard in deploy/acl/expirer.acl has the permissions"
                )
            inventory.changed()  # tries the permission to ask
            for row in inventory.walk():
                if not _is_gone(row) and not self._stays(row.shard.number, row.product_id):
                    yield row.shard.number, row.product_id, row
            for number, product_id in inventory.products():
                if not self._stays(number, product_id):
                    yield number, product_id, None
            inventory.follow()

    def _stays(self, number: int, product_id: bytes) -> bool:
        return self.old[number].index == self.home(product_id).index

    def _keys(self) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """Yield (key, hash tag, product id if it is a stock) of all that has to move, under any number of shards."""
        begin, end = shard_tag(self._settings.namespace)
        tag = re.escape(begin[:-1]) + rb"(?::(?:0|[1-9]\d{0,3}))?" + re.escape(end)
        place = re.compile(rb"(%s):(?:reservations|quarantine|reservation:.*|stock:(.*))" % tag, re.DOTALL)
        for keys in scan(self._servers, "finding", literal(begin[:-1]) + b"*"):
            yield from ((key, match[1], match[2]) for key in keys if (match := place.fullmatch(key)))

    def _is_strangers(self, key: bytes, tag: bytes) -> bool:
        """Say whether it is a stranger's hash under the prefix of reservations, by the rule of an audit."""
        client: Any = self._servers.shards[0].client
        if not key.startswith(tag + b":reservation:") or client.type(key) != b"hash":
            return False
        settings = self._settings
        fields = [settings.field_product_id, settings.field_quantity, settings.field_status]
        product_id, quantity, status = client.hmget(key, fields)
        return not product_id and not quantity and status in (None, settings.status_active.encode())

    def _tag_of(self, product_id: bytes, shards: int) -> bytes:
        return _tag(ShardKeys.of(self._settings.namespace, shard_of(product_id, shards), shards))


class _RestingScan(InventoryScan):
    """Expects that nobody writes a reservation."""

    def follow(self) -> None:
        """Raise ReshardError if a reservation was written."""
        for row in self.changed():
            if not _is_gone(row):
                raise ReshardError(f"{printable(decode(row.id))} was written just now: stop the checkouts first")


def _tag(keys: ShardKeys) -> bytes:
    return keys.stock_prefix.removesuffix(":stock:").encode()


def _is_gone(row: Row) -> bool:
    """Say whether it has ended and its retention is over since its name was read."""
    return row.type == "none" and not row.is_placed
