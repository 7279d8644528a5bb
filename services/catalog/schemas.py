"""Request and response schemas for categories and products."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from services.catalog.models import CategoryBase, Description, InventoryBase, ProductBase
from services.fields import SOME_FAULTS, Changes, Name, Price, RequestBody, Schema, StrictId
from services.users.schemas import UserSummary

Stock = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
StockChange = Annotated[int, Field(strict=True, ge=-1_000_000_000, le=1_000_000_000)]


class CategoryCreate(CategoryBase, RequestBody):
    """A new category."""


class CategoryUpdate(Changes):
    """Changes to a category; omitted fields keep their values."""

    name: Name | None = None


class CategoryPublic(CategoryBase, Schema):
    """A category."""

    id: int
    version: int
    created_at: datetime


class ProductCreate(ProductBase, RequestBody):
    """A new product that the caller sells; `stock` is its initial stock in pieces."""

    category_id: StrictId
    stock: Stock = 0


class ProductUpdate(Changes):
    """Changes to a product; omitted fields keep their values."""

    name: Name | None = None
    description: Description | None = None
    price: Price | None = None
    category_id: StrictId | None = None
    is_active: Annotated[bool, Field(strict=True)] | None = None


MAX_UPSERTED = 1000
"""The maximum number of products in a request."""


class ProductUpsert(ProductBase, RequestBody):
    """The wanted state of a product. `stock` is the pieces on hand; null keeps it, or means 0 for a new one."""

    category_id: StrictId
    stock: Stock | None = None


class ProductsUpsert(RequestBody):
    """Products that the caller sells, each by its `sku`. Those that are not listed stay as they are."""

    products: Annotated[list[ProductUpsert], Field(min_length=1, max_length=MAX_UPSERTED), SOME_FAULTS]


class UpsertOutcome(StrEnum):
    """What happened to a product."""

    created = "created"
    changed = "changed"
    unchanged = "unchanged"


class ProductUpserted(Schema):
    """A product after the request, and what happened to it."""

    id: int
    sku: str
    version: int
    outcome: UpsertOutcome


class ProductsUpserted(Schema):
    """The products, in the order of the request."""

    products: list[ProductUpserted]


class StockUpdate(RequestBody):
    """Pieces that were received (positive) or removed other than by an order (negative)."""

    change: StockChange


class InventoryPublic(InventoryBase, Schema):
    """Stock in pieces: how many are on hand, and how many of those are reserved by confirmed orders."""


FEW = 10
"""Up to this number of available pieces are few. Only the seller and the staff see the exact number."""


class Availability(StrEnum):
    """Whether pieces can be ordered."""

    in_stock = "in_stock"
    few_left = "few_left"
    out_of_stock = "out_of_stock"

    @classmethod
    def of(cls, pieces: int) -> "Availability":
        """What is shown of so many available pieces."""
        if pieces <= 0:
            return cls.out_of_stock
        return cls.few_left if pieces <= FEW else cls.in_stock


class ProductSummary(Schema):
    """A product, as shown in an order."""

    id: int
    sku: str
    name: str


class ProductPublic(ProductBase, Schema):
    """A product with its seller, category and availability.

    `inventory`, its exact stock, is null unless the caller sells it or has a scope for everyone's products.
    """

    id: int
    is_active: bool
    version: int
    created_at: datetime
    updated_at: datetime
    seller: UserSummary
    category: CategoryPublic
    availability: Availability
    inventory: InventoryPublic | None
