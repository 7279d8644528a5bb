"""Compare how fast orders are placed and processed with an earlier version: `python -m benchmarks.earlier REVISION`."""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.stage import ROOT

_WANTED_RATIO = 0.97


@dataclass(frozen=True, slots=True)
class Scenario:
    """A benchmark that both versions have, and the row of its table that is compared."""

    name: str
    module: str
    row: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Orders/s, and CPU time of Waybill and PostgreSQL in ms per order, of one run of each version."""

    earlier: tuple[float, float]
    now: tuple[float, float]

    @property
    def rate(self) -> float:
        return self.now[0] / self.earlier[0]

    @property
    def cpu(self) -> float:
        return self.now[1] / self.earlier[1]


def main() -> int:
    options = _options()
    scenarios = (
        Scenario("placing", "place_orders", "Waybill over HTTP", ("--seconds", f"{options.seconds:g}")),
        Scenario("processing", "process_orders", "Waybill worker", ("--orders", str(options.orders))),
    )
    table = Table("", "rounds", "earlier /s", "now /s", "ratio of rates", "each round", "ratio of CPU time")
    kept = True
    with tempfile.TemporaryDirectory(prefix="waybill-earlier-") as folder:
        tree = _extract(options.revision, Path(folder))
        for scenario in (one for one in scenarios if options.only in (None, one.name)):
            pairs = [_pair(scenario, tree, turned=number % 2 == 1) for number in range(options.rounds)]
            ratio = median(pair.rate for pair in pairs)
            kept = kept and ratio >= _WANTED_RATIO
            table.add_row(
                scenario.name,
                str(len(pairs)),
                f"{median(pair.earlier[0] for pair in pairs):,.0f}",
                f"{median(pair.now[0] for pair in pairs):,.0f}",
                f"{ratio:.3f}",
                " ".join(f"{pair.rate:.2f}" for pair in pairs),
                f"{median(pair.cpu for pair in pairs):.3f}",
            )
    console = Console()
    console.print(table)
    console.print(f"{'reached' if kept else 'MISSED'}: the median ratio of the rates is at least {_WANTED_RATIO}")
    return 0 if kept else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.earlier", description=__doc__)
    parser.add_argument("revision", help="a commit, branch or tag of this repository")
    parser.add_argument("--only", choices=("placing", "processing"), help="run only one of the two")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured seconds per run of placing (default: 8)")
    parser.add_argument(
        "--orders", type=int, default=20_000, help="waiting orders per run of processing (default: 20000)"
    )
    return parser.parse_args()


def _extract(revision: str, folder: Path) -> Path:
    """Extract the files of that revision."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _pair(scenario: Scenario, tree: Path, *, turned: bool) -> Pair:
    """Run both versions, one right after the other: the machine's speed changes from minute to minute."""
    if turned:
        now, earlier = _run(scenario, ROOT), _run(scenario, tree)
    else:
        earlier, now = _run(scenario, tree), _run(scenario, ROOT)
    return Pair(earlier, now)


def _run(scenario: Scenario, tree: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", f"benchmarks.{scenario.module}", "--json", *scenario.arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    # 1: it missed its own target, which does not matter here.
    if done.returncode not in (0, 1) or not done.stdout:
        sys.exit(f"{' '.join(command)} in {tree} failed:\n{done.stdout}{done.stderr}")
    (row,) = [run for run in json.loads(done.stdout)["runs"] if run["name"] == scenario.row]
    return row["per_second"], row["cpu_ms"] + row["postgres_cpu_ms"]


if __name__ == "__main__":
    sys.exit(main())
