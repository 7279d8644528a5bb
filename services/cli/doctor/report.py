"""Prints what the checks have found: for people a table and then what to do, for programs JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.doctor.findings import Finding, Outcome, State
from services.cli.run import counted

_STYLES = {
    State.ok: "green",
    State.note: "cyan",
    State.warning: "yellow",
    State.problem: "bold red",
    State.failed: "bold magenta",
    State.skipped: "dim",
}
_WIDTH_IN_A_PIPE = 400


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `--json` prints."""
    return {"healthy": not any(one.is_bad for one in outcomes), "checks": [_as_json(one) for one in outcomes]}


def _as_json(outcome: Outcome) -> dict[str, Any]:
    told = asdict(outcome)
    del told["is_final"]
    return told | {"seconds": round(outcome.seconds, 3)}


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table, then each finding with the reason and what to do."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Nothing is wrapped in a pipe.
        console = Console(highlight=False, markup=False, width=_WIDTH_IN_A_PIPE)
    console.print(_table(outcomes))
    for number, (outcome, finding) in enumerate(_worst_first(outcomes), start=1):
        console.print()
        head = Text.assemble(
            f"{number}. ",
            (f"{finding.severity.value}", _STYLES[State(finding.severity.value)]),
            f" ({outcome.name}): {finding.found}",
        )
        console.print(head, soft_wrap=not console.is_terminal)
        console.print(Padding(Text(finding.why), (0, 0, 0, 3)))
        console.print(Padding(Text(finding.do), (0, 0, 0, 3)))
        if finding.command is not None:
            # Not wrapped, so that it can be copied.
            console.print(Text.assemble("   $ ", (finding.command, "bold")), soft_wrap=True)
    console.print()
    console.print(_verdict(outcomes))


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("check", "state", "seen", box=None, header_style="bold", pad_edge=False)
    for one in outcomes:
        table.add_row(one.name, Text(one.state.value, _STYLES[one.state]), one.saw)
    return table


def _worst_first(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Finding]]:
    found = [(outcome, finding) for outcome in outcomes for finding in outcome.findings]
    order = [State.problem, State.warning, State.note]
    return iter(sorted(found, key=lambda pair: order.index(State(pair[1].severity.value))))


def _verdict(outcomes: Sequence[Outcome]) -> str:
    by_severity: dict[str, int] = {}
    for one in outcomes:
        for finding in one.findings:
            by_severity[finding.severity.value] = by_severity.get(finding.severity.value, 0) + 1
    said = [counted(by_severity[name], name) for name in ("problem", "warning", "note") if name in by_severity]
    if failed := sum(one.state is State.failed for one in outcomes):
        said.append(counted(failed, "check that failed", "checks that failed"))
    return ", ".join(said) + "." if said else "Nothing found."
