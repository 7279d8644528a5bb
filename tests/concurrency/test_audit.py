"""An audit beside writers: it reads one state of the database, and concurrent writes are not differences."""

import asyncio
import random
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.audit.schemas import Difference
from services.audit.service import AuditNotFinished, audit
from services.credits.ledger import service as ledger
from services.credits.schemas import TopUpCreate, TransferCreate
from services.credits.transfers import service as transfers
from services.database import Database
from services.errors import Conflict, InsufficientCredits
from services.orders import service as orders
from services.outbox.engine.service import Processor
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.audited import corrupt, note_refund, run_audit
from tests.concurrency.test_ledger_and_stock import place
from tests.concurrency.ticks import LATER, rows
from tests.factories import UNLIMITED, make_product, make_user


async def test_a_busy_ledger_has_no_difference_at_any_moment(database: Database) -> None:
    users = [await make_user(database, credits="500.00") for _ in range(6)]
    products = [await make_product(database, price="3.10", stock=150) for _ in range(3)]
    engine = Processor(lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=LATER, batch_size=20)
    stopping = asyncio.Event()

    async def write(seed: int) -> int:
        chance, done = random.Random(seed), 0
        while not stopping.is_set():
            try:
                await one_of(chance)
                done += 1
            except (InsufficientCredits, Conflict):
                continue
        return done

    async def one_of(chance: random.Random) -> None:
        user, other = chance.sample(users, 2)
        match chance.randrange(4):
            case 0:
                await move(user, other, chance.randint(1, 500))
            case 1:
                lines = [(product.id, chance.randint(1, 4)) for product in chance.sample(products, 2)]
                await place(database, user, *lines)
            case 2:
                await cancel_any(chance, user)
            case _:
                async with UnitOfWork(database.write) as uow:
                    await ledger.top_up(uow, TopUpCreate(user_id=user.id, amount=Decimal("1.25")))
                    await uow.commit()

    async def move(sender: User, recipient: User, cents: int) -> None:
        async with UnitOfWork(database.write) as uow:
            await transfers.transfer(uow, sender, TransferCreate(to_user_id=recipient.id, amount=Decimal(cents) / 100))
            await uow.commit()

    async def cancel_any(chance: random.Random, buyer: User) -> None:
        statement = "SELECT id FROM orders WHERE buyer_id = :id AND status IN ('pending', 'confirmed')"
        found = await rows(database, statement, id=buyer.id)
        if found:
            async with UnitOfWork(database.write) as uow:
                cancelled = await orders.cancel(uow, buyer, chance.choice(found), "", UNLIMITED)
                await note_refund(await uow.session.connection(), cancelled.id)
                await uow.commit()

    async def work() -> None:
        while not stopping.is_set():
            await engine.run_once()
            await asyncio.sleep(0.01)

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    worker = asyncio.create_task(work())
    sizes = []
    try:
        for _ in range(15):
            result, found = await run_audit(database)
            assert [difference.message for difference in found] == []
            sizes.append(result.rows_checked)
    finally:
        stopping.set()
        done = await asyncio.gather(*writers)
        await worker

    assert min(done) > 0
    assert sizes[-1] > sizes[0], "nobody wrote anything meanwhile"
    statuses = dict(await rows(database, "SELECT status, count(*) FROM orders GROUP BY status"))
    assert {"confirmed", "cancelled"} <= set(statuses)


async def test_what_is_committed_during_an_audit_is_not_seen_by_it(database: Database, database_url: str) -> None:
    user = await make_user(database, credits="5.00")
    await corrupt(database, "UPDATE accounts SET posted = 6 WHERE user_id = :id", id=user.id)
    letter = (
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " VALUES (1, gen_random_uuid(), 'x/1', 'x', 1, '')"
    )
    found: list[Difference] = []

    def tell(difference: Difference) -> None:
        found.append(difference)
        with psycopg.connect(database_url) as other:
            other.execute(letter)

    async with UnitOfWork(database.read) as uow:
        await audit(uow, 60.0, tell)

    assert [difference.kind for difference in found] == ["account_posted"]
    _, found = await run_audit(database)
    assert [difference.kind for difference in found] == ["account_posted", "dead_letter_event"]


async def test_the_transaction_of_an_audit_writes_nothing(database: Database) -> None:
    async with UnitOfWork(database.read) as uow:
        await uow.audits.begin(60.0)
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await (await uow.session.connection()).execute(text("UPDATE accounts SET posted = posted"))


async def test_an_audit_that_takes_too_long_is_cancelled_and_releases_its_snapshot(
    database: Database, database_url: str
) -> None:
    snapshots = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND datname = current_database()"
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(AuditNotFinished, match=r"stopped after 0\.5 s"):
            async with UnitOfWork(database.read) as uow:
                await audit(uow, 0.5, lambda _: None)
    assert await rows(database, snapshots) == [1], "the one that asks"
    assert (await run_audit(database))[1] == []


async def test_an_audit_whose_session_is_ended_says_so(database: Database, database_url: str) -> None:
    user = await make_user(database, credits="5.00")
    await corrupt(database, "UPDATE accounts SET posted = 6 WHERE user_id = :id", id=user.id)

    def end_the_session(_: Difference) -> None:
        with psycopg.connect(database_url) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()"
            )

    with pytest.raises(AuditNotFinished, match="ended the session"):
        async with UnitOfWork(database.read) as uow:
            await audit(uow, 60.0, end_the_session)
    assert len((await run_audit(database))[1]) == 1
