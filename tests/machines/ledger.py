"""The ledger as a state machine: random steps on real PostgreSQL, each compared with a model in memory."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from services.audit.schemas import Difference
from services.audit.service import audit
from services.credits.corrections import service as adjustments
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
from services.database import Database
from services.errors import DomainError
from services.fields import new_id, now
from services.orders import service as orders
from services.orders.expiry.service import HELD, UNPAID
from services.orders.schemas import OrderCreate, OrderItemCreate, RefundCreate, RefundLineCreate
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.subscriptions import SUBSCRIPTIONS
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import rows
from tests.factories import NOTHING_ALONE, UNLIMITED, make_operator, make_product, make_user
from tests.machines.model import Gift, Goods, Line, Model, Promise, Purse, Sale, Wish
from tests.naive_bank import Bank, Wanted, as_one_chain, naively

USERS, PRODUCTS = 4, 3
PATIENT = orders.Patience(timedelta(hours=1), timedelta(hours=1), 10_000)
BRIEFLY, APPROVAL_ABOVE = timedelta(milliseconds=60), Decimal(100)
TOO_LATE = orders.Patience(timedelta(0), timedelta(hours=1), 10_000)
"""Holds that have expired as soon as they are made."""

users = st.integers(0, USERS - 1)
cents = st.one_of(st.integers(1, 300), st.integers(2000, 30_000)).map(lambda number: Decimal(number) / 100)


class LedgerMachine(RuleBasedStateMachine):
    """The example's own users, products and operators, in a database that all examples share."""

    runner: ClassVar[asyncio.Runner]
    database: ClassVar[Database]
    steps: ClassVar[int] = 0

    sales = Bundle("sales")
    promises = Bundle("promises")
    gifts = Bundle("gifts")
    wishes = Bundle("wishes")

    @initialize(given=st.lists(st.integers(0, 50_000), min_size=USERS, max_size=USERS), stock=st.integers(5, 60))
    def open(self, given: list[int], stock: int) -> None:
        self.runner.run(self._open([Decimal(number) / 100 for number in given], stock))

    async def _open(self, given: list[Decimal], stock: int) -> None:
        self.people: list[User] = [await make_user(self.database, credits=str(amount)) for amount in given]
        self.operator = await make_operator(self.database)
        self.second_operator = await make_operator(self.database)
        sellers = [0, 0, 1]
        prices = ["2.50", "0.37", "11.00"]
        self.products = [
            await make_product(self.database, seller=self.people[seller], price=price, stock=stock)
            for seller, price in zip(sellers, prices, strict=True)
        ]
        goods = {
            number: Goods(seller, Decimal(price), stock)
            for number, (seller, price) in enumerate(zip(sellers, prices, strict=True))
        }
        self.model = Model(
            {number: Purse(amount) for number, amount in enumerate(given)}, goods, sum(given, Decimal(0))
        )
        self.processor = Processor[UnitOfWork](
            lambda: UnitOfWork(self.database.write), SUBSCRIPTIONS, retry=RetryPolicy(1, 1.0, 1.0), batch_size=50
        )

    def do(self, work: Callable[[UnitOfWork], Awaitable[Any]]) -> tuple[str, Any]:
        """Do it in a unit of work; return `done` and the result, or the code of the refusal."""

        async def one() -> tuple[str, Any]:
            async with UnitOfWork(self.database.write) as uow:
                try:
                    result = await work(uow)
                except DomainError as refusal:
                    return refusal.code, None
                await uow.commit()
                return "done", result

        return self.runner.run(one())

    @rule(target=gifts, user=users, amount=cents)
    def top_up(self, user: int, amount: Decimal) -> Any:
        wanted = TopUpCreate(user_id=self.people[user].id, amount=amount)
        told, issued = self.do(lambda uow: ledger.top_up(uow, wanted))
        assert told == self.model.issue(user, amount)
        if told != "done":
            return multiple()
        return Gift(issued.id, None, user, amount)

    @rule(user=users, stays_closed=st.booleans())
    def close(self, user: int, stays_closed: bool) -> None:
        told, _ = self.do(lambda uow: ledger.close_account(uow, self.people[user].id))
        assert told == self.model.close(user)
        if not stays_closed:
            self.reopen(user)

    @rule(user=users)
    def reopen(self, user: int) -> None:
        told, _ = self.do(lambda uow: ledger.reopen_account(uow, self.people[user].id))
        assert told == self.model.reopen(user)

    @rule(target=gifts, sender=users, recipient=users, amount=cents)
    def transfer(self, sender: int, recipient: int, amount: Decimal) -> Any:
        wanted = TransferCreate(to_user_id=self.people[recipient].id, amount=amount)
        told, transferred = self.do(lambda uow: transfers.transfer(uow, self.people[sender], wanted))
        assert told == self.model.transfer(sender, recipient, amount)
        if told != "done":
            return multiple()
        return Gift(transferred.outcomes[0].transfer_id, sender, recipient, amount)

    @rule(gift=gifts)
    def reverse(self, gift: Gift) -> None:
        told, _ = self.do(lambda uow: corrections.reverse(uow, self.operator, gift.id, "by mistake", UNLIMITED))
        if gift.reversed:
            assert told == "transfer_already_reversed"
            return
        assert told == self.model.take_back(gift.sender, gift.recipient, gift.amount)
        gift.reversed = told == "done"

    @rule(target=promises, payer=users, payee=users, amount=cents, late=st.booleans())
    def hold(self, payer: int, payee: int, amount: Decimal, late: bool) -> Any:
        expires_at = now() + (BRIEFLY if late else timedelta(hours=1))
        wanted = HoldCreate(to_user_id=self.people[payee].id, amount=amount, expires_at=expires_at)
        told, held = self.do(lambda uow: holds.hold(uow, self.people[payer], wanted, timedelta(days=1)))
        assert told == self.model.promise(payer, payee, amount)
        if told != "done":
            return multiple()
        if late:
            time.sleep(max(0.0, (expires_at - now()).total_seconds()) + 0.005)
        promise = Promise(held.id, payer, payee, amount, late)
        self.model.promises.append(promise)
        return promise

    @rule(promise=promises, part=st.sampled_from([None, Decimal("0.01"), Decimal(20), Decimal(500)]))
    def post(self, promise: Promise, part: Decimal | None) -> None:
        told, _ = self.do(lambda uow: holds.post(uow, self.people[promise.payee], promise.id, part, UNLIMITED))
        assert told == self.model.resolve(promise, "posted", promise.amount if part is None else part)

    @rule(promise=promises)
    def void(self, promise: Promise) -> None:
        told, _ = self.do(lambda uow: holds.void(uow, self.operator, promise.id, UNLIMITED))
        assert told == self.model.resolve(promise, "voided")

    @rule(promise=promises)
    def reverse_what_was_held(self, promise: Promise) -> None:
        told, _ = self.do(lambda uow: corrections.reverse(uow, self.operator, promise.id, "by mistake", UNLIMITED))
        if promise.state != "posted":
            expected = {"voided": "transfer_already_voided", "expired": "transfer_expired"}
            assert told == expected.get(promise.state, "transfer_not_reversible")
        elif promise.reversed:
            assert told == "transfer_already_reversed"
        else:
            assert told == self.model.take_back(promise.payer, promise.payee, promise.posted)
            promise.reversed = told == "done"

    @rule()
    def expire(self) -> None:
        for sweep in (UNPAID, HELD, holds.HOLDS):
            told, _ = self.do(lambda uow, sweep=sweep: take_slice(uow, sweep, None, 100))  # type: ignore[misc]
            assert told == "done"
        self.model.expire()

    @rule(target=wishes, user=users, amount=cents, takes=st.booleans())
    def adjust(self, user: int, amount: Decimal, takes: bool) -> Any:
        signed = -amount if takes else amount
        wanted = AdjustmentCreate(user_id=self.people[user].id, amount=signed, reason="counted anew")
        limits = NOTHING_ALONE if amount > APPROVAL_ABOVE else UNLIMITED
        told, adjusted = self.do(lambda uow: adjustments.adjust(uow, self.operator, wanted, limits))
        if amount > APPROVAL_ABOVE and not self.model.purses[user].closed:
            assert told == "done"
            return Wish(adjusted.id, user, signed)
        assert told == self.model.issue(user, signed)
        return multiple()

    @rule(wish=wishes, agreed=st.booleans())
    def decide(self, wish: Wish, agreed: bool) -> None:
        def decision(uow: UnitOfWork, operator: User) -> Awaitable[Any]:
            if agreed:
                return adjustments.approve(uow, operator, wish.id, UNLIMITED)
            return adjustments.reject(uow, operator, wish.id)

        told, _ = self.do(lambda uow: decision(uow, self.operator))
        assert told == "own_request"
        told, _ = self.do(lambda uow: decision(uow, self.second_operator))
        if wish.state != "pending":
            assert told == "conflict"
        elif agreed:
            assert told == self.model.issue(wish.user, wish.amount)
            wish.state = "applied" if told == "done" else "pending"
        else:
            assert told == "done"
            wish.state = "rejected"

    @rule(
        sender=users,
        wanted=st.lists(st.tuples(users, cents, st.booleans()), min_size=1, max_size=8),
        mode=st.sampled_from(BatchMode),
    )
    def batch(self, sender: int, wanted: list[tuple[int, Decimal, bool]], mode: BatchMode) -> None:
        items = [
            TransferItem(to_user_id=self.people[recipient].id, amount=amount, linked=linked)
            for recipient, amount, linked in wanted
        ]
        asked = TransferBatchCreate(mode=mode, transfers=items)
        told, transferred = self.do(lambda uow: transfers.transfer_batch(uow, self.people[sender], asked))
        assert told == "done"
        purses = self.model.purses
        bank = Bank(
            [purses[number].posted for number in range(USERS)],
            [purses[number].held for number in range(USERS)],
            [purses[number].closed for number in range(USERS)],
        )
        chain = [Wanted(sender, recipient, amount, linked) for recipient, amount, linked in wanted]
        after, codes = naively(bank, as_one_chain(chain) if mode is BatchMode.atomic else chain)
        assert [one.code if isinstance(one, DomainError) else "posted" for one in transferred.outcomes] == codes
        for number, posted in enumerate(after.posted):
            purses[number].posted = posted

    @rule(
        target=sales,
        buyer=st.integers(2, USERS - 1),
        lines=st.lists(st.tuples(st.integers(0, PRODUCTS - 1), st.integers(1, 12)), min_size=1, max_size=3),
        late=st.integers(0, 5).map(lambda number: number == 0),
    )
    def place(self, buyer: int, lines: list[tuple[int, int]], late: bool) -> Any:
        wanted = OrderCreate(
            items=[OrderItemCreate(product_id=self.products[number].id, quantity=n) for number, n in lines]
        )
        patience = TOO_LATE if late else PATIENT
        told, placed = self.do(lambda uow: orders.place(uow, self.people[buyer], wanted, patience))
        sale = Sale(new_id(), buyer, [Line(number, n) for number, n in lines], "pending", late)
        held = self.model.hold(sale)
        if held == "account_closed":
            assert told == ("invalid_input" if self.model.pays_a_closed_account(sale) else held)
            return multiple()
        assert told == "done"
        if held == "insufficient_credits":
            sale.status, sale.late = "awaiting_payment", False
        assert placed.status == sale.status
        sale.id = placed.id
        self.model.sales.append(sale)
        return sale

    @rule(sale=sales)
    def pay(self, sale: Sale) -> None:
        told, _ = self.do(lambda uow: orders.pay(uow, self.people[sale.buyer], sale.id, PATIENT))
        if sale.status != "awaiting_payment":
            assert told == "conflict"
            return
        assert told == self.model.hold(sale)
        if told == "done":
            sale.status = "pending"
            # It is processed after those that were placed or paid before.
            self.model.sales.remove(sale)
            self.model.sales.append(sale)

    @rule(closing=st.sampled_from([None, None, 0, 1]))
    def process(self, closing: int | None) -> None:
        """A worker's look at the outbox, now and then with a seller closed just before."""
        if closing is not None:
            self.close(closing, stays_closed=True)
        outcome = self.runner.run(self.processor.run_once())
        assert (outcome.retried, outcome.buried) == (0, 0)
        self.model.process()

    @rule(sale=sales)
    def cancel(self, sale: Sale) -> None:
        told, _ = self.do(
            lambda uow: orders.cancel(uow, self.people[sale.buyer], sale.id, "changed my mind", UNLIMITED)
        )
        assert told == self.model.cancel(sale)

    @rule(sale=sales, place=st.integers(0, 2), quantity=st.integers(1, 6))
    def refund(self, sale: Sale, place: int, quantity: int) -> None:
        place %= len(sale.lines)
        wanted = RefundCreate(lines=[RefundLineCreate(line=place + 1, quantity=quantity)])
        told, _ = self.do(lambda uow: orders.refund(uow, self.operator, sale.id, wanted, UNLIMITED))
        assert told == self.model.refund(sale, place, quantity)

    @rule(sale=sales)
    def fulfil(self, sale: Sale) -> None:
        told, _ = self.do(lambda uow: orders.fulfil(uow, self.operator, sale.id))
        assert told == self.model.fulfil(sale)

    @invariant()
    def tables_say_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        accounts = await rows(
            self.database,
            "SELECT posted, held, closed_at IS NOT NULL, version,"
            " (SELECT count(*) FROM entries WHERE account_id = accounts.id),"
            " (SELECT coalesce(sum(amount), 0) FROM entries WHERE account_id = accounts.id) FROM accounts"
            " WHERE user_id = ANY(:ids) ORDER BY user_id",
            ids=[user.id for user in self.people],
        )
        purses = [self.model.purses[number] for number in range(USERS)]
        told = [(posted, held, closed) for posted, held, closed, *_ in accounts]
        assert told == [(one.posted, one.held, one.closed) for one in purses]
        # Gapless versions, and the balance is what the entries sum to.
        assert all(version == number and posted == total for posted, _, _, version, number, total in accounts)
        assert all(one.held >= 0 and one.available >= 0 for one in purses)
        stock = await rows(
            self.database,
            "SELECT on_hand, reserved FROM inventory WHERE product_id = ANY(:ids) ORDER BY product_id",
            ids=[product.id for product in self.products],
        )
        assert stock == [(goods.on_hand, goods.reserved) for goods in self.model.goods.values()]
        statuses = await rows(
            self.database,
            "SELECT id, status FROM orders WHERE buyer_id = ANY(:ids)",
            ids=[user.id for user in self.people],
        )
        assert dict(statuses) == {sale.id: sale.status for sale in self.model.sales}

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.runner.run(self._audit())

    async def _audit(self) -> None:
        found: list[Difference] = []
        async with UnitOfWork(self.database.read) as uow:
            await audit(uow, 60.0, found.append)
        assert found == []
