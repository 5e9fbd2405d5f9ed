"""The settings: from the environment (EXPIRER_...) or as flags, checked before anything is touched."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from expirer.times import LONGEST, UNITS_S, parse_duration, to_ms

PREFIX = "EXPIRER_"

# Kubernetes and Docker links describe services called "expirer-…" to their neighbours in these variables.
_SERVICE_LINK = re.compile(
    r"EXPIRER_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)

_URL_OPTIONS = {"client_name", "db", "password", "socket_connect_timeout", "socket_timeout", "username"}
_TLS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_TLS_URL_OPTIONS = _TLS_FILES | {"ssl_cert_reqs", "ssl_check_hostname"}


class ConfigurationError(Exception):
    """Say in one line each what is wrong with the settings; nothing has been touched."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _forever(value: object) -> object:
    return None if value == "forever" else parse_duration(value)


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class Settings(BaseSettings):
    """Every setting of the sidecar. A field `name` is the variable `EXPIRER_NAME` and the flag `--name`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validation_alias=AliasChoices("EXPIRER_REDIS_URL", "REDIS_URL"),
        description="redis://, rediss:// or unix:// address; also read from REDIS_URL",
    )
    redis_password_file: Path | None = Field(None, description="file that holds the password, such as a mounted secret")
    redis_cluster: bool = Field(
        False,  # noqa: FBT003  # pydantic takes the default first
        description="true: the address is a node of a Redis Cluster, or several with commas between them",
    )
    redis_sentinels: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        (), description="host:port of each Sentinel, comma-separated; they name the primary, in place of the address"
    )
    redis_sentinel_service: str = Field("mymaster", min_length=1, description="what the Sentinels call the primary")
    redis_sentinel_username: str = Field("", description="user name for the Sentinels themselves")
    redis_sentinel_password: SecretStr = Field(SecretStr(""), description="password for the Sentinels themselves")
    redis_sentinel_password_file: Path | None = Field(None, description="file that holds it")
    min_replicas_ack: int = Field(
        0, ge=0, le=100, description="replicas that must acknowledge each batch before it counts as done; 0: none"
    )
    namespace: str = Field("inventory", description="hash tag of every key")
    shards: int = Field(1, ge=1, le=1024, description="hash tags to spread over")
    interval: Duration = Field(
        timedelta(seconds=60),
        ge=timedelta(milliseconds=10),
        le=timedelta(hours=24),
        description="longest time between two ticks",
    )
    batch_size: int = Field(
        100,
        ge=1,
        le=1000,
        description="most reservations in one atomic script; bounds how long it holds Redis",
    )
    resolution: Duration = Field(
        timedelta(milliseconds=10),
        ge=timedelta(milliseconds=1),
        le=timedelta(hours=1),
        description="shortest time between two ticks",
    )
    default_duration: Duration = Field(
        timedelta(minutes=15),
        ge=timedelta(milliseconds=1),
        le=LONGEST,
        description="how long a reservation lasts when reserve is not told",
    )
    grace: Duration = Field(
        timedelta(0),
        ge=timedelta(0),
        le=timedelta(days=30),
        description="extra time after ExpiresAt, for payments in flight",
    )
    retention: Annotated[timedelta | None, BeforeValidator(_forever)] = Field(
        timedelta(hours=24),
        ge=timedelta(0),
        le=LONGEST,
        description="how long an ended reservation stays readable; 0 deletes it, forever keeps it",
    )
    brake_above: int = Field(
        0,
        ge=0,
        le=2**53,
        description="overdue reservations above which the worker pauses itself until it is resumed; 0: never",
    )
    max_clock_jump: Duration = Field(
        timedelta(minutes=5),
        ge=timedelta(0),
        le=LONGEST,
        description="how far the server's clock may jump ahead before the worker pauses itself; 0: any",
    )
    max_rate: int = Field(
        0,
        ge=0,
        le=10**6,
        description="most reservations per second that all workers together expire on a shard; 0: no limit",
    )
    events_maxlen: int = Field(
        100_000, ge=0, le=2**53, description="approximate length of the event stream; 0 writes none"
    )
    clock: Literal["server", "worker"] = Field(
        "server", description="whose clock decides; worker where the host forbids TIME in scripts"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, JSON otherwise"
    )

    index_key: str | None = Field(None, min_length=1, description="the index; default {inventory}:reservations")
    reservation_prefix: str | None = Field(
        None, description="what stands before a reservation id in its key; default {inventory}:reservation:"
    )
    stock_prefix: str | None = Field(
        None, description="what stands before a product id in its key; default {inventory}:stock:"
    )
    events_key: str | None = Field(None, min_length=1, description="the event stream; default {inventory}:expired")
    field_order_id: str = Field("order_id", description="field of the reservation; empty: not kept")
    field_product_id: str = Field("product_id", min_length=1, description="field of the reservation")
    field_quantity: str = Field("quantity", min_length=1, description="field of the reservation")
    field_status: str = Field(
        "status", description="field of the reservation; empty: not kept, and retention must be 0"
    )
    field_expires_at: str = Field("expires_at", description="field of the reservation; empty: not kept")
    field_available: str = Field("available", description="field of the stock; empty: not kept")
    field_reserved: str = Field("reserved", description="field of the stock; empty: not kept")
    status_active: str = Field("Active", min_length=1, description="status of a reservation that holds units")
    status_expired: str = Field("Expired", min_length=1, description="status that expiry writes")
    status_ended: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        ("Confirmed", "Released"),
        description="status words of reservations that hold no units any more, comma-separated, in any case",
    )
    score_unit: Literal["ms", "s"] = Field("ms", description="unit of the score and of expires_at")

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
            _ = [port for _, port in host_ports(parts.netloc, 6379)]
        except ValueError:
            raise ValueError("has an invalid host or port") from None
        if scheme == "unix" and not parts.path:
            raise ValueError("names no socket, as unix:///path does")
        if scheme != "unix" and not re.fullmatch(r"/?\d{0,6}", parts.path):
            raise ValueError("has a path that is not the number of a database")
        options = set(parse_qs(parts.query, keep_blank_values=True))
        unknown = options - _URL_OPTIONS - (_TLS_URL_OPTIONS if scheme == "rediss" else set())
        if unknown:
            known = sorted(_URL_OPTIONS) + sorted(_TLS_URL_OPTIONS)
            raise ValueError(f"has an option that is not known here; known are {', '.join(known)} (ssl_… with rediss)")
        for option in _TLS_FILES & options:
            try:
                Path(parse_qs(parts.query)[option][0]).read_bytes()
            except (LookupError, OSError) as error:
                why = getattr(error, "strerror", None) or "it names none"
                raise ValueError(f"has an {option} that cannot be read: {why}") from None
        return url

    @field_validator("redis_sentinels")
    @classmethod
    def _check_redis_sentinels(cls, sentinels: tuple[str, ...]) -> tuple[str, ...]:
        for sentinel in sentinels:
            with suppress(ValueError):
                if all(map(all, host_ports(sentinel))):  # each with a host and a port
                    continue
            raise ValueError(f"{sentinel!r} is not host:port, as sentinel-1:26379 is")
        return sentinels

    @field_validator("redis_password_file", "redis_sentinel_password_file")
    @classmethod
    def _check_redis_password_file(cls, path: Path | None) -> Path | None:
        if path is None or path == Path():  # unset, or empty
            return None
        try:
            path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{str(path)!r} is not UTF-8 text") from None
        return path

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: str) -> str:
        if not namespace or set(namespace) & set("{}"):
            raise ValueError(f"{namespace!r} must be one or more characters other than {{ and }}")
        return namespace

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.resolution > self.interval:
            raise ValueError(
                f"EXPIRER_RESOLUTION ({self.resolution.total_seconds():g}s) is longer than"
                f" EXPIRER_INTERVAL ({self.interval.total_seconds():g}s)"
            )
        self._check_topology()
        custom = [name for name in _KEY_SETTINGS if getattr(self, name) is not None]
        if self.shards > 1 and custom:
            raise ValueError(
                f"EXPIRER_SHARDS={self.shards} cannot be combined with {variable(custom[0])}:"
                " a custom name belongs to one shard"
            )
        if timedelta(0) < self.max_clock_jump < timedelta(seconds=10):
            raise ValueError(
                "EXPIRER_MAX_CLOCK_JUMP must be 0 or at least 10s: less would take a slow answer for a jump"
            )
        if not self.field_available and not self.field_reserved:
            raise ValueError(
                "EXPIRER_FIELD_AVAILABLE and EXPIRER_FIELD_RESERVED are both empty:"
                " expiry would have no counter to give units back to"
            )
        if not self.field_status and self.retention != timedelta(0):
            raise ValueError(
                "EXPIRER_FIELD_STATUS is empty, so an expired reservation would look active:"
                " set EXPIRER_RETENTION=0 to delete it instead"
            )
        fields = {name: getattr(self, name) for name in _RESERVATION_FIELDS}
        if "expired_at" in fields.values():
            raise ValueError("expired_at is the field that expiry writes; no EXPIRER_FIELD_… can be called so")
        self._refuse_repetition(fields)
        self._refuse_repetition({name: getattr(self, name) for name in _STOCK_FIELDS})
        words = {"status_active": self.status_active.lower(), "status_expired": self.status_expired.lower()}
        for ended in self.status_ended:
            self._refuse_repetition(words | {"status_ended": ended.lower()})
        self._refuse_repetition(words)
        return self

    def _check_topology(self) -> None:
        url = urlsplit(self.redis_url.get_secret_value())
        if self.redis_cluster and self.redis_sentinels:
            raise ValueError("EXPIRER_REDIS_CLUSTER and EXPIRER_REDIS_SENTINELS exclude each other: a Cluster has none")
        if url.scheme == "unix" and (self.redis_cluster or self.redis_sentinels):
            raise ValueError("EXPIRER_REDIS_URL is a socket of this machine: a Cluster and Sentinels need redis://…")
        if self.redis_cluster and (url.path.strip("/0") or parse_qs(url.query).get("db", ["0"]) != ["0"]):
            raise ValueError("EXPIRER_REDIS_URL names a database: a Cluster has only 0")
        if len(host_ports(url.netloc)) > 1 and not self.redis_cluster:
            raise ValueError("EXPIRER_REDIS_URL has several hosts, which EXPIRER_REDIS_CLUSTER=true would need")

    @staticmethod
    def _refuse_repetition(values: Mapping[str, str]) -> None:
        seen: dict[str, str] = {}
        for name, value in values.items():
            if value and value in seen:
                raise ValueError(f"{variable(seen[value])} and {variable(name)} are both {value!r}")
            seen[value] = name

    @property
    def unit_ms(self) -> int:
        """How many ms one unit of the score has."""
        return 1000 if self.score_unit == "s" else 1

    @property
    def is_custom_layout(self) -> bool:
        """Whether any name, field, status word or unit differs from the project's own contract."""
        return any(getattr(self, name) != type(self).model_fields[name].default for name in LAYOUT)


