"""Operations on the catalogue."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from services.catalog.events import ProductArchived, ProductCreated, ProductRestored, ProductUpdated
from services.catalog.models import Category, InventoryBase, Product
from services.catalog.repository import PRODUCT_WITH_DETAILS
from services.catalog.schemas import CategoryCreate, CategoryUpdate, ProductCreate, ProductUpdate
from services.errors import AlreadyExists, Conflict, Fault, Forbidden, InvalidInput, NotFound
from services.repository import Lock, check_version
from services.sql import violates
from services.unit_of_work import UnitOfWork
from services.users.models import Caller, Role


async def create_category(uow: UnitOfWork, wanted: CategoryCreate) -> Category:
    """Create a category. Raises `AlreadyExists` if the name is taken, ignoring case."""
    await _name_is_free(uow, wanted.name)
    with _may_be_taken("uq_categories_name_lower", _name_taken()):
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
    with _may_be_taken("uq_categories_name_lower", _name_taken()):
        await uow.categories.update(category, changes)
    return category


async def delete_category(uow: UnitOfWork, category_id: int) -> None:
    """Delete a category, so that `restore_category` can bring it back. Raises `Conflict` if it has products.

    Archived products do not count. Whoever puts a product into a category locks the category as well, so none gets into
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


async def create_product(uow: UnitOfWork, seller: Caller, wanted: ProductCreate) -> Product:
    """Create a product of this seller with its initial stock. Raises `InvalidInput` for an unknown category."""
    taken = AlreadyExists(f"you already have a product with the sku {wanted.sku!r}", [Fault("is taken", "#/sku")])
    await _keep_category(uow, wanted.category_id)
    known = await uow.products.by_sku(seller.id, [wanted.sku])
    if known:
        raise _archived(known[wanted.sku]) if known[wanted.sku].deleted_at else taken
    with _may_be_taken("uq_products_seller_id_sku", taken):
        product = await uow.products.create(wanted, without={"stock"}, seller_id=seller.id)
    await uow.inventory.create(InventoryBase(product_id=product.id, on_hand=wanted.stock))
    uow.record(ProductCreated(product_id=product.id, seller_id=seller.id, price=product.price))
    return await uow.products.refreshed(product)


async def get_product(uow: UnitOfWork, product_id: int) -> Product:
    """The product with its seller, category and stock, active or not. Raises `NotFound` if it is archived."""
    product = await uow.products.get(product_id, options=PRODUCT_WITH_DETAILS)
    if product is None:
        raise NotFound(f"there is no product {product_id}")
    return product


async def update_product(
    uow: UnitOfWork, caller: Caller, product_id: int, changes: ProductUpdate, version: int
) -> Product:
    """Change a product, for its seller or an operator. Raises `StaleVersion` if `version` is not the current one."""
    product = await get_product(uow, product_id)
    _may_manage(caller, product)
    check_version(product, version)
    if changes.category_id is not None:
        await _keep_category(uow, changes.category_id)
    if not await uow.products.update(product, changes):
        return product
    uow.record(_updated(product))
    return await uow.products.refreshed(product)


async def archive_product(uow: UnitOfWork, caller: Caller, product_id: int) -> None:
    """Take a product off sale and hide it, for its seller or an operator. Orders still show it."""
    product = await uow.products.get(product_id, lock=Lock.change)
    if product is None:
        raise NotFound(f"there is no product {product_id}")
    _may_manage(caller, product)
    await uow.products.soft_delete(product, is_active=False)
    uow.record(ProductArchived(product_id=product_id, product_version=product.version))


async def restore_product(uow: UnitOfWork, caller: Caller, product_id: int) -> Product:
    """Restore an archived product, for its seller or an operator. It stays off sale until it is activated.

    Raises `Conflict` if its category has been deleted since.
    """
    product = await uow.products.get_deleted(product_id)
    if product is None:
        raise NotFound(f"there is no archived product {product_id}")
    _may_manage(caller, product)
    if await uow.categories.get(product.category_id, lock=Lock.keep) is None:
        raise Conflict(f"category {product.category_id} of this product is deleted; restore the category first")
    await uow.products.restore(product)
    uow.record(ProductRestored(product_id=product_id, product_version=product.version))
    return await uow.products.refreshed(product)


async def change_stock(uow: UnitOfWork, caller: Caller, product_id: int, pieces: int) -> Product:
    """Add pieces or remove them, for the seller or an operator; never below the number that orders have reserved."""
    product = await get_product(uow, product_id)
    _may_manage(caller, product)
    available = (await uow.inventory.lock([product_id]))[product_id]
    if available + pieces < 0:
        raise Conflict(
            f"only {available} pieces of product {product_id} are available; cannot remove {-pieces}",
            [Fault(f"must be at least {-available}", "#/change")],
        )
    await uow.inventory.receive(product_id, pieces)
    return await uow.products.refreshed(product)


def _may_manage(caller: Caller, product: Product) -> None:
    if caller.id != product.seller_id and caller.role is not Role.operator:
        raise Forbidden(f"product {product.id} is sold by someone else")


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


@contextmanager
def _may_be_taken(constraint: str, taken: AlreadyExists) -> Iterator[None]:
    """Two concurrent requests may both find a name free; the unique constraint lets only one through."""
    try:
        yield
    except IntegrityError as error:
        raise taken if violates(error, constraint) else error from error
