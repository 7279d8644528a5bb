"""The page about consumers of the event log, and about the reports."""

import pytest

from services.analytics import Analytics
from services.database import Database
from services.outbox.log import service as log
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of
from tests.factories import make_product, make_user
from tests.reporting import Reporter

PATH = "/console/consumers"


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    """Reports are on."""
    return settings.model_copy(update={"analytics_url": analytics_url})


@pytest.fixture
def reporter(database: Database, analytics: Analytics) -> Reporter:
    """The consumer of reports, as a worker runs it."""
    return Reporter(database, analytics)


async def add_consumer(api: Api, name: str = "feed") -> None:
    """A consumer that workers have run, with one unread event."""
    async with UnitOfWork(api.database.write) as uow:
        await log.create(uow, name)
        await uow.commit()
    await api.execute("UPDATE log_consumers SET lease_token = 1")
    buyer = await make_user(api.database, credits="100")
    await api.place(buyer, (await make_product(api.database), 1))


async def send(browser: Browser, action: str, **values: str) -> int:
    reply = await browser.send((await browser.open(PATH)).form(action), values)
    return reply.status_code


async def test_a_consumer_is_shown_with_its_lag_and_its_error(api: Api) -> None:
    await add_consumer(api)
    await api.execute(
        "UPDATE log_consumers SET failed_in_a_row = 2, error = 'no <disk>', retry_at = now() WHERE name = 'feed'"
    )
    reply = await (await browser_of(api, Role.auditor)).get(PATH)
    page = Page(reply.text)
    assert "no <disk>" not in reply.text
    for words in ("feed", "failing", "failed 2 times", "no <disk>"):
        assert words in page.text


async def test_a_consumer_is_paused_resumed_and_reset(api: Api) -> None:
    await add_consumer(api)
    browser = await browser_of(api)
    assert await send(browser, "feed/pause", reason="a look") == 303
    assert await api.scalar("SELECT paused_at IS NOT NULL FROM log_consumers WHERE name = 'feed'")
    assert await send(browser, "feed/resume") == 303
    before = await api.scalar("SELECT seen::text FROM log_consumers WHERE name = 'feed'")
    assert await send(browser, "feed/reset", to="now", confirmation="fed") == 422
    assert await api.scalar("SELECT seen::text FROM log_consumers WHERE name = 'feed'") == before
    assert await send(browser, "feed/reset", to="now", confirmation="feed", reason="skip it") == 303
    assert await api.scalar("SELECT seen::text FROM log_consumers WHERE name = 'feed'") != before
    said = "SELECT array_agg(action ORDER BY id) FROM audit_log WHERE action LIKE 'consumer.%'"
    assert await api.scalar(said) == ["consumer.paused", "consumer.resumed", "consumer.reset"]


async def test_reports_are_counted_again_with_progress(api: Api, reporter: Reporter) -> None:
    await add_consumer(api)
    await reporter.catch_up()
    # The rebuild takes the lease from it.
    reporter.lease = None
    browser = await browser_of(api)
    assert "have been counted." in (await browser.open(PATH)).text
    assert await send(browser, "/reports/rebuild", reason="a bug") == 303
    page = await browser.open(PATH)
    assert "They are being counted again." in page.text
    assert await api.scalar("SELECT count(*) FROM audit_log WHERE action = 'reports.rebuilt' AND reason = 'a bug'") == 1
    await reporter.catch_up()
    assert "They are being counted again." not in (await browser.open(PATH)).text


async def test_the_page_is_shown_while_the_analytics_database_is_away(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise OSError("away")

    await add_consumer(api)
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form("/reports/rebuild")
    monkeypatch.setattr(Analytics, "open", refuse)
    page = await browser.open(PATH)
    assert "reports are unavailable" in page.text
    assert "feed" in page.text
    assert (await browser.send(form)).status_code == 503
    assert await api.scalar("SELECT count(*) FROM outbox_actions") == 0


@pytest.mark.parametrize("role", [Role.auditor, Role.admin])
async def test_those_who_only_read_see_no_forms_and_cannot_act(api: Api, role: Role) -> None:
    await add_consumer(api)
    browser = await browser_of(api, role)
    page = await browser.open(PATH)
    assert [form.action for form in page.forms] == ["/console/sign-out"]
    token = {"form_token": page.forms[0].fields["form_token"]}
    for path, more in (
        ("feed/pause", {}),
        ("feed/resume", {}),
        ("feed/reset", {"to": "now", "confirmation": "feed"}),
        ("reports/rebuild", {}),
    ):
        reply = await browser.client.post(f"{PATH}/{path}", data={**token, **more}, headers=SAME_ORIGIN)
        assert reply.status_code == 403, path
    assert await api.scalar("SELECT count(*) FROM outbox_actions") == 0


async def test_an_act_needs_the_token_of_its_form(api: Api) -> None:
    await add_consumer(api)
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form("feed/pause")
    assert (await browser.send(form, {"form_token": "x"})).status_code == 403
    assert (await browser.send(form, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert await api.scalar("SELECT paused_at IS NULL FROM log_consumers WHERE name = 'feed'")


async def test_how_much_of_the_log_a_consumer_has_read_again_is_shown(api: Api) -> None:
    await add_consumer(api)
    first = "(SELECT min(position) FROM events)"
    await api.execute(f"UPDATE log_consumers SET reading = seen, position = {first}, until = {first} + 3")
    assert "25 %" in (await (await browser_of(api)).open(PATH)).text
