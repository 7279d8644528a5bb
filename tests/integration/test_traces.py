"""The effects of an event can be traced to the request that the event came from."""

from collections.abc import Sequence
from datetime import timedelta

from services.catalog.models import Product
from services.database import Database
from services.orders import service
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.outbox.engine.service import Processor
from services.outbox.events import Trace
from services.outbox.policy import RetryPolicy
from services.outbox.testing import drain
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import rows
from tests.factories import UNLIMITED, make_product, make_user

TRACES = [Trace(f"request-{number}", f"00-{number:032x}-{number:016x}-01") for number in range(1, 6)]
NO_TRACE = Trace()
CAUSED = """
    SELECT type, request_id, traceparent FROM events
    WHERE aggregate = :aggregate AND type <> 'order.placed' ORDER BY id
"""


async def place(database: Database, buyer: User, product: Product, quantity: int, trace: Trace) -> str:
    async with UnitOfWork(database.write, trace=trace) as uow:
        wanted = OrderCreate(items=[OrderItemCreate(product_id=product.id, quantity=quantity)])
        placed = await service.place(uow, buyer, wanted, service.Patience(timedelta(days=1), timedelta(days=7)))
        await uow.commit()
    return f"order/{placed.id}"


async def process(database: Database) -> int:
    processor = Processor[UnitOfWork](
        lambda: UnitOfWork(database.write),
        SUBSCRIPTIONS,
        retry=RetryPolicy(max_attempts=1, base=1.0, cap=1.0),
        batch_size=200,
    )
    return sum(outcome.processed for outcome in await drain(processor))


async def caused(database: Database, aggregates: Sequence[str]) -> list[list[tuple[str, str | None, str | None]]]:
    return [await rows(database, CAUSED, aggregate=aggregate) for aggregate in aggregates]


async def test_each_event_that_a_batch_causes_carries_the_trace_of_the_one_that_caused_it(database: Database) -> None:
    buyer = await make_user(database, credits="1000")
    product = await make_product(database, stock=100)
    traces = [*TRACES, NO_TRACE]
    orders = [await place(database, buyer, product, 1, trace) for trace in traces]

    assert await process(database) == len(orders)

    expected = [[("order.confirmed", trace.request_id, trace.traceparent)] for trace in traces]
    assert await caused(database, orders) == expected


async def test_a_rejection_carries_the_trace_of_its_order_too(database: Database) -> None:
    buyer = await make_user(database, credits="1000")
    product = await make_product(database, stock=1)
    first = await place(database, buyer, product, 1, TRACES[0])
    second = await place(database, buyer, product, 1, TRACES[1])

    await process(database)

    assert await caused(database, [first, second]) == [
        [("order.confirmed", TRACES[0].request_id, TRACES[0].traceparent)],
        [("order.rejected", TRACES[1].request_id, TRACES[1].traceparent)],
    ]


async def test_a_request_leaves_its_own_trace_on_what_it_does_later(database: Database) -> None:
    buyer = await make_user(database, credits="1000")
    product = await make_product(database)
    order = await place(database, buyer, product, 1, TRACES[0])
    await process(database)
    async with UnitOfWork(database.write, trace=TRACES[1]) as uow:
        (order_id,) = await rows(database, "SELECT id FROM orders")
        await service.cancel(uow, buyer, order_id, "changed my mind", UNLIMITED)
        await uow.commit()

    assert await caused(database, [order]) == [
        [
            ("order.confirmed", TRACES[0].request_id, TRACES[0].traceparent),
            ("order.refunded", TRACES[1].request_id, TRACES[1].traceparent),
            ("order.cancelled", TRACES[1].request_id, TRACES[1].traceparent),
        ]
    ]
