"""The README is true: its sessions are run, its tables compared with the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import redis

from expirer import scripts
from expirer.connect import connect
from expirer.expiry import Tick
from expirer.keys import ShardKeys
from expirer.operate.reasons import ADVICE
from expirer.settings import Settings, default_text, variable
from expirer.worker import Worker
from tests.conftest import Log
from tests.inventory import NOW, Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer, find_cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of some languages: (language, text)."""
    return [
        block
        for block in re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
        if block[0] in languages
    ]


def normal(text: str) -> str:
    """Return the text with times, versions and machine names made equal."""
    text = re.sub(r"\b1\d{12}\b", "<ms>", text)
    text = re.sub(r'"time": "[^"]*"', '"time": "<time>"', text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", "<moment>", text)
    text = re.sub(r"[^\" ]*:\d+:[0-9a-f]{4}\b", "<worker>", text)
    text = re.sub(r"\d+ ms (ahead of|behind) this", "<n> ms ahead of this", text)
    text = re.sub(r'"(unix|redis)://[^"]*"', '"<url>"', text)
    return re.sub(r'"(lateness_ms|elapsed_ms)": \d+', r'"\1": <n>', text)


class Reader:
    """A reader at a terminal who types what the README shows, against one server."""

    def __init__(self, server: RedisServer, folder: Path, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self._program: Program | None = None
        cli = find_cli()
        assert cli is not None
        self._cli = [str(cli), "-s", str(server.socket), "--no-raw"]
        (folder / "redis-cli").write_text(f'#!/bin/sh\nexec {shlex.join(self._cli)} "$@"\n')
        ours = shlex.join(["env", f"EXPIRER_REDIS_URL={server.url}", sys.executable, "-m", "expirer"])
        (folder / "expirer").write_text(f'#!/bin/sh\nexec {ours} "$@"\n')
        for program in ("redis-cli", "expirer"):
            (folder / program).chmod(0o755)
        self._shell = subprocess.Popen(
            ["/bin/bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        stack.callback(self._shell.wait)
        stack.callback(self._shell.stdin.close)  # type: ignore[union-attr]
        stack.callback(self._shell.stdout.close)  # type: ignore[union-attr]

    def types(self, command: str) -> str:
        """Return what a shell command prints; the sidecar stays running."""
        if command.startswith("expirer run"):
            self._program = self._stack.enter_context(Program(self._server.url))
            self._program.wait_for("processing_completed")
            return "".join(self._program.lines)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{command}; echo :end:\n")
        self._shell.stdin.flush()
        return "".join(iter(self._shell.stdout.readline, ":end:\n"))

    def session(self, block: str) -> Iterator[tuple[str, str]]:
        """Type a redis-cli session on one connection; yield what is expected and what was printed."""
        with self._server.client() as client:
            connection = client.connection_pool.make_connection()
            for step in re.split(r"^(?=[>#] )", block, flags=re.MULTILINE)[1:]:
                line, _, expected = step.partition("\n")
                if line.startswith("# "):
                    self._expire(line.split()[-1])
                    continue
                connection.send_command(*shlex.split(line[2:]))
                yield expected, printed(connection.read_response())
            connection.disconnect()

    def _expire(self, id_: str) -> None:
        with self._server.client() as client:
            shop = Inventory(client)
            client.zadd(shop.keys.index, {id_: 1})
            client.publish(shop.keys.wake, "1")
            wait_until(lambda: shop.status(id_) == "Expired")


def printed(reply: Any) -> str:  # noqa: ANN401  # a reply of Redis
    """Return a reply as redis-cli prints it."""
    if isinstance(reply, list):
        return "".join(f"{number}) {printed(item)}" for number, item in enumerate(reply, 1))
    if reply is None:
        return "(nil)\n"
    if isinstance(reply, int):
        return f"(integer) {reply}\n"
    text = reply.decode()
    return f"{text}\n" if text in ("OK", "QUEUED") else f'"{text}"\n'


def test_its_sessions_are_real(own_server: RedisServer, tmp_path: Path) -> None:
    """Every redis-cli session of the README, typed in order, prints what the README shows."""
    folder = tmp_path / "bin"
    folder.mkdir()
    with own_server.client() as client, ExitStack() as stack:
        shop = Inventory(client)
        reader = Reader(own_server, folder, stack)
        for language, block in blocks("console", "redis"):
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
                for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                    assert normal(expected) == normal(reader.types(command))

        wait_until(lambda: shop.status("order-5:mug") == "Expired")
        assert [b"%d" % 8, b"0"] == client.hmget(shop.keys.stock_prefix + "mug", ["available", "reserved"])
        shop.assert_conserved({"mug": 10})


def test_its_python_runs(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """The Python example reserves, extends and confirms."""
    shop = Inventory(server_client)
    shop.stock("mug", 10)
    ((_, code),) = blocks("python")

    exec(code.replace("redis.Redis()", f"redis.Redis.from_url({shared_server.url!r})"), {})  # noqa: S102

    assert "Confirmed" == shop.status("order-4:mug")
    shop.assert_conserved({"mug": 10})


def test_its_layouts_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of a layout is a valid configuration."""
    layouts = [block for _, block in blocks("sh") if block.startswith("export EXPIRER_")]
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
        logged |= set(re.findall(r"\b_?log\.\w+\([^\"\n]*\n?\s*\"(\w+)\"", source.read_text()))
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


def test_its_rights_suffice(server_client: redis.Redis, shared_server: RedisServer) -> None:
    """A user with exactly the needed commands connects, expires, reschedules, skips, quarantines and listens."""
    section = README[README.index("For an ACL user the sidecar needs") :].split("With `INFO`")[0]
    rights = [f"+{name.lower()}" for name in re.findall(r"`([A-Z|]+)`", section)]
    server_client.execute_command("ACL", "SETUSER", "sidecar", "on", "nopass", "~*", "&*", "-@all", *rights)  # type: ignore[no-untyped-call]
    shop = Inventory(server_client)
    shop.stock("mug", 7, 3)
    server_client.set(shop.keys.stock_prefix + "tea", 5)
    for product_id, fields in (("mug", {}), ("tea", {}), ("mug", {"status": "Released"}), ("mug", {"quantity": "x"})):
        shop.hold(product_id, **{"expires_at": 1000, **fields})  # type: ignore[arg-type]
    extended = shop.hold("mug", expires_at=1000)
    server_client.hset(shop.keys.reservation_prefix + extended, "expires_at", 2 * NOW)
    server_client.hset(shop.keys.quarantine, "earlier", "reason=stock_missing at=1 score=1")
    server_client.hset(shop.keys.control, mapping={"paused": 1, "until": 1_700_000_000_000})
    server_client.script_flush()
    log = Log()
    settings = Settings(redis_url=f"unix://sidecar:any@{shared_server.socket}")
    with connect(settings) as client:
        tick = Worker(client, settings, log.logger()).run_once()

        assert Tick(expired=2, units=2, skipped=1, rescheduled=1, quarantined=1) == tick, log.entries
        client.pubsub().subscribe(shop.keys.wake, shop.keys.ticks)
    server_client.execute_command("ACL", "DELUSER", "sidecar")  # type: ignore[no-untyped-call]
    assert (8, 2) == shop.counters("mug")
