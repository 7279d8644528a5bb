"""Filters, sorts, searches and cursors of every list: what is not supported is refused with what is."""

import base64
import json
import re
from typing import Any

import pytest

from services import cursors
from services.totals import MAX_COUNTED
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import count_statements, make_category, make_operator, make_product

LISTS = {
    "/v1/users": ({"created_at", "email", "full_name", "is_active", "role"}, {"created_at", "email", "id"}),
    "/v1/categories": ({"name"}, {"id", "name"}),
    "/v1/products": (
        {"category_id", "created_at", "name", "price", "seller_id", "sku"},
        {"created_at", "id", "name", "price"},
    ),
    "/v1/orders": (
        {"buyer_id", "created_at", "reference", "status", "total", "updated_at"},
        {"id"},
    ),
    "/v1/users/me/products": ({"category_id", "created_at", "is_active", "name", "price", "sku"}, {"id", "name"}),
    "/v1/transfers": ({"amount", "created_at", "from_user_id", "kind", "state", "to_user_id"}, {"id"}),
    "/v1/holds": ({"amount", "created_at", "expires_at", "from_user_id", "state", "to_user_id"}, {"id"}),
    "/v1/accounts/me/statement": ({"created_at", "kind"}, {"version"}),
    "/v1/role-requests": (set(), {"id"}),
    "/v1/adjustments": ({"created_at", "requested_by", "state", "user_id"}, {"id"}),
    "/v1/audit-log": ({"action", "actor", "at", "object", "user_id"}, {"at", "id"}),
    "/v1/operations/bulk-actions": ({"action", "created_at", "state"}, {"id"}),
    "/v1/operations/dead-letters": (
        {"aggregate", "type", "fingerprint", "reason", "died_at"},
        {"position"},
    ),
    "/v1/operations/deferred": ({"aggregate", "type", "available_at"}, {"position", "available_at"}),
}


def cursor(*place: Any, sort: str = "id") -> str:
    """A cursor of the list of products, made up."""
    return cursors.encode(["products.id", "/v1/products?", sort], place)


@pytest.mark.parametrize("path", LISTS)
async def test_an_unknown_field_is_refused_with_the_names_of_the_known_ones(api: Api, path: str) -> None:
    operator = await make_operator(api.database)
    filters, sorts = LISTS[path]
    for name in ("hashed_password", "deleted_at", "nothing", "", "%00", "id;drop", "__class__"):
        if name not in filters:
            problem = assert_problem(await api.get(f"{path}?filter={name}:eq:1", by=operator), 400, "bad_query")
            assert all(known in problem["detail"] for known in filters)
        if name not in sorts:
            problem = assert_problem(await api.get(f"{path}?sort={name}", by=operator), 400, "bad_query")
            assert all(known in problem["detail"] for known in sorts)
    for name in sorts:
        assert (await api.get(f"{path}?sort=-{name}", by=operator)).status_code == 200
        assert_problem(await api.get(f"{path}?sort=--{name}", by=operator), 400, "bad_query")


@pytest.mark.parametrize("path", LISTS)
async def test_an_unknown_operator_is_refused_with_the_names_of_the_known_ones(api: Api, path: str) -> None:
    operator = await make_operator(api.database)
    for name in LISTS[path][0]:
        for unknown in ("between", "", "EQ", "eq ", "==", "%00"):
            reply = await api.get(f"{path}?filter={name}:{unknown}:1", by=operator)
            problem = assert_problem(reply, 400, "bad_query")
            assert "eq, " in problem["detail"]


@pytest.mark.parametrize(
    "filter_",
    [
        "price:gt:x",
        "price:gt:NaN",
        "price:gt:1e400",
        "price:gt:-Infinity",
        "price:in:1,x",
        "price:eq:" + "9" * 40,
        "price:eq:0.001",
        "created_at:gt:yesterday",
        "created_at:gt:0001-01-01T00:00:00Z",
        "created_at:gt:9999-12-31T23:59:59-23:59",
        "created_at:gt:99999-01-01T00:00:00Z",
        "created_at:gt:1e30",
        "category_id:eq:0",
        "category_id:eq:9223372036854775808",
        "category_id:eq:" + "9" * 5000,
        "category_id:eq:1.5",
        "name:eq:%00",
        "name:like:a%00b",
        "name:in:a,%00",
        "category_id:in:" + ",".join(["1"] * 101),
        "category_id:in:",
        "category_id",
        "category_id:eq",
    ],
    ids=lambda filter_: filter_[:30],
)
async def test_a_value_that_does_not_fit_its_field_is_refused(api: Api, filter_: str) -> None:
    reply = await api.get(f"/v1/products?filter={filter_}")
    assert_problem(reply, 400, "bad_query")
    assert filter_.split(":")[0] in reply.json()["detail"]


