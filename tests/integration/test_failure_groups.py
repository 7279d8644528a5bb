"""Failures grouped by kind of error, and events that wait, by why they do."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.database import Database
from services.errors import BadQuery, NotFound
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import BUCKETS, GroupsWanted, WaitsFor, Window
from services.outbox.models import FailureReason
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows

LETTERS = (
    "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, reason, died_at)"
    " SELECT nextval('outbox_position_seq'), gen_random_uuid(), 'order/' || n % 3, :type, 5,"
    " 'Traceback' || chr(10) || 'ValueError: ' || n, :fingerprint, :reason, now() - CAST(:ago AS interval) * n"
    " FROM generate_series(1, CAST(:number AS integer)) AS n RETURNING died_at"
)


async def fail(
    database: Database,
    fingerprint: str,
    number: int = 1,
    *,
    ago: timedelta = timedelta(minutes=1),
    type: str = "order.placed",  # noqa: A002
    reason: str | None = "handler_error",
) -> list[datetime]:
    """Make dead letters, one each `ago`; return when they died, the latest first."""
    values = {"fingerprint": fingerprint, "number": number, "ago": ago, "type": type, "reason": reason}
    return await rows(database, LETTERS, **values)


async def listed(database: Database, wanted: GroupsWanted | None = None, **page: Any) -> list[str]:
    async with UnitOfWork(database.write) as uow:
        return [one.fingerprint for one in (await inspection.groups(uow, wanted or GroupsWanted(), **page)).data]


async def test_a_group_tells_how_many_since_when_until_when_and_of_what(database: Database) -> None:
    died = await fail(database, "kind", 5)
    async with UnitOfWork(database.write) as uow:
        (group,) = (await inspection.groups(uow, GroupsWanted())).data
        assert await inspection.group(uow, "kind") == group
        with pytest.raises(NotFound, match="no dead letter has the fingerprint 'other'"):
            await inspection.group(uow, "other")
    assert (group.letters, group.letters_is_more, group.aggregates) == (5, False, 3)
    assert (group.last_at, group.first_at) == (died[0], died[-1])
    assert (group.type, group.reason, group.message) == ("order.placed", "handler_error", "ValueError: 1")


async def test_the_group_that_grew_last_comes_first_and_pages_follow_each_other(database: Database) -> None:
    for number in range(7):
        await fail(database, f"kind {number}", ago=timedelta(minutes=number + 1))
    same_time = await rows(database, "UPDATE dead_letters SET died_at = now() RETURNING fingerprint")
    assert await listed(database) == sorted(same_time)
    await rows(database, "UPDATE dead_letters SET died_at = now() - interval '1 min' * position")
    names = await rows(database, "SELECT fingerprint FROM dead_letters ORDER BY position")
    found: list[str] = []
    cursor = None
    async with UnitOfWork(database.write) as uow:
        while True:
            page = await inspection.groups(uow, GroupsWanted(), 3, cursor)
            found += [one.fingerprint for one in page.data]
            cursor = page.next_cursor
            if not page.has_more:
                break
        for bad in ("x", page.next_cursor or "", "AAAA"):
            with pytest.raises(BadQuery, match="the cursor was not issued by this list"):
                await inspection.groups(uow, GroupsWanted(), 3, bad)
    assert found == names


async def test_a_cursor_of_other_filters_is_refused(database: Database) -> None:
    for number in range(3):
        await fail(database, f"kind {number}")
    async with UnitOfWork(database.write) as uow:
        cursor = (await inspection.groups(uow, GroupsWanted(), 1)).next_cursor
        with pytest.raises(BadQuery):
            await inspection.groups(uow, GroupsWanted(reason=FailureReason.time_limit), 1, cursor)


async def test_groups_are_filtered_by_reason_and_by_type(database: Database) -> None:
    await fail(database, "a", reason="time_limit")
    await fail(database, "b", reason="worker_died", type="other")
    await fail(database, "c", reason=None)
    assert await listed(database, GroupsWanted(reason=FailureReason.time_limit)) == ["a"]
    assert await listed(database, GroupsWanted(type="other")) == ["b"]
    assert await listed(database, GroupsWanted(type="other", reason=FailureReason.time_limit)) == []
    assert sorted(await listed(database)) == ["a", "b", "c"]


@pytest.mark.parametrize("window", Window)
async def test_a_history_counts_what_died_in_each_span_of_time(database: Database, window: Window) -> None:
    await fail(database, "kind", 3, ago=window.span)
    await fail(database, "kind", 2, ago=timedelta(0))
    await fail(database, "kind", 1, ago=2 * BUCKETS * window.span)
    async with UnitOfWork(database.write) as uow:
        history = (await inspection.group(uow, "kind", window)).history
    assert len(history.letters) == BUCKETS
    assert history.letters[-4:] in ([1, 1, 1, 2], [1, 1, 2, 1])
    assert sum(history.letters) == 5
    end = history.starts_at + timedelta(seconds=history.seconds * BUCKETS)
    assert timedelta(0) < end - datetime.now(UTC) <= window.span


async def test_counts_stop_at_what_a_page_may_read_and_say_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(database, "a", 50, ago=timedelta(0))
    monkeypatch.setattr(inspection, "_READ", 48)
    async with UnitOfWork(database.write) as uow:
        alone = await inspection.group(uow, "a")
    assert (alone.letters, alone.letters_is_more, alone.history.letters[-1], alone.history.most) == (48, True, 2, 2)
    await fail(database, "b", 10)
    async with UnitOfWork(database.write) as uow:
        both = {one.fingerprint: one for one in (await inspection.groups(uow, GroupsWanted())).data}
    assert (both["a"].letters, both["a"].letters_is_more) == (24, True)
    assert (both["b"].letters, both["b"].letters_is_more) == (10, False)


async def test_a_selection_by_reason_or_by_positions_takes_only_those(database: Database) -> None:
    await fail(database, "kind", 3)
    await fail(database, "kind", 2, reason="time_limit")
    positions = await rows(database, "SELECT position FROM dead_letters ORDER BY position")
    async with UnitOfWork(database.write) as uow:
        slow = await control.replay(uow, Selection(reason=FailureReason.time_limit), By("ops"), dry_run=True)
        assert [one.position for one in slow.letters] == positions[3:]
        done = await control.replay(uow, Selection(positions=[positions[0], positions[2], 999]), By("ops"))
        await uow.commit()
    assert [one.position for one in done.letters] == [positions[0], positions[2]]
    assert await rows(database, "SELECT position FROM outbox ORDER BY position") == [positions[0], positions[2]]


WAITING = """
    INSERT INTO outbox (event_id, aggregate, type, waits, available_at, last_error, failures)
    SELECT gen_random_uuid(), 'order/' || n, 'order.placed', waits, CAST(until AS timestamptz), error, failures::jsonb
    FROM generate_series(1, 3) AS n, (VALUES
        (NULL, NULL, NULL, NULL),
        ('retry', 'tomorrow', 'Traceback' || chr(10) || 'ValueError: no', '[{"at": "2026-01-01T00:00:00+00:00"}]'),
        ('behind', 'infinity', NULL, NULL), ('begun', 'tomorrow', NULL, NULL), ('unknown', 'now', 'no worker', NULL),
        ('asked', 'tomorrow', NULL, NULL)) AS row(waits, until, error, failures)
