"""Operators inspect and control the outbox over HTTP."""

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from services.fields import new_id
from services.orders.events import OrderPlaced
from services.unit_of_work import UnitOfWork
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user

LETTERS = (
    "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint)"
    " SELECT nextval('outbox_position_seq'), gen_random_uuid(), 'order/' || n, 'order.placed', 5,"
    " 'ValueError: no', 'abc' FROM generate_series(1, 3) AS n"
)
BASE = "/v1/operations"


@pytest.fixture
async def letters(api: Api) -> None:
    async with api.database.engine.begin() as connection:
        await connection.execute(text(LETTERS))


@pytest.mark.usefixtures("letters")
async def test_dead_letters_of_one_kind_are_shown_dry_run_and_discarded_once(api: Api) -> None:
    operator = await make_operator(api.database)
    (group,) = (await api.get(f"{BASE}/dead-letter-groups", by=operator)).json()["data"]
    assert (group["letters"], group["message"]) == (3, "ValueError: no")
    wanted: dict[str, Any] = {"fingerprint": "abc", "reason": "known bug"}
    dry = await api.post(f"{BASE}/discard", by=operator, json={**wanted, "dry_run": True})
    assert (dry.status_code, dry.json()["matching"]) == (200, 3)
    position = dry.json()["letters"][0]["position"]
    shown = (await api.get(f"{BASE}/dead-letters/{position}", by=operator)).json()
    assert (shown["error"], shown["payload"]) == ("ValueError: no", None)
    done = await api.post(f"{BASE}/discard", by=operator, key="once", json=wanted)
    again = await api.post(f"{BASE}/discard", by=operator, key="once", json=wanted)
    assert done.json()["done"] == again.json()["done"] == 3
    assert await api.scalar("SELECT count(*) FROM outbox_actions WHERE actor = :by", by=f"user/{operator.id}") == 3
    assert_problem(await api.get(f"{BASE}/dead-letters/{position}", by=operator), 404, "not_found")


@pytest.mark.usefixtures("letters")
async def test_replaying_goes_slice_by_slice(api: Api) -> None:
    operator = await make_operator(api.database)
    first = (await api.post(f"{BASE}/replay", by=operator, json={"type": "order.placed", "limit": 2})).json()
    assert (first["done"], first["more"]) == (2, True)
    rest = {"type": "order.placed", "limit": 2, "after": first["last"]}
    second = (await api.post(f"{BASE}/replay", by=operator, json=rest)).json()
    assert (second["done"], second["more"]) == (1, False)
    assert await api.scalar("SELECT count(*) FROM outbox WHERE waits = 'retry'") == 3


@pytest.mark.usefixtures("letters")
async def test_replaying_one_is_kept_in_the_audit_with_the_operator_who_did_it(api: Api) -> None:
    operator = await make_operator(api.database)
    position = await api.scalar("SELECT position FROM dead_letters WHERE aggregate = 'order/2'")
    one = {"position": position}
    assert (await api.post(f"{BASE}/replay", by=operator, json=one)).json()["done"] == 1
    assert await api.scalar("SELECT waits FROM outbox WHERE position = :position", position=position) == "retry"
    assert (await api.post(f"{BASE}/replay", by=operator, json=one)).json()["done"] == 0
    audited = "SELECT string_agg(concat_ws(' ', actor, action, aggregate, detail ->> 'position'), ';')"
    told = await api.scalar(f"{audited} FROM outbox_actions")
    assert told == f"user/{operator.id} replay order/2 {position}"


@pytest.mark.usefixtures("letters")
async def test_why_types_and_workers_are_shown(api: Api) -> None:
    operator = await make_operator(api.database)
    (found,) = (await api.get(f"{BASE}/why", by=operator, params={"aggregate": "order/1"})).json()
    assert (found["state"], found["error"]) == ("dead", "ValueError: no")
    assert_problem(await api.get(f"{BASE}/why", by=operator), 422, "invalid_input")
    assert_problem(await api.get(f"{BASE}/why", by=operator, params={"position": 99}), 404, "not_found")
    for change, body in (("pause", {}), ("limit", {"max_batches": 2})):
        reply = await api.post(f"{BASE}/types/order.placed/{change}", by=operator, json=body)
        assert reply.status_code == 204, reply.text
        refused = await api.post(f"{BASE}/types/order.konfirmed/{change}", by=operator, json=body)
        assert "did you mean 'order.confirmed'?" in assert_problem(refused, 404, "not_found")["detail"]
    assert (await api.get(f"{BASE}/why", by=operator, params={"aggregate": "1"})).json() == [found]
    (state,) = (await api.get(f"{BASE}/types", by=operator)).json()
    assert (state["paused"], state["max_batches"]) == (True, 2)
    assert (await api.get(f"{BASE}/workers", by=operator)).json() == []


