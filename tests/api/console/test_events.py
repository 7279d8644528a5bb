"""The page of events that wait: who sees what, and what its forms do."""

import re
from typing import Any

import pytest
from sqlalchemy import text

from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of

NASTY = "<script>alert(1)</script>"
WAITING = (
    "INSERT INTO outbox (position, event_id, aggregate, type, waits, available_at, attempts, last_error)"
    " SELECT n, gen_random_uuid(), 'order/' || n, 'order.placed', 'retry', now() + interval '1 hour' * n, 1,"
    f" 'ValueError: {NASTY}' FROM generate_series(1, 60) AS n"
)
RETRIED = "/console/events?type=order.placed&waits=retry"


@pytest.fixture
async def waiting(api: Api) -> None:
    async with api.database.engine.begin() as connection:
        await connection.execute(text(WAITING))


async def shown(browser: Browser, path: str) -> tuple[Page, str]:
    reply = await browser.get(path)
    assert reply.status_code == 200, reply.text
    return Page(reply.text), reply.text


@pytest.mark.usefixtures("waiting")
async def test_types_lead_to_the_events_that_wait_for_a_reason_page_by_page(api: Api) -> None:
    browser = await browser_of(api)
    page, _ = await shown(browser, "/console/events")
    assert "60 retry" in page.text
    assert RETRIED in page.links
    listed, html = await shown(browser, RETRIED)
    assert "order/50" in listed.text
    assert "order/51" not in listed.text
    assert NASTY not in html
    assert NASTY in listed.text
    (following,) = [link for link in listed.links if "cursor=" in link]
    rest, _ = await shown(browser, following)
    assert "order/51" in rest.text
    assert "Next page" not in rest.text
    empty, _ = await shown(browser, RETRIED.replace("retry", "ready"))
    assert "None." in empty.text


@pytest.mark.usefixtures("waiting")
async def test_a_search_explains_why_what_it_finds_waits(api: Api) -> None:
    browser = await browser_of(api)
    event_id = await api.scalar("SELECT event_id FROM outbox WHERE position = 3")
    await api.execute(
        "INSERT INTO events (id, type, version, aggregate, payload, occurred_at)"
        f" VALUES ('{event_id}', 'order.placed', 1, 'order/3', '{{}}', now())"
    )
    for what in (str(event_id), "3", "order/3", " order/3 "):
        page, html = await shown(browser, f"/console/events?q={what}")
        assert "failed one attempt, next attempt at" in page.text, what
        assert NASTY not in html
    missing, html = await shown(browser, "/console/events?q=%3Cb%3Enowhere")
    assert "no waiting event matches '<b>nowhere'" in missing.text
    assert "<b>nowhere" not in html
    assert (await browser.get(f"/console/events?q={'x' * 101}")).status_code == 422
    assert (await browser.get("/console/events?q=%00")).status_code == 422


@pytest.mark.usefixtures("waiting")
async def test_why_is_a_part_of_the_page_and_says_if_the_event_is_gone(api: Api) -> None:
    browser = await browser_of(api)
    part = await browser.get("/console/events/why?position=1", headers={"HX-Request": "true"})
    assert "next attempt at" in Page(part.text).text
    assert "<html" not in part.text
    gone = await browser.get("/console/events/why?position=99", headers={"HX-Request": "true"})
    assert "no event waits at position 99" in Page(gone.text).text


