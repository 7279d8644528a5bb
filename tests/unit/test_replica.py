"""Positions in the write-ahead log: how they are written, compared and looked up."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.api import reads
from services.replica import UNKNOWN, Position, Positions


@pytest.mark.parametrize(
    "position", [Position(7312500000000000000, 1, 0x16B3748), Position(2**64 - 1, 2**32 - 1, 2**64 - 1)]
)
def test_a_position_is_read_as_it_was_written(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert str(position).isascii()


@pytest.mark.parametrize(
    "wrong", ["", "-", "1-1", "1-1-g", "1-1-a", "1-1-1\n", " 1-1-1", "1-1-1-1", "\u0661-1-1", "1-1-0x1"]
)
def test_what_is_not_a_position_is_none(wrong: str) -> None:
    assert Position.parse(wrong) is None


def test_only_positions_of_one_cluster_and_timeline_can_be_compared() -> None:
    one = Position(1, 1, 5)
    assert one.has_history_of(Position(1, 1, 9))
    assert not one.has_history_of(Position(1, 2, 5))
    assert not one.has_history_of(Position(2, 1, 5))
    assert not one.has_history_of(UNKNOWN)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0.0"), (0.01, "0.1"), (0.1, "0.1"), (0.61, "0.7"), (12.0, "12.0")]
)
def test_a_lag_is_rounded_up(seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "monotonic", lambda: 0.0)
    assert reads.shown_lag(-seconds) == shown


class Primary(Positions):
    """Answers each look when the test says so, with the number of commits at that moment."""

    def __init__(self) -> None:
        super().__init__(cast(AsyncEngine, None))
        self.commits = 0
        self.looks = 0
        self.may_answer = asyncio.Event()

    async def _ask(self) -> Any:
        self.looks += 1
        seen = self.commits
        await self.may_answer.wait()
        return SimpleNamespace(system=1, timeline="00000001", lsn=seen)


async def test_callers_at_the_same_time_share_a_look() -> None:
    primary = Primary()
    primary.may_answer.set()
    found = await asyncio.gather(*(primary.now() for _ in range(100)))
    assert set(found) == {Position(1, 1, 0)}
    assert primary.looks == 1


async def test_a_look_that_began_before_the_commit_is_not_its_answer() -> None:
    primary = Primary()
    first = asyncio.create_task(primary.now())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert primary.looks == 1
    primary.commits = 1
    later = [asyncio.create_task(primary.now()) for _ in range(10)]
    await asyncio.sleep(0)
    primary.may_answer.set()
    assert await first == Position(1, 1, 0)
    assert set(await asyncio.gather(*later)) == {Position(1, 1, 1)}
    assert primary.looks == 2


async def test_a_silent_primary_is_not_waited_for_longer_than_a_second() -> None:
    primary = Primary()
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(primary.now(), primary.now())) == {None}
    await primary.close()
