"""What a client sends is stored and shown: each field of each request body, a new one included.

A field that a schema accepts and a statement forgets would be lost in silence. Values are made from the types of the
fields, so that a new field is tried without a word here. One that is not stored under its own name is explained here.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from inspect import isclass
from typing import Any, NamedTuple, Protocol, get_args
from uuid import UUID

import httpx2
import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select

import services
from services.catalog import schemas as catalog
from services.credits import schemas as credits_
from services.fields import RequestBody, new_id, now
from services.models import metadata
from services.operations.outbox import schemas as outbox
from services.orders import schemas as orders
from services.unit_of_work import UnitOfWork
from services.users import schemas as users
from services.users.resets import schemas as resets
from services.users.resets.models import MailKind
from tests.api.client import Api
from tests.api.test_outbox_control import BASE, LETTERS
from tests.factories import CONFIRMED, make_category, make_operator, make_product, make_user


class Fill(Protocol):
    """Makes a body from the values that must be so; the others are made up, other than `before`."""

    def __call__(self, before: Mapping[str, Any] | None = None, /, **given: Any) -> dict[str, Any]: ...


class Sent(NamedTuple):
    """A body that was sent, the row that it led to, and each reply that shows the row."""

    body: Mapping[str, Any]
    row: Mapping[str, Any]
    shown: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """How a body is sent, and in which tables its fields are columns."""

    tables: Sequence[str]
    send: Callable[[Api, Fill], Awaitable[Sent]]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Fields that are not stored as they are sent, with the reason."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Fields whose column, and whose field of the reply, has another name."""
    unseen: frozenset[str] = frozenset()
    """Fields that no reply shows."""


