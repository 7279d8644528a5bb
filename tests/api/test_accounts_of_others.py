"""The staff reads the account and the statement of any user."""

import pytest

from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import make_user


@pytest.mark.parametrize("role", Role)
async def test_those_who_read_anyones_credits_read_accounts_and_statements(api: Api, role: Role) -> None:
    user = await make_user(api.database, credits="12.50", full_name="Ada")
    by = await make_user(api.database, role=role)
    account = await api.get(f"/v1/accounts/{user.id}", by=by)
    statement = await api.get(f"/v1/accounts/{user.id}/statement", by=by)
    if role not in (Role.support, Role.operator, Role.auditor):
        assert_problem(account, 403, "forbidden")
        assert_problem(statement, 403, "forbidden")
        return
    assert account.json() == {
        "posted": "12.50",
        "held": "0.00",
        "available": "12.50",
        "version": 1,
        "closed_at": None,
        "user": {"id": user.id, "full_name": "Ada"},
    }
    assert [entry["balance"] for entry in statement.json()["data"]] == ["12.50"]
    own = await api.get("/v1/accounts/me/statement", by=user)
    assert statement.json()["data"] == own.json()["data"]


async def test_the_account_of_an_unknown_user_is_not_found(api: Api) -> None:
    by = await make_user(api.database, role=Role.auditor)
    assert_problem(await api.get("/v1/accounts/999999", by=by), 404, "not_found")
    assert (await api.get("/v1/accounts/999999/statement", by=by)).json()["data"] == []
