"""What the settings promise: one clear line for every mistake, before anything is touched."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from expirer.config.durations import parse_duration, to_ms
from expirer.config.settings import GROUPS, ConfigurationError, Settings, load
from expirer.contract.keys import ShardKeys, shard_keys


def problems(flags: dict[str, str] | None = None) -> list[str]:
    """Return the lines that stop the start."""
    with pytest.raises(ConfigurationError) as refused:
        load(flags)
    return refused.value.problems


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("5s", 5_000),
        ("15m", 900_000),
        ("24h", 86_400_000),
        ("7d", 604_800_000),
        ("5", 5_000),
        ("0", 0),
        ("1.5s", 1_500),
        (" 2s ", 2_000),
    ],
)
def test_durations_are_read(text: str, ms: int) -> None:
    """A duration is a number with a unit, or plain seconds."""
    assert ms == to_ms(parse_duration(text))


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "5 apples", "1e3", "5S", "1s2ms", "inf", "9" * 30, "999999999.999999999d"]
)
def test_other_durations_are_refused(text: str) -> None:
    """Anything else is refused by the name of the variable, with examples."""
    assert [f"--interval: {text!r} is not a duration such as 250ms, 5s, 15m, 24h or 7d"] == problems({"interval": text})


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is a variable."""
    monkeypatch.setenv("EXPIRER_INTERVAL", "30s")
    monkeypatch.setenv("EXPIRER_BATCH_SIZE", "500")
    monkeypatch.setenv("EXPIRER_RETENTION", "forever")
    monkeypatch.setenv("EXPIRER_FIELD_ORDER_ID", "")
    monkeypatch.setenv("EXPIRER_STATUS_ENDED", "paid, cancelled")

    settings = load()

    assert (timedelta(seconds=30), 500, None, "", ("paid", "cancelled")) == (
        settings.interval,
        settings.batch_size,
        settings.retention,
        settings.field_order_id,
        settings.status_ended,
    )