@pytest.mark.parametrize(
    "value",
    [
        "x",
        "!!!",
        "%00",
        "ü",
        "====",
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
        base64.urlsafe_b64encode(b'["id", 1, 1]').decode(),
        cursor(),
        cursor(1),
        cursor(1, 1, 1),
        cursor(1, 1, sort="-id"),
        cursor("1.00", 1, sort="price"),
        cursor("x", 1),
        cursor(1, 2**63),
        cursor(None, 1),
        cursor({}, []),
        cursor(float("nan"), 1),
        cursor(1, 1)[:-3],
        cursor(1, 1)[3:],
    ],
)
async def test_a_cursor_that_this_list_did_not_give_out_is_refused(api: Api, value: str) -> None:
    problem = assert_problem(await api.get(f"/v1/products?sort=id&cursor={value}"), 400, "bad_query")
    assert problem["detail"].startswith("the cursor was not issued by this list with this sort and these filters")


async def test_a_cursor_is_good_only_for_the_list_that_issued_it_whatever_the_size_of_its_pages(api: Api) -> None:
    user = await make_operator(api.database)
    lamps = await make_category(api.database)
    for number in range(3):
        await make_product(api.database, category=lamps, seller=user, name=f"Lamp {number}")
    of_category = f"filter=category_id:eq:{lamps.id}&filter=price:gt:0.01"
    path = f"/v1/products?{of_category}&sort=-id&q=lamp&limit=1"
    cursor = (await api.get(path)).json()["next_cursor"]
    continued = await api.get(f"{path.replace('limit=1', 'limit=2&count=exact')}&cursor={cursor}")
    assert [one["name"] for one in continued.json()["data"]] == ["Lamp 1", "Lamp 0"]
    for other in (
        path.replace("-id", "id"),
        path.replace("&sort=-id", ""),
        path.replace("q=lamp", "q=lam"),
        path.replace("&q=lamp", ""),
        path.replace("0.01", "0.02"),
        "/v1/products?sort=-id",
        "/v1/categories?sort=-id",
        "/v1/users?sort=-id",
    ):
        assert_problem(await api.get(f"{other}&cursor={cursor}", by=user), 400, "bad_query")


@pytest.mark.parametrize("letter", ["\N{GRINNING FACE}", "\x01", "'"])
async def test_the_page_after_the_longest_name_can_be_read(api: Api, letter: str) -> None:
    seller = await make_operator(api.database)
    names = [letter * 199 + last for last in "ab"]
    for name in names:
        await make_product(api.database, seller=seller, name=name)
    first = (await api.get("/v1/products?sort=name&limit=1")).json()
    second = (await api.get(f"/v1/products?sort=name&limit=1&cursor={first['next_cursor']}")).json()
    assert [page["data"][0]["name"] for page in (first, second)] == names


async def test_a_cursor_of_every_sort_is_checked_for_what_the_database_cannot_hold(api: Api) -> None:
    for sort, bad in (
        ("name", ["a\u0000b", 1, None]),
        ("price", ["NaN", "1e99", 10**40, None]),
        ("created_at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x", None, 10**30]),
    ):
        for value in bad:
            reply = await api.get(f"/v1/products?sort={sort}&cursor={cursor(value, 1, sort=sort)}")
            assert_problem(reply, 400, "bad_query")


async def products(api: Api, query: str) -> list[str]:
    reply = await api.get(f"/v1/products?{query}")
    assert reply.status_code == 200, reply.text
    return [product["name"] for product in reply.json()["data"]]


