"""The README is true: its sessions are run, its tables compared with the code."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
import redis

from expirer.commands import COMMANDS
from expirer.config.environment import variable
from expirer.config.settings import Settings, default_text
from expirer.contract import scripts
from expirer.contract.keys import ShardKeys
from expirer.contract.reasons import ADVICE
from expirer.operate import findings
from tests.acl import RULES
from tests.inventory import Inventory
from tests.program import wait_until
from tests.reader import ROOT, Reader, blocks, commands, normal
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()


def test_its_sessions_are_real(own_server: RedisServer, tmp_path: Path) -> None:
    """Every redis-cli session of the README, typed in order, prints what the README shows."""
    with own_server.client() as client, ExitStack() as stack:
        shop = Inventory(client)
        reader = Reader(own_server, tmp_path / "bin", stack)
        for language, block in blocks(README, "console", "redis"):
            if "order-3" in block:
                shop.stock("mug", 6, 2)
                shop.hold("mug", 2, 4102444800000, "order-3:mug")
                client.hdel(shop.keys.reservation_prefix + "order-3:mug", "expires_at")
            if "order-5" in block:
                shop.stock("mug", 6, 2)
                shop.hold("mug", "two", 1_795_000_000_000, "order-5:mug")
                client.publish(shop.keys.wake, "1")
                wait_until(shop.quarantine)
            if language == "redis":
                for expected, actual in reader.session(block):
                    assert normal(expected) == normal(actual)
            else:
                for command, expected in commands(block):
                    assert normal(expected) == normal(reader.types(command, expected.count("\n")))

        wait_until(lambda: shop.status("order-5:mug") == "Expired")
        assert [b"%d" % 8, b"0"] == client.hmget(shop.keys.stock_prefix + "mug", ["available", "reserved"])
        shop.assert_conserved({"mug": 10})


def test_its_python_runs(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """The Python example reserves, extends and confirms."""
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    ((_, code),) = blocks(README, "python")

    exec(code.replace("redis.Redis()", f"redis.Redis.from_url({shared_server.url!r})"), {})  # noqa: S102  # what the README shows is run

    assert "Confirmed" == shop.status("order-4:mug")
    shop.assert_conserved({"mug": 10})


def test_its_layouts_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of a layout is a valid configuration."""
    layouts = [block for _, block in blocks(README, "sh") if block.startswith("export EXPIRER_")]
    for layout in layouts:
        with monkeypatch.context() as environment:
            for assignment in layout.replace("export ", "").split():
                environment.setenv(*assignment.split("=", 1))

            assert Settings().is_custom_layout
    assert 3 == len(layouts)


def test_its_settings_are_all() -> None:
    """The table lists every setting with its default, in the code's order."""
    rows = re.findall(r"^\| `(EXPIRER_\w+)` \| (?:`([^`]*)`)? ?\|", README, re.MULTILINE)
    names = list(Settings.model_fields)
    keys = asdict(ShardKeys.of("inventory"))
    keys |= {"index_key": keys["index"], "events_key": keys["events"]}

    assert [variable(name) for name in names] == [name for name, _ in rows]
    assert [default_text(name) or keys.get(name, "") for name in names] == [default for _, default in rows]


def test_its_events_are_all() -> None:
    """The table lists every event that the code logs, and no other."""
    logged = set()
    for source in (ROOT / "expirer").rglob("*.py"):
        logged |= set(re.findall(r"\b_?log(?:_repair|\.\w+)\([^\"\n]*\n?\s*\"(\w+)\"", source.read_text()))
    table = README[README.index("| event | level |") :].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert logged == listed


def test_its_reasons_are_all() -> None:
    """The table lists every reason for quarantine."""
    text = scripts.load("expire").text
    given = set(re.findall(r"return 'quarantined', '(\w+)'|reason = (?:counters\.reason or )?'(\w+)'", text))
    table = README[README.index("| reason | what is wrong") :].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert {first or second for first, second in given} == listed == set(ADVICE)


def test_its_rights_are_those_of_the_file() -> None:
    """What the README lists for each ACL user are the commands of deploy/acl/expirer.acl, and no others."""
    section = README[README.index("### Container, server and rights") :].split("`check` can say more")[0]
    items = re.findall(r"^- `([\w-]+)`(.*\n(?:  .*\n)*)", section, re.MULTILINE)
    listed = {user: set(re.findall(r"`([A-Z|]+)`", item)) for user, item in items}
    listed["expirer-mend"] |= listed["expirer-look"]

    assert listed == {user: {rule[1:].upper() for rule in rules if rule[0] == "+"} for user, rules in RULES.items()}


def test_its_findings_are_all() -> None:
    """The table lists every kind of finding that an audit knows."""
    source = Path(findings.__file__).read_text()
    endings = "indexed|differs|missing|wrong_type|invalid|stale|negative|expires|due|mismatch"
    known = set(re.findall(rf'"(\w+_(?:{endings}))"', source))
    table = README[README.index("| finding | what is wrong") :].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert known == listed


def test_its_verbs_are_all() -> None:
    """The table of commands names every command."""
    table = README[README.index("| command | does | exit code |") :].split("\n\n")[0]

    assert [] == [name for name in COMMANDS if f"`{name.split()[-1]}`" not in table and f"`expirer {name}" not in table]
