"""What the database refuses is undone alone, in its savepoint, and becomes a refusal; the transaction goes on."""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from services.credits.corrections import service as corrections
from services.credits.holds import service as holds
from services.credits.ledger import service as ledger
from services.credits.schemas import (
    AdjustmentCreate,
    BatchMode,
    HoldCreate,
    TopUpCreate,
    TransferBatchCreate,
    TransferCreate,
    TransferItem,
)
from services.credits.transfers import service as transfers
from services.errors import TransferRefused
from services.fields import MAX_CREDITS, now
from services.orders import service as orders
from services.orders.processing import service as processing
from services.orders.schemas import RefundCreate
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Discarded
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.client import Api, amounts, assert_problem, order_of
from tests.factories import UNLIMITED, make_operator, make_product, make_user, plain_sql

PATIENCE = orders.Patience(timedelta(hours=1), timedelta(hours=1))
"""Adjustments above it need approval."""

Move = Callable[[UnitOfWork], Awaitable[object]]


async def freeze(api: Api, user: User) -> None:
    """A rule that only the database knows: nothing about this user's account changes."""
    async with api.database.engine.begin() as connection:
        await connection.execute(
            text(f"ALTER TABLE accounts ADD CONSTRAINT frozen CHECK (user_id <> {user.id}) NOT VALID")
        )


async def thaw(api: Api) -> None:
    async with api.database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE accounts DROP CONSTRAINT frozen"))


