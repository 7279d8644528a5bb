"""The same random requests through groups and through the single path: equal replies, equal rows, equal books.

Requests arrive while a commit is under way, so that they wait together. The single path then gets them one after
another, in the order in which they took effect: what cannot be carried out in a group overtakes the queue.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings

from services.api.turns import Alone, Intent, Outcome
from tests.concurrency.groups.watch import Watch
from tests.concurrency.groups.wishes import Again, Meanwhile, Wave, Wish, first_ones, waves
from tests.concurrency.groups.world import Answer, Names, World, open_world
from tests.conftest import Administrator, settings_for, temporary_database
from tests.servers import TestServers

EXAMPLES = 400 if os.environ.get("WAYBILL_TEST_LONG") else 30


@dataclass
class Sent:
    """A request, and what came back."""

    number: int
    wish: Wish
    reply: httpx2.Response | None = None


@dataclass
class Pair:
    """Two worlds, one with and one without groups."""

    grouped: World
    single: World
    watch: Watch
    order: list[int] = field(default_factory=list)
    """The numbers of the requests of a wave, in the order in which they took effect."""
    sizes: Counter[int] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)

    async def compare(self, all_waves: Sequence[Wave]) -> None:
        await self.grouped.reset()
        await self.single.reset()
        sent: list[Sent] = []
        course: list[Meanwhile | Sent] = []
        for wave in all_waves:
            await self.grouped.meanwhile(wave.before)
            arrived = await self._send_at_once(wave, sent)
            course += [wave.before, *arrived]
        replies = [one.reply for one in sent]
        for step in course:
            if isinstance(step, Meanwhile):
                await self.single.meanwhile(step)
            else:
                step.reply = await self.single.send(step.number, step.wish)
        found = await self._told(self.grouped, replies)
        expected = await self._told(self.single, [one.reply for one in sent])
        assert found[0] == expected[0]
        assert found[1].keys() == expected[1].keys()
        for table, rows in expected[1].items():
            assert found[1][table] == rows, table
        self.sizes += await self.grouped.group_sizes()
        self.statuses += Counter(answer.status for answer in found[0])

    async def _send_at_once(self, wave: Wave, sent: list[Sent]) -> list[Sent]:
        """Send the requests while commits are under way; returns them in the order in which they took effect."""
        self.order.clear()
        first, tasks, before = first_ones(), [], len(sent)
        self.watch.close(len(first))
        try:
            for number, wish in enumerate(first, start=1):
                tasks.append(self._start(wish, sent))
                await self.watch.until_held(number)
            for one in wave.wishes:
                wish = one.of([each.wish for each in sent]) if isinstance(one, Again) else one
                task = self._start(wish, sent)
                tasks.append(task)
                await self.watch.until_joined(task)
        finally:
            self.watch.open()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert sorted(self.order) == list(range(before, len(sent)))
        return [sent[number] for number in self.order]

    def note_order(self, patch: pytest.MonkeyPatch) -> None:
        """Note the requests that take effect in groups as they do."""
        settle = Intent.settle

        def note_outcome(intent: Intent[Any], outcome: Outcome) -> None:
            if not intent.outcome.done() and not isinstance(outcome, Alone):
                self.order.append(int(intent.request.headers["x-request-id"].removeprefix("request-")))
            settle(intent, outcome)

        patch.setattr(Intent, "settle", note_outcome)

    def _start(self, wish: Wish, sent: list[Sent]) -> "asyncio.Task[None]":
        one = Sent(len(sent), wish)
        sent.append(one)

        async def send() -> None:
            one.reply = await self.grouped.send(one.number, wish)
            if one.number not in self.order:
                self.order.append(one.number)

        return asyncio.create_task(send())

    async def _told(
        self, world: World, replies: Sequence[httpx2.Response | None]
    ) -> tuple[list[Answer], dict[str, list[str]]]:
        names = Names()
        answers = [names.answer(number, reply) for number, reply in enumerate(replies) if reply is not None]
        assert len(answers) == len(replies)
        assert not any((await world.books()).values()), world.name
        return answers, await world.everything(names)


class Twins:
    """Runs examples on a pair of worlds; after a failure on a new one, so that the next example begins the same."""

    def __init__(self, administrator: Administrator, servers: TestServers, template: str, redis_url: str) -> None:
        self._database = partial(temporary_database, administrator, servers, template)
        self._redis_url = redis_url
        self.runner = asyncio.Runner()
        self._pair: tuple[ExitStack, AsyncExitStack, Pair] | None = None
        self.sizes: Counter[int] = Counter()
        self.statuses: Counter[int] = Counter()

    def run(self, all_waves: Sequence[Wave]) -> None:
        pair = self._pair[2] if self._pair else self._open()
        try:
            self.runner.run(pair.compare(all_waves))
        except BaseException:
            self.close()
            raise
        self.sizes, self.statuses = self.sizes + pair.sizes, self.statuses + pair.statuses
        pair.sizes.clear()
        pair.statuses.clear()

    def _open(self) -> Pair:
        outside, inside, watch = ExitStack(), AsyncExitStack(), Watch()
        worlds = {}
        for name in ("grouped", "single"):
            settings = settings_for(outside.enter_context(self._database()), self._redis_url)
            settings = settings.model_copy(update={"group_commit": name == "grouped", "group_commit_wait": 60.0})
            worlds[name] = self.runner.run(inside.enter_async_context(open_world(name, settings)))
        pair = Pair(worlds["grouped"], worlds["single"], watch)
        assert (pair.single.users, pair.single.products) == (pair.grouped.users, pair.grouped.products)
        patch = outside.enter_context(pytest.MonkeyPatch.context())
        watch.install(patch, largest_groups=False)
        pair.note_order(patch)
        self._pair = (outside, inside, pair)
        return pair

    def close(self) -> None:
        if self._pair:
            outside, inside, _ = self._pair
            self._pair = None
            self.runner.run(inside.aclose())
            outside.close()


@pytest.fixture
def twins(
    administrator: Administrator, servers: TestServers, template_database: str, redis_url: str
) -> Iterator[Twins]:
    made = Twins(administrator, servers, template_database, redis_url)
    try:
        yield made
    finally:
        made.close()
        made.runner.close()


def test_groups_answer_and_write_what_the_single_path_does(twins: Twins) -> None:
    @given(waves())
    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    def example(all_waves: list[Wave]) -> None:
        twins.run(all_waves)

    example()
    # Otherwise it proves little.
    assert twins.statuses.keys() >= {200, 201, 400, 401, 402, 409, 422}, twins.statuses
    assert twins.statuses[201] > twins.statuses.total() / 3, twins.statuses
    assert sum(number for size, number in twins.sizes.items() if size >= 4) >= EXAMPLES / 2, twins.sizes
