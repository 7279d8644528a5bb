"""Categories, products and stock."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import pydantic
from pydantic import AfterValidator
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy import Text as TextColumn
from sqlmodel import Field, Relationship, SQLModel

from services.acting import LONGEST_ACTOR
from services.fields import (
    CREDITS,
    TIMESTAMPTZ,
    Name,
    Price,
    SoftDeletable,
    Text,
    Versioned,
    allowed,
    now,
    storable,
    text_enum,
)
from services.users.models import User

Sku = Annotated[str, pydantic.Field(min_length=1, max_length=64, pattern=r"\S"), AfterValidator(storable)]
Description = Annotated[Text, pydantic.Field(max_length=10_000)]


class CategoryBase(SQLModel):
    """The fields of a category that operators set."""

    name: Name


class Category(CategoryBase, Versioned, SoftDeletable, table=True):
    """A category of the catalogue. The row of a deleted one stays and keeps its name taken."""

    __tablename__ = "categories"
    __table_args__ = (
        Index("uq_categories_name_lower", text("lower(name)"), unique=True),
        Index("ix_categories_name_id", "name", "id"),
        CheckConstraint("length(name) > 0", name="named"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )


class InventoryBase(SQLModel):
    """Stock in pieces: how many are on hand, and how many of those are reserved by confirmed orders."""

    product_id: int = Field(primary_key=True, foreign_key="products.id", ondelete="CASCADE", sa_type=BigInteger)
    on_hand: int = Field(default=0, ge=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    reserved: int = Field(default=0, ge=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})


class Inventory(InventoryBase, table=True):
    """The stock of one product, in its own table so that a sale does not change the version of the product."""

    __tablename__ = "inventory"
    __table_args__ = (
        CheckConstraint("on_hand >= 0", name="on_hand"),
        CheckConstraint("reserved >= 0 AND reserved <= on_hand", name="reserved"),
    )

    recorded: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """Grows with each change whose statement writes its movements. A trigger writes those of all other changes."""


class MovementKind(StrEnum):
    """Why the number of pieces on hand changed."""

    opening = "opening"
    """The pieces with which a product began, or with which its movements begin."""
    stocked = "stocked"
    """The seller or an operator added pieces, or removed them."""
    shipped = "shipped"
    """Pieces were shipped for an order."""
    returned = "returned"
    """Shipped pieces of an order were refunded, and are on hand again."""
    unrecorded = "unrecorded"
    """Changed by the release before, which writes no movements."""
    by_hand = "by_hand"
    """Changed by something other than Waybill. The audit reports the sum of such changes."""


class StockMovement(SQLModel, table=True):
    """A change of the pieces of a product that are on hand. The movements of a product sum to what is on hand.

    Triggers make the table append-only. There are no foreign keys, since their checks would cost each line of an order
    a lookup; the audit compares products and orders instead. Reserved pieces have no movements: they follow from the
    lines of confirmed orders.
    """

    __tablename__ = "stock_movements"
    __table_args__ = (
        CheckConstraint(allowed("kind", MovementKind), name="kind"),
        CheckConstraint("pieces <> 0", name="pieces"),
        # For the timeline of an order. What an order is placed with has no movements, so placing does not pay for it.
        Index("ix_stock_movements_order_id_id", "order_id", "id", postgresql_where=text("order_id IS NOT NULL")),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    product_id: int = Field(sa_type=BigInteger)
    kind: MovementKind = Field(sa_type=text_enum(MovementKind))
    order_id: UUID | None = None
    pieces: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
    actor: str | None = Field(default=None, max_length=LONGEST_ACTOR)
    """Who changed the stock (`services/acting.py`). None in rows that a trigger wrote: who created a product with its
    first pieces is in `product.created`."""


class ProductBase(SQLModel):
    """The fields of a product that its seller sets."""

    sku: Sku
    name: Name
    description: Description = Field(default="", sa_type=TextColumn, sa_column_kwargs={"server_default": ""})
    price: Price = Field(sa_type=CREDITS)


def _active(*columns: str) -> Index:
    """An index of active products by these columns, then by id."""
    return Index(f"ix_products_active_{'_'.join(columns)}_id", *columns, "id", postgresql_where=text("is_active"))


class Product(ProductBase, Versioned, SoftDeletable, table=True):
    """A product that a seller offers. The row of an archived one stays, as orders show it, and keeps its SKU taken."""

    __tablename__ = "products"
    __table_args__ = (
        UniqueConstraint("seller_id", "sku"),
        CheckConstraint("price > 0", name="price"),
        CheckConstraint("length(name) > 0 AND length(sku) > 0", name="named"),
        Index("ix_products_name_trgm", "name", postgresql_using="gin", postgresql_ops={"name": "gin_trgm_ops"}),
        Index("ix_products_active", "id", postgresql_where=text("is_active")),
        # Each sort of the list of products, of all and of those of one seller or category.
        *(_active(*columns) for columns in (("price",), ("name",), ("created_at",), ("sku",))),
        *(_active("seller_id", *columns) for columns in ((), ("price",), ("name",))),
        *(_active("category_id", *columns) for columns in ((), ("price",), ("name",))),
        # What a seller lists: inactive products as well.
        *(
            Index(f"ix_products_present_{'_'.join(columns)}", *columns, postgresql_where=text("deleted_at IS NULL"))
            for columns in (("seller_id", "id"), ("seller_id", "name", "id"))
        ),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    seller_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    category_id: int = Field(foreign_key="categories.id", sa_type=BigInteger)
    is_active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    # Both by the database, so that they can be compared.
    created_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
    updated_at: datetime = Field(
        default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now(), "onupdate": func.now()}
    )

    seller: User = Relationship(sa_relationship_kwargs={"lazy": "raise"})
    category: Category = Relationship(sa_relationship_kwargs={"lazy": "raise"})
    inventory: Inventory = Relationship(sa_relationship_kwargs={"lazy": "raise", "uselist": False, "viewonly": True})
