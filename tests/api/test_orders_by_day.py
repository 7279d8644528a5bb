"""Orders by day: counted from the event log by a worker, and read by operators."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from services.outbox.consumers import claim, run_batch
from services.outbox.log import service as log
from services.outbox.log.service import Start
from services.outbox.retention.repository import ensure_partitions
from services.subscriptions import CONSUMERS
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, assert_problem
from tests.api.test_metrics import scrape
from tests.concurrency.ticks import rows
from tests.factories import make_operator, make_product
from worker.jobs.retention import forget_events

(BY_DAY,) = (one for one in CONSUMERS if one.name == "orders-by-day")
PATH = "/v1/operations/orders-by-day"


async def follow(api: Api, limit: int = 500) -> None:
    """What a worker does: read everything that is new."""
    async with UnitOfWork(api.database.write) as uow:
        lease = await claim(uow, BY_DAY, uuid4(), 60)
        assert lease is not None
        await uow.commit()
        while True:
            batch = await run_batch(uow, BY_DAY, lease, limit)
            await uow.commit()
            if not batch.more and not batch.events:
                break
        await uow.log.release(BY_DAY.name, lease)
        await uow.commit()


async def by_day(api: Api, **query: Any) -> list[dict[str, Any]]:
    reply = await api.get(PATH, by=await make_operator(api.database), params=query)
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()
    return found


@pytest.mark.parametrize("limit", [1, 500])
async def test_a_day_counts_what_happened_to_its_orders(api: Api, limit: int) -> None:
    buyer, seller, product = await api.shop(credits="100", price="2.50", stock=10)
    rare = await make_product(api.database, seller=seller, price="10.00", stock=0)
    kept, cancelled = [await api.place(buyer, (product, 4)) for _ in range(2)]
    await api.place(buyer, (rare, 1))
    waiting = await api.place(buyer, (product, 60))
    assert waiting["status"] == "awaiting_payment"
    assert (await api.process()).processed == 3
    assert await api.post(f"/v1/orders/{kept['id']}/refunds", by=seller, json={"lines": [{"line": 1, "quantity": 1}]})
    assert (await api.post(f"/v1/orders/{kept['id']}/fulfil", by=seller)).status_code == 200
    assert (await api.post(f"/v1/orders/{cancelled['id']}/cancel", by=buyer, json={})).status_code == 200

    await follow(api, limit)

    (today,) = await by_day(api)
    assert today.pop("day") == datetime.now(UTC).date().isoformat()
    assert today == {
        "placed": {"orders": 3, "amount": "30.00"},
        "awaiting_payment": {"orders": 1, "amount": "150.00"},
        "confirmed": {"orders": 2, "amount": "20.00"},
        "rejected": {"orders": 1, "amount": "10.00"},
        "cancelled": {"orders": 1, "amount": "10.00"},
        "fulfilled": {"orders": 1, "amount": "10.00"},
        # Cancelling a confirmed order refunds it.
        "refunded": {"orders": 2, "amount": "12.50"},
    }


async def test_reading_the_log_again_counts_the_same_and_keeps_days_that_the_log_has_dropped(api: Api) -> None:
    buyer, _, product = await api.shop(price="2.50", stock=10)
    placed = await api.place(buyer, (product, 1))
    old = datetime(2021, 3, 31, 23, 59, tzinfo=UTC)
    async with api.database.engine.begin() as connection:
        await ensure_partitions(connection, 0, old.date())
    for moment in (old, old - timedelta(days=3)):
        await rows(
            api.database,
            "INSERT INTO events (id, type, version, aggregate, payload) VALUES"
            " (:id, 'order.placed', 1, 'order/x', jsonb_build_object('order_id', CAST(:order AS text)))",
            id=uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000),
            order=placed["id"],
        )
    await follow(api)
    before = await rows(api.database, "SELECT day, type, orders, amount FROM order_days ORDER BY day")
    assert [(row[0].isoformat(), row[2]) for row in before[:2]] == [("2021-03-28", 1), ("2021-03-31", 1)]

    for dropped in ([], ["events_2021_03"]):
        if dropped:
            assert await forget_events(api.database.engine, datetime(2021, 5, 1, tzinfo=UTC), None) == dropped
        async with UnitOfWork(api.database.write) as uow:
            await log.reset(uow, BY_DAY.name, Start.beginning)
            await uow.commit()
        await follow(api)
        assert await rows(api.database, "SELECT day, type, orders, amount FROM order_days ORDER BY day") == before


async def test_days_are_limited_and_for_operators_only(api: Api) -> None:
    buyer, _, product = await api.shop()
    assert await by_day(api) == []
    await api.place(buyer, (product, 1))
    await follow(api)
    await rows(api.database, "UPDATE order_days SET day = day - 5")
    assert len(await by_day(api, days=6)) == 1
    assert await by_day(api, days=5) == []
    assert_problem(await api.get(PATH, by=buyer), 403, "forbidden")
    assert (await api.get(PATH, by=await make_operator(api.database), params={"days": 367})).status_code == 422


async def test_the_lag_of_consumers_is_a_metric(api: Api) -> None:
    buyer, _, product = await api.shop()
    await follow(api)
    of = (("consumer", BY_DAY.name),)
    await api.place(buyer, (product, 1))
    scraped = await scrape(api)
    assert scraped["waybill_log_consumer_unread_events", of] >= 1
    assert scraped["waybill_log_consumer_lag_seconds", of] > 0
    assert scraped["waybill_log_consumer_failures", of] == 0
    await follow(api)
    assert (await scrape(api))["waybill_log_consumer_unread_events", of] == 0
