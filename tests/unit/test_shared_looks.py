"""All callers share one look, and none waits longer than its patience."""

import asyncio

from services.api.probe import Shared


class Looks:
    """Counts looks, each of which ends when the test says so."""

    def __init__(self) -> None:
        self.number = 0
        self.may_end = asyncio.Event()

    async def look(self) -> int:
        self.number += 1
        await self.may_end.wait()
        return self.number


async def test_simultaneous_callers_share_one_look_and_its_answer_is_kept() -> None:
    looks = Looks()
    looks.may_end.set()
    shared = Shared(looks.look, kept=3600)
    assert await asyncio.gather(*(shared.ask(60) for _ in range(100))) == [1] * 100
    assert await shared.ask(60) == 1
    assert looks.number == 1


async def test_an_old_answer_is_looked_up_again() -> None:
    looks = Looks()
    looks.may_end.set()
    shared = Shared(looks.look, kept=0)
    assert [await shared.ask(60), await shared.ask(60)] == [1, 2]


async def test_callers_neither_wait_for_a_look_that_hangs_nor_start_another() -> None:
    looks = Looks()
    shared = Shared(looks.look, kept=0)
    assert await asyncio.gather(*(shared.ask(0.01) for _ in range(10))) == [None] * 10
    assert await shared.ask(0.01) is None
    assert looks.number == 1
    looks.may_end.set()
    assert await shared.ask(60) == 1
    await shared.close()


async def test_closing_ends_a_look_that_hangs() -> None:
    looks = Looks()
    shared = Shared(looks.look)
    assert await shared.ask(0.01) is None
    await shared.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
