"""Puts an error into words: which server, what is wrong, the remedy; and keeps secrets out of every text.

It opens no file: the handler that outlives every error calls it, also while no descriptor is left.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from redis.connection import Connection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer.config.address import PORT, format_address, host_ports, passwords
from expirer.config.settings import Settings
from expirer.connection.pipeline import Reply
from expirer.contract import scripts

_CLUSTER = "this is a Redis Cluster, set EXPIRER_REDIS_CLUSTER=true"
PRIMARY = "address the primary: a replica refuses every write"
GRANT = "grant what the README lists under Container, server and rights; ACL LOG names what was refused"
_REFUSED_IN_A_SCRIPT = ("ACL failure in script", "The user executing the script can't")
"""How Redis 7, and 6.2, begin to say so; redis-py knows no class for it."""
_WRONG_CREDENTIALS = "invalid username-password pair"
UNSERVED = "no node of the Cluster serves slot "
_IN_PIPELINE = re.compile(r"Command # \d+ \((\w+(?: \S+)?).*?\) of pipeline caused error: (.*)", re.DOTALL)


class Named(Connection):
    """A connection to one of several servers: each of its errors carries the address, which `describe` says."""

    def connect(self) -> None:
        """Connect, as redis-py does."""
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except TooLate as error:  # any other says it itself
            self._note(error)
            raise

    def read_response(self, *arguments: Reply, **options: Reply) -> Reply:
        """Read a reply, as redis-py does."""
        try:
            return super().read_response(*arguments, **options)
        except RedisError as error:
            self._note(error)
            raise

    def _note(self, error: RedisError) -> None:
        error.add_note(format_address((self.host, self.port)))


def location(settings: Settings) -> str:
    """Return the address without credentials and options; with Sentinels theirs, and the name of the service."""
    if settings.redis_sentinels:
        return f"sentinel://{','.join(settings.redis_sentinels)}/{settings.redis_sentinel_service}"
    url = urlsplit(settings.redis_url.get_secret_value())
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def describe(error: Exception, settings: Settings) -> str:
    """Return what an error says, of which server, and the remedy if one is known; without any secret.

    It raises nothing: the handlers that keep a worker going depend on it.
    """
    try:
        text, help_ = message(error, settings), remedy(error, settings)
    except Exception:  # noqa: BLE001  # the last line of defense needs nothing
        return type(error).__name__
    return f"{text.removesuffix('.')}; {help_}" if help_ else text


def message(error: Exception, settings: Settings) -> str:
    """Return what an error says, and of which server; without any secret."""
    if isinstance(error, MovedError):
        address = format_address((error.host, int(error.port)))
        return f"slot {error.slot_id} is served by {address} now; nothing was done"
    if _is_moving(error):
        return "the slot of this shard is being moved to another node; nothing was done"
    # A server without the command repeats what came with it, a password too, and cuts it.
    text = scripts.explain(str(error) or type(error).__name__).partition(", with args beginning with")[0]
    if in_pipeline := _IN_PIPELINE.fullmatch(text):
        # A missing right is said of the command that wants it.
        text = f"{in_pipeline[1]}: {in_pipeline[2]}" if lacks_right(error) else in_pipeline[2]
    server = _server(error, settings)
    return redact(": ".join(filter(None, ("" if server in text else server, text))), settings)


def _server(error: Exception, settings: Settings) -> str:
    """Return which server the error is of; empty if there is but one, and it has answered."""
    if settings.redis_cluster or settings.redis_sentinels:
        return next(iter(getattr(error, "__notes__", [])), "")
    if not isinstance(error, NoConnection | TooLate) or _first_address(settings) in str(error):
        return ""
    return location(settings)


def remedy(error: Exception, settings: Settings) -> str:
    """Return what helps against an error; empty: the next try may, or nothing that is known."""
    is_located = settings.redis_cluster or settings.redis_sentinels
    credentials = "SENTINEL_USERNAME and …_PASSWORD" if "Sentinel" in str(error) else "URL and …_PASSWORD_FILE"
    check_credentials = f"check the credentials in EXPIRER_REDIS_{credentials}"
    check_cluster = f"redis-cli --cluster check {_first_address(settings)} tells why"
    by_type = {
        AuthenticationError: check_credentials,
        ClusterDownError: check_cluster,
        MovedError: "the next try goes there" if settings.redis_cluster else _CLUSTER,
        OutOfMemoryError: "raise maxmemory: a full server refuses every expiry",
        ReadOnlyError: "the next try looks for the primary" if is_located else PRIMARY,
    }
    by_text = {UNSERVED: check_cluster, _WRONG_CREDENTIALS: check_credentials}
    if _is_moving(error) or lacks_right(error):
        return GRANT if lacks_right(error) else by_type.get(type(error), "the next try looks again")
    return by_type.get(type(error)) or next((by_text[words] for words in by_text if words in str(error)), "")


def _is_moving(error: Exception) -> bool:
    return isinstance(error, AskError | TryAgainError) or "non local key" in str(error)


def _first_address(settings: Settings) -> str:
    url = urlsplit(settings.redis_url.get_secret_value())
    host, port = host_ports(url.netloc, PORT)[0]
    return url.path if url.scheme == "unix" else format_address((host or "localhost", port))


def lacks_right(error: Exception) -> bool:
    """Say whether Redis is well, and refuses this user something."""
    return isinstance(error, NoPermissionError) or any(words in str(error) for words in _REFUSED_IN_A_SCRIPT)


def redact(text: str, settings: Settings) -> str:
    """Return the text with every password of the settings replaced by `***`."""
    forms = {form for password in passwords(settings) for form in (password, quote(password, safe=""))}
    for form in sorted(forms, key=len, reverse=True):  # one may begin with another
        text = text.replace(form, "***")
    return text
