"""Events about products."""

from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from services.outbox.events import Event


class ProductEvent(Event):
    """A fact about one product."""

    product_id: int = Field(description="The product.")

    @property
    def aggregate(self) -> str:
        return f"product/{self.product_id}"


class ProductCreated(ProductEvent):
    """A seller created a product."""

    type: ClassVar[str] = "product.created"

    seller_id: int = Field(description="The user who sells it.")
    price: Decimal = Field(description="The price of one piece, in credits.")


class ProductUpdated(ProductEvent):
    """A product's description, price, category or availability changed."""

    type: ClassVar[str] = "product.updated"

    product_version: int = Field(description="The product's version after the change, as in its ETag.")
    price: Decimal = Field(description="The price of one piece, in credits.")
    is_active: bool = Field(description="Whether it is for sale.")


class ProductArchived(ProductEvent):
    """A product was archived: it is off sale and hidden, and orders still show it."""

    type: ClassVar[str] = "product.archived"

    product_version: int = Field(description="The product's version after the change.")


class ProductRestored(ProductEvent):
    """An archived product was restored. It stays off sale until it is activated again."""

    type: ClassVar[str] = "product.restored"

    product_version: int = Field(description="The product's version after the change.")
