"""Moves an inventory on one server to another number of hash tags, product by product."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, TextIO

from redis import Redis
from redis.exceptions import RedisError, ResponseError, WatchError
from tqdm import tqdm

from expirer.config.environment import variable
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import describe, location
from expirer.contract import control, scripts
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from expirer.contract.text import readable
from expirer.operate.audit import audit
from expirer.operate.check import wrong_types
from expirer.operate.inventory_scan import integer, sliced, unpacked
from expirer.operate.places import MOST_SHARDS, Ids, Places, Trouble
from expirer.operate.server import redis_or_say, server_now
from expirer.operate.terminal import confirms, shown, shown_pause, who

_KEYS = ("index", "quarantine", "control", "stats", "operations")
_NOBODY = b"\0"
"""A name that nothing has, to try a right without effect."""
_PATIENCE_S = 120
"""For a script that moves very many reservations; whoever gave up on it would not know how it ended."""
_MOST_HELD = 1_000_000
"""Ids for one script: up to 7.0 Redis takes no command of many more words."""
_ENDED_AT_ONCE = 1000
_MOST_WALKS = 3
_OPERATIONS = 10_000


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
            if move.is_needed():
                if not is_sure and not confirms(move.question(), answers):
                    sys.stdout.flush()
                    sys.stderr.write("expirer: nothing was changed; stop the checkouts, then repeat this with --yes\n")
                    return 1
                move.run()
        except KeyboardInterrupt:
            sys.stderr.write(f"expirer: interrupted{move.state()}\n")
            raise
        except (Trouble, RedisError) as error:
            sys.stderr.write(f"expirer: {_told(error, settings)}{move.state()}\n")
            return 1
        code = audit(target, None, as_json=False)
        move.say_what_is_next(is_sound=code == 0)
        return code
    return 1


def _checked(settings: Settings, shards: int) -> Settings:
    if settings.is_custom_layout:
        raise ConfigurationError(["reshard moves the project's own layout; names of your own belong to one shard"])
    if settings.redis_cluster:
        raise ConfigurationError(["reshard works on one server: in a Cluster no script reaches two hash tags"])
    if not 1 <= shards <= MOST_SHARDS:
        raise ConfigurationError([f"--to {shards}: the number of shards is 1 to {MOST_SHARDS}"])
    if shards == settings.shards:
        raise ConfigurationError([f"--to {shards}: {variable('shards')} is {shards} already"])
    return settings.model_copy(update={"shards": shards})


def _told(error: Trouble | RedisError, settings: Settings) -> str:
    if isinstance(error, Trouble):
        return str(error)
    if _is_conflict(error):
        return "somebody has written the control key or the totals meanwhile: look who"
    if isinstance(error, WatchError) and isinstance(error.__context__, RedisError):
        error = error.__context__
    if str(error).startswith(("BUSY", "Timeout reading")):
        return f"{location(settings)}: it is at work on a script, and will finish it: wait until it answers again"
    return f"{location(settings)}: {shown(describe(error, settings))}"


def _is_conflict(error: RedisError) -> bool:
    """Say whether somebody wrote what was watched; redis-py tells of a connection that was lost in the same way."""
    return isinstance(error, WatchError) and not isinstance(error.__context__, RedisError)


class _Move:
    def __init__(self, servers: Servers, settings: Settings, target: Settings) -> None:
        self._client: Redis = servers.shards[0].client
        self._client.connection_pool.connection_kwargs["socket_timeout"] = _PATIENCE_S
        self._settings = settings
        self._places = Places(servers, settings, target)
        self._old, self._new = self._places.old, self._places.new
        kept = {keys.stats for keys in self._new}
        self._left_stats = [keys.stats for keys in self._old if keys.stats not in kept]
        self._script = scripts.load("reshard")
        self._is_paused = False
        self._products = self._reservations = 0

    def is_needed(self) -> bool:
        """Say whether anything is to be moved; raise Trouble where it could not be, or not safely."""
        self._places.require_known()
        has_totals = bool(self._left_stats) and bool(self._client.exists(*self._left_stats))
        return self._places.is_anything_misplaced() or has_totals

    def question(self) -> str:
        """Say what is about to happen."""
        active: Any = sum(self._client.zcard(keys.index) for keys in self._old)
        return (
            f"Pause expiry and move {active:,} Active reservations, and all that have ended,"
            f" from {len(self._old)} to {len(self._new)} shards? No checkout may be at work."
        )

    def run(self) -> None:
        """Pause, then move until nothing is left to move; raise Trouble where it cannot go on."""
        self._try_rights()
        self._pause()
        for _ in range(_MOST_WALKS):
            found = self._places.look()
            if not found:
                self._move_totals()
                self._places.require_known(is_moved=True)
                return
            for number, product_id in tqdm(sorted(found), "moving", unit=" products", disable=None, leave=False):
                self._move_product(self._old[number], product_id, found[number, product_id])
        raise Trouble("somebody goes on writing reservations where they were: stop the checkouts")

    def state(self) -> str:
        """Say, after what has gone wrong, how things stand and what a person does next."""
        if not self._is_paused:
            return ""
        moved = f"{self._products:,} products have moved, " if self._products else ""
        way_back = "" if self._places.is_begun else ", or expirer resume"
        return f"; {moved}expiry stays paused: repeat this{way_back}"

    def say_what_is_next(self, *, is_sound: bool) -> None:
        """Say what was done, and what a person does next."""
        variables = f"{variable('shards')}={len(self._new)}"
        pause = Control.read(self._client.hmget(self._new[0].control, control.FIELDS)).pause  # type: ignore[arg-type]
        moved = f"{self._products:,} products with {self._reservations:,} reservations moved"
        if not self._products and not self._reservations:
            moved = "nothing was to be moved"
        steps = [f"start the checkouts and the sidecar with {variables}"]
        if not is_sound:
            steps.insert(0, f"see what the audit found, and mend it: {variables} expirer audit --repair")
        if pause is not None:
            moved += f"; expiry is paused {shown_pause(pause)}"
            steps.append(f"{variables} expirer resume")
        sys.stdout.write(f"{moved}\nnext: {', then: '.join(steps)}\n")

    def _try_rights(self) -> None:
        """Use each command on the keys of each shard without effect: what is refused is refused before the pause."""
        shards = tuple(dict.fromkeys((*self._old, *self._new)))
        for trouble in wrong_types([(self._client, keys) for keys in shards], _KEYS):
            raise Trouble(trouble)
        self._client.script_load(self._script.text)
        for number in range(max(len(self._old), len(self._new))):
            old, new = self._old[number % len(self._old)], self._new[number % len(self._new)]
            self._call(self._client, old, new, _NOBODY, [_NOBODY])
            self._client.zscan(old.index)
            self._client.hscan(old.quarantine)
            self._client.pttl(old.control)
        with self._client.pipeline() as pipe:
            for name in (self._new[0].stats, *self._left_stats):
                pipe.hgetall(name)
                pipe.hdel(name, _NOBODY)
            pipe.execute()

    def _pause(self) -> None:
        """Pause every shard, old and new, all or none.

        A pause of somebody else that lasts stays as it is, and is what the new shards get: who resumes them reads it.
        """
        now = server_now(self._client, self._settings)
        fields = control.pausing(who(), f"reshard from {len(self._old)} to {len(self._new)}", now)
        record: Any = {"operation": "reshard", "by": fields["by"], "from": len(self._old), "to": len(self._new)}
        with self._client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(*(keys.control for keys in self._old))
            held = set()
            for keys in self._old:
                pause = Control.read(pipe.hmget(keys.control, control.FIELDS)).pause
                if pause is not None and pause.until is None:
                    held.add(keys)
                    fields = control.pausing(pause.by, pause.reason, pause.since or now)
            pipe.multi()
            for keys in dict.fromkeys((*self._old, *self._new)):
                if keys not in held:
                    pipe.hset(keys.control, mapping=fields)
            pipe.xadd(self._new[0].operations, record, maxlen=_OPERATIONS, approximate=True)
            self._is_paused = True  # also where the answer is lost
            try:
                pipe.execute()
            except RedisError as error:
                self._is_paused = not (isinstance(error, ResponseError) or _is_conflict(error))
                raise

    def _move_product(self, old: ShardKeys, product_id: bytes, ids: Ids) -> None:
        """Move its counters with the reservations that they depend on in one step, then the others in slices.

        In this order a checkout that nobody stopped meets what has ended for as long as it meets the product: it
        never takes an order again that was confirmed.
        """
        self._places.is_begun = True
        held = dict.fromkeys(unpacked(ids.held))
        if len(held) > _MOST_HELD:
            what = f"{shown(readable(product_id))} has {len(held):,} Active reservations"
            raise Trouble(f"{what}, more than the {_MOST_HELD:,} that move in one step: let some of them end first")
        self._move(old, product_id, held)
        for some in sliced((id_ for id_ in dict.fromkeys(unpacked(ids.ended)) if id_ not in held), _ENDED_AT_ONCE):
            self._move(old, product_id, some)
        self._products += bool(product_id)

    def _move(self, old: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> None:
        while (answer := self._try_move(old, product_id, ids)) is None:
            pass  # somebody wrote a control key, which is read again
        code, what = answer
        if code == b"occupied":
            name = shown(readable(product_id)) or "what has no product"
            raise Trouble(f"{shown(readable(what))} exists already, in the way of {name}: see which of both is right")
        if code == b"different":
            raise Trouble(f"{shown(readable(what))} has changed its product meanwhile: stop the checkouts first")
        self._reservations += int(what)

    def _try_move(self, old: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> tuple[bytes, bytes] | None:
        """Return what the script says; None: nothing was done, a control key was written meanwhile."""
        new = self._places.home(product_id)
        with self._client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(old.control, new.control)
            hands = (Control.read(pipe.hmget(one.control, control.FIELDS)) for one in (old, new))
            if any(hand.pause is None or hand.pause.until is not None for hand in hands):
                self._is_paused = False
                raise Trouble("somebody has resumed expiry, or lets it go on by itself; repeat this when it may rest")
            pipe.multi()
            self._call(pipe, old, new, product_id, ids)
            try:
                ((code, what),) = pipe.execute()
            except WatchError as error:
                if _is_conflict(error):
                    return None
                raise
        return code, what

    def _call(self, client: Any, old: ShardKeys, new: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> None:  # noqa: ANN401  # or a pipeline of it
        keys = (
            *(old.index, old.quarantine, old.stock_prefix.encode() + product_id),
            *(new.index, new.quarantine, new.stock_prefix.encode() + product_id),
        )
        words = (product_id, old.reservation_prefix, new.reservation_prefix, self._settings.field_product_id)
        client.evalsha(self._script.sha, len(keys), *keys, *words, *ids)

    def _move_totals(self) -> None:
        """Add the totals of the shards that are no more to the first one's; one that is damaged counts as none."""
        first = self._new[0].stats
        with self._client.pipeline() as transaction:
            pipe: Any = transaction
            pipe.watch(first, *self._left_stats)
            left: dict[str, dict[bytes, bytes]] = {name: pipe.hgetall(name) for name in self._left_stats}
            sums: Counter[bytes] = Counter()
            for totals in (pipe.hgetall(first), *left.values()):
                numbers = {name: integer(total, least=0) for name, total in totals.items() if name != b"rate_until"}
                sums.update({name: number for name, number in numbers.items() if number is not None})
            pipe.multi()
            if sums:
                pipe.hset(first, mapping=sums)
            for name, totals in left.items():
                if totals:
                    pipe.hdel(name, *totals)
            pipe.execute()
