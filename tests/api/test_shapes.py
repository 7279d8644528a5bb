"""What replies may hold, how problems look, and what health and operators' pages say."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from services.models import metadata
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user

SHOWN = {
    # The kind of error; a request's fingerprint, which is internal, has the same name.
    "get /v1/operations/dead-letter-groups": {"fingerprint"},
    "get /v1/operations/bulk-actions/preview": {"fingerprint"},
    "get /v1/operations/dead-letter-groups/{fingerprint}": {"fingerprint", "payload"},
    "post /v1/operations/replay": {"fingerprint"},
    "post /v1/operations/discard": {"fingerprint"},
    # An operator needs it to decide whether this event can ever take effect.
    "get /v1/operations/dead-letters/{position}": {"fingerprint", "payload"},
    "get /v1/operations/deferred": {"available_at"},
    # It leads the staff from an entry to the trace of its request.
    "get /v1/operations/orders/{order_id}/timeline": {"traceparent"},
    # Whose role it is; who acted.
    "patch /v1/users/{user_id}": {"user_id"},
    "get /v1/role-requests": {"user_id"},
    "get /v1/role-requests/{request_id}": {"user_id"},
    "post /v1/role-requests/{request_id}/approve": {"user_id"},
    "post /v1/role-requests/{request_id}/reject": {"user_id"},
    "get /v1/audit-log": {"user_id"},
    # Shown once, to its owner.
    "post /v1/api-keys": {"key"},
    "post /v1/api-keys/current/rotate": {"key"},
    "post /v1/api-keys/{key_id}/rotate": {"key"},
    "post /v1/users/me/totp": {"secret"},
}
"""Fields that are internal elsewhere, by the routes whose purpose is to show them."""

INTERNAL = {
    "hashed_password",
    "password",
    "deleted_at",
    "fingerprint",
    "system_name",
    "is_system",
    "user_id",
    "seller_account_id",
    "account_id",
    "debit_account_id",
    "credit_account_id",
    "transaction_id",
    "traceparent",
    "payload",
    "headers",
    "body",
    "caller_id",
    "key",
    "secret",
    "last_error",
    "available_at",
}


def schemas_of(document: dict[str, Any], schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The named schemas that a reply's schema is made of."""
    pending, seen = [schema], set()
    while pending:
        match pending.pop():
            case {"$ref": str(reference)}:
                name = reference.rsplit("/", 1)[-1]
                if name not in seen:
                    seen.add(name)
                    yield name, document["components"]["schemas"][name]
                    pending.append(document["components"]["schemas"][name])
            case dict() as inner:
                pending.extend(inner.values())
            case list() as inner:
                pending.extend(inner)


def replies_of(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, reply in operation["responses"].items():
                for content in reply.get("content", {}).values():
                    yield f"{method} {path} {status}", content["schema"]


async def test_no_reply_has_an_internal_field_except_where_it_is_the_purpose(api: Api) -> None:
    document = api.app.openapi()
    walked, shown = set(), dict[str, set[str]]()
    for where, schema in replies_of(document):
        for name, model in schemas_of(document, schema):
            if internal := INTERNAL & model.get("properties", {}).keys():
                shown.setdefault(where.rpartition(" ")[0], set()).update(internal)
            walked.add(name)
    assert shown == SHOWN
    assert {"UserPublic", "OrderDetail", "ProductPublic", "TransferPublic", "AccountPublic", "Token"} <= walked
    assert len(walked) > 20


async def test_every_successful_reply_has_a_schema_that_is_not_a_table(api: Api) -> None:
    tables = {mapped.name for mapped in metadata.tables.values()}
    for route in api.app.routes:
        if isinstance(route, APIRoute) and route.status_code != 204:
            assert route.response_model is not None, route.path
            assert getattr(route.response_model, "__tablename__", None) not in tables, route.path


async def test_every_problem_in_the_document_has_the_same_schema(api: Api) -> None:
    document = api.app.openapi()
    reference = [{"$ref": "#/components/schemas/Problem"}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, reply in operation["responses"].items():
                if status.startswith("4"):
                    assert reply["content"].keys() == {"application/problem+json"}, f"{method} {path} {status}"
                    schema = reply["content"]["application/problem+json"]["schema"]
                    assert schema["allOf"] == reference, f"{method} {path} {status}"
                    assert schema.keys() == {"allOf", "properties"}
    assert document["components"]["schemas"]["Problem"]["properties"].keys() == {
        "type", "title", "status", "code", "detail", "request_id", "errors", "more_errors",
    }  # fmt: skip


async def test_a_well_formed_request_id_comes_back_and_a_malformed_one_is_replaced(api: Api) -> None:
    kept = await api.get("/v1/nothing", headers={"X-Request-Id": "trace-42"})
    assert kept.headers["x-request-id"] == "trace-42"
    assert assert_problem(kept, 404, "not_found")["request_id"] == "trace-42"
    for malformed in ("", "a b", "x" * 129, "\x7f"):
        reply = await api.get("/v1/categories", headers={"X-Request-Id": malformed})
        assert reply.headers["x-request-id"] not in ("", malformed)


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True),
        ("00-" + "0" * 32 + "-" + "b" * 16 + "-01", False),
        ("00-" + "a" * 32 + "-" + "0" * 16 + "-01", False),
        ("ff-" + "a" * 32 + "-" + "b" * 16 + "-01", False),
        ("nonsense", False),
    ],
)
async def test_the_trace_context_goes_into_the_event(api: Api, traceparent: str, kept: bool) -> None:
    wanted = {"email": "ada@example.com", "full_name": "Ada", "password": "long enough"}
    await api.post("/v1/users", key=None, json=wanted, headers={"traceparent": traceparent})
    assert await api.scalar("SELECT traceparent FROM events") == (traceparent if kept else None)


async def test_operators_see_whether_the_books_balance(api: Api) -> None:
    operator = await make_operator(api.database)
    await make_user(api.database, credits="5")
    books = await api.get("/v1/operations/books", by=operator)
    assert books.json()["balanced"] is True
    async with api.database.engine.begin() as connection:
        await connection.execute(text("UPDATE accounts SET posted = posted + 1 WHERE user_id IS NOT NULL"))
    wrong = (await api.get("/v1/operations/books", by=operator)).json()
    assert (wrong["balanced"], wrong["posted_sum"], wrong["miscounted_accounts"]) == (False, "2.00", 2)


async def test_operators_see_the_backlog_and_replay_dead_letters(api: Api) -> None:
    operator = await make_operator(api.database)
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    async with api.database.engine.begin() as connection:
        moved = "WITH dead AS (DELETE FROM outbox RETURNING position, event_id, aggregate, type)"
        dead = "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        await connection.execute(text(f"{moved} {dead} SELECT *, 8, 'poison' FROM dead"))

    backlog = (await api.get("/v1/operations/backlog", by=operator)).json()
    assert (backlog["waiting"], backlog["dead_letters"], backlog["orders_by_status"]["pending"]) == (0, 1, 1)
    [letter] = (await api.get("/v1/operations/dead-letters", by=operator)).json()["data"]
    assert (letter["aggregate"], letter["attempts"]) == (f"order/{placed['id']}", 8)
    one = {"position": letter["position"]}
    assert (await api.post("/v1/operations/replay", by=operator, json=one)).json()["done"] == 1
    assert (await api.post("/v1/operations/replay", by=operator, json=one)).json()["done"] == 0
    await api.process()
    assert await api.status_of(placed["id"]) == "confirmed"
