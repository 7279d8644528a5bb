"""The audit finds each event that was changed or deleted, although nothing else tells of it."""

from typing import Any

import pytest
from sqlalchemy import text

from services.audit.logged.queries import TYPES
from services.outbox.retention.repository import month_bounds
from tests.api.audited import corrupt, run_audit
from tests.api.test_acknowledged import Told, told  # noqa: F401  (a fixture)
from tests.factories import make_category, make_user

NOT_COMPARED = {("credits.held", "expires_at"), ("product.created", "price")}
"""What no row says in the same way, or still says."""


async def more(told: Told) -> None:  # noqa: F811
    """What the other writes have no events of: a rejected order and a product."""
    api = told.api
    buyer, _, product = await api.shop(stock=1)
    await api.place(buyer, (product, 2))
    await api.process()
    category = await make_category(api.database)
    body = {"sku": "new", "name": "New", "price": "1.00", "category_id": category.id, "stock": 3}
    reply = await api.post("/v1/products", by=await make_user(api.database), json=body)
    assert reply.status_code == 201, reply.text


async def logged(told: Told) -> dict[str, tuple[Any, str, dict[str, Any]]]:  # noqa: F811
    """An event of each type: its id, its aggregate and its payload."""
    newest = "SELECT DISTINCT ON (type) type, id, aggregate, payload FROM events ORDER BY type, position DESC"
    async with told.api.database.engine.connect() as connection:
        return {row.type: (row.id, row.aggregate, row.payload) for row in await connection.execute(text(newest))}


async def found(told: Told) -> list[tuple[str, Any, Any, Any]]:  # noqa: F811
    """The differences about events: kind, event, type, aggregate."""
    _, differences = await run_audit(told.api.database)
    return [
        (one.kind.value, one.subject.get("event_id"), one.subject["type"], one.subject["aggregate"])
        for one in differences
        if one.kind.value.startswith("event_")
    ]


async def test_each_value_of_each_event_is_compared(told: Told) -> None:  # noqa: F811
    await more(told)
    events = await logged(told)
    assert set(TYPES) <= set(events)
    assert await found(told) == []
    missed = set()
    for name in TYPES:
        event_id, aggregate, payload = events[name]
        for field in payload:
            change = (
                "UPDATE events SET payload = jsonb_set(payload, ARRAY[CAST(:field AS text)], '\"x\"') WHERE id = :id"
            )
            restore = "UPDATE events SET payload = CAST(:payload AS jsonb) WHERE id = :id"
            async with told.api.database.engine.connect() as connection:
                before = await connection.scalar(
                    text("SELECT payload::text FROM events WHERE id = :id"), {"id": event_id}
                )
            await corrupt(told.api.database, change, id=event_id, field=field)
            differences = await found(told)
            expected: list[tuple[str, Any, Any, Any]] = [("event_differs", str(event_id), name, aggregate)]
            # The id of a refund is what it is found by.
            if (name, field) == ("order.refunded", "refund_id"):
                expected.append(("event_missing", None, name, aggregate))
            if sorted(differences, key=str) != sorted(expected, key=str):
                assert differences == []
                missed.add((name, field))
            await corrupt(told.api.database, restore, id=event_id, payload=before)
    assert missed == NOT_COMPARED


@pytest.mark.parametrize("change", ["DELETE FROM events WHERE id = :id", "UPDATE events SET type = 'x' WHERE id = :id"])
async def test_each_missing_event_is_reported(told: Told, change: str) -> None:  # noqa: F811
    await more(told)
    events = await logged(told)
    types = [name for name in TYPES if name != "product.created"]
    for name in types:
        await corrupt(told.api.database, change, id=events[name][0])

    assert sorted(await found(told)) == sorted(("event_missing", None, name, events[name][1]) for name in types)


async def test_events_of_a_dropped_month_are_not_reported(told: Told) -> None:  # noqa: F811
    api = told.api
    old = "timestamptz '2020-06-15T12:00:00Z'"
    then = f"CASE WHEN {{}} IS NOT NULL THEN {old} END"
    first, after = month_bounds(2020, 6)
    # As if everything had happened in June 2020.
    await corrupt(
        api.database,
        "DELETE FROM events",
        f"UPDATE order_transitions SET created_at = {old}",
        f"UPDATE refunds SET created_at = {old}",
        f"UPDATE transfers SET created_at = {old}, resolved_at = {then.format('resolved_at')}",
        f"UPDATE adjustments SET created_at = {old}, decided_at = {then.format('decided_at')}",
    )
    assert await found(told) == []

    async with api.database.engine.begin() as connection:
        await connection.execute(
            text(f"CREATE TABLE events_2020_06 PARTITION OF events FOR VALUES FROM ('{first}') TO ('{after}')")
        )
    assert {name for _, _, name, _ in await found(told)} == set(TYPES) - {"order.rejected", "product.created"}
