"""Many requests at once on few rows: credits and stock stay correct, and of two conflicting requests one wins."""

import asyncio
import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from services.credits.schemas import TransferCreate
from services.credits.transfers import service as transfers
from services.database import Database
from services.errors import Conflict, InsufficientCredits
from services.operations import service as operations
from services.orders import service as orders
from services.orders.models import OrderStatus
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.outbox.engine.service import Processor
from services.outbox.testing import drain
from services.settings import Settings
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import LATER, rows
from tests.factories import UNLIMITED, make_product, make_user
from tests.processes import running_worker, wait_until

PATIENCE = orders.Patience(timedelta(days=1), timedelta(days=7))
BALANCES = "SELECT posted - held FROM accounts WHERE user_id IS NOT NULL ORDER BY id"
ENDS = "SELECT array_agg(to_status ORDER BY id)::text[] FROM order_transitions GROUP BY order_id"


async def assert_balanced(database: Database) -> None:
    async with UnitOfWork(database.read) as uow:
        books = await operations.books(uow)
    assert books.balanced, books


async def place(database: Database, buyer: User, *lines: tuple[int, int]) -> OrderStatus:
    items = [OrderItemCreate(product_id=product_id, quantity=quantity) for product_id, quantity in lines]
    async with UnitOfWork(database.write) as uow:
        placed = await orders.place(uow, buyer, OrderCreate(items=items), PATIENCE)
        await uow.commit()
    return placed.status


async def test_random_transfers_of_sixteen_at_once_keep_the_sum_and_never_overdraw(database: Database) -> None:
    users = [await make_user(database, credits="50.00") for _ in range(8)]

    async def move(seed: int) -> int:
        chance, refused = random.Random(seed), 0
        for _ in range(15):
            sender, recipient = chance.sample(users, 2)
            wanted = TransferCreate(to_user_id=recipient.id, amount=Decimal(chance.randint(100, 6000)) / 100)
            try:
                async with UnitOfWork(database.write) as uow:
                    await transfers.transfer(uow, sender, wanted)
                    await uow.commit()
            except InsufficientCredits:
                refused += 1
        return refused

    # A deadlock or any other database error would be raised here.
    refused = await asyncio.gather(*(move(seed) for seed in range(16)))

    balances = await rows(database, BALANCES)
    assert sum(balances) == Decimal("400.00")
    assert min(balances) >= 0
    assert 0 < sum(refused) < 16 * 15
    assert await rows(database, "SELECT count(*) FROM transfers WHERE kind = 'transfer'") == [16 * 15 - sum(refused)]
    await assert_balanced(database)


@pytest.mark.parametrize("confirmed", [False, True], ids=["pending", "confirmed"])
async def test_of_two_simultaneous_cancels_one_wins(database: Database, confirmed: bool) -> None:
    buyer = await make_user(database, credits="1000.00")
    product = await make_product(database, price="10.00", stock=100)
    for _ in range(10):
        await place(database, buyer, (product.id, 2))
    if confirmed:
        await drain(_processor(database))

    async def cancel(order_id: object) -> bool:
        try:
            async with UnitOfWork(database.write) as uow:
                await orders.cancel(uow, buyer, order_id, "changed my mind", UNLIMITED)  # type: ignore[arg-type]
                await uow.commit()
        except Conflict:
            return False
        return True

    for order_id in await rows(database, "SELECT id FROM orders"):
        assert sorted(await asyncio.gather(cancel(order_id), cancel(order_id))) == [False, True]

    before = ["pending", "confirmed"] if confirmed else ["pending"]
    assert await rows(database, ENDS) == [[*before, "cancelled"]] * 10
    assert await rows(database, "SELECT posted - held FROM accounts WHERE user_id = :id", id=buyer.id) == [1000]
    assert await rows(database, "SELECT on_hand, reserved FROM inventory") == [(100, 0)]
    await assert_balanced(database)


