"""One line per figure, each with its target and whether it was reached, as a table or as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import machine
from benchmarks.usage import Meter


@dataclass(frozen=True, slots=True)
class Bound:
    """The target of a figure: `limit` or more, or, with `most`, `limit` or less."""

    limit: float
    most: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


def at_least(limit: float) -> Bound:
    return Bound(limit)


def at_most(limit: float) -> Bound:
    return Bound(limit, most=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost: CPU milliseconds per 1,000 events, MiB, and CPUs that other processes kept busy meanwhile."""

    worker_cpu_ms: float | None = None
    postgres_cpu_ms: float | None = None
    peak_rss_mib: float | None = None
    others_cpu: float | None = None

    @classmethod
    def of(cls, meter: Meter, events: int, peak_rss_mib: float) -> "Cost":
        """The cost of one process, metered over this many events."""
        return cls(
            meter.cpu * 1_000_000 / events,
            meter.postgres_cpu * 1_000_000 / events,
            peak_rss_mib,
            (meter.machine_cpu - meter.cpu - meter.postgres_cpu) / meter.seconds,
        )


NO_COST = Cost()
_COSTS = ("worker\nCPU ms", "PostgreSQL\nCPU ms", "peak RSS\nMiB", "others'\nCPUs")


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. Without a `bound` it is only for comparison; without a `value` it could not be measured."""

    measure: str
    value: float | None
    unit: str
    bound: Bound | None = None
    cost: Cost = NO_COST
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether no target is missed."""
        return self.bound is None or (self.value is not None and self.bound.holds(self.value))

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return ""
        return "reached" if self.reached else "MISSED"

    @property
    def wanted(self) -> str:
        if self.bound is None:
            return ""
        return f"{'≤' if self.bound.most else '≥'} {figure(self.bound.limit, self.unit)}"


def figure(value: float, unit: str) -> str:
    """The number, with few decimals, and its unit."""
    if unit == "x":
        return f"{value:,.2f} x" if value < 10 else f"{value:,.1f} x"
    if value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:,.1f} {unit}" if value >= 1 else f"{value:.3g} {unit}"


def tally(lines: Sequence[Line]) -> str:
    """How many targets were reached, and how many missed."""
    reached, missed = (sum(line.verdict == verdict for line in lines) for verdict in ("reached", "MISSED"))
    return f"{reached} targets reached, {missed} missed"


def show(title: str, lines: Sequence[Line], notes: Iterable[str]) -> None:
    """Print the table, and the notes below it. Without any cost, the columns of costs are left out."""
    table = Table("measure", "measured", "to reach", "")
    costed = any(line.cost != NO_COST for line in lines)
    for heading in _COSTS if costed else ():
        table.add_column(heading)
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        measured = "not measured" if line.value is None else figure(line.value, line.unit)
        costs = asdict(line.cost).values() if costed else ()
        table.add_row(
            f"{line.measure}\n  {line.note}" if line.note else line.measure,
            measured,
            line.wanted,
            line.verdict,
            *("" if cost is None else f"{cost:.1f}" for cost in costs),
            style="bold red" if line.verdict == "MISSED" else None,
        )
    console = Console(width=180, highlight=False)
    console.print(title, style="bold")
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def document(title: str, lines: Sequence[Line], notes: Iterable[str]) -> dict[str, Any]:
    """The same as JSON."""
    shown = [{**asdict(line), "verdict": line.verdict or None} for line in lines]
    return {"title": title, "machine": machine(), "lines": shown, "notes": list(notes)}
