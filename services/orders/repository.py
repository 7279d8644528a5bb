"""All SQL about orders, their items and their history."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from pydantic import Field
from sqlalchemy import ARRAY, ColumnElement, Uuid, any_, literal
from sqlalchemy.orm import joinedload, selectinload
from sqlmodel import col, select

from services.catalog.models import Product
from services.fields import Id, Instant, Text, picked
from services.filters import EXACT, ORDERED, TEXT, Filterable, Operator, made_then
from services.orders import queries
from services.orders.models import (
    ITEM_FIELDS,
    ORDER_FIELDS,
    Order,
    OrderBase,
    OrderItem,
    OrderItemBase,
    OrderSeller,
    OrderStatus,
)
from services.query import Listing, PageQuery, Rows, Sortable
from services.repository import Repository
from services.sql import Write
from services.totals import MAX_COUNTED, Precision, estimated
from services.users.repository import WITHOUT_PASSWORD
from services.walks import Members


@dataclass(frozen=True, slots=True)
class NewItem:
    """An order line to write: what the buyer sent for it, and the price of the sale."""

    wanted: OrderItemBase
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.wanted.quantity * self.unit_price


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order to write. One that awaits payment expires after `expires_in`, by the database's clock."""

    id: UUID
    buyer_id: int
    wanted: OrderBase
    status: OrderStatus
    total: Decimal
    items: Sequence[NewItem]
    at: datetime
    expires_in: timedelta | None
    actor: str


@dataclass(frozen=True, slots=True)
class LockedOrder:
    """The data needed to move an order. Its row is locked until the transaction ends."""

    id: UUID
    buyer_id: int
    status: OrderStatus
    total: Decimal


@dataclass(frozen=True, slots=True)
class SellerShare:
    """What one seller is due from an order."""

    seller_id: int
    account_id: int
    amount: Decimal


class Sold(NamedTuple):
    """What one seller sold in an order: a number of lines, what they come to, and what of it was refunded."""

    item_count: int
    total: Decimal
    refunded: Decimal


