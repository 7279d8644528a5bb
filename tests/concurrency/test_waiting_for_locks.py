"""What a worker finds after it has waited for a lock, even though its statement began earlier."""

import asyncio
from datetime import timedelta

from sqlalchemy import text

from services.database import Database
from services.fields import new_id
from services.orders import service as orders
from services.orders.events import OrderPlaced
from services.orders.models import EXPIRED
from services.orders.processing.service import process_placed
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.outbox.events import Claimed, Trace
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.later import assert_nothing_differs
from tests.concurrency.ticks import rows
from tests.factories import UNLIMITED, make_product, make_user

DAY = timedelta(days=1)
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
ENDS = "SELECT array_agg(to_status ORDER BY id)::text[] FROM order_transitions GROUP BY order_id ORDER BY order_id"
LEFT = "SELECT extract(epoch FROM expires_at - clock_timestamp())::float FROM transfers WHERE kind = 'order'"
BALANCES = """
    SELECT balance::text FROM entries
    JOIN transfers ON transfers.id = transfer_id JOIN accounts ON accounts.id = account_id
    WHERE order_id IS NOT NULL AND user_id = :user ORDER BY order_id
"""


async def place(database: Database, buyer: User, product_id: int, hold: timedelta = DAY) -> Claimed[OrderPlaced]:
    """Place an order; return its event as a worker gets it."""
    wanted = OrderCreate(items=[OrderItemCreate(product_id=product_id, quantity=1)])
    async with UnitOfWork(database.write) as uow:
        placed = await orders.place(uow, buyer, wanted, orders.Patience(hold, DAY))
        await uow.commit()
    event = OrderPlaced(order_id=placed.id, buyer_id=buyer.id, total=placed.total)
    return Claimed(0, new_id(), event.aggregate, 0, event, Trace())


async def process(database: Database, *placed: Claimed[OrderPlaced]) -> None:
    async with UnitOfWork(database.write) as uow:
        await process_placed(uow, placed)
        await uow.commit()


async def begun(database: Database, work: "asyncio.Task[None]") -> None:
    """Return when a session waits for a lock."""
    async with asyncio.timeout(20):
        while await rows(database, BLOCKED) == [0]:
            assert not work.done(), "nothing was waited for"
            await asyncio.sleep(0.01)


async def test_an_order_that_is_cancelled_while_its_lock_is_waited_for_leaves_the_rest_of_the_batch_alone(
    database: Database,
) -> None:
    buyer = await make_user(database, credits="100")
    product = await make_product(database, price="10.00")
    placed = [await place(database, buyer, product.id) for _ in range(3)]

    async with UnitOfWork(database.write) as cancelling:
        await orders.cancel(cancelling, buyer, placed[1].event.order_id, "changed my mind", UNLIMITED)
        work = asyncio.create_task(process(database, *placed))
        await begun(database, work)
        await cancelling.commit()
    await work

    ends = [["pending", "confirmed"], ["pending", "cancelled"], ["pending", "confirmed"]]
    assert await rows(database, ENDS) == ends
    states = "SELECT state FROM transfers WHERE kind = 'order' ORDER BY order_id"
    assert await rows(database, states) == ["posted", "voided", "posted"]
    await assert_nothing_differs(database)


async def test_a_hold_whose_time_ends_while_its_accounts_are_waited_for_is_not_posted(database: Database) -> None:
    buyer = await make_user(database, credits="100")
    product = await make_product(database, price="10.00")
    placed = await place(database, buyer, product.id, hold=timedelta(seconds=3))

    async with database.engine.begin() as elsewhere:
        await elsewhere.execute(text("SELECT 1 FROM accounts FOR UPDATE"))
        work = asyncio.create_task(process(database, placed))
        await begun(database, work)
        [left] = await rows(database, LEFT)
        assert left > 0, "this machine is too slow for the hold's three seconds"
        await asyncio.sleep(left + 0.1)
    await work

    assert await rows(database, ENDS) == [["pending", "cancelled"]]
    assert await rows(database, "SELECT reason FROM order_transitions WHERE to_status = 'cancelled'") == [EXPIRED]
    assert await rows(database, "SELECT state FROM transfers WHERE kind = 'order'") == ["expired"]
    await assert_nothing_differs(database)


async def test_an_accounts_entries_are_numbered_in_the_order_in_which_orders_were_placed(database: Database) -> None:
    buyer = await make_user(database, credits="100")
    product = await make_product(database, price="10.00")
    placed = [await place(database, buyer, product.id) for _ in range(4)]

    await process(database, *placed)

    assert await rows(database, BALANCES, user=buyer.id) == ["90.00", "80.00", "70.00", "60.00"]
    assert await rows(database, BALANCES, user=product.seller_id) == ["10.00", "20.00", "30.00", "40.00"]
