"""The alerts: valid, tried on recorded figures, and explained."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import Tool
from tests.reader import ROOT

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy" / "prometheus"
GUIDE = (ROOT / "docs" / "monitoring.md").read_text()
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
NAMES = {rule["alert"] for rule in RULES}


def says(*words: str | Path) -> tuple[int, str]:
    """Run a tool; return its exit code and all that it says."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("promtool", ["check", "rules", DEPLOY / "alerts.yaml"]),
        ("promtool", ["check", "config", "--syntax-only", DEPLOY / "prometheus.yaml"]),
        ("promtool", ["check", "config", DEPLOY / "prometheus.yaml"]),
        ("amtool", ["check-config", DEPLOY / "alertmanager.yaml"]),
    ],
)
def test_the_files_are_valid(tool: Tool, name: str, arguments: list[str | Path]) -> None:
    """The tools that will read the rules and the configurations find nothing wrong with them."""
    code, text = says(tool(name), *arguments)

    assert (0, False) == (code, "FAILED" in text), text


def test_each_alert_fires_when_it_should(tool: Tool) -> None:
    """On the recorded figures each alert fires, and does not fire, where its cases say."""
    code, text = says(tool("promtool"), "test", "rules", DEPLOY / "alerts.test.yaml")

    assert (0, True) == (code, "SUCCESS" in text), text


def test_each_alert_has_both_cases() -> None:
    """For each alert there is a recorded case in which it fires with its text, and one in which it does not."""
    cases = yaml.safe_load((DEPLOY / "alerts.test.yaml").read_text())["tests"]
    firing = {
        check["alertname"]
        for case in cases
        for check in case.get("alert_rule_test", ())
        if re.match(r"\w+ fires", case["name"]) and any(alert["exp_annotations"] for alert in check["exp_alerts"])
    }
    quiet = {match[1] for case in cases if (match := re.match(r"(\w+) does not fire", case["name"]))}

    assert NAMES == firing
    assert NAMES == quiet


def test_each_alert_says_what_to_do() -> None:
    """Each alert has a severity, says what it is and means, and names its section of the guide."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description", "runbook"} == set(rule["annotations"])
        assert f"docs/monitoring.md#{rule['alert'].lower()}" == rule["annotations"]["runbook"]


def test_the_guide_has_a_section_for_each_alert() -> None:
    """The guide's sections of alerts are the alerts, none more and none less."""
    assert NAMES == set(re.findall(r"^### (Expirer\w+)$", GUIDE, re.MULTILINE))


def test_the_guide_leads_somewhere() -> None:
    """Each link of the guide names a file that exists, and a heading of it."""
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", GUIDE):
        file = (ROOT / "docs" / path) if path else ROOT / "docs" / "monitoring.md"
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{path}#{anchor}"


def test_inhibited_alerts_exist() -> None:
    """The alerts that Alertmanager's configuration names are those that there are."""
    text = (DEPLOY / "alertmanager.yaml").read_text()

    assert set(re.findall(r"Expirer\w+", text)) <= NAMES
