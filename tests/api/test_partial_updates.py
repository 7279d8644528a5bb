"""PATCH: a field that is left out keeps its value; null is not a way to leave one out."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.catalog.schemas import CategoryUpdate, ProductUpdate
from services.users.models import User
from services.users.schemas import UserAdminUpdate, UserUpdate
from tests.api.client import Api, assert_problem
from tests.factories import make_category, make_operator, make_product, make_user


async def product(api: Api) -> tuple[User, str]:
    seller = await make_user(api.database)
    return seller, f"/v1/products/{(await make_product(api.database, seller=seller)).id}"


async def category(api: Api) -> tuple[User, str]:
    return await make_operator(api.database), f"/v1/categories/{(await make_category(api.database)).id}"


async def oneself(api: Api) -> tuple[User, str]:
    return await make_user(api.database), "/v1/users/me"


async def user(api: Api) -> tuple[User, str]:
    return await make_operator(api.database), f"/v1/users/{(await make_user(api.database)).id}"


PATCHES: dict[str, tuple[type[Any], Callable[[Api], Awaitable[tuple[User, str]]]]] = {
    "/v1/categories/{category_id}": (CategoryUpdate, category),
    "/v1/products/{product_id}": (ProductUpdate, product),
    "/v1/users/me": (UserUpdate, oneself),
    "/v1/users/{user_id}": (UserAdminUpdate, user),
}
"""Each route, with its body and how to get something to change: who may, and where it is."""


def test_every_patch_is_tried(api: Api) -> None:
    paths = api.app.openapi()["paths"].items()
    assert {path for path, operations in paths if "patch" in operations} == PATCHES.keys()


@pytest.mark.parametrize("path", PATCHES)
async def test_an_empty_patch_changes_nothing(api: Api, path: str) -> None:
    by, where = await PATCHES[path][1](api)
    shown = (await api.get(where, by=by)).json()
    before = await api.everything()
    reply = await api.patch(where, by=by, version=1, json={})
    assert (reply.status_code, reply.json(), reply.headers["etag"]) == (200, shown, '"1"')
    assert await api.everything() == before


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in PATCHES for name in PATCHES[path][0].model_fields])
async def test_null_is_refused(api: Api, path: str, name: str) -> None:
    by, where = await PATCHES[path][1](api)
    before = await api.everything()
    problem = assert_problem(
        await api.patch(where, by=by, version=1, json={name: None}), 422, "invalid_input", pointers=["#"]
    )
    assert name in problem["errors"][0]["detail"]
    assert await api.everything() == before


@pytest.mark.parametrize("path", PATCHES)
async def test_a_patch_with_the_values_that_are_there_changes_nothing(api: Api, path: str) -> None:
    by, where = await PATCHES[path][1](api)
    shown = (await api.get(where, by=by)).json()
    same = {name: shown[name] for name in PATCHES[path][0].model_fields if name in shown}
    assert same
    before = await api.everything()
    reply = await api.patch(where, by=by, version=1, json=same)
    assert (reply.status_code, reply.json(), reply.headers["etag"]) == (200, shown, '"1"')
    assert await api.everything() == before
