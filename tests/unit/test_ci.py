"""The workflow runs what a developer runs: .ci/run, on the whole history."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_workflow_runs_the_script_on_the_whole_history() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    steps = job["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    (checkout,) = (step for step in steps if str(step.get("uses", "")).startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0


def test_the_script_runs_the_checks_and_the_release_before() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make setup", "make test", "make check", "make release-before"} <= set(commands)
