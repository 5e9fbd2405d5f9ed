"""Moves an inventory on one server to another number of shards, product by product."""

from __future__ import annotations

import math
import secrets
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from redis.exceptions import RedisError, ResponseError, WatchError
from tqdm import tqdm

from expirer.config.environment import variable
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection.connect import Servers
from expirer.connection.errors import location
from expirer.contract import control, scripts
from expirer.contract.control import Control
from expirer.contract.keys import ShardKeys
from expirer.contract.numbers import integer
from expirer.contract.text import decode, printable
from expirer.operate.audit import audit
from expirer.operate.check import wrong_types
from expirer.operate.inventory_scan import PackedIds, sliced
from expirer.operate.pause import is_conflict
from expirer.operate.places import MOST_SHARDS, Places, ReshardError
from expirer.operate.terminal import confirms, error_line, format_pause, reporting_errors, who

_KEYS = ("index", "quarantine", "control", "stats", "operations")
_NO_TOTALS = {b"rate_until", b"ticks", b"token"}
"""What the stats have beside totals; it belongs to one shard."""
_PATIENCE_S = 120
"""For a script that moves very many reservations: after a time-out nobody would know its outcome."""
_MOST_AT_ONCE = 1_000_000
"""Ids for one script: up to 7.0 Redis takes no command of many more words."""
_ENDED_AT_ONCE = 1000
_MOST_WALKS = 3
_OPERATIONS = 10_000


def reshard(settings: Settings, shards: int, *, is_sure: bool) -> int:
    """Pause expiry and move every product to its new shard; return 1 if that is not done and audited.

    It may be interrupted, and repeated: what has been moved stays, the rest follows.

    Raises:
        ConfigurationError: the layout has names of its own, the server is a Cluster, or the number is out of range.

    """
    if settings.is_custom_layout:
        raise ConfigurationError(["reshard moves the project's own layout; names of your own belong to one shard"])
    if settings.redis_cluster:
        raise ConfigurationError(["reshard works on one server: in a Cluster no script reaches two hash tags"])
    if not 1 <= shards <= MOST_SHARDS:
        raise ConfigurationError([f"--to {shards}: the number of shards is 1 to {MOST_SHARDS}"])
    target = settings.model_copy(update={"shards": shards})
    with reporting_errors(settings) as servers:
        move = _Move(servers, settings, target)
        try:
            if move.is_needed():
                if not is_sure and not confirms(move.question()):
                    sys.stdout.flush()
                    sys.stderr.write("expirer: nothing was changed; stop the checkouts, then repeat this with --yes\n")
                    return 1
                move.run()
        except KeyboardInterrupt:
            sys.stderr.write(f"expirer: interrupted{move.state()}\n")
            raise
        except (ReshardError, RedisError) as error:
            sys.stderr.write(f"expirer: {_describe(error, settings)}{move.state()}\n")
            return 1
        code = audit(target, None, as_json=False)
        move.report(is_sound=code == 0)
        return code
    return 1


def _describe(error: Exception, settings: Settings) -> str:
    if isinstance(error, ReshardError):
        return str(error)
    if is_conflict(error):
        return "somebody wrote the control key or the totals meanwhile: find out who"
    if isinstance(error, WatchError) and isinstance(error.__context__, RedisError):
        error = error.__context__
    if str(error).startswith(("BUSY", "Timeout reading")):
        return f"{location(settings)}: Redis is running a long script, and will finish it: wait until it answers again"
    return error_line(error, settings)