async def test_products_are_found_by_category_and_price(api: Api) -> None:
    lamps, chairs = await make_category(api.database), await make_category(api.database)
    for category, name, price in ((lamps, "A", "1"), (lamps, "B", "2"), (lamps, "C", "3"), (chairs, "D", "2")):
        await make_product(api.database, category=category, name=name, price=price)
    both = f"filter=category_id:eq:{lamps.id}&filter=price:gte:2.00&sort=-price"
    assert await products(api, both) == ["C", "B"]
    assert await products(api, f"filter=category_id:ne:{lamps.id}") == ["D"]
    assert await products(api, "filter=price:in:1,3&sort=price") == ["A", "C"]


async def test_a_misspelt_word_finds_the_product(api: Api) -> None:
    await make_product(api.database, name="Brass lantern with a handle")
    await make_product(api.database, name="Wooden chair")
    assert await products(api, "q=lanten") == ["Brass lantern with a handle"]
    assert await products(api, "q=WODEN") == ["Wooden chair"]
    assert await products(api, "q=submarine") == []
    assert await products(api, "q=%25%25") == []


async def test_wildcards_in_a_filter_match_literally(api: Api) -> None:
    for name in ("100% wool", "100x wool", "a_b", "axb", "back\\slash"):
        await make_product(api.database, name=name)
    assert await products(api, "filter=name:like:0%25 W") == ["100% wool"]
    assert await products(api, "filter=name:like:A_B") == ["a_b"]
    assert await products(api, "filter=name:like:\\s") == ["back\\slash"]


def documented(api: Api) -> dict[str, dict[str, str]]:
    """The description of each query parameter of each list, by path."""
    paths: dict[str, Any] = api.app.openapi()["paths"]
    found = {}
    for path, operations in paths.items():
        parameters = {
            one["name"]: one.get("description", "") for one in operations.get("get", {}).get("parameters", [])
        }
        if "filter" in parameters:
            found[path] = parameters
    return found


async def test_each_list_takes_exactly_the_filters_and_sorts_that_its_documentation_names(api: Api) -> None:
    operator = await make_operator(api.database)
    pages = documented(api)
    refunds = pages.pop("/v1/orders/{order_id}/refunds")
    assert "takes no filters" in refunds["filter"]
    of_seller = pages.pop("/v1/users/{user_id}/products")
    assert of_seller == {**pages["/v1/users/me/products"], "user_id": ""}
    of_user = pages.pop("/v1/accounts/{user_id}/statement")
    assert of_user == {**pages["/v1/accounts/me/statement"], "user_id": ""}
    exports = {
        *(f"/v1/{name}.{ending}" for name in ("orders", "audit-log") for ending in ("csv", "ndjson")),
        "/v1/accounts/me/statement.csv",
    }
    for path in exports:
        assert pages.pop(path)["filter"] == pages[path.rpartition(".")[0]]["filter"]
    assert set(pages) == set(LISTS)
    for path, parameters in pages.items():
        fields = dict(re.findall(r"`(\w+)` \(([a-z_, ]+)\)", parameters["filter"]))
        sorts = set(re.findall(r"`(\w+)`", parameters["sort"].split(";")[0]))
        assert (set(fields), sorts) == LISTS[path]
        for name, operators in fields.items():
            for operator_ in operators.split(", "):
                reply = await api.get(path, by=operator, params={"filter": f"{name}:{operator_}:?"})
                refused = "" if reply.status_code == 200 else assert_problem(reply, 400, "bad_query")["detail"]
                assert "cannot filter by" not in refused
                assert "has no operator" not in refused


def test_each_request_body_refuses_fields_that_it_does_not_know(api: Api) -> None:
    document = api.app.openapi()
    schemas, checked = document["components"]["schemas"], set()
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(content)):
                assert schemas[name]["additionalProperties"] is False, name
                checked.add(name)
    assert len(checked) >= 15


async def total(api: Api, path: str, **more: Any) -> Any:
    reply = await api.get(path, **more)
    assert reply.status_code == 200, reply.text
    return reply.json()["total"]


