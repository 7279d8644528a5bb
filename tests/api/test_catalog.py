"""Categories and products over HTTP."""

import asyncio
from typing import Any

import httpx2
import pytest

from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import count_statements, make_category, make_operator, make_product, make_user


def lamp(category_id: int, **more: Any) -> dict[str, Any]:
    return {"sku": "LAMP-1", "name": "Brass lantern", "price": "12.50", "category_id": category_id, **more}


async def test_operators_create_categories_that_everyone_sees(api: Api) -> None:
    operator = await make_operator(api.database)
    made = await api.post("/v1/categories", by=operator, json={"name": "Lamps"})
    assert made.status_code == 201
    category = made.json()
    assert made.headers["location"] == f"/v1/categories/{category['id']}"
    assert (await api.get(made.headers["location"])).json() == category
    assert (await api.get("/v1/categories?filter=name:eq:Lamps")).json()["data"] == [category]
    assert_problem(await api.get(f"/v1/categories/{2**62}"), 404, "not_found")


async def test_category_names_are_unique_regardless_of_case(api: Api) -> None:
    operator = await make_operator(api.database)
    names = ["Lamps", "LAMPS", "lamps"] * 3
    replies = await asyncio.gather(*[api.post("/v1/categories", by=operator, json={"name": name}) for name in names])
    assert sorted(reply.status_code for reply in replies) == [201] + [409] * 8
    assert await api.scalar("SELECT count(*) FROM categories") == 1


async def test_a_category_is_renamed_under_its_version(api: Api) -> None:
    operator = await make_operator(api.database)
    lamps, chairs = await make_category(api.database, "Lamps"), await make_category(api.database, "Chairs")
    path = f"/v1/categories/{lamps.id}"
    assert (await api.get(path)).headers["etag"] == '"1"'
    renamed = await api.patch(path, by=operator, version=1, json={"name": "LAMPS"})
    assert (renamed.status_code, renamed.json()["name"], renamed.headers["etag"]) == (200, "LAMPS", '"2"')
    assert (await api.get(path)).json() == renamed.json()
    assert_problem(await api.patch(path, by=operator, version=1, json={"name": "X"}), 412, "stale_version")
    taken = await api.patch(path, by=operator, version=2, json={"name": "chairs"})
    assert_problem(taken, 409, "already_exists", pointers=["#/name"])
    by_user = await api.patch(path, by=await make_user(api.database), version=2, json={"name": "X"})
    assert_problem(by_user, 403, "forbidden")
    names = ["X"] * 5
    paths = [path, f"/v1/categories/{chairs.id}"]
    replies = await asyncio.gather(
        *[
            api.patch(paths[index % 2], by=operator, version=2 - index % 2, json={"name": name})
            for index, name in enumerate(names)
        ]
    )
    assert min(reply.status_code for reply in replies) == 200
    assert {reply.status_code for reply in replies} <= {200, 409, 412}
    assert await api.scalar("SELECT count(*) FROM categories WHERE name = 'X'") == 1


async def test_an_empty_category_is_deleted_and_restored(api: Api) -> None:
    operator, seller = await make_operator(api.database), await make_user(api.database)
    category = await make_category(api.database, "Lamps")
    path = f"/v1/categories/{category.id}"
    product = (await api.post("/v1/products", by=seller, json=lamp(category.id))).json()
    refused = assert_problem(await api.delete(path, by=operator), 409, "conflict")
    assert "still has 1 product;" in refused["detail"]
    assert (await api.delete(f"/v1/products/{product['id']}", by=seller)).status_code == 204

    assert_problem(await api.delete(path, by=seller), 403, "forbidden")
    assert (await api.delete(path, by=operator)).status_code == 204
    assert_problem(await api.get(path), 404, "not_found")
    assert_problem(await api.delete(path, by=operator), 404, "not_found")
    assert_problem(await api.patch(path, by=operator, version=2, json={"name": "X"}), 404, "not_found")
    assert (await api.get("/v1/categories")).json()["data"] == []
    new = await api.post("/v1/products", by=seller, json=lamp(category.id, sku="LAMP-2"))
    assert_problem(new, 422, "invalid_input", pointers=["#/category_id"])
    again = await api.post("/v1/categories", by=operator, json={"name": "lamps"})
    problem = assert_problem(again, 409, "already_exists", pointers=["#/name"])
    assert f"restore category {category.id}" in problem["detail"]
    orphan = await api.post(f"/v1/products/{product['id']}/restore", by=seller)
    assert_problem(orphan, 409, "conflict")

    restored = await api.post(f"{path}/restore", by=operator)
    assert (restored.status_code, restored.json()["name"], restored.headers["etag"]) == (200, "Lamps", '"3"')
    assert_problem(await api.post(f"{path}/restore", by=operator), 404, "not_found")
    assert (await api.post(f"/v1/products/{product['id']}/restore", by=seller)).status_code == 200


