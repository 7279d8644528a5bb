"""Operations on the catalogue."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from sqlmodel import col

from services.acting import Action
from services.catalog.events import ProductArchived, ProductCreated, ProductRestored, ProductUpdated
from services.catalog.models import Category, Inventory, InventoryBase, Product, ProductBase
from services.catalog.repository import PRODUCT_WITH_DETAILS
from services.catalog.schemas import (
    Availability,
    CategoryCreate,
    CategoryUpdate,
    ProductCreate,
    ProductPublic,
    ProductUpdate,
    ProductUpsert,
    ProductUpserted,
    UpsertOutcome,
)
from services.errors import AlreadyExists, Conflict, Fault, Forbidden, InvalidInput, NotFound, QuotaExceeded
from services.fields import picked
from services.repository import Lock, check_version
from services.sql import unless_taken
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope

_KEPT = (*ProductBase.model_fields.keys() - {"sku"}, "category_id")
"""The fields of a product that an upsert sets; the SKU says which product."""


async def create_category(uow: UnitOfWork, wanted: CategoryCreate) -> Category:
    """Create a category. Raises `AlreadyExists` if the name is taken, ignoring case."""
    await _name_is_free(uow, wanted.name)
    with unless_taken("uq_categories_name_lower", _name_taken()):
        return await uow.categories.create(wanted)


async def get_category(uow: UnitOfWork, category_id: int, *, lock: Lock | None = None) -> Category:
    """The category. Raises `NotFound` if there is none."""
    category = await uow.categories.get(category_id, lock=lock)
    if category is None:
        raise NotFound(f"there is no category {category_id}")
    return category


async def update_category(uow: UnitOfWork, category_id: int, changes: CategoryUpdate, version: int) -> Category:
    """Rename a category. Raises `AlreadyExists`, and `StaleVersion` if `version` is not the current one."""
    category = await get_category(uow, category_id)
    check_version(category, version)
    if changes.name is not None and changes.name.lower() != category.name.lower():
        await _name_is_free(uow, changes.name)
    with unless_taken("uq_categories_name_lower", _name_taken()):
        await uow.categories.update(category, changes)
    return category


async def delete_category(uow: UnitOfWork, category_id: int) -> None:
    """Delete a category, so that `restore_category` can bring it back. Raises `Conflict` if it has products.

    Archived products do not count. Putting a product into a category locks the category as well, so none gets into
    a deleted one.
    """
    category = await get_category(uow, category_id, lock=Lock.change)
    products = await uow.products.count(col(Product.category_id) == category_id)
    if products:
        raise Conflict(
            f"category {category_id} still has {products} product{'s' * (products > 1)}; move or archive them first"
        )
    await uow.categories.soft_delete(category)


async def restore_category(uow: UnitOfWork, category_id: int) -> Category:
    """Restore a deleted category. Raises `NotFound` if it is not deleted."""
    category = await uow.categories.get_deleted(category_id)
    if category is None:
        raise NotFound(f"there is no deleted category {category_id}")
    await uow.categories.restore(category)
    return category


async def create_product(uow: UnitOfWork, seller_id: int, wanted: ProductCreate, most: int) -> Product:
    """Create a product of this seller with its initial stock. Raises `InvalidInput` for an unknown category.

    Raises `QuotaExceeded` if the seller has `most` products. Of two that are created at once, the second counts the
    first.
    """
    await uow.users.get(seller_id, lock=Lock.change)
    taken = AlreadyExists(f"you already have a product with the sku {wanted.sku!r}", [Fault("is taken", "#/sku")])
    await _keep_category(uow, wanted.category_id)
    known = await uow.products.by_sku(seller_id, [wanted.sku])
    if known:
        raise _archived(known[wanted.sku]) if known[wanted.sku].deleted_at else taken
    await _check_number(uow, seller_id, 1, most)
    with unless_taken("uq_products_seller_id_sku", taken):
        product = await uow.products.create(wanted, without={"stock"}, seller_id=seller_id)
    await uow.inventory.create(InventoryBase(product_id=product.id, on_hand=wanted.stock))
    uow.record(ProductCreated(product_id=product.id, seller_id=seller_id, price=product.price))
    return await uow.products.refreshed(product)


async def upsert_products(
    uow: UnitOfWork, seller: Caller, wanted: Sequence[ProductUpsert], most: int
) -> list[ProductUpserted]:
    """Create the products whose SKU the seller does not have yet, change those that differ, and set their stock.

    All or nothing: raises `InvalidInput` for a SKU that is listed twice and for unknown categories, and `Conflict` for
    archived products and for less stock than orders have reserved. Raises `QuotaExceeded` if the seller would have more
    than `most` products. What is as wanted is not written.
    """
    # One such request of a seller at a time: of two that create the same product, one would fail.
    await uow.users.get(seller.id, lock=Lock.change)
    await _check_upsert(uow, wanted)
    known = await uow.products.by_sku(seller.id, [one.sku for one in wanted])
    stock = {row.product_id: row for row in await uow.inventory.get_many(_ids(known.values()), lock=Lock.change)}
    _check_known(wanted, known, stock)

    new = [one for one in wanted if one.sku not in known]
    if new:
        await _check_number(uow, seller.id, len(new), most)
    made = await uow.products.bulk_create(new, without={"stock"}, seller_id=seller.id)
    await uow.inventory.bulk_create(
        [InventoryBase(product_id=row.id, on_hand=one.stock or 0) for row, one in zip(made, new, strict=True)]
    )
    old = [(known[one.sku], one) for one in wanted if one.sku in known]
    prices = {row.id: row.price for row, _ in old}
    changed = {row.id: picked(one, _KEPT) for row, one in old if picked(one, _KEPT) != picked(row, _KEPT)}
    await uow.products.bulk_update(changed)
    for product_id, values in changed.items():
        _record_price(uow, product_id, prices[product_id], values["price"])
    counted = {
        row.id: one.stock - stock[row.id].on_hand
        for row, one in old
        if one.stock is not None and one.stock != stock[row.id].on_hand
    }
    if counted:
        await uow.inventory.receive(counted)
        _record_stock(uow, counted)

    for row in made:
        uow.record(ProductCreated(product_id=row.id, seller_id=seller.id, price=row.price))
    for row, _ in old:
        if row.id in changed:
            uow.record(_updated(row))
    outcomes = {row.id: UpsertOutcome.created for row in made}
    outcomes.update(dict.fromkeys(changed.keys() | counted.keys(), UpsertOutcome.changed))
    rows = known | {row.sku: row for row in made}
    return [
        ProductUpserted(
            id=row.id, sku=row.sku, version=row.version, outcome=outcomes.get(row.id, UpsertOutcome.unchanged)
        )
        for row in (rows[one.sku] for one in wanted)
    ]


async def get_product(uow: UnitOfWork, caller: Caller | None, product_id: int) -> Product:
    """The product with its seller, category and stock.

    Raises `NotFound` if it is archived and, for those who do not see all of it, if it is not active.
    """
    return _visible(caller, await uow.products.get(product_id, options=PRODUCT_WITH_DETAILS), product_id)


def shown(caller: Caller | None, product: Product) -> ProductPublic:
    """What the caller sees of the product, which is loaded with its details."""
    stock = product.inventory
    seen = {
        **picked(product, ProductPublic.model_fields.keys() - {"availability", "inventory"}),
        "availability": Availability.of(stock.on_hand - stock.reserved),
        "inventory": stock if _sees_all(caller, product) else None,
    }
    return ProductPublic.model_validate(seen, from_attributes=True)


async def update_product(
    uow: UnitOfWork, caller: Caller, product_id: int, changes: ProductUpdate, version: int
) -> Product:
    """Change a product, for its seller or an operator. Raises `StaleVersion` if `version` is not the current one."""
    product = await get_product(uow, caller, product_id)
    _may_manage(caller, product)
    check_version(product, version)
    if changes.category_id is not None:
        await _keep_category(uow, changes.category_id)
    price = product.price
    if not await uow.products.update(product, changes):
        return product
    _record_price(uow, product_id, price, product.price)
    uow.record(_updated(product))
    return await uow.products.refreshed(product)


async def archive_product(uow: UnitOfWork, caller: Caller, product_id: int) -> None:
    """Take a product off sale and hide it, for its seller or an operator. Orders still show it."""
    product = _visible(caller, await uow.products.get(product_id, lock=Lock.change), product_id)
    _may_manage(caller, product)
    await uow.products.soft_delete(product, is_active=False)
    uow.record(ProductArchived(product_id=product_id, product_version=product.version))


async def restore_product(uow: UnitOfWork, caller: Caller, product_id: int) -> Product:
    """Restore an archived product, for its seller or an operator. It stays off sale until it is activated.

    Raises `Conflict` if its category has been deleted since.
    """
    product = await uow.products.get_deleted(product_id)
    # Nobody else can see it, so nobody else learns that it exists.
    if product is None or not _manages(caller, product):
        raise NotFound(f"there is no archived product {product_id} that you may restore")
    if await uow.categories.get(product.category_id, lock=Lock.keep) is None:
        raise Conflict(f"category {product.category_id} of this product is deleted; restore the category first")
    await uow.products.restore(product)
    uow.record(ProductRestored(product_id=product_id, product_version=product.version))
    return await uow.products.refreshed(product)


async def change_stock(uow: UnitOfWork, caller: Caller, product_id: int, pieces: int) -> Product:
    """Add pieces or remove them, for the seller or an operator; never below the number that orders have reserved."""
    product = await get_product(uow, caller, product_id)
    _may_manage(caller, product)
    available = (await uow.inventory.lock([product_id]))[product_id]
    if available + pieces < 0:
        raise Conflict(
            f"only {available} pieces of product {product_id} are available; cannot remove {-pieces}",
            [Fault(f"must be at least {-available}", "#/change")],
        )
    await uow.inventory.receive({product_id: pieces})
    _record_stock(uow, {product_id: pieces})
    return await uow.products.refreshed(product)


def _manages(caller: Caller, product: Product) -> bool:
    return caller.id == product.seller_id or caller.may(Scope.catalog_manage)


def _sees_all(caller: Caller | None, product: Product) -> bool:
    """Whether the caller sees the stock of the product, and sees it when it is not active."""
    if caller is None:
        return False
    if caller.may(Scope.catalog_read_all) or caller.may(Scope.catalog_manage):
        return True
    return caller.id == product.seller_id and (caller.may(Scope.catalog_read) or caller.may(Scope.catalog_write))


def _visible(caller: Caller | None, product: Product | None, product_id: int) -> Product:
    """Raises `NotFound` unless there is such a product and the caller sees it."""
    if product is None or not (product.is_active or _sees_all(caller, product)):
        raise NotFound(f"there is no product {product_id}")
    return product


def _record_price(uow: UnitOfWork, product_id: int, before: Decimal, after: Decimal) -> None:
    if after != before:
        uow.record_act(Action.price_changed, f"product/{product_id}", was=before, now=after)


def _record_stock(uow: UnitOfWork, pieces: Mapping[int, int]) -> None:
    for product_id, number in pieces.items():
        uow.record_act(Action.stock_changed, f"product/{product_id}", pieces=number)


def _may_manage(caller: Caller, product: Product) -> None:
    if not _manages(caller, product):
        raise Forbidden(f"product {product.id} is sold by someone else")


async def _check_upsert(uow: UnitOfWork, wanted: Sequence[ProductUpsert]) -> None:
    """Raise `InvalidInput` for a SKU that is listed twice and for unknown categories; lock the others."""
    categories = await uow.categories.get_many(sorted({one.category_id for one in wanted}), lock=Lock.keep)
    known = {category.id for category in categories}
    listed = Counter(one.sku for one in wanted)
    faults = [
        Fault(f"the sku {one.sku!r} is listed twice", f"#/products/{index}/sku")
        for index, one in enumerate(wanted)
        if listed[one.sku] > 1
    ]
    faults += [
        Fault(f"there is no category {one.category_id}", f"#/products/{index}/category_id")
        for index, one in enumerate(wanted)
        if one.category_id not in known
    ]
    if faults:
        raise InvalidInput("some products cannot be written", faults)


def _check_known(wanted: Sequence[ProductUpsert], known: Mapping[str, Product], stock: Mapping[int, Inventory]) -> None:
    """Raise `Conflict` for archived products, and for less stock than orders have reserved."""
    faults = []
    for index, one in enumerate(wanted):
        product = known.get(one.sku)
        if product is None:
            continue
        if product.deleted_at is not None:
            detail = f"product {product.id} has the sku {one.sku!r} and is archived; restore it first"
            faults.append(Fault(detail, f"#/products/{index}/sku"))
        elif one.stock is not None and one.stock < stock[product.id].reserved:
            detail = f"orders have reserved {stock[product.id].reserved} pieces; cannot set the stock to {one.stock}"
            faults.append(Fault(detail, f"#/products/{index}/stock"))
    if faults:
        raise Conflict("some products cannot be changed as requested", faults)


async def _check_number(uow: UnitOfWork, seller_id: int, more: int, most: int) -> None:
    """Raise `QuotaExceeded` if the seller would have too many products. The caller has locked the seller."""
    number = await uow.products.number_of(seller_id, most)
    if number + more > most:
        raise QuotaExceeded(f"you have {number} products, including archived ones; the limit is {most}")


def _ids(products: Iterable[Product]) -> list[int]:
    return sorted(product.id for product in products)


async def _keep_category(uow: UnitOfWork, category_id: int) -> None:
    """Lock the category of a product, so that it is not deleted meanwhile. Raises `InvalidInput` if there is none."""
    if await uow.categories.get(category_id, lock=Lock.keep) is None:
        raise InvalidInput(f"there is no category {category_id}", [Fault("is unknown", "#/category_id")])


async def _name_is_free(uow: UnitOfWork, name: str) -> None:
    known = await uow.categories.by_name(name)
    if known is not None:
        raise _name_taken(f"; it is deleted: restore category {known.id}" if known.deleted_at else "")


def _name_taken(more: str = "") -> AlreadyExists:
    return AlreadyExists(f"a category with this name already exists{more}", [Fault("is taken", "#/name")])


def _archived(product: Product) -> AlreadyExists:
    return AlreadyExists(
        f"your product {product.id} has the sku {product.sku!r} and is archived; restore it",
        [Fault("is taken by an archived product", "#/sku")],
    )


def _updated(product: Product) -> ProductUpdated:
    return ProductUpdated(
        product_id=product.id, product_version=product.version, price=product.price, is_active=product.is_active
    )
