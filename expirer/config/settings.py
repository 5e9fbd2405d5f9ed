"""The settings: from the environment (EXPIRER_...) or as flags, checked before anything is touched."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from expirer.config.address import CONNECTION, Address
from expirer.config.durations import LONGEST, format_duration, parse_duration
from expirer.config.environment import PREFIX, SERVICE_LINK, variable, words
from expirer.config.layout import KEY_SETTINGS, LAYOUT, Layout


class ConfigurationError(Exception):
    """What is wrong with the settings, a line for each; nothing has been touched."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _no_service_link(value: object) -> object:
    # A Kubernetes Service called "expirer-http" gives this very name to all its neighbours.
    return 0 if SERVICE_LINK.fullmatch(f"EXPIRER_PORT={value}") else value


def split_namespace(namespace: str) -> tuple[str, str, str]:
    """Return what is before, in and after the braces of a namespace; without braces all of it is in them.

    Raises:
        ValueError: there is not exactly one pair of braces with text in it, so the keys would share no hash tag.

    """
    match = re.fullmatch(r"([^{}]*)\{([^{}]+)\}([^{}]*)|([^{}]+)", namespace, re.DOTALL)
    if match is None:
        raise ValueError(f"{namespace!r} must be text without braces, or have one {{tag}} as app1:{{inventory}} has")
    before, tag, after, whole = match.groups("")
    return before, tag or whole, after


_Field: TypeAlias = Any
"""Pydantic's own types let a field stand where its value will be."""


def _between(default: str | int, least: str | int, most: timedelta | int | str, description: str) -> _Field:
    """Describe a setting that is a number, or a duration if its bounds are texts."""
    known = [parse_duration(value) if isinstance(value, str) else value for value in (default, least, most)]
    return Field(known[0], ge=known[1], le=known[2], description=description)


_Duration = Annotated[timedelta, BeforeValidator(_duration)]
_Forever = BeforeValidator(lambda value: None if value == "forever" else _duration(value))


class Behaviour(BaseSettings):
    """The settings of what the sidecar does, and of what it reports."""

    namespace: str = Field("inventory", description="hash tag of every key; app1:{inventory} is taken as it is")
    shards: int = _between(1, 1, 1024, "number of shards")
    interval: _Duration = _between(
        "60s", "10ms", "10m", "longest time between two ticks; a worker without a tick for longer counts as dead"
    )
    batch_size: int = _between(
        100, 1, 1000, "most reservations in one script call, which limits how long it blocks Redis"
    )
    resolution: _Duration = _between("10ms", "1ms", "10m", "shortest time between two ticks")
    default_duration: _Duration = _between(
        "15m", "1ms", LONGEST, "how long a reservation lasts if reserve gets no duration"
    )
    grace: _Duration = _between("0", "0", "30d", "extra time after ExpiresAt, for payments in flight")
    retention: Annotated[timedelta | None, _Forever] = _between(
        "24h", "0", LONGEST, "how long an ended reservation stays readable; 0 deletes it, forever keeps it"
    )
    brake_above: int = _between(
        0, 0, 2**53, "expiry stops above this number of overdue reservations until a person resumes it; 0: no brake"
    )
    max_clock_jump: _Duration = _between(
        "5m", "0", LONGEST, "longest jump ahead of the server's clock that does not pull the brake; 0: any"
    )
    max_rate: int = _between(
        0, 0, 10**6, "most reservations per second on a shard, for all workers together; 0: no limit"
    )
    events_maxlen: int = _between(100_000, 0, 2**53, "approximate length of the event stream; 0: no events")
    clock: Literal["server", "worker"] = Field(
        "server", description="which clock decides what is due; worker if the host forbids TIME in scripts"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum log level")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, JSON otherwise"
    )
    http_port: Annotated[int, BeforeValidator(_no_service_link)] = Field(
        0, ge=0, le=65535, description="port for HTTP (metrics and probes); 0: none (expirer web: 9878)"
    )
    http_host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all")
    http_allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = Field(
        (), description="names by which browsers may ask for the page, comma-separated; * for any"
    )

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: str) -> str:
        split_namespace(namespace)
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
                "EXPIRER_MAX_CLOCK_JUMP must be 0 or at least 10s: less would mistake a slow answer for a jump"
            )
        return self


class Settings(Layout, Behaviour, Address):
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


GROUPS: dict[str, tuple[str, ...]] = {
    "connection": CONNECTION,
    "inventory": ("namespace", "shards", "clock"),
    "timing": ("interval", "resolution", "batch_size", "default_duration", "grace", "retention"),
    "safety": ("brake_above", "max_clock_jump", "max_rate"),
    "output": ("events_maxlen", "log_level", "log_format", "http_port", "http_host", "http_allowed_hosts"),
    "layout": LAYOUT,
}
"""The names of all settings, as the help lists them."""


def default_text(name: str) -> str:
    """Return a setting's default as one would write it; empty if there is none."""
    return _text(Settings.model_fields[name].get_default())


def _text(value: object) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)


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
    if detail["type"] in _MESSAGES:
        metadata = Settings.model_fields[name].metadata
        bounds = {
            bound: _text(getattr(one, bound)) for one in metadata for bound in ("ge", "le") if hasattr(one, bound)
        }
        message = _MESSAGES[detail["type"]].format_map(detail.get("ctx", {}) | bounds)
    as_given = flags.get(name, os.environ.get(label, detail["input"]))
    value = "" if name == "redis_url" or detail["type"] == "value_error" else f"={as_given}"
    return f"{label}{value}: {message}"


_MESSAGES = {
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be {ge} or more",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
}
"""What pydantic finds, in plain words."""