async def test_no_product_gets_into_a_category_while_it_is_deleted(api: Api) -> None:
    operator, seller = await make_operator(api.database), await make_user(api.database)
    for number in range(10):
        category = await make_category(api.database)
        deleted, created = await asyncio.gather(
            api.delete(f"/v1/categories/{category.id}", by=operator),
            api.post("/v1/products", by=seller, json=lamp(category.id, sku=f"LAMP-{number}")),
        )
        assert (deleted.status_code, created.status_code) in {(204, 422), (409, 201)}
    lost = """
        SELECT count(*) FROM products JOIN categories ON categories.id = category_id
        WHERE categories.deleted_at IS NOT NULL
    """
    assert await api.scalar(lost) == 0


async def test_an_archived_product_is_hidden_and_off_sale_until_it_is_restored_and_activated(api: Api) -> None:
    buyer, seller, product = await api.shop(sku="LAMP-1")
    placed = await api.place(buyer, (product, 1))
    path = f"/v1/products/{product.id}"
    assert_problem(await api.delete(path, by=buyer), 403, "forbidden")

    assert (await api.delete(path, by=seller)).status_code == 204

    assert_problem(await api.get(path), 404, "not_found")
    assert_problem(await api.delete(path, by=seller), 404, "not_found")
    assert_problem(await api.patch(path, by=seller, version=2, json={"name": "X"}), 404, "not_found")
    assert_problem(await api.post(f"{path}/stock", by=seller, json={"change": 1}), 404, "not_found")
    assert (await api.get("/v1/products")).json()["data"] == []
    refused = await api.post("/v1/orders", by=buyer, json={"items": [{"product_id": product.id, "quantity": 1}]})
    assert_problem(refused, 422, "invalid_input", pointers=["#/items/0/product_id"])
    again = await api.post("/v1/products", by=seller, json=lamp(product.category_id))
    assert "restore it" in assert_problem(again, 409, "already_exists", pointers=["#/sku"])["detail"]
    await api.process()
    shown = (await api.get(f"/v1/orders/{placed['id']}", by=buyer)).json()
    assert (shown["status"], shown["items"][0]["product"]["sku"]) == ("confirmed", "LAMP-1")

    assert_problem(await api.post(f"{path}/restore", by=buyer), 404, "not_found")
    restored = await api.post(f"{path}/restore", by=seller)
    assert (restored.status_code, restored.json()["is_active"], restored.headers["etag"]) == (200, False, '"3"')
    assert_problem(await api.post(f"{path}/restore", by=seller), 404, "not_found")
    assert (await api.patch(path, by=seller, version=3, json={"is_active": True})).status_code == 200
    await api.place(buyer, (product, 1))
    types = "SELECT string_agg(type, ' ' ORDER BY position) FROM events WHERE type LIKE 'product.%'"
    assert await api.scalar(types) == "product.archived product.restored product.updated"


async def test_an_archived_product_stays_hidden_although_the_release_before_activates_it(api: Api) -> None:
    buyer, seller, product = await api.shop()
    path = f"/v1/products/{product.id}"
    assert (await api.delete(path, by=seller)).status_code == 204
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE products SET is_active = true, version = version + 1")

    assert (await api.get("/v1/products?count=exact")).json()["total"]["value"] == 0
    assert (await api.get("/v1/products")).json()["data"] == []
    assert_problem(await api.get(path), 404, "not_found")
    refused = await api.post("/v1/orders", by=buyer, json={"items": [{"product_id": product.id, "quantity": 1}]})
    assert_problem(refused, 422, "invalid_input", pointers=["#/items/0/product_id"])


