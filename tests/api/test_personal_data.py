"""What is stored about a user: its export is complete, and has nothing of others."""

import json
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import LargeBinary

from services.credits.models import NOTED
from services.models import metadata
from services.privileges import TABLES
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.personal import service
from services.users.personal.queries import NOT_EXPORTED, SOURCES
from services.users.personal.repository import columns_of
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.personal import EMAIL, MINE, NAME, canary, copies, lines, spent
from tests.api.programs import make_key, with_key
from tests.factories import make_admin, make_operator, make_user


def test_every_table_is_exported_or_listed_with_the_reason() -> None:
    tables = {table.name for table in metadata.tables.values()}
    exported = {source.table for source in SOURCES.values()}
    assert exported | NOT_EXPORTED.keys() == tables
    assert not exported & NOT_EXPORTED.keys()
    assert all(reason for reason in NOT_EXPORTED.values())


def test_every_reference_to_a_user_is_followed_or_listed() -> None:
    of_staff = {"requested_by", "decided_by", "operator_id"}
    for table in metadata.tables.values():
        for column in table.columns:
            if column.name in of_staff or not any(key.target_fullname == "users.id" for key in column.foreign_keys):
                continue
            conditions = [source.condition for source in SOURCES.values() if source.table == table.name]
            assert table.name in NOT_EXPORTED or any(column.name in one for one in conditions), column


def test_no_secret_is_exported() -> None:
    for part, source in SOURCES.items():
        columns = metadata.tables[source.table].columns
        assert source.without.keys() <= set(columns.keys()), part
        assert not [name for name in columns_of(part) if isinstance(columns[name].type, LargeBinary)], part
        assert not [name for name in columns_of(part) if "hash" in name or "password" in name], part
        # The replica's role cannot select them: each export would fail there, and be repeated on the primary.
        assert not set(columns_of(part)) & set(TABLES[source.table].secret), part


async def test_an_export_has_notes_of_transfers_and_not_the_reasons_of_the_staff(api: Api) -> None:
    user, other = await make_user(api.database, credits="20"), await make_user(api.database)
    operator = await make_operator(api.database)
    moved = await api.post(
        "/v1/transfers", by=user, json={"to_user_id": other.id, "amount": "5.00", "note": "for lunch"}
    )
    undone = f"/v1/transfers/{moved.json()['id']}/reverse"
    assert (await api.post(undone, by=operator, json={"reason": "a suspicion"})).status_code == 201
    said = (await api.get(f"{MINE}.ndjson", by=user)).text
    assert "for lunch" in said
    assert "a suspicion" not in said
    assert [line["amount"] for line in lines(said) if line["part"] == "corrections"] == ["5.00"]


def test_notes_are_exported_of_the_kinds_of_which_users_see_them() -> None:
    kinds = ", ".join(f"'{kind}'" for kind in sorted(NOTED, reverse=True))
    assert SOURCES["transfers"].condition.endswith(f"kind IN ({kinds})")


async def test_users_export_all_that_is_stored_about_them_and_nothing_of_others(api: Api) -> None:
    user = await canary(api)
    other = await make_user(api.database, credits="5")
    await spent(api, user)
    reply = await api.get(f"{MINE}.ndjson", by=user)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Disposition"] == f'attachment; filename="user-{user.id}.ndjson"'
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines(reply.text):
        found.setdefault(line["part"], []).append(line)
    assert found["profile"][0]["email"] == EMAIL
    assert found["orders"][0]["reference"] == f"for {NAME}"
    assert [one["amount"] for one in found["entries"]] == ["20.00", "-20.00"]
    assert found["api_keys"][0]["name"] == f"key of {NAME}"
    assert {one["action"] for one in found["acts"]} >= {"user.signed_in", "key.made", "user.exported"}
    # The operator's act is shown, and not who the operator is.
    topped = next(one for one in found["acts_of_others"] if one["action"] == "credits.top_up")
    assert (topped["action"], "actor" in topped, "address" in topped) == ("credits.top_up", False, False)
    expected = SOURCES.keys() - {
        "role_requests", "adjustments", "corrections", "refunds", "refund_lines", "products", "sales",
    }  # fmt: skip
    assert found.keys() == expected
    # Each copy of the name and the address is in the export, but that of a token.
    assert set(await copies(api)) == {
        "api_keys",
        "idempotency_keys",
        "one_time_tokens",
        "orders",
        "unverified_emails",
        "users",
    }
    assert not [line for line in lines(reply.text) if other.email in json.dumps(line)]
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.exported'"
    assert await api.scalar(recorded) == f"user:{user.id} user/{user.id}"


async def test_a_seller_exports_products_and_sales(api: Api) -> None:
    buyer, seller, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    found = lines((await api.get(f"{MINE}.ndjson", by=seller)).text)
    assert [one["id"] for one in found if one["part"] == "products"] == [product.id]
    assert [one["order_id"] for one in found if one["part"] == "sales"] == [placed["id"]]


async def test_only_the_user_and_admins_export_and_that_is_recorded(api: Api) -> None:
    user = await canary(api)
    path = f"/v1/users/{user.id}/personal-data.ndjson"
    for role in set(Role) - {Role.admin}:
        caller = await make_user(api.database, role=role)
        assert_problem(await api.get(path, by=caller), 403, "forbidden")
    admin = await make_admin(api.database)
    shown = await api.get(path, by=admin)
    assert lines(shown.text)[0]["email"] == EMAIL
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.exported'"
    assert await api.scalar(recorded) == f"user:{admin.id} user/{user.id}"
    assert_problem(await api.get("/v1/users/999999/personal-data.ndjson", by=admin), 404, "not_found")
    key = with_key(await make_key(api, user, "orders:read"))
    assert_problem(await api.get(f"{MINE}.ndjson", headers=key), 403, "forbidden")


async def test_an_export_of_many_rows_is_whole_and_needs_no_more_memory_than_one_of_few(api: Api) -> None:
    user = await make_user(api.database)
    many = """
        INSERT INTO sessions (id, user_id, expires_at, address, user_agent)
        SELECT gen_random_uuid(), :user_id, now(), '192.0.2.1', repeat('x', 200) FROM generate_series(1, :number)
    """
    peaks = []
    for number in (2_000, 18_000):
        await api.execute(many, user_id=user.id, number=number)
        size, parts = 0, set()
        tracemalloc.start()
        # The transport of tests keeps a whole reply: what is measured is the export itself.
        async with UnitOfWork(api.database.write) as uow:
            async for piece in _export(uow, user):
                size += len(piece)
                parts |= {json.loads(line)["id"] for line in piece.splitlines() if b'"part":"sessions"' in line}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # And the session in which tests send their requests.
    assert len(parts) == 20_001
    # The ids that the test keeps are less than this.
    assert peaks[1] - peaks[0] < size / 2


def _export(uow: UnitOfWork, user: User) -> Any:
    async def run(read: Callable[[UnitOfWork], Awaitable[Any]]) -> Any:
        return await read(uow)

    return service.export(run, user.id, 0)
