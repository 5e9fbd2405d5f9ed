"""Builds the Redis client from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import redis.cluster
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, DefaultParser, SSLConnection, parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError
from redis.retry import Retry

from expirer.config.address import PORT, host_ports, read_password
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection import pipeline
from expirer.connection.directory import LONGEST_S, Cluster, Sentinels, shown
from expirer.connection.errors import GREETING, redact
from expirer.connection.locate import LocatedConnection, located
from expirer.contract.keys import shard_keys, slot_of
from expirer.contract.shard import Shard

_TIMEOUT_S = 5.0
_WAITS_OF_A_TURN = 6
"""To connect, to log in, for a script to load, for the control key, for the clock, for the batch."""
_PARSER = getattr(redis.cluster, "ClusterParser", DefaultParser)
"""Before redis-py 6 no other knows the errors of a Cluster by name."""
_OF_THE_SERVER = ("client_name", "credential_provider", "db", "password", "username")
"""Options that its Sentinels do not need, or would refuse."""


class PasswordFile(CredentialProvider):
    """Reads the password anew for every connection, so that a rotated secret needs no restart."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password) or (user name, password); raise OSError where the file has gone."""
        password = read_password(self._path)
        return (password,) if self._username is None else (self._username, password)


@dataclass(frozen=True, slots=True)
class Servers:
    """The shards, each with a client of the server that serves it; a client connects at its first command."""

    shards: tuple[Shard, ...]
    cluster: Cluster | None = None
    slots: tuple[int, ...] = ()
    """In a Cluster, of each shard."""

    @classmethod
    def of(cls, client: Redis, settings: Settings) -> Self:
        """Serve every shard by one client."""
        return cls(_shards([client] * settings.shards, settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in {shard.client for shard in self.shards}:
            client.close()

    def each(self) -> dict[str, Redis]:
        """Return a client of each server that serves a shard, by its address: for what no key tells, such as SCAN.

        Raises:
            RedisError: no node of the Cluster tells its map.

        """
        if self.cluster is None:
            return {"": self.shards[0].client}
        each: dict[str, Redis] = {}
        for shard, address in zip(self.shards, self.cluster.primaries(self.slots), strict=True):
            each.setdefault(shown(address), shard.client)
        return each


def _shards(clients: Iterable[Redis], settings: Settings) -> tuple[Shard, ...]:
    rows = enumerate(zip(shard_keys(settings), clients, strict=True))
    return tuple(Shard(number, keys, client, settings) for number, (keys, client) in rows)


def connect_all(settings: Settings) -> Servers:
    """Build a client for each shard.

    It never repeats a command by itself: a script whose reply was lost may have run, and the worker's
    loop is the retry. With Sentinels, or in a Cluster, each of its connections looks for the primary.

    Raises:
        ConfigurationError: the URL cannot be used, or the names of keys cannot in a Cluster.

    """
    url = settings.redis_url.get_secret_value()
    start = host_ports(urlsplit(url).netloc, PORT)
    try:
        options: dict[str, Any] = dict(parse_url(_with_one_host(url)))  # type: ignore[no-untyped-call]
        if settings.redis_password_file is not None:
            options.pop("password", None)
            options["credential_provider"] = PasswordFile(settings.redis_password_file, options.pop("username", None))
        defaults = {
            "client_name": "expirer",
            "parser_class": _PARSER,
            "protocol": 2,
            "redis_connect_func": _greet,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": _TIMEOUT_S,
            "socket_timeout": _TIMEOUT_S,
        }
        if issubclass(options.get("connection_class", Connection), SSLConnection):
            # Before redis-py 6 any host's certificate would do.
            defaults["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none"
        options = {**defaults, **options}
        pool = ConnectionPool(**options)
        pool.connection_class(**pool.connection_kwargs)  # refuses what the settings let pass, such as an ssl_cert_reqs
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError([f"the Redis URL: {redact(str(error), settings)}"]) from None
    if settings.redis_sentinels:
        addresses = [address for text in settings.redis_sentinels for address in host_ports(text)]
        sentinels = Sentinels(settings.redis_sentinel_service, addresses, _of_sentinels(options, settings))
        return Servers.of(located(sentinels.primary, options, sentinels.last_primary), settings)
    if settings.redis_cluster:
        cluster = Cluster([(host or "localhost", port) for host, port in start], options)
        slots = tuple(map(slot_of, shard_keys(settings)))
        clients = (located(partial(cluster.primary, slot), options) for slot in slots)
        return Servers(_shards(clients, settings), cluster, slots)
    return Servers.of(Redis(connection_pool=pool), settings)


def is_replaced(connection: pipeline.Connection) -> bool:
    """Say whether another server is known to be the primary by now; never raises."""
    return isinstance(connection, LocatedConnection) and connection.is_given_up()


def connect(settings: Settings) -> Redis:
    """Build the client of the first shard, which is the only one in most inventories; see `connect_all`."""
    return connect_all(settings).shards[0].client


def _greet(connection: Any) -> None:  # noqa: ANN401  # redis-py's kinds of connection share no type
    """Log in, as redis-py does by itself."""
    try:
        connection.on_connect()
    except RedisError as error:
        error.add_note(GREETING)
        raise


def _with_one_host(url: str) -> str:
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    return url.replace(hosts, hosts.partition(",")[0], 1) if "," in hosts else url


def _of_sentinels(options: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return how to connect to the Sentinels: as to the server, but with credentials of their own, and no database."""
    options = {name: value for name, value in options.items() if name not in _OF_THE_SERVER}
    username = settings.redis_sentinel_username or None
    if settings.redis_sentinel_password_file is not None:
        return {**options, "credential_provider": PasswordFile(settings.redis_sentinel_password_file, username)}
    password = settings.redis_sentinel_password.get_secret_value() or None
    return {**options, "username": username, "password": password}


def longest_turn_s(settings: Settings) -> float:
    """Return how long a batch can take at worst: when each of its waits lasts until its time-out."""
    options = parse_qs(urlsplit(settings.redis_url.get_secret_value()).query)
    waits = [float(options.get(name, [_TIMEOUT_S])[0]) for name in ("socket_timeout", "socket_connect_timeout")]
    looks_s = LONGEST_S if settings.redis_sentinels or settings.redis_cluster else 0.0
    return _WAITS_OF_A_TURN * max(waits) + looks_s