async def test_a_cancel_and_the_workers_confirmation_at_the_same_moment_leave_one_end(database: Database) -> None:
    buyer = await make_user(database, credits="10000.00")
    product = await make_product(database, price="10.00", stock=1000)
    engine = _processor(database)

    async def cancel(order_id: object, delay: float) -> None:
        await asyncio.sleep(delay)
        async with UnitOfWork(database.write) as uow:
            await orders.cancel(uow, buyer, order_id, "", UNLIMITED)  # type: ignore[arg-type]
            await uow.commit()

    chance = random.Random(3)
    for _ in range(25):
        for _ in range(4):
            await place(database, buyer, (product.id, 1))
        pending = await rows(database, "SELECT id FROM orders WHERE status = 'pending'")
        cancels = [cancel(order_id, chance.uniform(0, 0.03)) for order_id in pending]
        await asyncio.gather(engine.run_once(), *cancels)
        await assert_balanced(database)

    ends = await rows(database, ENDS)
    assert len(ends) == 100
    late, early = ends.count(["pending", "confirmed", "cancelled"]), ends.count(["pending", "cancelled"])
    assert late + early == 100
    # They met often enough for each of them to come first sometimes.
    assert late > 0
    assert early > 0
    assert await rows(database, "SELECT count(*) FROM outbox") == [0]
    assert await rows(database, "SELECT posted - held FROM accounts WHERE user_id = :id", id=buyer.id) == [10000]
    assert await rows(database, "SELECT on_hand, reserved FROM inventory") == [(1000, 0)]


async def test_scarce_stock_is_never_oversold_and_the_rejected_get_their_credits_back(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    buyers = [await make_user(database, credits="1000.00") for _ in range(16)]
    scarce = await make_product(database, price="3.00", stock=40)
    scarcer = await make_product(database, price="5.00", stock=25)
    # Two lines of one product count together.
    baskets = [
        [(scarce.id, 1)],
        [(scarcer.id, 1)],
        [(scarce.id, 2), (scarcer.id, 1)],
        [(scarcer.id, 1), (scarcer.id, 1)],
    ]

    async def buy(number: int) -> None:
        for round_ in range(10):
            placed = await place(database, buyers[number], *baskets[(number + round_) % len(baskets)])
            assert placed is OrderStatus.pending

    quick = settings.model_copy(update={"outbox_batch_size": 7, "outbox_poll_interval": 0.1})
    with (
        running_worker(quick, tmp_path / "one.log"),
        running_worker(quick, tmp_path / "two.log"),
        psycopg.connect(database_url, autocommit=True) as watch,
    ):
        await asyncio.gather(*(buy(number) for number in range(16)))
        wait_until(lambda: not watch.execute("SELECT 1 FROM outbox LIMIT 1").fetchone(), "an empty outbox")

    by_status = dict(await rows(database, "SELECT status, count(*) FROM orders GROUP BY status"))
    assert set(by_status) == {"confirmed", "rejected"}
    assert sum(by_status.values()) == 160
    sold = """
        SELECT product_id, sum(quantity) FROM order_items JOIN orders ON orders.id = order_id
        WHERE status = 'confirmed' GROUP BY product_id ORDER BY product_id
    """
    stock = await rows(database, "SELECT product_id, reserved, on_hand FROM inventory ORDER BY product_id")
    assert await rows(database, sold) == [(product_id, reserved) for product_id, reserved, _ in stock]
    # An order of one piece was refused only when the last one was gone.
    assert [on_hand - reserved for _, reserved, on_hand in stock] == [0, 0]
    assert await rows(database, "SELECT DISTINCT held FROM accounts") == [0]
    spent = "SELECT coalesce(sum(total), 0) FROM orders WHERE status = 'confirmed' AND buyer_id = :id"
    for buyer in buyers:
        (paid,) = await rows(database, spent, id=buyer.id)
        assert await rows(database, "SELECT posted FROM accounts WHERE user_id = :id", id=buyer.id) == [1000 - paid]
    await assert_balanced(database)


def _processor(database: Database) -> Processor[UnitOfWork]:
    return Processor(lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=LATER, batch_size=100)
