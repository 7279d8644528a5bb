"""Every route is read by everyone, and no reply has what is meant for others.

Values that occur nowhere else are planted in each private field. Whoever may see one of them must find it somewhere, so
that the test looks where it is. A new route is read without a change here, unless its path has a parameter that
`Planted.ids` does not know.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import FRESH, Api
from tests.api.populated import populate
from tests.api.programs import make_key
from tests.api.test_rights_matrix import Route, World, routes
from tests.factories import make_category, make_operator, make_product, make_user

REFERENCE = "CANARY-REFERENCE"
OF_RIVAL = {"76.54", "229.62"}
"""The price and the sum of a line."""
OF_BUYER = {REFERENCE, "249.62", "163.08"}
"""The name of an order, its total, and what of it was refunded."""
RIVALS_WORDS = "CANARY-RIVAL"
STAFFS_WORDS = {f"CANARY-STAFF-{one}" for one in ("CANCEL", "REFUND", "ADJUSTMENT", "REVERSAL")}
HIDDEN = {"CANARY-SKU", "CANARY-NAME", "CANARY-DESCRIPTION"}
STOCK = "7654321"
NOTE = "CANARY-NOTE"
ADDRESS = "canary-address@example.com"
KEY_NAME = "CANARY-KEY"
EVERYTHING = {*OF_BUYER, *OF_RIVAL, RIVALS_WORDS, *STAFFS_WORDS, *HIDDEN, STOCK, NOTE, ADDRESS, KEY_NAME}

QUERIES = ("", "?as=seller", "?as=seller&include=items", "?as=recipient", "?count=exact", "?as=everybody")
"""What is also asked for, where the operation takes it."""


@dataclass
class Planted:
    """Users, and the ids of everything by the names of parameters."""

    api: Api
    buyer: User
    seller: User
    rival: User
    operator: User
    stranger: User
    ids: dict[str, Sequence[Any]]

    def paths(self, route: Route) -> Iterator[str]:
        """The route's path with every id."""
        names = re.findall(r"{(\w+)}", route.path)
        assert set(names) <= self.ids.keys(), f"{route.path}: add the ids of some objects for its parameters"
        for values in product(*(self.ids[name] for name in names)):
            yield route.path.format(**dict(zip(names, map(str, values), strict=True)))

    async def seen(self, by: User | None) -> dict[str, list[str]]:
        """The planted values that a user finds, each with the paths where it is."""
        document = self.api.app.openapi()["paths"]
        found: dict[str, list[str]] = {}
        for route in routes(self.api):
            if route.method != "GET":
                continue
            known = {one["name"] for one in document.get(route.path, {}).get("get", {}).get("parameters", ())}
            for path, query in product(self.paths(route), QUERIES):
                if set(re.findall(r"[?&](\w+)=", query)) <= known:
                    reply = await self.api.get(f"{path}{query}", by=by)
                    assert reply.status_code < 500 or reply.status_code == 503, f"{path}{query}: {reply.text}"
                    for value in EVERYTHING:
                        if value in reply.text:
                            found.setdefault(value, []).append(f"{path}{query}")
        return found


async def done(reply: Any) -> Any:
    assert reply.status_code in (200, 201), reply.text
    return reply.json()


