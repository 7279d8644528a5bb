"""What happens in the catalogue."""

from decimal import Decimal
from typing import ClassVar

from services.outbox.events import Event


class ProductEvent(Event):
    """A fact about one product."""

    product_id: int

    @property
    def aggregate(self) -> str:
        return f"product/{self.product_id}"


class ProductCreated(ProductEvent):
    """A seller offers something new."""

    type: ClassVar[str] = "product.created"

    seller_id: int
    price: Decimal


class ProductUpdated(ProductEvent):
    """A product's description, price, category or availability changed."""

    type: ClassVar[str] = "product.updated"

    product_version: int
    price: Decimal
    is_active: bool
