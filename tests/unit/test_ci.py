"""The workflow runs what a developer runs, .ci/run, on the whole history, and looks for advisories."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_workflow_runs_the_script_on_the_whole_history() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["ci"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    (checkout,) = (step for step in steps if str(step.get("uses", "")).startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0


def test_the_workflow_looks_for_advisories_on_each_change_and_every_week() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["jobs"]["advisories"]["steps"][-1] == {"run": "make advisories"}
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True].keys() == {"push", "pull_request", "schedule"}


def test_the_script_runs_the_checks_and_the_release_before() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make setup", "make test", "make check", "make release-before"} <= set(commands)
