"""Programs that call the API with keys, for tests."""

from typing import Any

import httpx2

from services.users.models import User
from tests.api.client import Api
from tests.factories import CONFIRMED

PLACING = ["orders:read", "orders:write", "keys:rotate"]
"""The scopes of a program that places orders and rotates its key."""


async def make_key(api: Api, owner: User, *scopes: str, **more: Any) -> dict[str, Any]:
    """A new API key of the user: the reply, with the key itself."""
    body = {"name": "a program", "scopes": list(scopes) or PLACING, **more, **CONFIRMED}
    reply = await api.post("/v1/api-keys", by=owner, key=None, json=body)
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def with_key(made: dict[str, Any] | str) -> dict[str, str]:
    """The headers of a request with this key."""
    return {"Authorization": f"Bearer {made if isinstance(made, str) else made['key']}"}


async def rotate(api: Api, made: dict[str, Any], **body: Any) -> dict[str, Any]:
    """Replace the key as the program itself does."""
    reply = await api.post("/v1/api-keys/current/rotate", key=None, headers=with_key(made), json=body)
    assert reply.status_code == 201, reply.text
    following: dict[str, Any] = reply.json()
    return following


async def is_valid(api: Api, made: dict[str, Any] | str) -> bool:
    """Whether a request with this key is let in."""
    reply = await api.get("/v1/orders", headers=with_key(made))
    assert reply.status_code in (200, 401), reply.text
    return reply.status_code == 200


async def order_with(api: Api, made: dict[str, Any] | str, body: Any, **more: Any) -> httpx2.Response:
    """Place an order with this key."""
    return await api.post("/v1/orders", headers=with_key(made), json=body, **more)