async def test_a_product_is_offered_by_its_caller(api: Api) -> None:
    seller = await make_user(api.database, full_name="Sam Seller")
    category = await make_category(api.database)
    reply = await api.post("/v1/products", by=seller, json=lamp(category.id, description="Old.", stock=7))
    assert reply.status_code == 201
    product = reply.json()
    assert reply.headers["location"] == f"/v1/products/{product['id']}"
    assert reply.headers["etag"] == '"1"'
    assert (product["price"], product["is_active"], product["version"]) == ("12.50", True, 1)
    assert product["seller"] == {"id": seller.id, "full_name": "Sam Seller"}
    assert product["category"]["id"] == category.id
    assert product["inventory"] == {"product_id": product["id"], "on_hand": 7, "reserved": 0}
    assert (await api.get(reply.headers["location"], by=seller)).json() == product
    assert await api.scalar("SELECT type FROM events") == "product.created"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("price", "0"),
        ("price", "0.00"),
        ("price", "-1.00"),
        ("price", "1.001"),
        ("price", "1e3"),
        ("price", "NaN"),
        ("price", "Infinity"),
        ("price", "１２"),
        ("price", "9" * 17),
        ("price", 12.5),
        ("price", 12),
        ("price", None),
        ("sku", ""),
        ("sku", "x" * 65),
        ("sku", "a\x00"),
        ("name", " "),
        ("name", "x" * 201),
        ("description", "x" * 10_001),
        ("description", None),
        ("stock", -1),
        ("stock", 1_000_000_001),
        ("stock", 1.5),
        ("stock", "1"),
        ("stock", True),
        ("category_id", 0),
        ("category_id", 2**63),
        ("category_id", 2**62),
        ("category_id", "1"),
        ("seller_id", 1),
        ("is_active", True),
        ("version", 1),
    ],
)
async def test_an_invalid_product_is_refused(api: Api, field: str, value: Any) -> None:
    seller = await make_user(api.database)
    category = await make_category(api.database)
    before = await api.everything()
    reply = await api.post("/v1/products", by=seller, json=lamp(category.id) | {field: value})
    assert_problem(reply, 422, "invalid_input", pointers=[f"#/{field}"])
    assert await api.everything() == before


async def test_a_sku_is_unique_for_each_seller(api: Api) -> None:
    one, other = await make_user(api.database), await make_user(api.database)
    category = await make_category(api.database)
    posts = [api.post("/v1/products", by=one, json=lamp(category.id)) for _ in range(5)]
    replies = await asyncio.gather(*posts)
    assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409, 409]
    refused = next(reply for reply in replies if reply.status_code == 409)
    assert_problem(refused, 409, "already_exists", pointers=["#/sku"])
    assert (await api.post("/v1/products", by=other, json=lamp(category.id))).status_code == 201


async def test_an_edit_changes_the_given_fields_and_increments_the_version(api: Api) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller, name="Lantern")
    path = f"/v1/products/{product.id}"
    reply = await api.patch(path, by=seller, version=1, json={"price": "3.10", "is_active": False})
    assert (reply.status_code, reply.headers["etag"]) == (200, '"2"')
    changed = reply.json()
    assert (changed["price"], changed["is_active"], changed["name"]) == ("3.10", False, "Lantern")
    assert changed["updated_at"] > changed["created_at"]
    assert (await api.get(path, by=seller)).json() == changed
    assert (await api.get("/v1/products")).json()["data"] == [], "what is off sale is not listed"


async def test_a_product_edit_needs_the_version_that_was_read(api: Api) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    path = f"/v1/products/{product.id}"
    before = await api.everything()
    assert_problem(await api.patch(path, by=seller, version=None, json={"name": "X"}), 428, "version_required")
    assert_problem(await api.patch(path, by=seller, version=7, json={"name": "X"}), 412, "stale_version")
    for malformed in ("1", '"0"', "*", '"1", "2"'):
        reply = await api.patch(path, by=seller, version=None, headers={"If-Match": malformed}, json={"name": "X"})
        assert_problem(reply, 422, "invalid_input")
    assert await api.everything() == before


