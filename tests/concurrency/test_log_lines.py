"""What a worker logs while it processes events says which ones, what they are about, and which request caused them."""

import logging
from collections.abc import Sequence

from services.database import Database
from services.outbox.events import Claimed, Trace
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, append, drain, processor, rows
from tests.logs import capture_logs

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = Trace("r1", f"00-{TRACE_ID}-00f067aa0ba902b7-01")


async def speak(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    logging.getLogger("services.test").info("handling")


async def append_traced(database: Database, *ticks: Tick) -> list[str]:
    """Write the events as a request would; returns their ids."""
    async with UnitOfWork(database.write, trace=TRACE) as uow:
        ids = [str(uow.record(tick)) for tick in ticks]
        await uow.commit()
    return ids


async def test_a_line_about_one_event_has_its_ids(ticking: Database) -> None:
    (event_id,) = await append_traced(ticking, Tick(name="a"))
    with capture_logs("services") as lines:
        await drain(processor(ticking, speak))
        logging.getLogger("services.test").info("later")
    (line,) = [line for line in lines if line["event"] == "handling"]
    assert line == {
        "event": "handling",
        "level": "info",
        "event_type": "test.tick",
        "attempt": 1,
        "event_id": event_id,
        "tick_id": "a",
        "request_id": "r1",
        "trace_id": TRACE_ID,
    }
    assert [line for line in lines if line["event"] == "later"] == [{"event": "later", "level": "info"}]


async def test_a_line_about_many_events_names_the_first_of_them(ticking: Database) -> None:
    ids = await append_traced(ticking, *(Tick(name=str(number)) for number in range(12)))
    with capture_logs("services") as lines:
        await drain(processor(ticking, speak))
    (line,) = [line for line in lines if line["event"] == "handling"]
    assert (line["events"], line["event_ids"], line["request_ids"]) == (12, ids[:10], ["r1"])


async def test_the_line_of_a_failed_event_has_its_ids(ticking: Database) -> None:
    (event_id,) = await append_traced(ticking, Tick(name="bad"))
    await append(ticking, Tick(name="good"))
    with capture_logs("services") as lines:
        await drain(processor(ticking, TickHandler(lambda claimed: claimed.event.name == "bad")))
    (line,) = [line for line in lines if "is poison" in line["event"]]
    assert (line["event_id"], line["tick_id"], line["request_id"], line["trace_id"]) == (
        event_id,
        "bad",
        "r1",
        TRACE_ID,
    )
    assert await rows(ticking, "SELECT name FROM effects") == ["good"]
