"""One row per run: a table with ratios to the first run, or JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

_HEADINGS = (
    "rate",
    "ratio",
    "CPU ms",
    "ratio",
    "PostgreSQL CPU ms",
    "p50 ms",
    "p99 ms",
    "peak RSS MiB",
    "others' CPUs",
)
_WIDTH = 140
"""As wide as necessary, even if the output goes to a file."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Times are milliseconds; `p50` and `p99` are of one request or one batch, as the benchmark says."""

    name: str
    done: int
    seconds: float
    cpu_ms: float
    postgres_cpu_ms: float
    others_cpu: float
    """CPUs that other processes on the machine kept busy meanwhile."""
    p50_ms: float
    p99_ms: float
    peak_rss_mib: float
    unit: str = "orders"
    """What is counted, in the plural."""

    @property
    def rate(self) -> float:
        return self.done / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and whether it was reached."""

    text: str
    reached: bool


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the sorted values do not exceed."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def report(
    title: str, runs: Sequence[Measured], targets: Sequence[Target], notes: Sequence[str], *, as_json: bool
) -> None:
    """Print the runs; the first of each unit is the baseline of its ratios."""
    if as_json:
        print(json.dumps(_document(title, runs, targets, notes), indent=2))
        return
    show_runs(title, runs)
    console = Console(width=_WIDTH, highlight=False)
    for note in notes:
        console.print(note, soft_wrap=True)
    for target in targets:
        console.print(f"{'reached' if target.reached else 'MISSED'}: {target.text}", soft_wrap=True)


def show_runs(title: str, runs: Sequence[Measured]) -> None:
    """Print the runs, with ratios to the first of each unit."""
    table = Table("", *_HEADINGS)
    for column in table.columns[1:]:
        column.justify = "right"
    for run in runs:
        baseline = _baseline(runs, run)
        table.add_row(
            run.name,
            f"{run.rate:,.0f} {run.unit}/s",
            f"{run.rate / baseline.rate:.2f}",
            f"{run.cpu_ms:.3f}",
            f"{run.cpu_ms / baseline.cpu_ms:.2f}",
            f"{run.postgres_cpu_ms:.3f}",
            f"{run.p50_ms:.1f}",
            f"{run.p99_ms:.1f}",
            f"{run.peak_rss_mib:.0f}",
            f"{run.others_cpu:.1f}",
        )
    console = Console(width=_WIDTH, highlight=False)
    console.print(title, style="bold")
    console.print(table)


def _baseline(runs: Sequence[Measured], run: Measured) -> Measured:
    return next(other for other in runs if other.unit == run.unit)


def machine() -> dict[str, Any]:
    """The machine on which the figures were measured."""
    return {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def _document(title: str, runs: Sequence[Measured], targets: Sequence[Target], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "title": title,
        "machine": machine(),
        "runs": runs_document(runs),
        "targets": [asdict(target) for target in targets],
        "notes": list(notes),
    }


def runs_document(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """The runs as JSON, with ratios to the first of each unit."""
    return [{**asdict(run), "per_second": run.rate, "ratio": run.rate / _baseline(runs, run).rate} for run in runs]
