"""Where Redis is: its address, its topology, and the credentials for it."""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from expirer.config.environment import words

PORT = 6379
_TIMEOUTS = {"socket_connect_timeout", "socket_timeout"}
_URL_OPTIONS = _TIMEOUTS | {"client_name", "db", "password", "username"}
_TLS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_TLS_URL_OPTIONS = _TLS_FILES | {"ssl_cert_reqs", "ssl_check_hostname"}
_LONGEST_TIMEOUT_S = 3600
_PASSWORDS: deque[str] = deque(maxlen=1000)
"""Every password that was read from a file: it is hidden after it was replaced, and while no file can be opened."""

HostPort = tuple[str, int]


class Address(BaseSettings):
    """The settings of the connection."""

    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validation_alias=AliasChoices("EXPIRER_REDIS_URL", "REDIS_URL"),
        description="redis://, rediss:// or unix:// address; also read from REDIS_URL",
    )
    redis_password_file: Path | None = Field(None, description="file that holds the password, such as a mounted secret")
    redis_cluster: bool = Field(
        default=False,
        description="true if the address is a node of a Redis Cluster, or several nodes, comma-separated",
    )
    redis_sentinels: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = Field(
        (), description="host:port of each Sentinel, comma-separated; they name the primary"
    )
    redis_sentinel_service: str = Field("mymaster", min_length=1, description="name of the primary at the Sentinels")
    redis_sentinel_username: str = Field("", description="user name for the Sentinels themselves")
    redis_sentinel_password: SecretStr = Field(SecretStr(""), description="password for the Sentinels themselves")
    redis_sentinel_password_file: Path | None = Field(None, description="file that holds that password")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        # No message repeats a part of the URL: a misplaced character makes a password look like a host.
        text = url.get_secret_value()
        scheme, _, rest = text.partition("://")
        if scheme not in ("redis", "rediss", "unix") or not text.isprintable():
            raise ValueError("is not an address such as redis://host:6379/0, rediss://… or unix:///path")
        if set("/?#@") & set(rest.rpartition("@")[0]):
            raise ValueError("needs percent-encoding in its password: / is %2F, ? is %3F, # is %23, @ is %40")
        try:
            parts = urlsplit(text)
            host_ports(parts.netloc)
        except ValueError:
            raise ValueError("has an invalid host or port") from None
        if scheme == "unix" and not parts.path:
            raise ValueError("names no socket, as unix:///path does")
        if scheme != "unix" and not re.fullmatch(r"/?\d{0,6}", parts.path):
            raise ValueError("has a path that is not the number of a database")
        _check_options(parts.query, _URL_OPTIONS | (_TLS_URL_OPTIONS if scheme == "rediss" else set()))
        return url

    @field_validator("redis_sentinels")
    @classmethod
    def _check_redis_sentinels(cls, sentinels: tuple[str, ...]) -> tuple[str, ...]:
        # As above: what is no host:port may be a password.
        for number, sentinel in enumerate(sentinels, 1):
            with suppress(ValueError):
                if "@" not in sentinel and all(map(all, host_ports(sentinel))):  # each with a host and a port
                    continue
            raise ValueError(
                f"no. {number} is not host:port, as sentinel-1:26379 is; user and password have settings of their own"
            )
        return sentinels

    @field_validator("redis_password_file", "redis_sentinel_password_file")
    @classmethod
    def _check_redis_password_file(cls, path: Path | None) -> Path | None:
        if path is None or path == Path():  # unset, or empty
            return None
        try:
            read_password(path)
        except OSError as error:
            raise ValueError(f"cannot read {str(path)!r}: {error.strerror}" if error.strerror else str(error)) from None
        return path

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        url = urlsplit(self.redis_url.get_secret_value())
        options = parse_qs(url.query)
        has_password = url.password or "password" in options
        has_database = url.path.strip("/0") or options.get("db", ["0"]) != ["0"]
        has_two = self.redis_sentinel_password_file and self.redis_sentinel_password.get_secret_value()
        is_socket = url.scheme == "unix"
        is_remote = self.redis_cluster or self.redis_sentinels
        has_several = len(host_ports(url.netloc)) > 1 and not self.redis_cluster
        problems = [
            ("CLUSTER and EXPIRER_REDIS_SENTINELS exclude each other", self.redis_cluster and self.redis_sentinels),
            ("URL is a socket of this machine: a Cluster and Sentinels need redis://…", is_remote and is_socket),
            ("URL names a database: a Cluster has only 0", self.redis_cluster and has_database),
            ("PASSWORD_FILE is set, and the address has a password too", self.redis_password_file and has_password),
            ("URL has several hosts, which EXPIRER_REDIS_CLUSTER=true would need", has_several),
            ("SENTINEL_PASSWORD and EXPIRER_REDIS_SENTINEL_PASSWORD_FILE exclude each other", has_two),
        ]
        for name, field in Address.model_fields.items():
            is_idle = name.startswith("redis_sentinel_") and getattr(self, name) != field.default
            problem = f"{name.removeprefix('redis_').upper()} needs EXPIRER_REDIS_SENTINELS, which names the Sentinels"
            problems.append((problem, is_idle and not self.redis_sentinels))
        for problem, is_there in problems:
            if is_there:
                raise ValueError(f"EXPIRER_REDIS_{problem}")
        return self


CONNECTION = tuple(Address.model_fields)


def host_ports(netloc: str, default_port: int = 0) -> list[HostPort]:
    """Read `host:port` of each, comma-separated, after any credentials; ValueError if one is neither."""
    hosts = [urlsplit(f"//{text}") for text in netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "", default_port if host.port is None else host.port) for host in hosts]


def format_address(address: HostPort) -> str:
    """Return an address as people write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_password(path: Path) -> str:
    """Return what the file holds, without the end of its line; OSError if that is no password."""
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise OSError(f"{str(path)!r} is not UTF-8 text") from None
    if not password:
        raise OSError(f"{str(path)!r} is empty")
    if password not in _PASSWORDS:
        _PASSWORDS.append(password)
    return password


def passwords(address: Address) -> set[str]:
    """Return every password that the settings have, or that was ever read from a file; opens no file."""
    url = urlsplit(address.redis_url.get_secret_value())
    own = unquote(url.password or ""), address.redis_sentinel_password.get_secret_value()
    return {*own, *parse_qs(url.query).get("password", []), *_PASSWORDS.copy()} - {""}


def _check_options(query: str, possible: set[str]) -> None:
    options = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if options.keys() - possible:
        known = sorted(_URL_OPTIONS) + sorted(_TLS_URL_OPTIONS)
        raise ValueError(f"has an option that is not known here; known are {', '.join(known)} (ssl_… with rediss)")
    if not re.fullmatch(r"\d{1,6}", options.get("db", "0")):
        raise ValueError("has a db that is not the number of a database")
    for option in _TIMEOUTS & options.keys():
        seconds = float(options[option]) if re.fullmatch(r"\d{1,4}(\.\d+)?", options[option]) else 0
        if not 0 < seconds <= _LONGEST_TIMEOUT_S:
            raise ValueError(f"has a {option} that is not above 0 and at most {_LONGEST_TIMEOUT_S} seconds")
    for option in _TLS_FILES & options.keys():
        try:
            Path(options[option]).read_bytes()
        except OSError as error:
            raise ValueError(f"has an {option} that cannot be read: {error.strerror}") from None
