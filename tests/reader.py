"""A reader at a terminal, who types what the documents show and compares what he sees."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.inventory import Inventory
from tests.program import Program, wait_until
from tests.servers import RedisServer, find_cli

ROOT = Path(__file__).parent.parent


def blocks(document: str, *languages: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of some languages: (language, text)."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    return [block for block in fenced if block[0] in languages]


def commands(block: str) -> list[tuple[str, str]]:
    """Return what a console block shows: (command, what it prints)."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def normal(text: str) -> str:
    """Return the text with times, durations, versions and machine names made equal."""
    text = re.sub(r"\b1\d{12}\b", "<ms>", text)
    text = re.sub(r"\(integer\) \d{6,}", "(integer) <n>", text)
    text = re.sub(r'"time": "[^"]*"', '"time": "<time>"', text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", "<moment>", text)
    text = re.sub(r"[^\" ,]*:\d+:[0-9a-f]{4}\b", "<worker>", text)
    text = re.sub(r"\w[\w.-]*@[\w.-]+", "<somebody>", text)
    text = re.sub(r"version \d[\w.]*", "version <version>", text)
    text = re.sub(r"-?\d+ ms (ahead|behind)( of)?", "<n> ms off", text)
    text = re.sub(r"\d[\d.]* ms (late|there and back)", r"<n> ms \1", text)
    text = re.sub(r"(version: )(Redis|Valkey) \d[\w.]*", r"\1<server>", text)
    text = re.sub(r"[\d,]+\.\d+ s\b", "<n> s", text)
    text = text.replace('"error": "ReadOnlyError"', '"error": "ResponseError"')  # as Redis 6.2 says it of a script
    text = re.sub(r'"message": "[^"]*"', '"message": "<message>"', text)
    text = re.sub(r'"?(unix|redis)://[^"\s]*', "<url>", text)
    return re.sub(r'"(lateness_ms|elapsed_ms|down_ms|retry_in_ms|failures)": \d+', r'"\1": <n>', text)


class Reader:
    """Types at a shell with `redis-cli` and `expirer` on its PATH, both against one server."""

    def __init__(self, server: RedisServer, folder: Path, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        cli = find_cli()
        assert cli is not None
        folder.mkdir(exist_ok=True)
        ours = ["env", f"EXPIRER_REDIS_URL={server.url}", sys.executable, "-m", "expirer"]
        for name, words in (("redis-cli", [str(cli), "-s", str(server.socket), "--no-raw"]), ("expirer", ours)):
            (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (folder / name).chmod(0o755)
        self._shell = subprocess.Popen(
            ["/bin/bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "USER": "ann"},
        )
        stack.callback(self._shell.wait)
        stack.callback(self._shell.stdin.close)  # type: ignore[union-attr]
        stack.callback(self._shell.stdout.close)  # type: ignore[union-attr]

    def types(self, command: str, lines: int = 1) -> str:
        """Return what a command prints; the sidecar stays running, and its first lines are returned."""
        if command.startswith("expirer run"):
            flags = shlex.split(re.sub(r"--redis-url \S+", "", command))[2:]
            program = self._stack.enter_context(Program(self._server.url, *flags, "--log-format", "json"))
            wait_until(lambda: len(program.lines) >= lines)
            return "".join(program.lines[:lines])
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{command}\necho :end:\n")
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
