"""The page about workers and the jobs on their schedules."""

import json
from datetime import UTC, datetime

import pytest

from services.fields import new_id
from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of

PATH = "/console/workers"
REPORT = {
    "version": "9.8.7",
    "types": ["order.placed"],
    "schedules": ["audit_ledger"],
    "rates": {"processed": 12.5, "batches": 2.0},
    "processed": 1234,
    "retried": 5,
    "buried": 6,
    "time_limit": 30.0,
}


async def add_worker(api: Api, host: str = "host-a", report: object = REPORT) -> str:
    worker = str(new_id())
    await api.execute(
        "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)"
        " VALUES (CAST(:id AS uuid), :host, 77, now(), now(), now(), CAST(:report AS jsonb))",
        id=worker,
        host=host,
        report=json.dumps(report),
    )
    return worker


async def add_job(api: Api) -> None:
    await api.execute(
        "INSERT INTO jobs (name, schedule, due_at) VALUES ('audit_ledger', '40 * * * *', :at)",
        at=datetime(2030, 1, 1, tzinfo=UTC),
    )


async def send(browser: Browser, action: str, **values: str) -> int:
    form = (await browser.open(PATH)).form(action)
    reply = await browser.send(form, values)
    return reply.status_code


async def test_a_worker_is_shown_with_what_it_runs(api: Api) -> None:
    browser = await browser_of(api, Role.auditor)
    assert "No worker is running" in (await browser.open(PATH)).text
    await add_worker(api)
    page = await browser.open(PATH)
    for words in ("host-a 77", "healthy", "9.8.7", "12.5", "1234", "order.placed", "1 job", "audit_ledger"):
        assert words in page.text
    await api.execute("UPDATE workers SET beat_at = now() - interval '1 minute'")
    assert "no heartbeat for 60 s" in (await browser.open(PATH)).text


async def test_a_worker_that_has_only_begun_is_shown(api: Api) -> None:
    await add_worker(api, report={})
    assert "host-a 77" in (await (await browser_of(api)).open(PATH)).text


async def test_a_worker_is_asked_to_be_quiet_to_work_again_and_to_stop(api: Api) -> None:
    worker = await add_worker(api)
    browser = await browser_of(api)
    for wish, asked in (("quiet", "quiet"), ("work", None), ("stop", "stop")):
        assert await send(browser, f"{worker}/ask", wish=wish, reason="a look") == 303
        assert await api.scalar("SELECT asked FROM workers") == asked
    page = await browser.open(PATH)
    assert "stopping" in page.text
    assert not [form for form in page.forms if form.action.endswith("/ask")]
    said = "SELECT array_agg(action || ' ' || reason ORDER BY id) FROM audit_log WHERE action LIKE 'worker.%'"
    assert await api.scalar(said) == ["worker.quieted a look", "worker.resumed a look", "worker.stopped a look"]


async def test_a_job_is_run_paused_and_resumed(api: Api) -> None:
    await add_job(api)
    browser = await browser_of(api)
    assert await send(browser, "/run") == 303
    assert await api.scalar("SELECT requested_at IS NOT NULL FROM jobs")
    assert await send(browser, "/pause", reason="<too> slow") == 303
    reply = await browser.get(PATH)
    assert "<too>" not in reply.text
    assert "<too> slow" in Page(reply.text).text
    assert await send(browser, "/resume") == 303
    assert await api.scalar("SELECT paused_at IS NULL FROM jobs")


@pytest.mark.parametrize("role", [Role.auditor, Role.admin])
async def test_those_who_only_read_see_no_forms_and_cannot_act(api: Api, role: Role) -> None:
    worker = await add_worker(api)
    await add_job(api)
    browser = await browser_of(api, role)
    page = await browser.open(PATH)
    assert "audit_ledger" in page.text
    assert [form.action for form in page.forms] == ["/console/sign-out"]
    sent = {"form_token": page.forms[0].fields["form_token"], "wish": "stop"}
    for path in (f"{worker}/ask", "jobs/audit_ledger/run", "jobs/audit_ledger/pause", "jobs/audit_ledger/resume"):
        fields = sent if path.endswith("ask") else {"form_token": sent["form_token"]}
        reply = await browser.client.post(f"{PATH}/{path}", data=fields, headers=SAME_ORIGIN)
        assert reply.status_code == 403, path
    assert await api.scalar("SELECT asked IS NULL FROM workers")
    assert await api.scalar("SELECT requested_at IS NULL AND paused_at IS NULL FROM jobs")


async def test_an_act_needs_the_token_of_its_form(api: Api) -> None:
    worker = await add_worker(api)
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form(f"{worker}/ask")
    assert (await browser.send(form, {"wish": "stop", "form_token": "x"})).status_code == 403
    assert (await browser.send(form, {"wish": "stop"}, {"Sec-Fetch-Site": "none"})).status_code == 403
    assert await api.scalar("SELECT asked IS NULL FROM workers")


async def test_what_workers_report_is_escaped(api: Api) -> None:
    bad = "<script>alert(1)</script>"
    await add_worker(api, host=bad, report={**REPORT, "types": [bad]})
    reply = await (await browser_of(api)).get(PATH)
    assert bad not in reply.text
    assert Page(reply.text).text.count(bad) >= 2
