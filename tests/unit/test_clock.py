"""A process follows the database's clock once it has compared it with its own."""

from datetime import UTC, datetime, timedelta
from time import monotonic, time

import pytest

from services.clock import CLOCK, Clock
from services.fields import id_at, new_id, now
from tests.clocks import shift_the_host, step_the_host

HOUR = 3600.0
TWO_YEARS = 2 * 365 * 24 * HOUR


def is_now(moment: datetime) -> bool:
    return abs(moment - datetime.now(UTC)) < timedelta(seconds=30)


def made_at(moment: datetime) -> bool:
    """Whether an id that is made now has a time near that moment."""
    return id_at(moment - timedelta(seconds=30)) < new_id() < id_at(moment + timedelta(seconds=30))


def test_before_the_first_comparison_the_clock_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    shift_the_host(monkeypatch, TWO_YEARS)
    assert is_now(now() - timedelta(seconds=TWO_YEARS))
    assert made_at(datetime.now(UTC) + timedelta(seconds=TWO_YEARS))


@pytest.mark.parametrize("seconds", [-TWO_YEARS, -HOUR, -2, 2, HOUR, TWO_YEARS])
def test_times_and_ids_follow_the_database(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_the_host(monkeypatch, seconds)
    CLOCK.follow(time(), monotonic(), 0.001)
    assert is_now(now())
    assert made_at(datetime.now(UTC))


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_step_of_the_hosts_clock_affects_neither_times_nor_ids(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_the_host(monkeypatch, 0)
    CLOCK.follow(time(), monotonic(), 0.001)
    step_the_host(monkeypatch, seconds)
    assert is_now(now())
    assert made_at(datetime.now(UTC))


@pytest.mark.parametrize("seconds", [-1.5, 1.5])
def test_an_id_is_within_a_second_of_the_database(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLOCK, "_lead", None)
    CLOCK.follow(time() + seconds, monotonic(), 0.001)
    assert abs((new_id().int >> 80) / 1000 - CLOCK.time()) < 1


def test_a_slow_trip_does_not_move_the_clock() -> None:
    clock = Clock()
    clock.follow(1000.0, monotonic(), 0.001)
    clock.follow(1000.4, monotonic(), 0.5)
    assert 1000.0 <= clock.time() < 1000.3
    clock.follow(1000.4, monotonic(), 0.001)
    assert clock.time() >= 1000.4
