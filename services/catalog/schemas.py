"""What comes in and goes out about categories and products."""

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
    """What a seller says of a product, and everybody sees."""

    sku: str
    name: str
    description: str
    price: Money


class ProductCreate(ProductBase, RequestBody):
    """A new product, offered by the caller, with its first stock in pieces."""

    sku: Sku
    name: Name
    description: Description = ""
    price: Price
    category_id: StrictId
    stock: Stock = 0


class ProductUpdate(Changes):
    """What may change of a product; what is left out stays."""

    name: Name | None = None
    description: Description | None = None
    price: Price | None = None
    category_id: StrictId | None = None
    is_active: Annotated[bool, Field(strict=True)] | None = None


class StockUpdate(RequestBody):
    """Pieces that came in (positive) or left otherwise than by an order (negative)."""

    change: StockChange


class InventoryPublic(SQLModel):
    """Stock in pieces: what lies there, and how much of that confirmed orders have reserved."""

    product_id: int
    on_hand: int
    reserved: int


class ProductSummary(BaseModel):
    """A product, as an order shows it."""

    id: int
    sku: str
    name: str


class ProductPublic(ProductBase):
    """A product on offer."""

    id: int
    is_active: bool
    version: int
    created_at: datetime
    updated_at: datetime
    seller: UserSummary
    category: CategoryPublic
    inventory: InventoryPublic