"""


async def waiting(database: Database, reason: WaitsFor, event_type: str = "order.placed") -> list[Any]:
    found = []
    cursor = None
    async with UnitOfWork(database.write) as uow:
        while True:
            page = await inspection.waiting(uow, event_type, reason, 2, cursor)
            found += page.data
            cursor = page.next_cursor
            if not page.has_more:
                return found


async def test_waiting_events_are_listed_by_why_they_wait_page_by_page(database: Database) -> None:
    await rows(database, WAITING)
    for reason in WaitsFor:
        found = await waiting(database, reason)
        expected = [] if reason is WaitsFor.paused else ["order/1", "order/2", "order/3"]
        assert [one.aggregate for one in found] == expected, reason
        assert {one.reason for one in found} <= {reason}
        assert await waiting(database, reason, "order.other") == []
    (retried, *_) = await waiting(database, WaitsFor.retry)
    assert (retried.message, retried.failed_at) == ("ValueError: no", datetime(2026, 1, 1, tzinfo=UTC))
    assert retried.until is not None
    assert (await waiting(database, WaitsFor.behind))[0].until is None


async def test_the_ready_events_of_a_paused_type_are_the_paused_ones(database: Database) -> None:
    await rows(database, WAITING)
    async with UnitOfWork(database.write) as uow:
        await control.pause(uow, "order.placed", By("ops"))
        await uow.commit()
    assert await waiting(database, WaitsFor.ready) == []
    assert {one.reason for one in await waiting(database, WaitsFor.paused)} == {WaitsFor.paused}


async def test_types_count_events_by_why_they_wait_and_dead_letters_up_to_a_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows(database, WAITING)
    await fail(database, "kind", 5)
    async with UnitOfWork(database.write) as uow:
        (state,) = await control.types(uow)
    assert state.reasons == {reason.value: 3 for reason in WaitsFor if reason is not WaitsFor.paused}
    assert (state.dead_letters, state.dead_letters_is_more) == (5, False)
    monkeypatch.setattr("services.outbox.control.repository.COUNTED", 4)
    monkeypatch.setattr(control, "COUNTED", 4)
    async with UnitOfWork(database.write) as uow:
        (state,) = await control.types(uow)
    assert (state.dead_letters, state.dead_letters_is_more) == (4, True)
