"""Operations on the catalogue."""

from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from services.catalog.events import ProductCreated, ProductUpdated
from services.catalog.models import Category, Product
from services.catalog.repository import PRODUCT_WITH_DETAILS
from services.catalog.schemas import CategoryCreate, ProductCreate, ProductUpdate
from services.errors import AlreadyExists, Conflict, Fault, Forbidden, InvalidInput, NotFound, StaleVersion
from services.sql import violates
from services.unit_of_work import UnitOfWork
from services.users.models import Caller, Role


async def create_category(uow: UnitOfWork, wanted: CategoryCreate) -> Category:
    """Create a category. Raises `AlreadyExists` if the name is taken, ignoring case."""
    taken = AlreadyExists("a category with this name already exists", [Fault("is taken", "#/name")])
    if await uow.categories.name_taken(wanted.name):
        raise taken
    try:
        return await uow.categories.create(wanted)
    except IntegrityError as error:
        raise taken if violates(error, "uq_categories_name_lower") else error from error


async def get_category(uow: UnitOfWork, category_id: int) -> Category:
    """The category. Raises `NotFound` if there is none."""
    category = await uow.categories.get(category_id)
    if category is None:
        raise NotFound(f"there is no category {category_id}")
    return category


async def create_product(uow: UnitOfWork, seller: Caller, wanted: ProductCreate) -> Product:
    """Create a product of this seller with its initial stock. Raises `InvalidInput` for an unknown category."""
    taken = AlreadyExists(f"you already have a product with the sku {wanted.sku!r}", [Fault("is taken", "#/sku")])
    await _category_exists(uow, wanted.category_id)
    if await uow.products.sku_taken(seller.id, wanted.sku):
        raise taken
    product = Product(seller_id=seller.id, **wanted.model_dump(exclude={"stock"}))
    uow.session.add(product)
    try:
        await uow.session.flush()
    except IntegrityError as error:
        raise taken if violates(error, "uq_products_seller_id_sku") else error from error
    await uow.inventory.open(product.id, wanted.stock)
    uow.record(ProductCreated(product_id=product.id, seller_id=seller.id, price=product.price))
    return await get_product(uow, product.id)


async def get_product(uow: UnitOfWork, product_id: int) -> Product:
    """The product with its seller, category and stock, active or not."""
    product = await uow.products.get(product_id, options=PRODUCT_WITH_DETAILS)
    if product is None:
        raise NotFound(f"there is no product {product_id}")
    return product


async def update_product(
    uow: UnitOfWork, caller: Caller, product_id: int, changes: ProductUpdate, version: int
) -> Product:
    """Change a product, for its seller or an operator. Raises `StaleVersion` if `version` is not the current one.

    The row is not locked: if two edits start from the same version, the second write fails
    (`sqlalchemy.orm.exc.StaleDataError`), so no edit is ever lost.
    """
    product = await get_product(uow, product_id)
    _may_manage(caller, product)
    if product.version != version:
        raise StaleVersion(
            f"product {product_id} is now at version {product.version}, not {version}; fetch it and try again"
        )
    if not changes.model_fields_set:
        return product
    if changes.category_id is not None:
        await _category_exists(uow, changes.category_id)
    await uow.products.update(product, changes)
    uow.record(
        ProductUpdated(
            product_id=product.id,
            product_version=product.version,
            price=product.price,
            is_active=product.is_active,
        )
    )
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


async def _category_exists(uow: UnitOfWork, category_id: int) -> None:
    if not await uow.categories.exists(col(Category.id) == category_id):
        raise InvalidInput(f"there is no category {category_id}", [Fault("is unknown", "#/category_id")])
