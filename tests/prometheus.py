"""A real Prometheus with the configuration and the rules of `deploy/prometheus`, and its tool."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from services.local.embedded import child
from services.local.embedded.ports import LOOPBACK, any_free_port
from tests.installed import installed
from tests.processes import ROOT, wait_until

FOLDER = ROOT / "deploy" / "prometheus"

_DURATION = re.compile(r"\[\d+[mh]\]")


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`, which are in one package."""
    return installed(name, "prometheus")


def promtool(*arguments: str | Path, given: str | None = None) -> str:
    """Run promtool. Fails with what it said unless it succeeds."""
    ran = subprocess.run(
        [program("promtool"), *arguments], input=given, capture_output=True, text=True, check=False, cwd=FOLDER
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def rules() -> list[dict[str, Any]]:
    """The alerts, in order."""
    (group,) = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


class Prometheus:
    """A running server."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that the expression returns now."""
        reply = self._client.get("/query", params={"query": expression}).json()
        assert reply["status"] == "success", f"{expression}: {reply}"
        found: list[dict[str, Any]] = reply["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        alerts = self._client.get("/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def targets(self) -> dict[str, str]:
        """The health of each address that is scraped: `up`, `down` or `unknown`."""
        found = self._client.get("/targets").json()["data"]["activeTargets"]
        return {target["labels"]["instance"]: target["health"] for target in found}


@contextmanager
def running_prometheus(
    targets: Mapping[str, Sequence[str]], token: str, limits: Mapping[str, str], folder: Path
) -> Iterator[Prometheus]:
    """A server that scrapes these addresses (`HOST:PORT`) of each job of `prometheus.yml`, every second.

    The alerts look back ten seconds instead of minutes, and wait one second before they fire. `limits` replace texts of
    their expressions.
    """
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "token").write_text(token)
    assert {job["job_name"] for job in configuration["scrape_configs"]} == targets.keys()
    for job in configuration["scrape_configs"]:
        job["authorization"]["credentials_file"] = str(folder / "token")
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    hurried = [rule | {"expr": _DURATION.sub("[10s]", rule["expr"]), "for": "1s"} for rule in rules()]
    for rule in hurried:
        for before, after in limits.items():
            rule["expr"] = rule["expr"].replace(before, after)
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "waybill", "rules": hurried}]}))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = any_free_port()
    process = child.spawn(
        [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={LOOPBACK}:{port}",
        ],
        cwd=folder,
        log=folder / "prometheus.log",
        death_signal=signal.SIGKILL,
        environment={"PATH": os.environ["PATH"]},
    )
    address = f"http://{LOOPBACK}:{port}"
    try:
        wait_until(lambda: _is_ready(address, process, folder / "prometheus.log"), "Prometheus", 30)
        with httpx2.Client(base_url=f"{address}/api/v1") as client:
            yield Prometheus(client)
    finally:
        child.stop(process, (signal.SIGTERM, 10.0))


def _is_ready(address: str, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx2.get(f"{address}/-/ready").status_code == 200
    except httpx2.HTTPError:
        return False