def bodies() -> list[type[RequestBody]]:
    """Every request body of the services. Those that only others are made of are private or have no field."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {body for body in below(RequestBody) if body.__module__.startswith("services.")}
    return sorted(
        (body for body in found if body.model_fields and not body.__name__.startswith("_")),
        key=lambda body: body.__name__,
    )


def below(base: type[RequestBody]) -> Iterator[type[RequestBody]]:
    for one in base.__subclasses__():
        yield one
        yield from below(one)


def candidates(annotation: Any) -> Iterator[Any]:
    """Values of many kinds, as JSON has them. Times come before numbers: a time may be given as a number, too."""
    yield from ("given", (now() + timedelta(hours=1)).isoformat(), "2031-02-03", "7.25", 3, True, False)
    yield from (str(new_id()), "somebody@example.com", ["given"], {"given": "7.25"})
    for kind in (annotation, *get_args(annotation)):
        if isclass(kind) and issubclass(kind, Enum):
            yield from (member.value for member in kind)


def made_up(body: type[RequestBody], name: str, before: Mapping[str, Any]) -> Any:
    """A value that the field accepts, which is neither its default nor what was there before."""
    one = body.model_fields[name]
    accepted: TypeAdapter[Any] = TypeAdapter(one.rebuild_annotation())
    for value in candidates(one.annotation):
        try:
            parsed = accepted.validate_python(value)
        except ValidationError:
            continue
        if parsed != one.get_default(call_default_factory=True) and parsed != before.get(name, ...):
            return value
    pytest.fail(f"no value is known that {body.__name__}.{name} accepts: add one to `candidates`")


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


async def delete_self(api: Api, fill: Fill) -> Sent:
    user = await make_user(api.database)
    body = fill(**CONFIRMED)
    good(await api.delete("/v1/users/me", by=user, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [])


async def change_user(api: Api, fill: Fill) -> Sent:
    operator, user = await make_operator(api.database), await make_user(api.database)
    path = f"/v1/users/{user.id}"
    body = fill(good(await api.get(path, by=operator)))
    made = good(await api.patch(path, by=operator, version=1, json=body))
    return Sent(body, await row_of(api, "users", id=user.id), [made, good(await api.get(path, by=operator))])


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
    read = good(await api.get(f"/v1/products/{made['id']}"))
    return Sent(body, await row_of(api, "products", id=made["id"]), [with_category_id(one) for one in (made, read)])


async def change_product(api: Api, fill: Fill) -> Sent:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    path = f"/v1/products/{product.id}"
    body = fill(good(await api.get(path)), category_id=(await make_category(api.database)).id)
    made = good(await api.patch(path, by=seller, version=1, json=body))
    read = good(await api.get(path))
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
    read = with_category_id(good(await api.get(f"/v1/products/{made['id']}")))
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
    (listed,) = good(await api.get("/v1/orders", by=buyer))["data"]
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


async def discard(api: Api, fill: Fill) -> Sent:
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql(LETTERS)
    body = fill(aggregate="order/2")
    good(await api.post(f"{BASE}/discard", by=await make_operator(api.database), json=body))
    return Sent(body, await row_of(api, "outbox_actions"), [])


PASSWORD = {"password": "its hash is stored, as hashed_password"}
CURRENT = {"current_password": "is compared with the hash"}
RECIPIENT = {"to_user_id": "names the recipient; the recipient's account is stored"}
DRY_RUN = {"dry_run": "asks to store nothing"}
SELECTS = "selects dead letters"

CASES: dict[type[RequestBody], Case] = {
    users.UserCreate: Case(["users"], register, PASSWORD),
    users.UserUpdate: Case(["users"], change_self, PASSWORD | CURRENT),
    users.Confirmation: Case(["users"], delete_self, CURRENT),
    resets.ResetRequest: Case(["mails"], ask_for_reset, {"email": "names the user; the user's id is stored"}),
    resets.Reset: Case(["users"], reset, PASSWORD | {"token": "is deleted"}),
    users.UserAdminUpdate: Case(["users"], change_user),
    catalog.CategoryCreate: Case(["categories"], create_category),
    catalog.CategoryUpdate: Case(["categories"], change_category),
    catalog.ProductCreate: Case(["products"], create_product, {"stock": "is stored as inventory.on_hand"}),
    catalog.ProductUpdate: Case(["products"], change_product),
    catalog.ProductUpsert: Case(["products", "inventory"], upsert, renamed={"stock": "on_hand"}),
    catalog.ProductsUpsert: Case(["products"], upsert_some, {"products": "are rows of products"}),
    catalog.StockUpdate: Case(["inventory"], change_stock, {"change": "is added to on_hand"}),
    orders.OrderCreate: Case(
        ["orders"],
        place,
        {"items": "are rows of order_items", "on_insufficient_credits": "says what is to be done, not what is stored"},
    ),
    orders.OrderItemCreate: Case(["order_items"], place_line),
    orders.OrderCancel: Case(["order_transitions"], cancel),
    orders.RefundCreate: Case(["refunds"], refund, {"lines": "are rows of refund_lines"}),
    orders.RefundLineCreate: Case(["refund_lines"], refund_line),
    credits_.TopUpCreate: Case(
        ["transfers"], top_up, {"user_id": "names the recipient; the recipient's account is stored"}
    ),
    credits_.TransferCreate: Case(["transfers"], transfer, RECIPIENT | DRY_RUN),
    credits_.TransferItem: Case(
        ["transfers"], transfer_item, RECIPIENT | {"linked": "says what is to be done, not what is stored"}
    ),
    credits_.TransferBatchCreate: Case(
        ["transfers"],
        transfer_batch,
        DRY_RUN | {"mode": "says what is to be done, not what is stored", "transfers": "are rows of transfers"},
    ),
    credits_.HoldCreate: Case(["transfers"], hold, RECIPIENT),
    credits_.HoldPost: Case(["transfers"], post_hold, renamed={"amount": "posted_amount"}),
    credits_.ReversalCreate: Case(["transfers"], reverse, renamed={"reason": "note"}),
    credits_.AdjustmentCreate: Case(
        ["adjustments"], adjust, {"user_id": "names the user; the user's account is stored"}
    ),
    outbox.Because: Case(["outbox_actions"], pause, unseen=frozenset({"reason"})),
    outbox.LimitChange: Case(["outbox_actions", "outbox_types"], limit, unseen=frozenset({"reason"})),
    outbox.LettersWanted: Case(
        ["outbox_actions"],
        discard,
        DRY_RUN
        | dict.fromkeys(("position", "event_id", "type", "aggregate", "fingerprint"), SELECTS)
        | dict.fromkeys(("died_from", "died_before", "after", "limit"), SELECTS),
        unseen=frozenset({"reason"}),
    ),
}


def test_every_request_body_is_tried() -> None:
    missing = [body.__name__ for body in bodies() if body not in CASES]
    assert missing == [], "say in CASES how they are sent, and where their rows are"


def stored(body: type[RequestBody], case: Case) -> dict[str, str]:
    """The column of each field that is stored."""
    unknown = (case.elsewhere.keys() | case.renamed.keys() | case.unseen) - body.model_fields.keys()
    assert not unknown, f"{body.__name__} has no {sorted(unknown)}"
    named = {name: case.renamed.get(name, name) for name in body.model_fields if name not in case.elsewhere}
    columns = {column.name for table in case.tables for column in metadata.tables[table].c}
    lost = sorted(f"{body.__name__}.{name}" for name, column in named.items() if column not in columns)
    assert lost == [], f"not a column of {case.tables}: say in `elsewhere` what becomes of it"
    return named


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
async def test_each_field_of_a_request_body_is_stored_and_shown(api: Api, body: type[RequestBody]) -> None:
    case = CASES[body]
    named = stored(body, case)

    def fill(before: Mapping[str, Any] | None = None, /, **given: Any) -> dict[str, Any]:
        return {name: made_up(body, name, before or {}) for name in named if name not in given} | given

    sent = await case.send(api, fill)

    parsed = body.model_validate(sent.body)
    lost = {name: sent.row[column] for name, column in named.items() if sent.row[column] != getattr(parsed, name)}
    assert lost == {}, f"the row has this instead of what {body.__name__} was sent"
    told = parsed.model_dump(mode="json")
    for shown in sent.shown:
        hidden = {
            name: shown.get(column, "nothing")
            for name, column in named.items()
            if name not in case.unseen and shown.get(column, ...) != told[name]
        }
        assert hidden == {}, f"the reply shows this instead of what {body.__name__} was sent"
