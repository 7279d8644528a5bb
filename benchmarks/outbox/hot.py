"""One busy aggregate among many others, and one that waits for its retry at the head of the queue."""

from collections.abc import Sequence

from benchmarks.outbox.bench import Bench, Drained, middle
from benchmarks.outbox.events import Events
from benchmarks.outbox.table import Line, at_least
from benchmarks.outbox.timeline import Batch

_AN_HOUR = 3600.0
_BEFORE = 2_000
"""Events before the one that fails: a worker that has just started is over its first batches then."""


def measure_hot(bench: Bench) -> list[Line]:
    """The hot aggregate's events as one block in the middle of the queue, and spread evenly over all of it."""
    sizes = bench.sizes
    number = sizes.others + sizes.watched
    undisturbed, hot, beside, spread = [], [], [], []
    with (
        bench.filled(Events(number, sizes.aggregates)) as calm,
        bench.filled(Events(number, sizes.aggregates, sizes.watched, sizes.others // 2)) as block,
        bench.filled(Events(number, sizes.aggregates, sizes.watched)) as even,
    ):
        for _ in range(sizes.rounds):
            undisturbed.append(_drain(bench, calm, number).rate)
            drained = _drain(bench, block, number)
            hot.append(rate_of_watched(drained.batches))
            beside.append(rate_of_others(drained.batches) / undisturbed[-1])
            spread.append(_drain(bench, even, number).rate / undisturbed[-1])
    events = f"{sizes.watched:,} events of one aggregate"
    return [
        Line(f"{number:,} events, no aggregate hot", middle(undisturbed), "events/s"),
        Line(
            f"{events} as one block among {sizes.others:,} others: its drain", middle(hot), "events/s", at_least(30_000)
        ),
        Line("… the others beside the block, to none hot", middle(beside), "x", at_least(0.9)),
        Line(f"{events} spread among the others: all together, to none hot", middle(spread), "x", at_least(0.9)),
    ]


def measure_retry(bench: Bench) -> list[Line]:
    """An event at the head fails and waits an hour; behind it wait more of its aggregate, and then the others."""
    sizes = bench.sizes
    stuck = sizes.watched + 1
    undisturbed, disturbed = [], []
    with (
        bench.filled(Events(sizes.others, sizes.aggregates)) as calm,
        bench.filled(Events(sizes.others + stuck, sizes.aggregates, stuck, _BEFORE)) as blocked,
    ):
        for _ in range(sizes.rounds):
            undisturbed.append(_drain(bench, calm, sizes.others).rate)
            with bench.database(blocked) as database:
                patient = bench.worker(database, failing=True, outbox_retry_base=_AN_HOUR, outbox_retry_cap=_AN_HOUR)
                with patient as worker:
                    drained = bench.follow(worker, sizes.others)
                bench.check(database, [worker], sizes.others, waiting=stuck)
            disturbed.append(drained.rate / undisturbed[-1])
    return [
        Line(f"{sizes.others:,} events, nothing fails", middle(undisturbed), "events/s"),
        Line(
            f"the others, with {sizes.watched:,} events behind one that waits for its retry, at the head",
            middle(disturbed),
            "x",
            at_least(0.9),
            note="the batch in which it fails and is split included; to nothing failing",
        ),
    ]


def _drain(bench: Bench, filled: str, number: int) -> Drained:
    with bench.database(filled) as database:
        return bench.drain(database, number)


def rate_of_watched(batches: Sequence[Batch]) -> float:
    """From the commit before its first event to the commit of its last, whatever else was processed in between."""
    mine = [number for number, batch in enumerate(batches) if batch.watched]
    start, end = batches[max(0, mine[0] - 1)], batches[mine[-1]]
    return sum(batch.watched for batch in batches) / (end.at - start.at)


def rate_of_others(batches: Sequence[Batch]) -> float:
    """Over the commits before the hot aggregate's first event and after its last."""
    mine = [number for number, batch in enumerate(batches) if batch.watched]
    parts = [batches[: mine[0]], batches[mine[-1] :]]
    seconds = sum(part[-1].at - part[0].at for part in parts)
    return sum(batch.processed for part in parts for batch in part[1:]) / seconds
