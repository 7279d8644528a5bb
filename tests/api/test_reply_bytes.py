"""Replies, byte for byte: what the edge does to a reply on its way must not change it.

The names and values of headers count, and so does the JSON's spelling. `replies.txt` shows them with ids, times and the
names that the factories number replaced. `WRITE_REPLIES=1` writes it; read the diff.
"""

import os
import re
from pathlib import Path

import httpx2

from services.settings import Settings
from tests.api.client import Api, order_of
from tests.factories import make_operator, make_product, make_user

PINNED = Path(__file__).with_name("replies.txt")
_VARYING = (
    (r"content-length: \d+", "content-length: LENGTH"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"user\d+@example\.com", "EMAIL"),
    (r'"sku":"[^"]*","name":"Product \d+"', '"sku":"SKU","name":"PRODUCT"'),
    (r'"next_cursor":"[^"]*"', '"next_cursor":"CURSOR"'),
    (r"/categories/\d+", "/categories/NUMBER"),
    (r'"id":\d+', '"id":NUMBER'),
    (r'"(product_id|to_user_id|from_user_id|user_id)":\d+', r'"\1":NUMBER'),
    (r'ratelimit: "(\w+)";r=\d+;t=\d+', r'ratelimit: "\1";r=LEFT;t=SECONDS'),
    (r"product \d+ is", "product NUMBER is"),
)


def shown(reply: httpx2.Response) -> str:
    """The request, and the whole reply with what varies replaced."""
    request = reply.request
    lines = [f"{request.method} {request.url.raw_path.decode()}", str(reply.status_code)]
    lines += sorted(f"{name.decode()}: {value.decode()}" for name, value in reply.headers.raw)
    if reply.content or "content-length" in reply.headers:
        assert request.method == "HEAD" or reply.headers["content-length"] == str(len(reply.content))
    text = "\n".join([*lines, "", reply.content.decode()])
    for pattern, word in _VARYING:
        text = re.sub(pattern, word, text)
    return text


async def replies_of(api: Api, settings: Settings) -> list[httpx2.Response]:
    buyer, seller, product = await api.shop(credits="100", price="12.50")
    operator = await make_operator(api.database)
    free = await make_product(api.database, seller=seller, price="1000.00")
    named = {"X-Request-Id": "r1"}
    made = await api.post("/v1/categories", by=operator, json={"name": "Tea"}, headers=named)
    order = order_of((product, 2), reference="Größe 1 \U0001f600")
    placed = await api.post("/v1/orders", by=buyer, key="k1", headers=named, json=order)
    path = f"/v1/orders/{placed.json()['id']}"
    moved = {"to_user_id": seller.id, "amount": "1.50", "note": "tea & <milk>"}
    too_large = b"[" + b" " * settings.max_body_bytes + b"]"
    return [
        placed,
        await api.post("/v1/orders", by=buyer, key="k1", headers=named, json=order),
        await api.post("/v1/orders", by=buyer, json=order_of((free, 1)), headers=named),
        await api.post(
            "/v1/orders",
            by=buyer,
            json=order_of((free, 1), on_insufficient_credits="refuse"),
            headers=named,
        ),
        await api.post("/v1/orders", by=buyer, json={"items": [], "totl": 1}, headers=named),
        await api.post("/v1/orders", by=buyer, content=b"{", headers={**named, "Content-Type": "application/json"}),
        await api.post("/v1/orders", by=buyer, key=None, json=order, headers=named),
        await api.post("/v1/orders", by=buyer, content=too_large, headers=named),
        await api.post("/v1/orders", by=buyer, content=b"{}", headers={**named, "Content-Type": "text/plain"}),
        await api.get("/v1/orders?status=pending", by=buyer, headers=named),
        await api.post("/v1/orders", json=order, headers=named),
        await api.get(path, by=buyer),
        await api.request("HEAD", path, by=buyer, headers=named),
        await api.post(f"{path}/cancel", by=buyer, json={"reason": "late"}, headers=named),
        await api.get("/v1/orders?limit=1&count=exact&include=items", by=buyer),
        await api.post("/v1/transfers", by=buyer, json=moved, headers=named),
        await api.post("/v1/transfers", by=buyer, json={**moved, "dry_run": True}, headers=named),
        await api.post("/v1/transfers", by=buyer, json={**moved, "amount": "1e3"}, headers=named),
        await api.post(
            "/v1/transfers/batch", by=buyer, json={"mode": "independent", "transfers": [moved]}, headers=named
        ),
        await api.get("/v1/users/me", by=buyer, headers=named),
        made,
        await api.delete(f"/v1/categories/{made.json()['id']}", by=operator, version=1, headers=named),
        await api.get("/v1/nowhere", headers=named),
        await api.request("PUT", "/v1/orders", headers=named),
        await api.get("/v1/orders/nothing", by=buyer, headers=named),
        await api.get("/healthz", headers=named),
    ]


async def test_replies_have_exactly_the_pinned_bytes(api: Api, settings: Settings) -> None:
    await make_user(api.database)
    replies = "\n\n".join([shown(reply) for reply in await replies_of(api, settings)]) + "\n"
    if "WRITE_REPLIES" in os.environ:
        PINNED.write_text(replies)
    assert replies == PINNED.read_text()