CONNECTION = tuple(name for name in Settings.model_fields if name.startswith("redis_"))
_KEY_SETTINGS = ("index_key", "reservation_prefix", "stock_prefix", "events_key")
_RESERVATION_FIELDS = (
    "field_order_id",
    "field_product_id",
    "field_quantity",
    "field_status",
    "field_expires_at",
)
_STOCK_FIELDS = ("field_available", "field_reserved")
LAYOUT = (
    *_KEY_SETTINGS,
    *_RESERVATION_FIELDS,
    *_STOCK_FIELDS,
    "status_active",
    "status_expired",
    "status_ended",
    "score_unit",
)


def host_ports(netloc: str, default_port: int = 0) -> list[tuple[str, int]]:
    """Read `host:port` of each, comma-separated, whatever credentials stand before; ValueError where one is neither."""
    hosts = [urlsplit(f"//{text}") for text in netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "", default_port if host.port is None else host.port) for host in hosts]


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def default_text(name: str) -> str:
    """Return a setting's default as one would write it; empty where there is none."""
    default = Settings.model_fields[name].get_default()
    if isinstance(default, timedelta):
        ms = to_ms(default)
        unit = next(
            (unit for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)) if ms > size and ms % size == 0),
            "ms",
        )
        return f"{round(ms / 1000 / UNITS_S[unit])}{unit}" if ms else "0s"
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) if isinstance(default, tuple) else "" if default is None else str(default)


def load(flags: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; a flag wins over its variable.

    Raises:
        ConfigurationError: a variable is misspelt, or a value is out of bounds.

    """
    flags = dict(flags or {})
    known = {variable(name) for name in Settings.model_fields}
    problems = []
    for name, value in os.environ.items():
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in known and not _SERVICE_LINK.fullmatch(f"{upper}={value}"):
            nearest = difflib.get_close_matches(upper, known, n=1, cutoff=0)[0]
            problems.append(f"{name} is not a setting; the nearest is {nearest}")
    if problems:
        raise ConfigurationError(problems)
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # the model converts and checks the text
    except ValidationError as error:
        raise ConfigurationError([_problem(dict(detail), flags) for detail in error.errors()]) from None


def _problem(detail: dict[str, Any], flags: Mapping[str, str]) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0]).removeprefix(PREFIX).lower()
    label = "--" + name.replace("_", "-") if name in flags else variable(name)
    if label == "EXPIRER_REDIS_URL" and label not in os.environ:
        label = "REDIS_URL"
    as_given = flags.get(name, os.environ.get(label, detail["input"]))
    value = "" if name == "redis_url" or detail["type"] == "value_error" else f"={as_given}"
    return f"{label}{value}: {message[:1].lower()}{message[1:]}"
