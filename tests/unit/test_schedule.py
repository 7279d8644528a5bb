"""When a schedule is due next, and how it is described."""

from datetime import UTC, datetime, timedelta

import pytest

from worker.jobs.schedule import Schedule

QUARTERS = Schedule(second=frozenset({0, 15, 30, 45}))
HOURLY = Schedule(minute=35)
DAILY = Schedule(hour=0, minute=10)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "before", "expected"),
    [
        (QUARTERS, "11-27T10:00:14.999999", "11-27T10:00:15"),
        (QUARTERS, "11-27T10:00:15", "11-27T10:00:30"),
        (QUARTERS, "11-27T10:00:15.000001", "11-27T10:00:30"),
        (QUARTERS, "11-27T23:59:45", "11-28T00:00:00"),
        (HOURLY, "11-27T10:34:59.9", "11-27T10:35:00"),
        (HOURLY, "11-27T10:35:00", "11-27T11:35:00"),
        (DAILY, "11-27T00:09:59.5", "11-27T00:10:00"),
        (DAILY, "02-28T00:10:00", "03-01T00:10:00"),
    ],
)
def test_the_next_time_is_the_first_later_one(schedule: Schedule, before: str, expected: str) -> None:
    assert schedule.next_after(at(before)) == at(expected)


def test_times_are_utc_in_whatever_zone_the_question_is() -> None:
    there = at("11-27T00:05:00").astimezone(tz=None)
    assert DAILY.next_after(there) - there == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (QUARTERS, "each minute, at seconds 0, 15, 30, 45"),
        (Schedule(second=frozenset({30})), "each minute, at second 30"),
        (HOURLY, "each hour, at minute 35"),
        (DAILY, "each day, at 00:10 UTC"),
    ],
)
def test_a_schedule_is_described_in_words(schedule: Schedule, told: str) -> None:
    assert str(schedule) == told
