"""Monitoring to look at: a shop, its Redis, expirer, Prometheus and Alertmanager on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.prometheus import Alertmanager, Daemon, Prometheus
from tests.servers import MISSING, RedisServer, find_server, free_port
from tests.tools import find_tool, missing

_DEPLOY = Path(__file__).parent
_TOOLS = ("prometheus", "prometheus-alertmanager")
_HOLD = "10s"
_WAIT = "5s"
"""How long a condition must hold before its alert fires: minutes in production, which nobody watches."""

_TEXT = """\
A shop, its Redis, expirer, Prometheus and Alertmanager run on this machine. Look:

  {web}/  the page
  {web}/metrics  the figures of the whole inventory
  {worker}/metrics  those of the worker
  {prometheus}/  Prometheus: figures, and under Alerts what is about to fire
  {alertmanager}/api/v2/alerts  Alertmanager: what fires

Pause everything. Within a minute the page says who and why, and ExpirerPausedTooLong fires. Resume, and it ends:

  {program} pause --redis-url {redis} --reason 'payment outage'
  {program} resume --redis-url {redis}

The rules are a copy of deploy/prometheus/alerts.yaml in which each `for` is {wait}; the thresholds are the same.
Ctrl-C ends all of it.
"""


def main() -> int:
    """Run all of it until a signal; return the exit code: 1 if something is missing, or ended by itself."""
    found = {"redis-server": find_server(), **{name: find_tool(name) for name in _TOOLS}}
    binaries = {name: path for name, path in found.items() if path}
    if lacking := found.keys() - binaries:
        sys.stderr.writelines(f"{MISSING if name == 'redis-server' else missing(name)}\n" for name in sorted(lacking))
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="expirer-") as folder, ExitStack() as stack:
        daemons = _start(binaries, Path(folder), stack)
        while not (ended := [name for name, daemon in daemons.items() if not daemon.is_running]):
            time.sleep(0.5)
        sys.stderr.writelines(f"{name} has ended by itself:\n{daemons[name].said()}\n" for name in ended)
        return 1
    return 0


def _start(binaries: dict[str, Path], folder: Path, stack: ExitStack) -> dict[str, Daemon]:
    """Start everything, each in its own folder, ended with the stack; print where to look."""
    redis = RedisServer(binaries["redis-server"], _folder(folder / "redis"), port=free_port())
    stack.callback(redis.stop)
    redis.start()
    url = f"redis://127.0.0.1:{redis.port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPIRER_")}
    environment |= {"EXPIRER_REDIS_URL": url, "EXPIRER_DEFAULT_DURATION": _HOLD, "EXPIRER_LOG_LEVEL": "warning"}

    shop = Daemon([sys.executable, _DEPLOY / "shop.py"], _folder(folder / "shop"), environment=environment)
    stack.callback(shop.stop)
    ours = {}
    for name, command, usual in (("worker", "run", 9877), ("web", "web", 9878)):
        port = _port(usual)
        words = [sys.executable, "-m", "expirer", command, "--http-port", str(port)]
        ours[name] = Daemon(words, _folder(folder / name), port, "/livez", environment)
        stack.callback(ours[name].stop)
    place, binary = _folder(folder / "alertmanager"), binaries["prometheus-alertmanager"]
    alertmanager = Alertmanager(binary, place, _port(9093), _DEPLOY / "prometheus" / "alertmanager.yaml")
    stack.callback(alertmanager.stop)
    place = _folder(folder / "prometheus")
    rules = (_DEPLOY / "prometheus" / "alerts.yaml").read_text()
    (place / "alerts.yaml").write_text(re.sub(r"(for:) \d+m$", rf"\1 {_WAIT}", rules, flags=re.MULTILINE))
    prometheus = Prometheus(binaries["prometheus"], place, _port(9090), _configuration(ours, alertmanager))
    stack.callback(prometheus.stop)

    program = Path(sys.executable).parent / "expirer"
    daemons = {**ours, "prometheus": prometheus, "alertmanager": alertmanager}
    places = {name: daemon.url for name, daemon in daemons.items()}
    sys.stdout.write(_TEXT.format(**places, program=program, redis=url, wait=_WAIT))
    sys.stdout.flush()
    return {**daemons, "shop": shop}


def _configuration(ours: dict[str, Daemon], alertmanager: Daemon) -> str:
    """Return the configuration of Compose for these addresses, with an Alertmanager, at a pace to be watched."""
    text = (_DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    text = re.sub(r"_interval: \w+", "_interval: 1s", text)
    text = text.replace("expirer:9877", ours["worker"].address).replace("web:9878", ours["web"].address)
    return f"{text}\nalerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager.address}']}}]}}]}}\n"


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _port(usual: int) -> int:
    """Return the port where people look for it, or a free one if that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", usual))
            return usual
    return free_port()


if __name__ == "__main__":
    sys.exit(main())
