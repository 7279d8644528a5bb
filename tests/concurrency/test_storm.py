"""Writers, workers that die, handlers that fail or kill, a restore: every event takes effect exactly once and in order.

`WAYBILL_TEST_SEED` repeats a run's decisions. Without it each run has a new seed, which is shown if the test fails.
`WAYBILL_TEST_LONG=1` makes the storm twenty times as long.
"""

import asyncio
import multiprocessing
import os
import random
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerProcess

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.fields import now
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.storm import ALL_KINDS, KINDS, TABLES, Dew, Hail, chance, is_away, run
from tests.concurrency.ticks import replay_letter, rows
from tests.conftest import Administrator

WRITERS = 8
WORKERS = 4
NAMES = [f"n{number}" for number in range(12)]
TRANSACTIONS = 25
"""Of each writer."""
LENGTH = 20 if os.environ.get("WAYBILL_TEST_LONG") else 1

TAKE_NUMBERS = text("UPDATE drops SET number = number + :many WHERE name = :name RETURNING number")

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.concurrency.storm", "tests.faults.stepping_worker"])


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("WAYBILL_TEST_SEED") or secrets.randbelow(10**9))


class Storm:
    """One run of the storm: writers, workers and an operator at once, until no event waits."""

    def __init__(self, database: Database, administrator: Administrator, settings: Settings, seed: int) -> None:
        self._database = database
        self._administrator = administrator
        self._settings = settings
        self._seed = seed
        self._workers: list[ForkServerProcess] = []
        self._written = asyncio.Event()
        self._calm = asyncio.Event()
        self.asked: dict[tuple[str, int], datetime] = {}
        """The earliest time at which the deferred events may take effect."""
        self.kills = 0
        self.deaths = 0
        """Workers that a handler has killed."""
        self.restored = False
        self.rolled_back = 0
        self.replayed = 0

    async def blow(self) -> None:
        await rows(self._database, "INSERT INTO drops (name) SELECT unnest(CAST(:names AS text[]))", names=NAMES)
        try:
            self._workers = [self._start_worker(wary=False) for _ in range(WORKERS)]
            async with asyncio.timeout(60 + 120 * LENGTH), asyncio.TaskGroup() as group:
                writers = [group.create_task(self._write(number)) for number in range(WRITERS)]
                group.create_task(self._kill_workers())
                group.create_task(self._operate())
                restoring = group.create_task(self._restore())
                await asyncio.wait([*writers, restoring])
                self._written.set()
                await self._settle()
                self._calm.set()
        finally:
            for worker in self._workers:
                worker.kill()
                worker.join()

    async def _write(self, number: int) -> None:
        dice = random.Random(f"{self._seed} writer {number}")
        for _ in range(TRANSACTIONS * LENGTH):
            # If the database is being replaced, what was not committed is lost.
            with suppress_while_away():
                await self._write_once(dice)
            await asyncio.sleep(dice.choice((0, 0.01, 0.03)))

    async def _write_once(self, dice: random.Random) -> None:
        # In the order of the names, so that writers that wait for each other do not deadlock.
        names = sorted(dice.sample(NAMES, dice.choice((1, 1, 2, 3))))
        async with UnitOfWork(self._database.write) as uow:
            connection = await uow.session.connection()
            for name in names:
                many = dice.randint(1, 4)
                last = (await connection.execute(TAKE_NUMBERS, {"name": name, "many": many})).scalar_one()
                for which in range(last - many + 1, last + 1):
                    self._record(uow, dice, name, which)
            await asyncio.sleep(dice.choice((0, 0, 0, 0.01, 0.1)))
            fate = dice.random()
            if fate < 0.15:
                if fate < 0.05:
                    await uow.check()
                self.rolled_back += 1
            else:
                await uow.commit()

    def _record(self, uow: UnitOfWork, dice: random.Random, name: str, which: int) -> None:
        if dice.random() < 0.1:
            due = now() + timedelta(seconds=dice.random() / 2)
            self.asked[name, which] = due
            uow.record(Dew(name=name, number=which), available_at=due)
        else:
            uow.record(dice.choice(KINDS)(name=name, number=which))

    def _start_worker(self, *, wary: bool) -> ForkServerProcess:
        worker = _PROCESSES.Process(target=run, args=(self._settings, self._seed, wary), daemon=True)
        worker.start()
        return worker

    async def _kill_workers(self) -> None:
        dice = random.Random(f"{self._seed} killer")
        while not self._calm.is_set():
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            for which, worker in enumerate(self._workers):
                if not worker.is_alive():
                    # By a handler: anything else that ends one is an error.
                    assert worker.exitcode == -signal.SIGKILL, f"exit code {worker.exitcode}: seed {self._seed}"
                    self.deaths += 1
                    self._workers[which] = self._start_worker(wary=True)
            which = dice.randrange(WORKERS)
            self._workers[which].kill()
            await asyncio.to_thread(self._workers[which].join)
            self._workers[which] = self._start_worker(wary=True)
            self.kills += 1

    async def _restore(self) -> None:
        """Replace the database by an earlier state of itself, once. Workers and writers keep running."""
        name, dice = make_url(self._settings.database_url).database, random.Random(f"{self._seed} restore")
        await asyncio.sleep(dice.uniform(0.3, 1.0))
        await self._alone(f'CREATE DATABASE "{name}_before" TEMPLATE "{name}"')
        await asyncio.sleep(dice.uniform(0.3, 1.0))
        await self._alone(f'ALTER DATABASE "{name}" RENAME TO "{name}_lost"')
        await self._alone(f'ALTER DATABASE "{name}_before" RENAME TO "{name}"')
        await asyncio.to_thread(self._administrator.execute, f'DROP DATABASE "{name}_lost" WITH (FORCE)'.encode())
        self.restored = True

    async def _alone(self, statement: str) -> None:
        """Run a statement that needs a database without connections."""
        name = make_url(self._settings.database_url).database
        away = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE '{name}%'"
        for _ in range(1000):
            try:
                await asyncio.to_thread(self._administrator.execute, away.encode())
                await asyncio.to_thread(self._administrator.execute, statement.encode())
                return
            except psycopg.errors.ObjectInUse:
                await asyncio.sleep(0.01)
        raise AssertionError("the database is never without connections")

    async def _operate(self) -> None:
        """Replay dead letters; pause, limit and resume types."""
        dice = random.Random(f"{self._seed} operator")
        while not self._calm.is_set():
            await asyncio.sleep(0.05)
            with suppress_while_away():
                await self._operate_once(dice)
        assert self.kills > 0

    async def _operate_once(self, dice: random.Random) -> None:
        if dice.random() < 0.5 or self._written.is_set():
            await self._replay()
        if not self._written.is_set() and dice.random() < 0.2:
            await rows(
                self._database,
                "INSERT INTO outbox_types (type, paused, max_batches) VALUES (:type, :paused, :most)"
                " ON CONFLICT (type) DO UPDATE SET paused = :paused, max_batches = :most",
                type=dice.choice(ALL_KINDS).type,
                paused=dice.random() < 0.4,
                most=dice.choice((None, 1, 2)),
            )

    async def _replay(self) -> None:
        dead = await rows(
            self._database,
            "SELECT dead_letters.position, payload ->> 'name', CAST(payload ->> 'number' AS integer)"
            " FROM dead_letters JOIN events ON events.id = event_id ORDER BY dead_letters.position",
        )
        for position, name, number in dead:
            if chance(self._seed, "replay", name, number) < 0.5 or self._written.is_set():
                async with UnitOfWork(self._database.write) as uow:
                    connection = await uow.session.connection()
                    await connection.execute(
                        text("INSERT INTO pardons VALUES (:name, :number)"), {"name": name, "number": number}
                    )
                    if await replay_letter(uow, position):
                        self.replayed += 1
                        await uow.commit()

    async def _settle(self) -> None:
        """Wait until no event waits and none is dead."""
        await rows(self._database, "DELETE FROM outbox_types")
        async with UnitOfWork(self._database.write) as uow:
            await uow.control.look_again()
            await uow.commit()
        left = "SELECT 1 FROM outbox UNION ALL SELECT 1 FROM dead_letters LIMIT 1"
        while True:
            if not await rows(self._database, left):
                return
            await asyncio.sleep(0.05)


