"""Lone surrogates: JSON and forms can express them, but UTF-8 and PostgreSQL cannot hold them."""

from typing import Any
from uuid import uuid4

import pytest

from tests.api.client import FRESH, Api, assert_problem
from tests.factories import PASSWORD, make_operator, make_product, make_user

JSON = {"Content-Type": "application/json"}
HALF_PAIR = "\\ud800"
"""As JSON writes it: six ASCII characters."""

FIELDS = [
    ("POST", "/v1/users", '{"email": "new@example.com", "full_name": "New", "password": "0123456789@"}', "password"),
    ("POST", "/v1/users", '{"email": "new@example.com", "full_name": "N@", "password": "0123456789"}', "full_name"),
    ("POST", "/v1/users", '{"email": "n@w@example.com", "full_name": "New", "password": "0123456789"}', "email"),
    ("PATCH", "/v1/users/me", '{"password": "0123456789@"}', "password"),
    ("PATCH", "/v1/users/me", '{"current_password": "N@"}', "current_password"),
    ("DELETE", "/v1/users/me", '{"current_password": "N@"}', "current_password"),
    ("PATCH", "/v1/users/me", '{"full_name": "N@"}', "full_name"),
    ("PATCH", "/v1/users/{user}", '{"full_name": "N@"}', "full_name"),
    ("POST", "/v1/categories", '{"name": "N@"}', "name"),
    ("POST", "/v1/products", '{"sku": "N@", "name": "N", "price": "1", "category_id": 1}', "sku"),
    ("POST", "/v1/products", '{"sku": "N", "name": "N@", "price": "1", "category_id": 1}', "name"),
    (
        "POST",
        "/v1/products",
        '{"sku": "N", "name": "N", "description": "@", "price": "1", "category_id": 1}',
        "description",
    ),
    ("PATCH", "/v1/products/{product}", '{"name": "N@"}', "name"),
    ("PATCH", "/v1/products/{product}", '{"description": "N@"}', "description"),
    ("POST", "/v1/orders", '{"items": [{"product_id": 1, "quantity": 1}], "reference": "N@"}', "reference"),
    ("POST", "/v1/orders/{order}/cancel", '{"reason": "N@"}', "reason"),
    ("POST", "/v1/top-ups", '{"user_id": 1, "amount": "1.00", "note": "N@"}', "note"),
    ("POST", "/v1/transfers", '{"to_user_id": 1, "amount": "1.00", "note": "N@"}', "note"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    FIELDS,
    ids=[f"{method} {path} {field}".replace("/v1/", "") for method, path, _, field in FIELDS],
)
async def test_a_lone_surrogate_is_refused_with_its_place(
    api: Api, method: str, path: str, body: str, field: str
) -> None:
    operator = await make_operator(api.database)
    product = await make_product(api.database, seller=operator)
    before = await api.everything()

    path = path.format(user=operator.id, product=product.id, order=uuid4())
    # The last one: an e-mail address has an @ of its own.
    head, _, tail = body.rpartition("@") if field != "email" else body.partition("@")
    content = f"{head}{HALF_PAIR}{tail}".encode()
    reply = await api.request(method, path, by=operator, key=FRESH, version=1, content=content, headers=JSON)

    problem = assert_problem(reply, 400, "malformed_body")
    # The parser reads past it, at most to the end of the text.
    assert "a text contains half of a surrogate pair (line 1 column " in problem["detail"]
    assert "0123456789" not in reply.text, "what was sent as a password is not sent back"
    assert await api.everything() == before


@pytest.mark.parametrize("half_pair", [b"%ED%A0%80", b"\xed\xa0\x80", rb"\ud800", b"%2BD%2BA-"])
@pytest.mark.parametrize(
    "charset", ["", "; charset=utf-8", "; charset=unicode_escape", "; charset=utf-7", "; charset=x"]
)
async def test_a_lone_surrogate_cannot_be_used_to_sign_in(api: Api, half_pair: bytes, charset: str) -> None:
    user = await make_user(api.database)
    username, password = user.email.encode(), PASSWORD.encode()
    headers = {"Content-Type": f"application/x-www-form-urlencoded{charset}"}

    async def sign_in(name: bytes, word: bytes) -> Any:
        return await api.client.post("/v1/token", content=b"username=%b&password=%b" % (name, word), headers=headers)

    right = await sign_in(username, password)
    assert right.status_code == 200, "the form itself is in order"
    for name, word in ((username + half_pair, password), (username, password + half_pair), (half_pair, half_pair)):
        reply = await sign_in(name, word)
        assert reply.status_code in (400, 401, 422), f"{name!r}, {word!r}: {reply.status_code} {reply.text}"
        assert_problem(reply, reply.status_code, reply.json()["code"])
