"""Finds what of an inventory is not on the shard that it will be on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NoReturn

from tqdm import tqdm

from expirer.config.environment import variable
from expirer.config.settings import Settings
from expirer.connection.connect import Servers
from expirer.contract.keys import ShardKeys, shard_keys, shard_of, shard_tag
from expirer.contract.text import readable
from expirer.operate.inventory_scan import InventoryScan, Row, literal, pack, scan
from expirer.operate.terminal import shown

MOST_SHARDS = 1024


class Trouble(Exception):  # noqa: N818  # it is said in one line, and ends the move between two products
    """The move cannot begin, or go on; what was moved is whole, and so is what was not."""


@dataclass(frozen=True, slots=True)
class Ids:
    """The reservations of a product that are not where they will be, packed."""

    held: bytearray = field(default_factory=bytearray)
    """Active, in the index or in the quarantine: they go with the product's counters."""
    ended: bytearray = field(default_factory=bytearray)
    """The counters do not depend on them; all that have no product are here."""


class Places:
    """An inventory on its way from one number of shards to another."""

    def __init__(self, servers: Servers, settings: Settings, target: Settings) -> None:
        self.old, self.new = shard_keys(settings), shard_keys(target)
        self.is_begun = False
        """Whether something may be on a shard that only the new number has."""
        self._servers = servers
        self._settings = settings

    def home(self, product_id: bytes) -> ShardKeys:
        """Return the shard that a product will be on; what has none will be on the first."""
        return self.new[shard_of(product_id, len(self.new)) if product_id else 0]

    def require_known(self, *, is_moved: bool = False) -> None:
        """Raise Trouble where something of the inventory is on no shard of either number, or on a wrong new one.

        `is_moved`: nothing may be on an old one any more.
        """
        old = set() if is_moved else set(map(_tag, self.old))
        new = set(map(_tag, self.new))
        fitting = list(range(1, MOST_SHARDS + 1))
        stranger = b""
        for key, tag, product_id in self._keys():
            self.is_begun |= tag in new - old
            is_known = tag in old | new
            if product_id is not None:
                fitting = [shards for shards in fitting if tag == self._tag_of(product_id, shards)]
                is_known = tag in old or tag == _tag(self.home(product_id))
            elif not is_known and key.startswith(tag + b":reservation:"):
                is_known = self._is_no_reservation(key)
            stranger = stranger or (b"" if is_known else key)
        if not stranger:
            return
        where = f"{shown(readable(stranger))} is where"
        if is_moved:
            raise Trouble(f"{where} {len(self.new)} shards do not have it: stop the checkouts first")
        fits = f"what is there fits {' or '.join(map(str, fitting[:3]))} shards: " if fitting else ""
        numbers = f"neither {len(self.old)} nor {len(self.new)} shards have it"
        raise Trouble(f"{where} {numbers}: {fits}set {variable('shards')} to the present number")

    def is_anything_misplaced(self) -> bool:
        """Say so, and stop looking at the first; raise Trouble where nobody could hear who still writes."""
        with closing(self._heard()) as survey, self._bar("looking", 2) as bar:
            return next(self._misplaced(survey, bar.update), None) is not None

    def look(self) -> dict[tuple[int, bytes], Ids]:
        """Return (shard, product id) -> its reservations, of all that is not where it will be; no product: b"".

        Raises:
            Trouble: a reservation was written meanwhile.

        """
        found: defaultdict[tuple[int, bytes], Ids] = defaultdict(Ids)
        with closing(self._heard()) as survey, self._bar("looking", 2) as bar:
            for number, product_id, row in self._misplaced(survey, bar.update):
                ids = found[number, product_id]
                if row is not None:
                    pack(ids.held if product_id and self._is_held(row) else ids.ended, row.id)
            written = [row.id for _, row in survey.changed() if not _has_gone(row)]
        if written:
            raise Trouble(f"{shown(readable(written[0]))} was written just now: stop the checkouts first")
        return dict(found)

    def _misplaced(
        self, survey: InventoryScan, tell: Callable[[int], object]
    ) -> Iterator[tuple[int, bytes, Row | None]]:
        for number, row in survey.walk(tell):
            if not _has_gone(row) and not self._stays(number, row.product_id):
                yield number, row.product_id, row
        for number, product_id in survey.products(tell):
            if not self._stays(number, product_id):
                yield number, product_id, None

    def _heard(self) -> InventoryScan:
        survey = InventoryScan(self._servers)
        if survey.tracking_error:
            survey.close()
            raise Trouble(
                f"nobody would hear a checkout that still writes, without CLIENT TRACKING: {survey.tracking_error};"
                " the rights of expirer-reshard in deploy/acl/expirer.acl suffice"
            )
        survey.changed()  # nothing yet: it tries the right to ask
        return survey

    def _stays(self, number: int, product_id: bytes) -> bool:
        return self.old[number].index == self.home(product_id).index

    def _is_held(self, row: Row) -> bool:
        return row.status == self._settings.status_active or row.score is not None or bool(row.entry)

    def _keys(self) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """Yield (key, its hash tag, product id where it is a stock) of all that has to move, under whatever number."""
        begin, end = shard_tag(self._settings.namespace)
        tag = re.escape(begin[:-1]) + rb"(?::(?:0|[1-9]\d{0,3}))?" + re.escape(end)
        place = re.compile(rb"(%s):(?:reservations|quarantine|reservation:.*|stock:(.*))" % tag, re.DOTALL)
        pattern = literal(begin[:-1]) + b"*"
        with self._bar("finding", 1) as bar:
            for client in self._servers.each().values():
                for keys in scan(client, pattern, bar.update):
                    yield from ((key, match[1], match[2]) for key in keys if (match := place.fullmatch(key)))

    def _is_no_reservation(self, key: bytes) -> bool:
        """Say whether it is somebody's hash under the prefix of reservations, as an audit sees it."""
        [client] = self._servers.each().values()
        if client.type(key) != b"hash":
            return False
        settings = self._settings
        fields = [settings.field_product_id, settings.field_quantity, settings.field_status]
        product_id, quantity, status = client.hmget(key, fields)
        return not product_id and not quantity and status in (None, settings.status_active.encode())

    def _tag_of(self, product_id: bytes, shards: int) -> bytes:
        return _tag(ShardKeys.of(self._settings.namespace, shard_of(product_id, shards), shards))

    def _bar(self, what: str, walks: int) -> tqdm[NoReturn]:
        keys = sum(client.dbsize() for client in self._servers.each().values())
        return tqdm(total=walks * keys, desc=what, unit=" keys", unit_scale=True, disable=None, leave=False)


def _tag(keys: ShardKeys) -> bytes:
    return keys.stock_prefix.removesuffix(":stock:").encode()


def _has_gone(row: Row) -> bool:
    """Say whether it has ended and its retention is over since its name was read."""
    return row.type == "none" and row.score is None and not row.entry
