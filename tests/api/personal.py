"""A user who has used everything there is, for the tests of exports and erasures."""

import json
from typing import Any

from sqlalchemy import LargeBinary, text

from services.models import metadata
from services.users.models import User
from tests.api.client import Api, order_of
from tests.api.programs import make_key
from tests.factories import CONFIRMED, make_operator, make_product, make_user

NAME = "Canary Person"
EMAIL = "canary.person@example.com"
MINE = "/v1/users/me/personal-data"


async def canary(api: Api) -> User:
    """A user who has used everything there is, with a name and an address that are found wherever they are stored."""
    user = await make_user(api.database, email=EMAIL, full_name=NAME)
    assert (await api.sign_in(EMAIL)).status_code == 200
    assert (await api.sign_in(EMAIL, "a wrong password")).status_code == 401
    await make_key(api, user, name=f"key of {NAME}")
    await api.post("/v1/users/me/totp", by=user, key=None, json=CONFIRMED)
    assert (await api.client.post("/v1/password-resets", json={"email": EMAIL})).status_code == 202
    token = """
        INSERT INTO one_time_tokens (hash, purpose, user_id, email, expires_at)
        VALUES (sha256('x'), 'password_reset', :user_id, :email, now() + interval '1 hour')
    """
    await api.execute(token, user_id=user.id, email=EMAIL)
    wants = """
        INSERT INTO unverified_emails (email, user_id, expires_at)
        VALUES ('new.' || :email, :user_id, now() + interval '1 day')
    """
    await api.execute(wants, user_id=user.id, email=EMAIL)
    operator = await make_operator(api.database)
    topped = {"user_id": user.id, "amount": "20.00", "note": "welcome"}
    assert (await api.post("/v1/top-ups", by=operator, json=topped)).status_code == 201
    product = await make_product(api.database, price="20.00", stock=5)
    placed = await api.post("/v1/orders", by=user, json=order_of((product, 1), reference=f"for {NAME}"))
    assert placed.status_code == 201, placed.text
    await api.process()
    return user


async def spent(api: Api, user: User) -> None:
    """Finish what keeps the user from being erased."""
    operator = await make_operator(api.database)
    (order,) = (await api.get("/v1/orders", by=user)).json()["data"]
    fulfilled = await api.post(f"/v1/orders/{order['id']}/fulfil", by=operator)
    assert fulfilled.status_code == 200, fulfilled.text


def lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


async def copies(api: Api, *, ignoring: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """The tables that have the name or the address anywhere in a row, as text or in bytes."""
    found = []
    async with api.database.engine.connect() as connection:
        for table in sorted(table.name for table in metadata.tables.values()):
            bytes_too = [
                f"encode({column.name}, 'escape')"
                for column in metadata.tables[table].columns
                if isinstance(column.type, LargeBinary)
            ]
            whole = " || ' ' || ".join(["row::text", *(f"coalesce({one}, '')" for one in bytes_too)])
            statement = f"SELECT count(*) FROM {table} AS row WHERE {whole} ILIKE ANY (:patterns)"
            patterns = [f"%{EMAIL}%", f"%{NAME}%"]
            if (await connection.execute(text(statement), {"patterns": patterns})).scalar_one():
                found.append(table)
    return [table for table in found if table not in ignoring]