def test_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over its variable."""
    monkeypatch.setenv("EXPIRER_BATCH_SIZE", "500")

    assert load({"batch_size": "50"}).batch_size == 50


def test_redis_url_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_URL serves where EXPIRER_REDIS_URL is not set."""
    monkeypatch.setenv("REDIS_URL", "redis://one:6379/0")
    assert load().redis_url.get_secret_value() == "redis://one:6379/0"

    monkeypatch.setenv("EXPIRER_REDIS_URL", "redis://two:6379/0")
    assert load().redis_url.get_secret_value() == "redis://two:6379/0"


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable stops the start with the nearest name."""
    monkeypatch.setenv("EXPIRER_INTERVALL", "5s")

    assert problems() == ["EXPIRER_INTERVALL is not a setting; the nearest is EXPIRER_INTERVAL"]


@pytest.mark.parametrize("service", ["EXPIRER", "EXPIRER_HTTP", "EXPIRER_REDIS", "EXPIRER_REDIS_MASTER"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "8080"),
        ("SERVICE_PORT_HTTP", "8080"),
        ("PORT", "tcp://10.0.0.1:8080"),
        ("PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PORT_8080_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_service_links_are_no_settings(monkeypatch: pytest.MonkeyPatch, service: str, name: str, value: str) -> None:
    """What Kubernetes injects for services called expirer, expirer-http or expirer-redis changes nothing."""
    monkeypatch.setenv(f"{service}_{name}", value)

    assert 0 == load().http_port


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("batch_size", "0", "=0: must be 1 or more"),
        ("batch_size", "1001", "=1001: must be 1000 or less"),
        ("batch_size", "many", "=many: must be a whole number"),
        ("batch_size", "1.5", "=1.5: must be a whole number"),
        ("batch_size", "9" * 5000, f"={'9' * 5000}: must be a whole number of fewer digits"),
        ("interval", "24h", "=24h: must be 10m or less"),
        ("interval", "9ms", "=9ms: must be 10ms or more"),
        ("grace", "31d", "=31d: must be 30d or less"),
        ("shards", "0", "=0: must be 1 or more"),
        ("redis_cluster", "perhaps", "=perhaps: must be true or false"),
        ("clock", "wall", "=wall: must be 'server' or 'worker'"),
        ("score_unit", "us", "=us: must be 'ms' or 's'"),
        ("index_key", "", "=: must not be empty"),
        ("field_product_id", "", "=: must not be empty"),
        ("namespace", "a{b", ": 'a{b' must be text without braces, or have one {tag} as app1:{inventory} has"),
        (
            "redis_password_file",
            "/nowhere/secret",
            ": cannot read '/nowhere/secret': No such file or directory",
        ),
    ],
)
def test_a_value_out_of_bounds_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    """A bad value stops the start with one line that names its variable, or its flag."""
    assert [f"--{name.replace('_', '-')}{problem}"] == problems({name: value})
    monkeypatch.setenv(f"EXPIRER_{name.upper()}", value)
    assert [f"EXPIRER_{name.upper()}{problem}"] == problems()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            {"interval": "1s", "resolution": "2s"},
            "EXPIRER_RESOLUTION (2s) is longer than EXPIRER_INTERVAL (1s)",
        ),
        (
            {"max_clock_jump": "2s"},
            "EXPIRER_MAX_CLOCK_JUMP must be 0 or at least 10s: less would mistake a slow answer for a jump",
        ),
        (
            {"shards": "2", "index_key": "holds"},
            "EXPIRER_SHARDS=2 cannot be combined with EXPIRER_INDEX_KEY: a custom name belongs to one shard",
        ),
        (
            {"field_available": "", "field_reserved": ""},
            (
                "EXPIRER_FIELD_AVAILABLE and EXPIRER_FIELD_RESERVED are both empty:"
                " expiry would have no counter to give units back to"
            ),
        ),
        (
            {"field_status": ""},
            (
                "EXPIRER_FIELD_STATUS is empty, so an expired reservation would look active:"
                " set EXPIRER_RETENTION=0 to delete it instead"
            ),
        ),
        (
            {"field_quantity": "status"},
            "EXPIRER_FIELD_QUANTITY and EXPIRER_FIELD_STATUS are both 'status'",
        ),
        (
            {"field_reserved": "available"},
            "EXPIRER_FIELD_AVAILABLE and EXPIRER_FIELD_RESERVED are both 'available'",
        ),
        (
            {"field_expires_at": "expired_at"},
            "expired_at is the field that expiry writes; no EXPIRER_FIELD_… can have this name",
        ),
        (
            {"status_active": "HELD", "status_expired": "held"},
            "EXPIRER_STATUS_ACTIVE and EXPIRER_STATUS_EXPIRED are both 'held'",
        ),
        (
            {"status_active": "Released"},
            "EXPIRER_STATUS_ACTIVE and EXPIRER_STATUS_ENDED are both 'released'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, str], problem: str) -> None:
    """Settings that cannot hold together stop the start with a line that names them and the way out."""
    assert [problem] == problems(flags)


def test_each_setting_is_in_one_group() -> None:
    """The help lists each setting once."""
    assert sorted(Settings.model_fields) == sorted(name for names in GROUPS.values() for name in names)


def test_every_problem_is_reported() -> None:
    """Two bad values are two lines."""
    assert len(problems({"batch_size": "0", "clock": "wall"})) == 2


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:6379", "is not an address such as"),
        ("", "is not an address such as"),
        ("http://:hunter2@host", "is not an address such as"),
        ("redis//:hunter2@host", "is not an address such as"),
        ("redis://:hunter2\udcff@host", "is not an address such as"),
        ("redis://:hun/ter2@host", "needs percent-encoding in its password"),
        ("redis://:hunter2?@host", "needs percent-encoding in its password"),
        ("redis://:hunter2#@host", "needs percent-encoding in its password"),
        ("redis://:hun@ter2@host", "needs percent-encoding in its password"),
        ("redis://:hunter2@host:port", "has an invalid host or port"),
        ("redis://:hunter2@[::1", "has an invalid host or port"),
        ("redis://:hunter2\u2100@host", "has an invalid host or port"),
        ("unix://", "names no socket"),
        ("redis://:hunter2@host/stock", "has a path that is not the number of a database"),
        ("redis://:hunter2@host?db=-1", "has a db that is not the number of a database"),
        *(
            (f"redis://:hunter2@host?{option}={value}", f"has a {option} that is not above 0 and at most 3600 seconds")
            for option in ("socket_timeout", "socket_connect_timeout")
            for value in ("-1", "0", "nan", "inf", "99999999999", "soon")
        ),
        ("redis://:hunter2@host?decode_responses=true", "has an option that is not known here"),
        ("redis://:hunter2@host?ssl_ca_certs=ca.pem", "has an option that is not known here"),
    ],
)
def test_a_bad_url_is_not_repeated(url: str, problem: str) -> None:
    """A bad address is refused with the reason, and no part of it is shown: it may hold a password."""
    (line,) = problems({"redis_url": url})

    assert line.startswith(f"--redis-url: {problem}")
    assert not any(part in line for part in ("hunter2", "ter2", "hun@", "stock"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%40ss@[::1]:6380/3?socket_timeout=2",
        "rediss://:pw@host/0?ssl_ca_certs=/etc/hosts&ssl_cert_reqs=required",
        "unix://user@/run/redis.sock?db=1&password=pw",
    ],
)
def test_a_good_url_is_taken(url: str) -> None:
    """Every address that Redis has is taken as it stands."""
    assert load({"redis_url": url}).redis_url.get_secret_value() == url


def test_redis_urls_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad REDIS_URL is reported by the name under which it was given."""
    monkeypatch.setenv("REDIS_URL", "http://h")

    assert problems()[0].startswith("REDIS_URL: is not an address")