class _Move:
    def __init__(self, servers: Servers, settings: Settings, target: Settings) -> None:
        self._client: Any = servers.shards[0].client
        self._client.connection_pool.connection_kwargs["socket_timeout"] = _PATIENCE_S
        self._first = Servers.of(self._client, target).shards[0]
        self._product_field = settings.field_product_id
        self._places = Places(servers, settings, target)
        self._old, self._new = self._places.old, self._places.new
        kept = set(self._new)
        self._left_stats = [keys.stats for keys in self._old if keys not in kept]
        self._script = scripts.load("reshard")
        self._is_paused = False
        self._products = self._reservations = 0

    def is_needed(self) -> bool:
        """Say whether anything is to be moved; raise ReshardError if it could not be, or not safely."""
        self._places.require_known()
        return self._places.is_anything_misplaced() or any(map(self._client.exists, self._left_stats))

    def question(self) -> str:
        """Say what is about to happen."""
        active = sum(self._client.zcard(keys.index) for keys in self._old)
        return (
            f"Pause expiry and move {active:,} Active reservations, and all that have ended,"
            f" from {len(self._old)} to {len(self._new)} shards? All checkouts must be stopped."
        )

    def run(self) -> None:
        """Pause, then move until nothing is left to move; raise ReshardError if it cannot go on."""
        self._try_permissions()
        self._pause()
        for _ in range(_MOST_WALKS):
            found = self._places.find()
            if not found:
                self._move_totals()
                self._places.require_known(is_moved=True)
                return
            for number, product_id in tqdm(sorted(found), "moving", unit=" products", disable=None, leave=False):
                self._move_product(self._old[number], product_id, found[number, product_id])
        raise ReshardError("somebody still writes reservations to the old shards: stop the checkouts")

    def state(self) -> str:
        """Say, after an error, what was done and what a person does next."""
        if not self._is_paused:
            return ""
        moved = f"{self._products:,} products have moved, " if self._products else ""
        return f"; {moved}expiry stays paused: repeat this"

    def report(self, *, is_sound: bool) -> None:
        """Say what was done, and what a person does next."""
        variables = f"{variable('shards')}={len(self._new)}"
        pause = self._first.pause(self._first.now())
        moved = f"{self._products:,} products with {self._reservations:,} reservations moved"
        if not self._products and not self._reservations:
            moved = "nothing to move"
        steps = [] if is_sound else [f"see what the audit found, and repair it: {variables} expirer audit --repair"]
        steps.append(f"start the checkouts and the sidecar with {variables}")
        if pause is not None:
            moved += f"; expiry is paused {format_pause(pause)}"
            steps.append(f"{variables} expirer resume")
        sys.stdout.write(f"{moved}\nnext: {', then: '.join(steps)}\n")

    def _try_permissions(self) -> None:
        """Use each command on the keys of each shard without effect: what is refused is refused before the pause."""
        nobody = secrets.token_hex(16).encode()  # a name that nothing has
        for keys in {*self._old, *self._new}:
            for problem in wrong_types(self._client, keys, _KEYS):
                raise ReshardError(problem)
        self._client.script_load(self._script.text)
        for number in range(max(len(self._old), len(self._new))):
            old, new = self._old[number % len(self._old)], self._new[number % len(self._new)]
            self._client.execute_command(*self._command(old, new, nobody, [nobody]))
            self._client.zscan(old.index)
            self._client.hscan(old.quarantine)
            self._client.pttl(old.control)
        with self._client.pipeline() as pipe:
            for name in (self._first.keys.stats, *self._left_stats):
                pipe.hgetall(name)
                pipe.hdel(name, nobody)
            pipe.execute()

    def _pause(self) -> None:
        """Pause every shard, old and new, all or none.

        A pause that has no end stays, and so does a brake; the new shards get both: who resumes them must see them.
        """
        by, now = who(), self._first.now()
        record = {"operation": "reshard", "by": by, "from": len(self._old), "to": len(self._new)}
        with self._client.pipeline() as pipe:
            pipe.watch(*(keys.control for keys in self._old))
            found = {keys: Control.read(pipe.hmget(keys.control, control.FIELDS)) for keys in self._old}
            pauses = {keys: one.pause for keys, one in found.items() if one.pause and one.pause.until is None}
            brake = next((one.brake for one in found.values() if one.brake), None)
            pausing = control.pausing(by, f"reshard from {len(self._old)} to {len(self._new)}", now)
            for pause in pauses.values():
                pausing = control.pausing(pause.by, pause.reason, pause.since or now)
            pipe.multi()
            for keys in dict.fromkeys((*self._old, *self._new)):
                fields = {} if keys in pauses else dict(pausing)
                if brake and keys in self._new and not (keys in found and found[keys].brake):
                    fields |= control.braking(brake.by, brake.reason, brake.since or now)
                if fields:
                    pipe.hset(keys.control, mapping=fields)
            pipe.xadd(self._first.keys.operations, record, maxlen=_OPERATIONS, approximate=True)
            self._is_paused = True  # even if the reply is lost
            try:
                pipe.execute()
            except RedisError as error:
                self._is_paused = not (isinstance(error, ResponseError) or is_conflict(error))
                raise

    def _move_product(self, old: ShardKeys, product_id: bytes, ids: tuple[PackedIds, PackedIds]) -> None:
        """Move its counters with the reservations that they depend on in one step, then the others in slices.

        In this order a checkout that still writes meets what has ended for as long as it meets the product: it
        never takes an order again that was confirmed.
        """
        placed = dict.fromkeys(ids[0])
        if len(placed) > _MOST_AT_ONCE:
            what = f"{printable(decode(product_id))} has {len(placed):,} Active reservations"
            raise ReshardError(f"{what}, more than the {_MOST_AT_ONCE:,} that move in one step: let some end first")
        self._move(old, product_id, placed)
        ended = (id_ for id_ in dict.fromkeys(ids[1]) if id_ not in placed)
        for some in sliced(ended, _ENDED_AT_ONCE):
            self._move(old, product_id, some)
        self._products += bool(product_id)

    def _move(self, old: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> None:
        while (answer := self._try_move(old, product_id, ids)) is None:
            pass  # somebody wrote a control key, which is read again
        code, what = answer
        name = printable(decode(what))
        if code == b"occupied":
            product = printable(decode(product_id)) or "the reservations without a product"
            raise ReshardError(f"{name} exists already, so {product} cannot move there: see which of both is right")
        if code == b"different":
            raise ReshardError(f"{name} has changed its product meanwhile: stop the checkouts first")
        self._reservations += int(what)

    def _try_move(self, old: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> tuple[bytes, bytes] | None:
        """Return the script's answer; None: nothing was done, a control key was written meanwhile."""
        new = self._places.home(product_id)
        with self._client.pipeline() as pipe:
            pipe.watch(old.control, new.control)
            found = (Control.read(pipe.hmget(one.control, control.FIELDS)) for one in (old, new))
            if not all(one.halt(math.inf) for one in found):
                self._is_paused = False
                raise ReshardError("somebody has resumed expiry, or the pause will end by itself: repeat this later")
            pipe.multi()
            pipe.execute_command(*self._command(old, new, product_id, ids))
            try:
                ((code, what),) = pipe.execute()
            except WatchError as error:
                if is_conflict(error):
                    return None
                raise
        return code, what

    def _command(self, old: ShardKeys, new: ShardKeys, product_id: bytes, ids: Iterable[bytes]) -> tuple[object, ...]:
        keys = (
            *(old.index, old.quarantine, old.stock_prefix.encode() + product_id),
            *(new.index, new.quarantine, new.stock_prefix.encode() + product_id),
        )
        words = (product_id, old.reservation_prefix, new.reservation_prefix, self._product_field)
        return ("EVALSHA", self._script.sha, len(keys), *keys, *words, *ids)

    def _move_totals(self) -> None:
        """Add the totals of the old shards to the first new one's; a total that is no integer counts as none."""
        first = self._first.keys.stats
        with self._client.pipeline() as pipe:
            pipe.watch(first, *self._left_stats)
            left: dict[str, dict[bytes, bytes]] = {name: pipe.hgetall(name) for name in self._left_stats}
            sums: Counter[bytes] = Counter()
            for totals in (pipe.hgetall(first), *left.values()):
                numbers = {name: integer(total, least=0) for name, total in totals.items() if name not in _NO_TOTALS}
                sums.update({name: number for name, number in numbers.items() if number is not None})
            pipe.multi()
            if sums:
                pipe.hset(first, mapping=sums)
            for name, totals in left.items():
                if totals:
                    pipe.hdel(name, *totals)
            pipe.execute()
