"""Orders, their items and their history."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import pydantic
from pydantic import AfterValidator
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    text,
)
from sqlmodel import Field, Relationship, SQLModel

from services.acting import LONGEST_ACTOR
from services.catalog.models import Product
from services.fields import (
    TIMESTAMPTZ,
    Quantity,
    StrictId,
    Text,
    allowed,
    new_id,
    now,
    one_of,
    storable,
    text_enum,
)
from services.users.models import User

MAX_ITEMS = 750
"""The maximum number of lines in an order."""

LINES_A_PAGE = 1000
"""The maximum number of lines in a page of a list: what is read, rendered and sent for it does not grow beyond that."""

LINES_EXAMINED = 20_000
"""The maximum number of lines that a page of a seller's orders looks at to find those of the seller."""

Reference = Annotated[str, pydantic.Field(min_length=1, max_length=64, pattern=r"\S"), AfterValidator(storable)]
Reason = Annotated[Text, pydantic.Field(max_length=200)]
LineNumber = Annotated[int, pydantic.Field(strict=True, ge=1, le=MAX_ITEMS)]


class OrderStatus(StrEnum):
    """The status of an order."""

    awaiting_payment = "awaiting_payment"
    pending = "pending"
    confirmed = "confirmed"
    fulfilled = "fulfilled"
    rejected = "rejected"
    cancelled = "cancelled"


ALLOWED_MOVES: dict[OrderStatus, frozenset[OrderStatus]] = {
    OrderStatus.awaiting_payment: frozenset({OrderStatus.pending, OrderStatus.cancelled}),
    OrderStatus.pending: frozenset({OrderStatus.confirmed, OrderStatus.rejected, OrderStatus.cancelled}),
    OrderStatus.confirmed: frozenset({OrderStatus.fulfilled, OrderStatus.cancelled}),
    OrderStatus.fulfilled: frozenset(),
    OrderStatus.rejected: frozenset(),
    OrderStatus.cancelled: frozenset(),
}
"""Every move an order may make; a CHECK on `order_transitions` enforces the same."""

OUT_OF_STOCK = "out of stock"
SELLER_CLOSED = "a seller's account is closed"
EXPIRED = "expired"
DISCARDED = "could not be processed"
PAID = "paid"
ALL_REFUNDED = "everything was refunded"
OWN_REASONS = frozenset({OUT_OF_STOCK, SELLER_CLOSED, EXPIRED, DISCARDED, PAID, ALL_REFUNDED})
"""The reasons of transitions that the service itself gives."""

FIRST_STATUSES = frozenset({OrderStatus.awaiting_payment, OrderStatus.pending})
"""The statuses that a new order may have."""


def allowed_moves() -> str:
    """The CHECK expression for `order_transitions`, built from `ALLOWED_MOVES`."""
    first = [f">{status.value}" for status in sorted(FIRST_STATUSES)]
    moves = [
        f"{before.value}>{after.value}" for before, after_all in ALLOWED_MOVES.items() for after in sorted(after_all)
    ]
    return one_of("coalesce(from_status, '') || '>' || to_status", [*first, *moves])


class OrderBase(SQLModel):
    """The fields of an order that its buyer sets."""

    # SQLModel does not find the length of a column inside the union of one that may be null.
    reference: Reference | None = Field(default=None, sa_type=String(64))


ORDER_FIELDS = tuple(OrderBase.model_fields)
"""What is stored of a new order, and shown, as its buyer said it. The hot path looks the names up only once."""


class Order(OrderBase, table=True):
    """An order, at the prices at the time it was placed."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint(allowed("status", OrderStatus), name="status"),
        CheckConstraint("total > 0", name="total"),
        CheckConstraint("item_count > 0", name="item_count"),
        CheckConstraint("refunded >= 0 AND refunded <= total", name="refunded"),
        CheckConstraint("(status = 'awaiting_payment') = (expires_at IS NOT NULL)", name="expires"),
        Index("ix_orders_buyer_id_id", "buyer_id", "id"),
        # The status is left out, so that a move of an order that does not await payment changes no indexed column.
        Index("ix_orders_expires_at_id", "expires_at", "id", postgresql_where=text("expires_at IS NOT NULL")),
        # How many orders of a buyer await payment is counted before there is another one.
        Index("ix_orders_buyer_id_unpaid", "buyer_id", postgresql_where=text("expires_at IS NOT NULL")),
        Index(
            "uq_orders_buyer_id_reference",
            "buyer_id",
            "reference",
            unique=True,
            postgresql_where=text("reference IS NOT NULL"),
        ),
        Index("ix_orders_reference_id", "reference", "id", postgresql_where=text("reference IS NOT NULL")),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    buyer_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    status: OrderStatus = Field(sa_type=text_enum(OrderStatus))
    total: Decimal = Field(max_digits=18, decimal_places=2)
    item_count: int = Field(sa_type=Integer)
    refunded: Decimal = Field(
        default=Decimal(0), max_digits=18, decimal_places=2, sa_column_kwargs={"server_default": text("0")}
    )
    """The part of the total that went back to the buyer, for the returned pieces."""
    expires_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When an order that awaits payment expires. A pending order expires with its holds."""
    version: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    updated_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    buyer: User = Relationship(sa_relationship_kwargs={"lazy": "raise"})
    items: list["OrderItem"] = Relationship(
        back_populates="order", sa_relationship_kwargs={"lazy": "raise", "order_by": "OrderItem.line"}
    )
    transitions: list["OrderTransition"] = Relationship(
        back_populates="order", sa_relationship_kwargs={"lazy": "raise", "order_by": "OrderTransition.id"}
    )


