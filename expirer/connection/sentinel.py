"""Follows the primary that Sentinels name: redis-py's client of them, asked again every few seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.connection import SSLConnection
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection

from expirer.config.address import HostPort, format_address
from expirer.connection import pipeline
from expirer.connection.errors import Named

PATIENCE_S = 1.0
"""To connect to a Sentinel, and for its answer: the next one may know as well."""
_TRUST_S = 5.0
"""How long an answer is good: a primary that a partition has cut off does not know that it was replaced."""
_SILENCE_S = 30.0
"""Until the next question after one that no Sentinel answered: waiting for them delays expiry."""


class Sentinels(Sentinel):
    """Asks one Sentinel after the other, for which a user needs one right only; an error says what each answered."""

    ask_at = 0.0
    """When to ask again, by time.monotonic."""

    def discover_master(self, service_name: str) -> HostPort:
        """Return where the primary is, as the first Sentinel says that knows; the next question begins with it.

        Raises:
            MasterNotFoundError: none answers, or none knows the service.

        """
        self.ask_at = time.monotonic() + _SILENCE_S
        problems = []
        for sentinel in tuple(self.sentinels):
            try:
                found: pipeline.Reply = sentinel.sentinel_get_master_addr_by_name(service_name)
                problem: object = "it does not know"
            except RedisError as error:
                found, problem = None, error
            except (LookupError, TypeError, ValueError):
                found, problem = None, "its answer makes no sense"
            finally:
                sentinel.connection_pool.disconnect()  # until the next question the network may forget it
            if found:
                self.sentinels = [sentinel, *(other for other in self.sentinels if other is not sentinel)]
                self.ask_at = time.monotonic() + _TRUST_S
                host, port = found
                return host, port
            options = sentinel.connection_pool.connection_kwargs
            problems.append(f"{format_address((options['host'], options['port']))}: {problem}")
        raise MasterNotFoundError(f"no Sentinel names a primary of {service_name!r}: {'; '.join(problems)}")


class SentinelConnection(Named, SentinelManagedConnection):
    """A connection to the primary; at each use it leaves a server that has been replaced."""

    def connect(self) -> None:
        """Connect, or stay connected."""
        if self._sock is not None and is_replaced(self):
            self.disconnect()
        super().connect()


class SentinelSSLConnection(SentinelConnection, SSLConnection):
    """The same with TLS; the certificate must name the host that the Sentinels name."""


def is_replaced(connection: pipeline.Connection) -> bool:
    """Say whether the Sentinels name another primary than this connection leads to; they are asked every 5 s.

    It never raises; without Sentinels it is always False.
    """
    if not isinstance(connection, SentinelManagedConnection):
        return False
    pool = connection.connection_pool
    if time.monotonic() >= pool.sentinel_manager.ask_at:
        with suppress(RedisError):
            pool.get_master_address()  # disconnects idle connections to another
    return pool.master_address not in (None, (connection.host, connection.port))


def primary_of(
    service: str, addresses: Sequence[HostPort], options: Mapping[str, Any], sentinel_options: Mapping[str, Any]
) -> Redis:
    """Build a client of the primary of a service; the options are those of connections to it, and to a Sentinel."""
    is_tls = issubclass(options.get("connection_class", object), SSLConnection)
    kind = SentinelSSLConnection if is_tls else SentinelConnection
    sentinel_kwargs = {**sentinel_options, "ssl": is_tls, "decode_responses": True}
    sentinels = Sentinels(addresses, sentinel_kwargs=sentinel_kwargs)  # type: ignore[no-untyped-call]
    pool = SentinelConnectionPool(service, sentinels, **{**options, "connection_class": kind})  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)