@pytest.mark.usefixtures("waiting")
async def test_a_type_is_paused_limited_and_resumed(api: Api) -> None:
    browser = await browser_of(api)
    page = await browser.open("/console/events")
    reply = await browser.send(page.form("/events/pause"), {"reason": "deploy"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/console/events?done=paused")
    assert await api.scalar("SELECT paused FROM outbox_types WHERE type = 'order.placed'") is True
    page = await browser.open(reply.headers["location"])
    assert "Paused. Running batches finish" in page.text
    reply = await browser.send(page.form("/events/limit"), {"max_batches": "3"})
    assert reply.status_code == 303, reply.text
    assert await api.scalar("SELECT max_batches FROM outbox_types") == 3
    assert "at most 3 batches at once" in (await browser.open("/console/events")).text
    for bad in ("0", "1001", "-1", "many"):
        assert (await browser.send(page.form("/events/limit"), {"max_batches": bad})).status_code == 422
    assert (await browser.send(page.form("/events/limit"), {"max_batches": ""})).status_code == 303
    assert await api.scalar("SELECT max_batches FROM outbox_types") is None
    assert (await browser.send(page.form("/events/resume"))).status_code == 303
    assert await api.scalar("SELECT paused FROM outbox_types") is False
    acts = "SELECT string_agg(action || ' ' || reason, ', ' ORDER BY id) FROM outbox_actions WHERE actor LIKE 'user/%'"
    assert await api.scalar(acts) == "pause deploy, limit , limit , resume "


@pytest.mark.usefixtures("waiting")
async def test_an_event_is_retried_now_or_buried_with_a_reason(api: Api) -> None:
    browser = await browser_of(api)
    page = await browser.open(RETRIED)
    form = page.form("/events/retry")
    assert form.fields["position"] == "1"
    reply = await browser.send(form)
    assert reply.headers["location"] == f"{RETRIED}&done=retried"
    assert await api.scalar("SELECT available_at <= now() FROM outbox WHERE position = 1") is True
    bury = page.form("/events/bury")
    refused = await browser.send(bury, {"position": "2", "reason": " "})
    assert refused.status_code == 422
    assert "a reason is required to bury an event" in Page(refused.text).text
    assert (await browser.send(bury, {"position": "2", "reason": "known bug"})).status_code == 303
    assert await api.scalar("SELECT position FROM dead_letters") == 2
    assert (await browser.send(bury, {"position": "2", "reason": "known bug"})).status_code == 409
    assert (await browser.send(bury, {"position": "99", "reason": "known bug"})).status_code == 404


@pytest.mark.usefixtures("waiting")
async def test_an_auditor_sees_the_page_and_cannot_act(api: Api) -> None:
    auditor = await browser_of(api, Role.auditor)
    for path in ("/console/events", RETRIED, "/console/events?q=order/1"):
        page, _ = await shown(auditor, path)
        assert [form.action for form in page.forms if form.method == "post"] == ["/console/sign-out"]
    operator = await (await browser_of(api)).open(RETRIED)
    token = page.form("/sign-out").fields["form_token"]
    for name in ("pause", "limit", "retry", "bury"):
        form = operator.form(f"/events/{name}")
        values: dict[str, Any] = {**form.fields, "form_token": token, "reason": "x"}
        reply = await auditor.client.post(form.action, data=values, headers=SAME_ORIGIN)
        assert reply.status_code == 403
        assert "This needs the scope operations:write" in Page(reply.text).text
    assert await api.scalar("SELECT count(*) FROM outbox_actions") == 0


@pytest.mark.parametrize("role", [Role.support])
async def test_others_of_the_staff_do_not_see_the_page(api: Api, role: Role) -> None:
    browser = await browser_of(api, role)
    for path in ("/console/events", "/console/events/why?position=1", "/console/failures"):
        assert (await browser.get(path)).status_code == 403


@pytest.mark.usefixtures("waiting")
async def test_forms_need_their_token_and_come_from_the_console(api: Api) -> None:
    browser = await browser_of(api)
    form = (await browser.open(RETRIED)).form("/events/retry")
    assert (await browser.send(form, {"form_token": ""})).status_code == 403
    assert (await browser.send(form, headers={"Origin": "https://evil.example"})).status_code == 403
    assert await api.scalar("SELECT count(*) FROM outbox_actions") == 0


async def test_a_notice_is_one_of_the_known_ones(api: Api) -> None:
    browser = await browser_of(api)
    _, html = await shown(browser, "/console/events?done=you+won")
    assert not re.search(r"notice good", html)
