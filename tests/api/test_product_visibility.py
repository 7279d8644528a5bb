"""What others see of products: neither how many pieces there are, nor those that are not active."""

import json
from typing import Any

import httpx2
import pytest

from services.catalog.repository import OWN_PRODUCTS, PRODUCTS
from services.catalog.schemas import FEW
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import make_key, with_key
from tests.factories import make_product, make_user

STOCK = 76543


async def everyone(api: Api) -> dict[str, User | None]:
    """A user of each role who sells nothing, and no one."""
    return {"anonymous": None, **{role.value: await make_user(api.database, role=role) for role in Role}}


SEE_ALL = {"support", "operator", "auditor"}


async def test_the_number_of_pieces_is_for_the_seller_and_the_staff(api: Api) -> None:
    _, seller, product = await api.shop(stock=STOCK)
    for name, by in {**await everyone(api), "its seller": seller}.items():
        one = await api.get(f"/v1/products/{product.id}", by=by)
        listed = await api.get(f"/v1/products?filter=seller_id:eq:{seller.id}", by=by)
        (row,) = listed.json()["data"]
        assert one.json() == row
        assert row["availability"] == "in_stock"
        if name in SEE_ALL | {"its seller"}:
            assert row["inventory"] == {"product_id": product.id, "on_hand": STOCK, "reserved": 0}, name
        else:
            assert row["inventory"] is None, name
            assert str(STOCK) not in one.text + listed.text


async def test_others_see_whether_there_are_pieces(api: Api) -> None:
    buyer, _, product = await api.shop(stock=FEW + 2)

    async def availability() -> str:
        return str((await api.get(f"/v1/products/{product.id}")).json()["availability"])

    seen = [await availability()]
    # Reserved pieces are not available.
    for pieces in (2, FEW - 1, 1):
        await api.place(buyer, (product, pieces))
        await api.process()
        seen.append(await availability())
    assert seen == ["in_stock", "few_left", "few_left", "out_of_stock"]


async def test_an_order_of_too_many_pieces_does_not_say_how_many_there_are(api: Api) -> None:
    buyer, _, product = await api.shop(stock=STOCK, credits="1000000000")
    placed = await api.post("/v1/orders", by=buyer, json=order_of((product, STOCK + 1)))
    await api.process()
    order = await api.get(placed.headers["location"], by=buyer)
    assert order.json()["status"] == "rejected"
    assert str(STOCK) + '"' not in order.text
    assert f": {STOCK}" not in json.dumps(order.json())


def test_no_list_of_products_can_be_filtered_or_sorted_by_stock() -> None:
    for listing in (PRODUCTS, OWN_PRODUCTS):
        names = {*listing.filters, *listing.sorts}
        assert names <= {"id", "category_id", "seller_id", "sku", "name", "price", "created_at", "is_active"}


async def hidden(api: Api) -> tuple[User, Any]:
    seller = await make_user(api.database)
    return seller, await make_product(api.database, seller=seller, name="Hidden lamp", sku="HID-1", is_active=False)


async def sent(api: Api, method: str, path: str, by: User | None) -> httpx2.Response:
    bodies: dict[str, Any] = {"PATCH": {"name": "Mine"}, "POST": {"change": 1}}
    more = {"json": bodies[method]} if method in bodies else {}
    return await api.request(method, path, by=by, version=1, headers={"X-Request-Id": "same"}, **more)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/stock")],
    ids=["read", "change", "archive", "stock"],
)
async def test_an_inactive_product_is_answered_to_others_like_an_unknown_one(api: Api, method: str, path: str) -> None:
    seller, product = await hidden(api)
    callers = await everyone(api)
    before = await api.everything()
    for name, by in callers.items():
        if name in SEE_ALL or (by is None and method != "GET") or (name == "auditor" and method != "GET"):
            continue
        reply = await sent(api, method, f"/v1/products/{product.id}{path}", by)
        unknown = await sent(api, method, f"/v1/products/{2**40}{path}", by)
        assert_problem(reply, 404, "not_found")
        assert reply.text.replace(str(product.id), "ID") == unknown.text.replace(str(2**40), "ID"), name
    assert await api.everything() == before
    assert (await sent(api, method, f"/v1/products/{product.id}{path}", seller)).status_code in (200, 204)


