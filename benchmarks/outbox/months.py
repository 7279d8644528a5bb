"""The event log with 14 months of partitions, compared with one month."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from benchmarks.outbox.bench import Bench, Drained, middle
from benchmarks.outbox.events import Events, Log, Ping, fill, tidy, write_log
from benchmarks.outbox.table import Line, at_least
from services.database import open_database
from services.outbox.engine import queries
from services.outbox.engine.repository import claim_settings
from services.outbox.models import MAX_POSITION
from services.outbox.retention.repository import add_partitions, existing_partitions
from services.settings import Settings

_EARLIER = 13
_EACH = 36
"""If events of all months wait: how many of each month come in turn, so that a batch of 500 has some of every month."""

_CLAIMED = 500


def measure(bench: Bench) -> list[Line]:
    """Drain events of this month with the earlier months in the log and without, and as many events of all months."""
    sizes = bench.sizes
    events, share = (Events(number, sizes.aggregates) for number in (sizes.typed, sizes.typed // (_EARLIER + 1)))
    settings = bench.stage.settings("with_earlier"), bench.stage.settings("of_all")
    runs: dict[str, list[Drained]] = {}
    with (
        bench.filled(events) as alone,
        bench.database(name="with_earlier") as with_earlier,
        bench.database(name="of_all") as of_all,
    ):
        few = len(add_months(bench.stage.settings(alone), []))
        many = len(add_months(settings[0], earlier_months()))
        add_months(settings[1], earlier_months())
        write_earlier(settings[0].database_url, share)
        fill(settings[0].database_url, events)
        fill_all_months(settings[1].database_url, share)
        waiting = {alone: events.number, with_earlier: events.number, of_all: share.number * (_EARLIER + 1)}
        for _ in range(sizes.rounds):
            for source, number in waiting.items():
                with bench.database(source) as database:
                    runs.setdefault(source, []).append(bench.drain(database, number))
        touched = partitions_a_look_up(settings[1].database_url)
    return [
        Line(
            f"{events.number:,} events of this month, with {few} partitions and nothing in the others",
            middle([drained.rate for drained in runs[alone]]),
            "events/s",
            cost=runs[alone][-1].cost,
        ),
        Line(
            f"… with events of {_EARLIER} earlier months in the log and {many} partitions, to without",
            _ratio(runs[with_earlier], runs[alone]),
            "x",
            at_least(0.9),
            runs[with_earlier][-1].cost,
        ),
        Line(
            f"… as many events of all {_EARLIER + 1} months, {_EACH} of each in turn, to those of this month alone",
            _ratio(runs[of_all], runs[alone]),
            "x",
            cost=runs[of_all][-1].cost,
        ),
        Line("… partitions that the look-up of one event reads", touched, f"of {many}"),
    ]


def earlier_months() -> list[tuple[int, int]]:
    """The 13 months before this one, as (year, month), oldest first."""
    now = datetime.now(UTC)
    this_month = now.year * 12 + now.month - 1
    return [(number // 12, number % 12 + 1) for number in range(this_month - _EARLIER, this_month)]


def add_months(settings: Settings, months: Sequence[tuple[int, int]]) -> set[str]:
    """Create the partitions of these months, as the product does; return the names of all partitions."""

    async def add() -> set[str]:
        async with open_database(settings, "benchmark") as database, database.engine.begin() as connection:
            await add_partitions(connection, months)
            return await existing_partitions(connection)

    return asyncio.run(add())


def write_earlier(url: str, events: Events) -> list[Log]:
    """Write these events to the log as those of each earlier month, with nothing in the outbox yet."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [write_log(connection, events, datetime(*month, 15, tzinfo=UTC)) for month in earlier_months()]


def fill_all_months(url: str, events: Events) -> None:
    """Write these events to the log and the outbox as those of each month, a few of each month in turn."""
    logs = write_earlier(url, events)
    with psycopg.connect(url, autocommit=True) as connection:
        logs.append(write_log(connection, events))
        for first in range(0, events.number, _EACH):
            for log in logs:
                log.release(connection, first, min(_EACH, events.number - first))
        tidy(connection)


def partitions_a_look_up(url: str) -> float:
    """How many partitions of the log a claim reads for each of its events, on average, by its plan."""
    arguments = {
        "types": [Ping.type],
        "starts": [0],
        "ends": [MAX_POSITION],
        "ready": [_CLAIMED],
        "due": [1],
        "versions": [Ping.version],
        "floor": 0,
        "near": 4 * _CLAIMED,
    }
    settings = claim_settings(30.0)
    with psycopg.connect(url, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute(queries.SET_LOCAL.sql, (list(settings), list(settings.values())))
        explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {queries.CLAIM.sql}"
        (((plan,),),) = connection.execute(explain.encode(), queries.CLAIM.arguments(arguments)).fetchall()
        connection.rollback()
    for node in _nodes(plan["Plan"]):
        # Each below a node that leaves blocked rows out.
        parts = [part for below in node.get("Plans", ()) for part in (below, *below.get("Plans", ()))]
        scans = [part for part in parts if part.get("Relation Name", "").startswith("events_")]
        if node["Node Type"] == "Append" and scans:
            return float(sum(scan["Actual Loops"] for scan in scans) / node["Actual Loops"])
    raise RuntimeError("the plan of a claim does not look up events in the partitions of the log")


def _ratio(runs: Sequence[Drained], to: Sequence[Drained]) -> float:
    return middle([drained.rate / other.rate for drained, other in zip(runs, to, strict=True)])


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)
