"""Placing orders: a draft at the current prices, and a group of orders that is placed in one transaction.

A group is carried out in memory, on locked accounts, one order after another, and then written together. Each outcome
is a value: a refusal leaves the other orders alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.catalog.repository import ProductForSale
from services.catalog.schemas import ProductSummary
from services.credits.ledger import rules
from services.credits.ledger.repository import NewHold, Share
from services.credits.ledger.rules import Balance
from services.errors import (
    AlreadyExists,
    DomainError,
    Fault,
    InsufficientCredits,
    InvalidInput,
    QuotaExceeded,
    TransferRefused,
)
from services.fields import MAX_CREDITS, new_id, now, picked
from services.groups import Asked, Busy
from services.orders.events import OrderAwaitingPayment, OrderEvent, OrderPlaced
from services.orders.models import ITEM_FIELDS, ORDER_FIELDS, OrderStatus
from services.orders.repository import NewItem, NewOrder
from services.orders.schemas import OnInsufficientCredits, OrderCreate, OrderItemPublic, OrderPublic
from services.settings import Settings
from services.sql import Read
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.schemas import UserSummary


@dataclass(frozen=True, slots=True)
class Patience:
    """How long credits are held for a pending order, and how long and how many orders of a buyer may await payment."""

    hold: timedelta
    payment: timedelta
    most_unpaid: int = Settings.model_fields["unpaid_orders_per_user"].default

    @classmethod
    def from_settings(cls, settings: Settings) -> "Patience":
        return cls(
            timedelta(seconds=settings.hold_ttl),
            timedelta(seconds=settings.awaiting_payment_ttl),
            settings.unpaid_orders_per_user,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """An order at the current prices. Its status depends on whether the buyer's credits can be held."""

    id: UUID
    buyer: Caller
    wanted: OrderCreate
    items: Sequence[NewItem]
    products: Mapping[int, ProductForSale]
    total: Decimal
    at: datetime

    def shares(self) -> list[Share]:
        """What each seller is due, in the order of their accounts."""
        amounts: dict[int, Decimal] = {}
        for item in self.items:
            account_id = self.products[item.wanted.product_id].seller_account_id
            amounts[account_id] = amounts.get(account_id, Decimal(0)) + item.amount
        return [Share(account_id, amounts[account_id]) for account_id in sorted(amounts)]

    def written(self, status: OrderStatus, patience: Patience) -> NewOrder:
        """What is written, if the order was placed with this status."""
        return NewOrder(
            id=self.id,
            buyer_id=self.buyer.id,
            wanted=self.wanted,
            status=status,
            total=self.total,
            items=self.items,
            at=self.at,
            expires_in=patience.payment if status is OrderStatus.awaiting_payment else None,
            actor=self.buyer.actor,
        )

    def event(self, status: OrderStatus) -> OrderEvent:
        """What happened, if the order was placed with this status."""
        event = OrderPlaced if status is OrderStatus.pending else OrderAwaitingPayment
        return event(order_id=self.id, buyer_id=self.buyer.id, total=self.total)

    def shown(self, status: OrderStatus) -> OrderPublic:
        """The order as its buyer sees it, if it was placed with this status."""
        return OrderPublic(
            **picked(self.wanted, ORDER_FIELDS),
            id=self.id,
            status=status,
            total=self.total,
            refunded=Decimal(0),
            item_count=len(self.items),
            version=1,
            created_at=self.at,
            updated_at=self.at,
            buyer=UserSummary(id=self.buyer.id, full_name=self.buyer.full_name),
            items=[
                OrderItemPublic(
                    **picked(item.wanted, ITEM_FIELDS),
                    line=line,
                    returned=0,
                    unit_price=item.unit_price,
                    product=_summary(self.products[item.wanted.product_id]),
                )
                for line, item in enumerate(self.items, start=1)
            ],
        )


def draft(buyer: Caller, wanted: OrderCreate, products: Mapping[int, ProductForSale]) -> Draft:
    """The wanted order at the current prices. `products` has those that exist.

    Raises `InvalidInput` for products that are unknown, not for sale or the buyer's own, or a total that is too much.
    """
    _check_products(buyer, wanted, products)
    items = [NewItem(item, products[item.product_id].price) for item in wanted.items]
    total = sum((item.amount for item in items), Decimal(0))
    if total > MAX_CREDITS:
        raise InvalidInput(f"the total of {total} is more than any account can hold", [Fault("is too much", "#/items")])
    return Draft(new_id(), buyer, wanted, items, products, total, now())


def reference_taken(reference: str) -> AlreadyExists:
    """The error for a reference that the buyer has used before."""
    return AlreadyExists(
        f"you already placed an order with the reference {reference!r}", [Fault("is taken", "#/reference")]
    )