async def test_of_simultaneous_edits_of_one_version_none_is_lost(api: Api) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    path = f"/v1/products/{product.id}"
    edits = [api.patch(path, by=seller, version=1, json={"name": f"Name {number}"}) for number in range(10)]
    replies = await asyncio.gather(*edits)
    assert sorted(reply.status_code for reply in replies) == [200] + [412] * 9
    for reply in replies:
        if reply.status_code == 412:
            assert_problem(reply, 412, "stale_version")
    won = next(reply for reply in replies if reply.status_code == 200).json()
    assert (await api.get(path, by=seller)).json() == won
    assert won["version"] == 2


async def test_a_sale_does_not_bump_the_version_an_editor_holds(api: Api) -> None:
    buyer, seller, product = await api.shop()
    await api.place(buyer, (product, 1))
    await api.process()
    reply = await api.patch(f"/v1/products/{product.id}", by=seller, version=1, json={"name": "New"})
    assert reply.status_code == 200
    assert reply.json()["inventory"]["reserved"] == 1


async def test_only_the_seller_and_operators_manage_a_product(api: Api) -> None:
    seller, stranger = await make_user(api.database), await make_user(api.database)
    operator = await make_operator(api.database)
    path = f"/v1/products/{(await make_product(api.database, seller=seller)).id}"
    assert_problem(await api.patch(path, by=stranger, version=1, json={"name": "X"}), 403, "forbidden")
    assert_problem(await api.post(f"{path}/stock", by=stranger, json={"change": 1}), 403, "forbidden")
    assert (await api.patch(path, by=operator, version=1, json={"name": "X"})).status_code == 200
    nowhere = f"/v1/products/{2**62}"
    assert_problem(await api.get(nowhere), 404, "not_found")
    assert_problem(await api.patch(nowhere, by=seller, version=1, json={"name": "X"}), 404, "not_found")
    assert_problem(await api.post(f"{nowhere}/stock", by=seller, json={"change": 1}), 404, "not_found")


@pytest.mark.parametrize("field", ["name", "description", "price", "category_id", "is_active"])
async def test_a_products_fields_cannot_be_null(api: Api, field: str) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    reply = await api.patch(f"/v1/products/{product.id}", by=seller, version=1, json={field: None})
    problem = assert_problem(reply, 422, "invalid_input", pointers=["#"])
    assert field in problem["errors"][0]["detail"]


async def test_stock_never_falls_below_what_is_reserved(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=5)
    await api.place(buyer, (product, 3))
    await api.process()
    path = f"/v1/products/{product.id}/stock"
    more = await api.post(path, by=seller, json={"change": 4})
    assert more.json()["inventory"] == {"product_id": product.id, "on_hand": 9, "reserved": 3}
    assert_problem(await api.post(path, by=seller, json={"change": -7}), 409, "conflict", pointers=["#/change"])
    assert (await api.post(path, by=seller, json={"change": -6})).json()["inventory"]["on_hand"] == 3
    for change in (10**9 + 1, -(10**9) - 1, 2**64, 1.5, "1", True, None):
        reply = await api.post(path, by=seller, json={"change": change})
        assert_problem(reply, 422, "invalid_input", pointers=["#/change"])


async def test_simultaneous_stock_changes_are_all_counted(api: Api) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller, stock=10)
    path = f"/v1/products/{product.id}/stock"
    replies = await asyncio.gather(*[api.post(path, by=seller, json={"change": -1}) for _ in range(20)])
    assert sorted(reply.status_code for reply in replies) == [200] * 10 + [409] * 10
    assert await api.stock_of(product) == (0, 0)


async def upsert(api: Api, seller: User, *products: dict[str, Any]) -> httpx2.Response:
    return await api.request("PUT", "/v1/products", by=seller, json={"products": list(products)})


async def outcomes(api: Api, seller: User, *products: dict[str, Any]) -> list[tuple[str, int, str]]:
    reply = await upsert(api, seller, *products)
    assert reply.status_code == 200, reply.text
    return [(one["sku"], one["version"], one["outcome"]) for one in reply.json()["products"]]


