"""Sends each request body as a client would, for the test that compares what was sent with what came of it.

One function for each body: it sends what `fill` makes, and returns the row that it led to and the replies that show it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import httpx2
from sqlalchemy import select

from services.fields import now
from services.models import metadata
from services.outbox.log import service as log
from services.unit_of_work import UnitOfWork
from services.users.resets.models import MailKind
from services.users.rights import Role
from tests.api import second_factors
from tests.api.client import Api
from tests.api.test_outbox_control import BASE, LETTERS
from tests.factories import CONFIRMED, PASSWORD, make_category, make_operator, make_product, make_user

A_KEY = {"name": "a program", "scopes": ["keys:rotate"], **CONFIRMED}


class Fill(Protocol):
    """Makes a body from the values that must be so; the others are made up, other than `before`."""

    def __call__(self, before: Mapping[str, Any] | None = None, /, **given: Any) -> dict[str, Any]: ...


class Sent(NamedTuple):
    """A body that was sent, the row that it led to, and each reply that shows the row."""

    body: Mapping[str, Any]
    row: Mapping[str, Any]
    shown: Sequence[Mapping[str, Any]]


async def row_of(api: Api, table: str, **key: Any) -> Mapping[str, Any]:
    """The row, as another connection sees it."""
    columns = metadata.tables[table].c
    wanted = select(metadata.tables[table]).where(*(columns[name] == value for name, value in key.items()))
    async with api.database.engine.connect() as connection:
        return dict((await connection.execute(wanted)).mappings().one())


def good(reply: httpx2.Response) -> Any:
    assert reply.is_success, reply.text
    return reply.json() if reply.content else None


async def register(api: Api, fill: Fill) -> Sent:
    operator = await make_operator(api.database)
    body = fill(password="long enough")
    made = good(await api.post("/v1/users", key=None, json=body))
    read = good(await api.get(f"/v1/users/{made['id']}", by=operator))
    return Sent(body, await row_of(api, "users", id=made["id"]), [made, read])


async def change_self(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(good(await api.get("/v1/users/me", by=user)), password="another one!", **CONFIRMED)
    made = good(await api.patch("/v1/users/me", by=user, version=1, json=body))
    read = good(await api.get("/v1/users/me", by=user))
    return Sent(body, await row_of(api, "users", id=user.id), [made, read])


async def ask_for_reset(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(email=user.email)
    good(await api.post("/v1/password-resets", key=None, json=body))
    return Sent(body, await row_of(api, "mails", user_id=user.id), [])


async def reset(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    async with UnitOfWork(api.database.write) as uow:
        hashed = hashlib.sha256(b"token").digest()
        await uow.mails.give_token(hashed, MailKind.password_reset, user.id, user.email, timedelta(hours=1))
        await uow.commit()
    body = fill(token="token", password="another one!")
    good(await api.post("/v1/password-resets/confirm", key=None, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [])


async def confirm_email(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    async with UnitOfWork(api.database.write) as uow:
        await uow.registrations.ask("new@example.com", timedelta(hours=1), user_id=user.id)
        await uow.commit()
    async with UnitOfWork(api.database.write) as uow:
        unverified_id = await api.scalar("SELECT id FROM unverified_emails")
        await uow.registrations.give_token(hashlib.sha256(b"token").digest(), unverified_id)
        await uow.commit()
    body = fill(token="token", password=PASSWORD)
    made = good(await api.post("/v1/email-verifications/confirm", key=None, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [made])


async def delete_self(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(**CONFIRMED)
    good(await api.delete("/v1/users/me", by=user, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [])


async def start_totp(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(**CONFIRMED)
    good(await api.post(second_factors.PATH, by=user, key=None, json=body))
    return Sent(body, await row_of(api, "totp_secrets", user_id=user.id), [])


async def confirm_totp(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(otp=(await second_factors.start(api, user)).code())
    good(await api.post(f"{second_factors.PATH}/confirm", by=user, key=None, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [])


async def remove_totp(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(otp=(await second_factors.enrol(api, user)).recovery_codes[0], **CONFIRMED)
    good(await api.delete(second_factors.PATH, by=user, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [])


async def change_user(api: Api, fill: Fill) -> Sent:
    admin, user = await make_user(api.database, role=Role.admin), await make_user(api.database)
    path = f"/v1/users/{user.id}"
    body = fill(good(await api.get(path, by=admin)))
    made = good(await api.patch(path, by=admin, version=1, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [made, good(await api.get(path, by=admin))])


async def make_key(api: Api, fill: Fill) -> Sent:
    owner = await make_user(api.database)
    body = fill(scopes=["orders:read", "orders:write"], **CONFIRMED)
    made = good(await api.post("/v1/api-keys", by=owner, key=None, json=body))
    (read,) = good(await api.get("/v1/api-keys", by=owner))["data"]
    return Sent(body, await row_of(api, "api_keys", id=UUID(made["id"])), [made, read])


async def rotate_key(api: Api, fill: Fill) -> Sent:
    owner = await make_user(api.database)
    made = good(await api.post("/v1/api-keys", by=owner, key=None, json=A_KEY))
    body = fill(overlap=60, **CONFIRMED)
    path = f"/v1/api-keys/{made['id']}"
    good(await api.post(f"{path}/rotate", by=owner, key=None, json=body))
    row = await row_of(api, "api_keys", id=UUID(made["id"]))
    assert timedelta(seconds=50) < row["retires_at"] - now() <= timedelta(seconds=60)
    return Sent(body, row, [good(await api.get(path, by=owner))])


async def rotate_own_key(api: Api, fill: Fill) -> Sent:
    owner = await make_user(api.database)
    made = good(await api.post("/v1/api-keys", by=owner, key=None, json=A_KEY))
    body = fill(overlap=60)
    headers = {"Authorization": f"Bearer {made['key']}"}
    good(await api.post("/v1/api-keys/current/rotate", headers=headers, key=None, json=body))
    row = await row_of(api, "api_keys", id=UUID(made["id"]))
    assert timedelta(seconds=50) < row["retires_at"] - now() <= timedelta(seconds=60)
    return Sent(body, row, [good(await api.get(f"/v1/api-keys/{made['id']}", by=owner))])


async def create_category(api: Api, fill: Fill) -> Sent:
    body = fill()
    made = good(await api.post("/v1/categories", by=await make_operator(api.database), json=body))
    read = good(await api.get(f"/v1/categories/{made['id']}"))
    return Sent(body, await row_of(api, "categories", id=made["id"]), [made, read])


async def change_category(api: Api, fill: Fill) -> Sent:
    operator, category = await make_operator(api.database), await make_category(api.database)
    path = f"/v1/categories/{category.id}"
    body = fill(good(await api.get(path)))
    made = good(await api.patch(path, by=operator, version=1, json=body))
    return Sent(body, await row_of(api, "categories", id=category.id), [made, good(await api.get(path))])


def with_category_id(product: dict[str, Any]) -> dict[str, Any]:
    """A product shows its category in full."""
    return {**product, "category_id": product["category"]["id"]}


async def create_product(api: Api, fill: Fill) -> Sent:
    seller = await make_user(api.database)
    body = fill(category_id=(await make_category(api.database)).id)
    made = good(await api.post("/v1/products", by=seller, json=body))
    read = good(await api.get(f"/v1/products/{made['id']}", by=seller))
    return Sent(body, await row_of(api, "products", id=made["id"]), [with_category_id(one) for one in (made, read)])


async def change_product(api: Api, fill: Fill) -> Sent:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    path = f"/v1/products/{product.id}"
    body = fill(good(await api.get(path)), category_id=(await make_category(api.database)).id)
    made = good(await api.patch(path, by=seller, version=1, json=body))
    read = good(await api.get(path, by=seller))
    return Sent(body, await row_of(api, "products", id=product.id), [with_category_id(one) for one in (made, read)])


async def upsert(api: Api, fill: Fill) -> Sent:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    path = f"/v1/products/{product.id}"
    body = fill(good(await api.get(path)), sku=product.sku, category_id=(await make_category(api.database)).id, stock=7)
    return await upserted(api, seller, body)


async def upsert_some(api: Api, fill: Fill) -> Sent:
    line = {"sku": "LAMP-1", "name": "Lamp", "price": "1.00", "category_id": (await make_category(api.database)).id}
    sent = await upserted(api, await make_user(api.database), line)
    return sent._replace(body=fill(products=[line]))


async def upserted(api: Api, seller: Any, body: dict[str, Any]) -> Sent:
    (made,) = good(await api.request("PUT", "/v1/products", by=seller, json={"products": [body]}))["products"]
    read = with_category_id(good(await api.get(f"/v1/products/{made['id']}", by=seller)))
    stock = await row_of(api, "inventory", product_id=made["id"])
    return Sent(body, {**await row_of(api, "products", id=made["id"]), **stock}, [read | read["inventory"]])


async def change_stock(api: Api, fill: Fill) -> Sent:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller, stock=5)
    body = fill(change=2)
    made = good(await api.post(f"/v1/products/{product.id}/stock", by=seller, json=body))
    return Sent(body, await row_of(api, "inventory", product_id=product.id), [made["inventory"]])


async def place(api: Api, fill: Fill) -> Sent:
    buyer, _, product = await api.shop()
    body = fill(items=[{"product_id": product.id, "quantity": 1}])
    made = good(await api.post("/v1/orders", by=buyer, json=body))
    read = good(await api.get(f"/v1/orders/{made['id']}", by=buyer))
    (listed,) = good(await api.get("/v1/orders?include=items", by=buyer))["data"]
    return Sent(body, await row_of(api, "orders", id=UUID(made["id"])), [made, read, listed])


async def place_line(api: Api, fill: Fill) -> Sent:
    buyer, _, product = await api.shop()
    body = fill(product_id=product.id)
    made = good(await api.post("/v1/orders", by=buyer, json={"items": [body]}))
    read = good(await api.get(f"/v1/orders/{made['id']}", by=buyer))
    row = await row_of(api, "order_items", order_id=UUID(made["id"]))
    return Sent(body, row, [made["items"][0], read["items"][0]])


async def cancel(api: Api, fill: Fill) -> Sent:
    buyer, _, product = await api.shop()
    path = f"/v1/orders/{(await api.place(buyer, (product, 1)))['id']}"
    body = fill()
    made = good(await api.post(f"{path}/cancel", by=buyer, json=body))
    read = good(await api.get(path, by=buyer))
    row = await row_of(api, "order_transitions", order_id=UUID(made["id"]), to_status="cancelled")
    return Sent(body, row, [made["transitions"][-1], read["transitions"][-1]])


async def confirmed(api: Api) -> tuple[Any, str]:
    """The seller of an order of five pieces that is paid, and the path of its refunds."""
    buyer, seller, product = await api.shop()
    placed = await api.place(buyer, (product, 5))
    await api.process()
    return seller, f"/v1/orders/{placed['id']}/refunds"


async def refund(api: Api, fill: Fill) -> Sent:
    seller, path = await confirmed(api)
    body = fill()
    made = good(await api.post(path, by=seller, json=body))
    (read,) = good(await api.get(path, by=seller))["data"]
    return Sent(body, await row_of(api, "refunds", id=UUID(made["id"])), [made, read])


async def refund_line(api: Api, fill: Fill) -> Sent:
    seller, path = await confirmed(api)
    body = fill(line=1)
    made = good(await api.post(path, by=seller, json={"lines": [body]}))
    (read,) = good(await api.get(path, by=seller))["data"]
    row = await row_of(api, "refund_lines", refund_id=UUID(made["id"]))
    return Sent(body, row, [made["lines"][0], read["lines"][0]])


async def top_up(api: Api, fill: Fill) -> Sent:
    operator, user = await make_operator(api.database), await make_user(api.database)
    body = fill(user_id=user.id)
    made = good(await api.post("/v1/top-ups", by=operator, json=body))
    return await transfer_sent(api, operator, body, made)


async def transfer_sent(api: Api, by: Any, body: Mapping[str, Any], made: dict[str, Any]) -> Sent:
    read = good(await api.get(f"/v1/transfers/{made['id']}", by=by))
    return Sent(body, await row_of(api, "transfers", id=UUID(made["id"])), [made, read])


async def transfer(api: Api, fill: Fill) -> Sent:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    body = fill(to_user_id=payee.id)
    return await transfer_sent(api, payer, body, good(await api.post("/v1/transfers", by=payer, json=body)))


async def transfer_item(api: Api, fill: Fill) -> Sent:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    body = fill(to_user_id=payee.id)
    sent = {"mode": "independent", "transfers": [body]}
    (result,) = good(await api.post("/v1/transfers/batch", by=payer, json=sent))["results"]
    return await transfer_sent(api, payer, body, result["transfer"])


async def transfer_batch(api: Api, fill: Fill) -> Sent:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    body = fill(mode="atomic", transfers=[{"to_user_id": payee.id, "amount": "1.00"}])
    (result,) = good(await api.post("/v1/transfers/batch", by=payer, json=body))["results"]
    return await transfer_sent(api, payer, body, result["transfer"])


async def hold(api: Api, fill: Fill) -> Sent:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    body = fill(to_user_id=payee.id)
    return await transfer_sent(api, payer, body, good(await api.post("/v1/holds", by=payer, json=body)))


async def post_hold(api: Api, fill: Fill) -> Sent:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    until = (now() + timedelta(hours=1)).isoformat()
    wanted = {"to_user_id": payee.id, "amount": "20.00", "expires_at": until}
    held = good(await api.post("/v1/holds", by=payer, json=wanted))
    body = fill()
    made = good(await api.post(f"/v1/transfers/{held['id']}/post", by=payee, json=body))
    return await transfer_sent(api, payer, body, made)


async def reverse(api: Api, fill: Fill) -> Sent:
    operator, user = await make_operator(api.database), await make_user(api.database)
    given = good(await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "5.00"}))
    body = fill()
    made = good(await api.post(f"/v1/transfers/{given['id']}/reverse", by=operator, json=body))
    return await transfer_sent(api, operator, body, made)


async def adjust(api: Api, fill: Fill) -> Sent:
    operator, user = await make_operator(api.database), await make_user(api.database)
    body = fill(user_id=user.id)
    made = good(await api.post("/v1/adjustments", by=operator, json=body))
    read = good(await api.get(f"/v1/adjustments/{made['id']}", by=operator))
    return Sent(body, await row_of(api, "adjustments", id=UUID(made["id"])), [made, read])


async def pause(api: Api, fill: Fill) -> Sent:
    body = fill()
    good(await api.post(f"{BASE}/types/order.placed/pause", by=await make_operator(api.database), json=body))
    return Sent(body, await row_of(api, "outbox_actions"), [])


async def limit(api: Api, fill: Fill) -> Sent:
    operator = await make_operator(api.database)
    body = fill()
    good(await api.post(f"{BASE}/types/order.placed/limit", by=operator, json=body))
    (state,) = good(await api.get(f"{BASE}/types", by=operator))
    return Sent(body, {**await row_of(api, "outbox_actions"), **await row_of(api, "outbox_types")}, [state])


async def start_bulk_action(api: Api, fill: Fill) -> Sent:
    operator = await make_operator(api.database)
    body = fill(everything=True)
    made = good(await api.post(f"{BASE}/bulk-actions", by=operator, json=body))
    read = good(await api.get(f"{BASE}/bulk-actions/{made['id']}", by=operator))
    return Sent(body, await row_of(api, "bulk_actions"), [made, read])


async def discard(api: Api, fill: Fill) -> Sent:
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql(LETTERS)
    body = fill(aggregate="order/2")
    good(await api.post(f"{BASE}/discard", by=await make_operator(api.database), json=body))
    return Sent(body, await row_of(api, "outbox_actions"), [])


async def search_orders(api: Api, fill: Fill) -> Sent:
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1), reference="INV-1")
    body = fill(id=placed["id"], buyer_id=buyer.id, reference="INV-1")
    reply = await api.post(f"{BASE}/orders/search", by=await make_operator(api.database), json=body)
    (found,) = good(reply)["data"]
    return Sent(body, await row_of(api, "orders", id=UUID(placed["id"])), [found])


async def reset_consumer(api: Api, fill: Fill) -> Sent:
    async with UnitOfWork(api.database.write) as uow:
        await log.create(uow, "feed")
        await uow.commit()
    body = fill(to="now")
    good(await api.post(f"{BASE}/consumers/feed/reset", by=await make_operator(api.database), json=body))
    return Sent(body, await row_of(api, "outbox_actions"), [])
