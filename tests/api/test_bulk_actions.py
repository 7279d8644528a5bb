"""Operators start, follow and cancel bulk actions over HTTP."""

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.test_outbox_control import LETTERS
from tests.concurrency.bulk import run_all
from tests.factories import make_operator, make_user

BASE = "/v1/operations/bulk-actions"
ALL_OF_A_KIND: dict[str, Any] = {"action": "replay", "fingerprint": "abc", "reason": "constraint dropped"}


@pytest.fixture(autouse=True)
async def _letters(api: Api) -> None:
    async with api.database.engine.begin() as connection:
        await connection.execute(text(LETTERS))


async def test_a_bulk_action_is_previewed_started_once_and_followed_to_its_end(api: Api) -> None:
    operator = await make_operator(api.database)
    wanted = {"action": "replay", "fingerprint": "abc"}
    shown = (await api.get(f"{BASE}/preview", by=operator, params=wanted)).json()
    assert shown["total"] == {"value": 3, "precision": "exact"}
    assert [one["aggregate"] for one in shown["sample"]] == ["order/1", "order/2", "order/3"]
    assert await api.scalar("SELECT count(*) FROM bulk_actions") == 0
    started = await api.post(BASE, by=operator, key="once", json=ALL_OF_A_KIND)
    assert started.status_code == 201, started.text
    again = await api.post(BASE, by=operator, key="once", json=ALL_OF_A_KIND)
    assert again.json() == started.json()
    assert started.headers["Location"] == f"{BASE}/{started.json()['id']}"
    assert (started.json()["state"], started.json()["estimate"]) == ("waiting", 3)
    assert started.json()["filter"] == {"fingerprint": "abc"}
    await run_all(api.database)
    ended = (await api.get(started.headers["Location"], by=operator)).json()
    assert (ended["state"], ended["done"], ended["failed"]) == ("finished", 3, 0)
    listed = (await api.get(f"{BASE}?filter=state:eq:finished", by=operator)).json()
    assert listed["data"] == [ended]
    told = "SELECT string_agg(DISTINCT concat_ws(' ', actor, action, reason), ';') FROM outbox_actions"
    assert await api.scalar(told) == f"user/{operator.id} replay constraint dropped"
    acts = "SELECT string_agg(concat_ws(' ', actor, action, reason), ';' ORDER BY id) FROM audit_log WHERE object = :of"
    assert await api.scalar(acts, of=f"bulk_action/{ended['id']}") == (
        f"user:{operator.id} bulk_action.started constraint dropped;"
        "job:bulk_actions bulk_action.finished constraint dropped"
    )


async def test_a_bulk_action_is_cancelled_once(api: Api) -> None:
    operator = await make_operator(api.database)
    started = (await api.post(BASE, by=operator, json=ALL_OF_A_KIND)).json()
    path = f"{BASE}/{started['id']}/cancel"
    ended = (await api.post(path, by=operator, json={"reason": "wrong kind"})).json()
    assert (ended["state"], ended["cancel_reason"]) == ("cancelled", "wrong kind")
    assert ended["cancelled_by"] == f"user/{operator.id}"
    assert_problem(await api.post(path, by=operator, json={}), 409, "conflict")
    assert_problem(await api.post(f"{BASE}/{uuid4()}/cancel", by=operator, json={}), 404, "not_found")
    assert_problem(await api.get(f"{BASE}/{uuid4()}", by=operator), 404, "not_found")
    assert await run_all(api.database) == 0


async def test_an_auditor_sees_bulk_actions_and_starts_none(api: Api) -> None:
    operator, auditor = await make_operator(api.database), await make_user(api.database, role=Role.auditor)
    started = (await api.post(BASE, by=operator, json=ALL_OF_A_KIND)).json()
    assert (await api.get(f"{BASE}/{started['id']}", by=auditor)).json() == started
    assert len((await api.get(BASE, by=auditor)).json()["data"]) == 1
    preview = await api.get(f"{BASE}/preview", by=auditor, params={"action": "discard", "type": "order.placed"})
    assert preview.status_code == 200
    assert_problem(await api.post(BASE, by=auditor, json=ALL_OF_A_KIND), 403, "forbidden")
    assert_problem(await api.post(f"{BASE}/{started['id']}/cancel", by=auditor, json={}), 403, "forbidden")
    customer = await make_user(api.database)
    assert_problem(await api.get(BASE, by=customer), 403, "forbidden")


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"reason": ""}, "#/reason"),
        ({"reason": " "}, "#/reason"),
        ({"fingerprint": None}, "#"),
        ({"waits": "retry"}, "#/waits"),
        ({"action": "bury", "died_from": "2026-01-01T00:00:00Z"}, "#/died_from"),
        ({"action": "bury", "waits": "behind"}, "#/waits"),
        ({"action": "repeat"}, "#/action"),
        ({"type": "a\x00b"}, "#/type"),
    ],
)
async def test_what_does_not_fit_is_refused_and_nothing_is_started(
    api: Api, changed: dict[str, Any], pointer: str
) -> None:
    operator = await make_operator(api.database)
    refused = await api.post(BASE, by=operator, json=ALL_OF_A_KIND | changed)
    assert_problem(refused, 422, "invalid_input", pointers=[pointer])
    assert await api.scalar("SELECT count(*) FROM bulk_actions") == 0


async def test_everything_must_be_asked_for_and_discarding_an_order_cancels_it(api: Api) -> None:
    operator = await make_operator(api.database)
    assert_problem(await api.get(f"{BASE}/preview?action=replay", by=operator), 422, "invalid_input")
    shown = await api.get(f"{BASE}/preview?action=replay&everything=true", by=operator)
    assert shown.json()["total"]["value"] == 3
    everything = {"action": "discard", "everything": True, "reason": "a test"}
    assert (await api.post(BASE, by=operator, json=everything)).status_code == 201