async def test_an_upsert_creates_changes_and_leaves_alone_what_is_as_wanted(api: Api) -> None:
    seller, other = await make_user(api.database), await make_user(api.database)
    category = await make_category(api.database)
    await make_product(api.database, seller=other, category=category, sku="B", name="Not theirs")
    a, b = (lamp(category.id, sku=sku, name=f"Lamp {sku}", stock=5) for sku in "AB")
    assert await outcomes(api, seller, b, a) == [("B", 1, "created"), ("A", 1, "created")]
    before = await api.everything()
    assert await outcomes(api, seller, a, b) == [("A", 1, "unchanged"), ("B", 1, "unchanged")]
    assert await api.everything() == before
    dearer, counted = a | {"price": "99.00"}, b | {"stock": 8}
    new = lamp(category.id, sku="C")
    assert await outcomes(api, seller, dearer, counted, new) == [
        ("A", 2, "changed"),
        ("B", 1, "changed"),
        ("C", 1, "created"),
    ]
    shown = {
        one["sku"]: (one["price"], one["inventory"]["on_hand"], one["description"])
        for one in (await api.get(f"/v1/products?filter=seller_id:eq:{seller.id}", by=seller)).json()["data"]
    }
    assert shown == {"A": ("99.00", 5, ""), "B": ("12.50", 8, ""), "C": ("12.50", 0, "")}
    assert await outcomes(api, seller, b | {"stock": None}) == [("B", 1, "unchanged")]
    types = "SELECT string_agg(type, ' ' ORDER BY position) FROM events"
    assert await api.scalar(types) == "product.created product.created product.created product.updated"


async def test_an_upsert_is_all_or_nothing(api: Api) -> None:
    buyer, seller, reserved = await api.shop(sku="RESERVED", stock=5)
    await api.place(buyer, (reserved, 3))
    await api.process()
    archived = await make_product(api.database, seller=seller, sku="ARCHIVED")
    await api.delete(f"/v1/products/{archived.id}", by=seller)
    good = lamp(reserved.category_id, sku="NEW")
    before = await api.everything()
    for wrong, status, code, pointers in (
        ([good], 422, "invalid_input", ["#/products/0/sku", "#/products/1/sku"]),
        ([lamp(2**62, sku="X")], 422, "invalid_input", ["#/products/1/category_id"]),
        ([lamp(1, sku="X", price="0")], 422, "invalid_input", ["#/products/1/price"]),
        ([lamp(reserved.category_id, sku="ARCHIVED")], 409, "conflict", ["#/products/1/sku"]),
        ([lamp(reserved.category_id, sku="RESERVED", stock=2)], 409, "conflict", ["#/products/1/stock"]),
    ):
        assert_problem(await upsert(api, seller, good, *wrong), status, code, pointers=pointers)
    assert_problem(await upsert(api, seller), 422, "invalid_input", pointers=["#/products"])
    many = [lamp(reserved.category_id, sku=f"S{number}") for number in range(1001)]
    assert_problem(await upsert(api, seller, *many), 422, "invalid_input", pointers=["#/products"])
    assert await api.everything() == before
    least = lamp(reserved.category_id, sku="RESERVED", stock=3)
    assert (await upsert(api, seller, good, least)).status_code == 200


async def test_simultaneous_upserts_of_a_seller_take_effect_one_after_another(api: Api) -> None:
    seller, category = await make_user(api.database), await make_category(api.database)
    products = [lamp(category.id, sku=f"S{number}", stock=1) for number in range(20)]
    replies = await asyncio.gather(*[upsert(api, seller, *products[:: (-1) ** turn]) for turn in range(6)])
    assert [reply.status_code for reply in replies] == [200] * 6
    found = sorted(one["outcome"] for reply in replies for one in reply.json()["products"])
    assert found == ["created"] * 20 + ["unchanged"] * 100


async def test_a_thousand_products_are_written_with_a_few_statements(api: Api) -> None:
    seller, category = await make_user(api.database), await make_category(api.database)
    products = [lamp(category.id, sku=f"S{number}", stock=1) for number in range(1000)]
    changed = [one | {"name": f"Name {number}", "stock": number} for number, one in enumerate(products)]
    for wanted in (products, changed):
        with count_statements(api.app.state.waybill.database.engine) as statements:
            assert (await upsert(api, seller, *wanted)).status_code == 200
        assert len(statements) <= 12, str(statements)
    assert await api.scalar("SELECT sum(on_hand) FROM inventory") == sum(range(1000))
    assert await api.scalar("SELECT count(*) FROM products WHERE version = 2") == 1000
