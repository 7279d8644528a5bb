"""Consumers of the log and jobs on a schedule over HTTP: what operators see and do, and that it is recorded."""

from datetime import UTC, datetime
from typing import Any

import pytest

from services.fields import new_id
from services.outbox.log import service as log
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user

BASE = "/v1/operations"
BECAUSE = {"reason": "the disk is full"}


@pytest.fixture
async def operator(api: Api) -> User:
    """An operator of a service whose log has a consumer that workers run, and whose jobs include `audit`."""
    async with UnitOfWork(api.database.write) as uow:
        await log.create(uow, "feed")
        await uow.commit()
    await api.execute("UPDATE log_consumers SET lease_token = 1")
    await api.execute(
        "INSERT INTO jobs (name, schedule, due_at) VALUES ('audit', '0 * * * *', :at)",
        at=datetime(2030, 1, 1, tzinfo=UTC),
    )
    return await make_operator(api.database)


async def one(api: Api, kind: str, by: User) -> dict[str, Any]:
    reply = await api.get(f"{BASE}/{kind}", by=by)
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()
    shown: dict[str, Any] = found
    return shown


async def recorded(api: Api) -> str:
    said = "concat_ws(' ', actor, action, object, reason, details ->> 'done')"
    return str(await api.scalar(f"SELECT {said} FROM audit_log WHERE user_id IS NOT NULL ORDER BY id DESC LIMIT 1"))


async def test_a_consumer_is_paused_resumed_and_reset(api: Api, operator: User) -> None:
    for act, done in (("pause", "consumer.paused"), ("resume", "consumer.resumed")):
        assert (await api.post(f"{BASE}/consumers/feed/{act}", by=operator, json=BECAUSE)).status_code == 204
        shown = await one(api, "consumers", operator)
        assert (shown["paused_by"] == f"user/{operator.id}") == (act == "pause")
        assert await recorded(api) == f"user:{operator.id} {done} consumer/feed the disk is full {act}_consumer"
    reset = {"to": "now", **BECAUSE}
    assert (await api.post(f"{BASE}/consumers/feed/reset", by=operator, json=reset)).status_code == 204
    assert await recorded(api) == f"user:{operator.id} consumer.reset consumer/feed the disk is full reset_to_now"
    assert_problem(await api.post(f"{BASE}/consumers/unknown/pause", by=operator, json={}), 404, "not_found")


async def test_a_job_is_run_paused_and_resumed(api: Api, operator: User) -> None:
    for act, done in (("run", "job.requested"), ("pause", "job.paused"), ("resume", "job.resumed")):
        assert (await api.post(f"{BASE}/jobs/audit/{act}", by=operator, json=BECAUSE)).status_code == 204
        assert await recorded(api) == f"user:{operator.id} {done} job/audit the disk is full"
        shown = await one(api, "jobs", operator)
        assert shown["requested_by"] == f"user/{operator.id}"
        assert (shown["state"] == "paused") == (act == "pause")
    assert_problem(await api.post(f"{BASE}/jobs/unknown/run", by=operator, json={}), 404, "not_found")


async def test_a_worker_is_asked_to_be_quiet_and_to_work_again(api: Api, operator: User) -> None:
    worker = str(new_id())
    await api.execute(
        "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)"
        " VALUES (CAST(:id AS uuid), 'here', 7, now(), now(), now(), '{}')",
        id=worker,
    )
    for act, asked, done in (("quiet", "quiet", "worker.quieted"), ("resume", None, "worker.resumed")):
        assert (await api.post(f"{BASE}/workers/{worker}/{act}", by=operator, json=BECAUSE)).status_code == 204
        assert (await one(api, "workers", operator))["asked"] == asked
        assert await recorded(api) == f"user:{operator.id} {done} worker/{worker} the disk is full"
    assert (await api.post(f"{BASE}/workers/{worker}/stop", by=operator, json=BECAUSE)).status_code == 204
    assert_problem(await api.post(f"{BASE}/workers/{worker}/resume", by=operator, json={}), 409, "conflict")
    assert_problem(await api.post(f"{BASE}/workers/{new_id()}/quiet", by=operator, json={}), 404, "not_found")


@pytest.mark.parametrize("role", [Role.auditor, Role.support, Role.customer])
async def test_those_who_may_not_act_change_nothing(api: Api, operator: User, role: Role) -> None:
    by = await make_user(api.database, role=role)
    before = await one(api, "consumers", operator), await one(api, "jobs", operator)
    for path, body in (
        ("consumers/feed/pause", {}),
        ("consumers/feed/reset", {"to": "now"}),
        ("jobs/audit/run", {}),
        ("jobs/audit/pause", {}),
    ):
        assert_problem(await api.post(f"{BASE}/{path}", by=by, json=body), 403, "forbidden")
    after = await one(api, "consumers", operator), await one(api, "jobs", operator)
    assert [shown["paused_at"] for shown in after] == [shown["paused_at"] for shown in before]
    reads = 200 if role is Role.auditor else 403
    assert (await api.get(f"{BASE}/jobs", by=by)).status_code == reads
