"""The settings: from the environment (EXPIRER_...) or as flags, checked before anything is touched."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from expirer.config.address import Address
from expirer.config.durations import LONGEST, UNITS_S, parse_duration, to_ms
from expirer.config.environment import PREFIX, SERVICE_LINK, variable, words
from expirer.config.layout import KEY_SETTINGS, Layout


class ConfigurationError(Exception):
    """Say in one line each what is wrong with the settings; nothing has been touched."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _forever(value: object) -> object:
    return None if value == "forever" else parse_duration(value)


def _no_service_link(value: object) -> object:
    # A Kubernetes Service called "expirer-http" gives this very name to all its neighbours.
    return 0 if SERVICE_LINK.fullmatch(f"EXPIRER_PORT={value}") else value


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class _Conduct(BaseSettings):
    """What the sidecar does, and how it tells of it."""

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
    http_port: Annotated[int, BeforeValidator(_no_service_link)] = Field(
        0, ge=0, le=65535, description="port of metrics and probes; 0: none (expirer web: 9878)"
    )
    http_host: str = Field("127.0.0.1", min_length=1, description="address that it listens on; 0.0.0.0 for all")
    http_allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = Field(
        (), description="names by which browsers may ask for the page, comma-separated; * for any"
    )

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: str) -> str:
        if not namespace or set(namespace) & set("{}"):
            raise ValueError(f"{namespace!r} must be one or more characters other than {{ and }}")
        return namespace

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.resolution > self.interval:
            raise ValueError(
                f"EXPIRER_RESOLUTION ({self.resolution.total_seconds():g}s) is longer than"
                f" EXPIRER_INTERVAL ({self.interval.total_seconds():g}s)"
            )
        if timedelta(0) < self.max_clock_jump < timedelta(seconds=10):
            raise ValueError(
                "EXPIRER_MAX_CLOCK_JUMP must be 0 or at least 10s: less would take a slow answer for a jump"
            )
        return self


class Settings(Layout, _Conduct, Address):
    """Every setting of the sidecar. A field `name` is the variable `EXPIRER_NAME` and the flag `--name`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        custom = [name for name in KEY_SETTINGS if getattr(self, name) is not None]
        if self.shards > 1 and custom:
            raise ValueError(
                f"EXPIRER_SHARDS={self.shards} cannot be combined with {variable(custom[0])}:"
                " a custom name belongs to one shard"
            )
        if not self.field_status and self.retention != timedelta(0):
            raise ValueError(
                "EXPIRER_FIELD_STATUS is empty, so an expired reservation would look active:"
                " set EXPIRER_RETENTION=0 to delete it instead"
            )
        return self


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
        if upper.startswith(PREFIX) and upper not in known and not SERVICE_LINK.fullmatch(f"{upper}={value}"):
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
