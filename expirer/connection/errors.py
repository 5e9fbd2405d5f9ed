"""Puts an error into words: which server, what is wrong, the way out; and keeps secrets out of every text."""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import parse_qs, quote, unquote, urlsplit

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as TooLate

from expirer.config.address import PORT, host_ports, read_password
from expirer.config.settings import Settings
from expirer.connection.directory import shown
from expirer.contract import scripts
from expirer.contract.keys import shard_keys, slot_of

PRIMARY = "address the primary: a replica refuses every write"
_CLUSTER = "this is a Redis Cluster, set EXPIRER_REDIS_CLUSTER=true"
GRANT = "grant what the README lists under Container, server and rights; ACL LOG names what was refused"
_REFUSED_IN_A_SCRIPT = ("ACL failure in script", "The user executing the script can't")
"""How Redis 7, and 6.2, begin to say so; redis-py knows no class for it."""
_WRONG_CREDENTIALS = "invalid username-password pair"
GREETING = "before the first answer"
"""The note of an error that came so early."""
_LIKE_TLS = ("Connection reset by peer", "Connection closed by server", "Protocol Error")
"""What is said by a server that speaks it to a client that does not, and the reverse."""
_LIKE_NO_TLS = ("Timeout connecting to server", "[SSL: WRONG_VERSION_NUMBER]", "[SSL: RECORD_LAYER_FAILURE]")
_IN_PIPELINE = re.compile(r"Command # \d+ \((\w+(?: \S+)?).*?\) of pipeline caused error: (.*)", re.DOTALL)


def location(settings: Settings) -> str:
    """Return the address without credentials and options; with Sentinels theirs, and the name of the service."""
    if settings.redis_sentinels:
        return f"sentinel://{','.join(settings.redis_sentinels)}/{settings.redis_sentinel_service}"
    url = urlsplit(settings.redis_url.get_secret_value())
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def explain(error: Exception, settings: Settings) -> str:
    """Return what an error says in words that stand alone, with the way out where one is known; without any secret."""
    text, way = said(error, settings), way_out(error, settings)
    return f"{text.removesuffix('.')}; {way}" if way else text


def said(error: Exception, settings: Settings) -> str:
    """Return what an error says, and of which server; without any secret."""
    if isinstance(error, MovedError):
        where = f"slot {error.slot_id} is served by {shown((error.host, int(error.port)))}"
        return f"{where} now; nothing was done" if settings.redis_cluster else where
    if _is_moving(error):
        return "the slot of this shard is being moved to another node; nothing was done"
    # A server without the command repeats what came with it, a password too, and cuts it.
    text = scripts.explained(str(error)).partition(", with args beginning with")[0]
    if in_pipeline := _IN_PIPELINE.fullmatch(text):
        # Of a missing right the command is told that wants it.
        text = f"{in_pipeline[1]}: {in_pipeline[2]}" if lacks_right(error) else in_pipeline[2]
    if unserved := re.search(r"serves slot (\d+)$", text):
        numbers = [str(number) for number, keys in enumerate(shard_keys(settings)) if slot_of(keys) == int(unserved[1])]
        text = f"{text}, that of shard {', '.join(numbers)}"
    return redact(": ".join(filter(None, (_server(error, text, settings), text))), settings)


def _server(error: Exception, text: str, settings: Settings) -> str:
    """Return of which server the error is; empty: the text tells, or there is but one, which has answered."""
    if _is_located(settings):
        return next((note for note in _notes(error) if note != GREETING and note not in text), "")
    url = urlsplit(settings.redis_url.get_secret_value())
    address = url.path if url.scheme == "unix" else _first_address(settings)
    return location(settings) if isinstance(error, NoConnection | TooLate) and address not in text else ""


def way_out(error: Exception, settings: Settings) -> str:
    """Return what helps against an error; empty: the next try may, or nothing that is known."""
    is_cluster = settings.redis_cluster
    ways = {
        MovedError: "the next try goes there" if is_cluster else _CLUSTER,
        ReadOnlyError: "the next try looks for the primary" if _is_located(settings) else PRIMARY,
        OutOfMemoryError: "raise maxmemory: a full server refuses every expiry",
        ClusterDownError: f"redis-cli --cluster check {_first_address(settings)} tells why",
        AuthenticationError: "look at the credentials in EXPIRER_REDIS_URL and EXPIRER_REDIS_PASSWORD_FILE",
    }
    if _is_moving(error):
        return ways.get(type(error), "the next try looks again")
    if lacks_right(error):
        return GRANT
    if "of the Cluster serves" in str(error):
        return ways[ClusterDownError]
    if _WRONG_CREDENTIALS in str(error):  # of a node, or a Sentinel, that was asked for the primary
        is_sentinel = "Sentinel" in str(error)
        return "look at EXPIRER_REDIS_SENTINEL_USERNAME and …_PASSWORD" if is_sentinel else ways[AuthenticationError]
    return ways.get(type(error)) or _other_scheme(error, settings)


def _other_scheme(error: Exception, settings: Settings) -> str:
    """Return what to try where client and server may not agree on TLS; empty: the error tells nothing of it."""
    text = str(error)
    if settings.redis_url.get_secret_value().startswith("rediss:"):
        is_like = any(words in text for words in _LIKE_NO_TLS)
        return "if it speaks no TLS, EXPIRER_REDIS_URL must begin with redis://" if is_like else ""
    is_like = _is_greeting(error, settings) and any(words in text for words in _LIKE_TLS)
    return "if it speaks TLS, EXPIRER_REDIS_URL must begin with rediss://" if is_like else ""


def _is_moving(error: Exception) -> bool:
    return isinstance(error, AskError | TryAgainError) or "non local key" in str(error)


def _is_located(settings: Settings) -> bool:
    return settings.redis_cluster or bool(settings.redis_sentinels)


def _is_greeting(error: Exception, settings: Settings) -> bool:
    """Say whether the server had not answered yet; those that know where the primary is are asked anew each time."""
    return GREETING in _notes(error) or (_is_located(settings) and not _notes(error))


def _notes(error: Exception) -> list[str]:
    return getattr(error, "__notes__", [])


def _first_address(settings: Settings) -> str:
    host, port = host_ports(urlsplit(settings.redis_url.get_secret_value()).netloc, PORT)[0]
    return shown((host or "localhost", port))


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
                secrets.add(read_password(path))
    forms = {form for known in secrets if known for form in (known, quote(known, safe=""))}
    for secret in sorted(forms, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "***")
    return text
