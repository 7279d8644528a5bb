"""Who may call what."""

import base64
import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import jwt
import pytest

from benchmarks.sessions import session_of
from services.fields import now
from tests.api.client import Api, assert_problem
from tests.factories import PASSWORD, make_operator, make_user

ANY = "01890a5d-ac96-774b-bcce-b302099a8057"


async def test_a_registered_user_can_sign_in_and_is_identified(api: Api) -> None:
    wanted = {"email": "Ada@Example.com", "full_name": "Ada", "password": PASSWORD}
    registered = await api.post("/v1/users", key=None, json=wanted)
    assert registered.status_code == 201
    assert registered.headers["location"] == "/v1/users/me"

    reply = await api.sign_in("ADA@example.COM", PASSWORD)

    assert reply.status_code == 200
    token = reply.json()
    assert (token["token_type"], token["expires_in"]) == ("bearer", api.settings.access_token_ttl)
    me = await api.get("/v1/users/me", headers={"Authorization": f"Bearer {token['access_token']}"})
    assert me.json() == registered.json()
    assert (me.json()["email"], me.json()["role"]) == ("ada@example.com", "customer")


async def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(api: Api) -> None:
    user = await make_user(api.database)
    wrong = await api.sign_in(user.email, "wrong horse battery")
    unknown = await api.sign_in("nobody@example.com", PASSWORD)
    problems = [assert_problem(reply, 401, "unauthenticated") for reply in (wrong, unknown)]
    assert problems[0]["detail"] == problems[1]["detail"]
    assert wrong.headers["www-authenticate"] == "Bearer"


async def test_a_deactivated_user_can_neither_sign_in_nor_use_a_token(api: Api) -> None:
    user = await make_user(api.database)
    operator = await make_operator(api.database)
    assert (await api.get("/v1/users/me", by=user)).status_code == 200
    reply = await api.patch(f"/v1/users/{user.id}", by=operator, version=1, json={"is_active": False})
    assert reply.status_code == 200
    assert_problem(await api.get("/v1/users/me", by=user), 401, "unauthenticated")
    assert_problem(await api.sign_in(user.email, PASSWORD), 401, "unauthenticated")


async def test_a_deleted_user_can_neither_sign_in_nor_use_a_token_until_restored(api: Api) -> None:
    user = await make_user(api.database)
    operator = await make_operator(api.database)
    assert (await api.delete("/v1/users/me", by=user, json={"current_password": PASSWORD})).status_code == 204
    assert_problem(await api.get("/v1/users/me", by=user), 401, "unauthenticated")
    assert_problem(await api.sign_in(user.email, PASSWORD), 401, "unauthenticated")
    assert (await api.post(f"/v1/users/{user.id}/restore", by=operator)).status_code == 200
    assert (await api.sign_in(user.email, PASSWORD)).status_code == 200


async def test_tokens_that_are_not_ours_are_refused(api: Api) -> None:
    user = await make_operator(api.database)
    secret = api.settings.secret_key.get_secret_value()
    caller = session_of(user.id)
    key = jwt.get_unverified_header(api.tokens.make(caller))["kid"]
    at = now()
    good = {
        "sub": str(user.id),
        "sid": str(caller.session_id),
        "jti": "1",
        "iss": "waybill",
        "aud": "development/public",
        "iat": at,
        "exp": at + timedelta(hours=1),
    }

    def signed(claims: dict[str, Any], by: str = secret, algorithm: str = "HS256", kid: str = key) -> str:
        return jwt.encode(claims, by, algorithm, headers={"kid": kid})

    def unsigned(claims: dict[str, Any]) -> str:
        parts = [{"alg": "none", "typ": "JWT", "kid": key}, {**claims, "iat": 1, "exp": 2**40}]
        return (
            ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
        )

    def without(claim: str) -> dict[str, Any]:
        return {name: value for name, value in good.items() if name != claim}

    tokens = {
        "expired": signed({**good, "exp": at - timedelta(seconds=31)}),
        "another key": signed(good, "x" * 64),
        "an unknown key": signed(good, kid="0" * 16),
        "no key named": jwt.encode(good, secret, "HS256"),
        "another algorithm": signed(good, secret * 2, "HS512"),
        "unsigned": unsigned(good),
        "another issuer": signed({**good, "iss": "elsewhere"}),
        "another tenant": signed({**good, "aud": "development/other"}),
        **{f"no {claim}": signed(without(claim)) for claim in ("exp", "sub", "iss", "aud", "sid", "jti")},
        "a name": signed({**good, "sub": "root"}),
        "nobody": signed({**good, "sub": "0"}),
        "a huge id": signed({**good, "sub": str(2**63)}),
        "an endless id": signed({**good, "sub": "9" * 5000}),
        "an unknown user": signed({**good, "sub": str(2**62)}),
        "an unknown session": signed({**good, "sid": str(uuid4())}),
        "cut off": signed(good)[:-1],
        "empty": "",
        "dots": "..",
    }
    for what, token in tokens.items():
        reply = await api.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})
        assert reply.status_code == 401, what
        assert_problem(reply, 401, "unauthenticated")
        assert reply.headers["www-authenticate"] == "Bearer"
    for token in (signed(good), api.tokens.make(caller)):
        reply = await api.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})
        assert reply.status_code == 200, "the others differ from it in one thing each"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/users", None),
        ("GET", "/v1/users/1", None),
        ("PATCH", "/v1/users/1", {"role": "operator"}),
        ("DELETE", "/v1/users/1", None),
        ("POST", "/v1/users/1/restore", None),
        ("POST", "/v1/categories", {"name": "Lamps"}),
        ("POST", "/v1/top-ups", {"user_id": 1, "amount": "1.00"}),
        ("POST", f"/v1/transfers/{ANY}/reverse", {"reason": "x"}),
        ("POST", "/v1/adjustments", {"user_id": 1, "amount": "1.00", "reason": "x"}),
        ("GET", "/v1/adjustments", None),
        ("GET", f"/v1/adjustments/{ANY}", None),
        ("POST", f"/v1/adjustments/{ANY}/approve", None),
        ("POST", f"/v1/adjustments/{ANY}/reject", None),
        ("POST", "/v1/accounts/1/close", None),
        ("POST", "/v1/accounts/1/reopen", None),
        ("GET", "/v1/operations/books", None),
        ("GET", "/v1/operations/audit", None),
        ("GET", "/v1/operations/backlog", None),
        ("GET", "/v1/operations/dead-letters", None),
        ("GET", "/v1/operations/sweep-failures", None),
        ("POST", "/v1/operations/replay", {"position": 1}),
    ],
)
async def test_operator_routes_are_forbidden_to_customers(api: Api, method: str, path: str, body: Any) -> None:
    customer = await make_user(api.database)
    before = await api.everything()
    reply = await api.request(method, path, by=customer, key="k", version=1, json=body)
    assert_problem(reply, 403, "forbidden")
    assert await api.everything() == before
