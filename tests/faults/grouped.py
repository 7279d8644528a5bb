"""Groups of requests to a real API process, whose transactions stop where a test wants them to.

A group forms while the commit of an earlier request is under way. A trigger keeps that commit, and then the group's
own, waiting for an advisory lock that the test holds. Which lock that is, the first word of a request's key says. It
does not queue for the lock: groups limit how long they do that.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import httpx2
import psycopg
import pytest
from psycopg.rows import TupleRow

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.api.audited import run_audit
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.processes import Running, running_api

FIRST, GROUP = "first", "group"
PATHS = pytest.mark.parametrize("path", ["/v1/orders", "/v1/transfers"], ids=["orders", "transfers"])

Reply: TypeAlias = "asyncio.Task[httpx2.Response | None]"
"""A reply to come; None if the connection breaks."""


class Stop(StrEnum):
    """Where the transaction of a group stops."""

    before_commit = "before the commit"
    in_commit = "in the commit"


_STOPS = """
    CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE NOT pg_try_advisory_xact_lock_shared(hashtext('stop ' || split_part(NEW.key, '-', 1))) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER stop_first AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.key LIKE 'first-%%') EXECUTE FUNCTION stop();
    CREATE CONSTRAINT TRIGGER stop_group AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY {when}
    FOR EACH ROW WHEN (NEW.key LIKE 'group-%%') EXECUTE FUNCTION stop();
"""
_STOPPED = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'PgSleep'
"""
_LOCKS = """
    SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted
"""
_HOLD = "SELECT pg_advisory_lock(hashtext('stop ' || %s))"
_LET_GO = "SELECT pg_advisory_unlock(hashtext('stop ' || %s))"

_AGAIN = frozenset({409, 502, 503, 504})


@dataclass(slots=True)
class Sent:
    """One request and what its client has heard."""

    path: str
    by: int
    key: str
    body: bytes
    replies: list[httpx2.Response] = field(default_factory=list)
    final: httpx2.Response | None = None

    @property
    def effect(self) -> str | None:
        """The id of what was made, if it was acknowledged."""
        told = [
            reply.json()["id"]
            for reply in (*self.replies, self.final)
            if reply is not None and reply.status_code == 201
        ]
        assert len(set(told)) <= 1, f"{self.key} was answered with {told}"
        return told[0] if told else None


@dataclass(slots=True)
class Shop:
    """Buyers of whom one can afford nothing, and a product."""

    buyers: Sequence[int]
    poor: int
    seller: int
    product: int

    @classmethod
    async def opened(cls, database: Database, buyers: int = 10) -> "Shop":
        rich = [(await make_user(database, credits="100")).id for _ in range(buyers)]
        poor, seller = await make_user(database), await make_user(database)
        product = await make_product(database, seller=seller, price="2.50")
        return cls(rich, poor.id, seller.id, product.id)

    def requests(self, path: str, word: str, many: int) -> list[Sent]:
        """Requests of different buyers, and one that is refused."""
        sent = [self._request(path, by, f"{word}-{number}") for number, by in enumerate(self.buyers[:many])]
        return sent if word == FIRST else [*sent, self._request(path, self.poor, f"{word}-poor")]

    def _request(self, path: str, by: int, key: str) -> Sent:
        order = {"items": [{"product_id": self.product, "quantity": 1}], "on_insufficient_credits": "refuse"}
        transfer = {"to_user_id": self.seller, "amount": "2.50", "note": key}
        body = {**order, "reference": key} if path == "/v1/orders" else transfer
        return Sent(path, by, key, json.dumps(body).encode())


