"""The alerts of `deploy/prometheus`: promtool accepts them, each fires when it should and not when all is well."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli.main import COMMANDS, load
from tests.processes import ROOT
from tests.prometheus import FOLDER, promtool, rules

SERIES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yml").read_text())


def test_promtool_accepts_the_configuration_and_the_rules(tmp_path: Path) -> None:
    found = promtool("check", "rules", FOLDER / "rules.yml")
    assert f"SUCCESS: {len(rules())} rules found" in found
    # The file with the token is not there.
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules()])
def test_an_alert_fires_when_it_should_and_not_when_all_is_well(alert: str, tmp_path: Path) -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == alert]
    # The texts are compared, too: they would have to be here a second time.
    bare = {name: rule[name] for name in ("alert", "expr", "for", "labels") if name in rule}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [bare]}]}))
    case = SERIES[alert]
    expected = [{"exp_labels": {"severity": rule["labels"]["severity"], **case.get("labels", {})}}]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": one["series"], "values": str(one[state])} for one in case["series"]],
            "alert_rule_test": [{"eval_time": case["at"], "alertname": alert, "exp_alerts": alerts}],
        }
        for state, alerts in (("fires", expected), ("calm", []))
    ]
    written = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(written))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "test.yml")


def test_every_alert_has_a_case_a_severity_and_a_runbook_that_names_what_exists() -> None:
    names = [rule["alert"] for rule in rules()]
    assert sorted(names) == sorted(SERIES)
    known = {path for top, command in COMMANDS.items() for path in paths(load(top), top)}
    for rule in rules():
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in ("page", "ticket")
        runbook = rule["annotations"]["runbook"]
        assert len(runbook) > 40, rule["alert"]
        for page in re.findall(r"docs/[\w/.-]+\.md", runbook):
            assert (ROOT / page).exists(), f"{rule['alert']}: {page}"
        for command in re.findall(r"`waybill ([a-z -]+[a-z])", runbook):
            assert command in known, f"{rule['alert']}: waybill {command}"
        for other in re.findall(r"\bWaybill[A-Z]\w+", runbook):
            assert other in names, f"{rule['alert']}: {other}"


def paths(command: Any, name: str) -> list[str]:
    """The command's own name and those of the commands below it."""
    inner = getattr(command, "commands", {})
    return [name, *(found for one, of in inner.items() for found in paths(of, f"{name} {one}"))]
