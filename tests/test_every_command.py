"""What every command of the operator owes: one clear line whatever Redis it meets, and no harm."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import redis

from expirer import cli
from expirer.commands import COMMANDS
from expirer.contract.keys import ShardKeys
from tests.inventory import Inventory, contents
from tests.servers import RedisServer
from tests.test_layouts import OWN_WORDS, PLAIN_COUNTERS, TOTAL_AND_RESERVED, flags

EXAMPLES = {
    "once": "once",
    "once --dry-run": "once --dry-run",
    "check": "check",
    "check --canary": "check --canary",
    "status": "status",
    "pending": "pending",
    "show": "show o1:mug",
    "pause": "pause",
    "resume": "resume --yes",
    "quarantine list": "quarantine list",
    "quarantine show": "quarantine show o1:mug",
    "quarantine requeue": "quarantine requeue o1:mug",
    "quarantine release": "quarantine release o1:mug --quantity 1",
    "quarantine drop": "quarantine drop o1:mug --yes",
    "audit": "audit",
    "audit --repair": "audit --repair --yes",
}
"""Each of them ends by itself; `run`, `tail` and `top` do not, and their tests are theirs."""
LOGS = {"once"}
"""What a sidecar would log is JSON on standard error, and no line for people."""
ON_NOTHING = {
    "check --canary": 1,
    "status": 1,
    "show": 1,
    "quarantine show": 1,
    "quarantine requeue": 1,
    "quarantine release": 1,
    "quarantine drop": 1,
}
"""Exit codes on an empty Redis where they are not 0: there is no worker, and there is no such entry."""

Operate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def operate(shared_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Operate:
    """Return a function that runs a command line against the real server: exit code, standard output and error."""

    def run(command: str, *arguments: str, url: str = shared_server.url) -> tuple[int, str, str]:
        try:
            code = cli.main([*command.split(), *arguments, "--redis-url", url])
        except SystemExit as wrong_usage:
            code = int(wrong_usage.code or 0)
        return code, *capsys.readouterr()

    return run


def lines_for_people(err: str) -> list[str]:
    """Return the lines of standard error that are no log; a progress bar is none."""
    lines = [line.rpartition("\r")[2] for line in err.splitlines()]
    return [line for line in lines if line.startswith("expirer: ")]


def test_every_command_is_tried() -> None:
    """The examples have every command that ends by itself; reshard, which is for one layout on one server, is apart."""
    assert {*COMMANDS} - {"run", "web", "tail", "top", "demo", "reshard"} <= {*EXAMPLES}


@pytest.mark.parametrize("command", EXAMPLES)
def test_on_an_empty_redis(server_client: redis.Redis, operate: Operate, command: str) -> None:
    """On an empty Redis each command says that there is nothing, or no worker, and creates no reservation."""
    code, out, err = operate(EXAMPLES[command])

    assert code == ON_NOTHING.get(command, 0), out + err
    assert "Traceback" not in err
    assert len(lines_for_people(err)) <= 1
    assert out or err
    keys = ShardKeys.of("inventory")
    assert not server_client.exists(keys.index, keys.quarantine, keys.events)


@pytest.mark.parametrize("command", EXAMPLES)
def test_without_redis(operate: Operate, command: str) -> None:
    """Where no Redis answers each command says so in one line that names the address without its password, exit 1."""
    code, out, err = operate(EXAMPLES[command], url="redis://ann:hunter2@127.0.0.1:1/0")

    assert (code, out) == (1, "")
    assert "hunter2" not in err
    if command in LOGS:
        assert '"processing_error"' in err
    else:
        [line] = err.splitlines()
        assert line.startswith("expirer: redis://127.0.0.1:1/0: ")


@pytest.mark.parametrize("command", EXAMPLES)
def test_on_a_redis_of_another_purpose(server_client: redis.Redis, operate: Operate, command: str) -> None:
    """Where all names belong to something else each command says so, exit 1, and destroys nothing."""
    keys = ShardKeys.of("inventory")
    for key in (keys.index, keys.quarantine, keys.events, keys.control, keys.stats, keys.workers, keys.about):
        server_client.set(key, "theirs")
    server_client.set(keys.operations, "theirs")
    before = contents(server_client)

    code, out, err = operate(EXAMPLES[command])

    assert code == 1
    assert before == contents(server_client)
    if command not in LOGS:
        told = lines_for_people(err) or [line for line in out.splitlines() if line.startswith("failure")]
        assert told
        assert re.search(r"WRONGTYPE|holds a string", told[0]), told


@pytest.mark.parametrize("command", EXAMPLES)
def test_without_any_right(
    server_client: redis.Redis, shared_server: RedisServer, operate: Operate, command: str
) -> None:
    """A user who may do nothing is told so, exit 1."""
    server_client.execute_command("ACL", "SETUSER", "nobody", "on", ">pw", "-@all")  # type: ignore[no-untyped-call]
    try:
        code, out, err = operate(EXAMPLES[command], url=f"{shared_server.url}?username=nobody&password=pw")
    finally:
        server_client.execute_command("ACL", "DELUSER", "nobody")  # type: ignore[no-untyped-call]

    assert code == 1
    if command not in LOGS:
        told = lines_for_people(err) or [line for line in out.splitlines() if line.startswith("failure")]
        assert told
        assert "permission" in told[0], told


@pytest.mark.parametrize("layout", [PLAIN_COUNTERS, TOTAL_AND_RESERVED, OWN_WORDS], ids=["plain", "reserved", "words"])
@pytest.mark.parametrize("command", EXAMPLES)
def test_with_every_layout(server_client: redis.Redis, operate: Operate, command: str, layout: dict[str, str]) -> None:
    """Each command works with a layout of the inventory's own, and touches no key of the contract's layout."""
    contract = Inventory(server_client)
    contract.stock("mug", 7, 3)
    contract.hold("mug", 3, 1_700_000_000_000, "o1:mug")
    before = contents(server_client)

    code, out, err = operate(EXAMPLES[command], *flags(layout))

    assert code == ON_NOTHING.get(command, 0), out + err
    assert before.items() <= contents(server_client).items()
    contract.assert_conserved({"mug": 10})


@pytest.mark.parametrize("command", EXAMPLES)
def test_with_shards(server_client: redis.Redis, operate: Operate, command: str) -> None:
    """Each command works with shards, and finds what is on the last of them."""
    shops = [Inventory(server_client, ShardKeys.of("inventory", number, 3)) for number in range(3)]
    shop = shops[1]  # where `mug` lives
    shop.stock("mug", 7, 3)
    shop.hold("mug", 3, 4_000_000_000_000, "o1:mug")
    if command.startswith("quarantine"):
        server_client.zrem(shop.keys.index, "o1:mug")
        server_client.hset(shop.keys.quarantine, "o1:mug", "reason=stock_missing at=1 score=4000000000000")

    code, out, err = operate(EXAMPLES[command], "--shards", "3")

    assert code == (1 if command in ("check --canary", "status") else 0), out + err
    if command == "quarantine release":
        assert (8, 2) == shop.counters("mug")
    elif command == "quarantine drop":
        assert (7, 3) == shop.counters("mug")
    else:
        shop.assert_conserved({"mug": 10})
    if "--dry-run" in command or command in ("status", "pause", "resume"):
        assert [f"shard {number}" for number in range(3)] == sorted(set(re.findall(r"shard \d", out)))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pause --shard 3", "--shard 3: the shards are 0 to 0"),
        ("resume --shard -1", "--shard -1"),
        ("pending --limit 0", "--limit"),
        ("pending --limit many", "--limit"),
        ("quarantine release o1:mug --quantity 0", "--quantity"),
        ("quarantine requeue", "takes ids, or --reason, or --all"),
        ("tail --from yesterday", "--from"),
        ("audit --repair --json", "--json"),
    ],
)
def test_wrong_usage(operate: Operate, command: str, said: str) -> None:
    """What cannot be meant is one line that names the option, exit 2, before Redis is asked."""
    code, out, err = operate(command, url="redis://127.0.0.1:1/0")

    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert said in line
