"""Builds the Redis client from the settings, and keeps its secrets out of every text."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis.cluster
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, DefaultParser, SSLConnection, parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import AskError, MovedError, NoPermissionError, RedisError, TryAgainError
from redis.retry import Retry

from expirer import scripts
from expirer.address import host_ports
from expirer.keys import shard_keys, slot_of
from expirer.locate import Cluster, Sentinels, located, shown
from expirer.settings import ConfigurationError, Settings

_PORT = 6379
_TIMEOUT_S = 5.0
_WAITS_OF_A_TURN = 6
"""To connect, to log in, for a script to load, for the control key, for the clock, for the batch."""
GRANT = "grant what the README lists under Container, server and rights; ACL LOG names what was refused"
_REFUSED_IN_A_SCRIPT = ("ACL failure in script", "The user executing the script can't")
"""How Redis 7, and 6.2, begin to say so; redis-py knows no class for it."""
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
        password = _read_password(self._path)
        return (password,) if self._username is None else (self._username, password)


@dataclass(frozen=True, slots=True)
class Servers:
    """A client for each shard, of the server that serves it; each connects at its first command."""

    shards: tuple[Redis, ...]
    cluster: Cluster | None = None
    slots: tuple[int, ...] = ()
    """In a Cluster, of each shard."""

    @classmethod
    def one(cls, client: Redis, settings: Settings) -> Self:
        """Serve every shard by one client."""
        return cls((client,) * settings.shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in set(self.shards):
            client.close()

    def lanes(self) -> list[list[int]]:
        """Return which shards share a client: one that hangs holds up these, and no others."""
        lanes: dict[Redis, list[int]] = {}
        for number, client in enumerate(self.shards):
            lanes.setdefault(client, []).append(number)
        return list(lanes.values())

    def each(self) -> dict[str, Redis]:
        """Return a client of each server that serves a shard, by its address: for what no key tells, such as SCAN.

        Raises:
            RedisError: no node of the Cluster tells its map.

        """
        if self.cluster is None:
            return {"": self.shards[0]}
        each: dict[str, Redis] = {}
        for client, address in zip(self.shards, self.cluster.primaries(self.slots), strict=True):
            each.setdefault(shown(address), client)
        return each


def connect_all(settings: Settings) -> Servers:
    """Build a client for each shard.

    It never repeats a command by itself: a script whose reply was lost may have run, and the worker's
    loop is the retry. With Sentinels, or in a Cluster, each of its connections looks for the primary.

    Raises:
        ConfigurationError: the URL cannot be used, or the names of keys cannot in a Cluster.

    """
    url = settings.redis_url.get_secret_value()
    start = host_ports(urlsplit(url).netloc, _PORT)
    try:
        options: dict[str, Any] = dict(parse_url(_with_one_host(url)))  # type: ignore[no-untyped-call]
        if settings.redis_password_file is not None:
            options.pop("password", None)
            options["credential_provider"] = PasswordFile(settings.redis_password_file, options.pop("username", None))
        defaults = {
            "client_name": "expirer",
            "parser_class": _PARSER,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": _TIMEOUT_S,
            "socket_timeout": _TIMEOUT_S,
        }
        if issubclass(options.get("connection_class", Connection), SSLConnection):
            # Before redis-py 6 any host's certificate would do.
            defaults["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none"
        options = {**defaults, **options}
        pool = ConnectionPool(**options)
        pool.connection_class(**pool.connection_kwargs)  # refuses values that no connection takes
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError([f"the Redis URL: {redact(str(error), settings)}"]) from None
    if settings.redis_sentinels:
        addresses = [address for text in settings.redis_sentinels for address in host_ports(text)]
        sentinels = Sentinels(settings.redis_sentinel_service, addresses, _of_sentinels(options, settings))
        return Servers.one(located(sentinels.primary, options), settings)
    if settings.redis_cluster:
        cluster = Cluster([(host or "localhost", port) for host, port in start], options)
        slots = tuple(map(slot_of, shard_keys(settings)))
        return Servers(tuple(located(partial(cluster.primary, slot), options) for slot in slots), cluster, slots)
    return Servers.one(Redis(connection_pool=pool), settings)


def connect(settings: Settings) -> Redis:
    """Build the client of the first shard, which is the only one in most inventories; see `connect_all`."""
    return connect_all(settings).shards[0]


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
    return _WAITS_OF_A_TURN * max(waits)


def location(settings: Settings) -> str:
    """Return the address without credentials and options; with Sentinels theirs, and the name of the service."""
    if settings.redis_sentinels:
        return f"sentinel://{','.join(settings.redis_sentinels)}/{settings.redis_sentinel_service}"
    url = urlsplit(settings.redis_url.get_secret_value())
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def explain(error: Exception, settings: Settings) -> str:
    """Return what an error says in words that stand alone, without any secret."""
    if isinstance(error, MovedError):
        where = f"slot {error.slot_id} is served by {error.host}:{error.port}"
        if not settings.redis_cluster:
            return f"{where}: this is a Redis Cluster, set EXPIRER_REDIS_CLUSTER=true"
        return f"{where} now; nothing was done, and the next try goes there"
    if isinstance(error, AskError | TryAgainError) or "non local key" in str(error):
        return "the slot of this shard is being moved to another node; nothing was done, and the next try looks again"
    text = redact(scripts.explained(str(error)), settings)
    return f"{text}; {GRANT}" if lacks_right(error) else text


def lacks_right(error: Exception) -> bool:
    """Say whether Redis is well, and refuses this user something."""
    return isinstance(error, NoPermissionError) or any(words in str(error) for words in _REFUSED_IN_A_SCRIPT)


def redact(text: str, settings: Settings) -> str:
    """Return the text with every password that the settings know replaced by `***`."""
    url = urlsplit(settings.redis_url.get_secret_value())
    secrets = {unquote(url.password or ""), *parse_qs(url.query).get("password", [])}
    secrets.add(settings.redis_sentinel_password.get_secret_value())
    for path in (settings.redis_password_file, settings.redis_sentinel_password_file):
        if path is not None:
            with suppress(OSError):
                secrets.add(_read_password(path))
    for secret in {form for known in secrets if known for form in (known, quote(known, safe=""))}:
        text = text.replace(secret, "***")
    return text


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise OSError(f"{path} is not UTF-8 text") from None
