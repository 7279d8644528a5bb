"""HTTP routes for categories and products."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.api.bodies import AS_MUCH_AS_ANY, KIB, body_limit
from services.api.dependencies import CurrentUser, IfMatch, KnownUser, ReplicaWork, State, Work, etag, page_of
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs, public
from services.api.transaction import TransactionRoute
from services.catalog import service
from services.catalog.models import Category
from services.catalog.repository import CATEGORIES, OWN_PRODUCTS, PRODUCTS
from services.catalog.schemas import (
    CategoryCreate,
    CategoryPublic,
    CategoryUpdate,
    ProductCreate,
    ProductPublic,
    ProductsUpsert,
    ProductsUpserted,
    ProductUpdate,
    StockUpdate,
)
from services.errors import AlreadyExists, QuotaExceeded
from services.fields import Id, Text
from services.query import Page, PageQuery, Rows
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["catalogue"])

Search = Annotated[
    Text | None,
    Query(alias="q", min_length=2, max_length=100, description="Search product names; misspelt words match too."),
]


@router.post(
    "/categories",
    status_code=201,
    response_model=CategoryPublic,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 413, 422, AlreadyExists) | located(201),
)
@needs(Scope.catalog_manage)
async def create_category(wanted: CategoryCreate, _: CurrentUser, response: Response, uow: Work) -> Category:
    """Create a category."""
    category = await service.create_category(uow, wanted)
    response.headers["Location"] = f"/v1/categories/{category.id}"
    response.headers["ETag"] = etag(category.version)
    return category


@router.get("/categories", response_model=Page[CategoryPublic], responses=responses(400, 422))
@public
async def list_categories(page: Annotated[PageQuery, page_of(CATEGORIES)], uow: ReplicaWork) -> Rows[Category]:
    """List categories."""
    return await uow.categories.list_page(CATEGORIES, page)


@router.get("/categories/{category_id}", response_model=CategoryPublic, responses=responses(404, 422))
@public
async def read_category(category_id: Id, response: Response, uow: Work) -> Category:
    """Get a category."""
    category = await service.get_category(uow, category_id)
    response.headers["ETag"] = etag(category.version)
    return category


@router.patch(
    "/categories/{category_id}",
    response_model=CategoryPublic,
    responses=responses(400, 401, 403, 404, 412, 413, 422, 428, AlreadyExists),
)
@needs(Scope.catalog_manage)
async def update_category(
    category_id: Id, changes: CategoryUpdate, _: CurrentUser, version: IfMatch, response: Response, uow: Work
) -> Category:
    """Rename a category."""
    category = await service.update_category(uow, category_id, changes, version)
    response.headers["ETag"] = etag(category.version)
    return category


@router.delete("/categories/{category_id}", status_code=204, responses=responses(401, 403, 404, 409, 422))
@needs(Scope.catalog_manage)
async def delete_category(category_id: Id, _: CurrentUser, uow: Work) -> None:
    """Delete a category without products, so that `restore` can bring it back."""
    await service.delete_category(uow, category_id)


@router.post(
    "/categories/{category_id}/restore",
    response_model=CategoryPublic,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 422, AlreadyExists),
)
@needs(Scope.catalog_manage)
async def restore_category(category_id: Id, _: CurrentUser, response: Response, uow: Work) -> Category:
    """Restore a deleted category."""
    category = await service.restore_category(uow, category_id)
    response.headers["ETag"] = etag(category.version)
    return category


@router.post(
    "/products",
    status_code=201,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 413, 422, AlreadyExists, QuotaExceeded) | located(201),
)
@needs(Scope.catalog_write)
@body_limit(128 * KIB)
async def create_product(
    wanted: ProductCreate, caller: CurrentUser, response: Response, uow: Work, state: State
) -> ProductPublic:
    """Create a product that the caller sells."""
    product = await service.create_product(uow, caller.id, wanted, state.settings.products_per_seller)
    response.headers["Location"] = f"/v1/products/{product.id}"
    response.headers["ETag"] = etag(product.version)
    return service.shown(caller, product)


@router.put("/products", responses=responses(400, 401, 409, 413, 422, QuotaExceeded))
@needs(Scope.catalog_write)
@body_limit(AS_MUCH_AS_ANY, values=10_000)
@rate_class(RateClass.batch)
async def upsert_products(wanted: ProductsUpsert, seller: CurrentUser, uow: Work, state: State) -> ProductsUpserted:
    """Create or change up to 1000 products that the caller sells, each by its `sku`, and set their stock; all or none.

    The request states the wanted values, so sending it again changes nothing.
    """
    most = state.settings.products_per_seller
    return ProductsUpserted(products=await service.upsert_products(uow, seller, wanted.products, most))


@router.get("/products", responses=responses(400, 401, 422))
@public
@rate_class(RateClass.search)
async def list_products(
    caller: KnownUser, page: Annotated[PageQuery, page_of(PRODUCTS)], uow: ReplicaWork, search: Search = None
) -> Page[ProductPublic]:
    """List active products. A token is not needed; with one, sellers see the stock of their products."""
    return (await uow.products.page(page, search)).shown(partial(service.shown, caller))


@router.get("/users/me/products", responses=responses(400, 401, 422))
@needs(Scope.catalog_read)
async def list_own_products(
    caller: CurrentUser, page: Annotated[PageQuery, page_of(OWN_PRODUCTS)], uow: ReplicaWork
) -> Page[ProductPublic]:
    """List the products that the caller sells, active or not, with their stock. Archived ones are left out."""
    return (await uow.products.of_seller(caller.id, page)).shown(partial(service.shown, caller))


@router.get("/users/{user_id}/products", responses=responses(400, 401, 403, 422))
@needs(Scope.catalog_read_all)
async def list_products_of_seller(
    user_id: Id, caller: CurrentUser, page: Annotated[PageQuery, page_of(OWN_PRODUCTS)], uow: ReplicaWork
) -> Page[ProductPublic]:
    """List the products that a user sells, active or not, with their stock. Archived ones are left out."""
    return (await uow.products.of_seller(user_id, page)).shown(partial(service.shown, caller))


@router.get("/products/{product_id}", responses=responses(401, 404, 422))
@public
async def read_product(product_id: Id, caller: KnownUser, response: Response, uow: Work) -> ProductPublic:
    """Get a product. One that is not active is shown to its seller and the staff only.

    A token is not needed; with one, the seller sees the stock.
    """
    product = await service.get_product(uow, caller, product_id)
    response.headers["ETag"] = etag(product.version)
    return service.shown(caller, product)


@router.patch(
    "/products/{product_id}",
    responses=responses(400, 401, 403, 404, 412, 413, 422, 428),
)
@needs(Scope.catalog_write)
@body_limit(128 * KIB)
async def update_product(
    product_id: Id, changes: ProductUpdate, caller: CurrentUser, version: IfMatch, response: Response, uow: Work
) -> ProductPublic:
    """Change a product, for its seller and operators. Orders keep the price at which they were placed."""
    product = await service.update_product(uow, caller, product_id, changes, version)
    response.headers["ETag"] = etag(product.version)
    return service.shown(caller, product)


@router.delete("/products/{product_id}", status_code=204, responses=responses(401, 403, 404, 422))
@needs(Scope.catalog_write)
async def archive_product(product_id: Id, caller: CurrentUser, uow: Work) -> None:
    """Archive a product, for its seller and operators: it is off sale and hidden. Orders still show it."""
    await service.archive_product(uow, caller, product_id)


@router.post(
    "/products/{product_id}/restore",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422, AlreadyExists),
)
@needs(Scope.catalog_write)
async def restore_product(product_id: Id, caller: CurrentUser, response: Response, uow: Work) -> ProductPublic:
    """Restore an archived product, for its seller and operators. It stays off sale until it is activated."""
    product = await service.restore_product(uow, caller, product_id)
    response.headers["ETag"] = etag(product.version)
    return service.shown(caller, product)


@router.post(
    "/products/{product_id}/stock",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 413, 422),
)
@needs(Scope.catalog_write)
async def change_stock(
    product_id: Id, change: StockUpdate, caller: CurrentUser, response: Response, uow: Work
) -> ProductPublic:
    """Add pieces to the stock of a product or remove them, for its seller and operators."""
    product = await service.change_stock(uow, caller, product_id, change.change)
    response.headers["ETag"] = etag(product.version)
    return service.shown(caller, product)