@contextmanager
def suppress_while_away() -> Iterator[None]:
    """What is lost while the database is being replaced is not committed."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        if not is_away(error):
            raise


@pytest.fixture
async def sky(database: Database) -> Database:
    for table in TABLES:
        await rows(database, table)
    return database


async def test_every_committed_event_takes_effect_once_and_in_order_whoever_fails_or_dies(
    sky: Database, administrator: Administrator, settings: Settings, seed: int
) -> None:
    storm = Storm(sky, administrator, settings, seed)
    try:
        await storm.blow()
    except TimeoutError:
        left = await rows(sky, "SELECT position, aggregate, type, waits, available_at, last_error FROM outbox")
        pytest.fail(
            f"not all took effect: seed {seed}, {left[:5]}, dead {await rows(sky, 'SELECT * FROM dead_letters')}"
        )

    assert storm.restored
    written = dict(await rows(sky, "SELECT name, number FROM drops"))
    assert storm.rolled_back > 0
    for name in NAMES:
        took_effect = await rows(sky, "SELECT number, type, at FROM effects WHERE name = :name ORDER BY id", name=name)
        numbers = [number for number, _, _ in took_effect]
        assert sorted(numbers) == list(range(1, written[name] + 1)), f"once each: seed {seed}, {name}"
        assert_in_order(await free_to_overtake(sky, name), numbers, f"in order: seed {seed}, {name}")
    deferred = await rows(sky, "SELECT name, number, at FROM effects WHERE type = :dew", dew=Dew.type)
    assert deferred
    assert all(at >= storm.asked[name, number] for name, number, at in deferred), f"before its time: seed {seed}"


def assert_in_order(free: set[int], numbers: Sequence[int], said: str) -> None:
    bound = [number for number in numbers if number not in free]
    assert bound == sorted(bound), said


async def free_to_overtake(database: Database, name: str) -> set[int]:
    """The numbers of events that are deferred, or that died without blocking later ones."""
    found = await rows(
        database,
        "SELECT CAST(payload ->> 'number' AS integer) FROM events WHERE aggregate = :aggregate AND"
        " (type = :dew OR (type = :hail AND EXISTS (SELECT FROM pardons WHERE pardons.name = payload ->> 'name'"
        " AND pardons.number = CAST(payload ->> 'number' AS integer))))",
        aggregate=f"drop/{name}",
        dew=Dew.type,
        hail=Hail.type,
    )
    return set(found)