@pytest.mark.parametrize("path", [*LISTS, "/v1/orders/{order_id}/refunds"])
async def test_each_list_has_a_total_if_asked_for(api: Api, path: str) -> None:
    operator = await make_operator(api.database)
    if "{order_id}" in path:
        buyer, _, product = await api.shop()
        path = path.format(order_id=(await api.place(buyer, (product, 1)))["id"])
    assert await total(api, path, by=operator) is None
    counted = await total(api, f"{path}?count=exact", by=operator)
    assert counted == {"value": len((await api.get(path, by=operator)).json()["data"]), "precision": "exact"}
    estimated = await total(api, f"{path}?count=estimate", by=operator)
    assert (estimated["precision"], estimated["value"] >= 0) == ("estimate", True)
    reply = await api.get(f"{path}?count=all", by=operator)
    assert_problem(reply, 422, "invalid_input", pointers=["query/count"])


async def test_a_total_counts_what_the_filters_let_through_on_every_page(api: Api) -> None:
    lamps, chairs = await make_category(api.database), await make_category(api.database)
    for category in (lamps, lamps, lamps, chairs):
        await make_product(api.database, category=category)
    await make_product(api.database, category=lamps, is_active=False)
    path = f"/v1/products?filter=category_id:eq:{lamps.id}&limit=2&count=exact"
    first = (await api.get(path)).json()
    second = (await api.get(f"{path}&cursor={first['next_cursor']}")).json()
    assert [len(page["data"]) for page in (first, second)] == [2, 1]
    assert first["total"] == second["total"] == {"value": 3, "precision": "exact"}


async def test_a_total_counts_by_what_is_looked_up_in_another_table(api: Api) -> None:
    operator = await make_operator(api.database)
    buyer, seller, product = await api.shop()
    await api.place(buyer, (product, 1))
    for user in (buyer, buyer, seller):
        wanted = {"user_id": user.id, "amount": "5.00", "reason": "a mistake"}
        reply = await api.post("/v1/adjustments", by=operator, json=wanted)
        assert reply.status_code == 201, reply.text

    async def of(path: str, by: User) -> int:
        counted = await total(api, f"{path}&count=exact", by=by)
        assert counted == {"value": len((await api.get(path, by=by)).json()["data"]), "precision": "exact"}
        assert (await total(api, f"{path}&count=estimate", by=by))["precision"] == "estimate"
        return int(counted["value"])

    assert await of(f"/v1/adjustments?filter=user_id:eq:{buyer.id}", operator) == 2
    assert await of(f"/v1/adjustments?filter=user_id:ne:{buyer.id}", operator) == 1
    assert await of(f"/v1/adjustments?filter=user_id:in:{buyer.id},{seller.id}", operator) == 3
    assert await of("/v1/accounts/me/statement?filter=kind:eq:adjustment", buyer) == 2
    assert await of("/v1/accounts/me/statement?filter=kind:ne:adjustment", buyer) == 1


async def test_counting_stops_at_a_bound_and_an_estimate_reads_nothing(api: Api) -> None:
    async with api.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        rows = "INSERT INTO categories (name) SELECT 'Shelf ' || n FROM generate_series(1, 20000) AS n"
        await connection.exec_driver_sql(rows)
        await connection.exec_driver_sql("ANALYZE categories")
    with count_statements(api.app.state.waybill.database.engine) as statements:
        counted = await total(api, "/v1/categories?count=exact")
    assert counted == {"value": MAX_COUNTED, "precision": "at_least"}
    (counting,) = [one for one in statements.statements if "count(*)" in one]
    assert "LIMIT" in counting, "no more rows are read"
    assert await total(api, "/v1/categories?count=exact&filter=name:eq:Shelf 7") == {"value": 1, "precision": "exact"}
    some = await total(api, "/v1/categories?count=exact&filter=name:like:0")
    assert some["precision"] == "at_least", "it has not looked at the others"
    assert 0 < some["value"] < MAX_COUNTED
    none = await total(api, "/v1/categories?count=exact&filter=name:like:lamp")
    assert none == {"value": 0, "precision": "at_least"}
    estimated = await total(api, "/v1/categories?count=estimate")
    assert estimated == {"value": pytest.approx(20_000, rel=0.1), "precision": "estimate"}
    with count_statements(api.app.state.waybill.database.engine) as statements:
        await total(api, "/v1/categories?count=estimate&filter=name:like:shelf&limit=1")
    explained, *_, page = statements.statements
    assert explained.startswith("EXPLAIN (FORMAT JSON) SELECT")
    assert page.startswith("SELECT")
