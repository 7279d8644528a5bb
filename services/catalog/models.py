"""Categories and stock (SQLModel); products (plain SQLAlchemy on the shared registry)."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlmodel import Field, SQLModel

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ, now
from services.users.models import User


class CategoryBase(SQLModel):
    """The fields of a category that operators set."""

    name: str = Field(max_length=200)


class Category(CategoryBase, table=True):
    """A category of the catalogue."""

    __tablename__ = "categories"
    __table_args__ = (
        Index("uq_categories_name_lower", text("lower(name)"), unique=True),
        CheckConstraint("length(name) > 0", name="named"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )


class Inventory(SQLModel, table=True):
    """The stock of one product, in its own table so that a sale does not change the version of the product."""

    __tablename__ = "inventory"
    __table_args__ = (
        CheckConstraint("on_hand >= 0", name="on_hand"),
        CheckConstraint("reserved >= 0 AND reserved <= on_hand", name="reserved"),
    )

    product_id: int = Field(primary_key=True, foreign_key="products.id", ondelete="CASCADE", sa_type=BigInteger)
    on_hand: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    reserved: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})


class Product(DeclarativeTable):
    """A product that a seller offers.

    A plain SQLAlchemy model: `version_id_col`, operator-class indexes and server defaults are simpler to write here.
    An update through a stale copy raises `sqlalchemy.orm.exc.StaleDataError`.
    """

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    seller_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"))
    category_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("categories.id"))
    sku: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text, server_default="")
    price: Mapped[Decimal] = mapped_column(Numeric(18, 2))
    is_active: Mapped[bool] = mapped_column(server_default=true())
    version: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    created_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now(), onupdate=func.now())

    seller: Mapped[User] = relationship(lazy="raise")
    category: Mapped[Category] = relationship(lazy="raise")
    inventory: Mapped[Inventory] = relationship(lazy="raise")

    __table_args__ = (
        UniqueConstraint("seller_id", "sku"),
        CheckConstraint("price > 0", name="price"),
        CheckConstraint("length(name) > 0 AND length(sku) > 0", name="named"),
        Index("ix_products_category_id_price", "category_id", "price"),
        Index("ix_products_name_trgm", "name", postgresql_using="gin", postgresql_ops={"name": "gin_trgm_ops"}),
        Index("ix_products_active", "id", postgresql_where=text("is_active")),
    )
    # eager_defaults: RETURNING fetches the new version and times; async code cannot load an expired attribute later.
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}
