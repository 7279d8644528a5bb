"""One busy aggregate among many others, and one that waits for its retry at the head of the queue."""

from collections.abc import Sequence

from benchmarks.outbox.bench import Bench, Drained, middle
from benchmarks.outbox.events import Events
from benchmarks.outbox.table import Line, at_least
from benchmarks.outbox.timeline import Batch, rate

_AN_HOUR = 3600.0
_LONGER = 4
"""How many times as many others the longer runs have."""

_BEFORE = 2_000
"""Events before the one that fails, so that a worker is past its first batches by then."""


def measure_hot(bench: Bench) -> list[Line]:
    """The hot aggregate's events as one block in the middle of the queue, and spread evenly over the whole queue.

    Twice: 110,000 events last little more than a second, in which one slow moment of the machine is a tenth of it.
    """
    return [*_hot(bench, bench.sizes.others), *_hot(bench, _LONGER * bench.sizes.others)]


def _hot(bench: Bench, others: int) -> list[Line]:
    sizes = bench.sizes
    watched = sizes.watched * others // sizes.others
    number = others + watched
    calm: list[Drained] = []
    block: list[Drained] = []
    even: list[Drained] = []
    with (
        bench.filled(Events(number, sizes.aggregates)) as none_hot,
        bench.filled(Events(number, sizes.aggregates, watched, others // 2)) as in_a_block,
        bench.filled(Events(number, sizes.aggregates, watched)) as spread,
    ):
        for _ in range(sizes.rounds):
            calm.append(_drain(bench, none_hot, number))
            block.append(_drain(bench, in_a_block, number))
            even.append(_drain(bench, spread, number))
    hot, meanwhile = (middle(rates) for rates in zip(*(rate_of_watched(one.batches) for one in block), strict=True))
    beside = middle([rate_of_others(drained.batches) / one.rate for one, drained in zip(calm, block, strict=True)])
    together = middle([drained.rate / one.rate for one, drained in zip(calm, even, strict=True)])
    events = f"{watched:,} events of one aggregate"
    return [
        Line(
            f"{number:,} events, no aggregate hot", middle([one.rate for one in calm]), "events/s", cost=calm[-1].cost
        ),
        Line(
            f"{events} as one block among {others:,} others: its drain",
            hot,
            "events/s",
            at_least(30_000),
            block[-1].cost,
            f"{meanwhile:,.0f} events/s of all in that time",
        ),
        Line("… the others before and after the block, to none hot", beside, "x", at_least(0.9)),
        Line(f"{events} spread among the others: all, to none hot", together, "x", at_least(0.9), even[-1].cost),
    ]


def measure_retry(bench: Bench) -> list[Line]:
    """An event at the head fails and waits for an hour; behind it are more of its aggregate, and then the others.

    Once with as many others as are processed in about a second, and once with so many that the rate shows what is left
    when the others are parked.
    """
    return [*_retry(bench, bench.sizes.others), *_retry(bench, _LONGER * bench.sizes.others)]


def _retry(bench: Bench, others: int) -> list[Line]:
    sizes = bench.sizes
    stuck = sizes.watched + 1
    calm: list[Drained] = []
    disturbed: list[Drained] = []
    with (
        bench.filled(Events(others, sizes.aggregates)) as none_fails,
        bench.filled(Events(others + stuck, sizes.aggregates, stuck, _BEFORE)) as one_fails,
    ):
        for _ in range(sizes.rounds):
            calm.append(_drain(bench, none_fails, others))
            with bench.database(one_fails) as database:
                patient = bench.worker(database, failing=True, outbox_retry_base=_AN_HOUR, outbox_retry_cap=_AN_HOUR)
                with patient as worker:
                    disturbed.append(bench.follow(worker, others))
                bench.check(database, [worker], others, waiting=stuck)
    ratio = middle([drained.rate / one.rate for one, drained in zip(calm, disturbed, strict=True)])
    return [
        Line(
            f"{others:,} events, nothing fails",
            middle([one.rate for one in calm]),
            "events/s",
            cost=calm[-1].cost,
        ),
        Line(
            f"these {others:,}, with {sizes.watched:,} events behind one that waits for its retry, at the head",
            ratio,
            "x",
            at_least(0.9),
            disturbed[-1].cost,
            "the batch in which it fails and is split included; to nothing failing",
        ),
    ]


def _drain(bench: Bench, filled: str, number: int) -> Drained:
    with bench.database(filled) as database:
        return bench.drain(database, number)


def rate_of_watched(batches: Sequence[Batch]) -> tuple[float, float]:
    """Its own rate and that of all events, from the commit before its first event to the commit of its last."""
    mine = [number for number, batch in enumerate(batches) if batch.watched]
    meanwhile = batches[max(0, mine[0] - 1) : mine[-1] + 1]
    all_together = rate(meanwhile)
    share = sum(batch.watched for batch in meanwhile) / sum(batch.processed for batch in meanwhile[1:])
    return all_together * share, all_together


def rate_of_others(batches: Sequence[Batch]) -> float:
    """The rate over the commits before the hot aggregate's first event and after its last."""
    mine = [number for number, batch in enumerate(batches) if batch.watched]
    parts = [batches[: mine[0]], batches[mine[-1] :]]
    seconds = sum(part[-1].at - part[0].at for part in parts)
    return sum(batch.processed for part in parts for batch in part[1:]) / seconds
