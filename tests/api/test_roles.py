"""What the roles of the staff may do to others, and to each other."""

from typing import Any

import pytest

from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem, order_of
from tests.factories import make_admin, make_operator, make_product, make_user

SEEING = [Role.support, Role.auditor]


async def hold(api: Api, payer: User, payee: User) -> str:
    body = {"to_user_id": payee.id, "amount": "2.00", "expires_at": "2026-12-20T00:00:00Z"}
    held = await api.post("/v1/holds", by=payer, json=body)
    assert held.status_code == 201, held.text
    return str(held.json()["id"])


@pytest.mark.parametrize("role", SEEING)
async def test_who_sees_what_others_have_changes_none_of_it(api: Api, role: Role) -> None:
    buyer, seller, product = await api.shop()
    staff = await make_user(api.database, role=role, credits="50")
    order = f"/v1/orders/{(await api.place(buyer, (product, 1)))['id']}"
    unpaid = f"/v1/orders/{(await api.place(buyer, (product, 900)))['id']}"
    transfer = f"/v1/transfers/{await hold(api, buyer, seller)}"
    await api.process()
    for path in (order, f"{order}/refunds", transfer, f"/v1/users/{buyer.id}", "/v1/orders?as=everybody"):
        assert (await api.get(path, by=staff)).status_code == 200, path
    before = await api.everything()

    tried: list[tuple[str, str, Any]] = [
        ("POST", f"{order}/cancel", {}),
        ("POST", f"{unpaid}/pay", None),
        ("POST", f"{order}/fulfil", None),
        ("POST", f"{order}/refunds", {"lines": [{"line": 1, "quantity": 1}]}),
        ("POST", f"{transfer}/post", None),
        ("POST", f"{transfer}/void", None),
        ("POST", f"{transfer}/reverse", {"reason": "x"}),
        ("PATCH", f"/v1/products/{product.id}", {"price": "0.01"}),
        ("DELETE", f"/v1/products/{product.id}", None),
        ("POST", f"/v1/products/{product.id}/stock", {"change": 1}),
        ("PATCH", f"/v1/users/{buyer.id}", {"full_name": "X"}),
        ("DELETE", f"/v1/users/{buyer.id}", None),
        ("POST", "/v1/top-ups", {"user_id": staff.id, "amount": "1.00"}),
        ("POST", f"/v1/accounts/{buyer.id}/close", None),
        ("POST", "/v1/operations/types/order.placed/pause", {}),
    ]
    for method, path, body in tried:
        reply = await api.request(method, path, by=staff, key=f"{method}{path}", version=1, json=body)
        assert_problem(reply, 403, "forbidden")
    assert await api.everything() == before


async def test_support_does_not_read_what_it_does_not_need(api: Api) -> None:
    support = await make_user(api.database, role=Role.support)
    for path in ("adjustments", "operations/backlog", "operations/dead-letters", "operations/audit"):
        assert_problem(await api.get(f"/v1/{path}", by=support), 403, "forbidden")


async def test_an_auditor_has_no_orders_transfers_or_products_of_their_own(api: Api) -> None:
    _, seller, product = await api.shop()
    auditor = await make_user(api.database, role=Role.auditor, credits="50")
    category = product.category_id
    tried = {
        "/v1/orders": order_of((product, 1)),
        "/v1/transfers": {"to_user_id": seller.id, "amount": "1.00"},
        "/v1/transfers/batch": {"mode": "atomic", "transfers": [{"to_user_id": seller.id, "amount": "1.00"}]},
        "/v1/holds": {"to_user_id": seller.id, "amount": "1.00", "expires_at": "2026-12-20T00:00:00Z"},
        "/v1/products": {"sku": "X", "name": "X", "price": "1.00", "category_id": category, "stock": 1},
    }
    before = await api.everything()
    for path, body in tried.items():
        assert_problem(await api.post(path, by=auditor, json=body), 403, "forbidden")
    assert await api.everything() == before
    reads = ("adjustments", "operations/backlog", "operations/books", "users", "orders?as=everybody", "accounts/me")
    for path in reads:
        assert (await api.get(f"/v1/{path}", by=auditor)).status_code == 200, path