@pytest.fixture
async def planted(api: Api) -> Planted:
    buyer = await make_user(api.database, credits="999999", email=ADDRESS)
    seller, rival, stranger = [await make_user(api.database, credits="50") for _ in range(3)]
    operator = await make_operator(api.database)
    known = await populate(api.database, await make_user(api.database, credits="1000"), await make_user(api.database))
    own = await make_product(api.database, seller=seller, price="10.00")
    other = await make_product(api.database, seller=rival, price="76.54", stock=int(STOCK) + 3)
    hidden = await make_product(
        api.database, seller=rival, sku="CANARY-SKU", name="CANARY-NAME", is_active=False, stock=int(STOCK)
    )
    await api.execute("UPDATE products SET description = 'CANARY-DESCRIPTION' WHERE id = :id", id=hidden.id)
    orders = [await api.place(buyer, (own, 2), (other, 3), reference=f"{REFERENCE}-{n}") for n in range(2)]
    await api.process()
    shared, called_off = (one["id"] for one in orders)
    # What the rival asks for today is public; what the buyer paid is not.
    await api.execute("UPDATE products SET price = 1 WHERE id = :id", id=other.id)

    def refund(line: int, reason: str) -> dict[str, Any]:
        return {"lines": [{"line": line, "quantity": 1}], "reason": reason}

    await done(await api.post(f"/v1/orders/{shared}/refunds", by=rival, json=refund(2, RIVALS_WORDS)))
    for line in (1, 2):
        await done(
            await api.post(f"/v1/orders/{shared}/refunds", by=operator, json=refund(line, "CANARY-STAFF-REFUND"))
        )
    cancel = {"reason": "CANARY-STAFF-CANCEL"}
    await done(await api.post(f"/v1/orders/{called_off}/cancel", by=operator, json=cancel))
    moved = await done(
        await api.post("/v1/transfers", by=buyer, json={"to_user_id": rival.id, "amount": "3.00", "note": NOTE})
    )
    until = (now() + timedelta(hours=1)).isoformat()
    wanted = {"to_user_id": rival.id, "amount": "3.00", "note": NOTE, "expires_at": until}
    held = await done(await api.post("/v1/holds", by=buyer, json=wanted))
    why = {"reason": "CANARY-STAFF-REVERSAL"}
    back = await done(await api.post(f"/v1/transfers/{moved['id']}/reverse", by=operator, json=why))
    adjusted = [
        await done(
            await api.post(
                "/v1/adjustments",
                by=operator,
                json={"user_id": user.id, "amount": "1.00", "reason": "CANARY-STAFF-ADJUSTMENT"},
            )
        )
        for user in (buyer, seller, rival)
    ]
    key = await make_key(api, buyer, name=KEY_NAME)
    async with api.database.engine.connect() as connection:
        of_orders = (await connection.exec_driver_sql("SELECT id FROM transfers WHERE order_id IS NOT NULL")).scalars()
        transfers = [moved["id"], held["id"], back["id"], *(one["transfer_id"] for one in adjusted), *of_orders]
    ids: dict[str, Sequence[Any]] = {
        "order_id": [shared, called_off],
        "transfer_id": transfers,
        "product_id": [own.id, other.id, hidden.id],
        "user_id": [buyer.id, seller.id, rival.id],
        "adjustment_id": [one["id"] for one in adjusted],
        "key_id": [key["id"]],
        "category_id": [(await make_category(api.database)).id],
        "request_id": known["request_id"][:1],
        "position": known["position"][:1],
        "event_id": known["event_id"][:1],
        "event_type": ["order.placed"],
        "session_id": ["01a22131-0000-7000-8000-000000000000"],
        "name": ["docs.js"],
        "fingerprint": ["abc"],
        "action_id": known["action_id"][:1],
        "consumer": ["orders-by-day"],
        "job": ["audit"],
        "worker_id": ["01a22131-0000-7000-8000-000000000001"],
    }
    return Planted(api, buyer, seller, rival, operator, stranger, ids)


MAY_SEE = {
    "anonymous": set[str](),
    "stranger": set[str](),
    "seller": set[str](),
    "rival": {*OF_RIVAL, RIVALS_WORDS, *HIDDEN, STOCK, NOTE},
    "buyer": {*OF_BUYER, *OF_RIVAL, RIVALS_WORDS, NOTE, ADDRESS, KEY_NAME},
    "operator": EVERYTHING - {KEY_NAME},
}
"""What each one finds, and nothing else. A user's keys are for admins."""


@pytest.mark.parametrize("who", MAY_SEE)
async def test_no_route_shows_anyone_what_is_meant_for_others(planted: Planted, who: str) -> None:
    by = None if who == "anonymous" else getattr(planted, who)
    seen = await planted.seen(by)
    leaked = {value: paths for value, paths in seen.items() if value not in MAY_SEE[who]}
    assert leaked == {}
    assert MAY_SEE[who] <= seen.keys(), "the test does not look where it is"


@pytest.mark.parametrize("who", ["stranger", "seller"])
async def test_no_refusal_and_no_reply_to_a_change_shows_what_is_meant_for_others(planted: Planted, who: str) -> None:
    by = getattr(planted, who)
    world = World(planted.api, {}, 0, {}, planted.api.app.openapi())
    leaked = {}
    for route in routes(planted.api):
        if route.method == "GET" or route.path.startswith(("/v1/users/me", "/v1/sessions")):
            continue
        for path in planted.paths(route):
            body = world.body(route)
            more = {} if body is None else {"json": body}
            key = FRESH if route.method == "POST" else None
            reply = await planted.api.request(route.method, path, by=by, key=key, version=1, **more)
            if values := {value for value in EVERYTHING if value in reply.text}:
                leaked[f"{route.method} {path}"] = values
    assert leaked == {}
