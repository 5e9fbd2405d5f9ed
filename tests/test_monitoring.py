"""What monitors make of a real worker: a real Prometheus scrapes it, and every figure that we tell of is there."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Tool
from tests.inventory import Inventory
from tests.program import Backlog, wait_until
from tests.prometheus import Prometheus, ask, get
from tests.reader import ROOT
from tests.servers import RedisServer, free_port
from tests.test_web import Site

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "monitoring.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
TYPES = {"info": "gauge"}
"""What the text of Prometheus calls it, where it has no such type."""
FUTURE = 4_102_444_800_000
SCRAPES = """
global: {scrape_interval: 200ms, evaluation_interval: 200ms}
scrape_configs:
  - job_name: expirer
    static_configs: [{targets: ["127.0.0.1:%d", "127.0.0.1:%d"]}]
"""


class Shop:
    """A shop with a worker that has met all that there is to be counted, and what shows it."""

    def __init__(self, server: RedisServer, stack: ExitStack) -> None:
        server.stop()
        self.worker = Site(server.url, stack, command="run")
        self.worker.program.wait_for("processing_error")
        server.start()
        self.web = Site(server.url, stack)
        self.client = stack.enter_context(server.client())
        inventory = Inventory(self.client)
        inventory.hold("mug", 1, 1_700_000_000_000, "order-6:mug", status="Odd")
        inventory.stock("tee", 0, 1)
        inventory.hold("tee", 1, FUTURE, "later:tee")
        self.backlog = Backlog(self.client)
        self.expire(120)

    def expire(self, count: int) -> None:
        """Let so many more expire."""
        self.backlog.add(count)
        wait_until(lambda: self.client.publish(self.backlog.shop.keys.wake, "1") and self.backlog.left() == 1)


@pytest.fixture(scope="module")
def shop(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Run a shop with a worker."""
    server = RedisServer(server_binary, tmp_path_factory.mktemp("redis"), port=free_port())
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield Shop(server, stack)


