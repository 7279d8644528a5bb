"""Events that sleep although nothing is left to wake them are found by the audit, and woken by a sweep."""

import asyncio
import random
from types import SimpleNamespace

import pytest

from services.audit.schemas import Difference
from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.policy import RetryPolicy
from services.sql import Statement
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from tests.api.audited import run_audit
from tests.concurrency.test_dead_letters import tolerant
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, effects, processor, rows
from tests.logs import capture_logs
from worker.jobs.stranded import STRANDED, Waiting, wake_stranded_events
from worker.jobs.sweeping import run_sweeps

ASLEEP = "SELECT aggregate, count(*) FROM outbox WHERE available_at = 'infinity' GROUP BY aggregate ORDER BY aggregate"
STRAND = "UPDATE outbox SET waits = 'behind', available_at = 'infinity' WHERE aggregate = :aggregate"
AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)


async def sweep(database: Database, slice_size: int = 100) -> int:
    return (await run_sweeps(lambda: UnitOfWork(database.write), [STRANDED], slice_size=slice_size))[STRANDED.name]


async def sleepers(database: Database) -> list[Difference]:
    _, found = await run_audit(database)
    return [difference for difference in found if difference.kind == "outbox_sleeper"]


async def test_stranded_events_are_named_woken_and_processed_in_order(ticking: Database) -> None:
    for name in ("a", "b", "c"):
        await append(ticking, *(Tick(name=name, number=number) for number in range(3)))
    await rows(ticking, STRAND, aggregate="tick/a")
    await rows(ticking, STRAND, aggregate="tick/c")
    found = await sleepers(ticking)
    assert [difference.subject["aggregate"] for difference in found] == ["tick/a", "tick/c"]
    assert found[0].message == "outbox row 1 of tick/a waits for an earlier event that is gone"

    assert await sweep(ticking, slice_size=1) == 2
    assert await sleepers(ticking) == []
    await drain(processor(ticking))

    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]
    for name in ("a", "b", "c"):
        assert [number for other, number in await effects(ticking) if other == name] == [0, 1, 2]


async def test_the_job_logs_what_it_woke(ticking: Database) -> None:
    ctx = {"worker": SimpleNamespace(open_unit_of_work=lambda: UnitOfWork(ticking.write))}
    await append(ticking, Tick(name="a"))
    await rows(ticking, STRAND, aggregate="tick/a")
    with capture_logs() as logged:
        await wake_stranded_events(ctx)
        await wake_stranded_events(ctx)
    assert [(line["level"], line["aggregates"]) for line in logged] == [("error", 1)]


async def test_events_that_wait_for_something_are_left_asleep(ticking: Database) -> None:
    await append(ticking, *(Tick(name="retried", number=number) for number in range(3)))
    await drain(processor(ticking, TickHandler(lambda one: one.event.name == "retried"), retry=LATER))
    await append(ticking, *(Tick(name="dead", number=number) for number in range(3)))
    await drain(processor(ticking, TickHandler(lambda one: one.event.name == "dead"), retry=AT_ONCE_DEAD))
    before = await rows(ticking, ASLEEP)
    assert [aggregate for aggregate, _ in before] == ["tick/dead", "tick/retried"]

    assert await sweep(ticking) == 0
    assert await rows(ticking, ASLEEP) == before
    assert await sleepers(ticking) == []


async def test_a_dead_letter_that_blocks_nothing_and_a_deferred_event_wake_no_one(ticking: Database) -> None:
    await append(ticking, *(Tick(name="a", number=number) for number in range(3)))
    await rows(
        ticking,
        "WITH taken AS (DELETE FROM outbox WHERE position = 1 RETURNING *)"
        " INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, blocks)"
        " SELECT position, event_id, aggregate, type, 1, 'ValueError: no', false FROM taken",
    )
    await rows(ticking, STRAND, aggregate="tick/a")
    await rows(ticking, "UPDATE outbox SET waits = 'asked', available_at = now() + interval '1 day' WHERE position = 2")
    assert [difference.subject["position"] for difference in await sleepers(ticking)] == [3]
    assert await sweep(ticking) == 1
    await drain(processor(ticking))
    assert await effects(ticking) == [("a", 2)]


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_slice_looks_at_each_aggregate_once_however_many_events_it_has(
    ticking: Database, analyzed: bool
) -> None:
    await rows(
        ticking,
        "INSERT INTO outbox (event_id, aggregate, type, available_at, waits)"
        " SELECT gen_random_uuid(), 'tick/' || n % 20, 'test.tick', 'infinity', 'behind'"
        " FROM generate_series(1, 20000) AS n",
    )
    if analyzed:
        await rows(ticking, "ANALYZE outbox")
    async with UnitOfWork(ticking.write) as uow:
        taken = await take_slice(uow, STRANDED, Waiting("tick/10", False), 5)
        assert (taken.ended, taken.last) == (5, Waiting("tick/15", True))
        read = Statement(
            "SELECT sum(seq_tup_read + idx_tup_fetch) AS rows FROM pg_stat_xact_user_tables WHERE relname = 'outbox'"
        )
        assert (await uow.outbox.sql.fetch(read))[0]["rows"] < 100


async def test_a_busy_outbox_with_failures_replays_and_discards_has_no_stranded_event_at_any_moment(
    ticking: Database,
) -> None:
    chance = random.Random(7)
    names = [f"n{number}" for number in range(10)]
    finished = asyncio.Event()
    twice = RetryPolicy(max_attempts=2, base=0.001, cap=0.002)

    async def write() -> None:
        for number in range(30):
            await append(ticking, *(Tick(name=name, number=number) for name in names))

    async def work() -> None:
        engine = processor(ticking, TickHandler(lambda _: chance.random() < 0.1), retry=twice, batch_size=9)
        while not finished.is_set():
            await tolerant(drain(engine))
            await asyncio.sleep(0.002)

    async def operate() -> None:
        while not finished.is_set():
            for position in await rows(ticking, "SELECT position FROM dead_letters ORDER BY position LIMIT 3"):
                act = chance.choice((control.replay, control.discard))
                async with UnitOfWork(ticking.write) as uow:
                    await act(uow, Selection(position=position), By("an operator", "because"))
                    await uow.commit()
            await asyncio.sleep(0.005)

    async def look() -> int:
        looks = 0
        while not finished.is_set():
            assert await sleepers(ticking) == []
            assert await sweep(ticking, slice_size=3) == 0
            looks += 1
        return looks

    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        for _ in range(2):
            group.create_task(work())
        group.create_task(operate())
        await write()
        while await rows(ticking, "SELECT 1 FROM outbox UNION ALL SELECT 1 FROM dead_letters LIMIT 1"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        finished.set()
    assert looking.result() > 5
