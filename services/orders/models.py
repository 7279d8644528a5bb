"""Orders, their items and their history."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, text
from sqlmodel import Field, Relationship, SQLModel

from services.fields import TIMESTAMPTZ, allowed, new_id, now, text_enum
from services.users.models import User

if TYPE_CHECKING:
    from services.catalog.models import Product


class OrderStatus(StrEnum):
    """Where an order stands."""

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
"""Every move an order may make; a CHECK on `order_transitions` says the same."""

FIRST_STATUSES = frozenset({OrderStatus.awaiting_payment, OrderStatus.pending})
"""What a new order may be."""


def allowed_moves() -> str:
    """The CHECK expression for `order_transitions`, written from `ALLOWED_MOVES`."""
    first = ", ".join(repr(status.value) for status in sorted(FIRST_STATUSES))
    moves = ", ".join(
        f"('{before.value}', '{after.value}')"
        for before, after_all in ALLOWED_MOVES.items()
        for after in sorted(after_all)
    )
    return f"(from_status IS NULL AND to_status IN ({first})) OR (from_status, to_status) IN ({moves})"


class OrderBase(SQLModel):
    """What a buyer says of an order."""

    reference: str | None = Field(default=None, max_length=64)


class Order(OrderBase, table=True):
    """What a buyer asked for, at the prices of that moment."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint(allowed("status", OrderStatus), name="status"),
        CheckConstraint("total > 0", name="total"),
        CheckConstraint("item_count > 0", name="item_count"),
        Index("ix_orders_buyer_id_id", "buyer_id", "id"),
        Index(
            "uq_orders_buyer_id_reference",
            "buyer_id",
            "reference",
            unique=True,
            postgresql_where=text("reference IS NOT NULL"),
        ),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    buyer_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    status: OrderStatus = Field(sa_type=text_enum(OrderStatus))
    total: Decimal = Field(max_digits=18, decimal_places=2)
    item_count: int = Field(sa_type=Integer)
    version: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    updated_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    buyer: User = Relationship(back_populates="orders", sa_relationship_kwargs={"lazy": "raise"})
    items: list["OrderItem"] = Relationship(
        back_populates="order", sa_relationship_kwargs={"lazy": "raise", "order_by": "OrderItem.line"}
    )
    transitions: list["OrderTransition"] = Relationship(
        back_populates="order", sa_relationship_kwargs={"lazy": "raise", "order_by": "OrderTransition.id"}
    )


class OrderItemBase(SQLModel):
    """One line of an order."""

    product_id: int
    quantity: int


class OrderItem(OrderItemBase, table=True):
    """One line of an order, at the unit price *as sold*."""

    __tablename__ = "order_items"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity"),
        CheckConstraint("unit_price > 0", name="unit_price"),
        Index("ix_order_items_product_id", "product_id"),
    )

    order_id: UUID = Field(primary_key=True, foreign_key="orders.id")
    line: int = Field(primary_key=True, sa_type=Integer)
    product_id: int = Field(foreign_key="products.id", sa_type=BigInteger)
    quantity: int = Field(sa_type=Integer)
    unit_price: Decimal = Field(max_digits=18, decimal_places=2)

    order: Order = Relationship(back_populates="items", sa_relationship_kwargs={"lazy": "raise"})
    product: "Product" = Relationship(sa_relationship_kwargs={"lazy": "raise"})


class OrderTransition(SQLModel, table=True):
    """One move of an order; append-only."""

    __tablename__ = "order_transitions"
    __table_args__ = (
        CheckConstraint(allowed_moves(), name="allowed_move"),
        Index("ix_order_transitions_order_id", "order_id"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    order_id: UUID = Field(foreign_key="orders.id")
    from_status: OrderStatus | None = Field(default=None, sa_type=text_enum(OrderStatus))
    to_status: OrderStatus = Field(sa_type=text_enum(OrderStatus))
    reason: str = Field(default="", max_length=200, sa_column_kwargs={"server_default": ""})
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    order: Order = Relationship(back_populates="transitions", sa_relationship_kwargs={"lazy": "raise"})