@pytest.fixture(scope="module")
def prometheus(shop: Shop, tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real Prometheus that scrapes the shop five times a second; return its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    prometheus = Prometheus(tool("prometheus"), folder, free_port(), SCRAPES % (shop.worker.port, shop.web.port))
    yield prometheus.url
    prometheus.stop()


def described() -> dict[str, tuple[str, frozenset[str]]]:
    """Return the guide's table: metric -> type and labels."""
    rows = re.findall(r"^\| `(expirer_\w+)` \| (\w+) \|[^|]*\|([^|]*)\|", GUIDE, re.MULTILINE)
    return {name: (TYPES.get(type_, type_), frozenset(re.findall(r"`(\w+)`", labels))) for name, type_, labels in rows}


def served(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return what a text of metrics has: metric -> type and labels, `le` aside."""
    found = {}
    for family in text_string_to_metric_families(text):
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    return {name: what for name, what in found.items() if name.startswith("expirer_")}


def queries() -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the dashboard's queries as Grafana asks them: panel, legend, query."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "10s").replace("$job", "expirer").replace("$shard", ".*")
            yield panel, target["legendFormat"], query


def test_the_table_is_what_is_served(shop: Shop) -> None:
    """The guide's table has each metric of /metrics with its type and labels, and none that there is not."""
    wait_until(lambda: 'reason="status_unknown"' in shop.web.get("/metrics")[1])
    worker, web = (served(site.get("/metrics")[1]) for site in (shop.worker, shop.web))

    assert worker | web == described()
    assert [] == [name for name in worker if not name.startswith("expirer_worker_")]
    assert [] == [name for name in web if name.startswith("expirer_worker_")]


@pytest.mark.parametrize("name", ["worker", "web"])
def test_promtool_finds_nothing(shop: Shop, tool: Tool, name: str) -> None:
    """The names, types and help texts of /metrics are as Prometheus wants them."""
    text = {"worker": shop.worker, "web": shop.web}[name].get("/metrics")[1]
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def test_prometheus_has_the_exact_figures(shop: Shop, prometheus: str) -> None:
    """What Prometheus answers is what happened: each reservation and each unit once, and each error by its class."""
    shop.expire(50)
    count, units = len(shop.backlog.expired()), shop.backlog.stocked.total()

    def figure(query: str) -> float:
        found = ask(prometheus, query)
        return found[0][1] if found else -1

    wait_until(lambda: figure("sum(max by (shard) (expirer_shard_expired_reservations_total))") == count)
    assert count == figure("sum(expirer_worker_expired_reservations_total)")
    assert count == figure("expirer_worker_lateness_seconds_count")
    assert units == figure("sum(expirer_worker_expired_units_total)")
    assert units == figure("sum(max by (shard) (expirer_shard_expired_units_total))")
    assert 1 == figure("expirer_shard_active_reservations")
    assert 1 == figure('expirer_shard_quarantined_reservations_total{reason="status_unknown"}')
    assert 1 == figure("expirer_redis_up")
    assert 1 <= figure('expirer_worker_errors_total{error="ConnectionError"}')
    assert FUTURE / 1000 == figure("expirer_shard_next_expiry_timestamp_seconds")
    assert abs(figure("expirer_worker_last_success_timestamp_seconds") - time.time()) < 60
    shop.backlog.shop.assert_conserved({**shop.backlog.stocked, "tee": 1})


def test_each_query_of_the_dashboard_has_an_answer(shop: Shop, prometheus: str) -> None:
    """Each query finds figures of a worker at work, and its legend names labels that they have."""
    unanswered = {query: legend for _, legend, query in queries()}

    def ask_all() -> bool:
        shop.expire(1)
        for query, legend in list(unanswered.items()):
            if found := ask(prometheus, query):
                assert all(set(re.findall(r"{{(\w+)}}", legend)) <= labels.keys() for labels, _ in found), query
                del unanswered[query]
        return not unanswered

    wait_until(ask_all)

    assert {} == unanswered


def test_the_queries_name_what_exists(prometheus: str) -> None:
    """Each metric and each label that the dashboard and the alerts name is one that Prometheus has scraped."""
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
    told = re.sub(r"^ *#.*$", "", rules, flags=re.MULTILINE) + "\n".join(query for _, _, query in queries())
    metrics = set(re.findall(r"\b(?:expirer|process)_\w+", told))
    labels = {name for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", told) for name in names.split(", ")}
    labels |= set(re.findall(r"[{,]\s*(\w+)=", told))
    wait_until(lambda: ask(prometheus, "expirer_redis_up"))

    assert set() == metrics - set(get(f"{prometheus}/api/v1/label/__name__/values")["data"])
    assert set() == labels - set(get(f"{prometheus}/api/v1/labels")["data"])


def test_the_dashboard_is_whole() -> None:
    """Each panel has its own number and place, a description and a data source; nothing is asked but by a variable."""
    panels = DASHBOARD["panels"]
    places = {panel["id"]: panel["gridPos"] for panel in panels}
    cells = {
        number: {(at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])}
        for number, at in places.items()
    }

    assert len(panels) == len(places)
    assert [] == [pair for pair in combinations(cells, 2) if cells[pair[0]] & cells[pair[1]]]
    assert all(at["x"] + at["w"] <= 24 for at in places.values())
    assert {"datasource", "job", "shard"} == {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert DASHBOARD["schemaVersion"] >= 36
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert {"${datasource}"} == {target["datasource"]["uid"] for target in [panel, *panel["targets"]]}
            references = [target["refId"] for target in panel["targets"]]
            assert len(references) == len(set(references))


def test_what_is_a_shards_is_never_summed_over_workers() -> None:
    """Each query of the dashboard takes a shard's figure once, however many workers tell it, and says whose it is."""
    for panel, _, query in queries():
        assert query.count("expirer_shard_") == query.count("max by (shard") or query.startswith("max(expirer_shard_")
        if "expirer_shard_" in query:
            assert "The whole shard's figure" in panel["description"]
        elif "expirer_worker_" in query:
            assert "Counted by the workers themselves" in panel["description"]


def test_grafana_knows_the_pace_of_the_scrapes() -> None:
    """The data source of Compose has the interval of its Prometheus: a rate over less would find one sample."""
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())
    (source,) = yaml.safe_load((ROOT / "deploy" / "grafana" / "datasource.yaml").read_text())["datasources"]

    assert prometheus["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
