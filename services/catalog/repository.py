"""All SQL about categories, products and stock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field
from sqlalchemy import ARRAY, String, any_, func, literal
from sqlalchemy.orm import joinedload
from sqlmodel import col, select

from services.catalog import queries
from services.catalog.models import Category, Inventory, MovementKind, Product
from services.fields import Id, Instant, Moment, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable, Operator, Similar
from services.query import Listing, PageQuery, Rows, Sortable
from services.repository import Lock, Repository, SoftDeleteRepository
from services.sql import Read, Results
from services.users.repository import WITHOUT_PASSWORD


@dataclass(frozen=True, slots=True)
class ProductForSale:
    """A product, as needed to place an order. To be active, its seller must be active too, with an open account."""

    id: int
    seller_id: int
    sku: str
    name: str
    price: Decimal
    is_active: bool
    seller_account_id: int


TEXT_A_PAGE = 500_000
"""The maximum number of characters that the descriptions of a page have together: those of 50 products at least."""


class CategoryRepository(SoftDeleteRepository[Category]):
    model = Category

    async def by_name(self, name: str) -> Category | None:
        """The category with this name, ignoring case, even if it is deleted."""
        statement = select(Category).where(func.lower(Category.name) == name.lower())
        return (await self.session.exec(statement)).one_or_none()


class ProductRepository(SoftDeleteRepository[Product]):
    model = Product

    async def by_sku(self, seller_id: int, skus: Sequence[str]) -> dict[str, Product]:
        """The seller's products with these SKUs, even archived ones, locked until the transaction ends."""
        statement = (
            select(Product)
            .where(col(Product.seller_id) == seller_id, col(Product.sku) == any_(literal(list(skus), ARRAY(String))))
            .order_by(col(Product.id))
        )
        found = await self.session.exec(self._locked(statement, Lock.change))
        return {product.sku: product for product in found}

    async def number_of(self, seller_id: int, most: int) -> int:
        """How many products the seller has, even archived ones, counted up to `most`."""
        some = select(col(Product.sku)).where(col(Product.seller_id) == seller_id).limit(most).subquery()
        return (await self.session.exec(select(func.count()).select_from(some))).one()

    async def page(self, wanted: PageQuery, search: str | None = None) -> Rows[Product]:
        """Active products; with `search`, those with a similar name (by `pg_trgm`'s word similarity).

        A page ends early rather than have descriptions of more than `TEXT_A_PAGE` characters together.
        """
        similar = None
        if search is not None:
            (trigrams,) = await self.sql.fetch(queries.TRIGRAMS)
            similar = Similar(PRODUCTS.filters["name"], Operator.like, [search], trigrams["schema"])
        # An archived product is not active, unless the release before, which does not know archived ones, activates it.
        active: Any = col(Product.is_active)
        rows = await self.list_page(PRODUCTS, wanted, active, search=similar, options=PRODUCT_WITH_DETAILS)
        return PRODUCTS.within(rows, wanted, [len(product.description) for product in rows.data], TEXT_A_PAGE)

    async def of_seller(self, seller_id: int, wanted: PageQuery) -> Rows[Product]:
        """The seller's products, active or not, but not archived ones. A page ends early as `page` does."""
        mine = col(Product.seller_id) == seller_id
        rows = await self.list_page(OWN_PRODUCTS, wanted, mine, options=PRODUCT_WITH_DETAILS)
        return OWN_PRODUCTS.within(rows, wanted, [len(product.description) for product in rows.data], TEXT_A_PAGE)

    async def refreshed(self, product: Product) -> Product:
        """The product, reloaded with everything that `ProductPublic` shows."""
        statement = select(Product).where(col(Product.id) == product.id).options(*PRODUCT_WITH_DETAILS)
        return (await self.session.exec(statement.execution_options(populate_existing=True))).one()

    async def take_off_sale(self, seller_id: int) -> int:
        """Deactivate all of the seller's products; returns their number."""
        offered = select(col(Product.id)).where(col(Product.seller_id) == seller_id, col(Product.is_active))
        ids = (await self.session.exec(offered)).all()
        return await self.bulk_update({product_id: {"is_active": False} for product_id in ids})

    async def for_sale(self, ids: Sequence[int]) -> dict[int, ProductForSale]:
        """The products with these ids, including inactive ones, in one statement."""
        rows = await self.sql.fetch(queries.FOR_SALE, ids=list(ids))
        return {row["id"]: ProductForSale(**row) for row in rows}

    @staticmethod
    def selling(ids: Sequence[int]) -> Read[dict[int, ProductForSale]]:
        """`for_sale`, as a part of a longer read."""
        return Read(queries.SELLING, {"ids": list(ids)}, _for_sale)

    async def ids_by_sku(self, seller_id: int) -> dict[str, int]:
        """The ids of all the seller's products, including inactive and archived ones, by SKU."""
        statement = select(col(Product.sku), col(Product.id)).where(col(Product.seller_id) == seller_id)
        return dict((await self.session.exec(statement)).all())


