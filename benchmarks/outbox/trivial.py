"""A handler that does nothing, compared with a plain loop that keeps no order and decodes nothing."""

from dataclasses import dataclass

from benchmarks.outbox.bench import Bench, Drained, middle
from benchmarks.outbox.events import Events
from benchmarks.outbox.table import Cost, Line, at_least


@dataclass(frozen=True, slots=True)
class Trivial:
    """The rounds of both, in pairs that were measured consecutively."""

    plain: list[tuple[float, Cost]]
    worker: list[Drained]

    @property
    def rate(self) -> float:
        return middle([drained.rate for drained in self.worker])


def measure(bench: Bench) -> list[Line]:
    trivial = measured(bench)
    ratio = middle([worker.rate / plain[0] for plain, worker in zip(trivial.plain, trivial.worker, strict=True)])
    batches = middle([len(drained.batches) for drained in trivial.worker])
    return [
        Line(
            "plain asyncpg loop, 100 rows a commit",
            middle([p[0] for p in trivial.plain]),
            "/s",
            cost=trivial.plain[-1][1],
        ),
        Line(
            f"trivial handler, one worker, {bench.sizes.aggregates:,} aggregates in order",
            trivial.rate,
            "events/s",
            at_least(60_000),
            trivial.worker[-1].cost,
            f"{bench.sizes.events / batches:.0f} events a transaction",
        ),
        Line("… to the plain loop", ratio, "x", at_least(0.6)),
    ]


def measured(bench: Bench) -> Trivial:
    """Measured once per run; other scenarios compare with it."""
    found: Trivial = bench.once("trivial", lambda: _measure(bench))
    return found


def _measure(bench: Bench) -> Trivial:
    sizes = bench.sizes
    trivial = Trivial([], [])
    with bench.filled(Events(sizes.events, sizes.aggregates)) as filled:
        for _ in range(sizes.rounds):
            with bench.database(filled) as database:
                trivial.plain.append(bench.plain(database))
            with bench.database(filled) as database:
                trivial.worker.append(bench.drain(database, sizes.events))
    return trivial