async def test_an_inactive_product_is_in_no_list_that_others_see(api: Api) -> None:
    seller, product = await hidden(api)
    wanted = ("", f"?filter=seller_id:eq:{seller.id}", "?filter=sku:eq:HID-1", "?filter=name:like:Hidden", "?q=hidden")
    # Nor in the public list of their seller: it shows what can be ordered.
    for by in (None, seller, await make_user(api.database, role=Role.operator)):
        for query in wanted:
            page = (await api.get(f"/v1/products{query}{'&' if query else '?'}count=exact", by=by)).json()
            assert (page["data"], page["total"]["value"]) == ([], 0)
    refused = await api.get("/v1/products?filter=is_active:eq:false", by=seller)
    assert_problem(refused, 400, "bad_query")
    buyer = await make_user(api.database, credits="100")
    details = []
    for product_id in (product.id, 2**40):
        wrong = {"items": [{"product_id": product_id, "quantity": 1}]}
        problem = assert_problem(await api.post("/v1/orders", by=buyer, json=wrong), 422, "invalid_input")
        details.append(problem["errors"][0]["detail"].replace(str(product_id), "ID"))
    assert details == ["product ID is not for sale"] * 2


async def test_sellers_list_their_own_products_active_or_not(api: Api) -> None:
    seller, inactive = await hidden(api)
    active = await make_product(api.database, seller=seller, name="A lamp", stock=7)
    archived = await make_product(api.database, seller=seller)
    await api.delete(f"/v1/products/{archived.id}", by=seller)
    await make_product(api.database)

    async def ids(query: str = "", by: User = seller, path: str = "/v1/users/me/products") -> list[int]:
        reply = await api.get(f"{path}{query}", by=by)
        assert reply.status_code == 200, reply.text
        return [row["id"] for row in reply.json()["data"]]

    assert await ids() == [inactive.id, active.id]
    assert await ids("?sort=-name") == [inactive.id, active.id]
    assert await ids("?sort=name") == [active.id, inactive.id]
    assert await ids("?filter=is_active:eq:false") == [inactive.id]
    assert await ids("?filter=sku:eq:HID-1") == [inactive.id]
    assert await ids("?filter=name:like:lamp&filter=is_active:eq:true") == [active.id]
    rows = (await api.get("/v1/users/me/products", by=seller)).json()["data"]
    assert [(row["is_active"], row["inventory"]["on_hand"]) for row in rows] == [(False, 100), (True, 7)]
    assert await ids(by=await make_user(api.database)) == []

    of_seller = f"/v1/users/{seller.id}/products"
    for role in Role:
        by = await make_user(api.database, role=role)
        if role.value in SEE_ALL:
            assert await ids(by=by, path=of_seller) == [inactive.id, active.id]
        else:
            assert_problem(await api.get(of_seller, by=by), 403, "forbidden")


async def test_a_key_without_the_scope_shows_what_everyone_sees(api: Api) -> None:
    seller, inactive = await hidden(api)
    active = await make_product(api.database, seller=seller)
    blind, seeing = [with_key(await make_key(api, seller, scope)) for scope in ("orders:read", "catalog:read")]
    assert_problem(await api.get(f"/v1/products/{inactive.id}", headers=blind), 404, "not_found")
    assert (await api.get(f"/v1/products/{inactive.id}", headers=seeing)).json()["id"] == inactive.id
    assert (await api.get(f"/v1/products/{active.id}", headers=blind)).json()["inventory"] is None
    assert (await api.get(f"/v1/products/{active.id}", headers=seeing)).json()["inventory"]["on_hand"] == 100
    assert_problem(await api.get("/v1/users/me/products", headers=blind), 403, "forbidden")


async def test_a_token_that_is_not_valid_is_refused_where_none_is_needed(api: Api) -> None:
    product = await make_product(api.database)
    for path in ("/v1/products", f"/v1/products/{product.id}"):
        assert (await api.get(path)).status_code == 200
        refused = await api.get(path, headers={"Authorization": "Bearer forged"})
        assert_problem(refused, 401, "unauthenticated")
    paths = api.app.openapi()["paths"]
    for path in ("/v1/products", "/v1/products/{product_id}"):
        assert paths[path]["get"]["security"] == [{}, {"OAuth2PasswordBearer": []}, {"ApiKey": []}]
        assert "401" in paths[path]["get"]["responses"]
