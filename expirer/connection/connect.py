"""Builds the Redis clients from the settings."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import redis.cluster
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, DefaultParser, SSLConnection, parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from expirer.config.address import PORT, format_address, host_ports, read_password
from expirer.config.settings import ConfigurationError, Settings
from expirer.connection import cluster, pipeline, sentinel
from expirer.connection.cluster import Cluster
from expirer.connection.errors import redact
from expirer.connection.sentinel import is_replaced
from expirer.contract.keys import shard_keys, slot_of
from expirer.contract.shard import Shard

__all__ = ["PasswordFile", "Servers", "connect", "connect_all", "is_replaced", "longest_turn_s"]

_TIMEOUT_S = 5.0
_WAITS_OF_A_TURN = 6
"""To connect, to log in, for a script to load, for the control key, for the clock, for the batch."""
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, seconds, and a number of probes: a NAT or a firewall forgets a silent connection, often after a minute."""
_FILES, _FILES_OF_A_SHARD = 64, 2
_PARSER = getattr(redis.cluster, "ClusterParser", DefaultParser)
"""Before redis-py 6 no other knows the errors of a Cluster by name."""


class PasswordFile(CredentialProvider):
    """Reads the password anew for every connection, so that a rotated secret needs no restart."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password) or (user name, password); raise OSError if the file has gone."""
        password = read_password(self._path)
        return (password,) if self._username is None else (self._username, password)


@dataclass(frozen=True, slots=True)
class Servers:
    """The shards, each with a client of the server that serves it; a client connects at its first command."""

    shards: tuple[Shard, ...]
    cluster: Cluster | None = None

    @classmethod
    def of(cls, client: Redis, settings: Settings) -> Self:
        """Serve every shard by one client."""
        return cls(tuple(Shard(number, keys, client, settings) for number, keys in enumerate(shard_keys(settings))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in {shard.client for shard in self.shards}:
            client.close()

    def each(self) -> dict[str, Redis]:
        """Return a client of each server that serves a shard, by its address: for what no key tells, such as SCAN.

        Raises:
            RedisError: no node of the Cluster tells its map.

        """
        if self.cluster is None:
            return {"": self.shards[0].client}
        return dict(zip(self.addresses(), (shard.client for shard in self.shards), strict=True))

    def addresses(self) -> list[str]:
        """Return the address of each shard's server; none unless it is a Cluster. It raises as `each` does."""
        if self.cluster is None:
            return []
        slots = [slot_of(shard.keys) for shard in self.shards]
        return [format_address(address) for address in self.cluster.primaries(slots)]


def connect_all(settings: Settings) -> Servers:
    """Build a client for each shard.

    It never repeats a command by itself: a script whose reply was lost may have run, and the worker's
    loop is the retry. With Sentinels, or in a Cluster, each of its connections looks for the primary.

    Raises:
        ConfigurationError: the URL cannot be used, the names of keys cannot in a Cluster, or the shards need more
            open files than this process may have.

    """
    _allow_files(settings.shards)
    start = host_ports(urlsplit(settings.redis_url.get_secret_value()).netloc, PORT)
    try:
        options = _options(settings)
        pool = ConnectionPool(**options)
        pool.connection_class(**pool.connection_kwargs)  # refuses what the settings let pass, such as an ssl_cert_reqs
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError([f"the Redis URL: {redact(str(error), settings)}"]) from None
    if settings.redis_cluster:
        nodes = Cluster([(host or "localhost", port) for host, port in start], options)
        rows = enumerate(shard_keys(settings))
        return Servers(tuple(Shard(n, keys, nodes.client(slot_of(keys)), settings) for n, keys in rows), nodes)
    client = Redis.from_pool(pool)
    if settings.redis_sentinels:
        addresses = host_ports(",".join(settings.redis_sentinels))
        of_sentinels = _of_sentinels(options, settings)
        client = sentinel.primary_of(settings.redis_sentinel_service, addresses, options, of_sentinels)
    client.connection_pool.max_connections = 2**31  # each shard needs some; since redis-py 8 the default is 100
    return Servers.of(client, settings)


def connect(settings: Settings) -> Redis:
    """Build the client of the first shard, which is the only one in most inventories; see `connect_all`."""
    return connect_all(settings).shards[0].client


def _allow_files(shards: int) -> None:
    """Raise the limit of open files to what the shards may need at once; ConfigurationError if it cannot be raised."""
    needed = _FILES + _FILES_OF_A_SHARD * shards
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        problem = f"EXPIRER_SHARDS={shards} needs {needed} open files, and this process may have {most}"
        raise ConfigurationError([f"{problem}: ulimit -n {needed}, or LimitNOFILE={needed} in a systemd unit"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def _options(settings: Settings) -> dict[str, Any]:
    """Return the options of every connection."""
    url = settings.redis_url.get_secret_value()
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    one_host = url.replace(hosts, hosts.partition(",")[0], 1) if "," in hosts else url
    own: dict[str, Any] = dict(parse_url(one_host))  # type: ignore[no-untyped-call]
    own |= _login(own.pop("username", None), own.pop("password", None), settings.redis_password_file)
    options = {
        "parser_class": _PARSER,
        "protocol": 2,
        "redis_connect_func": partial(_greet, own.pop("client_name", "expirer")),
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": _TIMEOUT_S,
        "socket_timeout": _TIMEOUT_S,
    }
    kind = own.get("connection_class", Connection)
    if issubclass(kind, Connection):  # a socket of this machine has no TCP
        known = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}
        options |= {"socket_keepalive": True, "socket_keepalive_options": known}
    if issubclass(kind, SSLConnection):
        # Before redis-py 6 any host's certificate would do.
        options["ssl_check_hostname"] = own.get("ssl_cert_reqs") != "none"
    return {**options, **own}


def _greet(name: str, connection: pipeline.Connection) -> None:
    """Log in, as redis-py does by itself, then give the connection a name if the server lets us."""
    connection.on_connect()
    with suppress(ResponseError):  # a convenience for CLIENT LIST; CLIENT may be renamed or refused
        pipeline.ask(connection, ("CLIENT", "SETNAME", name))


def _of_sentinels(options: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return how to connect to the Sentinels: as to the server, with credentials of their own and short time-outs."""
    shared = {name: options[name] for name in options if name.startswith(("protocol", "retry", "socket_", "ssl_"))}
    shared |= dict.fromkeys(("socket_connect_timeout", "socket_timeout"), sentinel.PATIENCE_S)
    username, password = settings.redis_sentinel_username, settings.redis_sentinel_password.get_secret_value()
    return shared | _login(username or None, password or None, settings.redis_sentinel_password_file)


def _login(username: str | None, password: str | None, file: Path | None) -> dict[str, Any]:
    if file is not None:
        return {"credential_provider": PasswordFile(file, username)}
    return {"username": username, "password": password}


def longest_turn_s(settings: Settings) -> float:
    """Return how long a batch can take at worst: when each of its waits lasts until its time-out."""
    options = parse_qs(urlsplit(settings.redis_url.get_secret_value()).query)
    waits = [float(options.get(name, [_TIMEOUT_S])[0]) for name in ("socket_timeout", "socket_connect_timeout")]
    of_sentinels_s = 4 * sentinel.PATIENCE_S * len(settings.redis_sentinels)  # asked twice, to connect and to answer
    return _WAITS_OF_A_TURN * max(waits) + (cluster.LONGEST_S if settings.redis_cluster else of_sentinels_s)