class InventoryRepository(Repository[Inventory]):
    """Stock. Rows are always locked in the order of their product ids."""

    model = Inventory

    async def lock(self, product_ids: Sequence[int]) -> dict[int, int]:
        """Lock the rows until the transaction ends; returns the available pieces of each product."""
        rows = await self.sql.fetch(queries.LOCK_STOCK, ids=list(product_ids))
        return {row["product_id"]: row["available"] for row in rows}

    async def release(self, pieces: Mapping[int, int]) -> None:
        """Release reserved pieces. The caller has locked the rows."""
        ids = sorted(pieces)
        await self.sql.run(queries.RELEASE_STOCK, ids=ids, pieces=[pieces[product_id] for product_id in ids])

    async def ship(self, order_id: UUID, pieces: Mapping[int, int]) -> None:
        """Ship reserved pieces of an order. The caller has locked the rows."""
        await self._move(MovementKind.shipped, pieces, on_hand=-1, reserved=-1, order_id=order_id)

    async def take_back(self, order_id: UUID, pieces: Mapping[int, int]) -> None:
        """Return shipped pieces of an order to stock. The caller has locked the rows."""
        await self._move(MovementKind.returned, pieces, on_hand=1, order_id=order_id)

    async def receive(self, pieces: Mapping[int, int]) -> None:
        """Add pieces of each product, or remove them if negative. The caller has locked the rows."""
        await self._move(MovementKind.stocked, pieces, on_hand=1)

    async def _move(
        self,
        kind: MovementKind,
        pieces: Mapping[int, int],
        *,
        on_hand: int,
        reserved: int = 0,
        order_id: UUID | None = None,
    ) -> None:
        """Change the stock by so many pieces times `on_hand` and `reserved`, and write the movements."""
        ids = sorted(product_id for product_id, number in pieces.items() if number)
        await self.sql.run(
            queries.CHANGE_STOCK,
            ids=ids,
            on_hand=[pieces[product_id] * on_hand for product_id in ids],
            reserved=[pieces[product_id] * reserved for product_id in ids],
            kind=kind.value,
            order_id=order_id,
            actor=self.actor,
        )


def _for_sale(results: Results) -> dict[int, ProductForSale]:
    (products,) = results
    return {product[0]: ProductForSale(*product) for product in products}


PRODUCT_WITH_DETAILS = (
    joinedload(Product.seller, innerjoin=True).options(WITHOUT_PASSWORD),  # type: ignore[arg-type]
    joinedload(Product.category, innerjoin=True),  # type: ignore[arg-type]
    joinedload(Product.inventory, innerjoin=True),  # type: ignore[arg-type]
)
"""Everything `ProductPublic` shows, in the product's own statement."""

_Amount = Annotated[Decimal, Field(max_digits=18, decimal_places=2)]

_PRODUCT_ID = Sortable(col(Product.id), Id)

_OF_SOME = frozenset({"id", "price", "name"})
"""The sorts that have an index for the products of one seller or category."""

PRODUCTS = Listing[Product](
    filters={
        "category_id": Filterable(col(Product.category_id), Id, EXACT, indexed=_OF_SOME),
        "seller_id": Filterable(col(Product.seller_id), Id, EXACT, indexed=_OF_SOME),
        "sku": Filterable(col(Product.sku), Text, EXACT, indexed=frozenset({"id"})),
        "name": Filterable(col(Product.name), Text, TEXT, indexed=frozenset({"id", "name"}), trigrams=True),
        "price": Filterable(col(Product.price), _Amount, ORDERED),
        "created_at": Filterable(col(Product.created_at), Instant, ORDERED),
    },
    sorts={
        "id": _PRODUCT_ID,
        "price": Sortable(col(Product.price), _Amount),
        "name": Sortable(col(Product.name), Text),
        "created_at": Sortable(col(Product.created_at), Moment),
    },
    key=_PRODUCT_ID,
    default="id",
)

OWN_PRODUCTS = Listing[Product](
    filters={
        "is_active": Filterable(col(Product.is_active), bool, EXACT),
        "category_id": Filterable(col(Product.category_id), Id, EXACT),
        "sku": Filterable(col(Product.sku), Text, EXACT, indexed=frozenset({"sku"})),
        "name": Filterable(col(Product.name), Text, TEXT, trigrams=True),
        "price": Filterable(col(Product.price), _Amount, ORDERED),
        "created_at": Filterable(col(Product.created_at), Instant, ORDERED),
    },
    sorts={"id": _PRODUCT_ID, "name": PRODUCTS.sorts["name"]},
    key=_PRODUCT_ID,
    default="id",
)
"""The products of one seller, active or not."""

_CATEGORY_ID = Sortable(col(Category.id), Id)

CATEGORIES = Listing[Category](
    filters={"name": Filterable(col(Category.name), Text, TEXT, indexed=frozenset({"id", "name"}))},
    sorts={"id": _CATEGORY_ID, "name": Sortable(col(Category.name), Text)},
    key=_CATEGORY_ID,
    default="id",
)
