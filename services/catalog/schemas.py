"""Request and response schemas for categories and products."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from sqlmodel import SQLModel

from services.catalog.models import CategoryBase
from services.fields import Changes, Money, Name, Price, RequestBody, StrictId, Text, storable
from services.users.schemas import UserSummary

Sku = Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S"), AfterValidator(storable)]
Description = Annotated[Text, Field(max_length=10_000)]
Stock = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
StockChange = Annotated[int, Field(strict=True, ge=-1_000_000_000, le=1_000_000_000)]


class CategoryCreate(CategoryBase, RequestBody):  # type: ignore[misc]  # see UserCreate
    """A new category."""

    name: Name


class CategoryPublic(CategoryBase):
    """A category."""

    id: int
    created_at: datetime


class ProductBase(BaseModel):
    """The fields of a product that its seller sets."""

    sku: str
    name: str
    description: str
    price: Money


class ProductCreate(ProductBase, RequestBody):
    """A new product that the caller sells; `stock` is its initial stock in pieces."""

    sku: Sku
    name: Name
    description: Description = ""
    price: Price
    category_id: StrictId
    stock: Stock = 0


class ProductUpdate(Changes):
    """Changes to a product; omitted fields keep their values."""

    name: Name | None = None
    description: Description | None = None
    price: Price | None = None
    category_id: StrictId | None = None
    is_active: Annotated[bool, Field(strict=True)] | None = None


class StockUpdate(RequestBody):
    """Pieces that were received (positive) or removed other than by an order (negative)."""

    change: StockChange


class InventoryPublic(SQLModel):
    """Stock in pieces: how many are on hand, and how many of those are reserved by confirmed orders."""

    product_id: int
    on_hand: int
    reserved: int


class ProductSummary(BaseModel):
    """A product, as shown in an order."""

    id: int
    sku: str
    name: str


class ProductPublic(ProductBase):
    """A product with its seller, category and stock."""

    id: int
    is_active: bool
    version: int
    created_at: datetime
    updated_at: datetime
    seller: UserSummary
    category: CategoryPublic
    inventory: InventoryPublic