class Client:
    """Sends requests to one API."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._tokens = Tokens.from_settings(settings)
        self._http = httpx2.AsyncClient(
            base_url=url, timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=200)
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, one: Sent) -> httpx2.Response | None:
        """The reply; None if the connection broke."""
        headers = {
            "Authorization": f"Bearer {self._tokens.make(session_of(one.by))}",
            "Idempotency-Key": one.key,
            "Content-Type": "application/json",
        }
        try:
            reply = await self._http.post(one.path, content=one.body, headers=headers)
        except httpx2.TransportError:
            return None
        one.replies.append(reply)
        return reply

    async def send_until_final(self, one: Sent, seconds: float = 30.0) -> None:
        """Send it with its key until the answer is definite, and once more: that answer stays."""
        async with asyncio.timeout(seconds):
            while (reply := await self.send(one)) is None or reply.status_code in _AGAIN:
                assert reply is None or "retry-after" in reply.headers, reply.text
                await asyncio.sleep(0.1)
        one.final = reply
        again = await self.send(one)
        assert again is not None
        assert (again.status_code, again.content) == (reply.status_code, reply.content), one.key
        assert again.headers["idempotency-replayed"] == "true"

    async def is_ready(self) -> bool:
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx2.TransportError:
            return False

    async def wait_until_ready(self) -> None:
        async with asyncio.timeout(60):
            while not await self.is_ready():  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@asynccontextmanager
async def api_of(settings: Settings, log: Path) -> AsyncIterator[tuple[Running, Client]]:
    """An API process that is ready, and a client of it."""
    with running_api(settings, log) as (process, url):
        async with Client(url, settings) as client:
            await client.wait_until_ready()
            yield process, client


class Stops:
    """Holds the locks that the transactions stop at."""

    def __init__(self, holder: psycopg.AsyncConnection[TupleRow]) -> None:
        self._holder = holder

    async def hold(self, *words: str) -> None:
        for word in words:
            await self._holder.execute(_HOLD, [word])

    async def let_go(self, word: str) -> None:
        await self._holder.execute(_LET_GO, [word])

    async def stopped(self) -> int:
        """Wait until one transaction has stopped; the process id of its backend."""
        async with asyncio.timeout(30):
            while len(found := await (await self._holder.execute(_STOPPED)).fetchall()) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return int(found[0][0])

    async def locks_of(self, pid: int) -> int:
        """How many advisory locks the backend holds; each key of its transaction is one."""
        [(number,)] = await (await self._holder.execute(_LOCKS, [pid])).fetchall()
        return int(number)


@asynccontextmanager
async def stops(database_url: str, where: Stop) -> AsyncIterator[Stops]:
    """Make the transactions of the first request and of the group stop; what is held is let go at the end."""
    when = "IMMEDIATE" if where is Stop.before_commit else "DEFERRED"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as holder:
        await holder.execute(_STOPS.format(when=when).replace("%%", "%").encode())
        yield Stops(holder)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests that have reached the process and wait for a group, behind a first one whose transaction has stopped."""

    first: Reply
    group: list[Sent]
    replies: list[Reply]
    """The replies to the requests of the group, to come."""


async def group_that_waits(client: Client, stopping: Stops, shop: Shop, path: str, many: int = 3) -> Waiting:
    """Requests behind a first one. With one that is refused, four are few enough that they form one group."""
    await stopping.hold(FIRST)
    [first] = shop.requests(path, FIRST, 1)
    ahead = asyncio.create_task(client.send(first))
    await stopping.stopped()
    group = shop.requests(path, GROUP, many)
    replies = [asyncio.create_task(client.send(one)) for one in group]
    # Until all of them have reached the process, even on a busy machine.
    await asyncio.sleep(2)
    return Waiting(ahead, group, replies)


async def group_under_way(
    client: Client, stopping: Stops, shop: Shop, path: str
) -> tuple[list[Sent], "asyncio.Future[list[httpx2.Response | None]]", int]:
    """A group whose transaction has stopped: its requests, their replies to come, and the backend's process id."""
    await stopping.hold(GROUP)
    waiting = await group_that_waits(client, stopping, shop, path)
    await stopping.let_go(FIRST)
    assert (reply := await waiting.first) is not None
    assert reply.status_code == 201, reply.text
    pid = await stopping.stopped()
    assert await stopping.locks_of(pid) >= len(waiting.group), "the requests are not in one transaction"
    return waiting.group, asyncio.gather(*waiting.replies), pid


async def sizes_of_groups(database: Database) -> list[int]:
    """How many replies of the group were stored by each transaction, the most first."""
    return await rows(
        database,
        "SELECT count(*) FROM idempotency_keys WHERE key LIKE 'group-%' GROUP BY xmin::text ORDER BY 1 DESC",
    )


async def assert_replies_are_kept(client: Client, group: Sequence[Sent]) -> None:
    """Each request gets the reply that was stored when it took effect."""
    for one in group:
        reply = await client.send(one)
        assert reply is not None
        assert reply.headers["idempotency-replayed"] == "true"


async def assert_each_took_effect_once(database: Database, client: Client, group: Sequence[Sent]) -> None:
    """Every request gets one definite answer, and what was acknowledged exists exactly once."""
    await asyncio.gather(*(client.send_until_final(one) for one in group))
    statuses = [one.final.status_code for one in group if one.final is not None]
    assert statuses == [201] * (len(group) - 1) + [402]
    for one in group:
        is_order = one.path == "/v1/orders"
        found = (
            "SELECT id::text FROM orders WHERE reference = :key"
            if is_order
            else "SELECT id::text FROM transfers WHERE note = :key"
        )
        ids = await rows(database, found, key=one.key)
        assert ids == ([] if one.effect is None else [one.effect]), one.key
    async with UnitOfWork(database.write) as uow:
        books = await uow.audits.books()
    assert not any(books.values()), books
    assert (await run_audit(database))[1] == []
