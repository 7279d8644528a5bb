"""Lone surrogates: JSON and a form's charset can express them, but UTF-8 and PostgreSQL cannot hold them."""

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
async def test_a_lone_surrogate_is_refused_with_the_name_of_its_field(
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

    assert_problem(reply, 422, "invalid_input", pointers=[f"#/{field}"])
    assert "0123456789" not in reply.text, "what was sent as a password is not sent back"
    assert await api.everything() == before


async def sign_in(api: Api, charset: str, username: bytes, password: bytes) -> Any:
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, value)
        for name, value in ((b"username", username), (b"password", password))
    )
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    return await api.client.post("/v1/token", content=parts + b"--x--\r\n", headers=headers)


@pytest.mark.parametrize(
    ("charset", "half_pair"), [("unicode_escape", rb"\ud800"), ("raw_unicode_escape", rb"\ud800"), ("utf-7", b"+2AA-")]
)
async def test_a_lone_surrogate_cannot_be_used_to_sign_in(api: Api, charset: str, half_pair: bytes) -> None:
    user = await make_user(api.database)
    username, password = user.email.encode(), PASSWORD.encode()
    right = await sign_in(api, "utf-8", username, password)
    assert right.status_code == 200, "the form itself is in order"

    for name, word in ((username + half_pair, password), (username, password + half_pair), (half_pair, half_pair)):
        reply = await sign_in(api, charset, name, word)
        assert reply.status_code in (400, 401, 422), f"{name!r}, {word!r}: {reply.status_code} {reply.text}"
        assert_problem(reply, reply.status_code, reply.json()["code"])


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "base64", "no-such-charset", '"a b"'])
async def test_an_unusable_charset_is_a_client_error(api: Api, charset: str) -> None:
    reply = await sign_in(api, charset, b"a@b.example-\xff\xfe..", b"x" * 70)
    assert reply.status_code in (400, 401, 422), f"{reply.status_code} {reply.text}"
    assert_problem(reply, reply.status_code, reply.json()["code"])