async def test_only_admins_give_roles_and_nobody_to_themselves(api: Api) -> None:
    admin, operator = await make_admin(api.database), await make_operator(api.database)
    user = await make_user(api.database)
    path = f"/v1/users/{user.id}"
    before = await api.everything()
    for role in set(Role) - {Role.customer}:
        refused = await api.patch(path, by=operator, version=1, json={"role": role.value, "full_name": "X"})
        assert_problem(refused, 403, "forbidden")
        assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="roles:write"'
    for by in (admin, operator):
        for role in set(Role) - {by.role}:
            own = await api.patch(f"/v1/users/{by.id}", by=by, version=1, json={"role": role.value})
            assert_problem(own, 422, "invalid_input")
    assert await api.everything() == before

    assert (await api.patch(path, by=operator, version=1, json={"role": "customer"})).status_code == 200, "as it is"
    version = 1
    for role in Role:
        given = await api.patch(path, by=admin, version=version, json={"role": role.value})
        assert (given.status_code, given.json()["role"]) == (200, role.value)
        version = given.json()["version"]


async def test_operators_cannot_change_an_admin(api: Api) -> None:
    """Otherwise an operator could sign in as the admin, or be the only one left."""
    operator, admin = await make_operator(api.database), await make_admin(api.database)
    other = await make_admin(api.database)
    path = f"/v1/users/{admin.id}"
    before = await api.everything()
    for changes in ({"full_name": "X"}, {"email": "x@example.com"}, {"is_active": False}, {}):
        assert_problem(await api.patch(path, by=operator, version=1, json=changes), 403, "forbidden")
    assert_problem(await api.delete(path, by=operator), 403, "forbidden")
    assert await api.everything() == before

    assert (await api.delete(path, by=other)).status_code == 204
    assert_problem(await api.post(f"{path}/restore", by=operator), 403, "forbidden")
    assert (await api.post(f"{path}/restore", by=other)).status_code == 200


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.admin])
async def test_operators_change_the_address_of_users_but_not_of_staff(api: Api, role: Role) -> None:
    """The address is enough to reset the password, and to act as the second operator."""
    operator, admin = await make_operator(api.database), await make_admin(api.database)
    user = await make_user(api.database, role=role)
    path = f"/v1/users/{user.id}"
    changed = await api.patch(path, by=operator, version=1, json={"email": "new@example.com"})
    if role in (Role.customer, Role.seller):
        assert changed.status_code == 200
        return
    assert_problem(changed, 403, "forbidden")
    assert (await api.patch(path, by=operator, version=1, json={"full_name": "X"})).status_code == 200
    by_admin = await api.patch(path, by=admin, version=2, json={"email": "new@example.com"})
    assert by_admin.status_code == 200, by_admin.text


async def test_nobody_changes_their_own_address_without_their_password(api: Api) -> None:
    for staff in (await make_operator(api.database), await make_admin(api.database)):
        reply = await api.patch(f"/v1/users/{staff.id}", by=staff, version=1, json={"email": "new@example.com"})
        problem = assert_problem(reply, 422, "invalid_input")
        assert "/v1/users/me" in problem["detail"]


async def test_an_archived_product_of_someone_else_looks_as_if_it_did_not_exist(api: Api) -> None:
    _, seller, product = await api.shop()
    other = await make_user(api.database)
    assert (await api.delete(f"/v1/products/{product.id}", by=seller)).status_code == 204
    refused = await api.post(f"/v1/products/{product.id}/restore", by=other, headers={"X-Request-Id": "r"})
    unknown = await api.post(f"/v1/products/{product.id + 1}/restore", by=other, headers={"X-Request-Id": "r"})
    assert_problem(refused, 404, "not_found")
    assert refused.text.replace(str(product.id), "ID") == unknown.text.replace(str(product.id + 1), "ID")
    assert (await api.post(f"/v1/products/{product.id}/restore", by=seller)).status_code == 200


async def test_customers_sell_unless_the_setting_says_that_only_sellers_do(api: Api) -> None:
    product = await make_product(api.database)
    settings = api.app.state.waybill.settings
    people = {role: await make_user(api.database, role=role) for role in Role}

    async def sell(role: Role) -> Any:
        lamp = {"name": "Lamp", "price": "1.00", "category_id": product.category_id, "stock": 1}
        sku = f"{role}-{settings.customers_may_sell}"
        return await api.post("/v1/products", by=people[role], json={"sku": sku, **lamp})

    assert {role for role in Role if (await sell(role)).status_code == 201} == set(Role) - {Role.auditor}
    settings = settings.model_copy(update={"customers_may_sell": False})
    object.__setattr__(api.app.state.waybill, "settings", settings)
    assert {role for role in Role if (await sell(role)).status_code == 201} == {Role.seller, Role.operator}
    refused = await sell(Role.customer)
    problem = assert_problem(refused, 403, "forbidden")
    assert problem["detail"] == "only sellers and operators may sell here; ask an admin for the role seller"