class OrderItemBase(SQLModel):
    """What the buyer says of a line."""

    product_id: StrictId = Field(foreign_key="products.id", sa_type=BigInteger)
    quantity: Quantity = Field(sa_type=Integer)


ITEM_FIELDS = tuple(OrderItemBase.model_fields)
"""What is stored of a new line, and shown, as the buyer said it."""


class OrderItem(OrderItemBase, table=True):
    """One line of an order, at the unit price *of the sale*."""

    __tablename__ = "order_items"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity"),
        CheckConstraint("unit_price > 0", name="unit_price"),
        CheckConstraint("returned >= 0 AND returned <= quantity", name="returned"),
    )

    order_id: UUID = Field(primary_key=True, foreign_key="orders.id")
    line: int = Field(primary_key=True, sa_type=Integer)
    unit_price: Decimal = Field(max_digits=18, decimal_places=2)
    returned: int = Field(default=0, sa_type=Integer, sa_column_kwargs={"server_default": text("0")})
    """Pieces that were refunded."""

    order: Order = Relationship(back_populates="items", sa_relationship_kwargs={"lazy": "raise"})
    product: Product = Relationship(sa_relationship_kwargs={"lazy": "raise"})


class OrderSeller(SQLModel, table=True):
    """A seller of an order, with a row in the order of the seller's list.

    A trigger writes the rows with the order's lines, whichever release places the order. There are no foreign keys: the
    values come from rows that have them, and a check would lock the seller's user for each order.
    """

    __tablename__ = "order_sellers"

    seller_id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    order_id: UUID = Field(primary_key=True)


class OrderTransitionBase(SQLModel):
    """One move of an order."""

    from_status: OrderStatus | None = Field(default=None, sa_type=text_enum(OrderStatus))
    to_status: OrderStatus = Field(sa_type=text_enum(OrderStatus))
    reason: Reason = Field(default="", sa_column_kwargs={"server_default": ""})
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )


class OrderTransition(OrderTransitionBase, table=True):
    """One move of an order. A trigger makes the table append-only."""

    __tablename__ = "order_transitions"
    __table_args__ = (
        CheckConstraint(allowed_moves(), name="allowed_move"),
        Index("ix_order_transitions_order_id", "order_id"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    order_id: UUID = Field(foreign_key="orders.id")
    actor: str | None = Field(default=None, max_length=LONGEST_ACTOR)
    """Who moved the order (`services/acting.py`); None in rows of releases that did not record it."""

    order: Order = Relationship(back_populates="transitions", sa_relationship_kwargs={"lazy": "raise"})


class RefundBase(SQLModel):
    """Credits of an order that go back to its buyer."""

    reason: Reason = Field(default="", sa_column_kwargs={"server_default": ""})


class Refund(RefundBase, table=True):
    """A refund of pieces of an order, for what was paid for them. A trigger makes the table append-only."""

    __tablename__ = "refunds"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        Index("ix_refunds_order_id_id", "order_id", "id"),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    order_id: UUID = Field(foreign_key="orders.id")
    amount: Decimal = Field(max_digits=18, decimal_places=2)
    requested_by: int = Field(foreign_key="users.id", sa_type=BigInteger)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    lines: list["RefundLine"] = Relationship(
        sa_relationship_kwargs={"lazy": "raise", "order_by": "RefundLine.line", "viewonly": True}
    )


class RefundLineBase(SQLModel):
    """Refunded pieces of one line of an order."""

    line: LineNumber = Field(primary_key=True, sa_type=Integer)
    quantity: Quantity = Field(sa_type=Integer)


class RefundLine(RefundLineBase, table=True):
    """Refunded pieces of one line of the order. A trigger makes the table append-only."""

    __tablename__ = "refund_lines"
    __table_args__ = (
        PrimaryKeyConstraint("refund_id", "line"),
        CheckConstraint("quantity > 0", name="quantity"),
        ForeignKeyConstraint(["order_id", "line"], ["order_items.order_id", "order_items.line"]),
        Index("ix_refund_lines_order_id_line", "order_id", "line"),
    )

    refund_id: UUID = Field(primary_key=True, foreign_key="refunds.id")
    order_id: UUID