def check_unpaid(number: int, patience: Patience) -> None:
    """Raises `QuotaExceeded` if a buyer with this number of orders that await payment may not have another one."""
    if number >= patience.most_unpaid:
        raise QuotaExceeded(
            f"{number} of your orders await payment; the limit is {patience.most_unpaid}. Pay or cancel some first"
        )


def reads(uow: UnitOfWork, wanted: Sequence[tuple[int, OrderCreate]]) -> list[Read[Any]]:
    """What has to be read and locked to place these orders, each with the id of its buyer."""
    product_ids = sorted({item.product_id for _, order in wanted for item in order.items})
    references = [(buyer_id, order.reference) for buyer_id, order in wanted if order.reference is not None]
    buyer_ids = sorted({buyer_id for buyer_id, _ in wanted})
    found: list[Read[Any]] = [
        uow.products.selling(product_ids),
        uow.ledger.locking_free_buyers(buyer_ids),
        uow.order_placing.unpaid(buyer_ids),
    ]
    return [*found, uow.order_placing.references(references)] if references else found


def place_all(
    uow: UnitOfWork, asked: Sequence[Asked[OrderCreate]], found: Sequence[Any], patience: Patience
) -> list[OrderPublic | DomainError | Busy]:
    """Place orders one after another, as `services.orders.service.place` does; `found` is what `reads` has found.

    Nothing is sent: the orders are written with the events of the unit of work. An order is `Busy` if another
    transaction has locked its buyer's account.
    """
    products, balances, unpaid, *references = found
    group = _Group(uow, products, balances, unpaid, references[0] if references else (), patience)
    outcomes = [group.place(one) for one in asked]
    group.write()
    return outcomes


class _Group:
    """The orders of a group, and what is held for them."""

    def __init__(
        self,
        uow: UnitOfWork,
        products: Mapping[int, ProductForSale],
        balances: Mapping[int, Balance],
        unpaid: dict[int, int],
        references: Collection[tuple[int, str]],
        patience: Patience,
    ) -> None:
        self._uow = uow
        self._products = products
        self._balances = balances
        self._unpaid = unpaid
        self._references = references
        self._patience = patience
        self._orders: list[NewOrder] = []
        self._holds: list[NewHold] = []

    def place(self, asked: Asked[OrderCreate]) -> OrderPublic | DomainError | Busy:
        try:
            return self._place(asked)
        except DomainError as refusal:
            return refusal

    def _place(self, asked: Asked[OrderCreate]) -> OrderPublic | Busy:
        buyer, wanted = asked.caller, asked.wanted
        order = draft(buyer, wanted, self._products)
        balance = self._balances.get(buyer.id)
        if balance is None:
            return Busy()
        refusal = rules.hold_refusal(balance, order.total)
        if refusal is not None and not awaits_payment(refusal, wanted):
            raise refusal
        if wanted.reference is not None and (buyer.id, wanted.reference) in self._references:
            raise reference_taken(wanted.reference)
        status = OrderStatus.pending if refusal is None else OrderStatus.awaiting_payment
        if status is OrderStatus.pending:
            rules.hold(balance, order.total)
            self._holds += [NewHold(order.id, balance.account_id, share, buyer.actor) for share in order.shares()]
        else:
            check_unpaid(self._unpaid[buyer.id], self._patience)
            self._unpaid[buyer.id] += 1
        self._orders.append(order.written(status, self._patience))
        self._uow.record(order.event(status), asked.trace)
        return order.shown(status)

    def write(self) -> None:
        if self._orders:
            self._uow.write_with_events(self._uow.order_placing.placing(self._orders))
        if self._holds:
            self._uow.write_with_events(self._uow.ledger.holding(self._holds, self._patience.hold))


def awaits_payment(refusal: DomainError, wanted: OrderCreate) -> bool:
    """Whether an order whose credits cannot be held for this reason is placed all the same."""
    asks_for_refusal = wanted.on_insufficient_credits is OnInsufficientCredits.refuse
    return isinstance(refusal, InsufficientCredits | TransferRefused) and not asks_for_refusal


def _check_products(buyer: Caller, wanted: OrderCreate, products: Mapping[int, ProductForSale]) -> None:
    faults = []
    for index, item in enumerate(wanted.items):
        product = products.get(item.product_id)
        if product is None or not product.is_active:
            # The same for both: only its seller may know whether a product that is not for sale exists.
            faults.append(Fault(f"product {item.product_id} is not for sale", f"#/items/{index}/product_id"))
        elif product.seller_id == buyer.id:
            faults.append(Fault(f"product {item.product_id} is your own", f"#/items/{index}/product_id"))
    if faults:
        raise InvalidInput("some products cannot be ordered", faults)


def _summary(product: ProductForSale) -> ProductSummary:
    return ProductSummary(id=product.id, sku=product.sku, name=product.name)