def test_a_password_file_is_text(tmp_path: Path) -> None:
    """A password that is empty or not UTF-8 text stops the start; an empty setting names no file."""
    secret = tmp_path / "secret"
    for content, problem in ((b"\xff", "is not UTF-8 text"), (b"\n", "is empty")):
        secret.write_bytes(content)

        assert [f"--redis-password-file: {str(secret)!r} {problem}"] == problems({"redis_password_file": str(secret)})
    assert load({"redis_password_file": ""}).redis_password_file is None


@pytest.mark.parametrize(
    "flags",
    [
        {"index_key": "{inventory}:workers"},
        {"events_key": "holds", "index_key": "holds"},
        {"reservation_prefix": "hold:", "stock_prefix": "hold:"},
    ],
)
def test_no_two_keys_have_one_name(flags: dict[str, str]) -> None:
    """Names that collide stop the start: a worker must not take one key for another."""
    with pytest.raises(ConfigurationError, match="is the name of two keys or prefixes"):
        shard_keys(load(flags))


def test_no_password_in_a_repr(tmp_path: Path) -> None:
    """The settings' repr shows no password."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    for flags in ({"redis_url": "redis://:hunter2@host/0"}, {"redis_password_file": str(secret)}):
        settings = load(flags)

        assert "hunter2" not in repr(settings) + str(settings) + repr(settings.model_dump())


def test_the_contracts_names() -> None:
    """The keys of the contract, with one shard and with more."""
    assert ShardKeys(
        index="{inventory}:reservations",
        events="{inventory}:expired",
        quarantine="{inventory}:quarantine",
        control="{inventory}:control",
        stats="{inventory}:stats",
        workers="{inventory}:workers",
        about="{inventory}:about",
        operations="{inventory}:operations",
        wake="{inventory}:wake",
        ticks="{inventory}:ticks",
        reservation_prefix="{inventory}:reservation:",
        stock_prefix="{inventory}:stock:",
    ) == ShardKeys.of("inventory")
    keys = shard_keys(Settings(shards=3, namespace="shop"))
    assert [shard.wake for shard in keys] == ["{shop:0}:wake", "{shop:1}:wake", "{shop:2}:wake"]


def test_custom_names_are_literal() -> None:
    """Custom names replace the contract's as they stand; an empty prefix is a prefix too."""
    settings = Settings(index_key="holds", events_key="gone", reservation_prefix="", stock_prefix="stock:")

    (keys,) = shard_keys(settings)

    assert (
        keys.index,
        keys.events,
        keys.reservation_prefix,
        keys.stock_prefix,
        keys.quarantine,
    ) == ("holds", "gone", "", "stock:", "{inventory}:quarantine")
    assert settings.is_custom_layout
    assert not Settings().is_custom_layout