NOTHING_SOLD = Sold(0, Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an order from one status to another."""

    order_id: UUID
    before: OrderStatus
    after: OrderStatus
    reason: str = ""


class OrderRepository(Repository[Order]):
    model = Order

    @staticmethod
    def placing(order: NewOrder) -> Write:
        """Write an order, its lines and its first transition, or nothing if the buyer has used the reference before."""
        parameters = {
            "id": order.id,
            "buyer_id": order.buyer_id,
            "status": order.status.value,
            "total": order.total,
            "item_count": len(order.items),
            "at": order.at,
            "expires_in": order.expires_in,
            "actor": order.actor,
            "each_unit_price": [item.unit_price for item in order.items],
            **picked(order.wanted, ORDER_FIELDS),
            **{f"each_{name}": [getattr(item.wanted, name) for item in order.items] for name in ITEM_FIELDS},
        }
        return Write(queries.PLACE, parameters)

    async def place(self, placing: Write) -> bool:
        """Place an order now; False if the buyer has used the reference before."""
        (written,) = await self.sql.write(placing)
        return written == 1

    async def page(
        self, wanted: PageQuery, *, buyer_id: int | None = None, seller_id: int | None = None
    ) -> Rows[Order]:
        """Orders of one buyer, orders with a product of one seller, or all orders, without lines; newest first."""
        bought, sold = _parties(buyer_id, seller_id)
        return await self.list_page(_listing(seller_id), wanted, *bought, members=sold, options=(WITH_BUYER,))

    async def sold_in(self, order_ids: Sequence[UUID], seller_id: int) -> dict[UUID, Sold]:
        """What the seller sold in each of these orders."""
        rows = await self.sql.fetch(queries.SOLD, ids=list(order_ids), seller_id=seller_id)
        found = {row["order_id"]: Sold(row["item_count"], row["total"], row["refunded"]) for row in rows}
        return {order_id: found.get(order_id, NOTHING_SOLD) for order_id in order_ids}

    async def items_of(self, order_ids: Sequence[UUID], seller_id: int | None = None) -> dict[UUID, list[OrderItem]]:
        """The lines of each order, or those of one seller, with what is shown of their products."""
        mine = [] if seller_id is None else [is_sold_by(seller_id)]
        shown = joinedload(OrderItem.product, innerjoin=True)  # type: ignore[arg-type]
        statement = (
            select(OrderItem)
            .where(col(OrderItem.order_id) == any_(literal(list(order_ids), ARRAY(Uuid))), *mine)
            .options(shown.load_only(Product.id, Product.sku, Product.name))  # type: ignore[arg-type]
            .order_by(col(OrderItem.order_id), col(OrderItem.line))
        )
        found: dict[UUID, list[OrderItem]] = {order_id: [] for order_id in order_ids}
        for item in await self.session.exec(statement):
            found[item.order_id].append(item)
        return found

    async def newest(self, *, buyer_id: int | None, seller_id: int | None) -> UUID | None:
        """The id of the newest of these orders; None if there are none."""
        bought, sold = _parties(buyer_id, seller_id)
        key, conditions = (col(Order.id), bought) if sold is None else (sold.key, [sold.condition])
        return (await self.session.exec(select(key).where(*conditions).order_by(key.desc()).limit(1))).first()

    def exported(
        self, filters: Sequence[str], *, last: UUID, after: UUID | None, buyer_id: int | None, seller_id: int | None
    ) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """The same orders without their lines, as rows of `EXPORTED`, oldest first, in batches as `stream` has them.

        Only those after `after`, up to `last`. For a seller, they have what the seller sold. Raises `BadQuery`.
        """
        bought, sold = _parties(buyer_id, seller_id)
        listing = _listing(seller_id)
        conditions = [*bought, *([] if sold is None else [sold.has(col(Order.id))]), col(Order.id) <= last]
        columns = [col(getattr(Order, name)) for name in EXPORTED[1:]]
        conditions += listing.conditions(filters)
        if seller_id is None:
            return self.stream(columns, *conditions, after=after)
        return self._as_sold(self.stream(columns, *conditions, after=after, batch=SALES_A_PIECE), seller_id)

    async def _as_sold(
        self, batches: AsyncIterator[Sequence[Sequence[Any]]], seller_id: int
    ) -> AsyncIterator[Sequence[Sequence[Any]]]:
        async for rows in batches:
            sold = await self.sold_in([row[0] for row in rows], seller_id)
            shown = [{**dict.fromkeys(ORDER_FIELDS), **sold[row[0]]._asdict()} for row in rows]
            yield [
                [one.get(name, value) for name, value in zip(EXPORTED, row, strict=True)]
                for one, row in zip(shown, rows, strict=True)
            ]

    async def number_by_status(self) -> tuple[dict[OrderStatus, int], Precision]:
        """How many orders there are in each status: counted if there are up to `MAX_COUNTED`, otherwise estimated.

        No index has the status, so that moving an order changes no index.
        """
        rows = await self.sql.fetch(queries.BY_STATUS, most=MAX_COUNTED + 1)
        counted = {OrderStatus(row["status"]): int(row["number"]) for row in rows}
        if sum(counted.values()) <= MAX_COUNTED:
            return {status: counted.get(status, 0) for status in OrderStatus}, Precision.exact
        totals = {
            status: await estimated(self.session, select(Order.id).where(col(Order.status) == status))
            for status in OrderStatus
        }
        return {status: total.value for status, total in totals.items()}, Precision.estimate

    async def lock(self, order_ids: Sequence[UUID]) -> dict[UUID, LockedOrder]:
        """Lock the orders until the transaction ends, in the order of their ids."""
        rows = await self.sql.fetch(queries.LOCK, ids=list(order_ids))
        return {row["id"]: LockedOrder(**{**row, "status": OrderStatus(row["status"])}) for row in rows}

    async def pieces(self, order_ids: Sequence[UUID]) -> dict[UUID, dict[int, int]]:
        """Pieces of each product in each order, without returned ones; lines of the same product are added up."""
        pieces: dict[UUID, dict[int, int]] = {}
        for row in await self.sql.fetch(queries.PIECES, ids=list(order_ids)):
            pieces.setdefault(row["order_id"], {})[row["product_id"]] = row["pieces"]
        return pieces

    async def shares(self, order_id: UUID) -> list[SellerShare]:
        """What each seller is due from the order."""
        return [SellerShare(**row) for row in await self.sql.fetch(queries.SHARES, id=order_id)]

    async def move(self, moves: Sequence[Move]) -> None:
        """Set the statuses and write the transitions. The caller has locked the orders."""
        moved = await self.sql.run(
            queries.MOVE,
            ids=[move.order_id for move in moves],
            from_statuses=[move.before.value for move in moves],
            to_statuses=[move.after.value for move in moves],
            reasons=[move.reason for move in moves],
            actor=self.actor,
        )
        assert moved == len(moves), "an order changed although it was locked"


def is_sold_by(seller_id: int) -> ColumnElement[bool]:
    """Whether a line of an order is this seller's. Not by a join, which might read all products."""
    seller = select(col(Product.seller_id)).where(col(Product.id) == col(OrderItem.product_id)).scalar_subquery()
    mine: ColumnElement[bool] = seller == seller_id
    return mine


def _listing(seller_id: int | None) -> Listing[Order]:
    return ORDERS if seller_id is None else SALES


def _parties(buyer_id: int | None, seller_id: int | None) -> tuple[list[ColumnElement[bool]], Members | None]:
    """The conditions for a buyer's orders, and the orders of a seller."""
    bought = [] if buyer_id is None else [col(Order.buyer_id) == buyer_id]
    sold = None if seller_id is None else Members(col(OrderSeller.order_id), col(OrderSeller.seller_id) == seller_id)
    return bought, sold


SALES_A_PIECE = 200
"""How many orders of a seller are exported at a time. All of their lines are looked at."""

EXPORTED = (
    "id",
    *ORDER_FIELDS,
    "buyer_id",
    "status",
    "total",
    "refunded",
    "item_count",
    "version",
    "created_at",
    "updated_at",
)
"""The fields of an order that an export has."""

WITH_BUYER = joinedload(Order.buyer, innerjoin=True).options(WITHOUT_PASSWORD)  # type: ignore[arg-type]

ORDER_WITH_DETAILS = (
    WITH_BUYER,
    selectinload(Order.items).joinedload(OrderItem.product, innerjoin=True),  # type: ignore[arg-type]
    selectinload(Order.transitions),  # type: ignore[arg-type]
)
"""Everything `OrderDetail` shows: one statement for the orders, one for their lines, one for their history."""

_Amount = Annotated[Decimal, Field(max_digits=18, decimal_places=2)]

_ID = Sortable(col(Order.id), UUID)

ORDERS = Listing[Order](
    filters={
        "status": Filterable(col(Order.status), OrderStatus, EXACT),
        "total": Filterable(col(Order.total), _Amount, ORDERED),
        "reference": Filterable(col(Order.reference), Text, TEXT | {Operator.is_null}, indexed=frozenset({"id"})),
        "buyer_id": Filterable(col(Order.buyer_id), Id, EXACT, indexed=frozenset({"id"})),
        "created_at": Filterable(col(Order.created_at), Instant, ORDERED, bounds=made_then),
        "updated_at": Filterable(col(Order.updated_at), Instant, ORDERED),
    },
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)

_OF_BUYERS = frozenset({"reference", "total"})
"""What only buyers and the staff see of an order."""

SALES = replace(ORDERS, filters={name: one for name, one in ORDERS.filters.items() if name not in _OF_BUYERS})
"""The orders with something that one seller sold."""