class People:
    """Someone with credits whose account will be frozen, others, and what was made before that."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def come(self) -> "People":
        self.frozen = await make_user(self.api.database, credits="500")
        self.other = await make_user(self.api.database, credits="500")
        self.operator, self.second = await make_operator(self.api.database), await make_operator(self.api.database)
        return self

    async def posted(self, path: str, by: User, **body: Any) -> dict[str, Any]:
        reply = await self.api.post(path, by=by, json=body)
        assert reply.status_code < 300, reply.text
        made: dict[str, Any] = reply.json()
        return made

    async def held(self, payer: User, payee: User) -> UUID:
        expires_at = (now() + timedelta(hours=1)).isoformat()
        made = await self.posted("/v1/holds", payer, to_user_id=payee.id, amount="5.00", expires_at=expires_at)
        return UUID(made["id"])

    async def ordered(self, buyer: User, seller: User, quantity: int = 1, *, processed: bool = False) -> UUID:
        product = await make_product(self.api.database, seller=seller, price="10.00")
        placed = await self.api.place(buyer, (product, quantity))
        if processed:
            assert (await self.api.process()).processed == 1
        return UUID(placed["id"])


async def a_transfer(people: People) -> Move:
    wanted = TransferCreate(to_user_id=people.frozen.id, amount=Decimal(1))
    return lambda uow: transfers.transfer(uow, people.other, wanted)


async def a_hold(people: People) -> Move:
    wanted = HoldCreate(to_user_id=people.other.id, amount=Decimal(1), expires_at=now() + timedelta(hours=1))
    return lambda uow: holds.hold(uow, people.frozen, wanted, timedelta(days=1))


async def a_capture(people: People) -> Move:
    transfer_id = await people.held(people.other, people.frozen)
    return lambda uow: holds.post(uow, people.frozen, transfer_id, None, UNLIMITED)


async def a_release(people: People) -> Move:
    transfer_id = await people.held(people.frozen, people.other)
    return lambda uow: holds.void(uow, people.other, transfer_id, UNLIMITED)


async def a_top_up(people: People) -> Move:
    return lambda uow: ledger.top_up(uow, TopUpCreate(user_id=people.frozen.id, amount=Decimal(1)))


async def a_reversal(people: People) -> Move:
    made = await people.posted("/v1/transfers", people.other, to_user_id=people.frozen.id, amount="1.00")
    return lambda uow: corrections.reverse(uow, people.operator, UUID(made["id"]), "a mistake", UNLIMITED)


async def an_adjustment(people: People) -> Move:
    wanted = AdjustmentCreate(user_id=people.frozen.id, amount=Decimal(-1), reason="a mistake")
    return lambda uow: corrections.adjust(uow, people.operator, wanted, UNLIMITED)


async def an_approval(people: People) -> Move:
    wanted = {"user_id": people.frozen.id, "amount": "5000.00", "reason": "a prize"}
    made = await people.posted("/v1/adjustments", people.operator, **wanted)
    return lambda uow: corrections.approve(uow, people.second, UUID(made["id"]), UNLIMITED)


async def a_payment(people: People) -> Move:
    order_id = await people.ordered(people.frozen, people.other, 60)
    await people.posted("/v1/top-ups", people.operator, user_id=people.frozen.id, amount="100.00")
    return lambda uow: orders.pay(uow, people.frozen, order_id, PATIENCE)


async def a_refund(people: People) -> Move:
    order_id = await people.ordered(people.other, people.frozen, processed=True)
    return lambda uow: orders.refund(uow, people.operator, order_id, RefundCreate(), UNLIMITED)


async def a_cancellation_before_the_payment_is_posted(people: People) -> Move:
    order_id = await people.ordered(people.frozen, people.other)
    return lambda uow: orders.cancel(uow, people.frozen, order_id, "", UNLIMITED)


async def a_cancellation_after_the_payment_was_posted(people: People) -> Move:
    order_id = await people.ordered(people.other, people.frozen, processed=True)
    return lambda uow: orders.cancel(uow, people.other, order_id, "", UNLIMITED)


async def a_release_for_a_discarded_event(people: People) -> Move:
    order_id = await people.ordered(people.frozen, people.other)
    discarded = Discarded("order.placed", order_id, f"order/{order_id}")
    return lambda uow: processing.cancel_discarded(uow, [discarded])


@pytest.mark.parametrize(
    "prepare",
    [
        a_transfer,
        a_hold,
        a_capture,
        a_release,
        a_top_up,
        a_reversal,
        an_adjustment,
        an_approval,
        a_payment,
        a_refund,
        a_cancellation_before_the_payment_is_posted,
        a_cancellation_after_the_payment_was_posted,
        a_release_for_a_discarded_event,
    ],
    ids=lambda prepare: prepare.__name__,
)
async def test_after_a_refusal_by_the_database_the_unit_of_work_is_as_before_and_goes_on(
    api: Api, prepare: Callable[[People], Awaitable[Move]], caplog: pytest.LogCaptureFixture
) -> None:
    people = await People(api).come()
    move = await prepare(people)
    await freeze(api, people.frozen)
    before, credits_before = await api.everything(), await api.credits_of(people.frozen)

    async with UnitOfWork(api.database.write) as uow:
        with pytest.raises(TransferRefused):
            await move(uow)
        wanted = TransferCreate(to_user_id=people.second.id, amount=Decimal(1))
        await transfers.transfer(uow, people.other, wanted)
        await uow.commit()

    after = await api.everything()
    # Only what the other transfer wrote is different.
    assert {name for name in after if after[name] != before[name]} == {"accounts", "transfers", "entries", "events"}
    assert after["transfers"][0] - before["transfers"][0] == after["events"][0] - before["events"][0] == 1
    assert (await api.credits_of(people.frozen), await api.credits_of(people.second)) == (credits_before, amounts("1"))
    assert [record.levelno for record in caplog.records if "(frozen: transfer_refused)" in record.message] == [
        logging.WARNING
    ]
    await thaw(api)
    await api.assert_books_balance()


async def test_the_batch_goes_on_after_a_refusal_and_so_does_its_unit_of_work(api: Api) -> None:
    people = await People(api).come()
    await freeze(api, people.frozen)
    items = [TransferItem(to_user_id=to.id, amount=Decimal(1)) for to in (people.second, people.frozen, people.second)]

    async with UnitOfWork(api.database.write) as uow:
        wanted = TransferBatchCreate(mode=BatchMode.independent, transfers=items)
        done = await transfers.transfer_batch(uow, people.other, wanted)
        await transfers.transfer(uow, people.other, TransferCreate(to_user_id=people.second.id, amount=Decimal(1)))
        await uow.commit()

    assert [isinstance(outcome, TransferRefused) for outcome in done.outcomes] == [False, True, False]
    assert await api.credits_of(people.second) == amounts("3")
    await thaw(api)
    await api.assert_books_balance()


async def test_an_order_whose_hold_the_database_refuses_awaits_payment_and_is_paid_later(api: Api) -> None:
    buyer, seller, product = await api.shop(price="10.00")
    await freeze(api, buyer)

    placed = await api.place(buyer, (product, 2))
    assert placed["status"] == "awaiting_payment"
    assert await api.credits_of(buyer) == amounts("1000")
    refused = await api.post(f"/v1/orders/{placed['id']}/pay", by=buyer, key="k")
    assert_problem(refused, 422, "transfer_refused", pointers=[])
    assert await api.status_of(placed["id"]) == "awaiting_payment"

    await thaw(api)
    again = await api.post(f"/v1/orders/{placed['id']}/pay", by=buyer, key="k")
    assert (again.content, again.headers["idempotency-replayed"]) == (refused.content, "true")
    assert (await api.post(f"/v1/orders/{placed['id']}/pay", by=buyer)).status_code == 200
    await api.process()
    assert await api.status_of(placed["id"]) == "confirmed"
    assert await api.credits_of(seller) == amounts("20")
    await api.assert_books_balance()


async def test_an_order_whose_hold_the_database_refuses_is_refused_if_the_client_asks_for_that(api: Api) -> None:
    buyer, _, product = await api.shop()
    await freeze(api, buyer)
    before = await api.everything()
    wanted = order_of((product, 1), on_insufficient_credits="refuse")
    assert_problem(await api.post("/v1/orders", by=buyer, json=wanted), 422, "transfer_refused", pointers=[])
    assert await api.everything() == before


async def test_the_workers_batch_goes_on_without_an_order_whose_payment_the_database_refuses(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    buyer, seller, product = await api.shop(price="10.00", stock=10)
    poor = await make_user(api.database)
    of_poor = await make_product(api.database, seller=poor, price="10.00")
    placed = [await api.place(buyer, (one, 1)) for one in (product, of_poor, product, product)]
    await freeze(api, poor)
    soon = RetryPolicy(max_attempts=5, base=0.0, cap=0.0)
    processor = Processor[UnitOfWork](lambda: UnitOfWork(api.database.write), SUBSCRIPTIONS, retry=soon, batch_size=50)

    outcome = await processor.run_once()

    assert (outcome.processed, outcome.retried, outcome.buried) == (3, 1, 0)
    told = [await api.status_of(order["id"]) for order in placed]
    assert told == ["confirmed", "pending", "confirmed", "confirmed"]
    assert await api.credits_of(buyer) == amounts("970", "10")
    assert "frozen" in caplog.text
    await thaw(api)
    assert (await processor.run_once()).processed == 1
    assert await api.status_of(placed[1]["id"]) == "confirmed"
    assert (await api.credits_of(seller), await api.credits_of(poor)) == (amounts("30"), amounts("10"))
    await api.assert_books_balance()


async def test_a_fee_that_only_the_database_knows_leaves_too_few_credits(api: Api) -> None:
    buyer, seller, product = await api.shop(credits="10.00", price="10.00")
    async with api.database.engine.begin() as connection:
        await connection.execute(
            text("""
                CREATE FUNCTION take_fee() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    NEW.posted = NEW.posted - 0.01;
                    RETURN NEW;
                END $$
            """)
        )
        await connection.execute(
            text("CREATE TRIGGER take_fee BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION take_fee()")
        )
    before = await api.everything()

    single = await api.post("/v1/transfers", by=buyer, json={"to_user_id": seller.id, "amount": "10.00"})
    problem = assert_problem(single, 402, "insufficient_credits", pointers=["#/amount"])
    assert problem["detail"] == "the available credits do not cover 10.00"
    held = {"to_user_id": seller.id, "amount": "10.00", "expires_at": (now() + timedelta(hours=1)).isoformat()}
    assert_problem(await api.post("/v1/holds", by=buyer, json=held), 402, "insufficient_credits", pointers=["#/amount"])
    refused = await api.post("/v1/orders", by=buyer, json=order_of((product, 1), on_insufficient_credits="refuse"))
    assert_problem(refused, 402, "insufficient_credits")
    assert await api.everything() == before
    assert (await api.place(buyer, (product, 1)))["status"] == "awaiting_payment"


async def test_no_more_is_issued_than_the_issuance_account_can_hold(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    rich, other = await make_user(api.database), await make_user(api.database)
    most = {"user_id": rich.id, "amount": str(MAX_CREDITS), "note": "all"}
    await api.approve(await api.post("/v1/top-ups", by=operator, json=most), second)
    before = await api.everything()

    # The account that receives it has room. Only the database knows that the one which issues it has none.
    topped_up = await api.post("/v1/top-ups", by=operator, json={"user_id": other.id, "amount": "0.01"})
    assert_problem(topped_up, 422, "amount_invalid")
    adjusted = await api.post(
        "/v1/adjustments", by=operator, json={"user_id": other.id, "amount": "0.01", "reason": "a prize"}
    )
    assert_problem(adjusted, 422, "amount_invalid")
    assert await api.everything() == before
    async with UnitOfWork(api.database.write) as uow:
        await transfers.transfer(uow, rich, TransferCreate(to_user_id=other.id, amount=Decimal(1)))
        await uow.commit()
    await api.assert_books_balance()


@pytest.mark.usefixtures("alone")
async def test_a_savepoint_is_one_trip_and_a_refused_transfer_is_one_transaction(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, seller, product = await api.shop(credits="10.00", price="10.00")
    transfer = {"to_user_id": seller.id, "amount": "1.00"}
    order = order_of((product, 1))
    trips = []
    for path, wanted, status in (
        ("/v1/transfers", transfer, 201),
        ("/v1/transfers", transfer | {"amount": "10.00"}, 402),
        ("/v1/orders", order, 201),
    ):
        with plain_sql(monkeypatch) as ran:
            reply = await api.post(path, by=buyer, json=wanted)
        assert reply.status_code == status
        trips.append((len(ran), sum("SAVEPOINT" in sql for sql in ran)))
    # The order awaits payment: rolling back to the savepoint is a trip, why it was refused is another one, and so is
    # counting the orders that await payment.
    assert trips == [(6, 1), (4, 0), (9, 2)]