async def test_a_group_is_read_with_its_latest_letter_as_a_sample(api: Api) -> None:
    operator = await make_operator(api.database)
    async with api.database.engine.begin() as connection:
        await connection.execute(text(LETTERS))
        await connection.execute(text("UPDATE dead_letters SET reason = 'time_limit'"))
    for path, expected in (("?reason=time_limit", 1), ("?reason=unreadable", 0), ("?type=order.placed", 1)):
        page = (await api.get(f"{BASE}/dead-letter-groups{path}", by=operator)).json()
        assert len(page["data"]) == expected, path
    found = (await api.get(f"{BASE}/dead-letter-groups/abc?window=hour", by=operator)).json()
    assert (found["group"]["letters"], found["group"]["reason"]) == (3, "time_limit")
    assert (len(found["group"]["history"]["letters"]), found["group"]["history"]["seconds"]) == (24, 150)
    assert found["sample"]["error"] == "ValueError: no"
    assert_problem(await api.get(f"{BASE}/dead-letter-groups/none", by=operator), 404, "not_found")
    listed = await api.get(f"{BASE}/dead-letters?filter=reason:eq:time_limit", by=operator)
    assert [one["reason"] for one in listed.json()["data"]] == ["time_limit"] * 3


@pytest.mark.usefixtures("letters")
async def test_selected_dead_letters_are_replayed_by_their_positions_or_their_reason(api: Api) -> None:
    operator = await make_operator(api.database)
    of_order = "SELECT position FROM dead_letters WHERE aggregate = :aggregate"
    first = await api.scalar(of_order, aggregate="order/1")
    second = await api.scalar(of_order, aggregate="order/2")
    some = {"positions": [first, second]}
    assert (await api.post(f"{BASE}/replay", by=operator, json=some)).json()["done"] == 2
    async with api.database.engine.begin() as connection:
        await connection.execute(text("UPDATE dead_letters SET reason = 'worker_died'"))
    slow = {"failure_reason": "time_limit"}
    assert (await api.post(f"{BASE}/replay", by=operator, json=slow)).json()["done"] == 0
    died = {"failure_reason": "worker_died"}
    assert (await api.post(f"{BASE}/replay", by=operator, json=died)).json()["done"] == 1
    for bad in ([], [0], ["1"], list(range(1, 202))):
        refused = await api.post(f"{BASE}/replay", by=operator, json={"positions": bad})
        assert_problem(refused, 422, "invalid_input")


async def test_auditors_see_a_payload_without_its_personal_fields(api: Api) -> None:
    operator = await make_operator(api.database)
    auditor = await make_user(api.database, role=Role.auditor)
    async with UnitOfWork(api.database.write) as uow:
        uow.record(OrderPlaced(order_id=new_id(), buyer_id=operator.id, total=Decimal(7)))
        await uow.commit()
    async with api.database.engine.begin() as connection:
        await connection.execute(
            text(
                "WITH taken AS (DELETE FROM outbox RETURNING *) INSERT INTO dead_letters"
                " (position, event_id, aggregate, type, attempts, error, fingerprint)"
                " SELECT position, event_id, aggregate, type, 5, 'no', 'abc' FROM taken"
            )
        )
    position = await api.scalar("SELECT position FROM dead_letters")
    shown = (await api.get(f"{BASE}/dead-letters/{position}", by=operator)).json()["payload"]
    assert shown["buyer_id"] == operator.id
    hidden = {**shown, "buyer_id": "(personal)"}
    assert (await api.get(f"{BASE}/dead-letters/{position}", by=auditor)).json()["payload"] == hidden
    assert (await api.get(f"{BASE}/dead-letter-groups/abc", by=auditor)).json()["sample"]["payload"] == hidden
    refused = await api.post(f"{BASE}/replay", by=auditor, json={"position": position})
    assert_problem(refused, 403, "forbidden")


