"""Accounts that are closed, and holds that expire, while another transaction is working on them."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from services.credits.holds import service as holds
from services.credits.ledger import service
from services.credits.schemas import HoldCreate
from services.database import Database
from services.errors import AccountClosed
from services.fields import now
from services.orders import service as orders
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.outbox.engine import repository
from services.outbox.engine.service import Processor
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.later import assert_nothing_differs
from tests.concurrency.test_ledger_and_stock import ENDS, PATIENCE
from tests.concurrency.test_resolving import DAY, balances, told
from tests.concurrency.ticks import LATER, rows
from tests.factories import UNLIMITED, make_product, make_user

WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def somebody_waits(database: Database) -> None:
    """Wait until a session waits for another session's lock."""
    async with asyncio.timeout(10):
        while not await rows(database, WAITING):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def process(database: Database) -> None:
    worker = Processor[UnitOfWork](lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=LATER, batch_size=10)
    outcome = await worker.run_once()
    assert (outcome.retried, outcome.buried) == (0, 0)


async def buy(uow: UnitOfWork, buyer: User, product_id: int, patience: orders.Patience = PATIENCE) -> UUID:
    wanted = OrderCreate(items=[OrderItemCreate(product_id=product_id, quantity=1)])
    return (await orders.place(uow, buyer, wanted, patience)).id


async def hold(uow: UnitOfWork, payer: User, payee: User, lasts: timedelta = DAY / 2) -> UUID:
    wanted = HoldCreate(to_user_id=payee.id, amount=Decimal("10.00"), expires_at=now() + lasts)
    return (await holds.hold(uow, payer, wanted, DAY)).id


@pytest.mark.parametrize("first", ["close", "order"])
async def test_an_order_placed_while_its_seller_is_closed_is_rejected_and_its_credits_are_free(
    database: Database, first: str
) -> None:
    buyer, seller = await make_user(database, credits="50"), await make_user(database)
    product = await make_product(database, seller=seller, price="10.00", stock=3)

    # Neither waits for the other: an order does not lock the accounts that it will pay.
    async with UnitOfWork(database.write) as closing, UnitOfWork(database.write) as buying, asyncio.timeout(10):
        if first == "close":
            await service.close_account(closing, seller.id)
            await buy(buying, buyer, product.id)
            await closing.commit()
            await buying.commit()
        else:
            await buy(buying, buyer, product.id)
            await service.close_account(closing, seller.id)
            await buying.commit()
            await closing.commit()
    assert await balances(database, buyer) == ["(50.00,10.00)"]
    await process(database)

    assert await rows(database, ENDS) == [["pending", "rejected"]]
    reason = "SELECT payload ->> 'reason' FROM events WHERE type = 'order.rejected'"
    assert await rows(database, reason) == ["a seller's account is closed"]
    assert await rows(database, "SELECT state FROM transfers WHERE kind = 'order'") == ["voided"]
    assert await balances(database, buyer, seller) == ["(50.00,0.00)", "(0.00,0.00)"]
    await assert_nothing_differs(database)


async def test_a_seller_closed_between_an_orders_look_at_the_products_and_its_hold_refuses_the_order(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, seller = await make_user(database, credits="50"), await make_user(database)
    product = await make_product(database, seller=seller, price="10.00")

    async with UnitOfWork(database.write) as buying:
        look = buying.products.for_sale

        async def look_and_close(ids: Any) -> Any:
            found = await look(ids)
            assert await told(database, lambda uow: service.close_account(uow, seller.id)) == "done"
            return found

        monkeypatch.setattr(buying.products, "for_sale", look_and_close)
        with pytest.raises(AccountClosed, match=f"user {seller.id} is closed"):
            await buy(buying, buyer, product.id)
    assert await balances(database, buyer) == ["(50.00,0.00)"]


async def test_a_hold_waits_for_the_closing_of_its_payee_and_is_refused(database: Database) -> None:
    payer, payee = await make_user(database, credits="50"), await make_user(database)
    async with UnitOfWork(database.write) as closing:
        await service.close_account(closing, payee.id)
        held = asyncio.create_task(told(database, lambda uow: hold(uow, payer, payee)))
        await somebody_waits(database)
        await closing.commit()
    assert await held == "unknown_recipient"
    assert await balances(database, payer) == ["(50.00,0.00)"]


async def test_a_payee_is_closed_after_a_hold_for_it_which_is_then_only_voided(database: Database) -> None:
    payer, payee = await make_user(database, credits="50"), await make_user(database)
    async with UnitOfWork(database.write) as holding:
        held = await hold(holding, payer, payee)
        closed = asyncio.create_task(told(database, lambda uow: service.close_account(uow, payee.id)))
        await somebody_waits(database)
        await holding.commit()
    assert await closed == "done"
    assert await told(database, lambda uow: holds.post(uow, payee, held, None, UNLIMITED)) == "account_closed"
    assert await told(database, lambda uow: holds.void(uow, payee, held, UNLIMITED)) == "done"
    assert await balances(database, payer, payee) == ["(50.00,0.00)", "(0.00,0.00)"]
    await assert_nothing_differs(database)


async def test_a_worker_that_waited_for_an_account_past_a_holds_time_does_not_post_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise it would leave the order for later.
    monkeypatch.setattr(repository, "LOCK_TIMEOUT", "30s")
    buyer, seller = await make_user(database, credits="50"), await make_user(database)
    product = await make_product(database, seller=seller, price="10.00", stock=3)
    lasts = timedelta(seconds=1)
    async with UnitOfWork(database.write) as busy:
        await busy.ledger.lock_account(seller.id)
        async with UnitOfWork(database.write) as uow:
            await buy(uow, buyer, product.id, orders.Patience(lasts, DAY))
            await uow.commit()
        worker = asyncio.create_task(process(database))
        await somebody_waits(database)
        await asyncio.sleep(lasts.total_seconds())
    await worker

    assert await rows(database, ENDS) == [["pending", "cancelled"]]
    assert await rows(database, "SELECT state FROM transfers WHERE kind = 'order'") == ["expired"]
    assert await balances(database, buyer, seller) == ["(50.00,0.00)", "(0.00,0.00)"]
    await assert_nothing_differs(database)


async def test_a_payee_that_waited_for_an_account_past_a_holds_time_does_not_post_it(database: Database) -> None:
    payer, payee = await make_user(database, credits="50"), await make_user(database)
    lasts = timedelta(seconds=1)
    async with UnitOfWork(database.write) as uow:
        held = await hold(uow, payer, payee, lasts)
        await uow.commit()
    async with UnitOfWork(database.write) as busy:
        await busy.ledger.lock_account(payee.id)
        posted = asyncio.create_task(told(database, lambda uow: holds.post(uow, payee, held, None, UNLIMITED)))
        await somebody_waits(database)
        await asyncio.sleep(lasts.total_seconds())
    assert await posted == "transfer_expired"
    assert await balances(database, payer, payee) == ["(50.00,10.00)", "(0.00,0.00)"]
