"""Bulk actions: chunks, order, bounds, failures, cancellation, and several workers."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

from services.database import Database
from services.errors import Conflict, InvalidInput, NotFound
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkKind, BulkState
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control.schemas import By
from services.outbox.models import FailureReason, Waits
from services.outbox.subscription import Discarded, Subscription
from services.totals import Precision
from services.unit_of_work import UnitOfWork
from tests.concurrency.bulk import (
    BURY,
    BY,
    FINGERPRINT,
    counts,
    make_letters,
    run_all,
    run_chunk,
    runner,
    seen,
    start,
    until,
)
from tests.concurrency.ticks import Tick, TickHandler, append, drain, effects, processor, rows
from worker.bulk import BulkRunner
from worker.failures import Failures

OF_KIND = BulkFilter(fingerprint=FINGERPRINT)
DEAD = "SELECT count(*) FROM dead_letters"


def in_order(found: Sequence[tuple[str, int]]) -> bool:
    """Whether the effects of each aggregate took place in their order, and each once."""
    latest: dict[str, int] = {}
    for name, number in found:
        if number != latest.get(name, -1) + 1:
            return False
        latest[name] = number
    return True


async def test_all_dead_letters_of_a_kind_are_replayed_in_chunks_in_the_order_of_each_aggregate(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 7)
    await make_letters(ticking, 10, 3)
    await append(ticking, *(Tick(name=f"n{name}", number=3) for name in range(10)))
    await drain(processor(ticking))
    assert await effects(ticking) == []
    action = await start(ticking, BulkKind.replay, OF_KIND)
    while await run_chunk(ticking):
        await drain(processor(ticking))
    await drain(processor(ticking))
    found = await effects(ticking)
    assert len(found) == 40
    assert in_order(found)
    shown = await seen(ticking, action)
    assert counts(shown) == (BulkState.finished, 30, 0, 0)
    assert (shown.estimate, shown.precision, shown.examined) == (30, Precision.exact, 30)
    told = "SELECT count(*) FROM outbox_actions WHERE action = 'replay' AND detail ->> 'bulk_action' = :id"
    assert await rows(ticking, told, id=str(action)) == [30]
    acts = "SELECT action, details ->> 'by' FROM audit_log WHERE object = :object ORDER BY id"
    assert await rows(ticking, acts, object=f"bulk_action/{action}") == [
        ("bulk_action.started", BY.actor),
        ("bulk_action.finished", BY.actor),
    ]


async def test_only_what_matches_is_touched_and_a_page_of_others_does_not_end_the_action(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "EXAMINED", 5)
    await make_letters(ticking, 12, 1, "other")
    await make_letters(ticking, 3, 1)
    await rows(ticking, "UPDATE dead_letters SET died_at = now() - interval '1 day' WHERE fingerprint = 'other'")
    (yesterday,) = await rows(ticking, "SELECT now() - interval '1 hour'")
    action = await start(ticking, BulkKind.replay, BulkFilter(died_from=yesterday))
    assert await run_all(ticking) == 4
    shown = await seen(ticking, action)
    assert (counts(shown), shown.examined) == ((BulkState.finished, 3, 0, 0), 15)
    assert await rows(ticking, "SELECT count(*) FROM dead_letters WHERE fingerprint = 'other'") == [12]


async def test_dead_letters_are_selected_by_why_they_failed(ticking: Database) -> None:
    await make_letters(ticking, 5, 1)
    await rows(ticking, "UPDATE dead_letters SET reason = 'time_limit' WHERE aggregate IN ('tick/n1', 'tick/n3')")
    action = await start(ticking, BulkKind.replay, BulkFilter(failure_reason=FailureReason.time_limit))
    await run_all(ticking)
    shown = await seen(ticking, action)
    assert (counts(shown), shown.filter) == ((BulkState.finished, 2, 0, 0), {"failure_reason": "time_limit"})
    assert await rows(ticking, "SELECT aggregate FROM outbox ORDER BY 1") == ["tick/n1", "tick/n3"]


async def test_a_filter_that_matches_nothing_ends_at_once_with_nothing_done(ticking: Database) -> None:
    await make_letters(ticking, 3, 1)
    action = await start(ticking, BulkKind.discard, BulkFilter(fingerprint="unknown"))
    assert await run_all(ticking) == 1
    shown = await seen(ticking, action)
    assert (counts(shown), shown.estimate) == ((BulkState.finished, 0, 0, 0), 0)
    assert await rows(ticking, DEAD) == [3]


async def test_it_ends_and_leaves_out_what_dies_after_its_start(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 4)
    await make_letters(ticking, 10, 1)
    action = await start(ticking, BulkKind.replay, OF_KIND)
    # One that comes later in the walk was replayed by hand, and has died again.
    await rows(ticking, "UPDATE dead_letters SET died_at = clock_timestamp() WHERE aggregate = 'tick/n7'")
    chunks = 0
    while await run_chunk(ticking):
        chunks += 1
        # All that was replayed dies again at once, and new events die.
        await append(ticking, *(Tick(name=f"new {chunks} {number}") for number in range(5)))
        await rows(ticking, BURY, fingerprint=FINGERPRINT)
        assert chunks < 10
    assert counts(await seen(ticking, action)) == (BulkState.finished, 9, 0, 0)
    assert await rows(ticking, DEAD) == [10 + 5 * chunks]


async def test_discarding_wakes_what_waited_and_tells_the_subscription_on_whose_behalf(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 2)
    await make_letters(ticking, 5, 1)
    await append(ticking, *(Tick(name=f"n{name}", number=1) for name in range(5)))
    await drain(processor(ticking))
    told: list[tuple[str, str | None]] = []

    async def note(uow: UnitOfWork, discarded: Sequence[Discarded]) -> None:
        told.extend((one.aggregate, uow.acting.actor) for one in discarded)

    async with UnitOfWork(ticking.write) as uow:
        uow.act_as("user:7", 7)
        action = (await bulk.start(uow, BulkKind.discard, OF_KIND, BY)).id
        await uow.commit()
    await run_all(ticking, [Subscription(Tick, TickHandler(), on_discard=note)])
    assert sorted(told) == [(f"tick/n{name}", "user:7") for name in range(5)]
    await drain(processor(ticking))
    assert sorted(await effects(ticking)) == [(f"n{name}", 1) for name in range(5)]
    assert counts(await seen(ticking, action)) == (BulkState.finished, 5, 0, 0)


async def test_an_event_that_cannot_be_discarded_is_counted_and_the_others_are_discarded(ticking: Database) -> None:
    await make_letters(ticking, 20, 1)

    async def refuse(uow: UnitOfWork, discarded: Sequence[Discarded]) -> None:
        if any(one.aggregate in ("tick/n3", "tick/n11") for one in discarded):
            raise ValueError("not this one")

    action = await start(ticking, BulkKind.discard, OF_KIND)
    await run_all(ticking, [Subscription(Tick, TickHandler(), on_discard=refuse)])
    shown = await seen(ticking, action)
    assert counts(shown) == (BulkState.finished, 18, 2, 0)
    assert shown.error is not None
    assert shown.error.endswith("ValueError: not this one")
    left = await rows(ticking, "SELECT aggregate FROM dead_letters ORDER BY position")
    assert left == ["tick/n3", "tick/n11"]
    assert await rows(ticking, "SELECT count(*) FROM outbox_actions") == [18]


async def test_more_failures_than_one_transaction_can_isolate_are_left_to_the_next_chunk(ticking: Database) -> None:
    await make_letters(ticking, 60, 1)

    async def refuse(uow: UnitOfWork, discarded: Sequence[Discarded]) -> None:
        raise ValueError("none of them")

    action = await start(ticking, BulkKind.discard, OF_KIND)
    chunks = await run_all(ticking, [Subscription(Tick, TickHandler(), on_discard=refuse)])
    assert chunks > 1
    assert counts(await seen(ticking, action)) == (BulkState.finished, 0, 60, 0)


async def test_a_cancelled_action_stops_where_it_is(ticking: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 4)
    await make_letters(ticking, 10, 1)
    action = await start(ticking, BulkKind.replay, OF_KIND)
    assert await run_chunk(ticking)
    async with UnitOfWork(ticking.write) as uow:
        await bulk.cancel(uow, action, By("another", "wrong kind"))
        await uow.commit()
    assert not await run_chunk(ticking)
    shown = await seen(ticking, action)
    assert counts(shown) == (BulkState.cancelled, 4, 0, 0)
    assert (shown.cancelled_by, shown.cancel_reason) == ("another", "wrong kind")
    assert await rows(ticking, DEAD) == [6]
    async with UnitOfWork(ticking.write) as uow:
        with pytest.raises(Conflict, match="already cancelled"):
            await bulk.cancel(uow, action, BY)
        with pytest.raises(NotFound):
            await bulk.cancel(uow, uuid4(), BY)


async def test_a_cancellation_waits_for_the_chunk_that_is_running(ticking: Database) -> None:
    await make_letters(ticking, 3, 1)
    action = await start(ticking, BulkKind.replay, OF_KIND)

    async def cancel() -> None:
        async with UnitOfWork(ticking.write) as uow:
            await bulk.cancel(uow, action, BY)
            await uow.commit()

    async with UnitOfWork(ticking.write) as uow:
        claimed = await uow.bulk.take()
        assert claimed is not None
        await bulk.advance(uow, claimed, (), uuid4())
        cancelling = asyncio.create_task(cancel())
        await asyncio.sleep(0.2)
        assert not cancelling.done()
        await uow.commit()
    with pytest.raises(Conflict, match="already finished"):
        await cancelling
    assert counts(await seen(ticking, action)) == (BulkState.finished, 3, 0, 0)


async def test_two_workers_never_run_the_same_action_at_once_and_share_several(ticking: Database) -> None:
    await make_letters(ticking, 3, 1)
    first = await start(ticking, BulkKind.replay, OF_KIND)
    async with UnitOfWork(ticking.write) as one, UnitOfWork(ticking.write) as other:
        claimed = await one.bulk.take()
        assert claimed is not None
        assert claimed.id == first
        assert await other.bulk.take() is None
    second = await start(ticking, BulkKind.replay, BulkFilter(type="test.tick"))
    async with UnitOfWork(ticking.write) as one, UnitOfWork(ticking.write) as other:
        found = [await one.bulk.take(), await other.bulk.take()]
        assert {claimed.id for claimed in found if claimed is not None} == {first, second}


async def test_several_workers_replay_each_letter_once(ticking: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 5)
    await make_letters(ticking, 50, 4)
    action = await start(ticking, BulkKind.replay, OF_KIND)
    both = await start(ticking, BulkKind.replay, BulkFilter(type="test.tick"))
    async with runner(ticking), runner(ticking), runner(ticking), asyncio.timeout(60):
        while await rows(ticking, "SELECT id FROM bulk_actions WHERE ended_at IS NULL"):
            await drain(processor(ticking))
    await drain(processor(ticking))
    found = await effects(ticking)
    assert len(found) == 200
    assert in_order(found)
    assert sum([(await seen(ticking, one)).done for one in (action, both)]) == 200
    assert await rows(ticking, "SELECT count(*) FROM outbox_actions") == [200]


async def test_a_worker_does_not_look_for_actions_while_its_heartbeat_sees_none(ticking: Database) -> None:
    looks = 0

    def open_unit_of_work() -> UnitOfWork:
        nonlocal looks
        looks += 1
        return UnitOfWork(ticking.write)

    one = BulkRunner(open_unit_of_work, [], uuid4())
    one.expect(False)
    one.start()
    try:
        await asyncio.sleep(2.5)
        assert looks == 1
        await make_letters(ticking, 2, 1)
        action = await start(ticking, BulkKind.replay, OF_KIND)
        one.expect(True)
        assert counts(await until(ticking, action, lambda one: not one.state.is_active))[1] == 2
    finally:
        one.expect(False)
        async with asyncio.timeout(5):
            await one.stop(1)


async def test_a_look_that_failed_is_repeated_even_if_the_heartbeat_sees_no_action(ticking: Database) -> None:
    broken = True

    def open_unit_of_work() -> UnitOfWork:
        if broken:
            raise OSError("no route to the database")
        return UnitOfWork(ticking.write)

    failures = Failures()
    one = BulkRunner(open_unit_of_work, [], uuid4(), failures=failures)
    one.start()
    try:
        async with asyncio.timeout(20):
            while failures.report() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            one.expect(False)
            broken = False
            while failures.report() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await one.stop(1)


async def test_a_heartbeat_during_the_stop_does_not_hold_it_up(ticking: Database) -> None:
    in_chunk, may_end = asyncio.Event(), asyncio.Event()

    class Slow(UnitOfWork):
        async def __aenter__(self) -> "Slow":
            in_chunk.set()
            await may_end.wait()
            return await super().__aenter__()

    one = BulkRunner(lambda: Slow(ticking.write), [], uuid4())
    one.start()
    await in_chunk.wait()
    stopping = asyncio.create_task(one.stop(60))
    await asyncio.sleep(0)
    one.expect(False)
    may_end.set()
    async with asyncio.timeout(20):
        await stopping


async def test_a_chunk_that_fails_as_a_whole_is_put_off_and_the_next_one_is_smaller(ticking: Database) -> None:
    await make_letters(ticking, 600, 1)
    action = await start(ticking, BulkKind.replay, OF_KIND)
    async with UnitOfWork(ticking.write) as uow:
        claimed = await uow.bulk.take()
        assert claimed is not None
    async with UnitOfWork(ticking.write) as uow:
        await bulk.put_off(uow, claimed, TimeoutError("too slow"), uuid4())
        await uow.commit()
    shown = await seen(ticking, action)
    assert (shown.tries, shown.error, shown.state) == (1, "TimeoutError: too slow", BulkState.waiting)
    assert not await run_chunk(ticking)
    await rows(ticking, "UPDATE bulk_actions SET retry_at = now()")
    assert await run_chunk(ticking)
    shown = await seen(ticking, action)
    assert (shown.tries, shown.done, shown.state) == (0, 250, BulkState.running)
    await run_all(ticking)
    assert counts(await seen(ticking, action)) == (BulkState.finished, 600, 0, 0)


async def test_an_action_waits_for_a_lock_and_says_so_meanwhile(ticking: Database) -> None:
    await make_letters(ticking, 3, 1)
    async with ticking.engine.begin() as connection:
        await connection.exec_driver_sql("SELECT FROM dead_letters WHERE aggregate = 'tick/n1' FOR UPDATE")
        action = await start(ticking, BulkKind.replay, OF_KIND)
        async with runner(ticking):
            shown = await until(ticking, action, lambda one: one.tries > 0)
    assert shown.state is BulkState.waiting
    assert shown.error is not None
    assert "55P03" in shown.error
    async with runner(ticking):
        shown = await until(ticking, action, lambda one: not one.state.is_active)
    assert (counts(shown), shown.tries) == ((BulkState.finished, 3, 0, 0), 0)


async def test_events_that_wait_are_made_due_or_buried_by_kind(ticking: Database) -> None:
    await append(ticking, *(Tick(name=f"n{name}", number=number) for number in range(2) for name in range(6)))
    await drain(processor(ticking, TickHandler(lambda claimed: claimed.event.name in ("n1", "n2", "n3"))))
    waiting = "SELECT count(*) FROM outbox WHERE waits = 'retry' AND available_at > now()"
    assert await rows(ticking, waiting) == [3]
    (kind,) = await rows(ticking, "SELECT DISTINCT failures -> -1 ->> 'fingerprint' FROM outbox WHERE waits = 'retry'")
    retried = await start(ticking, BulkKind.retry_now, BulkFilter(fingerprint=kind, aggregate="tick/n2"))
    await run_all(ticking)
    assert counts(await seen(ticking, retried)) == (BulkState.finished, 1, 0, 0)
    assert await rows(ticking, waiting) == [2]
    buried = await start(ticking, BulkKind.bury, BulkFilter(waits=Waits.retry))
    await run_all(ticking)
    assert counts(await seen(ticking, buried)) == (BulkState.finished, 3, 0, 0)
    assert await rows(ticking, "SELECT aggregate FROM dead_letters ORDER BY 1") == ["tick/n1", "tick/n2", "tick/n3"]
    replayed = await start(ticking, BulkKind.replay, OF_KIND, everything=False)
    await run_all(ticking)
    assert (await seen(ticking, replayed)).done == 0
    await start(ticking, BulkKind.replay, BulkFilter(), everything=True)
    await run_all(ticking)
    await drain(processor(ticking))
    found = await effects(ticking)
    assert len(found) == 12
    assert in_order(found)


async def test_an_event_that_a_worker_is_processing_is_skipped(ticking: Database) -> None:
    await append(ticking, Tick(name="a"), Tick(name="b"))
    await drain(processor(ticking, TickHandler(lambda _: True)))
    action = await start(ticking, BulkKind.bury, BulkFilter(type="test.tick"))
    async with ticking.engine.begin() as connection:
        await connection.exec_driver_sql("SELECT FROM outbox WHERE aggregate = 'tick/a' FOR UPDATE")
        await run_all(ticking)
    assert counts(await seen(ticking, action)) == (BulkState.finished, 1, 0, 1)


async def test_a_preview_counts_up_to_a_bound_and_shows_the_first_events(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_letters(ticking, 30, 1)
    async with UnitOfWork(ticking.write) as uow:
        found = await bulk.preview(uow, BulkKind.replay, OF_KIND)
    assert (found.total.value, found.total.precision) == (30, Precision.exact)
    assert [one.aggregate for one in found.sample] == [f"tick/n{name}" for name in range(20)]
    assert {(one.type, one.fingerprint, one.message) for one in found.sample} == {
        ("test.tick", FINGERPRINT, "ValueError: no")
    }
    monkeypatch.setattr("services.outbox.bulk.repository.MAX_COUNTED", 20)
    await rows(ticking, "ANALYZE dead_letters")
    async with UnitOfWork(ticking.write) as uow:
        found = await bulk.preview(uow, BulkKind.replay, OF_KIND)
    assert (found.total.value, found.total.precision) == (30, Precision.estimate)


@pytest.mark.parametrize(
    ("kind", "wanted", "reason", "said"),
    [
        (BulkKind.replay, OF_KIND, " ", "a reason is required"),
        (BulkKind.replay, BulkFilter(), "why", "is empty"),
        (BulkKind.replay, BulkFilter(waits=Waits.retry), "why", "does not fit the action replay"),
        (BulkKind.bury, BulkFilter(waits=Waits.behind), "why", "does not fit the action bury"),
    ],
)
async def test_an_action_needs_a_reason_and_a_filter_that_fits(
    ticking: Database, kind: BulkKind, wanted: BulkFilter, reason: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await start(ticking, kind, wanted, By("an operator", reason))
    assert await rows(ticking, "SELECT count(*) FROM bulk_actions") == [0]
