"""The trivial handler with events of two and of five types, compared with one type."""

from contextlib import ExitStack

from benchmarks.outbox.bench import Bench, Drained, middle
from benchmarks.outbox.events import Events
from benchmarks.outbox.table import Line, at_least

_AGGREGATES = 10_000
"""So few that most batches have aggregates with events of several types, which keep their order."""

_SEVERAL = {2: "two", 5: "five"}


def measure(bench: Bench) -> list[Line]:
    """Drain as many events of one type, of two and of five, in turn."""
    sizes = bench.sizes
    runs: dict[int, list[Drained]] = {number: [] for number in (1, *_SEVERAL)}
    with ExitStack() as stack:
        filled = {
            number: stack.enter_context(bench.filled(Events(sizes.typed, _AGGREGATES, types=number))) for number in runs
        }
        for _ in range(sizes.rounds):
            for number, source in filled.items():
                with bench.database(source) as database:
                    runs[number].append(bench.drain(database, sizes.typed, types=number))
    lines = [
        Line(
            f"{sizes.typed:,} events of one type",
            middle([one.rate for one in runs[1]]),
            "events/s",
            cost=runs[1][-1].cost,
            note=_batches(runs[1], sizes.typed),
        )
    ]
    for number, name in _SEVERAL.items():
        ratio = middle([several.rate / one.rate for one, several in zip(runs[1], runs[number], strict=True)])
        lines.append(
            Line(
                f"… {name} types to one type",
                ratio,
                "x",
                at_least(0.8),
                runs[number][-1].cost,
                _batches(runs[number], sizes.typed),
            )
        )
    return lines


def _batches(runs: list[Drained], events: int) -> str:
    return f"{events / middle([len(drained.batches) for drained in runs]):.0f} events a transaction"
