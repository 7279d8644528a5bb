"""The pages of failures: groups, a group with its sample, one letter, selected letters, all that match."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from services.fields import new_id
from services.orders.events import OrderPlaced
from services.unit_of_work import UnitOfWork
from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import SAME_ORIGIN, Browser, Form, Page, browser_of

NASTY = "<img src=x onerror=alert(1)>"
BURIED = (
    "WITH taken AS (DELETE FROM outbox RETURNING *) INSERT INTO dead_letters"
    " (position, event_id, aggregate, type, attempts, error, fingerprint, reason, failures)"
    " SELECT position, event_id, aggregate, type, 5, 'Traceback <most recent>' || chr(10) || :error, :kind, :reason,"
    " jsonb_build_array(jsonb_build_object('at', '2026-01-01', 'attempt', 1, 'error', CAST(:error AS text)))"
    " FROM taken"
)
BUYER = 987654


async def bury(api: Api, number: int, kind: str = "abc", reason: str | None = "handler_error") -> list[int]:
    """Make dead letters of orders; return their positions."""
    async with UnitOfWork(api.database.write) as uow:
        for _ in range(number):
            uow.record(OrderPlaced(order_id=new_id(), buyer_id=BUYER, total=Decimal(7)))
        await uow.commit()
    async with api.database.engine.begin() as connection:
        values = {"kind": kind, "reason": reason, "error": f"ValueError: {NASTY}"}
        await connection.execute(text(BURIED), values)
        found = await connection.execute(text("SELECT position FROM dead_letters WHERE fingerprint = :kind"), values)
        return sorted(found.scalars())


async def shown(browser: Browser, path: str, status: int = 200) -> tuple[Page, str]:
    reply = await browser.get(path)
    assert reply.status_code == status, reply.text
    return Page(reply.text), reply.text


async def select(browser: Browser, form: Form, positions: Sequence[int], **values: str) -> Any:
    data = {**form.fields, **values, "positions": [str(position) for position in positions]}
    return await browser.client.post(form.action, data=data, headers=SAME_ORIGIN)


async def test_groups_are_filtered_by_reason_and_lead_to_their_group(api: Api) -> None:
    await bury(api, 3)
    await bury(api, 2, "def", "time_limit")
    browser = await browser_of(api)
    page, html = await shown(browser, "/console/failures")
    assert NASTY in page.text
    assert NASTY not in html
    assert "/console/failures/group?fingerprint=abc&window=day" in page.links
    assert '<svg class="spark"' in html
    assert 'aria-label="3 since' in html
    slow, _ = await shown(browser, "/console/failures?reason=time_limit&type=&window=hour")
    assert "/console/failures/group?fingerprint=def&window=hour" in slow.links
    assert "/console/failures/group?fingerprint=abc&window=hour" not in slow.links
    none, _ = await shown(browser, "/console/failures?reason=unreadable&type=order.placed")
    assert "No dead letter matches." in none.text
    wrong, _ = await shown(browser, "/console/failures?reason=bad", 422)
    assert "There is no failure reason 'bad'; known: handler_error" in wrong.text


async def test_a_group_shows_since_when_how_often_and_a_sample(api: Api) -> None:
    positions = await bury(api, 60)
    browser = await browser_of(api)
    page, html = await shown(browser, "/console/failures/group?fingerprint=abc&window=week")
    for words in ("Traceback <most recent>", "First seen", "Last seen", "handler error", "of 60 aggregates"):
        assert words in page.text, words
    assert f'"buyer_id": {BUYER}' in page.text
    assert NASTY not in html
    assert f"/console/failures/letters/{positions[49]}" in page.links
    assert f"/console/failures/letters/{positions[50]}" not in page.links
    (following,) = [link for link in page.links if "cursor=" in link]
    rest, _ = await shown(browser, following)
    assert f"/console/failures/letters/{positions[59]}" in rest.links
    gone, _ = await shown(browser, "/console/failures/group?fingerprint=none", 404)
    assert "No dead letters of this kind are left" in gone.text


async def test_one_letter_shows_its_history_and_is_replayed(api: Api) -> None:
    position, other = await bury(api, 2)
    browser = await browser_of(api)
    page, html = await shown(browser, f"/console/failures/letters/{position}")
    assert f"2026-01-01: attempt 1: ValueError: {NASTY}" in page.text
    assert NASTY not in html
    reply = await select(browser, page.form("/failures/letters"), [position], act="replay", reason="mended")
    assert reply.headers["location"] == "/console/failures/group?fingerprint=abc&done=replay&number=1"
    assert "1 dead letter replayed: back in the outbox" in (await browser.open(reply.headers["location"])).text
    assert await api.scalar("SELECT position FROM outbox") == position
    assert await api.scalar("SELECT position FROM dead_letters") == other
    assert await api.scalar("SELECT reason FROM outbox_actions WHERE actor LIKE 'user/%'") == "mended"
    await shown(browser, f"/console/failures/letters/{position}", 404)


async def test_selected_letters_are_replayed_or_with_a_reason_discarded(api: Api) -> None:
    positions = await bury(api, 5)
    browser = await browser_of(api)
    page, _ = await shown(browser, "/console/failures/group?fingerprint=abc")
    form = page.form("/failures/letters")
    none = await browser.client.post(
        form.action,
        data={"form_token": form.fields["form_token"], "act": "replay", "fingerprint": "abc"},
        headers=SAME_ORIGIN,
    )
    assert none.status_code == 422
    assert "select at least one dead letter" in Page(none.text).text
    assert (await select(browser, form, positions[:2], act="replay")).status_code == 303
    refused = await select(browser, form, positions[2:4], act="discard")
    assert refused.status_code == 422
    assert "a reason is required" in Page(refused.text).text
    for bad in ([*range(1, 202)], [0]):
        assert (await select(browser, form, bad, act="replay")).status_code == 422
    assert (await select(browser, form, positions[2:4], act="burn")).status_code == 422
    assert (await select(browser, form, positions[2:4], act="discard", reason="known bug")).status_code == 303
    assert await api.scalar("SELECT array_agg(position ORDER BY position) FROM outbox") == positions[:2]
    assert await api.scalar("SELECT array_agg(position) FROM dead_letters") == positions[4:]
    last = await select(browser, form, positions, act="replay")
    assert "No dead letters of this kind are left" in (await browser.open(last.headers["location"])).text


async def test_all_of_a_kind_are_replayed_by_a_bulk_action_with_progress_and_cancel(api: Api) -> None:
    await bury(api, 3)
    await bury(api, 2, "def")
    browser = await browser_of(api)
    page, _ = await shown(browser, "/console/failures/group?fingerprint=abc")
    (link,) = [link for link in page.links if "act=replay" in link]
    preview, html = await shown(browser, link)
    assert "3 dead letters" in preview.text
    assert NASTY not in html
    form = preview.form("/failures/all")
    assert (await browser.send(form, {"reason": " "})).status_code == 422
    assert await api.scalar("SELECT count(*) FROM bulk_actions") == 0
    reply = await browser.send(form, {"reason": "mended"})
    action_id = await api.scalar("SELECT id FROM bulk_actions WHERE reason = 'mended'")
    assert (reply.status_code, reply.headers["location"]) == (303, f"/console/bulk/{action_id}")
    assert await api.scalar("SELECT filter::text FROM bulk_actions") == '{"fingerprint": "abc"}'
    progress, html = await shown(browser, reply.headers["location"])
    assert "waiting: a worker begins within seconds" in progress.text
    assert f'hx-get="/console/bulk/{action_id}/progress" hx-trigger="every 1s"' in html
    assert "hx-refresh" not in (await browser.get(f"/console/bulk/{action_id}/progress")).headers
    overview, _ = await shown(browser, "/console/failures")
    assert "replay is waiting: 0 of 3" in overview.text
    cancelled = await browser.send(progress.form("/cancel"), {"reason": "wrong one"})
    assert cancelled.status_code == 303
    reply = await browser.get(f"/console/bulk/{action_id}/progress")
    assert reply.headers["hx-refresh"] == "true", "there is nothing to cancel any more"
    part, html = await shown(browser, f"/console/bulk/{action_id}/progress")
    assert "Cancelled by user/" in part.text
    assert "wrong one" in part.text
    assert "hx-trigger" not in html, "it has ended, so it is not asked for again"
    ended, _ = await shown(browser, f"/console/bulk/{action_id}")
    assert [form.action for form in ended.forms if form.action.endswith("/cancel")] == []
    assert (await browser.send(progress.form("/cancel"))).status_code == 409
    await shown(browser, f"/console/bulk/{new_id()}", 404)


async def test_an_auditor_sees_no_personal_fields_and_cannot_act(api: Api) -> None:
    (position,) = await bury(api, 1)
    operator = await browser_of(api)
    letters = (await operator.open("/console/failures/group?fingerprint=abc")).form("/failures/letters")
    all_of_them = (await operator.open("/console/failures/all?act=discard&fingerprint=abc")).form("/failures/all")
    started = await operator.send(all_of_them, {"reason": "mended"})
    cancel = (await operator.open(started.headers["location"])).form("/cancel")
    auditor = await browser_of(api, Role.auditor)
    paths = ("", "/group?fingerprint=abc", f"/letters/{position}")
    for path in (*(f"/console/failures{path}" for path in paths), started.headers["location"]):
        page, html = await shown(auditor, path)
        assert [form.action for form in page.forms if form.method == "post"] == ["/console/sign-out"]
        assert not [link for link in page.links if "act=" in link]
        assert str(BUYER) not in html
        if "group" in path or "letters" in path:
            assert '"buyer_id": "(personal)"' in page.text
            assert '"total": "7' in page.text
    await shown(auditor, "/console/failures/all?act=replay&fingerprint=abc", 403)
    token = page.form("/sign-out").fields["form_token"]
    for form in (letters, all_of_them, cancel):
        values = {**form.fields, "form_token": token, "reason": "x", "act": "replay"}
        reply = await auditor.client.post(form.action, data=values, headers=SAME_ORIGIN)
        assert reply.status_code == 403
        assert "This needs the scope operations:write" in Page(reply.text).text
    assert await api.scalar("SELECT count(*) FROM dead_letters") == 1


async def test_letters_without_a_fingerprint_have_a_group_too(api: Api) -> None:
    await bury(api, 2, "", None)
    browser = await browser_of(api)
    page, _ = await shown(browser, "/console/failures")
    assert "not recorded" in page.text
    (link,) = [link for link in page.links if "fingerprint=" in link]
    group, _ = await shown(browser, link)
    assert len([link for link in group.links if "/letters/" in link]) == 2
    preview, _ = await shown(browser, "/console/failures/all?act=replay&fingerprint=")
    assert "2 dead letters" in preview.text


async def test_a_field_that_is_no_list_is_refused_if_it_is_given_twice(api: Api) -> None:
    (position,) = await bury(api, 1)
    browser = await browser_of(api)
    form = (await browser.open(f"/console/failures/letters/{position}")).form("/failures/letters")
    data: dict[str, Any] = {**form.fields, "act": ["replay", "discard"]}
    reply = await browser.client.post(form.action, data=data, headers=SAME_ORIGIN)
    assert reply.status_code == 400
    assert "The field 'act' is given more than once" in Page(reply.text).text
