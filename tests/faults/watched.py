"""Compares what the API says about the outbox with what is in it, all the time, while something else happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx2
import psycopg
from prometheus_client.parser import text_string_to_metric_families

KEPT = 5.0
"""Seconds for which the API may reuse what it has read, as its documentation says."""

SLACK = 50
"""Events that may come and go between two looks at the outbox: new orders of the clients, and a batch."""

_LOOK = 0.05
"""Seconds between looks at the outbox."""

_READ = 0.4
"""Seconds between rounds of requests."""


@dataclass(frozen=True, slots=True)
class Said:
    """A number of waiting events that the API has told, which was right at some time from `since` to `until`."""

    where: str
    number: float
    since: float
    until: float


@dataclass
class Watch:
    """What was told, and what was true, from entry to exit of `watched`."""

    client: httpx2.AsyncClient
    scraper: httpx2.AsyncClient
    truths: list[tuple[float, int]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    confirmed: int = 0
    rounds: int = 0

    async def get(self, path: str) -> Any:
        reply = await self.client.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def metric(self, name: str) -> float:
        """The sum of the samples of this name on the API's `/metrics`."""
        return total((await self.scraper.get("/metrics")).text, name)

    async def look(self) -> None:
        """Ask each route once, and note the numbers."""
        await self._note("/internal/scaling", self._scaling, KEPT)
        await self._note("/metrics", lambda: self.metric("waybill_outbox_waiting_events"), KEPT)
        await self._note("/v1/operations/types", self._types)
        await self._note("/v1/operations/backlog", self._backlog)
        if dead := await self.metric("waybill_dead_letters"):
            self.wrong.append(f"/metrics told of {dead} dead letters")
        self.rounds += 1

    async def _note(self, where: str, ask: Callable[[], Awaitable[float]], kept: float = 0.0) -> None:
        asked = monotonic()
        number = await ask()
        self.said.append(Said(where, number, asked - kept, monotonic()))

    async def _scaling(self) -> float:
        reply = (await self.scraper.get("/internal/scaling")).json()
        if reply["total"] != sum(reply["events"].values()):
            self.wrong.append(f"/internal/scaling contradicts itself: {reply}")
        return float(reply["total"])

    async def _types(self) -> float:
        return float(sum(one["ready"] + one["waiting"] for one in await self.get("/v1/operations/types")))

    async def _backlog(self) -> float:
        told = await self.get("/v1/operations/backlog")
        confirmed = told["orders_by_status"]["confirmed"]
        if told["orders_precision"] == "exact" and confirmed < self.confirmed:
            self.wrong.append(f"{self.confirmed} orders were confirmed, and later only {confirmed}")
        self.confirmed = confirmed
        return float(told["waiting"])

    def lies(self) -> list[str]:
        """What was told and was not true at any time at which it may have been read."""
        found = list(self.wrong)
        for one in self.said:
            # From the last look before to the first one after.
            before = max((at for at, _ in self.truths if at <= one.since), default=self.truths[0][0])
            after = min((at for at, _ in self.truths if at >= one.until), default=self.truths[-1][0])
            numbers = [number for at, number in self.truths if before <= at <= after]
            if not min(numbers) - SLACK <= one.number <= max(numbers) + SLACK:
                found.append(f"{one.where} said {one.number}, but {min(numbers)} to {max(numbers)} events waited")
        return found


@asynccontextmanager
async def watched(database_url: str, client: httpx2.AsyncClient, scraper: httpx2.AsyncClient) -> AsyncIterator[Watch]:
    """Look at the outbox and ask the API until exit. `scraper` sends the token of the metrics."""
    watch = Watch(client, scraper)

    async def look_at_the_outbox(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        while True:
            (number,) = await (await connection.execute("SELECT count(*) FROM outbox")).fetchone() or (0,)
            watch.truths.append((monotonic(), number))
            await asyncio.sleep(_LOOK)

    async def ask() -> None:
        while True:
            await watch.look()
            await asyncio.sleep(_READ)

    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        looking = asyncio.create_task(look_at_the_outbox(connection))
        asking = asyncio.create_task(ask())
        try:
            yield watch
            # The last numbers are compared with a look that came after them.
            asking.cancel()
            await asyncio.sleep(3 * _LOOK)
        finally:
            for task in (asking, looking):
                task.cancel()
            ended = await asyncio.gather(asking, looking, return_exceptions=True)
        watch.wrong += [repr(error) for error in ended if not isinstance(error, asyncio.CancelledError)]


def total(exposition: str, name: str) -> float:
    """The sum of the samples of this name, whatever their labels."""
    families = text_string_to_metric_families(exposition)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
