"""How the staff finds orders, without personal data in an address."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

import services.walks
from services.fields import now
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.programs import make_key
from tests.factories import make_operator, make_order, make_product, make_user

PATH = "/v1/operations/orders/search"


async def search(api: Api, by: User | None = None, **wanted: Any) -> dict[str, Any]:
    reply = await api.post(PATH, by=by or await make_operator(api.database), key=None, json=wanted)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def ids(api: Api, **wanted: Any) -> list[str]:
    return [one["id"] for one in (await search(api, **wanted))["data"]]


async def test_orders_are_found_by_each_field_and_by_several(api: Api) -> None:
    bea = await make_user(api.database, email="bea@example.com", credits="100")
    ben = await make_user(api.database, email="ben@example.com", credits="5")
    product = await make_product(api.database)
    first = (await api.place(bea, (product, 1), reference="INV: 1"))["id"]
    second = (await api.place(bea, (product, 2)))["id"]
    third = (await api.place(ben, (product, 3), reference="INV: 1"))["id"]
    assert await ids(api) == [third, second, first]
    assert await ids(api, id=second) == [second]
    assert await ids(api, id=str(uuid4())) == []
    assert await ids(api, buyer_id=bea.id) == [second, first]
    assert await ids(api, buyer_email="BEA@example.com") == [second, first]
    assert await ids(api, buyer_email="unknown@example.com") == []
    assert await ids(api, buyer_email="bea@example.com", buyer_id=ben.id) == []
    assert await ids(api, reference="INV: 1") == [third, first]
    assert await ids(api, reference="INV: 1", buyer_id=bea.id) == [first]
    assert await ids(api, status=["awaiting_payment"]) == [third]
    assert await ids(api, status=["awaiting_payment", "pending"], reference="INV: 1") == [third, first]
    assert await ids(api, placed_from=(now() - timedelta(minutes=1)).isoformat()) == [third, second, first]
    assert await ids(api, placed_before=(now() - timedelta(minutes=1)).isoformat()) == []
    for other in ({"buyer_id": ben.id}, {"reference": "INV: 2"}, {"status": ["rejected"]}, {"buyer_email": ben.email}):
        assert await ids(api, id=first, **other) == []
    assert await ids(api, id=first, buyer_email=bea.email, reference="INV: 1", status=["pending"]) == [first]


async def test_a_cursor_continues_the_search_and_no_other(api: Api) -> None:
    buyer = await make_user(api.database)
    product = await make_product(api.database)
    orders = [str((await make_order(api.database, buyer=buyer, lines=[(product, 1)])).id) for _ in range(5)]
    found, cursor = [], None
    while True:
        page = await search(api, buyer_id=buyer.id, limit=2, cursor=cursor)
        found += [one["id"] for one in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert found == orders[::-1]
    (first,) = [(await search(api, buyer_id=buyer.id, limit=2))["next_cursor"]]
    operator = await make_operator(api.database)
    assert_problem(await api.post(PATH, by=operator, key=None, json={"limit": 2, "cursor": first}), 400, "bad_query")


async def test_a_page_is_filled_from_several_if_few_of_the_rows_examined_match(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.walks, "EXAMINED", 3)
    buyer = await make_user(api.database)
    product = await make_product(api.database)
    orders = [(await make_order(api.database, buyer=buyer, lines=[(product, 1)])).id for _ in range(12)]
    await api.execute("UPDATE orders SET status = 'rejected' WHERE id = ANY(:ids)", ids=[orders[0], orders[11]])
    page = await search(api, status=["rejected"], limit=2)
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([str(orders[11]), str(orders[0])], False)


async def test_the_roles_that_read_all_orders_may_search(api: Api) -> None:
    for role in Role:
        by = await make_user(api.database, role=role)
        reply = await api.post(PATH, by=by, key=None, json={})
        assert reply.status_code == (200 if role in (Role.operator, Role.auditor, Role.support) else 403), role


async def test_an_email_address_is_searched_only_by_those_who_may_read_users(api: Api) -> None:
    key = await make_key(api, await make_operator(api.database), scopes=["orders:read_all"])
    by = {"Authorization": f"Bearer {key['key']}"}
    assert_problem(await api.client.post(PATH, headers=by, json={"buyer_email": "a@example.com"}), 403, "forbidden")
    assert (await api.client.post(PATH, headers=by, json={"buyer_id": 1})).status_code == 200
