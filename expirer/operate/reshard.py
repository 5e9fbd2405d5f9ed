"""Moves an inventory on one server to another number of hash tags, product by product."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, TextIO

from redis import Redis
from redis.exceptions import WatchError
from tqdm import tqdm

from expirer import control, scripts
from expirer.connect import Servers
from expirer.control import Control
from expirer.environment import variable
from expirer.keys import ShardKeys, shard_keys, shard_of
from expirer.operate.audit import audit
from expirer.operate.server import redis_or_say, server_now
from expirer.operate.survey import Survey, pack, unpacked
from expirer.operate.terminal import confirms, shown, who
from expirer.settings import ConfigurationError, Settings
from expirer.texts import readable

_MOST_SHARDS = 1024
_IDS_AT_ONCE = 1000
_LIST_LASTS_MS = 60 * 60 * 1000
"""A list that an interruption left behind goes by itself."""
_MOST_WALKS = 3
_OPERATIONS = 10_000


class _Trouble(Exception):  # noqa: N818  # it is said in one line, and ends the move between two products
    """The move cannot go on; what was moved is whole, and so is what was not."""


def reshard(settings: Settings, shards: int, *, is_sure: bool, answers: TextIO | None = None) -> int:
    """Move every product to its shard of so many, expiry paused; return 1 where that is not done and audited.

    It may be interrupted, and repeated: what has been moved stays, the rest follows.

    Raises:
        ConfigurationError: the layout has names of its own, the server is a Cluster, or the number makes no sense.

    """
    target = _checked(settings, shards)
    with redis_or_say(settings) as servers:
        move = _Move(servers, settings, target)
        try:
            if not is_sure and not confirms(move.question(), answers):
                sys.stdout.flush()
                sys.stderr.write("expirer: nothing was changed; stop the checkouts, then repeat this with --yes\n")
                return 1
            move.run()
        except _Trouble as trouble:
            sys.stderr.write(f"expirer: {trouble}\n")
            return 1
        return audit(target, None, as_json=False) or move.say_what_is_next()
    return 1


def _checked(settings: Settings, shards: int) -> Settings:
    if settings.is_custom_layout:
        raise ConfigurationError(["reshard moves the project's own layout; names of your own belong to one shard"])
    if settings.redis_cluster:
        raise ConfigurationError(["reshard works on one server: in a Cluster no script reaches two hash tags"])
    if not 1 <= shards <= _MOST_SHARDS:
        raise ConfigurationError([f"--to {shards}: the number of shards is 1 to {_MOST_SHARDS}"])
    if shards == settings.shards:
        raise ConfigurationError([f"--to {shards}: {variable('shards')} is {shards} already"])
    return settings.model_copy(update={"shards": shards})


class _Move:
    def __init__(self, servers: Servers, settings: Settings, target: Settings) -> None:
        self._servers = servers
        self._client: Redis = servers.shards[0]
        # A product is moved by one script, however many its reservations are, and its answer is waited for.
        self._client.connection_pool.connection_kwargs["socket_timeout"] = None
        self._settings = settings
        self._old, self._new = shard_keys(settings), shard_keys(target)
        self._script = self._client.register_script(scripts.load("reshard").text)
        self._by = who()
        self._products = self._reservations = 0

    def question(self) -> str:
        """Say what is about to happen."""
        active: Any = sum(self._client.zcard(keys.index) for keys in self._old)
        return (
            f"Pause expiry and move {active:,} Active reservations, and all that have ended,"
            f" from {len(self._old)} to {len(self._new)} shards? No checkout may be at work."
        )

    def run(self) -> None:
        """Pause, then move until nothing is left to move; raise _Trouble where it cannot go on."""
        self._pause()
        for _ in range(_MOST_WALKS):
            found = self._look()
            if not found:
                self._move_totals()
                return
            products = sorted(found, key=lambda place: (place[0], place[1]))
            for number, product_id in tqdm(products, "moving", unit=" products", disable=None, leave=False):
                self._move(number, product_id, found[number, product_id])
        raise _Trouble("somebody goes on writing reservations where they were; stop the checkouts, then repeat this")

    def say_what_is_next(self) -> int:
        """Say what was done, and what a person does next; return 0."""
        variables = f"{variable('shards')}={len(self._new)}"
        sys.stdout.write(
            f"{self._products:,} products with {self._reservations:,} reservations moved; expiry is paused."
            f" Start the checkouts and the sidecar with {variables}, then: {variables} expirer resume\n"
        )
        return 0

    def _pause(self) -> None:
        reason = f"reshard from {len(self._old)} to {len(self._new)}"
        for keys in dict.fromkeys((*self._old, *self._new)):
            fields = control.pausing(self._by, reason, server_now(self._client, self._settings))
            self._client.hset(keys.control, mapping=fields)  # type: ignore[arg-type]

    def _look(self) -> dict[tuple[int, bytes], bytearray]:
        """Return (shard, product) -> ids of its reservations, for what is not where it will be; no product: b""."""
        found: defaultdict[tuple[int, bytes], bytearray] = defaultdict(bytearray)
        with closing(Survey(self._servers, self._settings)) as survey:
            total = 2 * survey.size()
            with tqdm(total=total, desc="looking", unit=" keys", unit_scale=True, disable=None, leave=False) as bar:
                for number, row in survey.walk(bar.update):
                    if not self._stays(number, row.product_id):
                        pack(found[number, row.product_id], row.id)
                for number, product_id in survey.products(bar.update):
                    if not self._stays(number, product_id):
                        found[number, product_id] += b""
            written = [row.id for _, row in survey.news()]
        if written:
            what = f"{shown(readable(written[0]))} was written just now"
            raise _Trouble(f"{what}: stop the checkouts first, then repeat this; expiry stays paused meanwhile")
        return dict(found)

    def _stays(self, number: int, product_id: bytes) -> bool:
        return self._old[number].index == self._home(product_id).index

    def _home(self, product_id: bytes) -> ShardKeys:
        """Return the shard of a product; what has none lives on the first."""
        return self._new[shard_of(product_id, len(self._new)) if product_id else 0]

    def _move(self, number: int, product_id: bytes, packed: bytearray) -> None:
        old, new = self._old[number], self._home(product_id)
        moving: Any = f"{new.operations}:moving"
        ids = dict.fromkeys(unpacked(packed))
        self._write_list(moving, iter(ids))
        keys = (
            *(old.index, old.quarantine, old.stock_prefix.encode() + product_id),
            *(new.index, new.quarantine, new.stock_prefix.encode() + product_id, moving),
        )
        words = (product_id, old.reservation_prefix, new.reservation_prefix, self._settings.field_product_id)
        with self._client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(old.control, new.control)
            hands = (Control.read(pipe.hmget(one.control, control.FIELDS)) for one in (old, new))
            if any(hand.pause is None for hand in hands):
                raise _Trouble("somebody has resumed expiry; repeat this when it may be paused again")
            pipe.multi()
            self._script(keys=keys, args=words, client=pipe)
            try:
                ((code, what),) = pipe.execute()
            except WatchError:
                raise _Trouble("somebody has written the control key meanwhile; look, then repeat this") from None
        if code == b"occupied":
            raise _Trouble(f"{shown(readable(what))} exists already, so {shown(readable(product_id))} was not moved")
        if code == b"different":
            raise _Trouble(f"{shown(readable(what))} has changed its product meanwhile: stop the checkouts first")
        self._products += bool(product_id)
        self._reservations += int(what)

    def _write_list(self, moving: Any, ids: Iterator[bytes]) -> None:  # noqa: ANN401  # bytes or text, as redis-py takes both
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(moving)
            while some := list(islice(ids, _IDS_AT_ONCE)):
                pipe.rpush(moving, *some)
            pipe.pexpire(moving, _LIST_LASTS_MS)
            pipe.execute()

    def _move_totals(self) -> None:
        """Add the totals of the shards that are no more to the first one's, and leave a record there."""
        first = self._new[0]
        kept = {keys.stats for keys in self._new}
        for keys in self._old:
            if keys.stats in kept:
                continue
            with self._client.pipeline() as transaction:
                pipe: Any = transaction
                pipe.watch(keys.stats)
                totals: Any = pipe.hgetall(keys.stats)
                pipe.multi()
                for name, total in totals.items():
                    if total.isdigit() and name != b"rate_until":
                        pipe.hincrby(first.stats, name, int(total))
                pipe.delete(keys.stats)
                pipe.execute()
        record: Any = {"operation": "reshard", "by": self._by, "from": len(self._old), "to": len(self._new)}
        self._client.xadd(first.operations, record, maxlen=_OPERATIONS, approximate=True)
