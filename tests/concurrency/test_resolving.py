"""Several requests that resolve the same thing at the same moment: one succeeds, the others learn the outcome."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.credits.corrections import service as adjustments
from services.credits.corrections import service as corrections
from services.credits.holds import service as holds
from services.credits.ledger import service
from services.credits.schemas import AdjustmentCreate, HoldCreate, TransferCreate
from services.credits.transfers import service as transfers
from services.database import Database
from services.errors import DomainError
from services.fields import now
from services.orders import service as orders
from services.orders.expiry import service as expiry
from services.orders.expiry.repository import UnpaidOrder
from services.orders.schemas import OrderCreate
from services.outbox.engine.service import Processor
from services.subscriptions import SUBSCRIPTIONS
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.later import assert_nothing_differs, let_the_time_run_out, sweep
from tests.concurrency.test_ledger_and_stock import ENDS, PATIENCE, place
from tests.concurrency.ticks import LATER, rows
from tests.factories import NOTHING_ALONE, UNLIMITED, make_operator, make_product, make_user

DAY = timedelta(days=1)


async def told(database: Database, do: Callable[[UnitOfWork], Awaitable[Any]]) -> str:
    """`done`, or the code of the refusal."""
    try:
        async with UnitOfWork(database.write) as uow:
            await do(uow)
            await uow.commit()
    except DomainError as refusal:
        return refusal.code
    return "done"


async def held(database: Database, payer: User, payee: User, amount: str) -> Any:
    wanted = HoldCreate.model_validate({"to_user_id": payee.id, "amount": amount, "expires_at": now() + DAY / 2})
    async with UnitOfWork(database.write) as uow:
        made = await holds.hold(uow, payer, wanted, DAY)
        await uow.commit()
    return made.id


async def balances(database: Database, *users: User) -> list[Any]:
    found = dict(await rows(database, "SELECT user_id, (posted, held)::text FROM accounts WHERE user_id IS NOT NULL"))
    return [found[user.id] for user in users]


async def test_of_many_who_resolve_a_hold_one_succeeds_and_the_others_learn_the_outcome(database: Database) -> None:
    payer, payee = await make_user(database, credits="100"), await make_user(database)
    firsts: Counter[str] = Counter()
    for round_ in range(6):
        hold = await held(database, payer, payee, "10.00")

        async def post(uow: UnitOfWork, hold: Any = hold) -> None:
            await holds.post(uow, payee, hold, Decimal("4.00"), UNLIMITED)

        async def void(uow: UnitOfWork, hold: Any = hold) -> None:
            await holds.void(uow, payee, hold, UNLIMITED)

        turns = [post, void] * 4 if round_ % 2 else [void, post] * 4
        heard = Counter(await asyncio.gather(*(told(database, turn) for turn in turns)))

        [state] = await rows(database, "SELECT state FROM transfers WHERE id = :id", id=hold)
        assert heard == {"done": 1, f"transfer_already_{state}": 7}
        firsts[state] += 1
    posted = 4 * firsts["posted"]
    assert await balances(database, payer, payee) == [f"({100 - posted}.00,0.00)", f"({posted}.00,0.00)"]
    await assert_nothing_differs(database)


async def test_a_sweep_and_late_requests_expire_each_hold_once(database: Database) -> None:
    payer, payee = await make_user(database, credits="100"), await make_user(database)
    due = [await held(database, payer, payee, "10.00") for _ in range(10)]
    await let_the_time_run_out(database)

    async def post(hold: Any) -> str:
        return await told(database, lambda uow: holds.post(uow, payee, hold, None, UNLIMITED))

    heard = await asyncio.gather(*map(post, due), *(sweep(database, limit=4) for _ in range(4)), *map(post, due))

    assert {one for one in heard if isinstance(one, str)} == {"transfer_expired"}
    while await sweep(database) != (0, 0):
        pass
    assert await rows(database, "SELECT DISTINCT state FROM transfers WHERE kind = 'transfer'") == ["expired"]
    assert await rows(database, "SELECT count(*) FROM events WHERE type = 'credits.released'") == [10]
    assert await balances(database, payer, payee) == ["(100.00,0.00)", "(0.00,0.00)"]
    await assert_nothing_differs(database)


async def test_a_sweep_and_a_worker_at_the_same_moment_cancel_each_order_once(database: Database) -> None:
    buyer = await make_user(database, credits="10000.00")
    product = await make_product(database, price="10.00", stock=1000)
    worker = Processor[UnitOfWork](lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=LATER, batch_size=5)

    async def swept() -> int:
        async with UnitOfWork(database.write) as uow:
            taken = await take_slice(uow, expiry.HELD, None, 3)
            await uow.commit()
        return taken.ended

    for _ in range(8):
        for _ in range(12):
            await place(database, buyer, (product.id, 1))
        await let_the_time_run_out(database)
        done = await asyncio.gather(swept(), worker.run_once(), swept(), worker.run_once(), swept())
        assert sum(one.retried for one in done if not isinstance(one, int)) == 0
    while await swept() or (await worker.run_once()).processed:
        pass

    assert await rows(database, ENDS) == [["pending", "cancelled"]] * 96
    assert await rows(database, "SELECT count(*) FROM events WHERE type = 'order.cancelled'") == [96]
    assert await rows(database, "SELECT DISTINCT state FROM transfers WHERE kind = 'order'") == ["expired"]
    assert await rows(database, "SELECT attempts FROM outbox") == []
    assert await balances(database, buyer) == ["(10000.00,0.00)"]
    await assert_nothing_differs(database)


async def test_an_order_is_paid_or_expires_when_both_happen_at_once(database: Database) -> None:
    other = await make_user(database, credits="1000")
    product = await make_product(database, price="10.00", stock=1000)
    ends: Counter[str] = Counter()
    for round_ in range(12):
        buyer = await make_user(database)
        await place(database, buyer, (product.id, 1))
        async with UnitOfWork(database.write) as uow:
            await transfers.transfer(uow, other, TransferCreate(to_user_id=buyer.id, amount=Decimal(10)))
            await uow.commit()
        [order_id] = await rows(database, "SELECT id FROM orders WHERE status = 'awaiting_payment'")
        await let_the_time_run_out(database)

        async def pay(buyer: User = buyer, order_id: Any = order_id, first: bool = bool(round_ % 2)) -> str:
            await asyncio.sleep(0 if first else 0.01)
            return await told(database, lambda uow: orders.pay(uow, buyer, order_id, PATIENCE))

        async def expire(later: bool = bool(round_ % 2)) -> None:
            await asyncio.sleep(0.01 if later else 0)
            await sweep(database)

        paid, _ = await asyncio.gather(pay(), expire())
        [status] = await rows(database, "SELECT status FROM orders WHERE id = :id", id=order_id)
        assert (paid, status) in {("done", "pending"), ("conflict", "cancelled")}
        ends[status] += 1
    assert ends["cancelled"] > 0
    await assert_nothing_differs(database)


async def test_a_sweep_skips_a_locked_order_and_its_holds(database: Database) -> None:
    buyer = await make_user(database, credits="100")
    product = await make_product(database, price="10.00")
    await place(database, buyer, (product.id, 1))
    [order_id] = await rows(database, "SELECT id FROM orders")
    await let_the_time_run_out(database)

    async with UnitOfWork(database.write) as busy:
        await busy.orders.lock([order_id])
        assert await asyncio.wait_for(sweep(database), 10) == (0, 0)
    assert await balances(database, buyer) == ["(100.00,10.00)"]

    assert await sweep(database) == (1, 0)
    assert await balances(database, buyer) == ["(100.00,0.00)"]


async def test_an_order_that_was_paid_between_being_found_and_being_locked_is_left_alone(database: Database) -> None:
    buyer = await make_user(database, credits="100")
    product = await make_product(database, price="10.00")
    await place(database, buyer, (product.id, 1))
    [order_id] = await rows(database, "SELECT id FROM orders")

    async with UnitOfWork(database.write) as uow:
        assert await expiry.expire(uow, [UnpaidOrder(now(), order_id)]) == []
        await uow.commit()
    assert await rows(database, "SELECT status FROM orders") == ["pending"]
    assert await balances(database, buyer) == ["(100.00,10.00)"]


async def test_of_two_simultaneous_approvals_one_takes_effect(database: Database) -> None:
    first, second, third = [await make_operator(database) for _ in range(3)]
    user = await make_user(database)
    for _ in range(5):
        wanted = AdjustmentCreate(user_id=user.id, amount=Decimal(10), reason="found")
        async with UnitOfWork(database.write) as uow:
            adjustment_id = (await adjustments.adjust(uow, first, wanted, NOTHING_ALONE)).id
            await uow.commit()

        async def approve(operator: User, adjustment_id: Any = adjustment_id) -> str:
            return await told(database, lambda uow: adjustments.approve(uow, operator, adjustment_id, UNLIMITED))

        heard = await asyncio.gather(approve(second), approve(third), approve(second), approve(third))
        assert sorted(heard) == ["conflict", "conflict", "conflict", "done"]
    assert await balances(database, user) == ["(50.00,0.00)"]
    assert await rows(database, "SELECT count(*) FROM transfers WHERE kind = 'adjustment'") == [5]
    await assert_nothing_differs(database)


async def test_of_two_simultaneous_reversals_one_takes_effect(database: Database) -> None:
    operator = await make_operator(database)
    sender, recipient = await make_user(database, credits="50"), await make_user(database, credits="50")
    async with UnitOfWork(database.write) as uow:
        await transfers.transfer(uow, sender, TransferCreate(to_user_id=recipient.id, amount=Decimal(10)))
        await uow.commit()
    [transfer_id] = await rows(database, "SELECT id FROM transfers WHERE kind = 'transfer'")

    async def reverse() -> str:
        return await told(
            database, lambda uow: corrections.reverse(uow, operator, transfer_id, "sent in error", UNLIMITED)
        )

    heard = await asyncio.gather(*(reverse() for _ in range(8)))

    assert Counter(heard) == {"done": 1, "transfer_already_reversed": 7}
    assert await balances(database, sender, recipient) == ["(50.00,0.00)", "(50.00,0.00)"]
    await assert_nothing_differs(database)


@pytest.mark.parametrize("close_first", [True, False])
async def test_an_account_is_closed_or_its_credits_are_held_when_both_happen_at_once(
    database: Database, close_first: bool
) -> None:
    payer, payee = await make_user(database, credits="50"), await make_user(database)
    product = await make_product(database, price="10.00")

    async def close() -> str:
        return await told(database, lambda uow: service.close_account(uow, payer.id))

    async def buy() -> str:
        async def bought(uow: UnitOfWork) -> None:
            wanted = OrderCreate.model_validate({"items": [{"product_id": product.id, "quantity": 1}]})
            await orders.place(uow, payer, wanted, PATIENCE)

        return await told(database, bought)

    async def hold() -> str:
        wanted = HoldCreate.model_validate({"to_user_id": payee.id, "amount": "1.00", "expires_at": now() + DAY / 2})
        return await told(database, lambda uow: holds.hold(uow, payer, wanted, DAY))

    others = [buy(), hold(), buy(), hold()]
    closed, *heard = (
        await asyncio.gather(close(), *others) if close_first else reversed(await asyncio.gather(*others, close()))
    )

    # A request that came before the account was closed has held credits, which keep the account open.
    assert set(heard) == ({"account_closed"} if closed == "done" else {"done"})
    await assert_nothing_differs(database)