async def test_waiting_events_are_listed_by_type_and_reason(api: Api) -> None:
    operator = await make_operator(api.database)
    async with api.database.engine.begin() as connection:
        await connection.execute(text(WAITING))
    path = f"{BASE}/waiting?type=order.placed&reason=retry&limit=2"
    first = (await api.get(path, by=operator)).json()
    assert [(one["position"], one["reason"], one["message"]) for one in first["data"]] == [
        (1, "retry", "no"),
        (2, "retry", "no"),
    ]
    second = (await api.get(f"{path}&cursor={first['next_cursor']}", by=operator)).json()
    assert ([one["position"] for one in second["data"]], second["has_more"]) == ([3], False)
    other = await api.get(f"{BASE}/waiting?type=order.placed&reason=ready&cursor={first['next_cursor']}", by=operator)
    assert_problem(other, 400, "bad_query")
    for bad in ("type=order.placed", "reason=retry", "type=order.placed&reason=tired"):
        assert_problem(await api.get(f"{BASE}/waiting?{bad}", by=operator), 422, "invalid_input")
    (state,) = (await api.get(f"{BASE}/types", by=operator)).json()
    assert state["reasons"] == {"retry": 3}


WAITING = (
    "INSERT INTO outbox (position, event_id, aggregate, type, waits, available_at, attempts, last_error)"
    " SELECT n, gen_random_uuid(), 'order/' || n, 'order.placed', 'retry', now() + interval '1 hour', 1, 'no'"
    " FROM generate_series(1, 3) AS n"
)


async def test_a_waiting_event_is_retried_now_buried_or_discarded_once(api: Api) -> None:
    operator = await make_operator(api.database)
    async with api.database.engine.begin() as connection:
        await connection.execute(text(WAITING))
    assert_problem(await api.post(f"{BASE}/waiting/3/discard", by=operator, json={}), 422, "invalid_input")
    for position, act in ((1, "retry-now"), (2, "bury"), (3, "discard")):
        for _ in range(2):
            body = {"reason": "known bug"}
            reply = await api.post(f"{BASE}/waiting/{position}/{act}", by=operator, key=act, json=body)
            assert reply.status_code == 204, reply.text
        assert_problem(await api.post(f"{BASE}/waiting/9/{act}", by=operator, json=body), 404, "not_found")
    assert await api.scalar("SELECT string_agg(position::text, ' ') FROM outbox WHERE available_at <= now()") == "1"
    assert await api.scalar("SELECT string_agg(position::text, ' ') FROM dead_letters") == "2"
    assert_problem(await api.post(f"{BASE}/waiting/2/retry-now", by=operator, json={}), 409, "conflict")
    audited = "SELECT string_agg(concat_ws(' ', actor, action, reason, detail ->> 'position'), ';' ORDER BY id)"
    assert await api.scalar(f"{audited} FROM outbox_actions") == ";".join(
        f"user/{operator.id} {act} known bug {position}"
        for position, act in ((1, "retry_now"), (2, "bury"), (3, "discard"))
    )


async def test_invalid_requests_and_other_users_are_refused(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    assert_problem(await api.post(f"{BASE}/discard", by=operator, json={"type": "x"}), 422, "invalid_input")
    assert_problem(await api.post(f"{BASE}/replay", by=operator, json={}), 422, "invalid_input")
    for body in ("[]", '{"reason": 1}', '{"more": 1}'):
        headers = {"Content-Type": "application/json"}
        for path in (
            *(f"{BASE}/types/order.placed/{act}" for act in ("pause", "resume")),
            *(f"{BASE}/waiting/1/{act}" for act in ("retry-now", "bury", "discard")),
        ):
            reply = await api.post(path, by=operator, content=body, headers=headers)
            assert_problem(reply, 422, "invalid_input")
    cancel = f"{BASE}/deferred/01a211c2-28bd-7492-a320-6901ece8e8bb/cancel"
    assert_problem(await api.post(cancel, by=operator, json={}), 404, "not_found")
    for act in ("retry-now", "bury", "discard"):
        assert_problem(await api.post(f"{BASE}/waiting/1/{act}", by=user, json={"reason": "x"}), 403, "forbidden")
    for path in ("types", "workers", "why", "deferred", "dead-letter-groups"):
        assert_problem(await api.get(f"{BASE}/{path}", by=user), 403, "forbidden")
