"""Builds the Redis client from the settings, and keeps its secrets out of every text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError
from redis.retry import Retry

from expirer.settings import ConfigurationError, Settings

_TIMEOUT_S = 5.0
_WAITS_OF_A_TURN = 6
"""To connect, to log in, for a script to load, for the control key, for the clock, for the batch."""


class PasswordFile(CredentialProvider):
    """Reads the password anew for every connection, so that a rotated secret needs no restart."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password) or (user name, password); raise OSError where the file has gone."""
        password = _read_password(self._path)
        return (password,) if self._username is None else (self._username, password)


def connect(settings: Settings) -> Redis:
    """Build a client; it connects at its first command.

    It never repeats a command by itself: a script whose reply was lost may have run, and the worker's
    loop is the retry.

    Raises:
        ConfigurationError: the URL cannot be used.

    """
    try:
        options: dict[str, Any] = dict(
            parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]
        )
        if settings.redis_password_file is not None:
            options.pop("password", None)
            options["credential_provider"] = PasswordFile(settings.redis_password_file, options.pop("username", None))
        defaults = {
            "client_name": "expirer",
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": _TIMEOUT_S,
            "socket_timeout": _TIMEOUT_S,
            # Before redis-py 6 any host's certificate would do.
            **({"ssl_check_hostname": True} if settings.redis_url.get_secret_value().startswith("rediss:") else {}),
        }
        pool = ConnectionPool(**{**defaults, **options})
        pool.connection_class(**pool.connection_kwargs)  # refuses values that no connection takes
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError([f"the Redis URL: {redact(str(error), settings)}"]) from None
    return Redis(connection_pool=pool)


def longest_turn_s(settings: Settings) -> float:
    """Return how long a batch can take at worst: when each of its waits lasts until its time-out."""
    options = parse_qs(urlsplit(settings.redis_url.get_secret_value()).query)
    waits = [float(options.get(name, [_TIMEOUT_S])[0]) for name in ("socket_timeout", "socket_connect_timeout")]
    return _WAITS_OF_A_TURN * max(waits)


def location(settings: Settings) -> str:
    """Return the address without credentials and options."""
    url = urlsplit(settings.redis_url.get_secret_value())
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def redact(text: str, settings: Settings) -> str:
    """Return the text with every password that the settings know replaced by `***`."""
    url = urlsplit(settings.redis_url.get_secret_value())
    secrets = {unquote(url.password or ""), *parse_qs(url.query).get("password", [])}
    if settings.redis_password_file is not None:
        with suppress(OSError):
            secrets.add(_read_password(settings.redis_password_file))
    for secret in {form for known in secrets if known for form in (known, quote(known, safe=""))}:
        text = text.replace(secret, "***")
    return text


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise OSError(f"{path} is not UTF-8 text") from None
